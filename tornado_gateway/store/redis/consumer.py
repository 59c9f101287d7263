"""This process as one consumer of the stream: heartbeat and claims."""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Sequence

from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import Chunk
from tornado_gateway.store.redis.entries import PAGE, chunk_of, order_of
from tornado_gateway.store.redis.link import Link, prefix
from tornado_gateway.store.redis.lua import CLAIM, HELD_CHUNKS, LEAVE
from tornado_gateway.tasks import end_tasks

logger = logging.getLogger(__name__)

GROUP = "gateway"
STEP_CHUNKS = 100  # of a claim in one step of Redis, which does nothing else meanwhile: 2 ms at most


class Consumer:
    """Holds claimed chunks for as long as it is alive, however long they are worked on.

    A consumer without a heartbeat for `alive_seconds` is considered dead and others claim its chunks, so that a
    SIGKILL delays events by a few seconds only. The chunks of one that left the group can be claimed at once. After a
    failed heartbeat, as in an outage of Redis, a consumer has to live for `alive_seconds` again before it claims chunks
    of others, because they may need longer to return. (A process that is suspended for longer than that delivers its
    claimed chunks twice.)
    """

    def __init__(self, link: Link, namespace: str, owner: str, alive_seconds: float) -> None:
        # A process that starts anew under the same name and pid, as in containers, is another consumer.
        self.name = f"{owner}:{uuid.uuid4().hex[:8]}"
        self._link = link
        self._keys = tuple(f"{prefix(namespace)}:{name}" for name in ("events", "consumers", "counts"))
        self._alive_seconds = alive_seconds
        self._alive_since: float | None = None
        self._held: list[Chunk] = []  # ours and not in use: released, or beyond the budget of the last claim
        self._ours: dict[int | str, int] = {}  # of all chunks that we know to be ours: id and number of events
        self.held_events = 0  # their sum
        self._in_doubt_until: float | None = None  # until then a claim whose reply was lost may still succeed
        self._claiming = asyncio.Lock()
        self._claims: set[asyncio.Task[int]] = set()
        self._heart: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Join the group. May be called again after it failed."""
        await self._claim_events(0)

    def start(self) -> None:
        self._heart = asyncio.create_task(self._beat())

    async def leave(self) -> bool:
        """End the heartbeat and leave the group. Return False if there was none."""
        if self._heart is None:
            return False
        await end_tasks(self._heart)
        self._heart = None
        if self._claims:
            await asyncio.wait(self._claims)
        try:
            await self._link.run(LEAVE, self._keys, GROUP, self.name)
        except StoreError as error:
            logger.info(
                "leaving the consumer group failed, others claim its events in %g s: %s", self._alive_seconds, error
            )
        self._held, self._ours, self.held_events = [], {}, 0
        return True

    async def claim(self, max_events: int, max_bytes: int) -> list[Chunk]:
        """As promised by EventStore. A cancelled claim continues, and its chunks are held for the next one."""
        while True:
            found = 0
            if self._missing(max_events, max_bytes) > 0 or self._in_doubt_until is not None:
                found = await asyncio.shield(self._start_claim(max_events, max_bytes))
            chunks = self._take_held(max_events, max_bytes)
            if chunks or not found:
                return chunks

    def _missing(self, max_events: int, max_bytes: int) -> int:
        """Return how many events are missing for a claim; none if the held ones have enough bytes."""
        if self._missing_bytes(max_bytes) <= 0:
            return 0
        return max_events - sum(chunk.count for chunk in self._held)

    def _missing_bytes(self, max_bytes: int) -> int:
        return max_bytes - sum(len(chunk.body) for chunk in self._held)

    def _start_claim(self, max_events: int, max_bytes: int) -> "asyncio.Task[int]":
        task = asyncio.create_task(self._claim_more(max_events, max_bytes))
        self._claims.add(task)
        task.add_done_callback(self._claim_ended)
        return task

    def _claim_ended(self, task: "asyncio.Task[int]") -> None:
        self._claims.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have been cancelled

    async def _claim_more(self, max_events: int, max_bytes: int) -> int:
        """Hold enough chunks for a claim. Return the number of chunks that are held."""
        async with self._claiming:
            if self._in_doubt_until is not None:
                await self._find_lost_claims(self._in_doubt_until)
            while (missing := self._missing(max_events, max_bytes)) > 0:
                claimed = await self._claim_events(missing, self._missing_bytes(max_bytes))
                self._held.extend(claimed)
                if len(claimed) < STEP_CHUNKS:
                    break
            return len(self._held)

    def forget(self, chunks: Sequence[Chunk]) -> None:
        """Forget chunks that were settled."""
        for chunk in chunks:
            self.held_events -= self._ours.pop(chunk.id, 0)

    def release(self, chunks: Sequence[Chunk]) -> None:
        self._held = sorted([*self._held, *chunks], key=lambda chunk: order_of(str(chunk.id)))

    async def _claim_events(self, budget: int, max_bytes: int = 0, *, patient: bool = False) -> list[Chunk]:
        """Send a heartbeat and claim until one of the budgets is reached; the last chunk may exceed it."""
        asked_at = time.monotonic()
        may_take_over = self._alive_since is not None and asked_at - self._alive_since >= self._alive_seconds
        alive_ms = int(self._alive_seconds * 1000)
        try:
            now_ms, was_alive, entries = await self._link.scripts.run(
                CLAIM,
                self._keys,
                GROUP,
                self.name,
                alive_ms,
                int(may_take_over),
                budget,
                STEP_CHUNKS,
                max_bytes,
                patient=patient,
            )
        except (StoreError, asyncio.CancelledError):
            self._alive_since = None
            if budget > 0:
                self._in_doubt_until = time.monotonic() + self._link.timeout_seconds
            raise
        self._link.scripts.note_clock(now_ms, asked_at)
        if not was_alive or self._alive_since is None:
            self._alive_since = asked_at
        chunks = [chunk_of(entry) for entry in entries]
        self._own(chunks)
        return chunks

    def _own(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self.held_events += chunk.count - self._ours.get(chunk.id, 0)
            self._ours[chunk.id] = chunk.count

    def _take_held(self, max_events: int, max_bytes: int) -> list[Chunk]:
        taken = 0
        for chunk in self._held:
            if taken and (chunk.count > max_events or len(chunk.body) > max_bytes):
                break
            max_events -= chunk.count
            max_bytes -= len(chunk.body)
            taken += 1
        chunks, self._held = self._held[:taken], self._held[taken:]
        return chunks

    async def _find_lost_claims(self, in_doubt_until: float) -> None:
        """Hold the chunks that are ours according to Redis, but whose claim got no reply.

        A claim whose reply was lost may reach Redis only now, so one search is enough only if it begins late enough.
        """
        began = time.monotonic()
        known = set(self._ours)  # a reply may be older than a settlement that ends while it is awaited
        after = "0"
        while entries := await self._link.scripts.run(HELD_CHUNKS, self._keys[:1], GROUP, self.name, after, PAGE):
            chunks = [chunk_of(entry) for entry in entries if len(entry) == 6]
            found = [chunk for chunk in chunks if chunk.id not in known and chunk.id not in self._ours]
            self._own(found)
            self.release(found)
            after = entries[-1][0].decode()
        if began >= in_doubt_until:
            self._in_doubt_until = None

    async def _beat(self) -> None:
        while True:
            # Without claimed chunks it does not matter if a heartbeat is late. The next claim is one as well.
            beats = 4 if self._ours else 2
            await asyncio.sleep(self._alive_seconds / beats * random.uniform(0.8, 1.0))
            try:
                await self._claim_events(0, patient=True)
            except StoreError as error:
                logger.debug("a heartbeat failed: %s", error)
