"""The body of /status: the totals of all workers, and their records."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.slow_patterns import SlowPatterns
from tornado_gateway.events.outcomes import LastFlush
from tornado_gateway.process.certificate_expiry import ExpiryReport
from tornado_gateway.process.environments.served import Served
from tornado_gateway.process.location_parts import location_problem
from tornado_gateway.settings.mirror import LastPoll, SettingsMirror
from tornado_gateway.store.sqlite.repair.reports import DamagedFile, DamageWatch
from tornado_gateway.tasks import in_turns
from tornado_gateway.telemetry.judging.verdict import Verdict
from tornado_gateway.telemetry.problems import (
    Problem,
    code_of_redis,
    code_of_upstream,
    published,
    remedy_of,
    verdict_of,
)
from tornado_gateway.telemetry.scoreboard import (
    EVENT_COUNTS,
    PARTIAL_COUNTS,
    InstanceReading,
    PartReading,
    Scoreboard,
    WorkerRecord,
)

MOST_SHOWN = 100  # problems, the most severe first
REST_SECONDS = 0.3  # of a count for the charts, once a second: then it continues without pauses

# Parts of a record that /status does not show for each worker.
_INTERNAL = frozenset(
    {
        *("row", "generation", "adopted", "is_queue_shared", "last_poll", "reading"),
        *("problems", "slow_patterns", "last_error_code", "errors", "queue_limit", "environments"),
    }
)


def instance_status(scoreboard: Scoreboard, version: str, verdict: Verdict) -> dict[str, Any]:
    """Return the body of /status. Where workers differ, the one with the newest information counts."""
    reading = scoreboard.read_all()
    problems = verdict.problems(reading)
    status = {
        "version": version,
        "verdict": verdict_of(problems),
        "uptime_seconds": round(time.monotonic() - scoreboard.started_at, 3),
        **_part_status(reading.workers, reading, verdict.account_options(None)),
        "problems": problems[:MOST_SHOWN],
        "slow_patterns": reading.slow_patterns,
        "workers": [_as_listed(worker, reading) for worker in reading.workers],
    }
    if reading.environments:
        status["environments"] = [
            _environment(name, part, verdict.account_options(name)) for name, part in reading.environments.items()
        ]
    return status


async def instance_counts(scoreboard: Scoreboard) -> dict[str, Any]:
    """Return the counts of /status, as published last. With many environments the rest of it takes most of the time."""
    reading = await in_turns(scoreboard.read_in_steps(), REST_SECONDS)
    return {
        "events": _events(reading),
        "workers": [{"pid": worker["pid"], "requests": worker["requests"]} for worker in reading.workers],
        "environments": [{"events": _events(part)} for part in reading.environments.values()],
    }


def _environment(name: str, part: PartReading, account_options: str) -> dict[str, Any]:
    """Return the status of one environment of ENVIRONMENTS_FILE."""
    removed = {"is_removed": True} if all(one["is_removed"] for one in part.parts) else {}
    identity = {"name": name, "account_id": part.parts[0]["account_id"], **removed}
    return identity | _part_status(part.parts, part, account_options)


def _part_status(
    parts: list[WorkerRecord], reading: InstanceReading | PartReading, account_options: str
) -> dict[str, Any]:
    stuck = reading.waiting.stuck
    error, code = _last_error(parts, stuck["message"] if stuck else None)
    return {
        "settings": reading.newest_settings,
        "events": _events(reading),
        "stuck": stuck,
        "last_poll": _last_poll([part["last_poll"] for part in parts]),
        "last_flush": max(parts, key=_flush_order, default={"last_flush": None})["last_flush"],
        "last_error": error,
        "last_error_remedy": code and remedy_of(code, account_options),
    }


def _last_error(workers: list[WorkerRecord], stuck: str | None) -> tuple[str | None, str | None]:
    """Return the error to show, and the code of its remedy."""
    for worker in workers:
        if worker["last_error"]:
            return worker["last_error"], worker["last_error_code"]
    return stuck, "events-stuck" if stuck else None


def _events(reading: InstanceReading | PartReading) -> dict[str, Any]:
    last = reading.last_known
    known = None if last is None else {"at": last.at, "waiting": last.waiting, "dead": last.dead}
    oldest = {"oldest_at": reading.waiting.oldest_at, "oldest_unknown_since": reading.waiting.unknown_since}
    return {**_shown_counts(reading.events, reading), "last_known": known, **oldest}


def _shown_counts(counts: dict[str, Any], reading: InstanceReading | PartReading) -> dict[str, Any]:
    """Return the counts, without those of a shared queue that cannot be read."""
    return counts if reading.last_known is None else {**counts, "waiting": None, "dead": None}


def _last_poll(polls: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the newest poll, and how long a poll has been running at any worker."""
    running = [seconds for poll in polls if (seconds := poll.get("running_seconds")) is not None]
    return max(polls, key=_at) | {"running_seconds": max(running, default=None)} if polls else None


def _at(last: dict[str, Any]) -> float:
    return last["at"] or 0.0


def _flush_order(worker: WorkerRecord) -> tuple[bool, float]:
    """Order by failure, then by time: a worker that delivers must not hide another one that cannot."""
    flush = worker["last_flush"]
    return bool(flush["error"] and worker["events"]["waiting"]), _at(flush)


def _as_listed(worker: WorkerRecord, reading: InstanceReading) -> WorkerRecord:
    """Return the public part of a record, with only the hash of its settings."""
    shown = {key: value for key, value in worker.items() if key not in _INTERNAL}
    return shown | {"settings": worker["settings"]["hash"], "events": _shown_counts(worker["events"], reading)}


# --- The record of a worker ---


class Problems:
    """The problems that a worker knows, besides errors of delivery and settings.

    `mismatches` returns those about experiments with a sample ratio mismatch.
    """

    def __init__(
        self,
        directory: Path,
        location: LocationReader,
        slow_patterns: SlowPatterns | None,
        expiry: ExpiryReport | None,
        mismatches: Callable[[], Iterable[Problem]] = tuple,
    ) -> None:
        self._damage = DamageWatch(directory)
        self._location = location
        self._slow_patterns = slow_patterns
        self._expiry = expiry
        self._mismatches = mismatches

    def start(self) -> None:
        self._damage.start()
        if self._expiry is not None:
            self._expiry.start()

    def stop(self) -> None:
        self._damage.stop()
        if self._expiry is not None:
            self._expiry.stop()

    def record(self, served: Sequence[Served]) -> WorkerRecord:
        """Return the part of the record with the problems, those of the environments included."""
        location, slow = location_problem(self._location), self._slow_patterns
        expiry = None if self._expiry is None else self._expiry.problem
        found = [problem for problem in (location, expiry) if problem is not None]
        found += [] if slow is None else slow.problems()
        found += [problem for one in served if (problem := pin_problem(one)) is not None]
        found += map(_problem_of, self._damage.files)
        found += self._mismatches()
        return {"problems": published(found), "slow_patterns": {} if slow is None else dict(slow.counts)}


def pin_problem(served: Served) -> Problem | None:
    """Return the problem that settings are pinned: the gateway does not follow VWO."""
    pin = served.environment.mirror.pinning.pin
    if pin is None:
        return None
    name = served.config.name if served.owns_store else None
    is_outdated = served.environment.mirror.pinning.has_changed_since
    changed = " VWO has published other settings since." if is_outdated else ""
    return Problem("settings-pinned", f"The settings are {pin}.{changed}", at=pin.at, environment=name, subject="")


def _problem_of(file: DamagedFile) -> Problem:
    return Problem("damaged-files", file.message, str(file.path), file.at, file.rescued, file.damaged)


def environment_record(served: Served, excess: str | None) -> WorkerRecord:
    environment, store_failure = served.environment, served.store.events.failure
    mirror, flusher = environment.mirror, environment.flusher
    not_stored = environment.events.failure or store_failure
    poll, flush = mirror.last_poll, flusher.last
    errors = [
        (code, text)
        for code, text in (
            ("store-degraded", environment.events.failure),
            (store_failure and code_of_redis(store_failure), store_failure),  # a local store reports none
            (_code_of(flush, "store-degraded"), flush.error),
            (_code_of(poll, "settings-unusable"), poll.error),
            ("connections-full", excess),
        )
        if code and text
    ]
    code, error = next(iter(errors), (None, flusher.notice))
    return {
        "adopted": served.adoption.adopted,
        "queue_limit": served.config.config.event_queue_limit,
        "settings": _settings_record(mirror),
        "events": {name: getattr(environment.events.counts, name) for name in (*EVENT_COUNTS, *PARTIAL_COUNTS)},
        "reading": served.waiting.reading(not_stored or flush.error or flusher.retry_reason).as_record(),
        "last_poll": {
            "at": poll.at,
            "age_seconds": poll.age_seconds(),
            "instance": poll.instance,
            "error": poll.error,
            "running_seconds": mirror.running_seconds(),
        },
        "last_flush": {"at": flush.at, "events": flush.events, "error": flush.error},
        "errors": errors,
        "last_error": error,
        "last_error_code": code,
    }


def _code_of(last: LastFlush | LastPoll, otherwise: str) -> str | None:
    """Return the code of an error; `otherwise` if it is not one of VWO."""
    if last.error is None:
        return None
    return otherwise if last.status is None else code_of_upstream(last.status, last.error)


def _settings_record(mirror: SettingsMirror) -> dict[str, Any]:
    snapshot = mirror.current
    return {
        "version": snapshot.settings.version if snapshot else None,
        "stored_version": snapshot.version if snapshot else None,
        "age_seconds": mirror.age_seconds(),
        "hash": snapshot.digest if snapshot else None,
        "source": snapshot.source if snapshot else None,
        "pin": mirror.pinning.record(),
    }
