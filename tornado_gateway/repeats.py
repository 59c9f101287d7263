"""Log lines for things that can happen thousands of times a second: one line per reason and interval."""

import logging
import time
from collections.abc import Callable


class RepeatedLine:
    """Logs `message`, which takes a number and a reason, at most once per reason and interval.

    The number is that of all occurrences since the last line. Reasons must come from a fixed set: they are kept.
    """

    def __init__(
        self,
        logger: logging.Logger,
        message: str,
        *,
        interval_seconds: float,
        level: int = logging.WARNING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._message = message
        self._interval_seconds = interval_seconds
        self._level = level
        self._clock = clock
        self._counts: dict[str, int] = {}  # occurrences since the last line
        self._silent_until: dict[str, float] = {}

    def add(self, reason: str, count: int = 1) -> None:
        count += self._counts.get(reason, 0)
        now = self._clock()
        if now < self._silent_until.get(reason, now):
            self._counts[reason] = count
            return
        self._counts[reason] = 0
        self._silent_until[reason] = now + self._interval_seconds
        self._logger.log(self._level, self._message, count, reason)
