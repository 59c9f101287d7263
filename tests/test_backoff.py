"""Delays between attempts."""

import pytest

from tornado_gateway.backoff import Backoff


def test_delays_double_up_to_the_longest():
    backoff = Backoff(1, 10, jitter=0)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next() == 1


def test_jitter_only_shortens_a_delay():
    delays = [Backoff(8, 10, jitter=0.25).next() for _ in range(200)]
    assert all(6 <= delay <= 8 for delay in delays)
    assert len(set(delays)) > 100


@pytest.mark.parametrize(("first", "longest"), [(1, 0.5), (1, 1)])
def test_the_first_delay_is_bounded_as_well(first, longest):
    assert Backoff(first, longest, jitter=0).next() == longest


def test_a_long_outage_does_not_overflow():
    backoff = Backoff(1, 86_400)
    for _ in range(10_000):
        assert 0 < backoff.next() <= 86_400
