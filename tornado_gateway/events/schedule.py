"""When a worker claims batches that are not full as well. Used by `flusher.py`."""

import asyncio
import math
import random

REST_SECONDS = 1.0  # after a claim that found no full batch: until then a shared store is counted again


class FlushSchedule:
    """A full flush is due whenever `is_due` is set, and before an event has waited for `interval_seconds`.

    Once it has begun, `must_drain` holds until as many events are claimed as were waiting then. Twice in an interval,
    at `next_at` by the clock of the loop, the waiting events are noted. If some of those that were noted before still
    wait then, a full flush begins: events of a busy environment are in full batches long before. `phase` is the share
    of the first interval that is left out.

    Of a shared store, other workers may have claimed what was counted. Then a batch that is not full waits, once, until
    the missing events have been stored, or for REST_SECONDS.
    """

    def __init__(self, interval_seconds: float, phase: float = 0.0) -> None:
        self.is_due = False
        self.must_drain = False
        self.next_at = math.inf
        self._interval_seconds = interval_seconds
        self._phase = phase
        self._left = 0  # of the noted events, those that are not yet claimed
        self._waiting: int | str = ""  # the oldest chunk of the batch that has waited
        self._enough = 0  # stored events that end the wait
        self._waits_until = 0.0

    def begin(self, unclaimed: int) -> None:
        """Begin a full flush, of so many events."""
        self.is_due = False
        self.must_drain = True
        self._note(unclaimed)

    def begin_if_due(self, unclaimed: int) -> None:
        is_time = asyncio.get_running_loop().time() >= self.next_at
        if self.is_due or (is_time and self._left > 0):
            self.begin(unclaimed)
        elif is_time:
            self._note(unclaimed)

    def _note(self, unclaimed: int) -> None:
        self._left = unclaimed
        seconds = self._interval_seconds / 2 * random.uniform(0.9, 1.0) * (1.0 - self._phase)
        self._phase = 0.0
        self.next_at = asyncio.get_running_loop().time() + seconds

    def record_claimed(self, events: int, batch_events: int) -> None:
        """Count claimed events, the oldest first.

        A flush is complete if there were fewer than the store had, and than one batch.
        """
        self._left -= events
        if self.must_drain and (not events or (self._left <= 0 and events < batch_events)):
            self.must_drain = False
            self._left = 0

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
