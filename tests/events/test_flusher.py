"""Delivery, on a real store, with a sink that can fail in every way."""

import asyncio
import collections
import logging
import random

import orjson
import pytest

from tornado_gateway.errors import StoreError, UpstreamError
from tornado_gateway.events import batches, claims, flusher
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.outcomes import RetryPolicy
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.store.interfaces import Identity, NewChunk
from tornado_gateway.store.sqlite import chunks as table
from tornado_gateway.store.sqlite.events import open_sqlite

QUICK = RetryPolicy(pause_first=0.01, pause_longest=0.05, part_first=0.01, part_longest=0.05)
ROUTE_STATUSES = [302, 401, 403, 404, 405, 407, 500, 503, 0]


class Sink:
    """Accepts batches. `status_of` gives the status of a batch by its documents, `failures` that of the next ones."""

    def __init__(self):
        self.batches = []
        self.singles = []
        self.requests = 0
        self.failures = collections.deque()
        self.status_of = lambda documents: 200

    async def send_batch(self, documents, identity):
        self.requests += 1
        await asyncio.sleep(0)  # as every real request: a loop without a pause must not stop the test
        documents = [orjson.loads(document)["e"] for document in documents.split(b"\n")]
        if self.failures:
            raise self.failures.popleft()
        if (status := self.status_of(documents)) != 200:
            raise UpstreamError(f"answered {status}", status)
        self.batches.append(documents)

    async def send_event(self, query, body):
        self.singles.append((query, body))

    def delivered(self):
        return [document for batch in self.batches for document in batch]


class SlowSink(Sink):
    """Responds once `go` is set."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()
        self.in_flight = self.most_in_flight = 0

    async def send_batch(self, documents, identity):
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.go.wait()
        self.in_flight -= 1
        await super().send_batch(documents, identity)


@pytest.fixture
def sink():
    return Sink()


async def started_queue(store, limit=100_000):
    queue = EventQueue(store, limit=limit, chunk_events=10)
    await queue.start()
    return queue


def flusher_of(store, queue, sink, interval_seconds=600.0, retries=QUICK):
    return Flusher(store, queue, sink, events_per_request=10, interval_seconds=interval_seconds, retries=retries)


def documents(*names):
    return b"\n".join(orjson.dumps({"e": name}) for name in names)


async def opened(gate):
    while not gate.is_open:
        await asyncio.sleep(0.001)


async def append(queue, names):
    """Store these events, in chunks of ten."""
    names = list(names)
    for at in range(0, len(names), 10):
        chunk = names[at : at + 10]
        await opened(queue.append(documents(*chunk), len(chunk)))


async def until(condition, describe=lambda: ""):
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(describe() or "not in time") from None


def assert_balanced(queue):
    counts = queue.counts
    assert counts.received == counts.delivered + counts.waiting + counts.dead + counts.rejected + counts.discarded


async def deliver(store, sink, names, interval_seconds=600.0, wait_for=None):
    """Append these events one by one, run a flusher until all are delivered or `wait_for` holds, and stop it."""
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink, interval_seconds)
    await flusher.start()
    for name in names:
        await opened(queue.append(documents(name), 1))
    await until(wait_for or (lambda: queue.stored < 10))
    await queue.stop()
    await flusher.stop(30)
    assert_balanced(queue)
    return queue, flusher


# ---- When batches are sent


def sizes(sink):
    """Of the batches. The first may be small: a flusher that starts sends what is there."""
    return [len(batch) for batch in sink.batches]


async def test_a_full_batch_is_sent_at_once_and_the_rest_at_stop(store, sink):
    queue, _ = await deliver(store, sink, range(25), wait_for=lambda: sizes(sink).count(10) == 2)
    assert sizes(sink).count(10) == 2
    assert sink.delivered() == list(range(25))
    assert queue.counts.delivered == 25
    assert (await store.depth()).waiting == 0


async def test_a_part_of_a_batch_is_sent_after_the_interval(store, sink):
    await deliver(store, sink, range(3), interval_seconds=0.05, wait_for=lambda: sink.batches)
    assert sink.delivered() == [0, 1, 2]


async def test_a_batch_waits_once_for_events_that_other_workers_have_claimed(store, sink):
    queue = EventQueue(store, limit=1000, chunk_events=10, shared=True)
    await queue.start()
    flusher = flusher_of(store, queue, sink)

    async def sizes_after(counted):
        queue.stored = counted  # in a shared store, which counts those of others
        await flusher.flush(everything=False)
        return sizes(sink)

    await append(queue, range(4))
    assert await sizes_after(14) == []
    await append(queue, range(4, 8))
    assert await sizes_after(18) == []
    await append(queue, range(8, 10))
    assert await sizes_after(20) == [10]
    await append(queue, range(10, 14))
    assert await sizes_after(14) == [10]
    async with asyncio.timeout(60):
        while len(await sizes_after(14)) == 1:
            await asyncio.sleep(0.05)
    assert sizes(sink) == [10, 4]
    await queue.stop()


async def test_events_of_a_previous_process_are_sent_at_start(store, sink):
    queue = await started_queue(store)
    queue.append(documents(1), 1)
    await queue.stop()
    await deliver(store, sink, [], wait_for=lambda: sink.batches)
    assert sink.delivered() == [1]


async def test_as_many_requests_at_the_same_time_as_there_are_full_batches(store):
    sink = SlowSink()
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, range(30))
    await until(lambda: sink.in_flight == 3)
    await append(queue, range(30, 1005))
    await until(lambda: sink.in_flight == flusher.PARALLEL_REQUESTS)
    sink.go.set()
    await until(lambda: queue.counts.delivered == 1000)
    assert sink.most_in_flight == flusher.PARALLEL_REQUESTS
    assert all(len(batch) == 10 for batch in sink.batches)
    await flush.stop(30)
    assert sorted(sink.delivered()) == list(range(1005))
    assert_balanced(queue)
    await queue.stop()


async def test_events_that_arrive_while_everything_is_sent_wait_for_a_full_batch_again(store):
    sink = SlowSink()
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await append(queue, [1, 2, 3])
    flushing = asyncio.ensure_future(flush.flush(everything=True))
    await until(lambda: sink.in_flight == 1)
    await append(queue, [4])
    sink.go.set()
    assert await flushing is True
    assert sink.batches == [[1, 2, 3]]
    assert await flush.flush(everything=True)
    assert sink.batches == [[1, 2, 3], [4]]
    await queue.stop()


async def test_a_flush_of_everything_asks_the_store_and_not_only_the_counts(store, sink):
    """Row A18: a count that is too low must not leave events behind."""
    queue = await started_queue(store)
    await append(queue, range(200))
    queue.stored = 0
    assert await flusher_of(store, queue, sink).flush(everything=True)
    assert sink.delivered() == list(range(200))
    await queue.stop()


async def test_an_event_with_its_own_query_travels_alone(store, sink):
    """An earlier version stored usage statistics in this form."""
    await store.append([NewChunk(1, documents(1)), NewChunk(1, documents(2), "en=vwo_sdkUsageStats&a=8")])
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    queue.append(documents(3), 1)
    await queue.stop()
    await flush.start()
    await flush.stop(30)
    assert sink.singles == [("en=vwo_sdkUsageStats&a=8", documents(2))]
    assert sorted(sink.delivered()) == [1, 3]


# ---- Failures of everything: nothing dies, delivery pauses and resumes


@pytest.mark.parametrize("status", [*ROUTE_STATUSES, 400, 408, 413, 422, 429])
async def test_a_failure_of_everything_keeps_all_events_and_resumes(store, sink, status, caplog):
    """Rows A5 and A21: a rejection that concerns the key, the route or a proxy is no dead letter."""
    sink.status_of = lambda documents: status
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, range(300))
    await until(lambda: sink.requests > 60)
    assert queue.counts.dead == 0
    assert queue.counts.waiting == 300
    assert flush.last.error is not None
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1, "one line per reason and minute"
    sink.status_of = lambda documents: 200
    await until(lambda: queue.counts.delivered == 300, lambda: str(queue.counts))
    assert sorted(sink.delivered()) == list(range(300))
    assert flush.last.error is None
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("status", [0, 400, 401, 503])
async def test_events_that_fail_alone_are_not_sent_again_without_a_pause(store, sink, status, count):
    """Rows A1 and A5: without other events nothing shows whether these or upstream are to blame."""
    sink.status_of = lambda documents: status
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink, interval_seconds=0.01)
    await flush.start()
    await append(queue, range(count))
    await until(lambda: sink.requests >= 10)
    before = sink.requests
    await asyncio.sleep(1.0)
    assert sink.requests - before <= 25 * flusher.PARALLEL_REQUESTS, "each pause is at least 0.04 s"
    sink.status_of = lambda documents: 200
    await until(lambda: queue.counts.delivered == count)
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


@pytest.mark.parametrize("status", [401, 503])
async def test_a_long_outage_is_no_evidence_against_a_single_event(store, sink, status):
    """Rows A5 and A21: one more failure after upstream has recovered does not make it a dead letter."""
    sink.status_of = lambda documents: status
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink, interval_seconds=0.01)
    await flush.start()
    await append(queue, [0])
    await until(lambda: sink.requests >= 2 * batches.FAILURES_BEFORE_DEAD)
    failures = iter([status])
    sink.status_of = lambda documents: (
        200 if 0 not in documents else next(failures, 200) if 1 in sink.delivered() else status
    )
    await append(queue, [1])
    await until(lambda: queue.counts.delivered == 2, lambda: str(queue.counts))
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


async def test_one_request_at_a_time_once_all_events_have_failed(store):
    sink = SlowSink()
    sink.go.set()
    sink.status_of = lambda documents: 503
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await append(queue, range(500))
    await flush.start()
    await until(lambda: sink.requests > 50)
    assert sink.most_in_flight <= flusher.PARALLEL_REQUESTS
    sink.most_in_flight = 0
    await until(lambda: sink.requests > 70)
    assert sink.most_in_flight == 1
    await flush.stop(30)
    assert (await store.depth()).waiting == 500
    await queue.stop()


async def test_the_pause_that_upstream_asks_for_is_kept(store, sink):
    sink.failures.append(UpstreamError("later", 429, retry_after_seconds=0.3))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await deliver(store, sink, range(10), wait_for=lambda: sink.batches)
    assert loop.time() - started >= 0.3


# ---- Failures of some events


@pytest.mark.parametrize("status", [400, 403, 413, 422])
async def test_an_event_that_is_rejected_while_others_succeed_becomes_a_dead_letter(store, sink, status):
    sink.status_of = lambda documents: status if 444 in documents else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, range(1000))
    await until(lambda: queue.counts.delivered == 999)
    later = iter(range(1000, 2_000_000))
    while not queue.counts.dead:  # others have to succeed for that
        await append(queue, [next(later) for _ in range(10)])
    (letter,) = await store.dead_letters()
    assert (letter.body, letter.reason) == (documents(444), f"answered {status}")
    await flush.stop(30)
    assert sink.delivered().count(443) == 1
    await queue.stop()
    assert_balanced(queue)


async def test_a16_events_that_are_rejected_one_at_a_time_cause_one_line(store, sink, caplog):
    """Row A16: one line per reason and minute; the further ones are counted in the next line."""
    sink.status_of = lambda documents: 400 if any(document % 20 == 7 for document in documents) else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    later = iter(range(1000, 100_000, 20))  # others have to succeed
    await append(queue, range(1000))
    while queue.counts.dead < 50:
        await append(queue, [next(later) for _ in range(10)])
    errors = [record.getMessage() for record in caplog.records if "permanently" in record.getMessage()]
    assert errors == ["VWO rejected 1 events permanently, they are dead letters now: answered 400"]
    await flush.stop(30)
    await queue.stop()
    assert_balanced(queue)


@pytest.mark.parametrize("status", [500, 0])
async def test_a_poisoned_event_does_not_delay_others(store, sink, status):
    """Row A1: the failure is isolated; all others are delivered, in full batches but for its own."""
    sink.status_of = lambda documents: status if 444 in documents else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, range(10_000))
    await until(lambda: len(sink.delivered()) == 9_999, lambda: str(len(sink.delivered())))
    assert sorted(sink.delivered()) == [n for n in range(10_000) if n != 444]
    assert sum(len(batch) == 10 for batch in sink.batches) == 999
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)
    assert queue.counts.dead + (await store.depth()).waiting == 1, "its neighbours have left the store"


async def test_a_poisoned_event_does_not_delay_later_ones_at_low_load(store, sink):
    """Row A1: while nothing else is sent, the failing event must not be the only one that is tried."""
    sink.status_of = lambda documents: 500 if 0 in documents else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink, interval_seconds=0.05)
    await flush.start()
    for number in range(20):
        await append(queue, [number])
        await until(lambda number=number: number == 0 or number in sink.delivered())
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


@pytest.mark.parametrize("status", [400, 500])
async def test_many_poisoned_events_in_a_row_do_not_delay_later_ones_at_low_load(store, sink, status):
    """Row A1: their pieces wait while newer events find out whether others succeed."""
    sink.status_of = lambda documents: status if min(documents) < 100 else 200
    queue = await started_queue(store)
    policy = RetryPolicy(pause_first=0.01, pause_longest=1.0, part_first=0.01, part_longest=0.05)
    flush = flusher_of(store, queue, sink, interval_seconds=0.01, retries=policy)
    await flush.start()
    await append(queue, range(100))
    await until(lambda: flush.last.error is not None)
    for number in range(100, 110):
        await append(queue, [number])
        await until(lambda number=number: number in sink.delivered(), lambda: f"{sink.delivered()} {queue.counts}")
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


async def test_more_poisoned_events_than_can_be_retried_at_once_do_not_stop_delivery(store, sink):
    sink.status_of = lambda documents: 500 if any(name % 20 == 0 for name in documents) else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    total = 10 * (claims.MAX_RETRYING + 100) * 2
    await append(queue, range(total))
    later = iter(range(total + 1, 2_000_000, 20))
    while queue.counts.delivered < total * 0.95 or queue.counts.dead < total * 0.05:
        await append(queue, [next(later) for _ in range(10)])
        await asyncio.sleep(0.01)
    assert {name for name in range(total) if name % 20} <= set(sink.delivered())
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


OLD, NEW = Identity("1", "old-key"), Identity("1", "new-key")


async def queue_with_two_identities(store, first, second):
    queue = await started_queue(store)
    queue.use_identity(OLD)
    await append(queue, first)
    queue.use_identity(NEW)
    await append(queue, second)
    return queue


def reject_identity(sink, rejected):
    async def send_batch(documents, identity):
        if identity == rejected:
            sink.requests += 1
            raise UpstreamError("answered 401", 401)
        await Sink.send_batch(sink, documents, identity)

    sink.send_batch = send_batch


async def test_events_under_a_former_key_that_is_rejected_do_not_delay_others(store, sink):
    """Rows A5 and B2: nothing will make that key valid again, so its events become dead letters, in whole batches."""
    reject_identity(sink, OLD)
    queue = await queue_with_two_identities(store, range(2_000), range(2_000, 2_100))
    flush = flusher_of(store, queue, sink)
    await flush.start()
    later = iter(range(2_100, 2_000_000))
    while queue.counts.dead < 2_000:
        await append(queue, [next(later) for _ in range(10)])
        await asyncio.sleep(0.01)
    assert {letter.count for letter in await store.dead_letters()} == {10}
    assert set(range(2_000, 2_100)) <= set(sink.delivered())
    await queue.stop()
    await flush.stop(60)
    assert_balanced(queue)


async def test_events_under_the_configured_key_are_kept_although_those_under_another_one_succeed(store, sink):
    """Row A5."""
    reject_identity(sink, NEW)
    queue = await queue_with_two_identities(store, range(500), range(500, 1_000))
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await until(lambda: len(sink.delivered()) == 500 and sink.requests > 200)
    assert sorted(sink.delivered()) == list(range(500))
    assert (queue.counts.dead, queue.counts.waiting) == (0, 500)
    await flush.stop(60)
    await queue.stop()
    assert_balanced(queue)


async def test_many_poisoned_events_in_a_row_do_not_hide_the_others_behind_them(store, sink):
    """Row A1: as long as nothing succeeds, further events are tried, although many have failed."""
    bad = 10 * 100
    sink.status_of = lambda documents: 500 if min(documents) < bad else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await append(queue, range(2 * bad))
    await flush.start()
    await until(lambda: len(sink.delivered()) == bad)
    assert sorted(sink.delivered()) == list(range(bad, 2 * bad))
    await flush.stop(60)
    await queue.stop()
    assert_balanced(queue)


@pytest.mark.parametrize("status", [0, 400, 500])
async def test_a_poisoned_event_in_every_batch_stops_none_of_the_others(store, sink, status):
    """Row A1: no batch succeeds as a whole, so that pieces have to show which events are to blame."""
    sink.status_of = lambda documents: status if any(name % 10 == 4 for name in documents) else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await append(queue, range(2_000))
    await flush.start()
    await until(lambda: len(sink.delivered()) == 1_800, lambda: str(len(sink.delivered())))
    assert {name for name in range(2_000) if name % 10 != 4} == set(sink.delivered())
    await flush.stop(60)
    await queue.stop()
    assert_balanced(queue)


async def test_a_batch_that_is_too_large_is_halved(store, sink):
    sink.status_of = lambda documents: 413 if len(documents) > 3 else 200
    queue, _ = await deliver(store, sink, range(10), wait_for=lambda: len(sink.delivered()) == 10)
    assert sorted(sink.delivered()) == list(range(10))
    assert queue.counts.dead == 0


async def test_chunks_that_are_larger_than_a_request_are_split(store, sink):
    queue = EventQueue(store, limit=1000, chunk_events=35)
    await queue.start()
    await opened(queue.append(documents(*range(35)), 35))
    assert await flusher_of(store, queue, sink).flush(everything=True)
    assert sink.delivered() == list(range(35))
    assert max(map(len, sink.batches)) <= 10
    assert queue.counts.delivered == 35
    await queue.stop()


async def test_dead_letters_that_are_queued_again_are_sent_at_once(store, sink):
    sink.status_of = lambda documents: 400 if 3 in documents else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, range(10))
    later = iter(range(10, 2_000_000))
    while not queue.counts.dead:
        await append(queue, [next(later) for _ in range(10)])
    sink.status_of = lambda documents: 200
    assert await queue.requeue() == 1
    await until(lambda: 3 in sink.delivered())
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


async def test_the_oldest_dead_letters_beyond_the_limit_are_discarded_and_counted(store, sink):
    """Row A21: dead letters have a limit of their own."""
    sink.status_of = lambda documents: 400 if any(name % 10 == 0 for name in documents) else 200
    queue = EventQueue(store, limit=100_000, chunk_events=10, dead_letter_limit=5)
    await queue.start()
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, range(200))
    later = iter(range(201, 2_000_000, 10))
    while queue.counts.dead + queue.counts.discarded < 20:  # others have to succeed
        await append(queue, [next(later) for _ in range(10)])
    await until(lambda: (queue.counts.dead, queue.counts.discarded) == (5, 15), lambda: str(queue.counts))
    assert sum(letter.count for letter in await store.dead_letters()) == 5
    await queue.stop()
    await flush.stop(30)
    assert_balanced(queue)


# ---- Failures of the store


class UnreliableStore:
    """Fails the next `times` calls of one method."""

    def __init__(self, store, method, times):
        self._store, self._method, self._times = store, method, times

    def __getattr__(self, name):
        return self._fail if name == self._method and self._times else getattr(self._store, name)

    async def _fail(self, *args):
        self._times -= 1
        raise StoreError("SQLite: database or disk is full")


@pytest.mark.parametrize("method", ["claim", "settle"])
async def test_a_store_that_fails_delays_events_but_loses_and_repeats_none(store, sink, method):
    unreliable = UnreliableStore(store, method, 3)
    queue = await started_queue(unreliable)
    flush = flusher_of(unreliable, queue, sink)
    await flush.start()
    await append(queue, range(100))
    await until(lambda: queue.counts.delivered == 100, lambda: str(queue.counts))
    assert sorted(sink.delivered()) == list(range(100))
    await flush.stop(30)
    assert (await store.depth()).waiting == 0
    await queue.stop()


# ---- Stop


async def test_stop_leaves_events_that_cannot_be_delivered_in_the_store(store, sink):
    sink.status_of = lambda documents: 500
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    await append(queue, [1])
    await queue.stop()
    await flush.stop(30)
    assert (await store.depth()).waiting == 1
    assert_balanced(queue)


async def test_stop_sends_failed_batches_once_more(store, sink):
    sink.failures.append(UpstreamError("no", 503))
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink, retries=RetryPolicy(600.0, 600.0, 600.0, 600.0))
    await append(queue, range(100))
    await flush.start()
    await until(lambda: not sink.failures)
    await queue.stop()
    await flush.stop(60)
    assert sorted(sink.delivered()) == list(range(100))
    assert (await store.depth()).waiting == 0


async def test_stop_does_not_store_the_delivered_part_of_a_batch_again(store, sink):
    sink.status_of = lambda documents: 0 if 7 in documents else 200
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink, retries=RetryPolicy(0.01, 0.05, 0.01, 600.0))
    await flush.start()
    await append(queue, range(30))
    await until(lambda: len(sink.delivered()) == 29)
    await queue.stop()
    await flush.stop(30)
    assert (await store.depth()).waiting == 1
    assert b"".join(chunk.body for chunk in await store.claim(10)) == documents(7)
    assert queue.counts.delivered == 29
    assert_balanced(queue)


async def test_stop_keeps_to_its_deadline(store, sink):
    async def hang(body, identity):
        await asyncio.sleep(600)

    sink.send_batch = hang
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await append(queue, range(10))
    await flush.start()
    async with asyncio.timeout(60):
        await queue.stop()
        await flush.stop(0.1)
    assert (await store.depth()).waiting == 10


# ---- Everything at random


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_fails_all_events_are_delivered_in_the_end(store, sink, seed):
    """Row A17: requests fail and are delayed at random; afterwards there is no traffic, and nothing may be stuck."""
    chance = random.Random(seed)
    is_over = False

    async def send_batch(documents, identity):
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01]))
        if not is_over and chance.random() < 0.4:
            raise UpstreamError("at random", chance.choice([0, 429, 500, 503]))
        await Sink.send_batch(sink, documents, identity)

    sink.send_batch = send_batch
    queue = await started_queue(store)
    flush = flusher_of(store, queue, sink)
    await flush.start()
    for number in range(300):
        size = chance.randint(1, 10)
        queue.append(documents(*(10 * number + n for n in range(size))), size)
        await asyncio.sleep(chance.choice([0, 0, 0.001]))
    is_over = True
    await until(lambda: queue.counts.received - queue.counts.delivered - queue.counts.dead < 10)
    await flush.flush(everything=True)
    await queue.stop()
    await flush.stop(30)
    assert queue.counts.delivered + queue.counts.dead == queue.counts.received
    assert len(sink.delivered()) == queue.counts.delivered
    assert (await store.depth()).waiting == 0


# ---- The pure part


def test_pieces_of_a_part_keep_the_order_and_all_events():
    events = batches.NewChunk(25, documents(*range(25)), "")
    for pieces in (2, 3, 10, 25, 100):
        parts = batches.split_events(events, pieces)
        assert len(parts) <= pieces
        assert b"\n".join(part.body for part in parts) == events.body
        assert sum(part.count for part in parts) == 25


def _bodies_in(store):
    return sum(len(chunk.body) for chunk in store._memory.all_chunks())


async def test_a2_a_claim_in_pieces_has_no_second_copy_in_the_store(store, sink, caplog):
    """Row A2: while one event is retried, the memory of the log kept the whole chunk, for each such claim."""
    queue = await started_queue(store)
    worker = flusher_of(store, queue, sink, retries=RetryPolicy(part_first=3600, part_longest=3600))
    sink.status_of = lambda names: 413 if "bad" in names else 200
    await append(queue, ["good", "bad"])
    assert _bodies_in(store) > 0
    await worker.flush(everything=True)
    assert sink.delivered() == ["good"]
    assert (queue.counts.waiting, queue.counts.delivered) == (2, 0)  # settled as a whole
    assert _bodies_in(store) == 0
    await _lose_the_file(store)
    assert (await store.depth()).waiting == 2  # not lost: the rest is in the memory of the delivery


async def _lose_the_file(store):
    """As if a damaged file had been replaced: the chunks in memory are written into a new one."""
    await store._database.run(lambda connection: connection.execute("DELETE FROM chunks") and None)
    await store._database.run(table.write_again, store._memory.all_chunks())


async def test_a2_events_whose_content_is_lost_are_dead_letters(tmp_path, sink):
    """A process ends while the rest of a claim is only in its memory, because its damaged file was replaced."""
    opened_store = open_sqlite(tmp_path)
    await opened_store.open()
    await opened_store.events.append([NewChunk(2, documents("good", "bad"))])
    opened_store.events.drop_bodies(await opened_store.events.claim(10))
    await _lose_the_file(opened_store.events)
    await opened_store.events.append([NewChunk(1, documents("later"))])
    await opened_store.close()
    again = open_sqlite(tmp_path)
    await again.open()
    queue = await started_queue(again.events)
    await flusher_of(again.events, queue, sink).flush(everything=True)
    assert sink.delivered() == ["later"]
    assert (queue.counts.dead, queue.counts.waiting, queue.counts.delivered) == (2, 0, 1)
    (letter,) = await again.events.dead_letters()
    assert "content was lost" in letter.reason
    await again.close()
