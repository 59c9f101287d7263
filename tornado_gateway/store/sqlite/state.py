"""State that all workers of a machine share: documents, leases, aliases, sticky decisions and statistics.

A lease is a lock on a file `lease-<hash>.lock`, which ends with its process.
"""

import asyncio
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tornado_gateway.core.types import StickyRecord
from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import (
    MAX_ALIASES,
    NO_STATISTICS,
    SHARED,
    Confirmation,
    Statistics,
    StoredDocument,
)
from tornado_gateway.store.reckoning import SYSTEM_CLOCK, Clock, Note, Reckoning
from tornado_gateway.store.sqlite.aliases import SqliteAliases, SqliteRecords
from tornado_gateway.store.sqlite.database import Database, transaction
from tornado_gateway.store.sqlite.locks import try_lock
from tornado_gateway.store.sqlite.repair.guard import Guard, GuardedFile
from tornado_gateway.store.sqlite.schema import STATE, STATE_PRAGMAS, synchronous
from tornado_gateway.store.sqlite.space import DiskSpace, shrink
from tornado_gateway.store.versions import (
    MOST_BYTES,
    MOST_VERSIONS,
    Pin,
    Version,
    body_of,
    pack,
    surplus,
    unpacked,
)
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

# Of a document: body (None: it is known), version, time, pin and its end, who ended the last pin, the newest digest.
_Row = tuple[Any, int, float, str | None, float | None, str, str | None]

WATCH_SECONDS = 0.5  # between two checks for a new document: all workers use a pinned one within a second
SWEEP_SECONDS = 60.0
SWEEP_RECORDS = 1000  # expired records that are deleted in one transaction
SWEEP_PAUSE_SECONDS = 0.05  # between two transactions
SWEEPS_OF_START = 100  # further ones follow while the gateway runs
# Tables of version 0.1, which had one environment in a directory: the first one that starts migrates them.
FORMER_TABLES = {
    "aliases": "INSERT OR IGNORE INTO user_aliases SELECT ?, alias_id, user_id FROM aliases",
    "records": "INSERT OR IGNORE INTO decisions SELECT ?, user_id, key, until, record FROM records",
}
# The body of a document is compressed: to write 12 MB to two files takes 60 ms of a core that requests wait for.
SAVE_DOCUMENT = """
INSERT INTO documents (name, version, saved_at, body) VALUES (?, 1, ?, ?)
ON CONFLICT (name) DO UPDATE SET version = version + 1, saved_at = excluded.saved_at, body = excluded.body
RETURNING version
"""
SAVE_TIME = "UPDATE documents SET version = version + 1, saved_at = ? WHERE name = ? RETURNING version"
KEEP_VERSION = """
INSERT INTO versions (name, digest, number, first_at, at, source, owner, size, packed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (name, digest) DO UPDATE
    SET number = excluded.number, at = excluded.at, source = excluded.source, owner = excluded.owner
"""
VERSIONS = """
SELECT digest, number, first_at, at, source, owner, size, length(packed) FROM versions WHERE name = ?
ORDER BY number DESC
"""
LATEST = "SELECT digest, packed FROM versions WHERE name = ? ORDER BY number DESC LIMIT 1"
# Without the body if it is known.
LOAD_DOCUMENT = """
WITH newest AS (SELECT digest FROM versions WHERE name = ? ORDER BY number DESC LIMIT 1)
SELECT CASE WHEN pin IS NULL AND version = ? AND (SELECT digest FROM newest) = ? THEN NULL ELSE body END,
    version, saved_at, pin, ends, coalesce(unpinned_by, ''), (SELECT digest FROM newest)
FROM documents LEFT JOIN pins USING (name) WHERE name = ?
"""
UNPIN = """
UPDATE pins SET pin = NULL, ends = NULL, unpinned_by = ? WHERE name = ? AND pin = coalesce(?, pin)
"""
REPLACE_BODY = """
UPDATE documents SET version = version + 1, body = packed FROM versions
WHERE documents.name = ? AND versions.name = documents.name AND digest = ?
"""
NOTE_OWNER = "INSERT OR REPLACE INTO confirmations (name, owner) VALUES (?, ?)"
FORGET_EXPIRED = """
DELETE FROM decisions WHERE (namespace, user_id, key) IN
    (SELECT namespace, user_id, key FROM decisions WHERE until <= ? ORDER BY until LIMIT ?)
"""
REPLACE_STATISTICS = """
UPDATE statistics SET version = version + 1, body = ? WHERE namespace = ? AND name = ? AND version = ?
"""
LAST_CONFIRMATION = """
SELECT saved_at, coalesce(owner, '') FROM documents LEFT JOIN confirmations USING (name) WHERE name = ?
"""


class SqliteState:
    """Documents, leases, aliases, sticky decisions and statistics of all workers of this machine.

    Environments that share the directory have a namespace each; of many, each looks for changes `pace` times as rarely.
    Documents have none: their names identify them.
    """

    def __init__(
        self,
        directory: Path,
        sync: str = "normal",
        namespace: str = "",
        *,
        clock: Clock = SYSTEM_CLOCK,
        sweep_seconds: float = SWEEP_SECONDS,
        batch: int = SWEEP_RECORDS,
        pace: int = 1,
    ) -> None:
        self.max_aliases = MAX_ALIASES
        self._path = directory / "state.db"
        self._namespace = namespace
        files = [GuardedFile(self._path, STATE, is_shared=True)]
        self._guard = Guard(files, f"{STATE_PRAGMAS} {synchronous(sync)}", DiskSpace(directory))
        self._guard.check_seconds *= pace
        self._watch_seconds = WATCH_SECONDS * pace
        self._database = Database()
        self._aliases = SqliteAliases(self._database, namespace, lambda: self.max_aliases)
        self._records = SqliteRecords(self._database, namespace)
        self._reckoning = Reckoning(clock)
        self._batch = batch
        self._sweeping = Periodic(self._sweep, sweep_seconds, jitter=0.2)
        self._leases: dict[str, tuple[str, int]] = {}  # owner and descriptor of each held lease
        self._last_seen: dict[str, StoredDocument] = {}  # documents, by name

    async def open(self) -> None:
        await self._database.open(self._guard)
        try:
            await self._database.run(_resume, self._reckoning)
            for _ in range(SWEEPS_OF_START):
                if not await self.forget_expired():
                    break
            await self._database.run(shrink)
            rows = await self._database.run(_take_over, self._namespace)
            if rows:
                logger.info("migrated %s of version 0.1 from %s", rows, self._path)
        except StoreError as error:
            logger.error("cleaning up %s failed, the next start tries again: %s", self._path, error)

        self._sweeping.start()

    async def _sweep(self) -> None:
        """Delete the expired records of all environments, so that the file does not grow while the gateway runs."""
        try:
            await self._database.run(_resume, self._reckoning)
            while await self.forget_expired():
                await asyncio.sleep(SWEEP_PAUSE_SECONDS)
        except StoreError as error:
            logger.debug("expired sticky decisions were not deleted, retrying: %s", error)

    async def forget_expired(self) -> bool:
        """Delete some expired records. Return whether there may be more."""
        count = await self._database.run(_forget_expired, self._reckoning.now(), self._batch)
        return count == self._batch

    async def close(self) -> None:
        await self._sweeping.end()
        await self._database.close()
        while self._leases:
            os.close(self._leases.popitem()[1][1])

    async def load_document(self, name: str) -> StoredDocument | None:
        return await self._load(name)

    async def save_document(
        self, name: str, body: bytes, by: str = "", source: str = "", at: float | None = None
    ) -> StoredDocument:
        digest, packed = await asyncio.to_thread(pack, body)
        at = time.time() if at is None else at
        kept = (digest, at, source, by, len(body), packed)
        number = await self._database.run(_save_document, name, kept)
        self._last_seen[name] = StoredDocument(body, number, at, digest)
        stored = await self.load_document(name)
        if stored is None:
            raise StoreError(f"{self._path} has lost the document {name}")
        return stored

    async def versions(self, name: str) -> list[Version]:
        return await self._database.run(_versions, name)

    async def load_version(self, name: str, digest: str) -> bytes | None:
        packed = await self._database.run(_load_version, name, digest)
        return None if packed is None else await asyncio.to_thread(unpacked, packed)

    async def pin_document(self, name: str, pin: Pin) -> StoredDocument | None:
        is_kept = await self.load_version(name, pin.digest) is not None
        ends = None if pin.seconds is None else self._reckoning.now() + pin.seconds
        if not is_kept or not await self._database.run(_pin_document, name, pin, ends):
            return None
        return await self.load_document(name)

    async def unpin_document(self, name: str, pin: Pin | None = None, by: str = "") -> bool:
        return await self._database.run(_unpin_document, name, None if pin is None else pin.encoded().decode(), by)

    async def confirm_document(self, name: str, by: str = "") -> None:
        await self._database.run(_confirm_document, name, time.time(), by)

    async def last_confirmation(self, name: str) -> Confirmation | None:
        return await self._database.run(_last_confirmation, name)

    async def wait_for_document(self, name: str, known_version: int) -> StoredDocument:
        while True:
            stored = await self._load(name, known_version)
            if stored is not None:
                return stored
            await asyncio.sleep(self._watch_seconds)

    async def _load(self, name: str, known_version: int | None = None) -> StoredDocument | None:
        """Return the document. None: there is none, it is damaged, or its version is the known one."""
        seen = self._last_seen.get(name)
        row = await self._database.run(_read_document, name, seen, known_version)
        if row is None:
            return None
        packed, version, saved_at, pin, ends, unpinned_by, latest = row
        known = None if packed is not None or seen is None else seen.body
        body = await asyncio.to_thread(body_of, packed, self._path) if known is None else known
        if body is None:
            return None
        left = None if ends is None else ends - self._reckoning.now()
        pinned = None if pin is None else Pin.decoded(pin)
        found = StoredDocument(body, version, saved_at, latest or "", pinned, left, unpinned_by)
        self._last_seen[name] = found
        return found

    async def acquire_lease(self, name: str, owner: str) -> bool:
        if name in self._leases:
            return self._leases[name][0] == owner
        try:
            lock = try_lock(_lease_path(self._path.parent, self._lease(name)))
        except OSError as error:
            raise StoreError(f"the lease {name} cannot be acquired: {error}") from error
        if lock is not None:
            self._leases[name] = owner, lock
        return lock is not None

    async def release_lease(self, name: str, owner: str) -> None:
        holder, lock = self._leases.get(name, ("", 0))
        if holder == owner:
            del self._leases[name]
            os.close(lock)

    async def set_alias(self, alias_id: str, user_id: str) -> bool:
        return await self._aliases.set(alias_id, user_id)

    async def aliases(self, ids: Sequence[str]) -> dict[str, str]:
        return await self._aliases.find(ids)

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, StickyRecord]:
        return await self._records.load(user_id, keys, self._reckoning.now())

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        await self._records.save(user_id, records, self._reckoning.now() + seconds)

    async def statistics_versions(self) -> dict[str, int]:
        return await self._database.run(_statistics_versions, self._namespace)

    async def load_statistics(self, name: str) -> Statistics:
        return await self._database.run(_load_statistics, self._namespace, name)

    async def replace_statistics(self, name: str, body: bytes, version: int) -> bool:
        return await self._database.run(_replace_statistics, self._namespace, name, body, version)

    async def forget_statistics(self, names: Sequence[str]) -> None:
        await self._database.run(_forget_statistics, self._namespace, names)

    def _lease(self, name: str) -> str:
        return name if name.startswith(SHARED) else f"{self._namespace}:{name}"


def _last_confirmation(connection: sqlite3.Connection, name: str) -> Confirmation | None:
    row = connection.execute(LAST_CONFIRMATION, (name,)).fetchone()
    return Confirmation(*row) if row else None


def _read_document(
    connection: sqlite3.Connection, name: str, seen: StoredDocument | None, known_version: int | None
) -> _Row | None:
    if known_version is not None:  # to check the version costs one small row
        row = connection.execute("SELECT version FROM documents WHERE name = ?", (name,)).fetchone()
        if row is None or row[0] == known_version:
            return None
    known = (0, "") if seen is None or seen.pin is not None else (seen.version, seen.latest)
    found: _Row | None = connection.execute(LOAD_DOCUMENT, (name, *known, name)).fetchone()
    return found


def _save_document(connection: sqlite3.Connection, name: str, kept: tuple[str, float, str, str, int, bytes]) -> int:
    """Return the number of the version."""
    digest, at, source, by, size, packed = kept
    with transaction(connection):
        connection.execute(NOTE_OWNER, (name, by))  # first: see `_replace_body`
        row = connection.execute("SELECT pin FROM pins WHERE name = ? AND pin IS NOT NULL", (name,)).fetchone()
        pinned = [] if row is None else [Pin.decoded(row[0]).digest]
        number = _save_latest(connection, name, at, packed, is_pinned=bool(pinned))
        connection.execute(KEEP_VERSION, (name, digest, number, at, at, source, by, size, packed))
        for old in surplus(_versions(connection, name), pinned, MOST_VERSIONS, MOST_BYTES):
            connection.execute("DELETE FROM versions WHERE name = ? AND digest = ?", (name, old))
    return number


def _save_latest(connection: sqlite3.Connection, name: str, at: float, packed: bytes, *, is_pinned: bool) -> int:
    """Replace the document, unless another one is pinned. Return the number of the version."""
    if is_pinned and (row := connection.execute(SAVE_TIME, (at, name)).fetchone()) is not None:
        return int(row[0])
    return int(connection.execute(SAVE_DOCUMENT, (name, at, packed)).fetchone()[0])


def _versions(connection: sqlite3.Connection, name: str) -> list[Version]:
    return [Version(*row) for row in connection.execute(VERSIONS, (name,))]


def _load_version(connection: sqlite3.Connection, name: str, digest: str) -> bytes | None:
    row = connection.execute("SELECT packed FROM versions WHERE name = ? AND digest = ?", (name, digest)).fetchone()
    return None if row is None else row[0]


def _pin_document(connection: sqlite3.Connection, name: str, pin: Pin, ends: float | None) -> bool:
    with transaction(connection):
        is_stored = _replace_body(connection, name, pin.digest)
        if is_stored:
            connection.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?, '')", (name, pin.encoded().decode(), ends))
    return is_stored


def _unpin_document(connection: sqlite3.Connection, name: str, pin: str | None, by: str) -> bool:
    with transaction(connection):
        was_pinned = connection.execute(UNPIN, (by, name, pin)).rowcount > 0
        latest = connection.execute(LATEST, (name,)).fetchone() if was_pinned else None
        if latest is not None:
            unpacked(latest[1], rest_seconds=0)  # an error if it is damaged: the pinned one stays in use
            _replace_body(connection, name, latest[0])
    return was_pinned


def _replace_body(connection: sqlite3.Connection, name: str, digest: str) -> bool:
    """Use a version as the document. Return False if there is no such version, or no document.

    It is one statement: a transaction that reads first fails if another one has written when it begins to write.
    """
    return connection.execute(REPLACE_BODY, (name, digest)).rowcount > 0


def _confirm_document(connection: sqlite3.Connection, name: str, now: float, by: str) -> None:
    with transaction(connection):
        connection.execute("UPDATE documents SET saved_at = ? WHERE name = ?", (now, name))
        connection.execute(NOTE_OWNER, (name, by))


def _lease_path(directory: Path, name: str) -> Path:
    """Return the lock file of a lease, named after a hash because names contain paths and can be long."""
    return directory / f"lease-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"


def _statistics_versions(connection: sqlite3.Connection, namespace: str) -> dict[str, int]:
    return dict(connection.execute("SELECT name, version FROM statistics WHERE namespace = ?", (namespace,)))


def _load_statistics(connection: sqlite3.Connection, namespace: str, name: str) -> Statistics:
    query = "SELECT version, body FROM statistics WHERE namespace = ? AND name = ?"
    row = connection.execute(query, (namespace, name)).fetchone()
    return Statistics(*row) if row else NO_STATISTICS


def _replace_statistics(connection: sqlite3.Connection, namespace: str, name: str, body: bytes, version: int) -> bool:
    if version:
        return connection.execute(REPLACE_STATISTICS, (body, namespace, name, version)).rowcount == 1
    row = (namespace, name, body)
    return connection.execute("INSERT OR IGNORE INTO statistics VALUES (?, ?, 1, ?)", row).rowcount == 1


def _forget_statistics(connection: sqlite3.Connection, namespace: str, names: Sequence[str]) -> None:
    rows = [(namespace, name) for name in names]
    connection.executemany("DELETE FROM statistics WHERE namespace = ? AND name = ?", rows)


def _resume(connection: sqlite3.Connection, reckoning: Reckoning) -> None:
    with transaction(connection):
        connection.execute("DELETE FROM reckoning WHERE id != 0")  # none: it locks the file before it is read
        row = connection.execute("SELECT at, uptime, boot FROM reckoning").fetchone()
        note = reckoning.resume(None if row is None else Note(*row))
        connection.execute("INSERT OR REPLACE INTO reckoning VALUES (0, ?, ?, ?)", note)


def _forget_expired(connection: sqlite3.Connection, now: float, most: int) -> int:
    return connection.execute(FORGET_EXPIRED, (now, most)).rowcount


def _take_over(connection: sqlite3.Connection, namespace: str) -> str:
    """Give the tables of version 0.1 to this namespace, once. Return the number of rows of each, as text."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    if not set(FORMER_TABLES) & {name for (name,) in connection.execute(query)}:
        return ""
    moved = {}
    connection.execute("BEGIN IMMEDIATE")
    try:
        present = {name for (name,) in connection.execute(query)}  # another worker may have moved them
        for table in present & set(FORMER_TABLES):
            moved[table] = connection.execute(FORMER_TABLES[table], (namespace,)).rowcount
            connection.execute(f"DROP TABLE {table}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return ", ".join(f"{count} {table}" for table, count in sorted(moved.items()) if count)
