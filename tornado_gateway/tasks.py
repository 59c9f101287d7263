"""Background tasks: repeated calls, changes of files, waiting with a limit, shared results and limits, the ends."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

logger = logging.getLogger(__name__)

WOKEN = 4  # callers that continue in one turn of the loop, of all that wait for the same result: each may take 5 ms

T = TypeVar("T")


class Periodic:
    """Calls a function every `seconds`, and awaits its result if it is a coroutine function.

    The monotonic clock plans the calls, so steps of the wall clock do not change them. `jitter` is the share of an
    interval that is random. Calls do not overlap, and those that are missed are skipped. A call that raises is logged
    and does not end the others.
    """

    def __init__(self, callback: Callable[[], Awaitable[None] | None], seconds: float, *, jitter: float = 0.0) -> None:
        self._callback = callback
        self._seconds = seconds
        self._jitter = jitter
        self._due = 0.0  # by the clock of the loop
        self._task: asyncio.Task[None] | None = None

    def start(self, *, at_once: bool = False, phase: float = 0.0) -> None:
        """Start. The first call takes place after one interval, or in the next turn of the loop if `at_once`.

        `phase` is the share of the first interval that is left out. A random one spreads the work of environments that
        start together: otherwise their threads and commands would hold up requests at the same moment.
        """
        if at_once:
            self._begin(0.0, phase)
        else:
            self._begin(self._interval(phase))

    def hasten(self, seconds: float) -> None:
        """Take the next call in so many seconds, unless it is sooner, or a call is in progress."""
        if self._task is not None and self._due > asyncio.get_running_loop().time() + seconds:
            self._begin(seconds)

    def stop(self) -> None:
        """Stop, and cancel a call that is in progress."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def end(self) -> None:
        """Stop, and wait until a call that is in progress has ended."""
        task, self._task = self._task, None
        await end_tasks(task)

    def _begin(self, seconds: float, phase: float = 0.0) -> None:
        """Begin anew, with a call in so many seconds. `phase` is the share of the next interval that is left out."""
        self.stop()
        self._due = asyncio.get_running_loop().time() + seconds
        self._task = asyncio.create_task(self._run(phase))

    def _interval(self, phase: float = 0.0) -> float:
        return self._seconds * (random.uniform(1 - self._jitter / 2, 1 + self._jitter / 2) - phase)

    async def _run(self, phase: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if (pause := self._due - loop.time()) > 0:
                await asyncio.sleep(pause)
            await self._call()
            due, phase = self._due + self._interval(phase), 0.0
            self._due = due if due > loop.time() else loop.time() + self._interval()

    async def _call(self) -> None:
        try:
            result = self._callback()
            if result is not None:
                await result
        except Exception:
            logger.exception("a periodic call failed, retrying in %g s", self._seconds)


FULL_PACE = 12  # environments that may all do their regular work at its shortest interval


def pace_of(environments: int) -> int:
    """Return in how many intervals each of so many environments does its regular work once.

    So the regular work of many environments is that of a few.
    """
    return max(1, environments // FULL_PACE)


Signature = tuple[tuple[int, int, int] | None, ...]  # of files


class FileWatch:
    """Tells whether files have changed. Links are followed: certbot and Kubernetes replace them."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = signature(paths)

    def has_changed(self) -> bool:
        """Return whether a file has changed since the last call, or since the watch was created."""
        before, self._seen = self._seen, signature(self._paths)
        return self._seen != before


class TimeLimit:
    """`with TimeLimit(seconds)` raises TimeoutError like `asyncio.timeout`, with a third of its operations."""

    __slots__ = ("_earlier", "_is_over", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        self._earlier = self._task.cancelling()  # cancellations by others
        self._is_over = False
        self._timer = loop.call_later(seconds, self._end)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._earlier and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, or the time is over. Return whether the event was set in time."""
    try:
        with TimeLimit(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def end_tasks(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel the tasks and wait until they have ended. None stands for a task that was not started."""
    started = [task for task in tasks if task is not None]
    for task in started:
        task.cancel()
    if started:
        await asyncio.wait(started)


def signature(paths: Iterable[Path]) -> Signature:
    """Return values that change with the files."""
    return tuple(_signature_of(path) for path in paths)


def _signature_of(path: Path) -> tuple[int, int, int] | None:
    """Return values that change with the file; None if there is none, as in the middle of a replacement."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: no path
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def few_per_turn(steps: deque[Callable[[], object]], most: int = WOKEN) -> None:
    """Call the steps, the oldest first, at most `most` in each turn of the loop, so that other requests get theirs."""
    for _ in range(min(most, len(steps))):
        steps.popleft()()
    if steps:
        asyncio.get_running_loop().call_soon(few_per_turn, steps, most)


Steps = Generator[None, None, T]  # work in steps, which returns a result


def at_once(steps: Steps[T]) -> T:
    """Take all steps. Return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)


# Between two steps of regular work whose result is not awaited by a request. Without it, requests that arrive
# meanwhile wait several times: for a step before their decision, and for another one before each reply of the store.
PAUSE_SECONDS = 0.003


async def in_turns(steps: Steps[T], rest_seconds: float = 0.0) -> T:
    """Take each step in a turn of the loop of its own. Return the result.

    For the first `rest_seconds` there is a pause after each step. A busy loop makes pauses longer.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + rest_seconds
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)
        await asyncio.sleep(PAUSE_SECONDS if loop.time() < until else 0)


class SharedResult(Generic[T]):
    """The result of one task, for any number of callers. Their cancellation does not end it.

    A flood may wait for the same result, so only few of its callers continue in one turn of the loop.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.task = asyncio.create_task(work)
        self.task.add_done_callback(self._finish)
        self._waiting: deque[Callable[[], object]] = deque()

    async def outcome(self) -> T:
        if not self.task.done():
            turn = asyncio.Event()
            self._waiting.append(turn.set)
            await turn.wait()
        return self.task.result()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # otherwise one that no caller waits for is logged
        few_per_turn(self._waiting)


class SharedLimit:
    """At most `total` uses at once, for users that must not stop each other: each of them has a `Share`.

    A use that has ended makes room for the waiting user with the fewest uses. A quarter is kept for users without any.
    Users whose last use failed have at most half together, because those that wait for time-outs would take all.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._users = 0
        self._busy: set[Share] = set()
        self._waiting: list[tuple[Share, asyncio.Future[None]]] = []

    def share(self) -> "Share":
        """Return the share of one more user. It ends with `Share.close`."""
        self._users += 1
        return Share(self)

    def leave(self) -> None:
        self._users -= 1

    async def take(self, share: "Share") -> None:
        if self._has_room(share):
            self._grant(share)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((share, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(share)
            self._waiting = [waiting for waiting in self._waiting if waiting[1] is not granted]
            raise

    def give_back(self, share: "Share") -> None:
        self._free += 1
        share.uses -= 1
        if not share.uses:
            self._busy.discard(share)
        self._grant_waiting()

    def _grant_waiting(self) -> None:
        for share, granted in sorted(self._waiting, key=lambda waiting: waiting[0].uses):
            if not granted.done() and self._has_room(share):
                self._grant(share)
                granted.set_result(None)
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]

    def _has_room(self, share: "Share") -> bool:
        if self._users == 1 or self._free <= 0:
            return self._free > 0
        if share.is_failing and sum([other.uses for other in self._busy if other.is_failing]) >= self._total // 2:
            return False
        return not share.uses or self._free > self._total // 4

    def _grant(self, share: "Share") -> None:
        self._free -= 1
        share.uses += 1
        self._busy.add(share)


class Share:
    """One user's part of a SharedLimit: `async with share` is one use, which has failed if it raises an error."""

    def __init__(self, limit: SharedLimit) -> None:
        self.uses = 0
        self.is_failing = False
        self._limit = limit
        self._is_closed = False

    async def __aenter__(self) -> None:
        await self._limit.take(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, asyncio.CancelledError):
            self.is_failing = error is not None
        self._limit.give_back(self)

    def close(self) -> None:
        """End the share, because its user is gone."""
        if not self._is_closed:
            self._is_closed = True
            self._limit.leave()
