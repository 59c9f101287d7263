"""The age of waiting events, and whether they are stuck: read by each worker, merged for the whole instance.

Each worker reads its store every few seconds and publishes the reading on the scoreboard. /status, the metrics, the
console, the doctor and the commands show the merged result, so that all of them agree.

Events are stuck if the oldest one has stayed the same for long although neither delivery nor the store has reported an
error in the meantime. The age alone is no evidence: after an outage, or after a start with old events in the log, the
oldest event is old although delivery works.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.quantities import duration
from tornado_gateway.store.interfaces import Depth, EventStore
from tornado_gateway.tasks import end_tasks

READ_SECONDS = 2.0
READ_SHARE = 0.01  # maximum share of the store's time for readings, unless that means a longer pause than this:
LONGEST_PAUSE_SECONDS = 30.0
LAST_SECONDS = 2.0  # a stop waits for its last reading
RETRY_SECONDS = 0.05  # between two attempts at it
STUCK_SECONDS = 60.0
STUCK_INTERVALS = 3  # times the flush interval plus the time-out of a request

Problem = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """The last reading of one worker, as published.

    From `still_since` until `still_until` (None: now) the oldest event has been the same and no error was reported, on
    the monotonic clock, which all processes of a machine share; other times are unix seconds. While the store cannot be
    read, `unknown_since` is the time of the last reading (or of the start), and the rest is of that reading.
    """

    at: float | None = None
    waiting: int | None = None
    dead: int | None = None
    oldest_at: float | None = None
    unknown_since: float | None = None
    still_since: float | None = None
    still_until: float | None = None
    stuck_after: float = STUCK_SECONDS

    def as_record(self) -> dict[str, Any]:
        """Return the values by name. `asdict` needs ten times as long, four times a second for each environment."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = tuple(field.name for field in fields(Reading))


class Waiting(NamedTuple):
    """The number of waiting events that a worker counts, and its reading."""

    events: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Merged:
    """The readings of the whole instance. `stuck` is the problem to report, if there is one."""

    oldest_at: float | None = None
    unknown_since: float | None = None
    stuck: Problem | None = None


def stuck_after(flush_seconds: float, timeout_seconds: float) -> float:
    """Return how long the oldest event may stay the same: several times as long as one flush may take."""
    return max(STUCK_SECONDS, STUCK_INTERVALS * (flush_seconds + timeout_seconds))


def pause_after(took_seconds: float, pace: int = 1) -> float:
    """Return the pause after a reading that took so long."""
    return max(READ_SECONDS * pace * random.uniform(0.9, 1.1), min(took_seconds / READ_SHARE, LONGEST_PAUSE_SECONDS))


class Watch:
    """Reads the store of a worker regularly.

    `waiting` returns the number of waiting events of the worker; its own log is not read while there are none. A store
    that `is_shared` is always read, because other machines change it too. Of many environments each reads `pace` times
    as rarely.
    """

    def __init__(
        self,
        store: EventStore,
        waiting: Callable[[], int],
        stuck_after_seconds: float,
        *,
        is_shared: bool = False,
        pace: int = 1,
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._stuck_after_seconds = stuck_after_seconds
        self.is_shared = is_shared
        self._pace = pace
        self._depth: Depth | None = None
        self._known: Depth | None = None  # the last one that was read completely
        self._read_at: float | None = None
        self._unknown_since: float | None = time.time()
        self._still_since: float | None = None
        self._still_until: float | None = None  # a slow store is read rarely, so not until now
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        await end_tasks(self._task)
        self._task = None

    def reading(self, reason: str | None) -> Reading:
        """Return the last reading. `reason` is the current error that explains why events wait, or None."""
        if reason is not None and self._still_since is not None:
            self._still_since = time.monotonic()
        depth, known = self._depth, self._known
        return Reading(
            at=self._read_at,
            waiting=None if known is None else known.waiting,
            dead=None if known is None else known.dead,
            oldest_at=None if depth is None else depth.oldest_at,
            unknown_since=self._unknown_since,
            still_since=self._still_since,
            still_until=self._still_until,
            stuck_after=self._stuck_after_seconds,
        )

    async def read_last(self, recount: Callable[[], Awaitable[None]], seconds: float = LAST_SECONDS) -> None:
        """Read a shared store at a stop, then count its events with `recount`. If that fails, they are unknown."""
        try:
            async with asyncio.timeout(seconds):
                while not await self.read():  # a link to Redis that has failed rests between its attempts
                    await asyncio.sleep(RETRY_SECONDS)
                await recount()
        except TimeoutError:
            self._note_failure()

    async def read(self) -> bool:
        """Read the store. Return whether all of it could be read."""
        if not self.is_shared and not self._waiting():
            self._note(Depth(0, 0, None))
            return True
        try:
            depth = await self._store.depth(patient=True)
        except StoreError:
            self._note_failure()
            return False
        self._note(depth)
        return not depth.is_stale

    def _note(self, depth: Depth) -> None:
        now = time.monotonic()
        if depth.oldest_at is None:
            self._still_since = None
        elif self._depth is None or depth.oldest_at != self._depth.oldest_at:
            self._still_since = now
        self._still_until = now
        self._depth = depth
        if depth.is_stale:
            self._note_failure()
        else:
            self._known, self._read_at, self._unknown_since = depth, time.time(), None

    def _note_failure(self) -> None:
        self._unknown_since = self._unknown_since or self._read_at

    async def _run(self) -> None:
        while True:
            before = time.monotonic()
            is_read = await self.read()
            if is_read:
                await asyncio.sleep(pause_after(time.monotonic() - before, self._pace))
            else:  # which is not slow: it has waited for a time-out, and the next one may succeed
                await asyncio.sleep(pause_after(0.0))


def newest_reading(workers: Sequence[Waiting]) -> Reading:
    """Return the latest reading of a shared store."""
    return max((worker.reading for worker in workers), key=lambda reading: reading.at or 0.0, default=Reading())


def is_unknown(workers: Sequence[Waiting]) -> bool:
    """Return whether no worker can read a shared store now."""
    return all(worker.reading.unknown_since is not None for worker in workers)


def merged(workers: Sequence[Waiting], *, is_shared: bool) -> Merged:
    """Merge the readings of all workers, of their own logs or of one shared store."""
    holding = [worker for worker in workers if worker.events > 0]
    readings = [worker.reading for worker in (workers if is_shared else holding)]
    oldest = min((reading.oldest_at for reading in readings if reading.oldest_at is not None), default=None)
    unknown = [reading.unknown_since for reading in readings]
    failed = [since for since in unknown if since is not None]
    if is_shared and len(failed) < len(unknown):  # one worker that can read it is enough
        failed = []
    return Merged(oldest, min(failed, default=None), _stuck(holding, is_shared=is_shared))


def _stuck(holding: Sequence[Waiting], *, is_shared: bool) -> Problem | None:
    """Return the problem, if events are stuck. A shared store is stuck only if no worker reports an error."""
    still = [worker for worker in holding if _is_still(worker.reading)]
    if not still or (is_shared and len(still) < len(holding)):
        return None
    since = min(worker.reading.oldest_at for worker in still if worker.reading.oldest_at is not None)
    events = max(worker.events for worker in still) if is_shared else sum(worker.events for worker in still)
    age = max(0.0, time.time() - since)
    message = f"Events are stuck: {events} waiting, the oldest for {duration(age)}, although delivery reports no error."
    return {"since": since, "seconds": round(age, 3), "events": events, "message": message}


def _is_still(reading: Reading) -> bool:
    if reading.still_since is None or reading.oldest_at is None:
        return False
    until = time.monotonic() if reading.still_until is None else reading.still_until
    return until - reading.still_since >= reading.stuck_after
