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
import itertools
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

import orjson

from ..errors import StoreError
from . import Chunk, Confirmation, DeadLetter, Depth, NewChunk, Record, Store, StoredDocument

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Waiting = Sequence["asyncio.Future[None]"]
_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...], _Waiting]

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
SETTLE_SECONDS = 0.02  # what is delivered waits so long for an append that deletes it, too, if the last was not before
RETRY_SECONDS = 1.0  # pause after delivered events could not be deleted
ADOPTED_AT_ONCE = 256  # chunks that move out of an abandoned log in one transaction
WATCH_SECONDS = 1.0
BUSY_SECONDS = 10.0  # what another process may keep a file to itself
BUSY_PAUSE_SECONDS = 0.02

EVENT_TABLES = """
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL
);
"""
# `owner` is the log that counts a letter; any worker may show it and queue it again.
DEAD_TABLES = """
PRAGMA letters.journal_mode=WAL;
CREATE TABLE IF NOT EXISTS letters.dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL,
    at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL
);
"""
STATE_TABLES = """
CREATE TABLE IF NOT EXISTS documents (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, saved_at REAL NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS confirmations (name TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS aliases (alias_id TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    user_id TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, record BLOB NOT NULL, PRIMARY KEY (user_id, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_until ON records (until);
"""
INSERT_CHUNK = "INSERT INTO chunks (id, at, count, query, body) VALUES (?, ?, ?, ?, ?)"
INSERT_DEAD = "INSERT INTO letters.dead (owner, at, count, query, body, reason) VALUES (?, ?, ?, ?, ?, ?)"
SAVE_DOCUMENT = """
INSERT INTO documents (name, version, saved_at, body) VALUES (?1, 1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET version = version + 1, saved_at = ?2, body = ?3 RETURNING version
"""
NOTE_OWNER = "INSERT OR REPLACE INTO confirmations (name, owner) VALUES (?, ?)"
LAST_CONFIRMATION = """
SELECT saved_at, coalesce(owner, '') FROM documents LEFT JOIN confirmations USING (name) WHERE name = ?
"""


def open_sqlite(directory: Path, sync: str = "normal") -> Store:
    """The embedded store in `directory`, which is made if need be. `sync` is a key of SYNC_MODES."""
    return Store(SqliteEvents(directory, sync), SqliteState(directory, sync))


class SqliteEvents:
    """The event log of this worker.

    What has been appended stays in memory, too, until it is claimed, so that on the way upstream nothing is read back
    as long as deliveries keep up. What is settled is deleted by the next transaction that appends.

    Checkpoints copy the WAL into the file in a thread of their own while commits go on. What was committed meanwhile is
    little; the commits' own thread copies it, which lets the WAL begin anew.
    """

    def __init__(self, directory: Path, sync: str = "normal") -> None:
        self.failure: str | None = None
        self._directory = directory
        self._log = ""  # its name, once it is open
        self._script = f"{EVENT_PRAGMAS} {_synchronous(sync)} {EVENT_TABLES}"
        self._database = _Database()
        self._checkpoints = _Database()
        self._checkpointing: asyncio.Task[None] | None = None
        self._wal_bytes = 0  # since the last checkpoint began
        self._lock: int | None = None
        self._ids = itertools.count(1)  # of the next chunks; used in the thread alone
        self._last_stored = 0
        self._released: list[Chunk] = []
        self._fresh: deque[Chunk] = deque()
        self._fresh_bytes = 0
        self._last_known = 0  # each chunk up to this one is in `_fresh`, or has been claimed
        self._settled: list[int] = []  # to be deleted
        self._settling: list[asyncio.Future[None]] = []  # who waits for that
        self._settle_timer: asyncio.TimerHandle | None = None
        self._appended_at = -SETTLE_SECONDS
        self._deleting: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()

    async def open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            slot, self._lock = _lock_first_free_log(self._directory)
        except OSError as error:
            raise StoreError(f"the event log in {self._directory} cannot be opened: {error}") from error
        path = _log_path(self._directory, slot)
        self._log = path.stem
        await self._database.open(path, self._script)
        await self._database.run(_attach_dead_letters, self._directory / "dead.db")
        await self._checkpoints.open(path, self._script)
        self._last_stored = await self._database.run(_last_id)
        self._ids = itertools.count(self._last_stored + 1)
        self._last_known, self._released, self._fresh_bytes = 0, [], 0
        self._fresh.clear()
        await self.adopt()

    async def close(self) -> None:
        if self._settled:
            await self._delete_settled()
        self._take_settled()  # what could not be deleted is sent once more after the next start
        if self._checkpointing is not None:
            await self._checkpointing
        await self._checkpoints.close()
        await self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def append(self, chunks: Sequence[NewChunk]) -> None:
        settled, settling = self._take_settled()
        try:
            last = await self._database.run(_append, self._ids, chunks, settled, then=settling)
        except StoreError:
            self._settle_later(settled, settling, RETRY_SECONDS)
            raise
        self._appended_at = asyncio.get_running_loop().time()
        self._last_stored = max(self._last_stored, last)
        size = sum(len(chunk.body) for chunk in chunks)
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
            self._fresh.extend(Chunk(before + n, c.count, c.body, c.query) for n, c in enumerate(chunks, 1))
            self._fresh_bytes += size
            self._last_known = before + len(chunks)

    async def claim(self, max_events: int) -> list[Chunk]:
        claimed: list[Chunk] = []
        while chunk := self._first_at_hand():
            if claimed and chunk.count > max_events:
                return claimed
            claimed.append(self._take_first())
            max_events -= chunk.count
        if self._last_stored > self._last_known and (max_events > 0 or not claimed):
            claimed += await self._read(max_events, needs_one=not claimed)
        return claimed

    async def _read(self, max_events: int, *, needs_one: bool) -> list[Chunk]:
        async with self._reading:
            stored = await self._database.run(_read_after, self._last_known, max_events, needs_one)
            new = [chunk for chunk in stored if int(chunk.id) > self._last_known]  # else `_keep` has them by now
            if new:
                self._last_known = int(new[-1].id)
            return new

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
        """As promised by EventStore. What is only to be deleted waits for the next append, if that comes soon."""
        ids = [int(chunk.id) for chunk in chunks]
        if dead or remaining:
            await self._store_more(_settle, self._log, ids, dead, remaining)
        elif ids:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            is_busy = loop.time() - self._appended_at < SETTLE_SECONDS
            self._settle_later(ids, [done], SETTLE_SECONDS if is_busy else 0)
            await done

    def _settle_later(self, ids: Sequence[int], waiting: Sequence["asyncio.Future[None]"], seconds: float) -> None:
        self._settled += ids
        self._settling += waiting
        if self._settled and self._settle_timer is None:
            self._settle_timer = asyncio.get_running_loop().call_later(seconds, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_timer = None
        self._deleting = asyncio.ensure_future(self._delete_settled())

    async def _delete_settled(self) -> None:
        settled, settling = self._take_settled()
        try:
            await self._database.run(_delete, settled, then=settling)
        except StoreError as error:
            logger.debug("delivered events cannot be deleted yet: %s", error)
            self._settle_later(settled, settling, RETRY_SECONDS)

    def _take_settled(self) -> tuple[list[int], list["asyncio.Future[None]"]]:
        settled, settling = self._settled, self._settling
        self._settled, self._settling = [], []
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None
        return settled, settling

    async def _store_more(self, work: Callable[..., T], *args: object) -> T:
        """Run what inserts chunks on its own. Even if it fails, it may have inserted some."""
        try:
            return await self._database.run(work, self._ids, *args)
        finally:
            self._last_stored = max(self._last_stored, self._last_known + 1)  # the next claim has to look

    async def depth(self) -> Depth:
        """As promised by EventStore; of the dead, those that this log counts."""
        return await self._database.run(_depth, self._log)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return await self._database.run(_dead_letters, limit)

    async def requeue(self, ids: Sequence[int | str] | None = None) -> int:
        """As promised by EventStore, whichever worker they are of. Two that do it at once may send some twice."""
        return await self._store_more(_requeue, ids)

    async def adopt(self) -> int:
        """Move what the logs of dead workers hold into this one. Returns the number of events moved.

        The two files cannot change in one transaction, so that a crash in between moves some chunks twice:
        an event may arrive upstream twice, never not at all.
        """
        moved = 0
        for path in sorted(self._directory.glob("events-*.db")):
            lock = _try_lock(path.with_suffix(".lock"))
            if lock is None:
                continue
            try:
                moved += await self._store_more(_move_log, path, self._log)
            finally:
                os.close(lock)
        return moved


class SqliteState:
    """Documents, leases, aliases and sticky decisions of all workers of this machine."""

    def __init__(self, directory: Path, sync: str = "normal") -> None:
        self._path = directory / "state.db"
        self._script = f"{STATE_PRAGMAS} {_synchronous(sync)} {STATE_TABLES}"
        self._database = _Database()
        self._leases: dict[str, tuple[str, int]] = {}  # owner and descriptor of each held lease

    async def open(self) -> None:
        await self._database.open(self._path, self._script)
        await self._database.run(_forget_expired, time.time())

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
            lock = _try_lock(_lease_path(self._path.parent, name))
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
        await self._database.run(_execute, "INSERT OR REPLACE INTO aliases VALUES (?, ?)", (alias_id, user_id))

    async def aliases(self, ids: Sequence[str]) -> dict[str, str]:
        return await self._database.run(_aliases, ids)

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, Record]:
        return await self._database.run(_load_records, user_id, keys, time.time())

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        rows = [(user_id, key, time.time() + seconds, orjson.dumps(record)) for key, record in records.items()]
        await self._database.run(_save_records, rows)


class _Database:
    """One connection and the one thread that uses it.

    The thread is not an executor: handing a call over and its result back costs a third of what an executor's futures
    and conditions cost, and every group of events is such a call.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def open(self, path: Path, script: str) -> None:
        """`script` sets the connection up and makes the tables."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=self._serve, args=(path, script, opened), name=path.stem, daemon=True)
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

    async def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts, then: _Waiting = ()) -> T:
        """Call `work(connection, ...)` in the thread. If that does not fail, the futures in `then` are done, too."""
        if self._thread is None:
            raise StoreError("the store is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((done, work, args, then))
        try:
            return await done
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"SQLite: {error}") from error

    def _serve(self, path: Path, script: str, opened: "asyncio.Future[None]") -> None:
        try:
            connection = _connect(path, script)
        except (sqlite3.Error, OSError) as error:
            _hand_over(opened, None, error)
            return
        _hand_over(opened, None, None)
        while (job := self._jobs.get()) is not None:
            done, work, args, then = job
            try:
                _hand_over(done, work(connection, *args), None, then)
            except BaseException as error:
                _hand_over(done, None, error)
            del job, done, work, args, then  # not to keep a group of events alive until the next one
        connection.close()


def _connect(path: Path, script: str) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        _run_script(connection, script)
    except BaseException:
        connection.close()
        raise
    return connection


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Wait for another process that makes the same file: SQLite's own time-out is not for this."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.executescript(script)
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_SECONDS)


def _synchronous(sync: str) -> str:
    return f"PRAGMA synchronous={SYNC_MODES[sync]};"


def _hand_over(done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: _Waiting = ()) -> None:
    """Tell the loop, from the thread. A loop that is closed has nobody who waits."""
    with suppress(RuntimeError):
        done.get_loop().call_soon_threadsafe(_finish, done, result, error, then)


def _finish(done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: _Waiting) -> None:
    for other in then:
        if not other.done():
            other.set_result(None)
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


def _lock_first_free_log(directory: Path) -> tuple[int, int]:
    slot = 0
    while (lock := _try_lock(_log_path(directory, slot).with_suffix(".lock"))) is None:
        slot += 1
    return slot, lock


def _last_id(connection: sqlite3.Connection) -> int:
    last: int
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
    return last


def _checkpoint(connection: sqlite3.Connection) -> None:
    """Copy as much of the WAL as is possible without waiting for anybody."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _append(
    connection: sqlite3.Connection, ids: Iterator[int], chunks: Sequence[NewChunk], settled: Sequence[int]
) -> int:
    """Returns the last id. Each statement is a hand-over of the interpreter's lock: one chunk needs no transaction."""
    now = time.time()
    rows = [(next(ids), now, chunk.count, chunk.query, chunk.body) for chunk in chunks]
    if len(rows) == 1 and not settled:
        connection.execute(INSERT_CHUNK, rows[0])
    else:
        with _transaction(connection):
            _delete(connection, settled)  # first: its pages are used again at once
            connection.executemany(INSERT_CHUNK, rows)
    return rows[-1][0]


def _insert(connection: sqlite3.Connection, ids: Iterator[int], rows: Iterable[tuple[float, int, str, bytes]]) -> None:
    connection.executemany(INSERT_CHUNK, [(next(ids), *row) for row in rows])


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


def _read_after(connection: sqlite3.Connection, last: int, max_events: int, needs_one: bool) -> list[Chunk]:
    """The next chunks, together at most `max_events`, but at least one if it is needed."""
    chunks: list[Chunk] = []
    query = "SELECT id, count, body, query FROM chunks WHERE id > ? ORDER BY id LIMIT ?"
    for row in connection.execute(query, (last, READ_CHUNKS)):
        chunk = Chunk(*row)
        if chunk.count > max_events and (chunks or not needs_one):
            break
        chunks.append(chunk)
        max_events -= chunk.count
    return chunks


def _attach_dead_letters(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("ATTACH DATABASE ? AS letters", (str(path),))
    _run_script(connection, DEAD_TABLES)


def _settle(
    connection: sqlite3.Connection,
    ids: Iterator[int],
    log: str,
    settled: Sequence[int],
    dead: Sequence[tuple[NewChunk, str]],
    remaining: Sequence[NewChunk],
) -> None:
    """The two files cannot change in one transaction: first the letter, so that a crash loses nothing."""
    now = time.time()
    if dead:
        with _transaction(connection):
            connection.executemany(INSERT_DEAD, [(log, now, c.count, c.query, c.body, reason) for c, reason in dead])
    with _transaction(connection):
        _delete(connection, settled)
        _insert(connection, ids, [(now, c.count, c.query, c.body) for c in remaining])


def _depth(connection: sqlite3.Connection, log: str) -> Depth:
    waiting, oldest = connection.execute("SELECT coalesce(sum(count), 0), min(at) FROM chunks").fetchone()
    return Depth(waiting, _count_dead(connection, log), oldest)


def _count_dead(connection: sqlite3.Connection, log: str) -> int:
    count: int
    (count,) = connection.execute("SELECT coalesce(sum(count), 0) FROM letters.dead WHERE owner = ?", (log,)).fetchone()
    return count


def _dead_letters(connection: sqlite3.Connection, limit: int) -> list[DeadLetter]:
    query = "SELECT id, count, body, query, reason, at FROM letters.dead ORDER BY id LIMIT ?"
    return [DeadLetter(*row) for row in connection.execute(query, (limit,))]


def _requeue(connection: sqlite3.Connection, ids: Iterator[int], letters: Sequence[int | str] | None) -> int:
    query = "SELECT id, at, count, query, body FROM letters.dead ORDER BY id"
    wanted = None if letters is None else set(letters)
    rows = [row for row in connection.execute(query) if wanted is None or row[0] in wanted]
    with _transaction(connection):
        _insert(connection, ids, [row[1:] for row in rows])
    with _transaction(connection):
        connection.executemany("DELETE FROM letters.dead WHERE id = ?", [row[:1] for row in rows])
    return sum(row[2] for row in rows)


def _move_log(connection: sqlite3.Connection, ids: Iterator[int], path: Path, log: str) -> int:
    """Move what waits in an abandoned log into this one, and count its dead letters here. Returns how many events."""
    moved = _count_dead(connection, path.stem)
    connection.execute("UPDATE letters.dead SET owner = ? WHERE owner = ?", (log, path.stem))
    source = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        source.executescript(EVENT_TABLES)
        select = f"SELECT id, at, count, query, body FROM chunks ORDER BY id LIMIT {ADOPTED_AT_ONCE}"  # noqa: S608
        while rows := source.execute(select).fetchall():
            with _transaction(connection):
                _insert(connection, ids, [row[1:] for row in rows])
            source.execute("DELETE FROM chunks WHERE id <= ?", (rows[-1][0],))
            moved += sum(row[2] for row in rows)
    finally:
        source.close()
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)
    return moved


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


def _aliases(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, str]:
    query = "SELECT user_id FROM aliases WHERE alias_id = ?"
    found = {id_: connection.execute(query, (id_,)).fetchone() for id_ in ids}
    return {id_: row[0] for id_, row in found.items() if row}


def _load_records(connection: sqlite3.Connection, user_id: str, keys: Sequence[str], now: float) -> dict[str, Record]:
    query = "SELECT record FROM records WHERE user_id = ? AND key = ? AND until > ?"
    found = {key: connection.execute(query, (user_id, key, now)).fetchone() for key in keys}
    return {key: orjson.loads(row[0]) for key, row in found.items() if row}


def _save_records(connection: sqlite3.Connection, rows: Sequence[tuple[str, str, float, bytes]]) -> None:
    with _transaction(connection):
        connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", rows)


def _forget_expired(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("DELETE FROM records WHERE until <= ?", (now,))
