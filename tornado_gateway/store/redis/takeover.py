"""Data of version 0.1 in Redis, whose keys name only the account: the first environment that starts migrates it.

The new keys have another hash tag, so that in a Cluster they are on another node and nothing can be renamed. Events and
dead letters are copied in pages and then deleted: a crash in between delivers up to one page of events twice. It waits
until no instance of version 0.1 is alive any more, because those deliver their events themselves.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress

from tornado_gateway.errors import StoreError
from tornado_gateway.store.redis.entries import PAGE
from tornado_gateway.store.redis.link import Link, make_link, prefix
from tornado_gateway.store.redis.lua import (
    ACQUIRE_LEASE,
    COPY_ENTRIES,
    DROP_ENTRIES,
    DROP_IF_EMPTY,
    RELEASE_LEASE,
    RESTORE_DOCUMENT,
)
from tornado_gateway.store.redis.options import RedisOptions
from tornado_gateway.tasks import end_tasks

logger = logging.getLogger(__name__)

SCAN_COUNT = 1000
LEASE_MS = 60_000
PAUSE_SECONDS = 10.0


def take_over(
    options: RedisOptions,
    former_namespace: str,
    namespace: str,
    owner: str,
    *,
    pause_seconds: float = PAUSE_SECONDS,
) -> "TakeOver | None":
    """Return the task that moves the data, or None if the namespace is the one that version 0.1 used."""
    if former_namespace == namespace:
        return None
    links = make_link(options, former_namespace), make_link(options, namespace)
    return TakeOver(*links, prefix(former_namespace), prefix(namespace), owner, pause_seconds=pause_seconds)


class TakeOver:
    """Moves data of version 0.1, at the start and every `pause_seconds` for as long as the gateway runs."""

    def __init__(
        self,
        old: Link,
        new: Link,
        old_prefix: str,
        new_prefix: str,
        owner: str,
        *,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._old = old
        self._new = new
        self._old_prefix = old_prefix
        self._new_prefix = new_prefix
        self._owner = owner
        self._pause_seconds = pause_seconds
        self._has_waited = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        await end_tasks(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            try:
                moved = await self.once()
                if any(moved.values()):
                    numbers = ", ".join(f"{count} {name}" for name, count in moved.items())
                    logger.info("migrated data of version 0.1 from Redis (%s): %s", self._old_prefix, numbers)
            except StoreError as error:
                logger.debug("migrating data of version 0.1 failed: %s", error)
            await asyncio.sleep(self._pause_seconds * random.uniform(0.8, 1.2))

    async def once(self) -> dict[str, int]:
        """Move all data, unless there is none or another instance is moving it. Return the number of each kind."""
        self._old.open()
        self._new.open()
        try:
            if not await self._is_wanted() or not await self._has_lease():
                return {}
            try:
                return await self._move()
            finally:
                with suppress(StoreError):
                    await self._old.run(RELEASE_LEASE, [self._lease], self._owner)
        finally:
            await self._old.close()
            await self._new.close()

    async def _is_wanted(self) -> bool:
        """Return whether there are keys of version 0.1, and no instance of it is alive."""
        names = ("events", "counts", "dead", "aliases")
        if not await self._old.call("EXISTS", *(self._key(name) for name in names)):
            return False
        if await self._old.call("EXISTS", self._key("format")):  # of a gateway that has this STORE_NAMESPACE
            return False
        seconds, microseconds = await self._old.call("TIME")
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        alive = await self._old.call("ZCOUNT", self._key("consumers"), now_ms, "+inf")
        if alive and not self._has_waited:
            self._has_waited = True
            logger.info("%d instances of version 0.1 are running; their data is migrated when they have ended", alive)
        return not alive

    async def _move(self) -> dict[str, int]:
        moved = {"aliases": await self._move_aliases(), "records": 0, "documents": 0}
        await self._move_keys(moved)
        moved["events"] = await self._move_stream("events", "waiting")
        moved["dead events"] = await self._move_stream("dead", "dead")
        names = ("events", "dead", "counts", "consumers")
        await self._old.run(DROP_IF_EMPTY, [self._key(name) for name in names])
        return moved

    async def _move_stream(self, name: str, counter: str) -> int:
        old_keys = [self._key(name), self._key("counts")]
        new_keys = [self._new_key(name), self._new_key("counts")]
        moved = 0
        while entries := await self._old.call("XRANGE", old_keys[0], "-", "+", "COUNT", PAGE):
            words = [word for _, fields in entries for word in (len(fields), *fields)]
            moved += int(await self._new.run(COPY_ENTRIES, new_keys, counter, *words))
            ids = [word for entry_id, fields in entries for word in (entry_id, fields[1])]
            await self._old.run(DROP_ENTRIES, old_keys, counter, *ids)
            await self._prolong()
        return moved

    async def _move_aliases(self) -> int:
        moved, cursor = 0, b"0"
        while True:
            cursor, words = await self._old.call("HSCAN", self._key("aliases"), cursor, "COUNT", PAGE)
            pairs = list(zip(words[::2], words[1::2], strict=True))
            await asyncio.gather(*(self._new.call("HSETNX", self._new_key("aliases"), *pair) for pair in pairs))
            if pairs:
                await self._old.call("HDEL", self._key("aliases"), *(alias for alias, _ in pairs))
            moved += len(pairs)
            await self._prolong()
            if cursor == b"0":
                return moved

    async def _move_keys(self, moved: dict[str, int]) -> None:
        """Move stored decisions and documents, which are keys of their own."""
        cursor = b"0"
        while True:
            pattern = f"{self._old_prefix}:*"
            cursor, keys = await self._old.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            for kind, move in (("record", self._move_record), ("document", self._move_document)):
                names = self._names_of(kind, keys)
                await asyncio.gather(*(move(name) for name in names))
                moved[f"{kind}s"] += len(names)
            await self._prolong()
            if cursor == b"0":
                return

    def _names_of(self, kind: str, keys: Sequence[bytes]) -> list[str]:
        start = self._key(kind) + ":"
        names = [key.decode(errors="replace") for key in keys]
        return [name.removeprefix(f"{self._old_prefix}:") for name in names if name.startswith(start)]

    async def _move_record(self, name: str) -> None:
        value, left_ms = await asyncio.gather(
            self._old.call("GET", self._key(name)), self._old.call("PTTL", self._key(name))
        )
        if value is not None and left_ms > 0:
            await self._new.call("SET", self._new_key(name), value, "NX", "PX", left_ms)
        await self._old.call("DEL", self._key(name))

    async def _move_document(self, name: str) -> None:
        version, saved_at, body = await self._old.call("HMGET", self._key(name), "version", "saved_at", "body")
        if version is not None:
            keys = [self._new_key(name), self._new_key("changes")]
            await self._new.run(RESTORE_DOCUMENT, keys, version, saved_at, body, name.removeprefix("document:"))
        await self._old.call("DEL", self._key(name))

    async def _prolong(self) -> None:
        if not await self._has_lease():
            raise StoreError("another instance is migrating the data")

    async def _has_lease(self) -> bool:
        """Acquire or prolong the lease of this work."""
        return bool(await self._old.run(ACQUIRE_LEASE, [self._lease], self._owner, LEASE_MS))

    @property
    def _lease(self) -> str:
        return self._key("lease:takeover")

    def _key(self, name: str) -> str:
        return f"{self._old_prefix}:{name}"

    def _new_key(self, name: str) -> str:
        return f"{self._new_prefix}:{name}"
