"""The outcomes of requests: when delivery pauses, and when a batch is split without evidence."""

import asyncio

from tornado_gateway.errors import UpstreamError
from tornado_gateway.events.batches import REQUEST_BYTES, Claim
from tornado_gateway.events.outcomes import (
    PAUSES_BEFORE_CUT,
    REJECTIONS_BEFORE_PAUSE,
    SMALLEST_REQUEST_BYTES,
    Outcomes,
    RetryPolicy,
)
from tornado_gateway.store.interfaces import Chunk, Identity, NewChunk

DOWN = UpstreamError("events: VWO returned 503", 503)
BAD = UpstreamError("events: VWO returned 400", 400)
ONE, TWO = Identity("1", "a"), Identity("2", "b")


def part_of(events=2, identity=ONE):
    chunk = Chunk(1, events, b"\n".join([b"{}"] * events), "", identity)
    return next(iter(Claim([chunk]).parts))


async def test_requests_that_fail_together_are_one_pause():
    outcomes = Outcomes(RetryPolicy(pause_first=600.0, pause_longest=600.0))
    outcomes.failed(DOWN)
    until = outcomes.paused_until
    outcomes.failed(DOWN)
    assert outcomes.is_probing
    assert outcomes.paused_until == until > asyncio.get_running_loop().time()
    assert (outcomes.last.error, outcomes.failures) == (str(DOWN), 1)


async def test_a_success_ends_the_outage_once():
    outcomes = Outcomes(RetryPolicy())
    outcomes.failed(DOWN)
    assert outcomes.succeeded(NewChunk(3, b""))
    assert not outcomes.succeeded(NewChunk(4, b""))
    assert not outcomes.is_probing
    assert (outcomes.last.error, outcomes.last.failing_since, outcomes.last.events) == (None, None, 4)


async def test_rejections_that_isolate_an_event_do_not_pause_delivery_unless_there_are_too_many():
    outcomes = Outcomes(RetryPolicy())
    for _ in range(REJECTIONS_BEFORE_PAUSE):
        outcomes.part_failed(BAD, is_isolating=True)
    assert not outcomes.is_probing
    outcomes.part_failed(BAD, is_isolating=True)
    assert outcomes.is_probing


async def test_a_failure_just_after_a_success_does_not_pause_delivery():
    outcomes = Outcomes(RetryPolicy(pause_first=600.0))
    outcomes.succeeded(NewChunk(1, b""))
    outcomes.part_failed(DOWN, is_isolating=False)
    assert (outcomes.failures, outcomes.is_probing) == (1, False)


async def test_after_some_pauses_the_parts_of_one_claim_are_split():
    outcomes = Outcomes(RetryPolicy(pause_first=0.0, pause_longest=0.0))
    part, other = part_of(), part_of()
    for _ in range(PAUSES_BEFORE_CUT):
        assert not outcomes.is_cut(part)
        outcomes.failed(DOWN)
    assert not outcomes.is_cut(part_of(events=1))
    assert outcomes.is_cut(part)
    assert not outcomes.is_cut(other)
    outcomes.succeeded(NewChunk(1, b""))
    assert not outcomes.is_cut(part)


async def test_a3_a_timeout_halves_the_next_requests_until_they_succeed():
    outcomes = Outcomes(RetryPolicy())
    large = next(iter(Claim([Chunk(1, 4, b"x" * REQUEST_BYTES)]).parts))
    for _ in range(3):
        outcomes.timed_out(large)
    assert outcomes.request_bytes == REQUEST_BYTES // 2, "requests in flight together time out together"
    outcomes.timed_out(part_of())
    assert outcomes.request_bytes == SMALLEST_REQUEST_BYTES
    for _ in range(40):
        outcomes.succeeded(NewChunk(1, b""))
    assert outcomes.request_bytes == REQUEST_BYTES


async def test_only_successes_of_the_same_identity_show_that_others_succeed():
    outcomes = Outcomes(RetryPolicy())
    part = part_of(identity=ONE)
    assert not outcomes.others_succeed(part)
    outcomes.succeeded(NewChunk(1, b"", "", TWO))
    assert not outcomes.others_succeed(part)
    outcomes.succeeded(NewChunk(1, b"", "", ONE))
    assert outcomes.others_succeed(part)
    assert not outcomes.others_succeed(part)


async def test_a_piece_is_sent_once_after_each_pause():
    outcomes = Outcomes(RetryPolicy())
    assert not outcomes.takes_a_piece()
    outcomes.failed(DOWN)
    assert outcomes.takes_a_piece()
    assert not outcomes.takes_a_piece()
