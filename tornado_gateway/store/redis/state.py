"""Documents, leases, aliases, sticky decisions and statistics in Redis."""

import asyncio
import logging
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
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
    PIN_DOCUMENT,
    RELEASE_LEASE,
    REPLACE_STATISTICS,
    RESTORE_DOCUMENT,
    SAVE_DOCUMENT,
    SET_ALIAS,
    UNPIN_DOCUMENT,
    Value,
)
from tornado_gateway.store.redis.replies import ForbiddenError
from tornado_gateway.store.versions import MOST_BYTES, MOST_VERSIONS, Pin, Version, pack, surplus, unpacked
from tornado_gateway.tasks import end_tasks, wait_at_most

logger = logging.getLogger(__name__)

LEASE_SECONDS = 12.0  # until the lease of a killed process ends; a live one prolongs it four times in that time
DECISION_SECONDS = 0.25  # that a decision waits for aliases and sticky decisions
RECHECK_SECONDS = 3.0  # between two checks of a document without a message
RETRY_SECONDS = 1.0  # after a check has failed
FACTS = ("version", "saved_at", "latest", "pin")  # of a document
FIELDS = ("body", *FACTS, "pin_ends", "unpinned_by")


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
        self.decision_seconds = DECISION_SECONDS
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
        known = await self._load_known(name)
        if known is not None:
            return self._seen(name, known)
        fields = await self._link.call("HMGET", self._key("document", name), *FIELDS)
        body, version, saved_at, latest, pin, ends, unpinned_by = fields
        if not version:
            return None
        pinned = None if pin is None else Pin.decoded(pin)
        left = None if pinned is None else pinned.seconds  # of a restored pin, which has no other time
        left = await self._left_seconds(ends) if ends else left
        names = [(text or b"").decode() for text in (latest, unpinned_by)]
        document = StoredDocument(body, int(version), float(saved_at), names[0], pinned, left, names[1])
        return self._seen(name, document)

    async def _load_known(self, name: str) -> StoredDocument | None:
        """Return the document without reading its body again, None if it is not the one that was seen last."""
        seen = self._last_seen.get(name)
        if seen is None or seen.pin is not None:
            return None
        version, saved_at, latest, pin = await self._link.call("HMGET", self._key("document", name), *FACTS)
        is_same = pin is None and (version, latest) == (b"%d" % seen.version, seen.latest.encode())
        return replace(seen, saved_at=float(saved_at)) if is_same else None

    async def save_document(
        self, name: str, body: bytes, by: str = "", source: str = "", at: float | None = None
    ) -> StoredDocument:
        at = time.time() if at is None else at
        seen = self._last_seen[name].version if name in self._last_seen else 0
        keys = (*self._document_keys(name), self._key("versions", name), self._key("bodies", name))
        digest, packed = await asyncio.to_thread(pack, body)
        facts, old = await self._facts(name, Version(digest, 0, at, at, source, by, len(body), len(packed)))
        arguments: list[Value] = [seen, repr(at), body, name, by, digest, facts, packed, *old]
        version, is_pinned = await self._link.run(SAVE_DOCUMENT, keys, *arguments)
        stored = await self.load_document(name) if is_pinned else None
        return stored or self._seen(name, StoredDocument(body, version, at, digest))

    async def _facts(self, name: str, new: Version) -> tuple[bytes, list[str]]:
        """Return a new version as it is stored, and the digests of older ones for which there is no room then.

        If two workers save at the same time, the next one makes room.
        """
        known, pin = await self.versions(name), await self._link.call("HGET", self._key("document", name), "pin")
        facts = {key: value for key, value in asdict(new).items() if key not in ("digest", "number")}
        facts["first_at"] = next((one.first_at for one in known if one.digest == new.digest), new.first_at)
        kept = [one for one in known if one.digest != new.digest] + [replace(new, number=sys.maxsize)]
        pinned = [] if pin is None else [Pin.decoded(pin).digest]
        return orjson.dumps(facts), surplus(kept, pinned, MOST_VERSIONS, MOST_BYTES)

    async def versions(self, name: str) -> list[Version]:
        fields = await self._link.call("HGETALL", self._key("versions", name))
        found = [_version(digest, facts) for digest, facts in zip(fields[::2], fields[1::2], strict=True)]
        return sorted(found, key=lambda one: one.number, reverse=True)

    async def load_version(self, name: str, digest: str) -> bytes | None:
        packed = await self._link.call("HGET", self._key("bodies", name), digest)
        return None if packed is None else await asyncio.to_thread(unpacked, packed)

    async def pin_document(self, name: str, pin: Pin) -> StoredDocument | None:
        body = await self.load_version(name, pin.digest)
        milliseconds = "" if pin.seconds is None else _milliseconds(pin.seconds)
        if body is None or not await self._link.run(
            PIN_DOCUMENT, self._document_keys(name), name, body, pin.encoded(), milliseconds
        ):
            return None
        return await self.load_document(name)

    async def unpin_document(self, name: str, pin: Pin | None = None, by: str = "") -> bool:
        """As promised by StateStore; begins again if another worker saves a document meanwhile."""
        expected, outcome = b"" if pin is None else pin.encoded(), -1
        while outcome < 0:
            latest = await self._link.call("HGET", self._key("document", name), "latest") or b""
            body = await self.load_version(name, latest.decode())  # None if Redis has lost it: the next poll saves it
            found = () if body is None else (body,)
            outcome = await self._link.run(
                UNPIN_DOCUMENT, self._document_keys(name), name, expected, latest, by, *found
            )
        return bool(outcome)

    async def _left_seconds(self, ends: bytes) -> float:
        """Return the time until the end of a pin, in the server's milliseconds."""
        seconds, microseconds = await self._link.call("TIME")
        return (int(ends) - int(seconds) * 1000 - int(microseconds) // 1000) / 1000

    def _document_keys(self, name: str) -> tuple[str, str]:
        return self._key("document", name), self._channel

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
            changed, seconds = self._changed, self._recheck_seconds * random.uniform(0.8, 1.0)
            try:
                stored = await self._load_unless(name, known_version)
            except StoreError:
                if self._link.is_closed:
                    raise
                stored, seconds = None, min(seconds, RETRY_SECONDS)  # the change that was announced is not read yet
            if stored is not None:
                return stored
            await wait_at_most(changed, seconds)

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
                    await self._prolong(name, owner, patient=True)
                except StoreError as error:
                    logger.debug("the lease %s was not prolonged: %s", name, error)

    async def _prolong(self, name: str, owner: str, *, patient: bool = False) -> bool:
        """Acquire or prolong the lease, and forget it if another process holds it."""
        key, milliseconds = self._key("lease", name), _milliseconds(self._lease_seconds)
        is_held = bool(await self._link.run(ACQUIRE_LEASE, (key,), owner, milliseconds, patient=patient))
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
        users = await within(self.decision_seconds, self._link.run(ALIASES, [self._key("aliases")], *ids))
        return {id_: user.decode() for id_, user in zip(ids, users, strict=True) if user is not None}

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, StickyRecord]:
        if not keys:
            return {}
        names = [self._record_key(user_id, key) for key in keys]
        values = await within(self.decision_seconds, self._link.call("MGET", *names))
        return {key: orjson.loads(value) for key, value in zip(keys, values, strict=True) if value is not None}

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        ends = ("PX", _milliseconds(seconds))
        writes = [
            self._link.call("SET", self._record_key(user_id, key), orjson.dumps(record), *ends)
            for key, record in records.items()
        ]
        await within(self.decision_seconds, asyncio.gather(*writes))

    async def statistics_versions(self) -> dict[str, int]:
        versions: list[bytes] = await self._link.call("HGETALL", self._key("statistics", "versions"), patient=True)
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
        version = await self._link.call("HGET", self._key("document", name), "version", patient=True)
        if version is None and name in self._last_seen:
            await self._put_back(name, self._last_seen[name])
        if version is None or int(version) == known_version:
            return None
        return await self.load_document(name)

    async def _put_back(self, name: str, seen: StoredDocument) -> None:
        if await self._link.run(RESTORE_DOCUMENT, self._document_keys(name), *_restored(seen, name)):
            logger.error("Redis lost the document %s, it was stored again", name)

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


def _version(digest: bytes, stored: bytes) -> Version:
    number, facts = stored.split(b" ", 1)
    return Version(digest=digest.decode(), number=int(number), **orjson.loads(facts))


def _restored(seen: StoredDocument, name: str) -> list[Value]:
    """Return the arguments that restore a document and its pin, which lasts as long as it did when it was seen."""
    document: list[Value] = [seen.version, repr(seen.saved_at), seen.body, name, seen.latest]
    return document if seen.pin is None else [*document, seen.pin.encoded(), ""]


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
