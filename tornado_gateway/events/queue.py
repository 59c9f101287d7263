"""The queue of events: accepts them and stores them by group commit. `flusher.py` delivers them from the store.

At any time received = delivered + waiting + dead + rejected + discarded + lost.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from tornado_gateway.errors import QueueFullError, StoreError
from tornado_gateway.events.batches import REQUEST_BYTES, split_to_fit
from tornado_gateway.events.budget import ByteBudget
from tornado_gateway.events.group_commit import FULL_GROUP, Commits, Entry, Group, GroupCommit, Terms
from tornado_gateway.gate import Gate
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.store.interfaces import NO_IDENTITY, EventStore, Identity, NewChunk
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

DEFAULT_LIMIT_BYTES = 1024 * 1024 * 1024
EXPIRY_SECONDS = 600.0  # interval between looks for dead letters that are too old
RECOUNT_SECONDS = 1.0  # between two counts of the events in a shared store, if few environments share it


@dataclass(slots=True)
class EventCounts:
    """received = delivered + waiting + dead + rejected + discarded + lost.

    `rejected` events were never stored. `discarded` ones were dead letters beyond DEAD_LETTER_LIMIT or
    DEAD_LETTER_DAYS, or deleted ones, or events of a gateway without an account, or events of SDKs about themselves
    (INTERNAL_EVENTS): `discarded_internal` has the number of the last ones. `lost` ones were stored, and the store has
    lost them.
    """

    received: int = 0
    waiting: int = 0
    delivered: int = 0
    dead: int = 0
    rejected: int = 0
    discarded: int = 0
    lost: int = 0
    discarded_internal: int = 0


@dataclass(slots=True)
class _Kept:
    """The dead letters that are kept: at most `limit` events, for `seconds` (0: without an end).

    `log` is about those that are not. Each worker has its own, so each writes its lines.
    """

    limit: int
    seconds: float
    log: ThrottledLog
    due_at: float = 0.0

    def is_due(self, now: float) -> bool:
        """Return whether to look for old letters now, which is then the next time after EXPIRY_SECONDS."""
        if not self.seconds or now < self.due_at:
            return False
        self.due_at = now + min(EXPIRY_SECONDS, self.seconds)
        return True


class _Subscribers:
    """The functions that are called after a change, in the order of their subscription."""

    def __init__(self) -> None:
        self.stored: list[Callable[[], None]] = []
        self.flush_all: list[Callable[[], None]] = []
        self.committed: list[Callable[[Sequence[Entry]], None]] = []


class EventQueue:
    """Accepts events and commits them to the store, many requests in one transaction.

    With `durable` an event counts as accepted when a gate of its group opens. Without `durable` it is acknowledged
    before the commit, so a group that cannot be stored is kept in memory and tried again after `retry_seconds`.

    A commit that takes longer than `commit_seconds` is reported as a failure, and its responses are released. New
    events are rejected until it ends, so that memory is bounded.

    With `shared` other instances use the store as well. The store then counts the waiting events of all of them, and
    the sum of the counts holds over all instances. Of many environments each counts them `pace` times as rarely.
    `commits` begins the commits of all queues on the same connection.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        limit: int,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        chunk_events: int,
        dead_letter_limit: int = 100_000,
        dead_letter_seconds: float = 0.0,
        durable: bool = True,
        shared: bool = False,
        decisions_need_store: bool = False,
        commit_seconds: float = 5.0,
        retry_seconds: float = 1.0,
        pace: int = 1,
        commits: Commits | None = None,
    ) -> None:
        self.counts = EventCounts()
        self.stored = 0  # committed and not yet settled
        self.durable = durable
        self.identity = NO_IDENTITY  # under which the account's events are accepted now
        self.own_identities: tuple[Identity, ...] = (NO_IDENTITY,)  # of this environment, with previous SDK keys
        self._store = store
        self._limit = limit
        self._kept = _Kept(dead_letter_limit, dead_letter_seconds, ThrottledLog(logger))
        self._shared = shared
        self._budget = ByteBudget(limit_bytes)
        self._log = ThrottledLog(logger, condition="impressions")
        self._subscribers = _Subscribers()
        self._seen = (0, 0, 0)  # `lost`, `repairs` and `letters_version` of the store, as they are in the counts
        self._recounting = Periodic(self._recount, RECOUNT_SECONDS * pace, jitter=0.2)
        self._commits = GroupCommit(
            store,
            partial(self._chunks, chunk_events),
            self._group_stored,
            self._group_rejected,
            self._budget,
            commits or Commits(),
            Terms(durable, commit_seconds, retry_seconds),
            one_gate=decisions_need_store,
        )

    def subscribe(
        self,
        *,
        stored: Callable[[], None] | None = None,
        flush_all: Callable[[], None] | None = None,
        committed: Callable[[Sequence[Entry]], None] | None = None,
    ) -> None:
        """Call `stored` when events have been stored, and `flush_all` if these have waited long enough already.

        `committed` is called with the entries of each commit.
        """
        if stored is not None:
            self._subscribers.stored.append(stored)
        if flush_all is not None:
            self._subscribers.flush_all.append(flush_all)
        if committed is not None:
            self._subscribers.committed.append(committed)

    def use_limit(self, limit: int) -> None:
        """Accept events up to this number of waiting ones from now on."""
        self._limit = limit

    def use_identity(self, identity: Identity, others: Sequence[Identity] = ()) -> None:
        """Accept the account's events under this identity from now on. The `others` are of the same environment."""
        self.identity = identity
        self.own_identities = (NO_IDENTITY, identity, *others)

    @property
    def failure(self) -> str | None:
        """The reason why the commit in progress, or the last one, failed; None if it did not."""
        return self._commits.failure

    async def start(self) -> None:
        self._seen = self._now_seen()
        self._recounting.start(at_once=self._shared, phase=random.random())
        if not self._shared:
            depth = await self._store.depth()
            self.stored = self.counts.waiting = depth.waiting
            self._budget.set_stored(depth.waiting_bytes)
            self.counts.dead = depth.dead
            self.counts.received = depth.waiting + depth.dead
        self._commits.start()

    async def stop(self) -> None:
        """Commit the events that are still in memory. Call when nothing appends any more."""
        await self._commits.stop()
        await self._recounting.end()
        if self._commits.pending.entries:
            count = self._commits.pending.count
            logger.error("%d acknowledged events (EVENT_ACK=fast) were lost, because they could not be stored", count)

    # --- Accepting ---

    def append(self, documents: bytes, count: int) -> Gate:
        """Accept `count` event documents, joined by newlines. The gate opens when they are durable.

        Raise QueueFullError if they cannot be accepted now.
        """
        group = self._accept(documents, count)
        if group is None:
            raise QueueFullError(self._rejection())
        return group.gate

    def append_impressions(self, documents: bytes, count: int) -> Gate | None:
        """Accept the events of a decision, whose response is never withheld for them.

        The gate opens when they are durable, or when it is certain that they will not be. None: they were rejected.
        With `decisions_need_store` (EVENT_QUEUE_FULL=refuse) the same as `append`.
        """
        group = self._accept(documents, count)
        if group is not None:
            return group.decisions
        if self._commits.pending.has_one_gate:
            raise QueueFullError(self._rejection())
        self._log.warning("full", "impressions were rejected, decisions continue: %s", self._rejection())
        return None

    def _accept(self, documents: bytes, count: int) -> Group | None:
        """Add events to the pending group. None: they were rejected."""
        counts = self.counts
        commits = self._commits
        group = commits.pending
        waiting = counts.waiting + count
        size = group.size + len(documents)
        counts.received += count
        if waiting > self._limit or size > self._budget.most:
            counts.rejected += count
            self._recounting.hasten(RECOUNT_SECONDS)  # others may have emptied the shared store
            return None
        counts.waiting = waiting
        group.size = size
        group.count += count
        entries = group.entries
        if not entries:
            commits.want()
        entries.append((count, documents))
        if len(entries) == FULL_GROUP:
            commits.hurry()
        return group

    def _rejection(self) -> str:
        if self._budget.is_closed:
            return f"events cannot be stored at the moment: {self.failure or 'the queue is closed'}"
        size = self._budget.stored + self._budget.committing + self._commits.pending.size
        waiting = f"{self.counts.waiting} events wait, {size} bytes"
        return f"the event queue is full: {waiting} (EVENT_QUEUE_LIMIT, EVENT_QUEUE_BYTES)"

    def reject(self, count: int) -> None:
        """Count events that arrived but are not to be stored."""
        self.counts.received += count
        self.counts.rejected += count

    def discard_internal(self, count: int) -> None:
        """Count events that arrived but are not to be forwarded (INTERNAL_EVENTS)."""
        self.counts.received += count
        self.counts.discarded += count
        self.counts.discarded_internal += count

    # --- Storing ---

    def _chunks(self, chunk_events: int, group: Group) -> list[NewChunk]:
        return _chunks(group, chunk_events, self.identity)

    def _group_stored(self, group: Group) -> None:
        self.stored += group.count
        group.open()
        for notify in self._subscribers.stored:
            notify()
        for receive in self._subscribers.committed:
            receive(group.entries)

    def _group_rejected(self, group: Group) -> None:
        self.counts.waiting -= group.count
        self.counts.rejected += group.count

    # --- Stored events ---

    def record_settled(self, delivered: int, dead: int, size: int, *, discards: bool = False) -> None:
        """Count events that have left the queue, together `size` bytes. With `discards` they were not delivered."""
        self.stored -= delivered + dead
        self.counts.waiting -= delivered + dead
        if discards:
            self.counts.discarded += delivered
        else:
            self.counts.delivered += delivered
        self.counts.dead += dead
        self._budget.settle(size, self.stored)

    async def requeue(self, ids: Sequence[int | str] | None = None) -> int:
        """Move dead letters (None: all) back into the queue, as many as fit into it. Return the number of events.

        Raise QueueFullError, or StoreError.
        """
        moved = await self._store.requeue(ids, self._check_room())
        await self._note_requeued(moved)
        return moved

    def _check_room(self) -> int:
        """Return the number of events that fit into the queue. Raise QueueFullError if none does."""
        room = self._limit - self.counts.waiting
        if room <= 0 or self._budget.most <= 0:
            raise QueueFullError(self._rejection())
        return room

    async def _note_requeued(self, moved: int) -> None:
        if self._shared:
            self._record_requeued(moved)
        else:
            await self._recount_letters()

    async def _recount_letters(self) -> None:
        """Count after letters have changed. If the store fails now, the next recount repeats it."""
        self._seen = (*self._seen[:2], -1)
        with suppress(StoreError):
            await self.recount_after_adoption()

    def _record_requeued(self, moved: int) -> None:
        self.stored += moved
        self.counts.waiting += moved
        self.counts.dead -= moved
        self.flush_soon()

    async def trim_dead_letters(self) -> None:
        """Discard the oldest dead letters beyond the limit. Best effort: the next dead letter tries again."""
        if not self._shared and self.counts.dead <= self._kept.limit:
            return
        try:
            discarded = await self._store.trim_dead_letters(self._kept.limit)
        except StoreError as error:
            logger.debug("dead letters could not be discarded, they are kept until the next one: %s", error)
            return
        self._count_discarded(discarded)
        if discarded:
            self._kept.log.warning("limit", "the oldest %d dead letters were discarded (DEAD_LETTER_LIMIT)", discarded)

    async def _expire_dead_letters(self) -> None:
        """Discard dead letters that are too old, if it is time to look for them. Best effort: the next time is soon."""
        now = time.time()
        if not self._kept.is_due(now):
            return
        try:
            discarded = await self._store.expire_dead_letters(now - self._kept.seconds)
        except StoreError as error:
            logger.debug("old dead letters could not be discarded, they are kept until the next time: %s", error)
            return
        self._count_discarded(discarded)
        if discarded:
            logger.warning("%d dead letters were discarded because of their age (DEAD_LETTER_DAYS)", discarded)

    def _count_discarded(self, events: int) -> None:
        self.counts.dead -= events
        self.counts.discarded += events

    async def discard(self, ids: Sequence[int | str]) -> int:
        """Delete dead letters. Return the number of events. Raise StoreError."""
        discarded = await self._store.discard_dead_letters(ids)
        if self._shared:
            self._count_discarded(discarded)
            return discarded
        # They may be those of other workers, where they count as received: here they do now, there no more.
        self.counts.discarded += discarded
        self.counts.received += discarded
        await self._recount_letters()
        return discarded

    async def requeue_edited(self, id_: int | str, body: bytes) -> int:
        """Move a dead letter of one event back into the queue with this body, as `requeue` does."""
        self._check_room()
        moved = await self._store.requeue_edited(id_, body)
        await self._note_requeued(moved)
        return moved

    def _now_seen(self) -> tuple[int, int, int]:
        return self._store.lost, self._store.repairs, self._store.letters_version

    async def recount_after_adoption(self) -> None:
        """Count as received the events that the store has obtained from elsewhere, such as the log of a dead worker.

        The difference is exact although others append and settle meanwhile, because the store responds in the order of
        its operations and each response is counted at once. A shared store counts for all machines.
        """
        if self._shared:
            await self._recount()
            return
        _, repairs, version = self._now_seen()
        depth = await self._store.depth()
        waiting, dead = depth.waiting - self.stored, depth.dead - self.counts.dead
        self.stored += waiting
        self.counts.waiting += waiting
        self.counts.dead += dead
        missing = -min(0, waiting) - (min(0, dead) if repairs != self._seen[1] else 0)
        self.counts.received += waiting + dead + missing
        self._seen = (self._seen[0], repairs, version)
        self._budget.set_stored(depth.waiting_bytes)
        self._count_lost(missing)
        if waiting > 0:
            self.flush_soon()

    def _count_lost(self, events: int) -> None:
        if events:
            self.counts.lost += events
            logger.error("%d stored events are lost: the store no longer has them", events)

    def flush_soon(self) -> None:
        """Have all stored events sent without waiting for more."""
        for flush in self._subscribers.flush_all:
            flush()

    async def _recount(self) -> None:
        """Count lost events, and ask a shared store for its number of waiting events."""
        await self._expire_dead_letters()
        try:
            if not self._shared:
                if self._now_seen()[1:] != self._seen[1:]:
                    await self.recount_after_adoption()
                return
            depth = await self._store.depth(patient=True)
        except StoreError as error:
            logger.debug("the waiting events could not be counted: %s", error)
            return
        lost, self._seen = self._store.lost - self._seen[0], self._now_seen()
        self._count_lost(lost)
        self.stored = depth.waiting
        self.counts.waiting = depth.waiting + self._commits.uncommitted
        self._budget.set_stored(depth.waiting_bytes)
        for notify in self._subscribers.stored:
            notify()


def _chunks(group: Group, most_events: int, identity: Identity) -> list[NewChunk]:
    """Join a group into chunks, so that each fits into one request: at most `most_events`, and REQUEST_BYTES."""
    entries = group.entries
    if group.count <= most_events and group.size + len(entries) <= REQUEST_BYTES:  # nearly always: it is one chunk
        return [NewChunk(group.count, b"\n".join([body for _, body in entries]), "", identity)]
    return _several_chunks(entries, most_events, identity)


def _several_chunks(entries: Sequence[Entry], most_events: int, identity: Identity) -> list[NewChunk]:
    chunks: list[NewChunk] = []
    bodies: list[bytes] = []
    events = size = 0
    for count, body in entries:
        if bodies and (events + count > most_events or size + len(body) > REQUEST_BYTES):
            chunks.append(NewChunk(events, b"\n".join(bodies), "", identity))
            bodies, events, size = [], 0, 0
        if count > 1 and (count > most_events or len(body) > REQUEST_BYTES):
            chunks += split_to_fit(NewChunk(count, body, "", identity), most_events, REQUEST_BYTES)
            continue
        bodies.append(body)
        events += count
        size += len(body) + 1
    if bodies:
        chunks.append(NewChunk(events, b"\n".join(bodies), "", identity))
    return chunks
