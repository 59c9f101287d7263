"""The event queue on a real store."""

import asyncio
import time

import orjson
import pytest

from tornado_gateway.errors import QueueFullError, StoreError
from tornado_gateway.events.batches import REQUEST_BYTES
from tornado_gateway.events.budget import MAX_UNCOMMITTED_BYTES
from tornado_gateway.events.group_commit import FULL_GROUP, MANY_REQUESTS, Commits, Pace
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import open_sqlite

NEVER = 3600.0


async def started_queue(store, limit=1000, durable=True, **options):
    queue = EventQueue(store, limit=limit, chunk_events=10, durable=durable, retry_seconds=0.01, **options)
    await queue.start()
    return queue


def documents(*names):
    return b"\n".join(orjson.dumps({"e": name}) for name in names)


async def opened(gate):
    while not gate.is_open:
        await asyncio.sleep(0.001)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def assert_balanced(queue):
    counts = queue.counts
    assert counts.received == counts.delivered + counts.waiting + counts.dead + counts.rejected + counts.discarded


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


async def test_a_round_that_is_early_begins_when_its_group_is_full(store):
    pace = Pace(NEVER, NEVER, rate_seconds=0.0)
    queue = await started_queue(store, commits=Commits(pace=pace))
    pace.begin(2)
    pace.begin(1000 * MANY_REQUESTS)  # the time of the next round is far away
    gates = [queue.append(b"x", 1) for _ in range(FULL_GROUP - 1)]
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert not gates[0].is_open
    gates += [queue.append(b"x", 1)]
    await opened(gates[0])
    assert all(gate.is_open for gate in gates)
    await queue.stop()


async def test_stop_commits_what_is_in_memory(store):
    queue = await started_queue(store)
    queue.append(documents(1), 1)
    await queue.stop()
    assert (await store.depth()).waiting == 1


@pytest.mark.parametrize("durable", [True, False])
async def test_a_stopped_queue_rejects_and_counts(store, durable):
    """Requests that are in progress when an environment is removed would wait forever otherwise."""
    queue = await started_queue(store, durable=durable)
    await queue.stop()
    assert queue.append_impressions(documents(1), 1) is None
    with pytest.raises(QueueFullError, match="is closed"):
        queue.append(documents(2), 1)
    assert (queue.counts.rejected, queue.counts.waiting) == (2, 0)
    assert_balanced(queue)


async def test_events_that_arrive_during_the_last_commit_are_stored(store):
    queue = await started_queue(store)
    queue.append(documents(1), 1)
    stopping = asyncio.create_task(queue.stop())
    while queue._commits.pending.entries:
        await asyncio.sleep(0)
    gate = queue.append(documents(2), 1)
    await stopping
    assert gate.is_open
    assert (await store.depth()).waiting == 2


async def test_a_full_queue_refuses_and_counts(store):
    queue = await started_queue(store, limit=2)
    queue.append(documents(1, 2), 2)
    with pytest.raises(QueueFullError) as refused:
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


async def bury(store, queue, *names):
    """Make events dead letters, as the flusher does."""
    await opened(queue.append(documents(*names), len(names)))
    claimed = await store.claim(len(names))
    dead = [(NewChunk(1, documents(name)), "400") for name in names]
    await store.settle(claimed, dead)
    queue.record_settled(0, len(names), claimed[0].size)
    return await store.dead_letters()


async def test_discarded_dead_letters_of_two_workers_are_counted_once(tmp_path):
    stores = [open_sqlite(tmp_path / "two") for _ in range(2)]
    for each in stores:
        await each.open()
    queues = [await started_queue(each.events) for each in stores]
    for each, queue in zip(stores, queues, strict=True):
        letters = await bury(each.events, queue, 1, 2, 3)
    one, two = queues[0].counts, queues[1].counts
    assert await queues[1].discard([letters[0].id, letters[1].id, letters[3].id]) == 3
    await until(lambda: (one.dead, two.dead) == (1, 2))  # the other worker notices it
    assert (one.received + two.received, one.discarded + two.discarded) == (6, 3)
    assert await queues[1].requeue([letters[2].id]) == 1
    await until(lambda: (one.dead, two.dead, two.waiting) == (0, 2, 1))
    assert one.received + two.received == 6
    for each, queue in zip(stores, queues, strict=True):
        assert_balanced(queue)
        await queue.stop()
        await each.close()


async def test_dead_letters_expire_after_their_time(store):
    queue = await started_queue(store, dead_letter_seconds=0.5)
    await bury(store, queue, 1, 2)
    await until(lambda: (queue.counts.dead, queue.counts.discarded) == (0, 2))
    assert await store.dead_letters() == []
    assert_balanced(queue)
    await queue.stop()


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


class CountedDisk(FullDisk):
    """Counts the times that it was asked for the number of its events."""

    depths = 0

    async def depth(self, *, patient=False):
        self.depths += 1
        return await self._store.depth()


async def test_events_that_are_kept_for_another_commit_are_counted_once(store):
    disk = CountedDisk(store, 1)
    queue = EventQueue(disk, limit=1000, chunk_events=10, durable=False, shared=True, retry_seconds=5.0)
    await queue.start()
    queue.append(documents(1), 1)
    await until(lambda: queue.failure)
    depths = disk.depths
    await until(lambda: disk.depths > depths + 1)
    assert queue.counts.waiting == 1
    await queue.stop()


# Limits in bytes (row A2)


async def test_a2_a_queue_that_is_full_in_bytes_rejects_and_counts(store):
    queue = await started_queue(store, limit_bytes=100)
    await opened(queue.append(b"x" * 60, 1))
    queue.append(b"y" * 40, 1)
    with pytest.raises(QueueFullError, match=r"2 events wait, 100 bytes .*EVENT_QUEUE_BYTES"):
        queue.append(b"z", 1)
    assert queue.append_impressions(b"z", 1) is None
    assert (queue.counts.rejected, queue.counts.waiting) == (2, 2)
    await until(lambda: queue.stored == 2)
    claimed = await store.claim(1)
    await store.settle(claimed)
    queue.record_settled(1, 0, claimed[0].size)
    await opened(queue.append(b"z" * 60, 1))
    assert_balanced(queue)
    await queue.stop()
    again = await started_queue(store, limit_bytes=100)
    with pytest.raises(QueueFullError):
        again.append(b"z", 1)
    await again.stop()


async def test_a2_events_in_memory_are_bounded_in_bytes(store):
    queue = await started_queue(store)
    half = b"x" * (MAX_UNCOMMITTED_BYTES // 2)
    queue.append(half, 1)
    gate = queue.append(half, 1)
    with pytest.raises(QueueFullError):
        queue.append(b"z", 1)
    await opened(gate)
    await opened(queue.append(b"z", 1))
    assert_balanced(queue)
    await queue.stop()


async def test_a2_bytes_of_events_that_cannot_be_stored_are_free_again(store):
    queue = await started_queue(FullDisk(store, 1), limit_bytes=100)
    queue.append(b"x" * 100, 1)
    await until(lambda: queue.failure)
    await opened(queue.append(b"y" * 100, 1))
    await queue.stop()


async def test_a2_chunks_keep_to_the_bytes_of_a_request(store):
    queue = await started_queue(store)
    event = b"x" * (REQUEST_BYTES // 4)
    queue.append(b"\n".join([event] * 9), 9)
    for _ in range(5):
        gate = queue.append(event, 1)
    await opened(gate)
    found = [chunk for _ in range(9) for chunk in await store.claim(100)]
    assert sum(chunk.count for chunk in found) == 14
    assert max(len(chunk.body) for chunk in found) <= REQUEST_BYTES
    assert len(found) == 5
    await queue.stop()


# Decisions continue when events cannot be stored (row A20)


async def test_a_full_queue_rejects_impressions_but_not_the_decision(store):
    queue = await started_queue(store, limit=2)
    assert queue.append_impressions(documents(1, 2), 2) is not None
    assert queue.append_impressions(documents(3), 1) is None
    assert (queue.counts.rejected, queue.counts.waiting) == (1, 2)
    assert_balanced(queue)
    await queue.stop()


async def test_a_full_queue_rejects_the_decision_as_well_if_configured_so(store):
    queue = await started_queue(FullDisk(store, 1), limit=2, decisions_need_store=True)
    failed = queue.append_impressions(documents(1), 1)
    await opened(failed)
    assert failed.failure.status == 503
    assert queue.append_impressions(documents(1, 2), 2) is queue.append_impressions(b"", 0)
    with pytest.raises(QueueFullError) as rejected:
        queue.append_impressions(documents(3), 1)
    assert rejected.value.status == 503
    await queue.stop()


async def test_a_store_that_fails_releases_the_decisions_and_fails_the_events(store):
    queue = await started_queue(FullDisk(store, 1))
    decision, event = queue.append_impressions(documents(1), 1), queue.append(documents(2), 1)
    await opened(decision)
    assert decision.failure is None
    assert event.failure.status == 503
    assert (queue.counts.rejected, queue.counts.waiting) == (2, 0)
    await opened(queue.append(documents(3), 1))
    assert_balanced(queue)
    await queue.stop()


class StalledDisk:
    """A store whose writes wait until `go` is set."""

    def __init__(self, store):
        self._store = store
        self.go = asyncio.Event()
        self.is_writing = False

    async def append(self, chunks):
        self.is_writing = True
        await self.go.wait()
        await self._store.append(chunks)

    def __getattr__(self, name):
        return getattr(self._store, name)


async def test_a_group_that_becomes_full_during_a_commit_begins_after_it(store):
    disk, pace = StalledDisk(store), Pace(NEVER, NEVER, rate_seconds=0.0)
    queue = await started_queue(disk, commits=Commits(pace=pace), commit_seconds=NEVER)
    pace.begin(2)
    gates = [queue.append(b"x", 1) for _ in range(2)]
    await until(lambda: disk.is_writing)
    assert pace.is_early()
    gates += [queue.append(b"x", 1) for _ in range(FULL_GROUP)]
    disk.go.set()
    await opened(gates[-1])
    await queue.stop()


async def test_a_commit_that_stalls_is_reported_and_releases_its_responses(store, caplog):
    disk = StalledDisk(store)
    queue = await started_queue(disk, commit_seconds=2)
    decision, event = queue.append_impressions(documents(1), 1), queue.append(documents(2), 1)
    await asyncio.sleep(0)
    await opened(decision)
    assert decision.failure is None
    assert event.failure.status == 503
    assert "has not completed a write" in queue.failure
    assert "has not completed a write" in caplog.text
    assert queue.append_impressions(documents(3), 1) is None
    with pytest.raises(QueueFullError, match="has not completed a write"):
        queue.append(documents(4), 1)
    disk.go.set()
    await until(lambda: queue.stored == 2)
    await opened(queue.append(documents(5), 1))
    assert queue.failure is None
    assert (queue.counts.rejected, queue.counts.waiting) == (2, 3)
    assert_balanced(queue)
    await queue.stop()


async def test_events_that_arrived_behind_a_stalled_commit_are_released_too(store):
    disk = StalledDisk(store)
    queue = await started_queue(disk, commit_seconds=2)
    queue.append(documents(1), 1)
    await until(lambda: disk.is_writing)
    decision, event = queue.append_impressions(documents(2), 1), queue.append(documents(3), 1)
    await opened(decision)
    assert event.failure.status == 503
    disk.go.set()
    await until(lambda: queue.stored == 1)
    assert (queue.counts.rejected, queue.counts.waiting) == (2, 1)
    assert_balanced(queue)
    await queue.stop()


async def test_a20_a_commit_of_a_process_that_was_suspended_has_not_stalled(store):
    """Row A20: neither impressions nor events are rejected because the whole machine stood still."""
    disk = StalledDisk(store)
    queue = await started_queue(disk, commit_seconds=2)
    events = [queue.append(documents(1), 1)]
    await until(lambda: disk.is_writing)
    events += [queue.append_impressions(documents(2), 1), queue.append(documents(3), 1)]
    time.sleep(3)  # everything stands still
    await asyncio.sleep(0.1)  # the check that was due meanwhile
    disk.go.set()
    for gate in events:
        await opened(gate)
    assert [gate.failure for gate in events] == [None] * 3
    assert (queue.counts.rejected, queue.stored) == (0, 3)
    await queue.stop()
