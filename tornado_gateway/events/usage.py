"""Usage statistics of SDKs (wire contract B.5), apart from the events of visitors, so that they delay none of these."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from tornado_gateway.errors import UpstreamError
from tornado_gateway.events.requests import EventSink
from tornado_gateway.tasks import end_tasks

logger = logging.getLogger(__name__)

MAX_EVENTS = 100
MAX_BYTES = 1024 * 1024


class UsageStatistics:
    """Sends usage statistics one after the other, each once. Beyond `max_events` or `max_bytes`, new ones are dropped.

    They wait in memory only, so the end of a process loses those that wait. That is acceptable, because they concern
    an SDK and no visitor, and the SDK sends them again at its next start. `on_event` is called with the outcome of each
    of them: "delivered" or "dropped".
    """

    def __init__(
        self,
        sink: EventSink,
        on_event: Callable[[str], None] = lambda outcome: None,
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._sink = sink
        self._on_event = on_event
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[str, bytes]] = deque()  # the query and the document of each; the first is being sent
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    def append(self, query: str, document: bytes) -> None:
        """Send an event to `/events/t?query` soon, or drop it."""
        size = self._size + len(query) + len(document)
        if len(self._waiting) >= self._max_events or size > self._max_bytes:
            self._on_event("dropped")
            return
        self._size = size
        self._waiting.append((query, document))
        if self._task is None:
            self._task = asyncio.create_task(self._send_all())

    async def stop(self, deadline_seconds: float) -> None:
        """Send those that wait, within the deadline, and drop the others."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=deadline_seconds)
            await end_tasks(self._task)
        while self._waiting:
            self._finish("dropped")

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send(*self._waiting[0])
        finally:
            self._task = None

    async def _send(self, query: str, document: bytes) -> None:
        outcome = "dropped"
        try:
            await self._sink.send_event(query, document)
            outcome = "delivered"
        except UpstreamError as error:
            logger.debug("usage statistics were dropped, VWO did not accept them: %s", error)
        except Exception:  # a fault of ours in one of them must not end the others
            logger.exception("usage statistics were dropped because of an unexpected error")
        self._finish(outcome)

    def _finish(self, outcome: str) -> None:
        query, document = self._waiting.popleft()
        self._size -= len(query) + len(document)
        self._on_event(outcome)
