"""Memory of an event log: the chunks for the next claims."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from tornado_gateway.store.interfaces import Chunk, NewChunk

# Read the next chunks after a number: with at most so many events, but at least one chunk if it is needed.
# Return them, and the last number up to which there are no others.
Read = Callable[[int, int, bool], Awaitable[tuple[list[Chunk], int]]]


class ClaimMemory:
    """Chunks that can be claimed, in memory, so that nothing is read back as long as deliveries keep up.

    Stored chunks stay here until they are claimed, up to `limit_bytes`; others are read when they are needed.
    """

    def __init__(self, read: Read, limit_bytes: int) -> None:
        self._read = read
        self._limit_bytes = limit_bytes
        self._last_stored = 0  # no chunk after this one is known to be in the file
        self._last_known = 0  # each chunk up to this one is in `_ready`, or was claimed
        self._ready: deque[Chunk] = deque()  # in order
        self._ready_bytes = 0
        self._claimed: dict[int, Chunk] = {}  # neither released nor settled
        self._reading = asyncio.Lock()

    def restart(self, last_stored: int) -> None:
        self._last_stored = last_stored
        self._last_known = self._ready_bytes = 0
        self._ready.clear()
        self._claimed = {}

    @property
    def is_empty(self) -> bool:
        """Return whether all stored chunks have been claimed and settled."""
        return not (self._ready or self._claimed) and self._last_known >= self._last_stored

    def all_chunks(self) -> list[Chunk]:
        """Return the chunks that are in memory, claimed ones included. Some of these have no body any more."""
        return [*self._ready, *self._claimed.values()]

    def forget(self, ids: Sequence[int]) -> None:
        """Forget claimed chunks that were settled."""
        for id_ in ids:
            self._claimed.pop(id_, None)

    def drop_bodies(self, chunks: Sequence[Chunk]) -> None:
        """Keep claimed chunks without their bodies, for their number of events."""
        ids = [int(chunk.id) for chunk in chunks]
        self._claimed.update((id_, self._claimed[id_].without_body()) for id_ in ids if id_ in self._claimed)

    def note_stored(self, last: int) -> None:
        """Note that there are chunks up to this number, which the next claim may have to read."""
        self._last_stored = max(self._last_stored, last)

    def keep(self, before: int, chunks: Sequence[NewChunk], size: int) -> None:
        """Hold chunks that were just stored, if no unknown ones are before them, and there is room."""
        last = before + len(chunks)
        if last > self._last_stored:
            self._last_stored = last
        if before == self._last_known and self._ready_bytes + size <= self._limit_bytes:
            for id_, chunk in enumerate(chunks, before + 1):
                self._ready.append(Chunk(id_, chunk.count, chunk.body, chunk.query, chunk.identity))
            self._ready_bytes += size
            self._last_known = last

    async def claim(self, max_events: int, max_bytes: int) -> list[Chunk]:
        if self._last_stored > self._last_known and self._missing(max_events, max_bytes) > 0:
            await self._fill(max_events, max_bytes)
        ready = self._ready
        claimed: list[Chunk] = []
        while ready:
            chunk = ready[0]
            size = len(chunk.body)
            if claimed and (chunk.count > max_events or size > max_bytes):
                break
            claimed.append(ready.popleft())
            max_events -= chunk.count
            max_bytes -= size
            self._ready_bytes -= size
        self._claimed.update([(int(chunk.id), chunk) for chunk in claimed])
        return claimed

    def release(self, chunks: Sequence[Chunk]) -> None:
        self.forget([int(chunk.id) for chunk in chunks])
        self._ready_bytes += sum([len(chunk.body) for chunk in chunks])
        released = sorted(chunks, key=_id)
        if self._ready and released and _id(self._ready[0]) < _id(released[-1]):
            self._ready = deque(sorted([*released, *self._ready], key=_id))
        else:
            self._ready.extendleft(reversed(released))

    def _missing(self, max_events: int, max_bytes: int) -> int:
        """Return how many events have to be read for a claim; at least one if none is in memory."""
        for chunk in self._ready:
            max_events -= chunk.count
            max_bytes -= len(chunk.body)
            if max_events <= 0 or max_bytes <= 0:
                return 0
        return max_events if self._ready else max(1, max_events)

    async def _fill(self, max_events: int, max_bytes: int) -> None:
        """Read chunks into memory; nothing has been claimed yet, so a failure or a cancellation loses nothing."""
        async with self._reading:
            missing = self._missing(max_events, max_bytes)
            if missing <= 0 or self._last_stored <= self._last_known:
                return
            stored, end = await self._read(self._last_known, missing, not self._ready)
            new = [chunk for chunk in stored if int(chunk.id) > self._last_known]  # `keep` has the others by now
            self._ready.extend(new)
            self._ready_bytes += sum([len(chunk.body) for chunk in new])
            self._last_known = max(self._last_known, end)


def _id(chunk: Chunk) -> int:
    return int(chunk.id)
