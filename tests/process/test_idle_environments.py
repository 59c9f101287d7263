"""Many environments without traffic cost as much as a few. Their regular work is counted."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from tornado_gateway.events.queue import EventCounts, EventQueue
from tornado_gateway.events.schedule import FlushSchedule
from tornado_gateway.experiments.monitor import ExperimentMonitor
from tornado_gateway.process import publication, status
from tornado_gateway.store.interfaces import Depth
from tornado_gateway.store.sqlite.database import Database
from tornado_gateway.store.sqlite.events import SqliteEvents
from tornado_gateway.store.sqlite.repair.guard import Guard
from tornado_gateway.tasks import FULL_PACE, PAUSE_SECONDS, Periodic, Rests, at_once, pace_of
from tornado_gateway.telemetry.scoreboard import Scoreboard

MANY = 8 * FULL_PACE
PACE = pace_of(MANY)
ROUNDS = 10 * PACE


def test_the_work_of_many_is_that_of_a_few():
    assert [pace_of(number) for number in (1, FULL_PACE, 2 * FULL_PACE, MANY)] == [1, 1, 2, 8]
    assert all(number / pace_of(number) < 2 * FULL_PACE for number in range(1, 1000))


def test_work_is_left_out_while_nothing_changes():
    rests = Rests(3)
    assert [rests.is_due("a") for _ in range(7)] == [True, False, False, True, False, False, True]
    assert [rests.is_due(facts) for facts in ("b", "b", "c", "c")] == [True, False, True, False]
    assert all(Rests(1).is_due("a") for _ in range(3))


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


async def test_a_shared_queue_without_events_is_counted_rarely_and_one_with_events_each_time():
    store = CountedStore()
    queue = EventQueue(store, limit=10, chunk_events=1, shared=True, pace=PACE)
    count = queue._recounting._callback
    for _ in range(ROUNDS):
        await count()
    assert store.depths == 10
    store.waiting = 5
    queue.append(b"{}", 1)
    for _ in range(ROUNDS):
        await count()
    assert store.depths == 10 + ROUNDS


async def test_samples_of_many_are_merged_rarely():
    store = CountedStore()
    monitor = ExperimentMonitor(store, pace=PACE)
    for _ in range(ROUNDS):
        await monitor._merge_regularly(1)
    assert store.versions == 10


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
