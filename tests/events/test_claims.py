"""The claims of a worker, and the schedule of its full flushes."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tornado_gateway.events.batches import REQUEST_BYTES, pack, split_to_fit
from tornado_gateway.events.claims import MAX_CLAIMED_BYTES, MAX_RETRYING, MAX_RETRYING_BYTES, Claims
from tornado_gateway.events.schedule import FlushSchedule
from tornado_gateway.store.interfaces import Chunk, NewChunk


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
    assert not claims.has_room(during_outage=False)
    assert claims.has_room(during_outage=True), "its failures have an explanation"


async def test_a2_claims_are_bounded_in_bytes():
    claims = Claims()
    while claims.size < MAX_CLAIMED_BYTES:
        assert claims.has_room(during_outage=False)
        claims.add([chunk(1, "x" * REQUEST_BYTES, "y")])
    assert not claims.has_room(during_outage=False)
    assert not claims.has_room(during_outage=True)
    for _ in range(len(claims.ready)):
        claims.split(claims.ready.pop(), 2)
    for part in list(claims.ready):
        claims.delivered(part)
    assert claims.has_room(during_outage=False)
    assert claims.size == 0
    assert not any(held.body for claim in claims.all() for held in claim.chunks), "delivered events leave memory"
    assert all(claim.size == REQUEST_BYTES + 2 for claim in claims.all())


async def test_a2_parts_that_wait_for_a_retry_are_bounded_in_bytes():
    claims = Claims()
    while claims.retries.size < MAX_RETRYING_BYTES:
        assert not claims.is_full
        claims.add([chunk(1, "x" * REQUEST_BYTES)])
        claims.retry_later(claims.ready.popleft(), 0.0, "503")
    assert claims.is_full
    assert not claims.has_room(during_outage=True)
    claims.delivered(claims.retries.pop())
    assert not claims.is_full
    assert claims.has_room(during_outage=True)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 5), st.integers(10, 60))
def test_a2_batches_keep_to_their_limits_and_their_order(sizes, most_events, most_bytes):
    bodies = [b"%d" % (number % 10) * size for number, size in enumerate(sizes)]
    batches = pack([Chunk(n, 1, body) for n, body in enumerate(bodies)], most_events, most_bytes)
    pieces = split_to_fit(NewChunk(len(bodies), b"\n".join(bodies)), most_events, most_bytes)
    assert [[chunk.body for chunk in batch] for batch in batches] == [piece.body.split(b"\n") for piece in pieces]
    assert b"\n".join(piece.body for piece in pieces) == b"\n".join(bodies)
    assert all(piece.count == len(piece.body.split(b"\n")) <= most_events for piece in pieces)
    assert all(piece.count == 1 or len(piece.body) <= most_bytes for piece in pieces)


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
