"""Sticky decisions in the embedded store end after their time, also while the gateway runs and the clock steps."""

import asyncio
import sqlite3

import pytest

from tornado_gateway.store.reckoning import MAX_GAP_SECONDS, Clock
from tornado_gateway.store.sqlite.state import SqliteState

YEARS = 10 * 365 * 86400.0
KEPT = 60 * 86400.0
SESSIONS = "\0sessions"


class Machine:
    """A clock of which a test moves the hands."""

    def __init__(self):
        self.wall, self.uptime, self.boot = 1_800_000_000.0, 5000.0, "first"
        self.clock = Clock(lambda: self.wall, lambda: self.uptime, lambda: self.boot)

    def run(self, seconds):
        self.wall += seconds
        self.uptime += seconds

    def restart(self, off_seconds):
        self.wall += off_seconds
        self.uptime, self.boot = 5.0, f"{self.boot}, again"


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def open_state(tmp_path, machine):
    async def opened(**options):
        state = SqliteState(tmp_path, clock=machine.clock, **options)
        await state.open()
        return state

    return opened


def stored(tmp_path):
    with sqlite3.connect(tmp_path / "state.db") as connection:
        return {user for (user,) in connection.execute("SELECT user_id FROM decisions")}


def noted(tmp_path):
    with sqlite3.connect(tmp_path / "state.db") as connection:
        return connection.execute("SELECT at FROM reckoning").fetchone()[0]


async def save(state, user, seconds):
    await state.save_records(user, {"f": {"featureKey": "f"}}, seconds)


async def is_kept(state, user):
    return await state.load_records(user, ["f"]) != {}


async def test_a25_expired_records_are_deleted_while_the_gateway_runs(tmp_path, machine, open_state):
    state = await open_state(sweep_seconds=0.01, batch=7)
    for number in range(50):
        await save(state, f"user-{number}", 60)
    await save(state, SESSIONS, 3600)
    await save(state, "later", 3600)
    machine.run(59)
    await asyncio.sleep(0.05)
    assert len(stored(tmp_path)) == 52
    machine.run(2)
    async with asyncio.timeout(60):
        while stored(tmp_path) != {SESSIONS, "later"}:
            await asyncio.sleep(0.01)
    await state.close()


async def test_a25_a_batch_is_small_so_that_decisions_wait_for_none(tmp_path, machine, open_state):
    state = await open_state(sweep_seconds=3600, batch=7)
    for number in range(20):
        await save(state, f"user-{number}", 60)
    machine.run(61)
    left = []
    while await state.forget_expired():
        left.append(len(stored(tmp_path)))
    assert left == [13, 6]
    assert stored(tmp_path) == set()
    await state.close()


async def test_a25_aliases_are_bounded_by_their_number(open_state):
    """There is no age at which VWO forgets one: a user keeps one identity (wire contract A.8)."""
    state = await open_state()
    state.max_aliases = 3
    assert [await state.set_alias(f"alias-{number}", "user") for number in range(5)] == [True] * 3 + [False] * 2
    assert await state.set_alias("alias-1", "other"), "a known alias can change"
    await state.close()


@pytest.mark.parametrize("step", [YEARS, -YEARS])
async def test_c4_a_step_of_the_clock_changes_no_age(tmp_path, machine, open_state, step):
    """Row C4: neither everything at once, nor never. A second worker and the next run see the same time."""
    state = await open_state()
    await save(state, "before", KEPT)
    machine.wall += step
    await save(state, "after", KEPT)
    other = await open_state()
    await state.close()
    again = await open_state()
    for running in (other, again):
        await running.forget_expired()
        assert [await is_kept(running, user) for user in ("before", "after")] == [True, True]
    machine.run(KEPT + 1)
    for running in (other, again):
        assert [await is_kept(running, user) for user in ("before", "after")] == [False, False]
    await again.forget_expired()
    assert stored(tmp_path) == set()
    await other.close()
    await again.close()


@pytest.mark.parametrize("off_seconds", [YEARS, -YEARS])
async def test_c4_a_wrong_clock_after_a_restart_of_the_machine_changes_few_ages(machine, open_state, off_seconds):
    state = await open_state()
    await save(state, "long", KEPT)
    await save(state, "short", MAX_GAP_SECONDS / 2)
    await state.close()
    machine.restart(off_seconds)
    state = await open_state()
    assert await is_kept(state, "long")
    assert await is_kept(state, "short") == (off_seconds < 0)
    machine.run(KEPT + 1)
    assert not await is_kept(state, "long")
    await state.close()


async def test_c4_many_restarts_of_the_gateway_add_up_to_nothing(machine, open_state):
    state = await open_state()
    await save(state, "user", KEPT)
    machine.wall += YEARS
    for _ in range(100):
        await state.close()
        state = await open_state()
    assert await is_kept(state, "user")
    await state.close()


async def test_a25_the_time_of_a_long_run_counts_after_a_restart_of_the_machine(tmp_path, machine, open_state):
    state = await open_state(sweep_seconds=0.01)
    await save(state, "user", KEPT)
    machine.run(KEPT - 3600)
    now = state._reckoning.now()
    async with asyncio.timeout(60):
        while noted(tmp_path) < now:
            await asyncio.sleep(0.01)
    await state.close()
    machine.restart(3601)
    state = await open_state()
    assert not await is_kept(state, "user")
    await state.close()


async def test_a25_the_time_that_a_machine_was_off_counts(machine, open_state):
    state = await open_state()
    await save(state, "user", 3600)
    await state.close()
    machine.restart(3601)
    state = await open_state()
    assert not await is_kept(state, "user")
    await state.close()
