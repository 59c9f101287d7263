"""Waiting events and dead letters, for operators: from the running gateway, or from the store if none runs.

An event log in DATA_DIR belongs to one process at a time. If one is locked, a gateway runs, and the numbers come from
its HTTP endpoints.
"""

import fcntl
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tornado_gateway.cli.client import Client
from tornado_gateway.config import Config
from tornado_gateway.console.dead_letters import all_letters, groups_of
from tornado_gateway.console.recent_events import letter_json
from tornado_gateway.errors import StoreError
from tornado_gateway.process.environments.stores import data_dir_of
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import DeadLetter, Depth, EventStore
from tornado_gateway.store.sqlite.events import SqliteEvents

MAX_LETTERS = 1_000_000  # read from a store; a running gateway may return fewer


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: events that VWO rejected permanently, one JSON document on each line of `body`."""

    id: int | str
    count: int
    reason: str
    at: float
    body: str
    response: str = ""  # the beginning of VWO's


@dataclass(frozen=True, slots=True)
class Overall(Depth):
    """The numbers of all workers. If the store cannot be read now, they are those of the reading of `unknown_since`."""

    unknown_since: float | None = None
    stuck: str | None = None  # the problem in words (telemetry/waiting.py), reported by a running gateway only


class StoredEvents(Protocol):
    """Access to stored events. `where` describes the source of the numbers."""

    where: str

    async def depth(self) -> Overall: ...

    async def letters(self, *, shows_keys: bool = False) -> list[Letter]:
        """Return all dead letters, with SDK keys masked unless `shows_keys`."""

    async def requeue(self, ids: Sequence[str] | None) -> int:
        """Move dead letters (None: all) back into the queue. Return the number of events moved."""

    async def discard(self, ids: Sequence[str] | None) -> int:
        """Delete dead letters (None: all). Return the number of events deleted."""

    async def groups(self) -> dict[str, Any]:
        """Return the dead letters by event and reason, as GET /admin/events/groups does."""


class _FromGateway:
    def __init__(self, client: Client, environment: str | None) -> None:
        self.where = f"the gateway at {client.url}"
        self._client = client
        self._selected = "" if environment is None else f"&environment={environment}"

    async def depth(self) -> Overall:
        """Return the numbers of the whole instance, which every worker knows."""
        depth = self._client.get(f"/admin/events?limit=1{self._selected}")["depth"]
        stuck = depth.get("stuck") or {}
        counts = depth.get("last_known") or depth
        return Overall(
            counts["waiting"] or 0,
            counts["dead"] or 0,
            depth.get("oldest_at"),
            is_stale=depth["waiting"] is None,
            unknown_since=depth.get("oldest_unknown_since"),
            stuck=stuck.get("message"),
        )

    async def letters(self, *, shows_keys: bool = False) -> list[Letter]:
        dead: list[dict[str, Any]] = []
        keys = "shown" if shows_keys else "masked"
        path = f"/admin/events?limit={MAX_LETTERS}&complete=true&keys={keys}{self._selected}"
        page = self._client.get(path)
        while True:
            dead += page["dead"]
            if page.get("unreadable"):
                print(f"Not all dead letters can be read: {page['unreadable']}", file=sys.stderr)
            if page["next"] is None:
                return [Letter(d["id"], d["count"], d["reason"], d["at"], d["body"], d["response"]) for d in dead]
            page = self._client.get(f"{path}&first={page['next']}")

    async def requeue(self, ids: Sequence[str] | None) -> int:
        return int(self._post("requeue", ids)["requeued"])

    async def discard(self, ids: Sequence[str] | None) -> int:
        return int(self._post("discard", ids)["discarded"])

    async def groups(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get(f"/admin/events/groups{self._selected.replace('&', '?')}")
        return found

    def _post(self, action: str, ids: Sequence[str] | None) -> Any:
        body = {"ids": None if ids is None else [_stored_id(id_) for id_ in ids]}
        return self._client.post(f"/admin/events/{action}{self._selected.replace('&', '?')}", body)


class _FromStore:
    def __init__(self, events: EventStore, where: str) -> None:
        self.where = where
        self._events = events

    async def depth(self) -> Overall:
        depth = await self._events.depth()
        return Overall(depth.waiting, depth.dead, depth.oldest_at)

    async def letters(self, *, shows_keys: bool = False) -> list[Letter]:
        return [_letter(dead, shows_keys) for dead in await self._events.dead_letters(MAX_LETTERS)]

    async def requeue(self, ids: Sequence[str] | None) -> int:
        return await self._events.requeue(None if ids is None else [_stored_id(id_) for id_ in ids])

    async def discard(self, ids: Sequence[str] | None) -> int:
        chosen = [letter.id async for letter in all_letters(self._events)] if ids is None else map(_stored_id, ids)
        return await self._events.discard_dead_letters(list(chosen))

    async def groups(self) -> dict[str, Any]:
        return await groups_of(self._events)


class _NoEvents:
    """A DATA_DIR in which no gateway has stored events yet."""

    def __init__(self, where: str) -> None:
        self.where = where

    async def depth(self) -> Overall:
        return Overall(0, 0, None)

    async def letters(self, *, shows_keys: bool = False) -> list[Letter]:
        return []

    async def requeue(self, ids: Sequence[str] | None) -> int:
        return 0

    async def discard(self, ids: Sequence[str] | None) -> int:
        return 0

    async def groups(self) -> dict[str, Any]:
        return {"groups": [], "complete": True, "unreadable": None}


@asynccontextmanager
async def open_stored_events(config: Config) -> AsyncIterator[StoredEvents]:
    """Open the store, or connect to the running gateway. Raise ClientError or StoreError."""
    directory = data_dir_of(config)
    if is_in_use(directory):
        yield _FromGateway(Client(config), config.environment_name)
        return
    opened = _store(config, directory)
    if opened is None:
        yield _NoEvents(f"{directory} (no stored events)")
        return
    events, where = opened
    await events.open()
    try:
        yield _FromStore(events, where)
    finally:
        await events.close()


def _store(config: Config, directory: Path) -> tuple[EventStore, str] | None:
    if config.uses_redis:
        from tornado_gateway.store.redis.events import open_redis  # not needed without Redis

        redis = open_redis(redis_options(config), config.namespace, f"command:{os.getpid()}")
        return redis.events, "Redis"
    if not any(directory.glob("events-*.db")):
        return None
    return SqliteEvents(directory, config.store_sync), f"the event log in {directory} (no gateway is running)"


def is_in_use(directory: Path) -> bool:
    """Return whether a process holds an event log in this directory. Raise StoreError if that cannot be determined."""
    if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
        raise StoreError(f"{directory} cannot be read by this user. Run the command as the gateway's user or as root.")
    return any(_is_locked(path) for path in directory.glob("events-*.lock"))


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _letter(dead: DeadLetter, shows_keys: bool) -> Letter:
    shown = letter_json(dead, is_complete=True, shows_keys=shows_keys)
    return Letter(dead.id, dead.count, dead.reason, dead.at, shown["body"], dead.response)


def _stored_id(text: str) -> int | str:
    """IDs are numbers in the embedded store, and names in Redis."""
    return int(text) if text.isdecimal() else text
