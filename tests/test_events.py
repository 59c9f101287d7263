"""The event queue and the flusher, on a real store, with a sink that can fail in every way."""

import asyncio
import collections

import orjson
import pytest

from tornado_gateway import events
from tornado_gateway.errors import RequestError, StoreError, UpstreamError
from tornado_gateway.events import EventQueue, Flusher
from tornado_gateway.store.sqlite import open_sqlite


class Sink:
    """Takes batches; `refuse` says which status a batch meets, by its documents."""

    def __init__(self):
        self.batches = []
        self.singles = []
        self.answers = collections.deque()  # errors for the next requests
        self.refuse = lambda documents: 200

    async def send_batch(self, documents, identity):
        documents = [orjson.loads(document)["e"] for document in documents.split(b"\n")]
        if self.answers:
            raise self.answers.popleft()
        if (status := self.refuse(documents)) != 200:
            raise UpstreamError(f"answered {status}", status)
        self.batches.append(documents)

    async def send_event(self, query, body):
        self.singles.append((query, body))

    def delivered(self):
        return [document for batch in self.batches for document in batch]


@pytest.fixture
def store(tmp_path, io_loop):
    store = open_sqlite(tmp_path)
    io_loop.run_sync(store.open)
    yield store.events
    io_loop.run_sync(store.close)


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(events, "BACKOFF_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(events, "REFUSAL_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(events, "STORE_RETRY_SECONDS", 0.01)


async def started_queue(store, limit=1000, durable=True):
    queue = EventQueue(store, limit=limit, chunk_events=10, durable=durable)
    await queue.start()
    return queue


def flusher_of(store, queue, sink, interval_seconds=600.0):
    return Flusher(store, queue, sink, events_per_request=10, interval_seconds=interval_seconds)


def documents(*names):
    return b"\n".join(orjson.dumps({"e": name}) for name in names)


async def opened(gate):
    while not gate.is_open:
        await asyncio.sleep(0.001)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def assert_balanced(queue):
    counts = queue.counts
    assert counts.received == counts.delivered + counts.waiting + counts.dead + counts.rejected


# The queue


async def test_the_gate_opens_when_the_event_is_stored(store):
    queue = await started_queue(store)
    gate = queue.append(documents(1), 1)
    assert not gate.is_open
    await opened(gate)
    assert (await store.depth()).waiting == queue.stored == 1
    await queue.stop()


async def test_appends_of_one_loop_turn_share_a_commit_and_chunks_keep_to_their_size(store):
    queue = await started_queue(store)
    gates = {queue.append(documents(i, i), 2) for i in range(12)}
    assert len(gates) == 1
    await opened(gates.pop())
    assert [chunk.count for chunk in await store.claim(100)] == [10, 10, 4]
    await queue.stop()


async def test_stop_commits_what_is_in_memory(store):
    queue = await started_queue(store)
    queue.append(documents(1), 1)
    await queue.stop()
    assert (await store.depth()).waiting == 1


async def test_a_full_queue_refuses_and_counts(store):
    queue = await started_queue(store, limit=2)
    queue.append(documents(1, 2), 2)
    with pytest.raises(RequestError) as refused:
        queue.append(documents(3), 1)
    assert refused.value.status == 503
    assert (queue.counts.rejected, queue.counts.waiting) == (1, 2)
    assert_balanced(queue)
    await queue.stop()


async def test_counts_go_on_after_a_restart(store):
    queue = await started_queue(store)
    queue.append(documents(1, 2, 3), 3)
    await queue.stop()
    again = await started_queue(store)
    assert (again.counts.received, again.counts.waiting) == (3, 3)
    await again.stop()


class FullDisk:
    """A store that cannot be written `times` times."""

    def __init__(self, store, times):
        self._store, self._times = store, times

    async def append(self, chunks):
        if self._times:
            self._times -= 1
            raise StoreError("SQLite: database or disk is full")
        await self._store.append(chunks)

    def __getattr__(self, name):
        return getattr(self._store, name)


async def test_a_store_that_fails_refuses_durable_events_and_takes_later_ones(store):
    queue = await started_queue(FullDisk(store, 1))
    queue.append(documents(1), 1)
    await until(lambda: queue.failure)
    assert (queue.counts.rejected, queue.counts.waiting) == (1, 0)
    await opened(queue.append(documents(2), 1))
    assert queue.failure is None
    assert_balanced(queue)
    await queue.stop()


async def test_events_that_were_acknowledged_at_once_are_kept_until_the_store_works(store):
    queue = await started_queue(FullDisk(store, 3), durable=False)
    queue.append(documents(1), 1)
    await until(lambda: queue.stored == 1)
    assert (await store.depth()).waiting == 1
    assert_balanced(queue)
    await queue.stop()


# The flusher


async def deliver(store, sink, names, interval_seconds=600.0, wait_for=None):
    """Append these events one by one, run a flusher until all have left or `wait_for` holds, and stop it."""
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink, interval_seconds)
    await flusher.start()
    for name in names:
        await opened(queue.append(documents(name), 1))
    await until(wait_for or (lambda: queue.stored < 10))
    await queue.stop()
    await flusher.stop(5)
    assert_balanced(queue)
    return queue, flusher


async def test_a_full_batch_is_sent_at_once_and_the_rest_at_stop(store, sink):
    queue, _ = await deliver(store, sink, range(25), wait_for=lambda: len(sink.batches) >= 2)
    assert [len(batch) for batch in sink.batches] == [10, 10, 5]
    assert sink.delivered() == list(range(25))
    assert queue.counts.delivered == 25
    assert (await store.depth()).waiting == 0


async def test_a_part_of_a_batch_is_sent_after_the_interval(store, sink):
    await deliver(store, sink, range(3), interval_seconds=0.05, wait_for=lambda: sink.batches)
    assert sink.delivered() == [0, 1, 2]


async def test_what_a_previous_process_left_is_sent_at_start(store, sink):
    queue = await started_queue(store)
    queue.append(documents(1), 1)
    await queue.stop()
    await deliver(store, sink, [], wait_for=lambda: sink.batches)
    assert sink.delivered() == [1]


@pytest.mark.parametrize("status", [500, 503, 429, 408, 0])
async def test_temporary_failures_are_retried_until_they_pass(store, sink, status):
    sink.answers.extend(UpstreamError("no", status) for _ in range(3))
    queue, flusher = await deliver(store, sink, range(10), wait_for=lambda: sink.batches)
    assert sink.delivered() == list(range(10))
    assert queue.counts.dead == 0
    assert flusher.last.error is None


async def test_the_pause_that_upstream_asks_for_is_kept(store, sink):
    sink.answers.append(UpstreamError("later", 429, retry_after_seconds=0.3))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await deliver(store, sink, range(10), wait_for=lambda: sink.batches)
    assert loop.time() - started >= 0.3


async def test_a_batch_that_is_too_large_is_halved(store, sink):
    sink.refuse = lambda documents: 413 if len(documents) > 3 else 200
    queue, _ = await deliver(store, sink, range(10), wait_for=lambda: len(sink.delivered()) == 10)
    assert sink.delivered() == list(range(10))
    assert queue.counts.dead == 0


async def test_one_bad_event_does_not_take_the_batch_with_it(store, sink):
    sink.refuse = lambda documents: 400 if 4 in documents else 200
    queue, _ = await deliver(store, sink, range(10), wait_for=lambda: len(sink.delivered()) == 9)
    assert sink.delivered() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert (queue.counts.delivered, queue.counts.dead) == (9, 1)
    (letter,) = await store.dead_letters()
    assert (letter.body, letter.reason) == (documents(4), "answered 400")


async def test_a_refusal_of_the_whole_request_makes_one_dead_letter(store, sink):
    sink.refuse = lambda documents: 403
    queue, _ = await deliver(store, sink, range(10), wait_for=lambda: False or not sink.batches)
    (letter,) = await store.dead_letters()
    assert (letter.count, queue.counts.dead) == (10, 10)


async def test_a_failure_between_two_halves_keeps_only_what_was_not_delivered(store, sink):
    failures = collections.deque([500])

    def refuse(documents):
        if len(documents) > 5:
            return 413
        return failures.popleft() if 5 in documents and failures else 200

    sink.refuse = refuse
    queue, _ = await deliver(store, sink, range(10), wait_for=lambda: len(sink.delivered()) >= 10)
    assert sorted(sink.delivered()) == list(range(10))
    assert queue.counts.delivered == 10


async def test_dead_letters_that_are_queued_again_are_sent_at_once(store, sink):
    sink.refuse = lambda documents: 400
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink)
    await flusher.start()
    await opened(queue.append(documents(*range(10)), 10))
    await until(lambda: queue.counts.dead == 10)
    sink.refuse = lambda documents: 200
    await queue.requeued(await store.requeue())
    await until(lambda: queue.counts.delivered == 10)
    await queue.stop()
    await flusher.stop(5)
    assert_balanced(queue)


async def test_an_event_with_its_own_query_travels_alone(store, sink):
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink)
    queue.append(documents(1), 1)
    queue.append(documents(2), 1, "en=vwo_sdkUsageStats&a=8")
    queue.append(documents(3), 1)
    await queue.stop()
    await flusher.start()
    await flusher.stop(5)
    assert sink.singles == [("en=vwo_sdkUsageStats&a=8", documents(2))]
    assert sorted(sink.delivered()) == [1, 3]


async def test_stop_leaves_what_cannot_be_delivered_in_the_store(store, sink):
    sink.refuse = lambda documents: 500
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink)
    await flusher.start()
    await opened(queue.append(documents(1), 1))
    await queue.stop()
    await flusher.stop(5)
    assert (await store.depth()).waiting == 1
    assert_balanced(queue)


async def test_stop_keeps_to_its_deadline(store, sink):
    async def hang(body, identity):
        await asyncio.sleep(60)

    sink.send_batch = hang
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink)
    await opened(queue.append(documents(*range(10)), 10))
    await flusher.start()
    async with asyncio.timeout(10):
        await queue.stop()
        await flusher.stop(0.1)
    assert (await store.depth()).waiting == 10


class SlowSink(Sink):
    """Answers when it is told to."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()
        self.under_way = self.most_under_way = 0

    async def send_batch(self, documents, identity):
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.go.wait()
        self.under_way -= 1
        await super().send_batch(documents, identity)


async def test_as_many_requests_at_the_same_time_as_there_are_full_batches(store):
    sink = SlowSink()
    queue = await started_queue(store, limit=10_000)
    flusher = flusher_of(store, queue, sink)
    await flusher.start()
    for number in range(35):
        await opened(queue.append(documents(number), 1))
    await until(lambda: sink.under_way == 3)
    for number in range(35, 1005):
        await opened(queue.append(documents(number), 1))
    await until(lambda: sink.under_way == events.PARALLEL_REQUESTS)
    sink.go.set()
    await until(lambda: queue.counts.delivered == 1000)
    assert sink.most_under_way == events.PARALLEL_REQUESTS
    assert all(len(batch) == 10 for batch in sink.batches)
    await flusher.stop(5)
    assert sorted(sink.delivered()) == list(range(1005))
    assert_balanced(queue)
    await queue.stop()


async def test_one_request_of_many_that_fails_stops_all_until_it_is_sent_again(store):
    sink = SlowSink()
    queue = await started_queue(store, limit=10_000)
    for number in range(500):
        await opened(queue.append(documents(number), 1))
    flusher = flusher_of(store, queue, sink)
    sink.answers.append(UpstreamError("answered 503", 503))
    flushing = asyncio.ensure_future(flusher.flush(everything=False))
    await until(lambda: sink.under_way == events.PARALLEL_REQUESTS)
    sink.go.set()
    assert await flushing is False
    assert queue.counts.delivered == 10 * (events.PARALLEL_REQUESTS - 1)
    assert "503" in flusher.last.error
    assert await flusher.flush(everything=True)
    assert sorted(sink.delivered()) == list(range(500))
    assert_balanced(queue)
    assert queue.counts.waiting == 0
    await queue.stop()


async def test_what_comes_while_everything_is_sent_waits_for_a_full_batch_again(store):
    sink = SlowSink()
    queue = await started_queue(store)
    flusher = flusher_of(store, queue, sink)
    await opened(queue.append(documents(1, 2, 3), 3))
    flushing = asyncio.ensure_future(flusher.flush(everything=True))
    await until(lambda: sink.under_way == 1)
    await opened(queue.append(documents(4), 1))
    sink.go.set()
    assert await flushing is True
    assert sink.batches == [[1, 2, 3]]
    assert await flusher.flush(everything=True)
    assert sink.batches == [[1, 2, 3], [4]]
    await queue.stop()
