"""The time by which stored records age. Steps of the wall clock do not change it (guarantee 7).

It is noted in the store together with the time since the start of the machine, so that all workers, and the next run,
continue it. Only what passed while the machine was off is known from the wall clock alone.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MAX_GAP_SECONDS = 86400.0  # of a time in which the machine was off: the wall clock may be wrong after that


class Clock(NamedTuple):
    """The wall clock in unix seconds, the seconds since the start of the machine, and the name of that start."""

    wall: Callable[[], float]
    uptime: Callable[[], float]
    boot: Callable[[], str]


class Note(NamedTuple):
    """The reckoned time, in unix seconds, at an uptime of the machine."""

    at: float
    uptime: float
    boot: str


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


SYSTEM_CLOCK = Clock(time.time, _uptime, _boot)


class Reckoning:
    """Unix seconds that began with the wall clock and have continued without it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall() - clock.uptime()

    def now(self) -> float:
        return self._offset + self._clock.uptime()

    def resume(self, last: Note | None) -> Note:
        """Continue the noted time, if there is a note. Return the note to store in its place."""
        uptime, boot = self._clock.uptime(), self._clock.boot()
        at = self._offset + uptime if last is None else last.at + self._since(last, uptime, boot)
        self._offset = at - uptime
        return Note(at, uptime, boot)

    def _since(self, last: Note, uptime: float, boot: str) -> float:
        if boot and boot == last.boot:
            return max(0.0, uptime - last.uptime)
        return min(max(0.0, self._clock.wall() - last.at), MAX_GAP_SECONDS)
