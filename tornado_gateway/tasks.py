"""Background tasks: calls that are repeated at an interval, changes of files, waiting with a limit, ends of tasks."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


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
        self._task: asyncio.Task[None] | None = None

    def start(self, *, at_once: bool = False) -> None:
        """Start. The first call takes place after one interval, or in the next turn of the loop if `at_once`."""
        self.stop()
        self._task = asyncio.create_task(self._run(at_once))

    def stop(self) -> None:
        """Stop, and cancel a call that is in progress."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def end(self) -> None:
        """Stop, and wait until a call that is in progress has ended."""
        task, self._task = self._task, None
        await end_tasks(task)

    async def _run(self, at_once: bool) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        if at_once:
            await self._call()
        while True:
            interval = self._seconds * random.uniform(1 - self._jitter / 2, 1 + self._jitter / 2)
            due = due + interval if due + interval > loop.time() else loop.time() + interval
            await asyncio.sleep(due - loop.time())
            await self._call()

    async def _call(self) -> None:
        try:
            result = self._callback()
            if result is not None:
                await result
        except Exception:
            logger.exception("a periodic call failed, retrying in %g s", self._seconds)


class FileWatch:
    """Tells whether files have changed. Links are followed: certbot and Kubernetes replace them."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = _signature(paths)

    def has_changed(self) -> bool:
        """Return whether a file has changed since the last call, or since the watch was created."""
        before, self._seen = self._seen, _signature(self._paths)
        return self._seen != before


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, or the time is over. Return whether the event was set in time."""
    try:
        async with asyncio.timeout(seconds):
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


def _signature(paths: Iterable[Path]) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_signature_of(path) for path in paths)


def _signature_of(path: Path) -> tuple[int, int, int] | None:
    """Return values that change with the file; None if there is none, as in the middle of a replacement."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
