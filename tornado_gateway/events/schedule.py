"""When a worker claims batches that are not full as well. Used by `flusher.py`."""

import asyncio
import math
import random


class FlushSchedule:
    """A full flush is due after `interval_seconds`, and whenever `is_due` is set.

    Once it has begun, `must_drain` holds until as many events are claimed as were waiting then. `next_at` is the time
    of the next one, by the clock of the loop.
    """

    def __init__(self, interval_seconds: float) -> None:
        self.is_due = False
        self.must_drain = False
        self.next_at = math.inf
        self._interval_seconds = interval_seconds
        self._left = 0  # events to claim until the flush is complete

    def begin(self, unclaimed: int) -> None:
        """Begin a full flush, of so many events."""
        self.is_due = False
        self.must_drain = True
        self._left = unclaimed
        interval = self._interval_seconds * random.uniform(0.9, 1.0)
        self.next_at = asyncio.get_running_loop().time() + interval

    def begin_if_due(self, unclaimed: int) -> None:
        if self.is_due or asyncio.get_running_loop().time() >= self.next_at:
            self.begin(unclaimed)

    def record_claimed(self, events: int, batch_events: int) -> None:
        """Count claimed events. The flush is complete if there were fewer than the store had, and than one batch."""
        self._left -= events
        self.must_drain = events > 0 and (self._left > 0 or events >= batch_events)
