"""The regular work of many environments is that of a few. It is counted, or its intervals are read."""

import asyncio
import random
import threading
from functools import partial
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.events.queue import RECOUNT_SECONDS, EventCounts, EventQueue
from tornado_gateway.events.schedule import FlushSchedule
from tornado_gateway.experiments.monitor import MERGE_SECONDS, ExperimentMonitor
from tornado_gateway.process import adoption as adoption_module
from tornado_gateway.process import publication, status
from tornado_gateway.process.adoption import Adoption
from tornado_gateway.process.environments.stores import Stores
from tornado_gateway.store.interfaces import Depth
from tornado_gateway.store.sqlite.database import Database
from tornado_gateway.store.sqlite.events import SqliteEvents
from tornado_gateway.store.sqlite.repair.guard import Guard
from tornado_gateway.store.sqlite.state import WATCH_SECONDS
from tornado_gateway.tasks import FULL_PACE, PAUSE_SECONDS, Periodic, at_once, pace_of
from tornado_gateway.telemetry.scoreboard import Scoreboard
from tornado_gateway.telemetry.waiting import READ_SECONDS, Watch

MANY = 8 * FULL_PACE
PACE = pace_of(MANY)


def test_the_work_of_many_is_that_of_a_few():
    assert [pace_of(number) for number in (50, 200)] == [4, 16]  # as docs/environments.md says
    assert [pace_of(number) for number in (1, FULL_PACE, 2 * FULL_PACE, MANY)] == [1, 1, 2, 8]
    assert all(number / pace_of(number) < 2 * FULL_PACE for number in range(1, 1000))


class CountedStore:
    """A shared store that counts how often it is read."""

    failure = None
    lost = repairs = letters_version = 0

    def __init__(self):
        self.depths = self.versions = 0
        self.waiting = 0

    async def depth(self, *, patient=False):
        self.depths += 1
        return Depth(self.waiting, 0, None)

    async def statistics_versions(self):
        self.versions += 1
        return {}


async def first_pauses(monkeypatch, start):
    """Return the first pauses of the loop that `start` begins."""
    pauses, have_ended = [], asyncio.Event()

    async def sleep(seconds):
        if len(pauses) == 3:
            have_ended.set()
            await asyncio.Event().wait()
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    start()
    await have_ended.wait()
    return pauses


@pytest.mark.parametrize("waiting", [0, 5])
async def test_the_waiting_events_of_one_of_many_are_read_rarely(monkeypatch, waiting):
    store = CountedStore()
    store.waiting = waiting
    watch = Watch(store, lambda: waiting, 60.0, is_shared=True, pace=PACE)
    pauses = await first_pauses(monkeypatch, watch.start)
    await watch.stop()
    assert store.depths == len(pauses) + 1
    assert all(0.9 * PACE * READ_SECONDS <= pause <= 1.1 * PACE * READ_SECONDS for pause in pauses)


async def test_a_store_that_cannot_be_read_is_read_again_soon(monkeypatch):
    store = SimpleNamespace(depth=AsyncMock(side_effect=StoreError("down")))
    watch = Watch(store, lambda: 0, 60.0, is_shared=True, pace=PACE)
    pauses = await first_pauses(monkeypatch, watch.start)
    await watch.stop()
    assert all(pause <= 1.1 * READ_SECONDS for pause in pauses)


async def test_the_queue_of_one_of_many_is_counted_rarely(monkeypatch):
    store = CountedStore()
    queue = EventQueue(store, limit=10, chunk_events=1, shared=True, pace=PACE)
    pauses = await first_pauses(monkeypatch, queue._recounting.start)
    await queue._recounting.end()
    assert store.depths == len(pauses)
    assert sum(pauses) > 0.8 * PACE * RECOUNT_SECONDS * len(pauses)


async def test_after_a_rejection_the_queue_of_one_of_many_is_counted_soon():
    """Another worker may have emptied the shared queue."""
    queue = EventQueue(CountedStore(), limit=1, chunk_events=1, shared=True, pace=PACE)
    counting, now = queue._recounting, asyncio.get_running_loop().time
    counting.start()
    assert counting._due - now() > 0.8 * PACE * RECOUNT_SECONDS
    queue.append_impressions(b"{}", 1)
    assert counting._due - now() > 0.8 * PACE * RECOUNT_SECONDS
    assert queue.append_impressions(b"{}", 1) is None
    due = counting._due
    assert due - now() <= RECOUNT_SECONDS
    queue.append_impressions(b"{}", 1)
    assert counting._due == due
    await counting.end()


def test_new_settings_reach_the_workers_of_many_environments_sooner_than_other_changes(tmp_path):
    store = Stores(Config(data_dir=tmp_path), "one").of(Config(data_dir=tmp_path), 4 * FULL_PACE)
    assert store.state._watch_seconds == 2 * WATCH_SECONDS


async def test_the_samples_of_one_of_many_are_merged_rarely(monkeypatch):
    store = CountedStore()
    monitor = ExperimentMonitor(store, pace=PACE)
    pauses = await first_pauses(monkeypatch, partial(monitor._timer.start, at_once=True))
    await monitor._timer.end()
    assert store.versions == len(pauses) + 1
    assert sum(pauses) > 0.8 * PACE * MERGE_SECONDS * len(pauses)


@pytest.mark.parametrize(("rounds", "ended", "searches"), [(PACE - 1, 0, 0), (PACE, 0, 1), (1, 1, 1), (2, 1, 1)])
async def test_logs_of_ended_workers_are_searched_rarely_unless_one_has_ended(monkeypatch, rounds, ended, searches):
    scoreboard = SimpleNamespace(retirements=0)
    environment = SimpleNamespace(events=SimpleNamespace(recount_after_adoption=AsyncMock()))
    store = SimpleNamespace(adopt=AsyncMock(return_value=0))
    adoption = Adoption(store, environment, scoreboard, asyncio.Event(), pace=PACE)
    scoreboard.retirements = ended
    waits = [False] * rounds + [True]
    monkeypatch.setattr(adoption_module, "wait_at_most", AsyncMock(side_effect=waits))
    monkeypatch.setattr(random, "randrange", lambda _: 0)
    adoption.start()
    await adoption.stop()
    assert store.adopt.await_count == searches


def served_environment(name):
    return SimpleNamespace(
        config=SimpleNamespace(name=name),
        environment=SimpleNamespace(events=SimpleNamespace(counts=EventCounts())),
        is_draining=False,
    )


def publication_of(served):
    published = publication.Publication.__new__(publication.Publication)
    published._serving = SimpleNamespace(is_from_file=True, with_drained=lambda: served)
    published._parts, published._tick = {}, 0
    return published


async def test_the_parts_of_many_environments_are_made_in_turn(monkeypatch):
    made, shown = [], []
    monkeypatch.setattr(publication, "_part", lambda served: made.append(served) or {})
    served = [served_environment(str(number)) for number in range(MANY)]
    published = publication_of(served)
    published._publish = lambda: shown.append(len(published._environments()["environments"]))
    await published._publish_regularly()
    assert made.pop() == served[-1]
    made.clear()
    for _ in range(PACE):
        await published._publish_regularly()
        assert len(made) <= FULL_PACE * len(shown)
    assert shown == [MANY] * (PACE + 1)
    assert sorted(map(served.index, made)) == list(range(MANY))


async def test_the_parts_of_environments_are_made_a_few_in_each_turn(monkeypatch):
    made_in_turn = [0]
    monkeypatch.setattr(publication, "_part", lambda served: made_in_turn.append(made_in_turn.pop() + 1) or {})
    served = [served_environment(str(number)) for number in range(FULL_PACE)]
    published = publication_of(served)
    published._publish = published._environments
    publishing = asyncio.ensure_future(published._publish_regularly())
    while not publishing.done():
        made_in_turn.append(0)
        await asyncio.sleep(0)
    assert sum(made_in_turn) == FULL_PACE
    assert max(made_in_turn) <= publication.PARTS_AT_ONCE


async def test_between_the_parts_of_a_few_environments_requests_have_their_time(monkeypatch):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(publication, "_part", lambda served: {})
    monkeypatch.setattr(asyncio, "sleep", sleep)
    published = publication_of([served_environment(str(number)) for number in range(FULL_PACE)])
    published._publish = published._environments
    await published._publish_regularly()
    assert pauses == [PAUSE_SECONDS] * -(-FULL_PACE // publication.PARTS_AT_ONCE)


async def test_the_charts_of_many_environments_are_counted_with_pauses(monkeypatch):
    rests = []

    async def in_turns(steps, rest_seconds):
        rests.append(rest_seconds)
        return at_once(steps)

    monkeypatch.setattr(status, "in_turns", in_turns)
    assert (await status.instance_counts(Scoreboard(1)))["workers"] == []
    assert rests == [status.REST_SECONDS]


@pytest.fixture
def jobs(monkeypatch):
    """The number of jobs of each database, and of regular checks of each of its guards."""
    counts = {}
    run, check = Database.run, Guard.check

    def counted_run(self, *args, **options):
        counts[self] = counts.get(self, 0) + 1
        return run(self, *args, **options)

    def counted_check(self, *, at_once=False):
        counts[self] = counts.get(self, 0) + at_once
        return check(self, at_once=at_once)

    monkeypatch.setattr(Database, "run", counted_run)
    monkeypatch.setattr(Guard, "check", counted_check)
    return counts


async def test_an_event_log_of_many_rests_and_has_one_thread(tmp_path, jobs):
    """It is compared with the log of one environment at the same time."""
    one, of_many = SqliteEvents(tmp_path / "one"), SqliteEvents(tmp_path / "many", pace=PACE)
    before = threading.active_count()
    await one.open()
    await of_many.open()
    assert threading.active_count() == before + 2, "none for checkpoints before there is one"
    jobs.clear()
    async with asyncio.timeout(60):
        while jobs.get(one._database, 0) < 8:
            await asyncio.sleep(0.02)
    assert jobs.get(of_many._database, 0) <= 4
    assert jobs.get(of_many._files._guard, 0) <= jobs[one._files._guard] / 2
    await one.close()
    await of_many.close()


async def test_environments_that_start_together_work_at_different_times(tmp_path, monkeypatch):
    phases = {}
    monkeypatch.setattr(Periodic, "start", lambda self, *, at_once=False, phase=0.0: phases.update({self: phase}))
    for number in range(5):
        log = SqliteEvents(tmp_path / str(number))
        await log.open()
        await log.close()
        await EventQueue(CountedStore(), limit=10, chunk_events=1, shared=True).start()
        ExperimentMonitor(CountedStore()).start()
    spread = [phase for phase in phases.values() if phase]
    assert len(spread) == len(set(spread)) == 3 * 5


async def test_a_first_flush_leaves_out_a_part_of_its_interval():
    schedule, now = FlushSchedule(100.0, phase=0.75), asyncio.get_running_loop().time()
    schedule.begin(0)
    assert 22 < schedule.next_at - now < 27
    schedule.begin(0)
    assert 90 <= schedule.next_at - now < 102
