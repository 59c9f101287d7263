"""The body of /status: the totals of all workers, and their records."""

import time
from typing import Any

from tornado_gateway.telemetry.scoreboard import InstanceReading, Scoreboard, WorkerRecord

# Parts of a record that /status does not show.
_INTERNAL = frozenset({"row", "generation", "adopted", "is_queue_shared", "last_poll", "reading"})


def instance_status(scoreboard: Scoreboard, version: str) -> dict[str, Any]:
    """Return the body of /status. Where workers differ, the one with the newest information counts."""
    reading = scoreboard.read_all()
    workers, stuck = reading.workers, reading.waiting.stuck
    errors = (worker["last_error"] for worker in workers if worker["last_error"])
    return {
        "version": version,
        "uptime_seconds": round(time.monotonic() - scoreboard.started_at, 3),
        "settings": reading.newest_settings,
        "events": _events(reading),
        "stuck": stuck,
        "last_poll": _last_poll([worker["last_poll"] for worker in workers]),
        "last_flush": max(workers, key=_flush_order, default={"last_flush": None})["last_flush"],
        "last_error": next(errors, stuck and stuck["message"]),
        "workers": [_as_listed(worker, reading) for worker in workers],
    }


def _events(reading: InstanceReading) -> dict[str, Any]:
    last = reading.last_known
    known = None if last is None else {"at": last.at, "waiting": last.waiting, "dead": last.dead}
    oldest = {"oldest_at": reading.waiting.oldest_at, "oldest_unknown_since": reading.waiting.unknown_since}
    return {**_shown_counts(reading.events, reading), "last_known": known, **oldest}


def _shown_counts(counts: dict[str, Any], reading: InstanceReading) -> dict[str, Any]:
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
