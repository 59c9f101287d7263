"""The body of /status: the totals of all workers, and their records."""

import time
from typing import Any

from tornado_gateway.telemetry.scoreboard import InstanceReading, PartReading, Scoreboard, WorkerRecord

# Parts of a record that /status does not show.
_INTERNAL = frozenset({"row", "generation", "adopted", "is_queue_shared", "last_poll", "reading", "environments"})


def instance_status(scoreboard: Scoreboard, version: str) -> dict[str, Any]:
    """Return the body of /status. Where workers differ, the one with the newest information counts."""
    reading = scoreboard.read_all()
    status = {
        "version": version,
        "uptime_seconds": round(time.monotonic() - scoreboard.started_at, 3),
        **_part_status(reading.workers, reading),
        "workers": [_as_listed(worker) for worker in reading.workers],
    }
    if reading.environments:
        status["environments"] = [_environment(name, part) for name, part in reading.environments.items()]
    return status


def _environment(name: str, part: PartReading) -> dict[str, Any]:
    """Return the status of one environment of ENVIRONMENTS_FILE."""
    removed = {"is_removed": True} if all(one["is_removed"] for one in part.parts) else {}
    return {"name": name, "account_id": part.parts[0]["account_id"], **removed, **_part_status(part.parts, part)}


def _part_status(parts: list[WorkerRecord], reading: InstanceReading | PartReading) -> dict[str, Any]:
    stuck = reading.waiting.stuck
    errors = (part["last_error"] for part in parts if part["last_error"])
    return {
        "settings": reading.newest_settings,
        "events": _events(reading),
        "stuck": stuck,
        "last_poll": _last_poll([part["last_poll"] for part in parts]),
        "last_flush": max(parts, key=_flush_order, default={"last_flush": None})["last_flush"],
        "last_error": next(errors, stuck and stuck["message"]),
    }


def _events(reading: InstanceReading | PartReading) -> dict[str, Any]:
    oldest = {"oldest_at": reading.waiting.oldest_at, "oldest_unknown_since": reading.waiting.unknown_since}
    return {**reading.events, **oldest}


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


def _as_listed(worker: WorkerRecord) -> WorkerRecord:
    """Return the public part of a record, with only the hash of its settings."""
    shown = {key: value for key, value in worker.items() if key not in _INTERNAL}
    return shown | {"settings": worker["settings"]["hash"]}
