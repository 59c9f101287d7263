"""Background tasks."""

import asyncio
import time

import pytest

from tornado_gateway import tasks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.http.certificates import Certificates
from tornado_gateway.tasks import WOKEN, Periodic, SharedLimit, SharedResult, TimeLimit, end_tasks

REAL_TIME = time.time


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("seconds", [-3600, 3600], ids=["back", "forward"])
async def test_c4_a_step_of_the_wall_clock_does_not_stop_the_calls(monkeypatch, seconds):
    """Row C4, guarantee 7."""
    calls = []
    timer = Periodic(lambda: calls.append(1), 0.02)
    timer.start()
    await until(lambda: calls)
    monkeypatch.setattr(time, "time", lambda: REAL_TIME() + seconds)
    before = len(calls)
    await until(lambda: len(calls) >= before + 5)
    timer.stop()


@pytest.mark.parametrize("watcher", [LocationReader, Certificates])
async def test_c4_files_are_watched_after_the_wall_clock_was_set_back(monkeypatch, watcher):
    """Row C4: a new database or certificate is in use although the clock was set back by an hour."""
    checks = []
    monkeypatch.setattr(watcher, "_has_changed" if watcher is LocationReader else "check", lambda _: checks.append(1))
    watching = watcher.__new__(watcher)
    watching.start(0.02)
    await until(lambda: checks)
    monkeypatch.setattr(time, "time", lambda: REAL_TIME() - 3600)
    before = len(checks)
    await until(lambda: len(checks) >= before + 5)
    watching.stop()


async def test_a_call_that_fails_is_logged_and_the_next_one_takes_place(caplog):
    calls = []

    async def fail():
        calls.append(1)
        raise ValueError("once more")

    timer = Periodic(fail, 0.01, jitter=0.2)
    timer.start(at_once=True)
    await until(lambda: len(calls) >= 3)
    timer.stop()
    assert "a periodic call failed" in caplog.text


async def test_calls_do_not_overlap_and_stop_cancels_the_one_in_progress():
    calls = []

    async def never_end():
        calls.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            calls.append(2)

    timer = Periodic(never_end, 0.01)
    timer.start()
    await until(lambda: calls)
    await asyncio.sleep(0.05)
    assert calls == [1]
    timer.stop()
    await until(lambda: calls == [1, 2])


async def test_a_time_limit_ends_only_what_takes_too_long():
    with TimeLimit(60):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), TimeLimit(0.001):
        await asyncio.sleep(60)
    await asyncio.sleep(0.01)  # nothing is left of them that could cancel this
    assert not asyncio.current_task().cancelling()


async def test_an_inner_time_limit_leaves_the_outer_one_alone():
    with TimeLimit(60):
        with pytest.raises(TimeoutError), TimeLimit(0.001):
            await asyncio.sleep(60)
        await asyncio.sleep(0.01)


async def test_a_cancellation_within_a_time_limit_is_no_timeout():
    async def limited(seconds):
        with TimeLimit(seconds):
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

    for seconds in (60, 0):  # with 0 both happen in the same turn
        cancelled = asyncio.Event()
        task = asyncio.create_task(limited(seconds))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled.is_set()


async def test_end_tasks_waits_for_tasks_that_clean_up():
    ended = []

    async def clean_up():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(1)

    tasks = [asyncio.create_task(clean_up()) for _ in range(2)]
    await asyncio.sleep(0)
    await end_tasks(*tasks, None)
    assert ended == [1, 1]
    await end_tasks(None)


class User:
    """Starts uses of a share, which last until `end`. `running` is the number of those that were let in."""

    def __init__(self, limit):
        self.share = limit.share()
        self.running = 0
        self._tasks, self._ends = [], []

    def start(self, uses):
        for _ in range(uses):
            end = asyncio.get_running_loop().create_future()
            self._ends.append(end)
            self._tasks.append(asyncio.create_task(self._use(end)))

    def end(self, uses, error=None):
        """End the oldest uses, with an error if there is one."""
        for end in self._ends[:uses]:
            if error is None:
                end.set_result(None)
            else:
                end.set_exception(error)
        del self._ends[:uses]

    async def _use(self, end):
        async with self.share:
            self.running += 1
            try:
                await end
            finally:
                self.running -= 1

    async def close(self):
        await end_tasks(*self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.exception()


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_user_has_the_whole_limit():
    user = User(SharedLimit(16))
    user.start(20)
    await settled()
    assert user.running == 16
    user.end(2)
    await settled()
    assert user.running == 16
    await user.close()


async def test_a_user_leaves_a_quarter_to_those_without_any():
    limit = SharedLimit(16)
    busy, late, later = User(limit), User(limit), User(limit)
    busy.start(30)
    await settled()
    assert busy.running == 12
    late.start(3)
    later.start(3)
    await settled()
    assert (busy.running, late.running, later.running) == (12, 1, 1)
    busy.end(8)
    await settled()
    assert (late.running, later.running) == (3, 3)  # those with the fewest first
    assert busy.running + 6 <= 16
    for user in (busy, late, later):
        await user.close()


async def test_users_that_fail_have_at_most_half_together():
    limit = SharedLimit(16)
    failing, healthy = [User(limit) for _ in range(4)], User(limit)
    for user in failing:
        user.start(1)
        await settled()
        user.end(1, OSError())
        await settled()
        user.start(10)
    await settled()
    assert sum(user.running for user in failing) == 8
    healthy.start(8)
    await settled()
    assert healthy.running >= 4
    for user in (*failing, healthy):
        await user.close()


async def test_a_cancelled_wait_takes_nothing():
    limit = SharedLimit(1)
    user = User(limit)
    user.start(2)
    await settled()
    await user.close()
    assert limit.share().uses == user.share.uses == 0
    async with asyncio.timeout(60), limit.share():
        pass


async def most_per_turn(calls):
    """Await the calls together. Return the largest number of them that have ended in one turn of the loop."""
    turns, turn = [], 0
    ending = [asyncio.create_task(call) for call in calls]
    for task in ending:
        task.add_done_callback(lambda _: turns.append(turn))
    while len(turns) < len(ending):
        await asyncio.sleep(0)
        turn += 1
    return max(turns.count(number) for number in set(turns))


async def test_few_callers_of_a_shared_result_continue_in_one_turn():
    """Found by `scripts/hostile`: 512 requests to /webhook waited for the same refresh, and all continued at once."""
    opened = asyncio.Event()
    shared = SharedResult(opened.wait())
    asyncio.get_running_loop().call_later(0.01, opened.set)
    assert await most_per_turn([shared.outcome() for _ in range(500)]) <= WOKEN
    assert await shared.outcome()


async def test_a_shared_result_survives_its_callers_and_hands_on_errors():
    opened = asyncio.Event()

    async def fail():
        await opened.wait()
        raise ValueError("no")

    shared = SharedResult(fail())
    callers = [asyncio.create_task(shared.outcome()) for _ in range(3)]
    await asyncio.sleep(0)
    await end_tasks(callers[0])
    opened.set()
    results = await asyncio.gather(*callers, shared.outcome(), return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, *[ValueError] * 3]
    ended = SharedResult(asyncio.sleep(3600))
    ended.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ended.outcome()


async def test_steps_rest_between_each_other_for_a_limited_time(monkeypatch):
    pauses = []
    monkeypatch.setattr(asyncio, "sleep", record(pauses))

    def steps(number):
        for _ in range(number):
            yield
        return number

    assert await tasks.in_turns(steps(3)) == 3
    assert pauses == [0, 0, 0]
    pauses.clear()
    assert await tasks.in_turns(steps(3), float("inf")) == 3
    assert pauses == [tasks.PAUSE_SECONDS] * 3
    pauses.clear()

    def slow_steps():
        for _ in range(3):
            yield
            time.sleep(0.15)  # as on a loaded machine, longer than the rest

    await tasks.in_turns(slow_steps(), 0.1)
    assert pauses == [tasks.PAUSE_SECONDS, 0, 0]


def record(pauses):
    """Return what replaces `asyncio.sleep`."""

    async def sleep(seconds):
        pauses.append(seconds)

    return sleep


async def test_a_periodic_call_can_be_hastened_and_one_in_progress_is_not_cancelled():
    calls, may_end = 0, asyncio.Event()

    async def call():
        nonlocal calls
        calls += 1
        if calls == 1:
            await may_end.wait()

    timer = Periodic(call, 3600.0)
    timer.start(at_once=True)
    await until(lambda: calls == 1)
    timer.hasten(0.01)
    assert calls == 1
    may_end.set()
    while calls == 1:
        await asyncio.sleep(0)
        timer.hasten(0.01)
    timer.stop()
    timer.hasten(0.01)
    assert timer._task is None
