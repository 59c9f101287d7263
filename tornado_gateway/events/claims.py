"""The events that a worker has claimed and not yet settled. Used by `flusher.py`."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from tornado_gateway.events.batches import Claim, Part, RetryQueue, split_events
from tornado_gateway.store.interfaces import Chunk, NewChunk

# Of events that are claimed and not yet delivered. A document can be in memory three times: in its chunk, in its part
# and in the request.
MAX_CLAIMED_BYTES = 16 * 1024 * 1024
MAX_RETRYING = 128  # parts that wait for a retry; beyond it no new events are claimed, so that memory is bounded
MAX_RETRYING_BYTES = MAX_CLAIMED_BYTES // 2


class Claims:
    """The claims of a worker. Each of their parts is in `ready`, in `retries`, or in flight.

    `events` is the number of claimed events, `size` the bytes of those that are not yet delivered. All parts of an
    `unsettled` claim are done, but the store has failed to settle it. `retry_error` is the failure of the last part
    that is to be sent again. `drop_bodies` is called with the chunks of a claim that can no longer be released.
    """

    def __init__(
        self,
        max_bytes: int = MAX_CLAIMED_BYTES,
        drop_bodies: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._drop_bodies = drop_bodies
        self.events = 0
        self.size = 0
        self.ready: deque[Part] = deque()
        self.retries = RetryQueue()
        self.unsettled: list[Claim] = []
        self.retry_error = ""
        self._claims: set[Claim] = set()

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Add a claim. Its events are ready to be sent."""
        claim = Claim(chunks)
        self._claims.add(claim)
        self.events += claim.count
        self.size += sum([part.size for part in claim.parts])
        self.ready.extend(claim.parts)

    def forget(self, claim: Claim) -> None:
        """Remove a claim that is settled or released."""
        self._claims.discard(claim)
        self.events -= claim.count
        self.size -= sum([part.size for part in claim.parts])

    def all(self) -> list[Claim]:
        return list(self._claims)

    def drop_parts(self) -> None:
        """Send no part any more, because all claims are given back."""
        self.ready.clear()
        self.retries = RetryQueue()

    def is_last(self, part: Part) -> bool:
        """Return whether no other part is claimed."""
        return self._claims == {part.claim} and len(part.claim.parts) == 1

    # --- Parts ---

    @property
    def has_untried(self) -> bool:
        """Return whether the newest ready part is not a piece of a failed one: it is sent first after a failure."""
        return bool(self.ready) and self.ready[-1].successes_seen is None

    @property
    def has_tried(self) -> bool:
        """Return whether the next ready part is a piece of a failed one."""
        return bool(self.ready) and self.ready[0].successes_seen is not None

    @property
    def is_full(self) -> bool:
        """Return whether there is no room for further parts that wait for a retry."""
        return len(self.retries) >= MAX_RETRYING or self.retries.size >= self._max_bytes // 2

    def has_room(self, *, during_outage: bool) -> bool:
        """Return whether new events may be claimed: not if too many are claimed, or wait for a retry.

        While nothing succeeds, events behind many that are known to fail have to show whether others succeed.
        """
        if self.size >= self._max_bytes:
            return False
        if not during_outage:
            return not self.is_full
        unexplained = self.retries.unexplained()
        return len(unexplained) < MAX_RETRYING and sum([part.size for part in unexplained]) < self._max_bytes // 2

    def delivered(self, part: Part) -> None:
        self._note_touched(part)
        part.claim.part_delivered(part)

    def died(self, part: Part, reason: str) -> None:
        self._note_touched(part)
        part.claim.part_died(part, reason)

    def _note_touched(self, part: Part) -> None:
        self.size -= part.size
        if part.claim.is_untouched and len(part.claim.parts) > 1:  # otherwise it is settled at once
            self._drop_bodies(part.claim.chunks)

    def split(self, part: Part, pieces: int) -> None:
        """Replace a part by so many pieces, which are sent next, in order."""
        self.replace(part, split_events(part.events, pieces))

    def replace(self, part: Part, pieces: Sequence[NewChunk]) -> None:
        """Replace a part by its pieces, which are sent next, in order."""
        self.size += sum([len(piece.body) for piece in pieces]) - part.size
        self.ready.extendleft(reversed(part.split(pieces)))

    def retry_later(self, part: Part, seconds: float, error: str) -> None:
        """Send a part again after some seconds."""
        self.retry_error = error
        self.retries.push(asyncio.get_running_loop().time() + seconds, part)
