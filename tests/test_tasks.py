"""Background tasks."""

import asyncio
import time

import pytest

from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.http.certificates import Certificates
from tornado_gateway.tasks import Periodic, end_tasks

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
