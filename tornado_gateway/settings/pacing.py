"""Pacing of long computations beside the loop, so that requests do not wait for a settings document.

A thread of Python blocks the loop while it holds the interpreter's lock: for a switch interval (5 ms) while it runs
Python code, and until it returns while it is in a function of C, such as a parser or the deallocation of a big object.
"""

import asyncio
import time
import weakref
from typing import Any

from tornado_gateway import core
from tornado_gateway.core import YieldPoint
from tornado_gateway.core.validation import emptied

# Periods of a thread that computes. A loop at half of its maximal rate needs this much rest when the machine is slow
# for a while: with half of the rest, requests queued up during a refresh.
WORK_SECONDS, REST_SECONDS = 0.0005, 0.003
URGENT_REST_SECONDS = 0.0005  # for a pinned version: requests wait a little, and all use it within a second
PIECE_BYTES = 32 * 1024  # of JSON between two yield points: 0.1 to 0.3 ms of work
PARTS_AT_ONCE = 20  # parts of settings, each of some dozen objects: 0.1 ms of work
PARTS_SECONDS = 0.002


def throttled(rest_seconds: float = REST_SECONDS) -> YieldPoint:
    """Return a yield point for a thread that computes: it leaves the interpreter to the loop for most of the time.

    The loop takes the interpreter's lock for each of its callbacks. Without pauses of the thread it would get the lock
    once in a switch interval, which is once for each request.
    """
    worked_since = time.monotonic()

    def pause() -> None:
        nonlocal worked_since
        if time.monotonic() - worked_since > WORK_SECONDS:
            time.sleep(rest_seconds)
            worked_since = time.monotonic()

    return pause


# --- Freeing memory ---


def empty_gradually(document: Any, yield_point: YieldPoint) -> None:
    """Empty the arrays of a parsed document without other users: freeing all at once would take too long."""
    for items in document.values() if isinstance(document, dict) else ():
        for _ in emptied(items, 1) if isinstance(items, list) else ():
            yield_point()


async def release_gradually(
    owner: "weakref.ReferenceType[object]", parts: list[object], pause_seconds: float = PARTS_SECONDS
) -> None:
    """Keep the parts until their owner, which may still be in use, is freed. Then free a few at a time."""
    while owner() is not None:
        await asyncio.sleep(pause_seconds)
    while parts:
        del parts[-PARTS_AT_ONCE:]
        await asyncio.sleep(pause_seconds)


class ReplacedSettings:
    """The settings that were replaced and are not freed yet."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def release(self, settings: core.Settings) -> None:
        """Free settings gradually once no request uses them: freeing all at once would block all requests."""
        task = asyncio.create_task(release_gradually(weakref.ref(settings.source.lifetime), settings.parts()))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
