"""Row F2: failed attempts are counted for all workers together, in bounded memory."""

import pytest

from tornado_gateway.telemetry.attempts import FAILURES, FAILURES_OF_ADDRESS, PERIOD_SECONDS, Attempts


def test_f2_an_address_gets_ten_failures_in_a_minute():
    attempts = Attempts()
    for second in range(FAILURES_OF_ADDRESS):
        assert attempts.wait_seconds("192.0.2.7", second) == 0
        attempts.failed(0, "192.0.2.7", second)
    assert attempts.wait_seconds("192.0.2.7", 10) == PERIOD_SECONDS - 10
    assert attempts.wait_seconds("192.0.2.8", 10) == 0
    assert attempts.wait_seconds("192.0.2.7", PERIOD_SECONDS) == 0


def test_f2_all_workers_and_addresses_together_get_a_hundred():
    attempts = Attempts(rows=4)
    for number in range(FAILURES):
        assert attempts.wait_seconds("198.51.100.1", 5.0) == 0
        attempts.failed(number % 4, f"192.0.2.{number}", 5.0)
    assert attempts.wait_seconds("198.51.100.1", 5.5) == PERIOD_SECONDS - 0.5
    for number in range(10 * FAILURES):  # of a worker that others have overtaken
        attempts.failed(0, f"192.0.2.{number}", 6.0)
    assert attempts.wait_seconds("198.51.100.1", PERIOD_SECONDS + 6.0) == 0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("unknown", "unix", False),
    ],
)
def test_f2_a_network_of_ipv6_counts_as_one_address(one, other, is_same):
    attempts = Attempts()
    for _ in range(FAILURES_OF_ADDRESS):
        attempts.failed(0, one, 1.0)
    assert (attempts.wait_seconds(other, 1.0) > 0) == is_same
