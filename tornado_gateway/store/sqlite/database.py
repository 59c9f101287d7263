"""One SQLite file: its connection, and the thread that uses it."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.space import DiskSpace

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Then = Callable[[Any, BaseException | None], None]  # result and error of a job
_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...], Then | None]
SetUp = Callable[[sqlite3.Connection], None]
BUSY_SECONDS = 10.0  # maximum time for which another process may lock a file
BUSY_PAUSE_SECONDS = 0.02
TRANSACTION_BYTES = 8192  # bytes that a transaction adds to the WAL besides its events, roughly


class Database:
    """One connection and the one thread that uses it.

    The thread is not an executor, because passing a call and its result costs a third of an executor's futures and
    conditions, and every group of events is such a call.
    """

    def __init__(self, space: DiskSpace) -> None:
        self._space = space
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def open(self, path: Path, set_up: SetUp) -> None:
        """Open the file; `set_up` prepares the connection and makes the tables."""
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
        """Finish the jobs that were queued before, and close."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts, then: Then | None = None) -> T:
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

    def _serve(self, path: Path, set_up: SetUp, opened: "asyncio.Future[None]") -> None:
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
            del job, done, work, args, then  # otherwise a group of events stays alive until the next one
        connection.close()


class Checkpoints:
    """Copies the WAL of `writer` into its file, in a thread of its own while commits continue.

    Frames committed in the meantime are few. The writer thread checkpoints them, which allows the WAL to restart.
    """

    def __init__(self, writer: Database, space: DiskSpace, every_bytes: int) -> None:
        self._writer = writer
        self._database = Database(space)
        self._every_bytes = every_bytes
        self._written_bytes = 0  # since the last checkpoint began
        self._task: asyncio.Task[None] | None = None

    async def open(self, path: Path, set_up: SetUp) -> None:
        await self._database.open(path, set_up)

    async def close(self) -> None:
        if self._task is not None:
            await self._task
        await self._database.close()

    def count(self, size: int) -> None:
        """Note that a transaction of so many bytes was committed, and begin a checkpoint if one is due."""
        self._written_bytes += size + TRANSACTION_BYTES
        if self._written_bytes >= self._every_bytes and self._task is None:
            self._task = asyncio.create_task(self._make())

    async def _make(self) -> None:
        self._written_bytes = 0
        try:
            await self._database.run(_checkpoint)
            await self._writer.run(_checkpoint)
        except StoreError as error:
            logger.error("a checkpoint of the event log failed, its WAL grows: %s", error)
        finally:
            self._task = None


def _checkpoint(connection: sqlite3.Connection) -> None:
    """Copy as much of the WAL as is possible without waiting for other connections."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _connect(path: Path, set_up: SetUp, space: DiskSpace) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        set_up_patiently(connection, set_up, space)
    except BaseException:
        connection.close()
        raise
    return connection


def set_up_patiently(connection: sqlite3.Connection, set_up: SetUp, space: DiskSpace) -> None:
    """Wait for another process that makes or changes the same file, which SQLite's own time-out does not cover."""
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


def _hand_over(
    done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: Then | None = None
) -> None:
    """Pass a result to the loop, from the thread. A closed loop has no waiting caller."""
    with suppress(RuntimeError):
        done.get_loop().call_soon_threadsafe(_finish, done, result, error, then)


def _finish(done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: Then | None) -> None:
    if then is not None:
        then(result, error)
    if done.done():  # cancelled by its caller
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")  # not IMMEDIATE, which would lock attached files as well
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, a full disk among them, roll back by themselves
            connection.execute("ROLLBACK")
        raise


def ranges(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return runs of successive numbers, each as its first and its last one."""
    found: list[tuple[int, int]] = []
    for id_ in sorted(ids):
        if found and id_ == found[-1][1] + 1:
            found[-1] = found[-1][0], id_
        else:
            found.append((id_, id_))
    return found
