"""The bytes of events that are accepted and not yet delivered. Used by `queue.py`."""

from typing import Final

MAX_UNCOMMITTED_BYTES: Final = 32 * 1024 * 1024  # in memory: four batches of the largest size, until they are stored


class ByteBudget:
    """Bounds the events in memory, and those in the store up to `limit_bytes` (EVENT_QUEUE_BYTES).

    `uncommitted` bytes are in memory. They may grow up to `most`, which the queue compares for each append. That is
    negative while the budget `is_closed`, because a commit has stalled.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.uncommitted = 0
        self.stored = 0
        self.most = 0
        self.is_closed = False
        self._limit_bytes = limit_bytes
        self.set_stored(0)

    @property
    def waiting(self) -> int:
        return self.uncommitted + self.stored

    def commit(self, size: int) -> None:
        """Count bytes as stored that were uncommitted."""
        self.uncommitted -= size
        self.set_stored(self.stored + size)

    def reject(self, size: int) -> None:
        """Forget uncommitted bytes that will not be stored."""
        self.uncommitted -= size

    def settle(self, size: int, left: int) -> None:
        """Forget stored bytes. No bytes are stored if no events are `left`, even if some were not counted before."""
        self.set_stored(max(0, self.stored - size) if left > 0 else 0)

    def set_stored(self, size: int) -> None:
        self.stored = size
        self.most = -1 if self.is_closed else min(MAX_UNCOMMITTED_BYTES, self._limit_bytes - size)

    def close(self, *, is_closed: bool = True) -> None:
        """Accept nothing from now on, or accept events again."""
        self.is_closed = is_closed
        self.set_stored(self.stored)
