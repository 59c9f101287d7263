"""The entrance of events: group commit into the store. `flusher.py` delivers them from there.

At any time received = delivered + waiting + dead + rejected + discarded.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tornado_gateway.errors import QueueFullError, StoreError
from tornado_gateway.gate import Gate
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.store.interfaces import NO_IDENTITY, EventStore, Identity, NewChunk

logger = logging.getLogger(__name__)

RECOUNT_SECONDS = 1.0  # how often a shared store is asked for its number of waiting events

Entry = tuple[int, bytes, str]  # number of events, their documents joined by newlines, query as in `NewChunk`


@dataclass(slots=True)
class EventCounts:
    """received = delivered + waiting + dead + rejected + discarded.

    `rejected` events were never stored. `discarded` ones were dead letters beyond DEAD_LETTER_LIMIT.
    """

    received: int = 0
    waiting: int = 0
    delivered: int = 0
    dead: int = 0
    rejected: int = 0
    discarded: int = 0


class _Group:
    """Events that are committed together, and the gates that hold back the responses to their requests.

    `gate` fails if the commit fails. `decisions` opens then as well: a decision does not depend on its impressions.
    """

    __slots__ = ("decisions", "entries", "gate")

    def __init__(self, *, one_gate: bool) -> None:
        self.entries: list[Entry] = []
        self.gate = Gate()
        self.decisions = self.gate if one_gate else Gate()

    @property
    def count(self) -> int:
        """The number of events."""
        return sum([count for count, _, _ in self.entries])

    def release(self, failure: str) -> None:
        """Let the responses go although the events are not stored."""
        self.gate.fail(StoreError(failure))
        self.decisions.open()  # without effect if both are one


class EventQueue:
    """Collects events and commits them to the store, many requests in one transaction.

    What arrives during a commit forms the next group; at low load a commit starts at once. With `durable` an event
    counts as accepted when a gate of its group opens. Without `durable` it is acknowledged before the commit, so a
    group that cannot be stored is kept in memory and tried again after `retry_seconds`.

    A commit that takes longer than `commit_seconds` is reported as a failure, and its responses are released. New
    events are rejected until it ends, so that memory is bounded.

    With `shared` other instances use the store as well. The store then counts the waiting events of all of them, and
    the sum of the counts holds over all instances.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        limit: int,
        chunk_events: int,
        dead_letter_limit: int = 100_000,
        durable: bool = True,
        shared: bool = False,
        decisions_need_store: bool = False,
        commit_seconds: float = 5.0,
        retry_seconds: float = 1.0,
    ) -> None:
        self.counts = EventCounts()
        self.stored = 0  # committed and not yet settled
        self.failure: str | None = None  # of the present or the last commit
        self.on_stored: Callable[[], None] = lambda: None
        self.on_overdue: Callable[[], None] = lambda: None  # there are events that have waited long enough
        self.on_commit: Callable[[Sequence[Entry]], None] = lambda group: None  # entries that have become durable
        self.durable = durable
        self.identity = NO_IDENTITY  # under which the account's events are accepted now
        self._store = store
        self._limit = limit
        self._chunk_events = chunk_events
        self._dead_letter_limit = dead_letter_limit
        self._shared = shared
        self._decisions_need_store = decisions_need_store
        self._commit_seconds = commit_seconds
        self._retry_seconds = retry_seconds
        self._log = ThrottledLog(logger)
        self._group = self._new_group()
        self._committing: _Group | None = None
        self._commit_began = 0.0
        self._is_stalled = False
        self._wanted = asyncio.Event()
        self._stopping = False
        self._commits: asyncio.Task[None] | None = None
        self._helpers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        if self._shared:
            self._helpers.append(asyncio.create_task(self._recount_regularly()))
        else:
            depth = await self._store.depth()
            self.stored = self.counts.waiting = depth.waiting
            self.counts.dead = depth.dead
            self.counts.received = depth.waiting + depth.dead
        self._helpers.append(asyncio.create_task(self._watch_commits()))
        self._commits = asyncio.create_task(self._commit_groups())

    async def stop(self) -> None:
        """Commit what is still in memory. Call when nothing appends any more."""
        if self._commits is not None:
            self._stopping = True
            self._wanted.set()
            await self._commits
            self._commits = None
        for task in self._helpers:
            task.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
        self._helpers.clear()
        if self._group.entries:
            logger.error(
                "%d events that were acknowledged at once (EVENT_ACK=fast) could not be stored", self._group.count
            )

    def append(self, documents: bytes, count: int, query: str = "") -> Gate:
        """Accept `count` event documents, joined by newlines. The gate opens when they are durable.

        Raise QueueFullError if they cannot be accepted now. `query` as in `NewChunk`.
        """
        if not self._accept(documents, count, query):
            raise QueueFullError(self._rejection())
        return self._group.gate

    def append_impressions(self, documents: bytes, count: int) -> Gate | None:
        """Accept the events of a decision, which is worth more than they are: its response is never withheld.

        The gate opens when they are durable, or when it is certain that they will not be. None: they were rejected.
        With `decisions_need_store` (EVENT_QUEUE_FULL=refuse) the same as `append`.
        """
        if self._accept(documents, count, ""):
            return self._group.decisions
        if self._decisions_need_store:
            raise QueueFullError(self._rejection())
        self._log.warning("full", "impressions were rejected, decisions continue: %s", self._rejection())
        return None

    def _accept(self, documents: bytes, count: int, query: str) -> bool:
        counts = self.counts
        counts.received += count
        if counts.waiting + count > self._limit or self._is_stalled:
            counts.rejected += count
            return False
        counts.waiting += count
        entries = self._group.entries
        if not entries:
            self._wanted.set()
        entries.append((count, documents, query))
        return True

    def _rejection(self) -> str:
        if self._is_stalled:
            return f"events cannot be stored at the moment: {self.failure}"
        return f"the event queue is full: {self.counts.waiting} events wait (EVENT_QUEUE_LIMIT)"

    def reject(self, count: int) -> None:
        """Count events that arrived but are not to be stored."""
        self.counts.received += count
        self.counts.rejected += count

    def settled(self, delivered: int, dead: int) -> None:
        """Events have left the queue."""
        self.stored -= delivered + dead
        self.counts.waiting -= delivered + dead
        self.counts.delivered += delivered
        self.counts.dead += dead

    async def requeue(self, ids: Sequence[int | str] | None = None) -> int:
        """Move dead letters (None: all) back into the queue, as many as fit into it. Return the number of events.

        Raise QueueFullError, or StoreError.
        """
        room = self._limit - self.counts.waiting
        if room <= 0:
            raise QueueFullError(self._rejection())
        moved = await self._store.requeue(ids, room)
        if self._shared:
            self.stored += moved
            self.counts.waiting += moved
            self.counts.dead -= moved
            self.on_overdue()
        else:
            await self.count_adopted()
        return moved

    async def trim_dead_letters(self) -> None:
        """Discard the oldest dead letters beyond the limit. Best effort: the next dead letter tries again."""
        if not self._shared and self.counts.dead <= self._dead_letter_limit:
            return
        try:
            discarded = await self._store.trim_dead_letters(self._dead_letter_limit)
        except StoreError as error:
            logger.debug("dead letters cannot be discarded yet: %s", error)
            return
        self.counts.dead -= discarded
        self.counts.discarded += discarded
        if discarded:
            self._log.warning("discarded", "the oldest %d dead letters were discarded (DEAD_LETTER_LIMIT)", discarded)

    async def count_adopted(self) -> None:
        """Count as received what the store has got from elsewhere, such as from the log of a dead worker.

        The difference is exact although others append and settle meanwhile: the store answers in the order in which it
        works, and every answer is counted at once.
        """
        depth = await self._store.depth()
        waiting, dead = depth.waiting - self.stored, depth.dead - self.counts.dead
        self.stored += waiting
        self.counts.waiting += waiting
        self.counts.dead += dead
        self.counts.received += waiting + dead
        if waiting:
            self.on_overdue()

    async def _recount_regularly(self) -> None:
        while True:
            try:
                depth = await self._store.depth()
                self.stored = depth.waiting
                self.counts.waiting = depth.waiting + self._group.count + self._committing_count()
                self.on_stored()
            except StoreError as error:
                logger.debug("the waiting events cannot be counted: %s", error)
            await asyncio.sleep(RECOUNT_SECONDS * random.uniform(0.9, 1.1))

    def _committing_count(self) -> int:
        return self._committing.count if self._committing is not None else 0

    async def _commit_groups(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._group.entries:
                await self._commit()
            if self._stopping:
                return

    async def _commit(self) -> None:
        group, self._group = self._group, self._new_group()
        self._committing, self._commit_began = group, asyncio.get_running_loop().time()
        try:
            await self._store.append(_chunks(group.entries, self._chunk_events, self.identity))
        except StoreError as error:
            await self._not_stored(group, error)
            return
        finally:
            self._committing, self._is_stalled = None, False
        if self.failure is not None:
            logger.error("events can be stored again")
            self.failure = None
        self.stored += group.count
        group.gate.open()
        group.decisions.open()
        self.on_stored()
        self.on_commit(group.entries)

    def _new_group(self) -> _Group:
        return _Group(one_gate=self._decisions_need_store)

    async def _not_stored(self, group: _Group, error: StoreError) -> None:
        self._failed(str(error))
        if self.durable:
            self._reject(group)
        else:
            self._group.entries[:0] = group.entries
            await asyncio.sleep(self._retry_seconds)
            self._wanted.set()

    def _reject(self, group: _Group) -> None:
        events = group.count
        self.counts.waiting -= events
        self.counts.rejected += events
        group.release(f"the event could not be stored: {self.failure}")

    def _failed(self, reason: str) -> None:
        self._log.error(reason, "events cannot be stored: %s", reason)
        self.failure = reason

    async def _watch_commits(self) -> None:
        """Release the responses that wait for a commit that has stalled, such as on a disk that does not respond."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._commit_seconds / 4)
            group = self._committing
            if group is None or loop.time() - self._commit_began < self._commit_seconds:
                continue
            self._failed(f"the store has not completed a write for {self._commit_seconds:g} s")
            if self.durable:
                self._is_stalled = True
                group.release(f"the event could not be stored in time: {self.failure}")
                pending, self._group = self._group, self._new_group()
                self._reject(pending)


def _chunks(group: Sequence[Entry], most_events: int, identity: Identity) -> list[NewChunk]:
    """Join a group into chunks of at most `most_events`, so that a chunk always fits into one request upstream."""
    chunks: list[NewChunk] = []
    bodies: list[bytes] = []
    events = 0
    for count, body, query in group:
        if query:
            chunks.append(NewChunk(count, body, query, identity))
            continue
        if events + count > most_events and bodies:
            chunks.append(NewChunk(events, b"\n".join(bodies), "", identity))
            bodies, events = [], 0
        bodies.append(body)
        events += count
    if bodies:
        chunks.append(NewChunk(events, b"\n".join(bodies), "", identity))
    return chunks
