"""When a worker claims batches that are not full as well. Used by `flusher.py`."""

import asyncio
import math
import random

REST_SECONDS = 1.0  # after a claim that found no full batch: meanwhile other workers may store events


class FlushSchedule:
    """A full flush is due after `interval_seconds`, and whenever `is_due` is set.

    Once it has begun, `must_drain` holds until as many events are claimed as were waiting then. `next_at` is the time
    of the next one, by the clock of the loop. `phase` is the share of the first interval that is left out.

    Of a shared store, other workers may have claimed what was counted. Then a batch that is not full waits, once, until
    the missing events have been stored, or for REST_SECONDS.
    """

    def __init__(self, interval_seconds: float, phase: float = 0.0) -> None:
        self.is_due = False
        self.must_drain = False
        self.next_at = math.inf
        self._interval_seconds = interval_seconds
        self._phase = phase
        self._left = 0  # events to claim until the flush is complete
        self._waiting: int | str = ""  # the oldest chunk of the batch that has waited
        self._enough = 0  # stored events that end the wait
        self._waits_until = 0.0

    def begin(self, unclaimed: int) -> None:
        """Begin a full flush, of so many events."""
        self.is_due = False
        self.must_drain = True
        self._left = unclaimed
        interval = self._interval_seconds * random.uniform(0.9, 1.0) * (1.0 - self._phase)
        self._phase = 0.0
        self.next_at = asyncio.get_running_loop().time() + interval

    def begin_if_due(self, unclaimed: int) -> None:
        if self.is_due or asyncio.get_running_loop().time() >= self.next_at:
            self.begin(unclaimed)

    def record_claimed(self, events: int, batch_events: int) -> None:
        """Count claimed events. The flush is complete if there were fewer than the store had, and than one batch."""
        self._left -= events
        self.must_drain = events > 0 and (self._left > 0 or events >= batch_events)

    def may_wait(self, oldest: int | str, missing: int, stored: int) -> bool:
        """Return whether the batch with this oldest chunk waits for `missing` events, because it has not waited yet."""
        if oldest == self._waiting:
            return False
        self._waiting, self._enough = oldest, stored + missing
        self._waits_until = asyncio.get_running_loop().time() + REST_SECONDS
        return True

    def waits(self, stored: int) -> bool:
        """Return whether a batch waits, with so many stored events."""
        return stored < self._enough and asyncio.get_running_loop().time() < self._waits_until
