"""The verdict: all problems of the instance, each with its start, the same wherever it is read.

Each worker judges when it samples /status, which it does every second, and when /status or the metrics are requested.
What has to be remembered is in shared memory (`memory.py`), so it makes no difference which of them does it.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tornado_gateway.errors import account_options
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.judging.conditions import (
    RECENT_SECONDS,
    Facts,
    Load,
    found_in_environment,
    found_in_instance,
)
from tornado_gateway.telemetry.judging.memory import Memory
from tornado_gateway.telemetry.layout import (
    DECISIONS,
    LAG_BUCKETS,
    LAG_SECONDS,
    METHODS,
    REQUEST_BUCKETS,
    STATUSES,
    Layout,
)
from tornado_gateway.telemetry.problems import LONGEST_MESSAGE, SEVERITIES, as_shown
from tornado_gateway.telemetry.scoreboard import InstanceReading, PartReading, Scoreboard, WorkerRecord

SAMPLE_SECONDS = 10.0  # between two samples of the load
WINDOW_SECONDS = 300.0
MOST_PROBLEMS = 500
KEPT_SECONDS = 15.0
SLOW_SECONDS = 0.1  # of a decision
LATE_SECONDS = 0.05  # of a timer
OF_WHOLE_WORKERS = ("connections-full",)  # codes of errors that belong to no environment

Problem = dict[str, Any]


class Found(NamedTuple):
    """A problem that was found. `subject` distinguishes several of one code."""

    environment: str | None
    problem: Problem
    subject: str = ""

    @property
    def key(self) -> str:
        return f"{self.problem['code']} {self.environment or ''} {self.subject}"


class Verdict:
    """Judges readings of the scoreboard. Remedies name `environments_file`, if there is one."""

    def __init__(self, scoreboard: Scoreboard, memory: SharedCounters, environments_file: Path | None = None) -> None:
        self._environments_file = environments_file
        self._scoreboard = scoreboard
        self._memory = memory
        self._requests = _requests(memory.layout)
        self._failed = _requests(memory.layout, 500)

    def problems(self, reading: InstanceReading) -> list[Problem]:
        """Return all problems, the most severe and the oldest first."""
        with self._scoreboard.judged.changing() as memory:
            found = self._found(reading, memory)
            since = _starts(memory, found)
        options = self.account_options
        shown = [
            as_shown(one.problem, one.environment, since[key], options(one.environment)) for key, one in found.items()
        ]
        return sorted(shown, key=lambda one: (-SEVERITIES.index(one["severity"]), one["since"]))

    def account_options(self, environment: str | None) -> str:
        """Return the names of the options with the account and its key; None: those of the gateway."""
        return account_options(self._environments_file, environment)

    def _found(self, reading: InstanceReading, memory: Memory) -> dict[str, Found]:
        found: dict[str, Found] = {}
        load, errors = self._sample(memory)
        for one in (*_of_instance(reading, load), *_of_environments(reading, memory, errors)):
            if len(found) < MOST_PROBLEMS:
                found.setdefault(one.key, one)
        return found

    def _sample(self, memory: Memory) -> tuple[Load, int]:
        """Return the load in the window, and the decisions that have failed since the start."""
        now, samples = time.monotonic(), memory["samples"]
        if not samples:
            samples.append([self._scoreboard.started_at, [0] * len(astuple(Load())), 0])
        if now - samples[-1][0] >= SAMPLE_SECONDS:
            samples.append([now, *self._read()])
        while len(samples) > 2 and samples[1][0] < now - WINDOW_SECONDS:
            del samples[0]
        first, (_, last, errors) = samples[0][1], samples[-1]
        window = [late - early for early, late in zip(first[:-1], last[:-1], strict=True)]
        return Load(*[*window, last[-1]]), errors

    def _read(self) -> tuple[list[int], int]:
        layout = self._memory.layout
        rows = [row.counts for row in self._memory.read_all()]
        counts = [sum(column) for column in zip(*rows, strict=True)] or [0] * layout.size
        decisions = layout.request_seconds.at(layout.routes.decisions)
        load = [
            sum(counts[index] for index in self._requests),
            sum(counts[index] for index in self._failed),
            *_all_and_above(counts, decisions, REQUEST_BUCKETS, SLOW_SECONDS),
            *_all_and_above(counts, LAG_SECONDS.start, LAG_BUCKETS, LATE_SECONDS),
            self._scoreboard.retirements,
            len(self._scoreboard.read_all().workers),
        ]
        return load, counts[DECISIONS.at("error")]


def _starts(memory: Memory, found: Iterable[str]) -> dict[str, float]:
    """Return the start of each problem. One that is missing shortly, as while a worker is replaced, keeps it."""
    now, moment = time.time(), time.monotonic()
    known = {key: entry for key, entry in memory["since"].items() if moment - entry[1] < KEPT_SECONDS}
    current = {key: [known[key][0] if key in known else now, moment] for key in found}
    gone = sorted((item for item in known.items() if item[0] not in current), key=lambda item: -item[1][1])
    memory["since"] = {**dict(gone[:MOST_PROBLEMS]), **current}
    return {key: start for key, (start, _) in current.items()}


def _requests(layout: Layout, lowest_status: int = 0) -> list[int]:
    """Return the indices of the counters of requests for data."""
    statuses = [status for status in STATUSES if isinstance(status, int) and status >= lowest_status]
    return [layout.requests.at(*labels) for labels in product(METHODS, layout.routes.data, statuses)]


def _all_and_above(counts: list[int], start: int, bounds: tuple[float, ...], limit: float) -> tuple[int, int]:
    """Return how many times a histogram has, and how many of them exceed the limit, which is one of its bounds."""
    buckets = counts[start : start + len(bounds) + 1]
    return sum(buckets), sum(buckets[bounds.index(limit) + 1 :])


def _of_instance(reading: InstanceReading, load: Load) -> Iterator[Found]:
    for code, message in found_in_instance(load):
        yield Found(None, {"code": code, "message": message})
    for worker in reading.workers:
        for problem in worker["problems"]:
            subject = problem["subject"]
            subject = problem["file"] or problem["message"] if subject is None else subject
            yield Found(problem["environment"], problem, subject)
        if reading.environments:
            yield from _errors(None, [error for error in worker.get("errors", ()) if error[0] in OF_WHOLE_WORKERS])


def _of_environments(reading: InstanceReading, memory: Memory, decision_errors: int) -> Iterator[Found]:
    """Yield the problems of each environment; without ENVIRONMENTS_FILE, of the only one, which has no name."""
    if reading.workers and not reading.environments:
        yield from _of_environment(None, reading.workers, reading, decision_errors, memory)
    for name, part in reading.environments.items():
        errors = part.counts.get("decisions", {}).get("error", 0)
        yield from _of_environment(name, part.parts, part, errors, memory)


def _of_environment(
    name: str | None,
    parts: list[WorkerRecord],
    view: InstanceReading | PartReading,
    decision_errors: int,
    memory: Memory,
) -> Iterator[Found]:
    discarded = view.events["discarded"] - view.events["discarded_internal"]  # INTERNAL_EVENTS is intended
    rises = _rises(memory, name, {**view.events, "discarded": discarded, "decision_errors": decision_errors})
    for code, message in found_in_environment(_facts(parts, view, rises)):
        yield Found(name, {"code": code, "message": message})
    for part in parts:
        yield from _errors(name, part.get("errors", ()))


def _errors(environment: str | None, errors: Iterable[tuple[str, str]]) -> Iterator[Found]:
    for code, message in errors:
        yield Found(environment, {"code": code, "message": message[:LONGEST_MESSAGE]})


def _rises(memory: Memory, name: str | None, counts: dict[str, int]) -> frozenset[str]:
    """Return the counters that have increased recently."""
    now, recent = time.monotonic(), set()
    for counter, seconds in RECENT_SECONDS.items():
        key = f"{counter} {name or ''}"
        if counts[counter] > memory["last"].get(key, 0):
            memory["rises"][key] = now
        memory["last"][key] = counts[counter]
        if now - memory["rises"].get(key, -math.inf) < seconds:
            recent.add(counter)
    return frozenset(recent)


def _facts(parts: list[WorkerRecord], view: InstanceReading | PartReading, rises: frozenset[str]) -> Facts:
    now, last, settings = time.time(), view.last_known, view.newest_settings or {}
    is_removed = all(part.get("is_removed", False) for part in parts)
    oldest, stuck = view.waiting.oldest_at, view.waiting.stuck
    return Facts(
        is_loaded=is_removed or settings.get("hash") is not None,
        settings_seconds=None if is_removed else settings.get("age_seconds"),
        settings_source=settings.get("source"),
        oldest_seconds=None if oldest is None else now - oldest,
        stuck=None if stuck is None else stuck["message"],
        waiting=view.events["waiting"] if last is None else last.waiting,
        dead=view.events["dead"] if last is None else last.dead,
        is_unknown=last is not None,
        unread_seconds=None if last is None or last.at is None else now - last.at,
        queue_limit=sum(part.get("queue_limit", 0) for part in parts),
        rises=rises,
    )
