"""The outcomes of requests with events, and whether delivery as a whole works. Used by `flusher.py`."""

import asyncio
import logging
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import StoreError, UpstreamError
from tornado_gateway.events.batches import CONTENT_STATUSES, REQUEST_BYTES, Claim, Part
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.store.interfaces import Identity, NewChunk

logger = logging.getLogger(__name__)

PAUSES_BEFORE_CUT = 3  # without a success; then a batch is split to find out whether any event succeeds
REJECTIONS_BEFORE_PAUSE = 16  # more halvings than it takes to isolate one event of 5,000
SMALLEST_REQUEST_BYTES = 64 * 1024  # a smaller one is hardly faster
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


@dataclass(slots=True)
class LastFlush:
    """The result of the last request with events; `at` and `failing_since` are in unix seconds.

    `error` and `failing_since` are set while nothing succeeds. `status` is that of VWO, 0 without a response, None if
    the error is not one of VWO.
    """

    at: float | None = None
    events: int = 0
    error: str | None = None
    failing_since: float | None = None
    status: int | None = None


class Outcomes:
    """Counts successes and failures, and decides on pauses of delivery.

    `failures` counts those since the last success that may concern delivery as a whole. While nothing succeeds,
    delivery pauses until `paused_until` (by the clock of the loop, 0 after a success). After a pause it is probing.
    A request has at most `request_bytes`: a time-out halves them, and each success adds an eighth.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self.last = LastFlush()
        self.failures = 0
        self.paused_until = 0.0
        self.request_bytes = REQUEST_BYTES
        self._pause = Backoff(policy.pause_first, policy.pause_longest)
        self._part_pause = Backoff(policy.part_first, policy.part_longest)
        self._recent_seconds = policy.pause_first
        self._successes: Counter[Identity] = Counter()
        self._succeeded_at = -math.inf  # by the clock of the loop
        self._pauses = 0  # since the last success
        self._cut: Claim | None = None  # the claim whose parts are split although nothing succeeds
        self._owes_a_piece = False  # the first request after a pause is one of its parts
        self._log = ThrottledLog(logger, condition="delivery")

    @property
    def is_probing(self) -> bool:
        """True while nothing has succeeded since a pause."""
        return self.paused_until > 0

    def pause(self) -> None:
        """Pause without a failure of a request."""
        self.paused_until = asyncio.get_running_loop().time() + self._pause.next()

    def resume(self) -> None:
        """End a pause early."""
        self.paused_until = 0.0

    def forget(self) -> None:
        """Forget the failures, because there are no events left that could show that delivery works again."""
        self._reset()
        self.last = LastFlush(at=self.last.at)

    def takes_a_piece(self) -> bool:
        """Return whether a part of a failed batch is to be sent next: once after each pause."""
        owed, self._owes_a_piece = self._owes_a_piece, False
        return owed

    # --- Requests ---

    def begin(self, part: Part) -> None:
        """Note the successes before the first attempt to send a part."""
        if part.successes_seen is None:
            part.successes_seen = self._successes[part.events.identity]

    def succeeded(self, events: NewChunk) -> bool:
        """Count a request that succeeded. Return True if that ends an outage."""
        if self.last.failing_since is not None:
            self._log.error("delivered", "event delivery resumed after %.0f s", time.time() - self.last.failing_since)
        was_down = self._pauses > 0
        self._successes[events.identity] += 1
        self._succeeded_at = asyncio.get_running_loop().time()
        self._reset()
        self.request_bytes = min(REQUEST_BYTES, self.request_bytes + self.request_bytes // 8)
        self.last = LastFlush(at=time.time(), events=events.count)
        return was_down

    def timed_out(self, part: Part) -> None:
        """Halve the requests. Those of the same size that were in flight together count once."""
        self.request_bytes = min(self.request_bytes, max(SMALLEST_REQUEST_BYTES, part.size // 2))

    def others_succeed(self, part: Part) -> bool:
        """Return whether requests of the same identity have succeeded since the last failure of this part."""
        seen, now = part.successes_seen, self._successes[part.events.identity]
        part.successes_seen = now
        return seen is not None and now > seen

    def is_cut(self, part: Part) -> bool:
        """Return whether to split a part although nothing shows that its events cause the failure.

        If each batch holds an event that fails, none succeeds. Pieces of one claim find out, until a request succeeds.
        """
        if self._pauses < PAUSES_BEFORE_CUT or part.events.count == 1 or self._cut not in (None, part.claim):
            return False
        self._cut = part.claim
        return True

    def part_failed(self, error: UpstreamError, *, is_isolating: bool) -> None:
        """Count a failure that no event explains. Delivery pauses, unless others have just succeeded.

        `is_isolating`: the part is split for the content of its events, which needs several failures in a row.
        """
        self.failures += 1
        is_isolating = is_isolating and error.status in CONTENT_STATUSES and self.failures <= REJECTIONS_BEFORE_PAUSE
        if not (is_isolating or self._has_succeeded_recently()):
            self.failed(error)

    def failed(self, error: UpstreamError | StoreError) -> None:
        """Note that nothing succeeds at the moment, and pause."""
        self.failures = max(1, self.failures)
        now = time.time()
        self._log.error(str(error), "event delivery failed, all events remain stored: %s", error)
        status = error.status if isinstance(error, UpstreamError) else None
        self.last = LastFlush(now, error=str(error), failing_since=self.last.failing_since or now, status=status)
        loop_time = asyncio.get_running_loop().time()
        if loop_time >= self.paused_until:  # requests that were in flight together fail together: one failure
            self.paused_until = loop_time + max(self._pause.next(), _retry_after(error))
            self._pauses += 1
            self._owes_a_piece = True

    def retry_seconds(self, part: Part, error: UpstreamError) -> float:
        """Return the delay before a part that failed is sent again."""
        return max(self._part_pause.after(max(1, part.failures)), _retry_after(error))

    def _has_succeeded_recently(self) -> bool:
        """Return whether a request has succeeded so recently that a failure says nothing about delivery as a whole."""
        return asyncio.get_running_loop().time() - self._succeeded_at < self._recent_seconds

    def _reset(self) -> None:
        self.failures = self._pauses = 0
        self._cut = None
        self.paused_until = 0.0
        self._pause.reset()


def _retry_after(error: UpstreamError | StoreError) -> float:
    seconds: float = error.retry_after_seconds if isinstance(error, UpstreamError) else 0.0
    return min(seconds, RETRY_AFTER_LONGEST_SECONDS)
