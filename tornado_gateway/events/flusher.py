"""Delivery: claims stored events, sends them upstream in batches and settles them in the store.

A failure belongs to its batch, which is sent again later, whole or in pieces (`batches.py`), while others go on.
Delivery as a whole pauses only when nothing succeeds. Delivery is at least once: duplicates arise when the process
dies, or a response is lost, between the moment at which upstream accepts a request and the moment at which its events
leave the store.
"""

import asyncio
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import StoreError, UpstreamError
from tornado_gateway.events.batches import (
    CONTENT_STATUSES,
    KEY_STATUSES,
    SPLIT_PIECES,
    Claim,
    Part,
    RetryQueue,
    is_dead,
    pack,
    pieces_after,
)
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.store.interfaces import NO_IDENTITY, EventStore, Identity, NewChunk

logger = logging.getLogger(__name__)

CLAIMED_BATCHES = 4  # batches in one claim
PARALLEL_REQUESTS = 16  # concurrent requests of one worker
MAX_RETRYING = 128  # parts that wait for a retry; beyond it no new events are claimed, so that memory is bounded
PAUSES_BEFORE_CUT = 3  # without a success, after which a batch is split to find out whether any event succeeds
SETTLE_RETRY_SECONDS = 1.0  # after the store failed to settle a claim
REJECTIONS_BEFORE_PAUSE = 16  # more halvings than it takes to isolate one event of 5,000
RETRY_AFTER_LONGEST_SECONDS = 300.0


class RetryPolicy(NamedTuple):
    """The first and the longest pause, in seconds.

    `pause_...` is for delivery as a whole, while nothing succeeds; the SDKs wait 2, 4, 8 ... s (wire contract B.5). Its
    limit is also the longest time for which a failing event can delay others. `part_...` is for one failing batch.
    """

    pause_first: float = 2.0
    pause_longest: float = 30.0
    part_first: float = 1.0
    part_longest: float = 300.0


class EventSink(Protocol):
    """The vendor's collector."""

    async def send_batch(self, documents: bytes, identity: Identity) -> None:
        """Post event documents, joined by newlines, under the account and key under which they were accepted.

        NO_IDENTITY: the configured ones. Raise UpstreamError unless the events are accepted.
        """

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event to `/events/t?query`. Raise UpstreamError unless it is accepted."""


@dataclass(slots=True)
class LastFlush:
    """The result of the last request with events; `at` and `failing_since` are in unix seconds.

    `error` and `failing_since` are set while nothing succeeds.
    """

    at: float | None = None
    events: int = 0
    error: str | None = None
    failing_since: float | None = None


class Flusher:
    """Sends stored events upstream, in concurrent requests, and settles them in the store once they are accepted.

    It sends full batches as soon as there are any. It sends everything after `interval_seconds`, at start, after a
    pause, when the queue asks for it, and at stop.
    """

    def __init__(
        self,
        store: EventStore,
        queue: EventQueue,
        sink: EventSink,
        *,
        events_per_request: int,
        interval_seconds: float,
        retries: RetryPolicy | None = None,
    ) -> None:
        self.last = LastFlush()
        self.on_request: Callable[[str, float], None] = lambda outcome, seconds: None  # after each request upstream
        self._store = store
        self._queue = queue
        self._sink = sink
        self._events_per_request = events_per_request
        self._interval_seconds = interval_seconds
        policy = retries or RetryPolicy()
        self._pause = Backoff(policy.pause_first, policy.pause_longest)
        self._part_pause = Backoff(policy.part_first, policy.part_longest)
        self._log = ThrottledLog(logger)
        # Claims and their parts. Each part of a claim is in `_ready`, in `_retries`, or in flight.
        self._claims: set[Claim] = set()
        self._claimed = 0  # events in `_claims`
        self._ready: deque[Part] = deque()
        self._retries = RetryQueue()
        self._unsettled: list[Claim] = []  # all parts are done, but the store has failed to settle them
        # Outcomes of requests
        self._successes: Counter[Identity] = Counter()
        self._succeeded_at = -math.inf  # by the loop's clock
        self._recent_seconds = policy.pause_first
        self._failures = 0  # since the last success
        self._paused_until = 0.0
        self._pauses = 0  # since the last success
        self._cut: Claim | None = None  # whose parts are split although nothing succeeds
        self._owes_a_piece = False  # the first request after a pause is one of them
        self._retry_error = ""  # of the last part that is to be sent again
        # The present flush
        self._claiming = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._senders = 0
        self._must_drain = False  # claim batches that are not full as well
        self._drain_target = 0  # events to claim for that
        self._drain_at = math.inf  # when to begin it the next time
        # The loop around it
        self._is_flush_due = False
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        queue.on_stored = self._wake_if_a_batch_is_full
        queue.on_overdue = self._flush_everything_soon

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self, deadline_seconds: float) -> None:
        """Finish the requests in flight and flush once more, within the deadline. The rest remains stored."""
        if self._task is None:
            return
        self._stopping.set()
        self._woken.set()
        _, unfinished = await asyncio.wait([self._task], timeout=deadline_seconds)
        for task in unfinished:
            task.cancel()
            await asyncio.wait([task])
        self._task = None
        await self._give_back_claims()
        if self._queue.stored:
            logger.info("%d events remain stored", self._queue.stored)

    @property
    def retry_reason(self) -> str | None:
        """The reason why some events wait although delivery works; None if none do."""
        return f"some events failed and are sent again: {self._retry_error}" if self._retries else None

    async def flush(self, *, everything: bool) -> bool:
        """Send full batches, with `everything` all events that are stored now. Return False if delivery fails."""
        if everything:
            self._begin_draining()
        for claim in self._unsettled[:]:
            self._unsettled.remove(claim)
            await self._settle(claim)
        async with asyncio.TaskGroup() as self._group:
            self._start_sender(self._group)
        self._group = None
        return not self._failures

    def _begin_draining(self) -> None:
        """From now on claim batches that are not full as well, until all events that are stored now are claimed."""
        self._is_flush_due = False
        self._must_drain = True
        self._drain_target = self._queue.stored - self._claimed
        interval = self._interval_seconds * random.uniform(0.9, 1.0)
        self._drain_at = asyncio.get_running_loop().time() + interval

    # ---- The loop

    async def _run(self) -> None:
        await self.flush(everything=True)
        while not self._stopping.is_set():
            await self._wait()
            try:
                await self.flush(everything=self._is_flush_due)
            except Exception:  # a fault of ours in one batch must not end delivery
                logger.exception("delivery failed unexpectedly, retrying")
                self._paused_until = asyncio.get_running_loop().time() + self._pause.next()
            self._note_idle()
        self._paused_until = 0.0
        await self.flush(everything=True)

    async def _wait(self) -> None:
        """Wait until a batch is full, a retry is due or the interval is over; if delivery pauses, for the pause."""
        loop = asyncio.get_running_loop()
        pause = self._paused_until - loop.time()
        if pause > 0:
            self._is_flush_due = True
            await _wait_for(self._stopping, pause)
            return
        interval = max(0.0, self._drain_at - loop.time())
        retry = SETTLE_RETRY_SECONDS if self._unsettled else max(0.0, self._retries.due - loop.time())
        if not await _wait_for(self._woken, min(interval, retry)) and interval <= retry:
            self._is_flush_due = True
        self._woken.clear()

    def _wake_if_a_batch_is_full(self) -> None:
        if self._queue.stored - self._claimed < self._events_per_request:
            return
        if self._group is None or not self._senders:
            self._woken.set()
        else:
            self._start_another_sender(self._group)

    def _flush_everything_soon(self) -> None:
        self._is_flush_due = True
        self._woken.set()

    # ---- Senders: each sends one part after the other

    def _start_sender(self, group: asyncio.TaskGroup) -> None:
        self._senders += 1
        group.create_task(self._send_parts(group))

    def _start_another_sender(self, group: asyncio.TaskGroup) -> None:
        if self._senders < PARALLEL_REQUESTS:
            self._start_sender(group)

    async def _send_parts(self, group: asyncio.TaskGroup) -> None:
        try:
            while (part := await self._next_part()) is not None:
                if self._ready or self._has_retry_due() or self._is_worth_a_claim():
                    self._start_another_sender(group)
                await self._deliver(part)
        except StoreError as error:
            self._failed(error)
        finally:
            self._senders -= 1

    async def _next_part(self) -> Part | None:
        async with self._claiming:
            now = asyncio.get_running_loop().time()
            if now < self._paused_until:
                return None
            if self._is_flush_due or now >= self._drain_at:  # also during a flush that others keep going
                self._begin_draining()
            is_probing = self._paused_until > 0  # to find out whether anything succeeds, other events are tried first
            if not is_probing and self._has_retry_due():
                return self._retries.pop()
            if is_probing and self._owes_a_piece and self._ready and self._ready[0].successes_seen is not None:
                self._owes_a_piece = False
                return self._ready.popleft()
            needs_others = not self._ready or (is_probing and not self._has_untried_part())
            if needs_others and self._is_worth_a_claim():
                await self._claim_batches()
            if self._ready:
                return self._ready.pop() if is_probing and self._has_untried_part() else self._ready.popleft()
            return self._retries.pop() if self._retries and (is_probing or self._has_retry_due()) else None

    def _has_untried_part(self) -> bool:
        """True if the newest part that is ready is not a piece of a failed one: it is sent first after a failure."""
        return bool(self._ready) and self._ready[-1].successes_seen is None

    def _has_retry_due(self) -> bool:
        """True if a part is to be sent again now. At stop each one gets a last chance."""
        is_last_chance = self._stopping.is_set() and len(self._retries) > 0
        return is_last_chance or self._retries.due <= asyncio.get_running_loop().time()

    def _is_worth_a_claim(self) -> bool:
        # While nothing succeeds, events behind many that are known to fail have to show whether others succeed.
        waiting = self._retries.unexplained if self._failures else len(self._retries)
        if waiting >= MAX_RETRYING:
            return False
        return self._must_drain or self._queue.stored - self._claimed >= self._events_per_request

    async def _claim_batches(self) -> None:
        """Claim some batches. The store decides what there is; the count of stored events only says when to ask."""
        chunks = await self._store.claim(CLAIMED_BATCHES * self._events_per_request)
        batches = pack(chunks, self._events_per_request)
        events = sum([chunk.count for chunk in chunks])
        self._drain_target -= events
        if self._must_drain:
            self._must_drain = events > 0 and (self._drain_target > 0 or events >= self._events_per_request)
        elif len(batches) > 1 and sum([chunk.count for chunk in batches[-1]]) < self._events_per_request:
            await self._store.release(batches.pop())  # it may still fill up
        for batch in batches:
            claim = Claim(batch)
            self._claims.add(claim)
            self._claimed += claim.count
            self._ready.extend(claim.parts)

    # ---- One request and its outcome

    async def _deliver(self, part: Part) -> None:
        if part.events.count > self._events_per_request:  # stored when EVENTS_PER_REQUEST was larger
            self._ready.extendleft(reversed(part.split(-(-part.events.count // self._events_per_request))))
            return
        if part.successes_seen is None:
            part.successes_seen = self._successes[part.events.identity]
        try:
            await self._send(part.events)
        except UpstreamError as error:
            self._part_failed(part, error)
        else:
            self._succeeded(part.events)
            part.claim.delivered += part.events.count
            part.claim.parts.discard(part)
        if not part.claim.parts:
            await self._settle(part.claim)

    async def _send(self, events: NewChunk) -> None:
        before = time.monotonic()
        outcome = "failed"
        try:
            if events.query:
                await self._sink.send_event(events.query, events.body)
            else:
                await self._sink.send_batch(events.body, events.identity)
            outcome = "delivered"
        except UpstreamError as error:
            outcome = "refused" if 400 <= error.status < 500 else "failed"
            raise
        finally:
            self.on_request(outcome, time.monotonic() - before)

    def _part_failed(self, part: Part, error: UpstreamError) -> None:
        is_orphaned = self._is_orphaned(part.events.identity, error.status)
        others_succeed = self._others_succeed(part)
        if others_succeed or is_orphaned or self._is_alone(part):
            part.failures += 1
        pieces = 1 if is_orphaned else pieces_after(error.status, part)
        if pieces == 1 and self._may_cut(part):
            self._cut, pieces = part.claim, SPLIT_PIECES
        is_explained = is_orphaned or (part.is_culprit and not (part.is_repeated and self._failures))
        part.is_repeated = True
        if not is_explained:
            self._failures += 1
            is_isolating = pieces > 1 and error.status in CONTENT_STATUSES and self._failures <= REJECTIONS_BEFORE_PAUSE
            if not (is_isolating or self._has_succeeded_recently()):
                self._failed(error)
        is_full = len(self._retries) >= MAX_RETRYING
        if is_dead(error.status, part, is_orphaned, others_succeed=others_succeed, is_full=is_full):
            self._bury(part, error)
        elif self._stopping.is_set():
            return  # it goes back to the store with its claim
        elif pieces > 1:
            self._ready.extendleft(reversed(part.split(pieces)))
        else:
            delay = max(self._part_pause.after(max(1, part.failures)), _retry_after(error))
            self._retry_error = str(error)
            self._retries.push(asyncio.get_running_loop().time() + delay, part)

    def _may_cut(self, part: Part) -> bool:
        """True if a part is to be split although nothing shows that its events are to blame.

        If each batch holds an event that fails, none succeeds. Pieces of one of them find out.
        """
        return self._pauses >= PAUSES_BEFORE_CUT and part.events.count > 1 and self._cut in (None, part.claim)

    def _has_succeeded_recently(self) -> bool:
        """True if a request has succeeded so recently that a failure says nothing about delivery as a whole."""
        return asyncio.get_running_loop().time() - self._succeeded_at < self._recent_seconds

    def _is_orphaned(self, identity: Identity, status: int) -> bool:
        """True if VWO rejects a key that is not the configured one: nothing will make it valid again from here."""
        return status in KEY_STATUSES and identity not in (NO_IDENTITY, self._queue.identity)

    def _others_succeed(self, part: Part) -> bool:
        """True if requests with events of the same identity have succeeded since the last failure of this part."""
        seen, now = part.successes_seen, self._successes[part.events.identity]
        part.successes_seen = now
        return seen is not None and now > seen

    def _is_alone(self, part: Part) -> bool:
        """True if the success of no other events could show that the failure concerns some of these."""
        is_last = self._claims == {part.claim} and len(part.claim.parts) == 1 and self._queue.stored <= self._claimed
        return is_last and part.events.count > 1  # a single event need not be isolated

    def _bury(self, part: Part, error: UpstreamError) -> None:
        """Make events that fail while others succeed dead letters."""
        reason, count = str(error), part.events.count
        self._log.error(reason, "VWO rejected %d events permanently, they are dead letters now: %s", count, reason)
        part.claim.dead.append((part.events, reason))
        part.claim.parts.discard(part)

    async def _settle(self, claim: Claim) -> None:
        """Remove a claim from the store. If the store fails, it is tried again before the next flush."""
        try:
            await self._store.settle(claim.chunks, claim.dead, claim.remaining())
        except StoreError as error:
            self._log.error("settle", "delivered events could not be removed from the store, retrying: %s", error)
            self._unsettled.append(claim)
            return
        self._forget(claim)
        self._queue.settled(claim.delivered, claim.dead_count)
        if claim.dead:
            await self._queue.trim_dead_letters()

    def _forget(self, claim: Claim) -> None:
        self._claims.discard(claim)
        self._claimed -= claim.count

    async def _give_back_claims(self) -> None:
        """Return undelivered events to the store, so that the delivered ones are not sent again after a restart."""
        for claim in list(self._claims):
            try:
                if claim.is_untouched:
                    await self._store.release(claim.chunks)
                    self._forget(claim)
                else:
                    await self._settle(claim)
            except StoreError as error:
                logger.error("claimed events could not be given back to the store: %s", error)
        self._ready.clear()
        self._retries = RetryQueue()

    # ---- Whether delivery works

    def _note_idle(self) -> None:
        """Forget a failure if no events are left here: with a shared store another instance has delivered them."""
        if self._failures and not self._claims and self._queue.stored <= 0:
            self._reset_failures()
            self.last = LastFlush(at=self.last.at)

    def _succeeded(self, events: NewChunk) -> None:
        if self.last.failing_since is not None:
            self._log.error("delivered", "event delivery resumed after %.0f s", time.time() - self.last.failing_since)
        if self._pauses:  # an outage is over, and its failures say nothing about the parts that wait for a retry
            self._retries.make_due()
        self._successes[events.identity] += 1
        self._succeeded_at = asyncio.get_running_loop().time()
        self._reset_failures()
        self.last = LastFlush(at=time.time(), events=events.count)

    def _failed(self, error: UpstreamError | StoreError) -> None:
        """Note that nothing succeeds at the moment, and pause."""
        self._failures = max(1, self._failures)
        now = time.time()
        self._log.error(str(error), "event delivery failed, %d events remain stored: %s", self._queue.stored, error)
        self.last = LastFlush(at=now, error=str(error), failing_since=self.last.failing_since or now)
        loop_time = asyncio.get_running_loop().time()
        if loop_time >= self._paused_until:  # requests that were in flight together fail together: one failure
            self._paused_until = loop_time + max(self._pause.next(), _retry_after(error))
            self._pauses += 1
            self._owes_a_piece = True

    def _reset_failures(self) -> None:
        self._failures = self._pauses = 0
        self._cut = None
        self._paused_until = 0.0
        self._pause.reset()


def _retry_after(error: UpstreamError | StoreError) -> float:
    seconds: float = error.retry_after_seconds if isinstance(error, UpstreamError) else 0.0
    return min(seconds, RETRY_AFTER_LONGEST_SECONDS)


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event. Return False if it did not happen in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
