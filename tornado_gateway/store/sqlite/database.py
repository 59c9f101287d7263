"""The thread that uses the connection to the files of a store."""

import asyncio
import contextvars
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.repair.guard import Follower, Guard

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Then = Callable[[Any, BaseException | None], None]  # result and error of a job
_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...], Then | None]
TRANSACTION_BYTES = 8192  # bytes that a transaction adds to the WAL besides its events, roughly


class Database:
    """One connection and the one thread that uses it.

    The thread is not an executor, because passing a call and its result costs a third of an executor's futures and
    conditions, and every group of events is such a call.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    async def open(self, guard: Guard | Follower) -> None:
        """Open the files of the guard in the thread."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        name = Path(guard.name).stem
        serve = contextvars.copy_context().run  # so that log lines begin with the name of the environment
        self._worker = threading.Thread(target=serve, args=(self._serve, guard, opened), name=name, daemon=True)
        self._worker.start()
        try:
            await opened
        except StoreError:
            self._worker.join()
            self._worker = None
            raise

    async def close(self) -> None:
        """Finish the jobs that were queued before, and close."""
        if self._worker is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._worker.join)
            self._worker = None

    async def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts, then: Then | None = None) -> T:
        """Call `work(connection, ...)` in the thread. Raise StoreError, which names the file.

        `then` is called with the result and the error when they arrive, even if the caller has been cancelled.
        """
        if self._worker is None:
            raise StoreError("the store is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((done, work, args, then))
        return await done

    def _serve(self, guard: Guard | Follower, opened: "asyncio.Future[None]") -> None:
        try:
            guard.connect()
        except Exception as error:
            _hand_over(opened, None, _named(guard, error))
            return
        _hand_over(opened, None, None)
        reported = ""
        while True:
            try:
                job = self._jobs.get(timeout=guard.check_seconds)
            except Empty:
                reported = _check(guard, reported)
                continue
            if job is None:
                break
            done, work, args, then = job
            try:
                guard.check()
                _hand_over(done, guard.run(work, *args), None, then)
            except BaseException as error:
                _hand_over(done, None, error, then)
            del job, done, work, args, then  # otherwise a group of events stays alive until the next one
        guard.close()


def _named(guard: Guard | Follower, error: Exception) -> StoreError:
    return error if isinstance(error, StoreError) else StoreError(f"{guard.name} cannot be opened: {error}")


def _check(guard: Guard | Follower, reported: str) -> str:
    """Check the files while there are no jobs. Log a failure once; return its message."""
    try:
        guard.check(at_once=True)
        return ""
    except StoreError as error:
        if str(error) != reported:
            logger.error("%s", error)
        return str(error)


class Checkpoints:
    """Copies the WAL of `writer` into its file, in a thread of its own while commits continue.

    Frames committed in the meantime are few. The writer thread checkpoints them, which allows the WAL to restart.
    """

    def __init__(self, writer: Database, every_bytes: int) -> None:
        self._writer = writer
        self._database = Database()
        self._every_bytes = every_bytes
        self._written_bytes = 0  # since the last checkpoint began
        self._task: asyncio.Task[None] | None = None

    async def open(self, follower: Follower) -> None:
        await self._database.open(follower)

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


def _hand_over(
    done: "asyncio.Future[Any]", result: object, error: BaseException | None, then: Then | None = None
) -> None:
    """Pass a result to the loop, from the thread. A closed loop has no waiting caller."""
    try:  # `suppress` would be three calls more for each commit
        done.get_loop().call_soon_threadsafe(_finish, done, result, error, then)
    except RuntimeError:
        pass


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
    ordered = sorted(ids)
    breaks = [(before, id_) for before, id_ in pairwise(ordered) if id_ != before + 1]
    firsts, lasts = ordered[:1] + [id_ for _, id_ in breaks], [before for before, _ in breaks] + ordered[-1:]
    return list(zip(firsts, lasts, strict=True))
