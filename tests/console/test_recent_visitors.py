"""The sample of recent visitors for simulations: of all workers, bounded, each environment for itself."""

import time

from tornado_gateway.console.insight import recent_visitors
from tornado_gateway.console.insight.recent_visitors import MOST_VISITORS, NOTED_PER_TICK, RecentVisitors
from tornado_gateway.telemetry.scoreboard import Scoreboard


def of_two_workers():
    board = Scoreboard(2)
    return [RecentVisitors(board.visitors, row) for row in range(2)]


def note(visitors, *users, environment="prod"):
    for user in users:
        visitors.begin_tick()
        visitors.note(environment, user)


def test_the_visitors_of_all_workers_are_found_the_most_recent_first():
    first, second = of_two_workers()
    note(first, "ann", "bob", "ann")
    note(second, "eve", environment="staging")
    note(second, "bob", "joe")
    second.of("prod")  # publishes
    assert first.of("prod") == ["joe", "bob", "ann"]
    assert first.of("staging") == ["eve"]


def test_a_tick_notes_a_bounded_number():
    first, _ = of_two_workers()
    first.begin_tick()
    wanted = [first.note("prod", f"user-{number}") for number in range(NOTED_PER_TICK)]
    assert wanted == [True] * (NOTED_PER_TICK - 1) + [False]


def test_memory_is_bounded_in_number_and_bytes():
    first, _ = of_two_workers()
    note(first, *(f"user-{number}" for number in range(MOST_VISITORS + 10)))
    found = first.of("prod")
    assert (len(found), found[-1]) == (MOST_VISITORS, "user-10")
    note(first, *(f"{number}-{'ü' * 500}" for number in range(MOST_VISITORS)))
    longest = first.of("prod")
    assert 0 < len(longest) < MOST_VISITORS
    assert longest[0].startswith(f"{MOST_VISITORS - 1}-")


def test_visitors_are_forgotten_after_an_hour(monkeypatch):
    first, _ = of_two_workers()
    note(first, "ann")
    assert first.of("prod") == ["ann"]
    later = time.monotonic() + recent_visitors.KEPT_SECONDS + 1
    monkeypatch.setattr(recent_visitors.time, "monotonic", lambda: later)
    first.begin_tick()
    assert (first.of("prod"), first._seen) == ([], {})
