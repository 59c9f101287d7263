"""Delays between attempts that fail: exponential, bounded, with jitter."""

import random

JITTER = 0.2  # share of a delay that is random, so that instances that failed together do not retry together


class Backoff:
    """Delays in seconds: `first`, then twice as long each time, up to `longest`. No delay exceeds `longest`."""

    def __init__(self, first: float, longest: float, jitter: float = JITTER) -> None:
        self._first = min(first, longest)
        self._longest = longest
        self._jitter = jitter
        self._delay = self._first

    def next(self) -> float:
        """Return the delay before the next attempt, and double the one after it."""
        delay, self._delay = self._delay, min(self._longest, self._delay * 2)
        return delay * random.uniform(1 - self._jitter, 1)

    def reset(self) -> None:
        """Begin with the first delay again, after an attempt that succeeded."""
        self._delay = self._first
