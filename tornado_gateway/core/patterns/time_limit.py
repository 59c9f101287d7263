"""Searches of `re` that end after a time limit.

`re` holds the interpreter while it searches, so that neither the event loop nor another thread can stop it. But it
handles signals every 4,096 steps: an alarm (SIGALRM) ends it with an exception.
"""

import atexit
import os
import re
import signal
import threading
import time
from types import FrameType
from typing import Final

SECONDS: Final = 0.010  # for one search
# After a search exceeded SECONDS, the searches of the next 100 ms have less, and once 10 ms more have been used, none
# is made in long texts. So neither a request with many conditions nor many requests keep the loop busy.
FURTHER_SECONDS: Final = 0.0005
CAREFUL_SECONDS: Final = 0.1
MOST_SECONDS: Final = 0.01

# `re` counts its steps anew at each position of a search. In longer texts, each position is a call of its own.
_SHORT: Final = 64


class _Exceeded(Exception):  # noqa: N818 - never leaves this module
    pass


class TimeLimit:
    """Runs searches under the limit. `exceeded` has the patterns that exceeded it, until the caller takes them.

    There is one per process, as there is one alarm. Searches in other threads than the main one have no limit.
    """

    def __init__(self) -> None:
        self.exceeded: list[str] = []
        self._started: float | None = None  # while a search runs
        self._cpu: float | None = None  # CPU time of this thread when the limit of the search was reached
        self._seconds = SECONDS
        self._alarm_at = 0.0  # no alarm is set after this
        self._careful_until = 0.0
        self._used = 0.0  # seconds beyond the first SECONDS, of the searches that exceeded the limit until then

    def matches(self, pattern: re.Pattern[str], text: str, at_start: bool = False) -> bool:
        """Return whether the pattern is in the text; False if that takes too long."""
        if threading.current_thread() is not threading.main_thread():
            return _find(pattern, text, at_start)
        started = time.monotonic()
        try:
            self._start(started, len(text))
            return _find(pattern, text, at_start)
        except _Exceeded:
            self._note(pattern.pattern, started)
            return False
        finally:
            self._started = None

    def take_exceeded(self) -> tuple[str, ...]:
        """Return the patterns that exceeded the limit since the last call, each once."""
        patterns = tuple(dict.fromkeys(self.exceeded))
        self.exceeded.clear()
        return patterns

    def forget_alarm(self) -> None:
        """Set a new alarm at the next search, because a forked process does not inherit it."""
        self._alarm_at = 0.0

    def _note(self, pattern: str, started: float) -> None:
        now = time.monotonic()
        if now >= self._careful_until:
            self._careful_until = now + CAREFUL_SECONDS
            self._used = now - started - SECONDS
        else:
            self._used += now - started
        self.exceeded.append(pattern)

    def _start(self, now: float, length: int) -> None:
        """Start the clock. An alarm of an earlier search stays, because setting one takes longer than most searches."""
        is_careful = now < self._careful_until
        if is_careful and length > _SHORT and self._used >= MOST_SECONDS:
            raise _Exceeded
        self._seconds = FURTHER_SECONDS if is_careful else SECONDS
        self._cpu = None
        self._started = now  # before the alarm is read: it may ring at any time, and rings in vain without a search
        if is_careful or now >= self._alarm_at:
            self._set_alarm(self._seconds)

    def _set_alarm(self, seconds: float) -> None:
        self._alarm_at = time.monotonic() + seconds
        signal.signal(signal.SIGALRM, self._ring)
        signal.siginterrupt(signal.SIGALRM, False)  # for system calls of other threads
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        """End the search that runs, if its time is over. A process that was suspended meanwhile gets a tenth more."""
        if self._started is None:
            self._alarm_at = 0.0
            return
        left = self._seconds - (time.monotonic() - self._started)
        if left <= 0:
            now = time.thread_time()
            if self._cpu is None:
                self._cpu = now
            left = self._seconds / 10 - (now - self._cpu)
            if left <= 0:
                self._started = None
                raise _Exceeded
        self._set_alarm(max(left, 0.00001))  # an alarm of 0 s would be none


def _find(pattern: re.Pattern[str], text: str, at_start: bool) -> bool:
    if at_start:
        return pattern.match(text) is not None
    if len(text) <= _SHORT:
        return pattern.search(text) is not None
    return any(pattern.match(text, position) for position in range(len(text) + 1))


TIME_LIMIT: Final = TimeLimit()
os.register_at_fork(after_in_child=TIME_LIMIT.forget_alarm)
# Python removes its handlers when it ends, and an alarm without a handler kills the process.
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
