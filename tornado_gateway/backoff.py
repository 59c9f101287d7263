"""Delays between attempts that fail: exponential, bounded, with jitter."""

import random

JITTER = 0.2  # share of a delay that is random, so that instances that failed together do not retry together
MAX_DOUBLINGS = 30  # beyond any limit


class Backoff:
    """Delays in seconds: `first`, then twice as long each time, up to `longest`. No delay exceeds `longest`."""

    def __init__(self, first: float, longest: float, jitter: float = JITTER) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._failures = 0

    def next(self) -> float:
        """Return the delay before the next attempt, and double the one after it."""
        self._failures += 1
        return self.after(self._failures)

    def after(self, failures: int) -> float:
        """Return the delay after so many failures, at least one, for a caller that counts them."""
        delay: float = min(self._longest, self._first * 2.0 ** min(failures - 1, MAX_DOUBLINGS))
        return delay * random.uniform(1 - self._jitter, 1)

    def reset(self) -> None:
        """Begin with the first delay again, after an attempt that succeeded."""
        self._failures = 0
