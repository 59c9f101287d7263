"""The claims of a worker, and the schedule of its full flushes."""

import asyncio

from tornado_gateway.events.claims import MAX_RETRYING, Claims
from tornado_gateway.events.schedule import FlushSchedule
from tornado_gateway.store.interfaces import Chunk


def chunk(number, *names):
    return Chunk(number, len(names), b"\n".join(name.encode() for name in names))


async def test_claimed_events_are_counted_until_their_claim_is_forgotten():
    claims = Claims()
    claims.add([chunk(1, "a", "b"), chunk(2, "c")])
    claims.add([chunk(3, "d")])
    assert (claims.events, len(claims), len(claims.ready)) == (4, 2, 2)
    claims.forget(claims.ready[0].claim)
    assert (claims.events, len(claims)) == (1, 1)
    assert claims.is_last(claims.ready[1])


async def test_pieces_of_a_part_are_sent_next_and_in_order():
    claims = Claims()
    claims.add([chunk(1, "a", "b", "c")])
    claims.add([chunk(2, "d")])
    claims.split(claims.ready.popleft(), 3)
    assert [part.events.body for part in claims.ready] == [b"a", b"b", b"c", b"d"]
    assert not claims.is_last(claims.ready[0])


async def test_parts_that_wait_for_a_retry_are_bounded():
    claims = Claims()
    claims.add([chunk(1, *"ab")])
    part = claims.ready.popleft()
    part.failures = 1  # others succeeded meanwhile
    for number in range(MAX_RETRYING):
        assert not claims.is_full
        claims.retry_later(part, 0.0, f"failure {number}")
    assert claims.is_full
    assert claims.retry_error == f"failure {MAX_RETRYING - 1}"
    assert claims.is_full_of_failures(during_outage=False)
    assert not claims.is_full_of_failures(during_outage=True), "its failures have an explanation"


async def test_a_full_flush_is_complete_when_the_events_that_waited_are_claimed():
    schedule = FlushSchedule(interval_seconds=600.0)
    schedule.begin_if_due(30)
    assert not schedule.must_drain
    schedule.is_due = True
    schedule.begin_if_due(30)
    assert (schedule.is_due, schedule.must_drain) == (False, True)
    assert 0 < schedule.next_at - asyncio.get_running_loop().time() <= 600
    schedule.record_claimed(20, batch_events=10)
    assert schedule.must_drain
    schedule.record_claimed(10, batch_events=10)
    assert schedule.must_drain, "a full batch: there may be more"
    schedule.record_claimed(3, batch_events=10)
    assert not schedule.must_drain


async def test_a_full_flush_ends_when_the_store_has_no_more_events():
    schedule = FlushSchedule(interval_seconds=600.0)
    schedule.begin(30)
    schedule.record_claimed(0, batch_events=10)
    assert not schedule.must_drain
