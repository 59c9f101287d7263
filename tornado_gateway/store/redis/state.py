"""Documents, leases, aliases, sticky decisions and statistics in Redis."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from tornado_gateway.core.types import StickyRecord
from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import (
    MAX_ALIASES,
    NO_STATISTICS,
    Confirmation,
    Statistics,
    StoredDocument,
)
from tornado_gateway.store.redis.durability import risks
from tornado_gateway.store.redis.link import Link, prefix, within
from tornado_gateway.store.redis.lua import (
    ACQUIRE_LEASE,
    ALIASES,
    CONFIRM_DOCUMENT,
    FORGET_STATISTICS,
    LOAD_STATISTICS,
    RELEASE_LEASE,
    REPLACE_STATISTICS,
    RESTORE_DOCUMENT,
    SAVE_DOCUMENT,
    SET_ALIAS,
)
from tornado_gateway.store.redis.replies import ForbiddenError
from tornado_gateway.tasks import end_tasks, wait_at_most

logger = logging.getLogger(__name__)

LEASE_SECONDS = 12.0  # until the lease of a killed process ends; a live one prolongs it four times in that time
DECISION_SECONDS = 0.25  # that a decision waits for aliases and sticky decisions
RECHECK_SECONDS = 3.0  # between two checks of a document without a message


class RedisState:
    """Documents, leases, aliases, sticky decisions and statistics of all instances.

    `open` does not wait for Redis, so that a gateway starts without it; each call fails if it cannot be reached.
    """

    def __init__(
        self,
        link: Link,
        namespace: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        self.max_aliases = MAX_ALIASES
        self._link = link
        self._lease_seconds = lease_seconds
        self._recheck_seconds = recheck_seconds
        self._leases: dict[str, str] = {}  # the owner of each held lease
        self._prolonging: asyncio.Task[None] | None = None
        self._prefix = prefix(namespace)
        self._channel = f"{self._prefix}:changes"
        self._last_seen: dict[str, StoredDocument] = {}
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._link.open()

    async def close(self) -> None:
        await end_tasks(self._listening, self._prolonging)
        self._listening = self._prolonging = None
        await self._release_all()
        await self._link.close()
        self._notify()

    async def load_document(self, name: str) -> StoredDocument | None:
        body, version, saved_at = await self._link.call(
            "HMGET", self._key("document", name), "body", "version", "saved_at"
        )
        return self._seen(name, StoredDocument(body, int(version), float(saved_at))) if version else None

    async def save_document(self, name: str, body: bytes, by: str = "") -> StoredDocument:
        now = time.time()
        seen = self._last_seen[name].version if name in self._last_seen else 0
        keys = (self._key("document", name), self._channel)
        version = await self._link.run(SAVE_DOCUMENT, keys, seen, repr(now), body, name, by)
        return self._seen(name, StoredDocument(body, version, now))

    async def confirm_document(self, name: str, by: str = "") -> None:
        await self._link.run(CONFIRM_DOCUMENT, (self._key("document", name),), repr(time.time()), by)

    async def last_confirmation(self, name: str) -> Confirmation | None:
        saved_at, by = await self._link.call("HMGET", self._key("document", name), "saved_at", "by")
        return Confirmation(float(saved_at), (by or b"").decode()) if saved_at else None

    async def wait_for_document(self, name: str, known_version: int) -> StoredDocument:
        """As promised by StateStore; waits through outages of Redis as well.

        If Redis has lost the document, the last one that was seen here is put back.
        """
        self._listen()
        while True:
            changed = self._changed
            try:
                stored = await self._load_unless(name, known_version)
            except StoreError:
                if self._link.is_closed:
                    raise
                stored = None
            if stored is not None:
                return stored
            await wait_at_most(changed, self._recheck_seconds * random.uniform(0.8, 1.0))

    async def acquire_lease(self, name: str, owner: str) -> bool:
        is_held = await self._prolong(name, owner)
        if is_held:
            self._leases[name] = owner
            if self._prolonging is None or self._prolonging.done():
                self._prolonging = asyncio.create_task(self._keep_leases())
        return is_held

    async def release_lease(self, name: str, owner: str) -> None:
        if self._leases.get(name) == owner:
            del self._leases[name]
        await self._link.run(RELEASE_LEASE, (self._key("lease", name),), owner)

    async def _keep_leases(self) -> None:
        while self._leases:
            await asyncio.sleep(self._lease_seconds / 4 * random.uniform(0.8, 1.0))
            for name, owner in list(self._leases.items()):
                try:
                    await self._prolong(name, owner)
                except StoreError as error:
                    logger.debug("the lease %s was not prolonged: %s", name, error)

    async def _prolong(self, name: str, owner: str) -> bool:
        """Acquire or prolong the lease, and forget it if another process holds it."""
        key, milliseconds = self._key("lease", name), _milliseconds(self._lease_seconds)
        is_held = bool(await self._link.run(ACQUIRE_LEASE, (key,), owner, milliseconds))
        if not is_held:
            self._leases.pop(name, None)
        return is_held

    async def _release_all(self) -> None:
        for name, owner in list(self._leases.items()):
            with suppress(StoreError):  # it expires
                await self.release_lease(name, owner)

    async def set_alias(self, alias_id: str, user_id: str) -> bool:
        return bool(await self._link.run(SET_ALIAS, [self._key("aliases")], alias_id, user_id, self.max_aliases))

    async def aliases(self, ids: Sequence[str]) -> dict[str, str]:
        if not ids:
            return {}
        users = await within(DECISION_SECONDS, self._link.run(ALIASES, [self._key("aliases")], *ids))
        return {id_: user.decode() for id_, user in zip(ids, users, strict=True) if user is not None}

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, StickyRecord]:
        if not keys:
            return {}
        names = [self._record_key(user_id, key) for key in keys]
        values = await within(DECISION_SECONDS, self._link.call("MGET", *names))
        return {key: orjson.loads(value) for key, value in zip(keys, values, strict=True) if value is not None}

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        ends = ("PX", _milliseconds(seconds))
        writes = [
            self._link.call("SET", self._record_key(user_id, key), orjson.dumps(record), *ends)
            for key, record in records.items()
        ]
        await within(DECISION_SECONDS, asyncio.gather(*writes))

    async def statistics_versions(self) -> dict[str, int]:
        versions: list[bytes] = await self._link.call("HGETALL", self._key("statistics", "versions"))
        return {name.decode(): int(version) for name, version in zip(versions[::2], versions[1::2], strict=True)}

    async def load_statistics(self, name: str) -> Statistics:
        version, body = await self._link.run(LOAD_STATISTICS, self._statistics_keys(), name)
        return Statistics(int(version), body) if version and body is not None else NO_STATISTICS

    async def replace_statistics(self, name: str, body: bytes, version: int) -> bool:
        return bool(await self._link.run(REPLACE_STATISTICS, self._statistics_keys(), name, body, version))

    async def forget_statistics(self, names: Sequence[str]) -> None:
        if names:
            await self._link.run(FORGET_STATISTICS, self._statistics_keys(), *names)

    def _statistics_keys(self) -> tuple[str, str]:
        return self._key("statistics", "versions"), self._key("statistics")

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _record_key(self, user_id: str, key: str) -> str:
        return self._key("record", str(len(user_id)), user_id, key)  # the length distinguishes "a:b" "c" from "a" "b:c"

    def _seen(self, name: str, document: StoredDocument) -> StoredDocument:
        before = self._last_seen.get(name)
        if before is None or before.version <= document.version:
            self._last_seen[name] = document
        return document

    async def _load_unless(self, name: str, known_version: int) -> StoredDocument | None:
        version = await self._link.call("HGET", self._key("document", name), "version")
        if version is None and name in self._last_seen:
            seen = self._last_seen[name]
            keys = (self._key("document", name), self._channel)
            if await self._link.run(RESTORE_DOCUMENT, keys, seen.version, repr(seen.saved_at), seen.body, name):
                logger.error("Redis lost the document %s, it was stored again", name)
        if version is None or int(version) == known_version:
            return None
        return await self.load_document(name)

    async def can_notify(self) -> bool:
        """Return whether Redis passes messages on. Without that right (ACL), readers recognise changes later."""
        try:
            await self._link.call("PUBLISH", self._channel, "")
        except ForbiddenError:
            return False
        return True

    async def risks(self) -> list[str]:
        """Return the settings of Redis with which it loses acknowledged events."""
        return await risks(self._link)

    def _listen(self) -> None:
        if self._listening is None and not self._link.is_closed:
            self._listening = asyncio.create_task(self._link.listen(self._channel, self._notify))

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
