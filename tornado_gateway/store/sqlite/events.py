"""The embedded store: SQLite files in DATA_DIR.

`events-<n>.db` is the event log of one worker, held by a lock on `events-<n>.lock` for as long as the worker lives, so
that commits never wait for each other. The log of a worker that is gone is adopted by a living one. `state.db` and
`dead.db`, the events that upstream refused, are shared by all workers of the machine. A lease is a lock on a file
`lease-<hash>.lock`: it ends with its process, whatever the clock says.

WAL with synchronous=NORMAL loses nothing when the process dies; a power cut can lose the last moment.
synchronous=FULL (STORE_SYNC=full) pays one fsync for each commit and loses nothing then either.
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

import orjson

from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import (
    SHARED,
    Chunk,
    Confirmation,
    DeadLetter,
    Depth,
    Identity,
    NewChunk,
    Record,
    Store,
    StoredDocument,
)
from tornado_gateway.store.sqlite.space import DiskSpace

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Then = Callable[[Any, BaseException | None], None]  # result and error of a job
_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...], _Then | None]
_SetUp = Callable[[sqlite3.Connection], None]

# Some builds of SQLite overwrite what is deleted, which would write every event twice.
STATE_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA secure_delete=OFF;"
# A commit that caused a checkpoint would wait for it, and that for the disk. `SqliteEvents` has them made beside the
# commits; SQLite's own (after 64 MB) are for when that does not work.
EVENT_PRAGMAS = f"{STATE_PRAGMAS} PRAGMA wal_autocheckpoint=16384;"
CHECKPOINT_BYTES = 4 * 1024 * 1024
TRANSACTION_BYTES = 8192  # what a transaction adds to the WAL besides its events, roughly
SYNC_MODES = {"normal": "NORMAL", "full": "FULL"}
READ_CHUNKS = 5000  # one claim never reads more chunks than this
FRESH_BYTES = 8 * 1024 * 1024  # of appended chunks that wait in memory to be claimed; the others are read
READ_BYTES = 8 * 1024 * 1024  # nor more bytes of bodies, except for the first chunk
SETTLE_SECONDS = 0.02  # deletions wait this long for the next append, to share its transaction
RETRY_SECONDS = 1.0  # pause after delivered events could not be deleted
ADOPTED_AT_ONCE = 256  # chunks that move out of an abandoned log in one transaction
ADOPTED_BYTES = 256 * 1024
LETTERS_AT_ONCE = 100  # dead letters that move back in one transaction
WATCH_SECONDS = 1.0
BUSY_SECONDS = 10.0  # what another process may keep a file to itself
BUSY_PAUSE_SECONDS = 0.02

EVENT_TABLES = """
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL,
    account_id TEXT NOT NULL DEFAULT '', sdk_key TEXT NOT NULL DEFAULT ''
);
"""
# `owner` is the log that counts a letter; any worker may show it and queue it again.
DEAD_TABLES = """
PRAGMA letters.journal_mode=WAL;
CREATE TABLE IF NOT EXISTS letters.dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL,
    at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL,
    account_id TEXT NOT NULL DEFAULT '', sdk_key TEXT NOT NULL DEFAULT ''
);
"""
IDENTITY_COLUMNS = ("account_id", "sdk_key")  # version 0.1 has none
STATE_TABLES = """
CREATE TABLE IF NOT EXISTS documents (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, saved_at REAL NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS confirmations (name TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS user_aliases (
    namespace TEXT NOT NULL, alias_id TEXT NOT NULL, user_id TEXT NOT NULL, PRIMARY KEY (namespace, alias_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    namespace TEXT NOT NULL, user_id TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (namespace, user_id, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS decisions_until ON decisions (until);
"""
# Tables of version 0.1, which had one environment in a directory: the first one that starts takes them over.
FORMER_TABLES = {
    "aliases": "INSERT OR IGNORE INTO user_aliases SELECT ?, alias_id, user_id FROM aliases",
    "records": "INSERT OR IGNORE INTO decisions SELECT ?, user_id, key, until, record FROM records",
}
INSERT_CHUNK = """
INSERT INTO chunks (id, at, count, query, body, account_id, sdk_key) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
INSERT_DEAD = """
INSERT INTO letters.dead (owner, at, count, query, body, reason, account_id, sdk_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
SAVE_DOCUMENT = """
INSERT INTO documents (name, version, saved_at, body) VALUES (?1, 1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET version = version + 1, saved_at = ?2, body = ?3 RETURNING version
"""
NOTE_OWNER = "INSERT OR REPLACE INTO confirmations (name, owner) VALUES (?, ?)"
LAST_CONFIRMATION = """
SELECT saved_at, coalesce(owner, '') FROM documents LEFT JOIN confirmations USING (name) WHERE name = ?
"""


def open_sqlite(directory: Path, sync: str = "normal", namespace: str = "") -> Store:
    """The embedded store in `directory`, which is made if need be. `sync` is a key of SYNC_MODES.

    `namespace` separates the shared state of environments. Event logs need none: each chunk names its environment.
    """
    return Store(SqliteEvents(directory, sync), SqliteState(directory, sync, namespace))


class _Ids:
    """Numbers of chunks. Only the thread of the database takes them; `last` may be read anywhere."""

    def __init__(self) -> None:
        self.last = 0

    def take(self, count: int) -> range:
        first = self.last + 1
        self.last += count
        return range(first, first + count)


class SqliteEvents:
    """The event log of this worker.

    Appended chunks also stay in memory until they are claimed, so that nothing is read back from the file as long as
    deliveries keep up. Settled chunks are deleted by the next transaction that appends, or soon after; deliveries
    never wait for that. Everything that is remembered about a job of the thread is changed when its result arrives,
    even if the caller has been cancelled, and never before an `await` and after it.

    Checkpoints copy the WAL into the file in a thread of their own while commits go on. Frames committed in the
    meantime are few. The writer's own thread copies them, which lets the WAL begin anew.
    """

    def __init__(self, directory: Path, sync: str = "normal") -> None:
        self.failure: str | None = None
        self._directory = directory
        self._log = ""  # its name, once it is open
        self._space = DiskSpace(directory)
        self._set_up = partial(_set_up_events, f"{EVENT_PRAGMAS} {_synchronous(sync)} {EVENT_TABLES}")
        self._database = _Database(self._space)
        self._checkpoints = _Database(self._space)
        self._checkpointing: asyncio.Task[None] | None = None
        self._wal_bytes = 0  # since the last checkpoint began
        self._lock: int | None = None
        self._ids = _Ids()
        self._last_stored = 0  # no chunk after this one is known to be in the file
        self._last_known = 0  # each chunk up to this one is in `_released` or `_fresh`, or was claimed
        self._released: list[Chunk] = []
        self._fresh: deque[Chunk] = deque()
        self._fresh_bytes = 0
        self._reading = asyncio.Lock()
        self._settled: list[int] = []  # to be deleted
        self._settled_events = 0  # in `_settled`
        self._all_settled_events = 0  # since the start, not counting those that were deleted at once
        self._all_deleted_events = 0  # of those
        self._settle_timer: asyncio.TimerHandle | None = None
        self._settles_alone = False  # a deletion failed: until one works, they do not share transactions
        self._deleting: asyncio.Task[None] | None = None
        self._appended_at = -SETTLE_SECONDS

    async def open(self) -> None:
        """Succeeds although the disk is full: what waits can be delivered, and new events are rejected."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path, self._lock = _lock_log(self._directory)
        except OSError as error:
            raise StoreError(f"the event log in {self._directory} cannot be opened: {error}") from error
        self._log = path.stem
        await self._database.open(path, self._set_up)
        await self._database.run(_attach_dead_letters, self._space, self._directory / "dead.db")
        await self._checkpoints.open(path, self._set_up)
        self._ids.last = self._last_stored = await self._database.run(_last_id)
        self._last_known, self._released, self._fresh_bytes = 0, [], 0
        self._fresh.clear()
        try:
            await self.adopt()
        except StoreError as error:
            logger.error("the events of an ended worker cannot be taken over yet: %s", error)
        await self._report_start()

    async def _report_start(self) -> None:
        self._space.keep_reserve()
        await self._database.run(self._space.check)
        waiting = (await self.depth()).waiting
        if self._space.problem is not None:
            logger.error("%s; %d events wait in %s", self._space.problem, waiting, self._log)
        elif waiting:
            logger.info("%d events of a previous run wait in %s", waiting, self._log)

    async def close(self) -> None:
        if self._deleting is not None:
            await asyncio.wait([self._deleting])
        await self._delete_settled()
        self._take_settled()  # chunks that could not be deleted are sent once more after the next start
        if self._checkpointing is not None:
            await self._checkpointing
        await self._checkpoints.close()
        await self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def append(self, chunks: Sequence[NewChunk]) -> None:
        """As promised by EventStore. Raises StoreError as well if the disk is nearly full."""
        settled, events = ([], 0) if self._settles_alone else self._take_settled()
        size = sum(len(chunk.body) for chunk in chunks)
        then = partial(self._appended, chunks, size, settled, events)
        await self._database.run(_append, self._ids, self._space, chunks, size, settled, then=then)

    def _appended(
        self,
        chunks: Sequence[NewChunk],
        size: int,
        settled: list[int],
        events: int,
        last: int,
        error: BaseException | None,
    ) -> None:
        if error is not None:
            self._not_deleted(settled, events)
            return
        self._all_deleted_events += events
        self._appended_at = asyncio.get_running_loop().time()
        self._last_stored = max(self._last_stored, last)
        self._keep(last - len(chunks), chunks, size)
        self._wal_bytes += size + TRANSACTION_BYTES
        if self._wal_bytes >= CHECKPOINT_BYTES and self._checkpointing is None:
            self._checkpointing = asyncio.create_task(self._checkpoint())

    async def _checkpoint(self) -> None:
        self._wal_bytes = 0
        try:
            await self._checkpoints.run(_checkpoint)
            await self._database.run(_checkpoint)
        except StoreError as error:
            logger.error("the event log grows, because its checkpoint failed: %s", error)
        finally:
            self._checkpointing = None

    def _keep(self, before: int, chunks: Sequence[NewChunk], size: int) -> None:
        """Hold just stored chunks for the next claims, if nothing unknown is before them, and there is room."""
        if before == self._last_known and self._fresh_bytes + size <= FRESH_BYTES:
            self._fresh.extend(Chunk(before + n, c.count, c.body, c.query, c.identity) for n, c in enumerate(chunks, 1))
            self._fresh_bytes += size
            self._last_known = before + len(chunks)

    async def claim(self, max_events: int) -> list[Chunk]:
        if self._last_stored > self._last_known and self._missing(max_events) > 0:
            await self._read(max_events)
        claimed: list[Chunk] = []
        while (chunk := self._first_at_hand()) and (not claimed or chunk.count <= max_events):
            claimed.append(self._take_first())
            max_events -= chunk.count
        return claimed

    def _missing(self, max_events: int) -> int:
        """How many events have to be read for a claim; at least one if nothing is at hand."""
        for chunk in chain(self._released, self._fresh):
            max_events -= chunk.count
            if max_events <= 0:
                return 0
        return max_events if self._first_at_hand() else max(1, max_events)

    async def _read(self, max_events: int) -> None:
        """Read chunks into memory; nothing has been claimed yet, so a failure or a cancellation loses nothing."""
        async with self._reading:
            missing = self._missing(max_events)
            if missing <= 0 or self._last_stored <= self._last_known:
                return
            needs_one = self._first_at_hand() is None
            stored, end = await self._database.run(_read_after, self._ids, self._last_known, missing, needs_one)
            new = [chunk for chunk in stored if int(chunk.id) > self._last_known]  # `_keep` has the others by now
            self._fresh.extend(new)
            self._fresh_bytes += sum(len(chunk.body) for chunk in new)
            self._last_known = max(self._last_known, end)

    def _first_at_hand(self) -> Chunk | None:
        if self._released:
            return self._released[0]
        return self._fresh[0] if self._fresh else None

    def _take_first(self) -> Chunk:
        if self._released:
            return self._released.pop(0)
        chunk = self._fresh.popleft()
        self._fresh_bytes -= len(chunk.body)
        return chunk

    async def release(self, chunks: Sequence[Chunk]) -> None:
        self._released = sorted([*self._released, *chunks], key=lambda chunk: int(chunk.id))

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        """As promised by EventStore. Deletions alone wait for the next append, if that comes soon."""
        ids = [int(chunk.id) for chunk in chunks]
        if dead or remaining:
            await self._database.run(
                _settle, self._ids, self._space, self._log, ids, dead, remaining, then=self._inserted
            )
        elif ids:
            events = sum(chunk.count for chunk in chunks)
            self._all_settled_events += events
            is_busy = asyncio.get_running_loop().time() - self._appended_at < SETTLE_SECONDS
            self._settle_later(ids, events, SETTLE_SECONDS if is_busy else 0)

    def _settle_later(self, ids: Sequence[int], events: int, seconds: float) -> None:
        self._settled += ids
        self._settled_events += events
        if self._settled and self._settle_timer is None:
            self._settle_timer = asyncio.get_running_loop().call_later(seconds, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_timer = None
        self._deleting = asyncio.ensure_future(self._delete_settled())

    async def _delete_settled(self) -> None:
        settled, events = self._take_settled()
        if not settled:
            return
        try:
            await self._database.run(_delete_alone, self._space, settled, then=partial(self._deleted, settled, events))
        except StoreError as error:
            logger.debug("delivered events cannot be deleted yet: %s", error)

    def _deleted(self, settled: list[int], events: int, _: object, error: BaseException | None) -> None:
        if error is not None:
            self._not_deleted(settled, events)
        else:
            self._all_deleted_events += events
            self._settles_alone = False

    def _not_deleted(self, settled: list[int], events: int) -> None:
        if settled:
            self._settles_alone = True
            self._settle_later(settled, events, RETRY_SECONDS)

    def _take_settled(self) -> tuple[list[int], int]:
        """What is to be deleted: ids, and the number of events."""
        taken = self._settled, self._settled_events
        self._settled, self._settled_events = [], 0
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None
        return taken

    def _inserted(self, _: object, error: BaseException | None) -> None:
        """The next claim has to look. Even a job that failed may have inserted chunks."""
        self._last_stored = max(self._last_stored, self._ids.last)

    async def depth(self) -> Depth:
        """As promised by EventStore; of the dead, those that this log counts.

        Settled chunks do not count although some are in the file. The result is exact at the moment at which the caller
        goes on: deletions count as soon as they are known, and settlements until then.
        """
        deleted: list[int] = []

        def note(_: object, error: BaseException | None) -> None:
            deleted.append(self._all_deleted_events)

        stored = await self._database.run(_depth, self._log, self._settled[:], then=note)
        waiting = stored.waiting + deleted[0] - self._all_settled_events
        return Depth(waiting, stored.dead, stored.oldest_at if waiting else None)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return await self._database.run(_dead_letters, limit)

    async def requeue(self, ids: Sequence[int | str] | None = None, max_events: int | None = None) -> int:
        """As promised by EventStore, whichever worker they are of. Two that do it at once may send some twice."""
        letters = await self._database.run(_choose_letters, ids, max_events)
        moved = 0
        for first in range(0, len(letters), LETTERS_AT_ONCE):
            page = letters[first : first + LETTERS_AT_ONCE]
            try:
                moved += await self._database.run(_requeue, self._ids, self._space, page, then=self._inserted)
            except StoreError as error:
                if not moved:
                    raise
                logger.error("requeued %d dead events, the others stay dead: %s", moved, error)
                break
        return moved

    async def trim_dead_letters(self, max_events: int) -> int:
        return await self._database.run(_trim_dead_letters, self._log, max_events)

    async def adopt(self) -> int:
        """Move what the logs of dead workers hold into this one. Returns the number of events moved.

        The two files cannot change in one transaction, so that a crash in between moves some chunks twice:
        an event may arrive upstream twice, never not at all. A log that cannot be moved does not stop the others;
        its error is raised in the end.
        """
        moved = 0
        failure: StoreError | None = None
        for path in sorted(self._directory.glob("events-*.db")):
            lock = _try_lock(path.with_suffix(".lock"))
            if lock is None:
                continue
            try:
                moved += await self._move_log(path)
            except StoreError as error:
                failure = failure or error
            finally:
                os.close(lock)
        await self._database.run(self._space.check)  # also of a worker without events: others may need its space
        if failure is not None:
            raise failure
        return moved

    async def _move_log(self, path: Path) -> int:
        moved = await self._database.run(_adopt_dead_letters, path.stem, self._log)
        source = await self._database.run(_open_source, path)
        try:
            while True:
                events = await self._database.run(_move_page, self._ids, self._space, source, then=self._inserted)
                if not events:
                    break
                moved += events
        finally:
            await self._database.run(lambda _: source.close())
        for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            name.unlink(missing_ok=True)
        return moved


class SqliteState:
    """Documents, leases, aliases and sticky decisions of all workers of this machine.

    Environments that share the directory have a namespace each. Documents need none: their names say whose they are.
    """

    def __init__(self, directory: Path, sync: str = "normal", namespace: str = "") -> None:
        self._path = directory / "state.db"
        self._namespace = namespace
        self._script = f"{STATE_PRAGMAS} {_synchronous(sync)} {STATE_TABLES}"
        self._database = _Database(DiskSpace(directory))
        self._leases: dict[str, tuple[str, int]] = {}  # owner and descriptor of each held lease

    async def open(self) -> None:
        await self._database.open(self._path, lambda connection: _run(connection, self._script))
        try:
            await self._database.run(_forget_expired, time.time())
            rows = await self._database.run(_take_over, self._namespace)
            if rows:
                logger.info("took over %s of version 0.1 from %s", rows, self._path)
        except StoreError as error:
            logger.error("%s could not be cleaned up, which is tried again at the next start: %s", self._path, error)

    async def close(self) -> None:
        await self._database.close()
        while self._leases:
            os.close(self._leases.popitem()[1][1])

    async def load_document(self, name: str) -> StoredDocument | None:
        return await self._database.run(_load_document, name)

    async def save_document(self, name: str, body: bytes, by: str = "") -> StoredDocument:
        return await self._database.run(_save_document, name, body, time.time(), by)

    async def confirm_document(self, name: str, by: str = "") -> None:
        await self._database.run(_confirm_document, name, time.time(), by)

    async def last_confirmation(self, name: str) -> Confirmation | None:
        return await self._database.run(_last_confirmation, name)

    async def wait_for_document(self, name: str, known_version: int) -> StoredDocument:
        while True:
            stored = await self._database.run(_load_document_unless, name, known_version)
            if stored is not None:
                return stored
            await asyncio.sleep(WATCH_SECONDS)

    async def acquire_lease(self, name: str, owner: str) -> bool:
        if name in self._leases:
            return self._leases[name][0] == owner
        try:
            lock = _try_lock(_lease_path(self._path.parent, self._lease(name)))
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

    async def set_alias(self, alias_id: str, user_id: str) -> None:
        row = (self._namespace, alias_id, user_id)
        await self._database.run(_execute, "INSERT OR REPLACE INTO user_aliases VALUES (?, ?, ?)", row)

    async def aliases(self, ids: Sequence[str]) -> dict[str, str]:
        return await self._database.run(_aliases, self._namespace, ids)

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, Record]:
        return await self._database.run(_load_records, self._namespace, user_id, keys, time.time())

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        whose, until = (self._namespace, user_id), time.time() + seconds
        rows = [(*whose, key, until, orjson.dumps(record)) for key, record in records.items()]
        await self._database.run(_save_records, rows)

    def _lease(self, name: str) -> str:
        return name if name.startswith(SHARED) else f"{self._namespace}:{name}"


class _Database:
    """One connection and the one thread that uses it.

    The thread is not an executor: handing a call over and its result back costs a third of what an executor's futures
    and conditions cost, and every group of events is such a call.
    """

    def __init__(self, space: DiskSpace) -> None:
        self._space = space
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def open(self, path: Path, set_up: _SetUp) -> None:
        """`set_up` sets the connection up and makes the tables."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=self._serve, args=(path, set_up, opened), name=path.stem, daemon=True)
        self._thread.start()
        try:
            await opened
        except (sqlite3.Error, OSError) as error:
            self._thread.join()
            self._thread = None
            raise StoreError(f"{path} cannot be opened: {error}") from error

    async def close(self) -> None:
        """Finish what was asked before, and close."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts, then: _Then | None = None) -> T:
        """Call `work(connection, ...)` in the thread.

        `then` is called with the result and the error when they arrive, even if the caller has been cancelled.
        """
        if self._thread is None:
            raise StoreError("the store is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((done, work, args, then))
        try:
            return await done
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"SQLite: {error}") from error

    def _serve(self, path: Path, set_up: _SetUp, opened: "asyncio.Future[None]") -> None:
        try:
            connection = _connect(path, set_up, self._space)
        except (sqlite3.Error, OSError) as error:
            _hand_over(opened, None, error)
            return
        _hand_over(opened, None, None)
        while (job := self._jobs.get()) is not None:
            done, work, args, then = job
            try:
                _hand_over(done, work(connection, *args), None, then)
            except BaseException as error:
                _hand_over(done, None, error, then)
            del job, done, work, args, then  # not to keep a group of events alive until the next one
        connection.close()


def _connect(path: Path, set_up: _SetUp, space: DiskSpace) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        _set_up_patiently(connection, set_up, space)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up_patiently(connection: sqlite3.Connection, set_up: _SetUp, space: DiskSpace) -> None:
    """Wait for another process that makes or changes the same file: SQLite's own time-out is not for this."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            set_up(connection)
            return
        except sqlite3.OperationalError as error:
            if space.drop_reserve(error):
                continue
            if time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_SECONDS)


def _run(connection: sqlite3.Connection, script: str) -> None:
    connection.executescript(script)


def _set_up_events(script: str, connection: sqlite3.Connection) -> None:
    connection.executescript(script)
    _add_identity(connection, "main", "chunks")


def _set_up_letters(connection: sqlite3.Connection) -> None:
    connection.executescript(DEAD_TABLES)
    _add_identity(connection, "letters", "dead")


def _add_identity(connection: sqlite3.Connection, schema: str, table: str) -> None:
    """Add the columns that a file of version 0.1 does not have."""
    names = {row[1] for row in connection.execute(f"PRAGMA {schema}.table_info({table})")}
    for name in IDENTITY_COLUMNS:
        if name not in names:
            connection.execute(f"ALTER TABLE {schema}.{table} ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")


def _synchronous(sync: str) -> str:
    return f"PRAGMA synchronous={SYNC_MODES[sync]};"


def _hand_over(
    done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: _Then | None = None
) -> None:
    """Tell the loop, from the thread. A loop that is closed has nobody who waits."""
    with suppress(RuntimeError):
        done.get_loop().call_soon_threadsafe(_finish, done, result, error, then)


def _finish(done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: _Then | None) -> None:
    if then is not None:
        then(result, error)
    if done.done():  # cancelled by who waited for it
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")  # not IMMEDIATE, which would lock attached files as well
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, a full disk among them, roll back by themselves
            connection.execute("ROLLBACK")
        raise


def _execute(connection: sqlite3.Connection, statement: str, parameters: Sequence[object]) -> None:
    connection.execute(statement, parameters)


# The event log


def _log_path(directory: Path, slot: int) -> Path:
    return directory / f"events-{slot}.db"


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until it is closed, or None if a living process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _lock_log(directory: Path) -> tuple[Path, int]:
    """The largest log that no living process has, because on a full disk it could not be moved; or a new one."""
    for path in sorted(directory.glob("events-*.db"), key=_size, reverse=True):
        if (lock := _try_lock(path.with_suffix(".lock"))) is not None:
            return path, lock
    slot = 0
    while (lock := _try_lock(_log_path(directory, slot).with_suffix(".lock"))) is None:
        slot += 1
    return _log_path(directory, slot), lock


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another worker has adopted it
        return 0


def _last_id(connection: sqlite3.Connection) -> int:
    last: int
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
    return last


def _checkpoint(connection: sqlite3.Connection) -> None:
    """Copy as much of the WAL as is possible without waiting for anybody."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _append(
    connection: sqlite3.Connection,
    ids: _Ids,
    space: DiskSpace,
    chunks: Sequence[NewChunk],
    size: int,
    settled: Sequence[int],
) -> int:
    """Returns the last id. Each statement is a hand-over of the interpreter's lock: one chunk needs no transaction."""
    space.claim(connection, size)
    now = time.time()
    rows = [
        (id_, now, chunk.count, chunk.query, chunk.body, *chunk.identity)
        for id_, chunk in zip(ids.take(len(chunks)), chunks, strict=True)
    ]
    if len(rows) == 1 and not settled:
        connection.execute(INSERT_CHUNK, rows[0])
    else:
        with _transaction(connection):
            _delete(connection, settled)  # first: its pages are used again at once
            connection.executemany(INSERT_CHUNK, rows)
    return ids.last


_Row = tuple[float, int, str, bytes, str, str]  # at, count, query, body, account, key


def _insert(connection: sqlite3.Connection, ids: _Ids, rows: Sequence[_Row]) -> None:
    new_ids = ids.take(len(rows))
    connection.executemany(INSERT_CHUNK, [(id_, *row) for id_, row in zip(new_ids, rows, strict=True)])


def _delete_alone(connection: sqlite3.Connection, space: DiskSpace, ids: Sequence[int]) -> None:
    try:
        with _transaction(connection):
            _delete(connection, ids)
    except sqlite3.Error as error:
        if not space.drop_reserve(error):
            raise
        with _transaction(connection):
            _delete(connection, ids)
    if space.problem is not None:
        space.check(connection)


def _delete(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    for first, last in _ranges(ids):
        connection.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, last))


def _ranges(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of successive numbers, each as its first and its last one."""
    ranges: list[tuple[int, int]] = []
    for id_ in sorted(ids):
        if ranges and id_ == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], id_
        else:
            ranges.append((id_, id_))
    return ranges


def _read_after(
    connection: sqlite3.Connection, ids: _Ids, last: int, max_events: int, needs_one: bool
) -> tuple[list[Chunk], int]:
    """The next chunks, together at most `max_events`, but at least one if it is needed.

    Returns also the last id up to which there are no others.
    """
    chunks: list[Chunk] = []
    size = 0
    query = "SELECT id, count, body, query, account_id, sdk_key FROM chunks WHERE id > ? ORDER BY id LIMIT ?"
    for id_, count, body, text, account_id, sdk_key in connection.execute(query, (last, READ_CHUNKS)):
        chunk = Chunk(id_, count, body, text, Identity(account_id, sdk_key))
        if (chunks or not needs_one) and (chunk.count > max_events or size + len(chunk.body) > READ_BYTES):
            break
        chunks.append(chunk)
        max_events -= chunk.count
        size += len(chunk.body)
    else:
        if len(chunks) < READ_CHUNKS:
            return chunks, ids.last
    return chunks, int(chunks[-1].id) if chunks else last


def _attach_dead_letters(connection: sqlite3.Connection, space: DiskSpace, path: Path) -> None:
    connection.execute("ATTACH DATABASE ? AS letters", (str(path),))
    _set_up_patiently(connection, _set_up_letters, space)


def _settle(
    connection: sqlite3.Connection,
    ids: _Ids,
    space: DiskSpace,
    log: str,
    settled: Sequence[int],
    dead: Sequence[tuple[NewChunk, str]],
    remaining: Sequence[NewChunk],
) -> None:
    """The two files cannot change in one transaction: first the letter, so that a crash loses nothing."""
    now = time.time()
    letters = [(log, now, c.count, c.query, c.body, reason, *c.identity) for c, reason in dead]
    rows = [(now, c.count, c.query, c.body, *c.identity) for c in remaining]
    if letters:
        with _transaction(connection):
            connection.executemany(INSERT_DEAD, letters)
    with _transaction(connection):
        _delete(connection, settled)
        _insert(connection, ids, rows)
    if space.problem is not None:
        space.check(connection)


def _depth(connection: sqlite3.Connection, log: str, settled: Sequence[int]) -> Depth:
    """All that is in the file; `oldest_at` leaves out what is settled."""
    (waiting,) = connection.execute("SELECT coalesce(sum(count), 0) FROM chunks").fetchone()
    query = "SELECT min(at) FROM chunks WHERE id > ? AND id < ?"
    found = [connection.execute(query, gap).fetchone()[0] for gap in _gaps(_ranges(settled))]
    return Depth(waiting, _count_dead(connection, log), min((at for at in found if at is not None), default=None))


def _gaps(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bounds, exclusive, of what is not in these ranges."""
    firsts = [0, *(last for _, last in ranges)]
    return list(zip(firsts, [*(first for first, _ in ranges), 1 << 62], strict=True))


def _count_dead(connection: sqlite3.Connection, log: str) -> int:
    count: int
    (count,) = connection.execute("SELECT coalesce(sum(count), 0) FROM letters.dead WHERE owner = ?", (log,)).fetchone()
    return count


def _dead_letters(connection: sqlite3.Connection, limit: int) -> list[DeadLetter]:
    query = "SELECT id, count, body, query, reason, at, account_id, sdk_key FROM letters.dead ORDER BY id LIMIT ?"
    rows = connection.execute(query, (limit,))
    return [
        DeadLetter(id_, count, body, text, reason, at, Identity(account_id, sdk_key))
        for id_, count, body, text, reason, at, account_id, sdk_key in rows
    ]


def _choose_letters(
    connection: sqlite3.Connection, ids: Sequence[int | str] | None, max_events: int | None
) -> list[int]:
    """The oldest of the wanted letters (None: all) that have together at most `max_events`."""
    wanted = None if ids is None else set(ids)
    chosen: list[int] = []
    for id_, count in connection.execute("SELECT id, count FROM letters.dead ORDER BY id"):
        if wanted is not None and id_ not in wanted:
            continue
        if max_events is not None:
            max_events -= count
            if max_events < 0:
                break
        chosen.append(id_)
    return chosen


def _requeue(connection: sqlite3.Connection, ids: _Ids, space: DiskSpace, letters: Sequence[int]) -> int:
    marks = ", ".join("?" * len(letters))
    columns = "at, count, query, body, account_id, sdk_key"
    query = f"SELECT {columns} FROM letters.dead WHERE id IN ({marks}) ORDER BY id"  # noqa: S608
    rows = connection.execute(query, letters).fetchall()
    space.claim(connection, sum(len(row[3]) for row in rows))
    with _transaction(connection):
        _insert(connection, ids, rows)
    with _transaction(connection):
        connection.executemany("DELETE FROM letters.dead WHERE id = ?", [(id_,) for id_ in letters])
    return sum(row[1] for row in rows)


def _trim_dead_letters(connection: sqlite3.Connection, log: str, max_events: int) -> int:
    """Delete the oldest letters of this log beyond the limit, whole ones. Returns how many events they had."""
    excess = _count_dead(connection, log) - max_events
    if excess <= 0:
        return 0
    letters: list[int] = []
    for id_, count in connection.execute("SELECT id, count FROM letters.dead WHERE owner = ? ORDER BY id", (log,)):
        if excess <= 0:
            break
        letters.append(id_)
        excess -= count
    statement = "DELETE FROM letters.dead WHERE owner = ? AND id BETWEEN ? AND ? RETURNING count"
    with _transaction(connection):  # counts what is deleted: another worker may have requeued some of it
        deleted = [connection.execute(statement, (log, *ends)).fetchall() for ends in _ranges(letters)]
    return sum(count for rows in deleted for (count,) in rows)


def _adopt_dead_letters(connection: sqlite3.Connection, former: str, log: str) -> int:
    """Count the dead letters of another log here. Returns how many events."""
    moved = _count_dead(connection, former)
    connection.execute("UPDATE letters.dead SET owner = ? WHERE owner = ?", (log, former))
    return moved


def _open_source(_: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    source = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    _set_up_events(EVENT_TABLES, source)
    return source


def _move_page(connection: sqlite3.Connection, ids: _Ids, space: DiskSpace, source: sqlite3.Connection) -> int:
    """Move the next chunks of another log into this one. Returns how many events."""
    columns = "id, at, count, query, body, account_id, sdk_key"
    rows: list[_Row] = []
    size = last = 0
    for id_, *row in source.execute(f"SELECT {columns} FROM chunks ORDER BY id LIMIT {ADOPTED_AT_ONCE}"):  # noqa: S608
        if rows and size + len(row[3]) > ADOPTED_BYTES:
            break
        rows.append(tuple(row))
        size += len(row[3])
        last = id_
    if not rows:
        return 0
    space.claim_for_move(connection, size)
    with _transaction(connection):
        _insert(connection, ids, rows)
    source.execute("DELETE FROM chunks WHERE id <= ?", (last,))
    return sum(row[1] for row in rows)


# The shared state


def _load_document(connection: sqlite3.Connection, name: str) -> StoredDocument | None:
    row = connection.execute("SELECT body, version, saved_at FROM documents WHERE name = ?", (name,)).fetchone()
    return StoredDocument(*row) if row else None


def _load_document_unless(connection: sqlite3.Connection, name: str, known_version: int) -> StoredDocument | None:
    """The stored document, if its version is another than the known one (which costs reading one small row)."""
    row = connection.execute("SELECT version FROM documents WHERE name = ?", (name,)).fetchone()
    return _load_document(connection, name) if row and row[0] != known_version else None


def _last_confirmation(connection: sqlite3.Connection, name: str) -> Confirmation | None:
    row = connection.execute(LAST_CONFIRMATION, (name,)).fetchone()
    return Confirmation(*row) if row else None


def _save_document(connection: sqlite3.Connection, name: str, body: bytes, now: float, by: str) -> StoredDocument:
    with _transaction(connection):
        (version,) = connection.execute(SAVE_DOCUMENT, (name, now, body)).fetchone()
        connection.execute(NOTE_OWNER, (name, by))
    return StoredDocument(body, version, now)


def _confirm_document(connection: sqlite3.Connection, name: str, now: float, by: str) -> None:
    with _transaction(connection):
        connection.execute("UPDATE documents SET saved_at = ? WHERE name = ?", (now, name))
        connection.execute(NOTE_OWNER, (name, by))


def _lease_path(directory: Path, name: str) -> Path:
    """Names hold paths and can be long, so that the file is named after their hash."""
    return directory / f"lease-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"


def _aliases(connection: sqlite3.Connection, namespace: str, ids: Sequence[str]) -> dict[str, str]:
    query = "SELECT user_id FROM user_aliases WHERE namespace = ? AND alias_id = ?"
    found = {id_: connection.execute(query, (namespace, id_)).fetchone() for id_ in ids}
    return {id_: row[0] for id_, row in found.items() if row}


def _load_records(
    connection: sqlite3.Connection, namespace: str, user_id: str, keys: Sequence[str], now: float
) -> dict[str, Record]:
    query = "SELECT record FROM decisions WHERE namespace = ? AND user_id = ? AND key = ? AND until > ?"
    found = {key: connection.execute(query, (namespace, user_id, key, now)).fetchone() for key in keys}
    return {key: orjson.loads(row[0]) for key, row in found.items() if row}


def _save_records(connection: sqlite3.Connection, rows: Sequence[tuple[str, str, str, float, bytes]]) -> None:
    with _transaction(connection):
        connection.executemany("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?)", rows)


def _forget_expired(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("DELETE FROM decisions WHERE until <= ?", (now,))


def _take_over(connection: sqlite3.Connection, namespace: str) -> str:
    """Give the tables of version 0.1 to this namespace, once. Returns how many rows of which, in words."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    if not set(FORMER_TABLES) & {name for (name,) in connection.execute(query)}:
        return ""
    moved = {}
    connection.execute("BEGIN IMMEDIATE")
    try:
        present = {name for (name,) in connection.execute(query)}  # another worker may have been faster
        for table in present & set(FORMER_TABLES):
            moved[table] = connection.execute(FORMER_TABLES[table], (namespace,)).rowcount
            connection.execute(f"DROP TABLE {table}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return ", ".join(f"{count} {table}" for table, count in sorted(moved.items()) if count)
