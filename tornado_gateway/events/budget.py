"""The bytes of events that are accepted and not yet delivered. Used by `queue.py`."""

from typing import Final

MAX_UNCOMMITTED_BYTES: Final = 32 * 1024 * 1024  # in memory: four batches of the largest size, until they are stored


class ByteBudget:
    """Bounds the events in memory, and those in the store up to `limit_bytes` (EVENT_QUEUE_BYTES).

    The group that is not yet being committed may have up to `most` bytes, which the queue compares for each append. It
    is negative while the budget `is_closed`, because a commit has stalled.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.committing = 0
        self.stored = 0
        self.most = 0
        self.is_closed = False
        self._limit_bytes = limit_bytes
        self.set_stored(0)

    def begin(self, size: int) -> None:
        """Count the bytes of a group whose commit begins."""
        self.committing = size
        self.most -= size

    def end(self, *, is_stored: bool) -> None:
        """End the commit, and accept events again."""
        size, self.committing, self.is_closed = self.committing, 0, False
        self.set_stored(self.stored + size if is_stored else self.stored)

    def close(self) -> None:
        """Accept nothing until the commit ends."""
        self.is_closed = True
        self.set_stored(self.stored)

    def settle(self, size: int, left: int) -> None:
        """Forget stored bytes. No bytes are stored if no events are `left`, even if some were not counted before."""
        self.set_stored(max(0, self.stored - size) if left > 0 else 0)

    def set_stored(self, size: int) -> None:
        self.stored = size
        room = self._limit_bytes - size
        if room > MAX_UNCOMMITTED_BYTES:
            room = MAX_UNCOMMITTED_BYTES
        self.most = -1 if self.is_closed else room - self.committing
