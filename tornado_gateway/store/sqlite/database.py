"""The thread that uses the connection to the files of a store, and its jobs that concurrent calls share."""

import asyncio
import contextvars
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, TypeVarTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.repair.guard import Follower, Guard
from tornado_gateway.tasks import few_per_turn

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Ts = TypeVarTuple("Ts")
Then = Callable[[Any, BaseException | None], None]  # result and error of a job
_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...], Then | None]
TRANSACTION_BYTES = 8192  # bytes that a transaction adds to the WAL besides its events, roughly
COPY_BYTES = 4 * 1024 * 1024  # the sync of more of them at once would take the core from requests for milliseconds


class JobResult(asyncio.Future[T]):
    """The result of a job. The task that awaits it continues as soon as it arrives, not in the next turn of the loop.

    A turn is long while the loop is busy, and the next group of events begins when this task continues. Only a callback
    of the loop may set the result, because tasks do not run inside one another.
    """

    _waiting: tuple[Callable[[Any], object], contextvars.Context | None] | None = None

    def add_done_callback(
        self, callback: Callable[[Any], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        """Call `callback`, the step of the awaiting task, at once when the result arrives."""
        self._waiting = callback, context

    def set_result(self, result: T) -> None:
        super().set_result(result)
        self._continue()

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        self._continue()

    def cancel(self, msg: object = None) -> bool:
        """Cancel. The awaiting task continues in the next turn of the loop: another one may have called this."""
        if not super().cancel(msg):
            return False
        if self._waiting is not None:
            callback, context = self._waiting
            super().add_done_callback(callback, context=context)
        return True

    def _continue(self) -> None:
        if self._waiting is not None:
            callback, context = self._waiting
            self._waiting = None
            context.run(callback, self) if context is not None else callback(self)


class Database:
    """One connection and the one thread that uses it.

    The thread is not an executor, because passing a call and its result costs a third of an executor's futures and
    conditions, and every group of events is such a call.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def open(self, guard: Guard | Follower) -> None:
        """Open the files of the guard in the thread."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        name = Path(guard.name).stem
        serve = contextvars.copy_context().run  # so that log lines begin with the name of the environment
        self._thread = threading.Thread(target=serve, args=(self._serve, guard, opened), name=name, daemon=True)
        self._thread.start()
        try:
            await opened
        except StoreError:
            self._thread.join()
            self._thread = None
            raise

    async def close(self) -> None:
        """Finish the jobs that were queued before, and close."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts, then: Then | None = None) -> T:
        """Call `work(connection, ...)` in the thread. Raise StoreError, which names the file.

        `then` is called with the result and the error when they arrive, even if the caller has been cancelled.
        """
        if self._thread is None:
            raise StoreError("the store is closed")
        done: JobResult[T] = JobResult(loop=asyncio.get_running_loop())
        self._jobs.put((done, work, args, then))
        return await done

    def post(self, work: Callable[[sqlite3.Connection, *Ts], object], *args: *Ts, then: Then) -> None:
        """Call `work(connection, ...)` in the thread. Its result goes to `then` alone, in fewer turns of the loop."""
        if self._thread is None:
            raise StoreError("the store is closed")
        unused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        unused.cancel()
        self._jobs.put((unused, work, args, then))

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


class Grouped(Generic[Item, Result]):
    """Passes the items of concurrent calls to `work` together, one group after the other.

    A group ends with the item that reaches the weight `most`. `work` is called in the thread, and returns one result
    for each item. If it fails, so does each call of the group. At most one job waits for the thread. Under load each
    statement waits milliseconds for the interpreter's lock, so `work` has few of them, whatever the number of items.
    Few callers continue in one turn of the loop.
    """

    def __init__(
        self,
        database: Database,
        work: Callable[[sqlite3.Connection, list[Item]], Sequence[Result]],
        most: int,
        weigh: Callable[[Item], int] = lambda item: 1,
    ) -> None:
        self._database = database
        self._work = work
        self._most = most
        self._weigh = weigh
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._is_busy = False

    async def __call__(self, item: Item) -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        self._start()
        return await done

    def _start(self) -> None:
        while self._waiting and not self._is_busy:
            group = self._next_group()
            futures = [done for _, done in group]
            try:
                self._database.post(self._work, [item for item, _ in group], then=partial(self._finish, futures))
                self._is_busy = True
            except StoreError as error:
                _pass_on(futures, None, error)

    def _next_group(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        group, weight = [], 0
        while self._waiting and weight < self._most:
            group.append(self._waiting.popleft())
            weight += self._weigh(group[-1][0])
        return group

    def _finish(self, futures: Sequence["asyncio.Future[Result]"], results: Any, error: BaseException | None) -> None:
        self._is_busy = False
        self._start()
        _pass_on(futures, results, error)


def _pass_on(futures: Sequence["asyncio.Future[Any]"], results: Any, error: BaseException | None) -> None:
    if error is None:
        steps = [partial(_set_result, done, result) for done, result in zip(futures, results, strict=True)]
    else:
        steps = [partial(_set_error, done, error) for done in futures]
    few_per_turn(deque(steps))


def _set_result(done: "asyncio.Future[Any]", result: object) -> None:
    if not done.done():  # by the cancellation of its caller
        done.set_result(result)


def _set_error(done: "asyncio.Future[Any]", error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


class Checkpoints:
    """Copies the WAL of `writer` into its file after every COPY_BYTES, in a thread of its own while commits continue.

    What is committed in the meantime is little, unless the disk is slow. When the WAL has `wal_bytes`, the writer
    thread copies it as well, and the WAL restarts. Commits wait for that while the disk syncs. The WAL of the dead
    letters rarely has anything new, so the writer thread copies it each time.
    """

    def __init__(self, writer: Database, wal_bytes: int) -> None:
        self._writer = writer
        self._database = Database()
        self._most_bytes = wal_bytes
        self._wal_bytes = 0  # since the last restart
        self._new_bytes = 0  # of these, since the last copy began
        self._task: asyncio.Task[None] | None = None
        self._follower: Follower | None = None  # to be opened with the first checkpoint: most logs need none
        self._failure = ""

    def use(self, follower: Follower, most_bytes: int, wal_bytes: int) -> None:
        """Make checkpoints with this connection from now on. The WAL is to have at most `most_bytes`, if that is less.

        It has `wal_bytes` if the process that used it was killed.
        """
        self._follower = follower
        self._most_bytes = min(self._most_bytes, most_bytes)
        self._wal_bytes = wal_bytes

    async def close(self) -> None:
        if self._task is not None:
            await self._task
        await self._database.close()

    def count(self, size: int) -> None:
        """Note that a transaction of so many bytes was committed, and begin a checkpoint if one is due."""
        self._wal_bytes += size + TRANSACTION_BYTES
        self._new_bytes += size + TRANSACTION_BYTES
        if self._new_bytes >= min(COPY_BYTES, self._most_bytes) and self._task is None:
            self._task = asyncio.create_task(self._make())

    async def _make(self) -> None:
        self._new_bytes = 0
        try:
            failures = [await _failure_of(step()) for step in (self._copy, self._restart)]
            failure = failures[0] or failures[1]
            if failure not in ("", self._failure):
                logger.error("a checkpoint of the event log failed, its WAL grows: %s", failure)
            self._failure = failure
        finally:
            self._task = None

    async def _copy(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            await self._database.open(follower)
        await self._writer.run(_copy_wal, "letters")
        await self._database.run(_copy_wal, "main")

    async def _restart(self) -> None:
        if self._wal_bytes >= self._most_bytes and await self._writer.run(_copy_wal, "main"):
            self._wal_bytes = self._new_bytes = 0


async def _failure_of(step: Awaitable[None]) -> str:
    try:
        await step
    except StoreError as error:
        return str(error)
    return ""


def _copy_wal(connection: sqlite3.Connection, schema: str) -> bool:
    """Copy as much of a WAL as is possible without waiting for other connections. Return whether that was all."""
    is_busy, frames, copied = connection.execute(f"PRAGMA {schema}.wal_checkpoint(PASSIVE)").fetchone()
    return not is_busy and bool(frames == copied)


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
