"""Measures how long a worker's event loop is busy in one turn, in CPU time, which other processes do not change.

`scripts/hostile --turns` puts this folder on the path of the gateway, so that Python imports this module first. Once a
second, each worker appends the longest turn of that second to a file in TURNS_FOLDER: when it ended by the monotonic
clock, its seconds, and the callbacks in it that took the longest. It measures asyncio's own loop, not uvloop.
"""

import asyncio
import json
import os
import sys
import threading
import time
from asyncio import base_events, events
from collections import Counter
from pathlib import Path
from typing import Any

SHOWN = 4  # callbacks
run_once, run_handle = base_events.BaseEventLoop._run_once, events.Handle._run  # type: ignore[attr-defined]
seconds_of: Counter[str] = Counter()  # in this turn, by callback
calls_of: Counter[str] = Counter()
longest: tuple[float, float, list[str]] = (0.0, 0.0, [])
written_at = 0.0


def name_of(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine = owner.get_coro()
        return getattr(coroutine, "__qualname__", type(coroutine).__name__)  # compiled ones have no name of their own
    return getattr(callback, "__qualname__", type(callback).__name__)


def timed_handle(handle: Any) -> None:
    started, name = time.thread_time(), name_of(handle._callback)
    run_handle(handle)
    seconds_of[name] += time.thread_time() - started  # type: ignore[assignment]
    calls_of[name] += 1


def timed_turn(loop: Any) -> None:
    global longest, written_at
    seconds_of.clear()
    calls_of.clear()
    started = time.thread_time()
    run_once(loop)
    seconds, now = time.thread_time() - started, time.monotonic()
    if seconds > longest[1]:
        shown = [f"{name} x{calls_of[name]} {took * 1000:.1f} ms" for name, took in seconds_of.most_common(SHOWN)]
        longest = now, seconds, shown
    if now > written_at + 1 and threading.current_thread() is threading.main_thread():
        with (Path(os.environ["TURNS_FOLDER"]) / f"{os.getpid()}.turns").open("a") as file:
            print(json.dumps(longest), file=file)
        longest, written_at = (0.0, 0.0, []), now


if "TURNS_FOLDER" in os.environ:
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # so that importing it fails
    base_events.BaseEventLoop._run_once = timed_turn  # type: ignore[attr-defined]
    events.Handle._run = timed_handle  # type: ignore[attr-defined]
