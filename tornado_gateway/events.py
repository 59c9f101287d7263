"""Events on their way: group commit into the store, then batches upstream.

`EventQueue.append` is the one entrance and `Flusher` the one exit. What is between them is counted so that at any time
received = delivered + waiting + dead + rejected.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import RequestError, StoreError, UpstreamError
from .http1 import Gate, json_error
from .store import NO_IDENTITY, Chunk, EventStore, Identity, NewChunk

logger = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 1.0  # pause after a failed commit of events that are acknowledged already
RECOUNT_SECONDS = 1.0  # how often a shared store is asked how many events wait
CLAIMED_BATCHES = 4  # how many are claimed at once
PARALLEL_REQUESTS = 16  # batches of one worker that may be on their way upstream at the same time
REFUSALS_BEFORE_DEAD = 3
REFUSAL_PAUSE_SECONDS = 0.5
BACKOFF_FIRST_SECONDS = 2.0  # as the SDKs: 2, 4, 8 ... (wire contract B.5)
BACKOFF_LONGEST_SECONDS = 60.0
RETRY_AFTER_LONGEST_SECONDS = 300.0
RETRIED_STATUSES = frozenset({408, 425, 429})  # 4xx that say "later", not "never"
SPLIT_STATUSES = frozenset({400, 413, 422})  # 4xx that may be about one event of the batch only

Entry = tuple[int, bytes, str]  # number of events, their documents joined by newlines, query as in `NewChunk`


@dataclass(slots=True)
class EventCounts:
    """received = delivered + waiting + dead + rejected."""

    received: int = 0
    waiting: int = 0
    delivered: int = 0
    dead: int = 0
    rejected: int = 0


class EventQueue:
    """Collects events and commits them to the store, many requests in one transaction.

    What arrives while a commit is under way forms the next group; at low load a commit starts at once. With `durable`
    an event counts as accepted when the gate of its group opens; if the store fails, the gate answers 503 and the
    client knows that the event was not taken. Without `durable` the event is acknowledged before the commit, so a group
    that cannot be stored is kept in memory and tried again.

    With `shared` other instances append to the store and deliver from it too: what waits is then counted by the store,
    for all of them, and `received = delivered + waiting + dead + rejected` holds for the sums over all instances.
    """

    def __init__(
        self, store: EventStore, *, limit: int, chunk_events: int, durable: bool = True, shared: bool = False
    ) -> None:
        self.counts = EventCounts()
        self.stored = 0  # committed and not yet settled
        self.failure: str | None = None  # why the last commit failed; None when it did not
        self.on_stored: Callable[[], None] = lambda: None
        self.on_overdue: Callable[[], None] = lambda: None  # there are events that have waited long enough
        self.on_commit: Callable[[Sequence[Entry]], None] = lambda group: None  # what has just become durable
        self.durable = durable
        self.identity = NO_IDENTITY  # under which the account's events are accepted now
        self._store = store
        self._limit = limit
        self._chunk_events = chunk_events
        self._shared = shared
        self._recounting: asyncio.Task[None] | None = None
        self._group: list[Entry] = []
        self._gate = Gate()
        self._wanted = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._shared:
            self._recounting = asyncio.create_task(self._recount_regularly())
        else:
            depth = await self._store.depth()
            self.stored = self.counts.waiting = depth.waiting
            self.counts.dead = depth.dead
            self.counts.received = depth.waiting + depth.dead
        self._task = asyncio.create_task(self._commit_groups())

    async def stop(self) -> None:
        """Commit what is still in memory. Call when nothing appends any more."""
        if self._recounting is not None:
            self._recounting.cancel()
            await asyncio.wait([self._recounting])
            self._recounting = None
        if self._task is not None:
            self._stopping = True
            self._wanted.set()
            await self._task
            self._task = None
        if self._group:
            lost = sum(count for count, _, _ in self._group)
            logger.error("%d events that were acknowledged at once (EVENT_ACK=fast) could not be stored", lost)

    def append(self, documents: bytes, count: int, query: str = "") -> Gate:
        """Take `count` event documents, joined by newlines; the gate opens when they are durable.

        Raises RequestError 503 when the queue is full. `query` as in `NewChunk`.
        """
        counts = self.counts
        counts.received += count
        if counts.waiting + count > self._limit:
            counts.rejected += count
            raise RequestError(503, f"the event queue is full: {counts.waiting} events wait (EVENT_QUEUE_LIMIT)")
        counts.waiting += count
        if not self._group:
            self._wanted.set()
        self._group.append((count, documents, query))
        return self._gate

    def settled(self, delivered: int, dead: int) -> None:
        """Events have left the queue."""
        self.stored -= delivered + dead
        self.counts.waiting -= delivered + dead
        self.counts.delivered += delivered
        self.counts.dead += dead

    async def requeued(self, events: int) -> None:
        """Dead events, of this worker or of others, are waiting again."""
        if not self._shared:
            await self.count_adopted()
            return
        self.stored += events
        self.counts.waiting += events
        self.counts.dead -= events
        self.on_overdue()

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
                self.counts.waiting = depth.waiting + sum(count for count, _, _ in self._group)
                self.on_stored()
            except StoreError as error:
                logger.debug("the waiting events cannot be counted: %s", error)
            await asyncio.sleep(RECOUNT_SECONDS * random.uniform(0.9, 1.1))

    async def _commit_groups(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._group:
                await self._commit()
            if self._stopping:
                return

    async def _commit(self) -> None:
        group, gate = self._group, self._gate
        self._group, self._gate = [], Gate()
        try:
            await self._store.append(_chunks(group, self._chunk_events, self.identity))
        except StoreError as error:
            await self._not_stored(group, gate, error)
            return
        if self.failure is not None:
            logger.error("events can be stored again")
            self.failure = None
        self.stored += sum(count for count, _, _ in group)
        gate.open()
        self.on_stored()
        self.on_commit(group)

    async def _not_stored(self, group: list[Entry], gate: Gate, error: StoreError) -> None:
        if self.failure is None:
            logger.error("events cannot be stored: %s", error)
        self.failure = str(error)
        if self.durable:
            events = sum(count for count, _, _ in group)
            self.counts.waiting -= events
            self.counts.rejected += events
            gate.fail(json_error(503, f"the event could not be stored: {error}"))
        else:
            self._group[:0] = group
            await asyncio.sleep(STORE_RETRY_SECONDS)
            self._wanted.set()


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


class EventSink(Protocol):
    """Where events go: the vendor's collector."""

    async def send_batch(self, documents: bytes, identity: Identity) -> None:
        """Post event documents that are joined by newlines, under the identity under which they were accepted.

        NO_IDENTITY stands for the configured one. Raises UpstreamError unless the answer is 200.
        """

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event to `/events/t?query`. Raises UpstreamError unless the answer is 200."""


@dataclass(slots=True)
class LastFlush:
    """What the last request upstream did; `at` is in unix seconds."""

    at: float | None = None
    events: int = 0
    error: str | None = None
    failing_since: float | None = None


class Flusher:
    """Sends what waits in the store upstream and settles it there only after a 200.

    It sends full batches as soon as there are any, and everything when `interval_seconds` have passed, at start (what
    a previous process left has waited long enough), when the queue says that something is overdue, and at stop.
    Delivery is at least once: a duplicate arises only when the process dies between upstream's 200 and `settle`, or
    when that 200 is lost on its way.
    """

    def __init__(
        self, store: EventStore, queue: EventQueue, sink: EventSink, *, events_per_request: int, interval_seconds: float
    ) -> None:
        self.last = LastFlush()
        self.on_request: Callable[[str, float], None] = lambda outcome, seconds: None  # after each request upstream
        self._store = store
        self._queue = queue
        self._sink = sink
        self._events_per_request = events_per_request
        self._interval_seconds = interval_seconds
        self._failures = 0
        self._retry_after_seconds = 0.0
        self._batches: deque[list[Chunk]] = deque()  # claimed, not on their way yet
        self._claimed = 0  # events, with those on their way
        self._claiming = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None  # the lanes of the flush under way
        self._lanes = 0
        self._overdue_events = 0  # that it has to claim although they do not fill a batch
        self._problems: list[UpstreamError | StoreError] = []  # which end it
        self._overdue = False
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        queue.on_stored = self._wake_if_a_batch_is_full
        queue.on_overdue = self._flush_everything_soon

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self, deadline_seconds: float) -> None:
        """Finish the flush under way and flush once more, both within the deadline; what is left stays stored."""
        if self._task is None:
            return
        self._stopping.set()
        self._woken.set()
        _, unfinished = await asyncio.wait([self._task], timeout=deadline_seconds)
        for task in unfinished:
            task.cancel()
            await asyncio.wait([task])
        self._task = None
        if self._queue.stored:
            logger.info("%d events stay stored", self._queue.stored)

    async def _run(self) -> None:
        await self.flush(everything=True)
        while not self._stopping.is_set():
            if self._failures:
                await self._pause(self._backoff_seconds())
                self._overdue = True
            else:
                await self._wait()
            everything, self._overdue = self._overdue, False
            await self.flush(everything=everything)
        await self.flush(everything=True)

    async def _wait(self) -> None:
        """Until a batch is full, or anything is overdue: after the interval at the latest."""
        seconds = self._interval_seconds * random.uniform(0.9, 1.0)
        timer = asyncio.get_running_loop().call_later(seconds, self._flush_everything_soon)
        await self._woken.wait()
        self._woken.clear()
        timer.cancel()

    async def flush(self, *, everything: bool) -> bool:
        """Send full batches, with `everything` all there is now. False as soon as upstream or the store fails."""
        self._overdue_events = self._queue.stored if everything else 0
        self._problems = []
        async with asyncio.TaskGroup() as self._group:
            self._open_lane(self._group)
        self._group = None
        if not self._problems:
            return True
        try:
            while self._batches:
                await self._release(self._batches.pop())
        except StoreError as error:
            self._problems.append(error)
        self._failed(self._problems[0])
        return False

    def _open_lane(self, group: asyncio.TaskGroup) -> None:
        """A lane sends one batch after the other; there are as many as there are batches to be sent at the moment."""
        self._lanes += 1
        group.create_task(self._send_batches(group))

    async def _send_batches(self, group: asyncio.TaskGroup) -> None:
        try:
            while not self._problems and (batch := await self._next_batch()):
                if self._lanes < PARALLEL_REQUESTS and (self._batches or self._is_enough()):
                    self._open_lane(group)
                failure = await self._deliver(batch)
                if failure is not None:
                    self._problems.append(failure)
                elif not self._problems:
                    self._succeeded(sum(chunk.count for chunk in batch))
        except StoreError as error:
            self._problems.append(error)
        finally:
            self._lanes -= 1

    async def _next_batch(self) -> list[Chunk] | None:
        async with self._claiming:
            if not self._batches and self._is_enough():
                await self._claim_batches()
            return self._batches.popleft() if self._batches else None

    def _is_enough(self) -> bool:
        """Whether what is stored and not claimed is worth a request."""
        return self._queue.stored - self._claimed >= (1 if self._overdue_events > 0 else self._events_per_request)

    async def _claim_batches(self) -> None:
        """Claim some and pack it, in order, into batches of whole chunks, each of one identity."""
        room = 0
        identity = NO_IDENTITY
        for chunk in await self._store.claim(CLAIMED_BATCHES * self._events_per_request):
            if chunk.query or chunk.count > room or chunk.identity != identity:
                self._batches.append([])
                room = self._events_per_request
                identity = chunk.identity
            self._batches[-1].append(chunk)
            self._claimed += chunk.count
            room = 0 if chunk.query else room - chunk.count
        is_overdue = self._overdue_events > 0
        self._overdue_events -= sum(chunk.count for batch in self._batches for chunk in batch)
        if not is_overdue and len(self._batches) > 1 and room > 0:
            await self._release(self._batches.pop())  # the last one may still fill up

    async def _release(self, batch: Sequence[Chunk]) -> None:
        self._claimed -= sum(chunk.count for chunk in batch)
        await self._store.release(batch)

    async def _deliver(self, batch: Sequence[Chunk]) -> UpstreamError | None:
        """Send one batch and settle it. Returns why something of it has to be sent again later, if so."""
        events, first = sum(chunk.count for chunk in batch), batch[0]
        whole = NewChunk(events, b"\n".join(chunk.body for chunk in batch), first.query, first.identity)
        try:
            dead, remaining, failure = await self._send_in_parts(whole)
            waiting = sum(part.count for part in remaining)
            if waiting == whole.count:
                await self._store.release(batch)
            else:
                try:
                    await self._store.settle(batch, dead, remaining)
                except StoreError:
                    await self._store.release(batch)
                    raise
                refused = sum(part.count for part, _ in dead)
                self._queue.settled(whole.count - waiting - refused, refused)
        finally:
            self._claimed -= whole.count
        return failure

    async def _send_in_parts(
        self, whole: NewChunk
    ) -> tuple[list[tuple[NewChunk, str]], list[NewChunk], UpstreamError | None]:
        """Send, and halve what upstream refuses until the events that it objects to stand alone.

        Returns the refused parts with the reason, the parts that must be sent later, and why.
        """
        dead: list[tuple[NewChunk, str]] = []
        todo = [whole]
        tries = REFUSALS_BEFORE_DEAD
        while todo:
            part = todo.pop()
            try:
                if part.count > self._events_per_request:  # stored when EVENTS_PER_REQUEST was larger
                    todo += _halves(part)
                    continue
                await self._send(part, tries)
            except UpstreamError as error:
                if not _is_refusal(error.status):
                    return dead, [part, *reversed(todo)], error
                if part.count > 1 and error.status in SPLIT_STATUSES:
                    todo += _halves(part)
                else:
                    logger.error("upstream refused %d events for good, they are dead letters: %s", part.count, error)
                    dead.append((part, str(error)))
            tries = 1
        return dead, [], None

    async def _send(self, part: NewChunk, tries: int) -> None:
        for remaining_tries in reversed(range(tries)):
            before = time.monotonic()
            try:
                if part.query:
                    await self._sink.send_event(part.query, part.body)
                else:
                    await self._sink.send_batch(part.body, part.identity)
                self.on_request("delivered", time.monotonic() - before)
                return
            except UpstreamError as error:
                self.on_request("refused" if _is_refusal(error.status) else "failed", time.monotonic() - before)
                if not remaining_tries or not _is_refusal(error.status) or error.status == 413:
                    raise
            await asyncio.sleep(REFUSAL_PAUSE_SECONDS)

    def _wake_if_a_batch_is_full(self) -> None:
        if self._queue.stored - self._claimed < self._events_per_request:
            return
        if self._group is None or not self._lanes:
            self._woken.set()
        elif self._lanes < PARALLEL_REQUESTS and not self._problems:
            self._open_lane(self._group)

    def _flush_everything_soon(self) -> None:
        self._overdue = True
        self._woken.set()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass

    def _backoff_seconds(self) -> float:
        longest = min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** (self._failures - 1))
        return max(longest * random.uniform(0.5, 1.0), self._retry_after_seconds)

    def _succeeded(self, events: int) -> None:
        if self.last.failing_since is not None:
            logger.error("events are delivered again, after %.0f s", time.time() - self.last.failing_since)
        self._failures, self._retry_after_seconds = 0, 0.0
        self.last = LastFlush(at=time.time(), events=events)

    def _failed(self, error: UpstreamError | StoreError) -> None:
        if self.last.failing_since is None:
            logger.error("events cannot be delivered, they stay stored: %s", error)
        self._failures += 1
        if isinstance(error, UpstreamError):
            self._retry_after_seconds = min(error.retry_after_seconds, RETRY_AFTER_LONGEST_SECONDS)
        now = time.time()
        self.last = LastFlush(at=now, error=str(error), failing_since=self.last.failing_since or now)


def _is_refusal(status: int) -> bool:
    """True if sending the same again later is pointless."""
    return 400 <= status < 500 and status not in RETRIED_STATUSES


def _halves(part: NewChunk) -> tuple[NewChunk, NewChunk]:
    """The second and the first half: in the order in which a stack wants them."""
    documents = part.body.split(b"\n")
    middle = len(documents) // 2
    first, second = documents[:middle], documents[middle:]
    whose = part.query, part.identity
    return NewChunk(len(second), b"\n".join(second), *whose), NewChunk(len(first), b"\n".join(first), *whose)
