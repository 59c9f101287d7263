"""Each condition of the table: when it is met and when it is not."""

import pytest

from tornado_gateway.process.counters import new_counters
from tornado_gateway.telemetry.judging.conditions import (
    OF_ENVIRONMENT,
    OF_INSTANCE,
    Facts,
    Load,
    found_in_environment,
    found_in_instance,
)
from tornado_gateway.telemetry.judging.verdict import KEPT_SECONDS, Verdict
from tornado_gateway.telemetry.problems import CONDITIONS, verdict_of
from tornado_gateway.telemetry.scoreboard import Scoreboard

FACTS = [  # code, facts with the condition, facts just below it, words of the sentence
    ("no-settings", Facts(is_loaded=False), Facts(), "cannot be evaluated"),
    ("settings-stale", Facts(settings_seconds=3601), Facts(settings_seconds=3600), "for 1 h."),
    ("settings-stale", Facts(settings_seconds=9e5), Facts(settings_seconds=9e5, settings_source="file"), "10 d 10 h"),
    ("events-waiting", Facts(oldest_seconds=901), Facts(oldest_seconds=900), "15 min 1 s"),
    ("events-stuck", Facts(stuck="Events are stuck"), Facts(oldest_seconds=100), "stuck"),
    ("events-dead", Facts(dead=1), Facts(dead=0), "1 event is a dead letter"),
    ("events-lost", Facts(rises=frozenset({"lost"})), Facts(rises=frozenset({"received"})), "lost"),
    ("events-rejected", Facts(rises=frozenset({"rejected"})), Facts(), "rejected"),
    ("events-discarded", Facts(rises=frozenset({"discarded"})), Facts(), "discarded"),
    ("decision-errors", Facts(rises=frozenset({"decision_errors"})), Facts(), "failed"),
    ("queue-filling", Facts(waiting=51, queue_limit=100), Facts(waiting=50, queue_limit=100), "51 of 100"),
    ("events-unknown", Facts(is_unknown=True, unread_seconds=30), Facts(), "last known 30 s ago"),
    ("events-unknown", Facts(is_unknown=True), Facts(dead=None, waiting=None), "never read"),
]
LOADS = [
    ("request-errors", Load(1000, 11), Load(1000, 10), "11 of 1000"),
    ("request-errors", Load(10, 10), Load(9, 9), "10 of 10"),
    ("slow-decisions", Load(decisions=100, slow_decisions=2), Load(decisions=100, slow_decisions=1), "2 of 100"),
    ("slow-decisions", Load(decisions=100, slow_decisions=99), Load(decisions=99, slow_decisions=99), "99 of 100"),
    ("loop-lag", Load(timers=100, late_timers=2), Load(timers=100, late_timers=1), "2 %"),
    ("workers-restart", Load(restarts=7, workers=2), Load(restarts=6, workers=2), "7 workers"),
]


@pytest.mark.parametrize(("code", "met", "unmet", "words"), FACTS)
def test_a_condition_of_an_environment(code, met, unmet, words):
    assert words in dict(found_in_environment(met))[code]
    assert code not in dict(found_in_environment(unmet))


@pytest.mark.parametrize(("code", "met", "unmet", "words"), LOADS)
def test_a_condition_of_the_instance(code, met, unmet, words):
    assert words in dict(found_in_instance(met))[code]
    assert code not in dict(found_in_instance(unmet))


def test_each_condition_is_tested_and_in_the_table():
    assert {code for code, *_ in FACTS} == OF_ENVIRONMENT.keys() <= CONDITIONS.keys()
    assert {code for code, *_ in LOADS} == OF_INSTANCE.keys() <= CONDITIONS.keys()


def test_the_verdict_is_the_highest_severity():
    warning, critical = {"severity": "warning"}, {"severity": "critical"}
    assert [verdict_of(problems) for problems in ([], [warning], [warning, critical, warning])] == [
        "ok",
        "warning",
        "critical",
    ]


# --- What is remembered ---


def published(board, row=0, **changes):
    reading = dict.fromkeys(("at", "waiting", "dead", "oldest_at", "unknown_since", "still_since", "still_until"))
    counts = dict.fromkeys(("received", "waiting", "dead", "delivered", "rejected", "discarded", "lost"), 0)
    record = {
        "slot": row,
        "row": row,
        "generation": row + 1,
        "is_queue_shared": False,
        "queue_limit": 100,
        "reading": reading | {"stuck_after": 60.0},
        "problems": [],
        "slow_patterns": {},
        "errors": [],
        "settings": {"stored_version": 1, "age_seconds": 1.0, "hash": "a", "source": "store"},
    }
    events = counts | changes.pop("events", {})
    board.publish(row, record | {"events": events} | changes)


class Instance:
    def __init__(self):
        self.board = Scoreboard(4)
        self.memory = new_counters(4)

    def problems(self):
        """As another worker would report them: each has a verdict of its own."""
        return Verdict(self.board, self.memory).problems(self.board.read_all())

    def codes(self):
        return [problem["code"] for problem in self.problems()]


def test_a_problem_has_one_start_for_all_workers_and_a_new_one_when_it_returns():
    instance = Instance()
    published(instance.board, errors=[("upstream-failing", "status 503")])
    [first] = instance.problems()
    published(instance.board, row=1, errors=[("upstream-failing", "status 500")])
    [again] = instance.problems()
    assert (again["since"], again["severity"]) == (first["since"], "warning")
    published(instance.board)
    published(instance.board, row=1)
    assert instance.problems() == []
    published(instance.board, errors=[("upstream-failing", "status 503")])
    assert instance.problems()[0]["since"] == first["since"], "it was gone for a moment only"
    published(instance.board)
    with instance.board.judged.changing() as memory:
        for entry in memory["since"].values():
            entry[1] -= KEPT_SECONDS
    assert instance.problems() == []
    published(instance.board, errors=[("upstream-failing", "status 503")])
    assert instance.problems()[0]["since"] > first["since"]


def test_the_most_severe_problem_is_the_first():
    instance = Instance()
    events = {"received": 60, "waiting": 60}
    published(instance.board, errors=[("redis-unreachable", "no response")], events=events)
    assert instance.codes() == ["queue-filling", "redis-unreachable"]


def test_an_increase_is_a_problem_for_a_while_although_the_counter_stays():
    instance = Instance()
    published(instance.board, events={"received": 1, "lost": 1})
    assert instance.codes() == ["events-lost"]
    assert instance.codes() == ["events-lost"]
    with instance.board.judged.changing() as memory:
        memory["rises"]["lost "] -= 901
    assert instance.codes() == []
    published(instance.board, events={"received": 2, "lost": 2})
    assert instance.codes() == ["events-lost"]


def test_a_problem_names_its_environment():
    instance = Instance()
    own = Scoreboard(1)
    published(own, errors=[("key-refused", "status 403")], events={"dead": 3, "received": 3})
    part = own.read_all().workers[0] | {"account_id": 1, "is_removed": False, "counts": {"decisions": {"error": 1}}}
    published(
        instance.board,
        errors=[("key-refused", "status 403"), ("connections-full", "too many connections")],
        environments={"shop": part},
    )
    assert {(problem["code"], problem["environment"]) for problem in instance.problems()} == {
        ("connections-full", None),
        ("key-refused", "shop"),
        ("events-dead", "shop"),
        ("decision-errors", "shop"),
    }


def test_a_removed_environment_needs_no_settings():
    instance = Instance()
    own = Scoreboard(1)
    published(own, settings={"stored_version": None, "age_seconds": None, "hash": None, "source": None})
    part = own.read_all().workers[0] | {"account_id": 1, "counts": {}}
    published(instance.board, environments={"old": part | {"is_removed": True}, "new": part | {"is_removed": False}})
    assert [(problem["code"], problem["environment"]) for problem in instance.problems()] == [("no-settings", "new")]
