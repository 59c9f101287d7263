"""Delivery: claims stored events, sends them upstream in batches and settles them in the store.

A failure belongs to its batch, which is sent again later, whole or in pieces (`batches.py`), while others continue.
Delivery as a whole pauses only when nothing succeeds (`outcomes.py`). Delivery is at least once: duplicates arise when
the process dies, or a response is lost, between the moment at which upstream accepts a request and the moment at which
its events leave the store.
"""

import asyncio
import logging
from collections.abc import Callable

from tornado_gateway.errors import StoreError, UpstreamError
from tornado_gateway.events.batches import (
    KEY_STATUSES,
    SPLIT_PIECES,
    Claim,
    Part,
    is_dead,
    pack,
    pieces_after,
    split_to_fit,
)
from tornado_gateway.events.claims import MAX_CLAIMED_BYTES, Claims
from tornado_gateway.events.outcomes import LastFlush, Outcomes, RetryPolicy
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.events.requests import EventSink, Requests
from tornado_gateway.events.schedule import FlushSchedule
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.store.interfaces import CLAIM_BYTES, Chunk, EventStore, Identity, NewChunk
from tornado_gateway.tasks import Share, SharedLimit, end_tasks, wait_at_most

logger = logging.getLogger(__name__)

CLAIMED_BATCHES = 4  # batches in one claim
PARALLEL_REQUESTS = 16  # concurrent requests of one worker, for all environments together
RESPONSE_BYTES = 300  # of VWO's response that a dead letter keeps
SETTLE_RETRY_SECONDS = 1.0  # after the store failed to settle a claim


CONTENT_LOST = "their content was lost with a damaged file of the store"
DISCARDING = "events are discarded, because no account is configured"


class Flusher:
    """Sends stored events upstream, in concurrent requests, and settles them in the store once they are accepted.

    It sends full batches as soon as there are any. It sends everything after `interval_seconds`, at start, after a
    pause, when the queue asks for it, and at stop. `on_request` is called after each request with its outcome
    ("delivered", "refused" or "failed") and its duration in seconds. With `discards` the sink delivers nothing, and its
    events count as discarded. `share` limits the concurrent requests of all flushers of this worker.
    At most `claimed_bytes` of events are in memory, apart from the last claim. `phase` is the share of the first
    interval that is left out.
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
        on_request: Callable[[str, float], None] = lambda outcome, seconds: None,
        discards: bool = False,
        share: Share | None = None,
        claimed_bytes: int = MAX_CLAIMED_BYTES,
        phase: float = 0.0,
    ) -> None:
        self._store = store
        self._queue = queue
        share = share or SharedLimit(PARALLEL_REQUESTS).share()
        self._requests = Requests(sink, on_request, share, discards=discards)
        self._events_per_request = events_per_request
        self._log = ThrottledLog(logger)
        self._claims = Claims(claimed_bytes, store.drop_bodies)
        self._claim_bytes = min(CLAIM_BYTES, claimed_bytes)
        self._outcomes = Outcomes(retries or RetryPolicy())
        self._schedule = FlushSchedule(interval_seconds, phase)
        self._claiming = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None  # the senders of the flush in progress
        self._senders = 0
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        queue.subscribe(stored=self._wake_if_a_batch_is_full, flush_all=self._flush_all_soon)

    async def start(self) -> None:
        if self._requests.discards:
            logger.info("%s. Set ACCOUNT_ID and SDK_KEY to deliver them", DISCARDING)
        self._task = asyncio.create_task(self._run())

    async def stop(self, deadline_seconds: float) -> None:
        """Finish the requests in flight and flush once more, within the deadline. The rest remains stored."""
        if self._task is None:
            return
        self._stopping.set()
        self._woken.set()
        await asyncio.wait([self._task], timeout=deadline_seconds)
        await end_tasks(self._task)
        self._task = None
        self._requests.close()
        await self._give_back_claims()
        if self._queue.stored:
            logger.info("%d events remain stored", self._queue.stored)

    @property
    def last(self) -> LastFlush:
        """The result of the last request with events."""
        return self._outcomes.last

    @property
    def notice(self) -> str | None:
        """The reason why no events are delivered although nothing fails; None if they are."""
        return DISCARDING if self._requests.discards else None

    @property
    def retry_reason(self) -> str | None:
        """The reason why some events wait although delivery works; None if none do."""
        claims = self._claims
        return f"some events failed and are sent again: {claims.retry_error}" if claims.retries else None

    @property
    def _unclaimed(self) -> int:
        """The number of stored events that are not claimed."""
        return self._queue.stored - self._claims.events

    async def flush(self, *, everything: bool) -> bool:
        """Send full batches, with `everything` all events that are stored now. Return False if delivery fails."""
        if everything:
            self._schedule.begin(self._unclaimed)
        unsettled = self._claims.unsettled
        for claim in unsettled[:]:
            unsettled.remove(claim)
            await self._settle(claim)
        async with asyncio.TaskGroup() as self._group:
            self._start_sender(self._group)
        self._group = None
        return not self._outcomes.failures

    # --- The loop ---

    async def _run(self) -> None:
        await self.flush(everything=True)
        while not self._stopping.is_set():
            await self._wait()
            try:
                await self.flush(everything=self._schedule.is_due)
            except Exception:  # a fault of ours in one batch must not end delivery
                logger.exception("delivery failed unexpectedly, retrying")
                self._outcomes.pause()
            self._note_idle()
        self._outcomes.resume()
        await self.flush(everything=True)

    async def _wait(self) -> None:
        """Wait until a batch is full, a retry is due or the interval is over; if delivery pauses, for the pause."""
        now, claims = asyncio.get_running_loop().time(), self._claims
        pause = self._outcomes.paused_until - now
        if pause > 0:
            self._schedule.is_due = True
            await wait_at_most(self._stopping, pause)
            return
        interval = max(0.0, self._schedule.next_at - now)
        retry = SETTLE_RETRY_SECONDS if claims.unsettled else max(0.0, claims.retries.due - now)
        if not await wait_at_most(self._woken, min(interval, retry)) and interval <= retry:
            self._schedule.is_due = True
        self._woken.clear()

    def _has_full_batch(self) -> bool:
        stored = self._queue.stored
        return stored - self._claims.events >= self._events_per_request and not self._schedule.waits(stored)

    def _wake_if_a_batch_is_full(self) -> None:
        if not self._has_full_batch():
            return
        if self._group is None or not self._senders:
            self._woken.set()
        else:
            self._start_another_sender(self._group)

    def _flush_all_soon(self) -> None:
        self._schedule.is_due = True
        self._woken.set()

    def _note_idle(self) -> None:
        """Forget a failure if no events are left here: with a shared store another instance has delivered them."""
        if self._outcomes.failures and not self._claims and self._queue.stored <= 0:
            self._outcomes.forget()

    # --- Senders: each sends one part after the other ---

    def _start_sender(self, group: asyncio.TaskGroup) -> None:
        self._senders += 1
        group.create_task(self._send_parts(group))

    def _start_another_sender(self, group: asyncio.TaskGroup) -> None:
        if self._senders < PARALLEL_REQUESTS:
            self._start_sender(group)

    async def _send_parts(self, group: asyncio.TaskGroup) -> None:
        try:
            while (part := await self._next_part()) is not None:
                if self._claims.ready or self._has_retry_due() or self._is_worth_a_claim():
                    self._start_another_sender(group)
                await self._deliver(part)
        except StoreError as error:
            self._outcomes.failed(error)
        finally:
            self._senders -= 1

    async def _next_part(self) -> Part | None:
        claims, outcomes = self._claims, self._outcomes
        async with self._claiming:
            if asyncio.get_running_loop().time() < outcomes.paused_until:
                return None
            self._schedule.begin_if_due(self._unclaimed)  # also during a flush that other senders prolong
            is_probing = outcomes.is_probing  # to find out whether anything succeeds, other events are tried first
            if not is_probing and self._has_retry_due():
                return claims.retries.pop()
            if is_probing and claims.has_tried and outcomes.takes_a_piece():
                return claims.ready.popleft()
            needs_others = not claims.ready or (is_probing and not claims.has_untried)
            if needs_others and self._is_worth_a_claim():
                await self._claim_batches()
            if claims.ready:
                return claims.ready.pop() if is_probing and claims.has_untried else claims.ready.popleft()
            return claims.retries.pop() if claims.retries and (is_probing or self._has_retry_due()) else None

    def _has_retry_due(self) -> bool:
        """Return whether a part is to be sent again now. At stop each part gets a last attempt."""
        retries = self._claims.retries
        is_last_chance = self._stopping.is_set() and len(retries) > 0
        return is_last_chance or retries.due <= asyncio.get_running_loop().time()

    def _is_worth_a_claim(self) -> bool:
        if not self._claims.has_room(during_outage=self._outcomes.failures > 0):
            return False
        return self._schedule.must_drain or self._has_full_batch()

    async def _claim_batches(self) -> None:
        """Claim some batches. The store decides which; the count of stored events only shows when to ask."""
        chunks = await self._store.claim(CLAIMED_BATCHES * self._events_per_request, self._claim_bytes)
        batches = pack(chunks, *self._most)
        if self._schedule.must_drain:
            self._schedule.record_claimed(sum([chunk.count for chunk in chunks]), self._events_per_request)
        elif batches and self._may_be_filled(batches):
            await self._store.release(batches.pop())  # more events may still fill it
        for batch in batches:
            self._claims.add(batch)

    def _may_be_filled(self, batches: list[list[Chunk]]) -> bool:
        """Return whether the last batch is not full, and may wait for more events."""
        last = batches[-1]
        missing = self._events_per_request - sum([chunk.count for chunk in last])
        if missing <= 0 or len(batches) > 1:
            return missing > 0
        if 2 * sum([len(chunk.body) for chunk in last]) > self._claim_bytes:  # the bytes have ended the claim
            return False
        return self._schedule.may_wait(last[0].id, missing, self._queue.stored)

    # --- One request and its outcome ---

    @property
    def _most(self) -> tuple[int, int]:
        """The limits of a request, in events and bytes."""
        return self._events_per_request, self._outcomes.request_bytes

    async def _deliver(self, part: Part) -> None:
        if self._is_too_large(part.events):
            self._claims.replace(part, split_to_fit(part.events, *self._most))
            return
        if not part.events.body:
            self._log.error("content", "%d events are dead letters now: %s", part.events.count, CONTENT_LOST)
            self._claims.died(part, CONTENT_LOST)
        else:
            await self._send(part)
        if not part.claim.parts:
            await self._settle(part.claim)

    async def _send(self, part: Part) -> None:
        self._outcomes.begin(part)
        try:
            await self._requests.send(part.events)
        except UpstreamError as error:
            self._part_failed(part, error)
        else:
            self._part_succeeded(part)

    def _is_too_large(self, events: NewChunk) -> bool:
        """Return whether events have to be split, such as those stored when EVENTS_PER_REQUEST was larger."""
        if events.count == 1:
            return False
        return events.count > self._events_per_request or len(events.body) > self._outcomes.request_bytes

    def _part_succeeded(self, part: Part) -> None:
        if self._outcomes.succeeded(part.events):  # the failures during an outage say nothing about its parts
            self._claims.retries.make_due()
        self._claims.delivered(part)

    def _part_failed(self, part: Part, error: UpstreamError) -> None:
        outcomes = self._outcomes
        if error.is_timeout:
            outcomes.timed_out(part)
        is_orphaned = self._is_orphaned(part.events.identity, error.status)
        others_succeed = outcomes.others_succeed(part)
        if others_succeed or is_orphaned or self._is_alone(part):
            part.failures += 1
        pieces = 1 if is_orphaned else pieces_after(error.status, part)
        if pieces == 1 and outcomes.is_cut(part):
            pieces = SPLIT_PIECES
        is_explained = is_orphaned or (part.is_culprit and not (part.is_repeated and outcomes.failures))
        part.is_repeated = True
        if not is_explained:
            outcomes.part_failed(error, is_isolating=pieces > 1)
        is_full = self._claims.is_full
        if is_dead(error.status, part, is_orphaned, others_succeed=others_succeed, is_full=is_full):
            self._bury(part, error)
        elif not self._stopping.is_set():  # otherwise it goes back to the store with its claim
            self._send_again(part, pieces, error)

    def _send_again(self, part: Part, pieces: int, error: UpstreamError) -> None:
        if pieces > 1:
            self._claims.split(part, pieces)
        else:
            self._claims.retry_later(part, self._outcomes.retry_seconds(part, error), str(error))

    def _is_orphaned(self, identity: Identity, status: int) -> bool:
        """Return whether VWO rejects a key that is not configured, so that nothing here can make it valid."""
        return status in KEY_STATUSES and identity not in self._queue.own_identities

    def _is_alone(self, part: Part) -> bool:
        """Return whether the success of no other events could show that the failure concerns some of these."""
        is_last = self._claims.is_last(part) and self._unclaimed <= 0
        return is_last and part.events.count > 1  # a single event need not be isolated

    def _bury(self, part: Part, error: UpstreamError) -> None:
        """Make events that fail while others succeed dead letters."""
        reason, count = str(error), part.events.count
        self._log.error(reason, "VWO rejected %d events permanently, they are dead letters now: %s", count, reason)
        response = _excerpt(error.response, part.events.identity.sdk_key)
        self._claims.died(part, f"{reason}\n{response}" if response else reason)

    # --- Settling ---

    async def _settle(self, claim: Claim) -> None:
        """Remove a claim from the store. If the store fails, it is tried again before the next flush."""
        remaining = claim.remaining()
        try:
            await self._store.settle(claim.chunks, claim.dead, remaining)
        except StoreError as error:
            self._log.error("settle", "delivered events could not be removed from the store, retrying: %s", error)
            claim.drop_bodies()
            self._claims.unsettled.append(claim)
            return
        self._claims.forget(claim)
        size = claim.size - sum([len(events.body) for events in remaining])
        self._queue.record_settled(claim.delivered, claim.dead_count, size, discards=self._requests.discards)
        if claim.dead:
            await self._queue.trim_dead_letters()

    async def _give_back_claims(self) -> None:
        """Return undelivered events to the store, so that the delivered ones are not sent again after a restart."""
        for claim in self._claims.all():
            try:
                if claim.is_untouched:
                    await self._store.release(claim.chunks)
                    self._claims.forget(claim)
                else:
                    await self._settle(claim)
            except StoreError as error:
                logger.error("claimed events could not be returned to the store: %s", error)
        self._claims.drop_parts()


def _excerpt(response: bytes, sdk_key: str) -> str:
    """Return the beginning of a response as one line without the SDK key, which error pages may repeat."""
    text = response.decode("utf-8", "replace")
    text = " ".join(text.replace(sdk_key, "****").split() if sdk_key else text.split())
    return text.encode()[:RESPONSE_BYTES].decode("utf-8", "ignore")
