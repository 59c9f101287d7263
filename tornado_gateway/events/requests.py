"""Requests with events, and their durations. Used by `flusher.py`."""

import time
from collections.abc import Callable
from typing import Protocol

from tornado_gateway.errors import UpstreamError
from tornado_gateway.store.interfaces import Identity, NewChunk
from tornado_gateway.tasks import Share


class EventSink(Protocol):
    """The events API of the vendor."""

    async def send_batch(self, documents: bytes, identity: Identity) -> None:
        """Post event documents, joined by newlines, under the account and key under which they were accepted.

        NO_IDENTITY: the configured ones. Raise UpstreamError unless the events are accepted.
        """

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event to `/events/t?query`. Raise UpstreamError unless it is accepted."""


class Requests:
    """Sends the requests of one worker. With `discards` the sink delivers nothing.

    `on_request` is called after each request with its outcome and its duration in seconds. `share` limits the requests
    of all environments.
    """

    def __init__(
        self, sink: EventSink, on_request: Callable[[str, float], None], share: Share, *, discards: bool
    ) -> None:
        self.discards = discards
        self._sink = sink
        self._on_request = on_request
        self._share = share

    async def send(self, events: NewChunk) -> None:
        async with self._share:
            await self._send(events)

    def close(self) -> None:
        """Leave the limit to the other environments."""
        self._share.close()

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
            self._on_request(outcome, time.monotonic() - before)
