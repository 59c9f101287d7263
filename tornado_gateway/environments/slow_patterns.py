"""Regexes of the settings that exceeded their time: counted by feature, and logged."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from tornado_gateway.logs import ThrottledLog
from tornado_gateway.telemetry.problems import Problem

logger = logging.getLogger(__name__)

LOGGED_PATTERN = 200  # characters of a pattern in a log line
LONGEST_NAME = 100  # characters of a feature key
MOST_NAMES = 20  # features that are counted by name in one worker
OTHERS = "other"  # the name of further features
SHOWN_SECONDS = 3600.0  # how long a slow pattern is a problem after it was last slow


class SlowPatterns:
    """The counts of one worker."""

    def __init__(self, shown_seconds: float = SHOWN_SECONDS) -> None:
        self.counts: Counter[str] = Counter()
        self._shown_seconds = shown_seconds
        self._last: dict[str, float] = {}  # by name, on the monotonic clock
        self._log = ThrottledLog(logger)

    def note(self, feature_key: str, patterns: Sequence[str]) -> None:
        name = feature_key[:LONGEST_NAME]
        if name not in self.counts and len(self.counts) >= MOST_NAMES:
            name = OTHERS
        self.counts[name] += len(patterns)
        self._last[name] = time.monotonic()
        for pattern in patterns:
            self._log.error(
                f"{feature_key} {pattern}",
                "Regex %r of feature %s exceeded 10 ms for a visitor, its condition counted as not met",
                pattern[:LOGGED_PATTERN],
                feature_key,
            )

    def problems(self) -> list[Problem]:
        """Return a problem for each feature with a pattern that was slow recently."""
        since = time.monotonic() - self._shown_seconds
        slow = (name for name, last in self._last.items() if last >= since)
        return [Problem("slow-pattern", _message(name)) for name in slow]


def _message(name: str) -> str:
    of = "other features" if name == OTHERS else f"feature {name}"
    return f"Regex conditions of {of} exceeded their time limit in the last hour and counted as not met."
