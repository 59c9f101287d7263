"""Events of SDKs that decide by themselves: /events/t and batches (wire contract A.4, A.7).

An event is stored as the client wrote it, so that upstream gets the SDK's own content. Whatever is valid JSON is
answered with 200 unless it cannot be stored at the moment: .NET SDKs repeat an event forever after any other status,
and PHP SDKs block for 14 s. Documents that are no events, and events of other environments, are counted as rejected.
"""

import asyncio
import logging
from collections.abc import Awaitable

import orjson

from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.fields import (
    ABSENT_TEXTS,
    ClientAddress,
    Fields,
    is_from_browser,
    json_value,
    parameter_text,
    raw_query_value,
)
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.settings.mirror import SettingsMirror

logger = logging.getLogger(__name__)

TAKEN = Response(200, b'{"success":true}')
USAGE_STATS = "vwo_sdkUsageStats"
NO_BATCH = 'the document is no batch, expected {"ev":[...]}'
NO_OBJECT = 'the event is no object with an object "d"'
NO_NAME = 'the event has no name, expected {"d":{"event":{"name":...}}}'
TOO_DEEP = "the event has too many nested lists and objects"
OTHER_ENVIRONMENT = "their SDK key is that of another environment"
# As numbers: `in` of bytes takes what it looks for as a number first, and what is none costs an exception.
_LINE_FEED, _RETURN = b"\n\r"


class _Batch:
    """The documents of a batch that are to be stored, and how many are rejected, by reason."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.rejected: dict[str, int] = {}

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1


class Collector:
    """The endpoints that take events. `sdk_key` is the configured one, None for a gateway without upstream.

    Batches of more than `slice_events` are read in slices, so that other requests are served between them.
    """

    def __init__(
        self,
        mirror: SettingsMirror,
        events: EventQueue,
        client_address: ClientAddress,
        *,
        sdk_key: str | None,
        slice_events: int,
    ) -> None:
        self._mirror = mirror
        self._events = events
        self._client_address = client_address
        self._sdk_key = sdk_key
        self._raw_key = (sdk_key or "").encode()
        self._slice_events = slice_events
        self._foreign = ThrottledLog(logger, 3600)
        self._malformed = ThrottledLog(logger)

    def take_event(self, request: Request) -> Response:
        """One event document `{"d":{...}}`."""
        document, body = json_value(request.body)
        reason = self._reason_to_reject(document, self._query_key(request.query))
        if reason is not None:
            self._reject(reason, 1)
            return TAKEN
        data = document["d"]
        if data["event"]["name"] == USAGE_STATS:  # filed under the vendor's account: keeps its query and travels alone
            return self._append(request, _one_line(body), 1, request.query.decode("latin-1"))
        has_visitor = is_from_browser(request) or request.query.find(b"dh=1") >= 0
        if has_visitor and self._fill_visitor(request, data):
            encoded = _encoded(document)
            if encoded is None:
                self._reject(TOO_DEEP, 1)
                return TAKEN
            return self._append(request, encoded, 1)
        return self._append(request, _one_line(body), 1)

    def take_batch(self, request: Request) -> Response | Awaitable[Response]:
        """`{"ev":[{"d":{...}}, ...]}`. What is accepted of it is stored as a whole."""
        document = json_value(request.body)[0]
        events = document.get("ev") if isinstance(document, dict) else None
        if not isinstance(events, list):
            self._reject(NO_BATCH, 1)
            return TAKEN
        batch = _Batch()
        query_key = self._query_key(request.query)
        if len(events) > self._slice_events:
            return self._take_slices(request, events, query_key, batch)
        self._sort(events, query_key, batch)
        return self._take(request, batch)

    async def _take_slices(
        self, request: Request, events: list[object], query_key: str | None, batch: _Batch
    ) -> Response:
        for start in range(0, len(events), self._slice_events):
            self._sort(events[start : start + self._slice_events], query_key, batch)
            await asyncio.sleep(0)
        return self._take(request, batch)

    def _sort(self, events: list[object], query_key: str | None, batch: _Batch) -> None:
        for event in events:
            reason = self._reason_to_reject(event, query_key)
            document = _encoded(event) if reason is None else None
            if document is not None:
                batch.documents.append(document)
            else:
                batch.reject(reason or TOO_DEEP)

    def _take(self, request: Request, batch: _Batch) -> Response:
        if batch.documents:  # first, because a client repeats the batch if the queue is full
            self._append(request, b"\n".join(batch.documents), len(batch.documents))
        for reason, count in batch.rejected.items():
            self._reject(reason, count)
        return TAKEN

    def _append(self, request: Request, documents: bytes, count: int, query: str = "") -> Response:
        gate = self._events.append(documents, count, query)
        if self._events.durable:
            request.gate = gate
        return TAKEN

    def _reject(self, reason: str, count: int) -> None:
        self._events.reject(count)
        log = self._foreign if reason == OTHER_ENVIRONMENT else self._malformed
        log.warning(reason, "events were rejected: %s", reason, count=count)

    def _reason_to_reject(self, document: object, query_key: str | None) -> str | None:
        """Return the reason why an event is not accepted, None if it is.

        The key decides about its environment, because the account in the query is a session id in PHP 1.20 and 1.21.
        """
        data = document.get("d") if isinstance(document, dict) else None
        if not isinstance(data, dict):
            return NO_OBJECT
        event = data.get("event")
        name = event.get("name") if isinstance(event, dict) else None
        if not isinstance(name, str) or not name:
            return NO_NAME
        if name == USAGE_STATS:
            return None
        key = query_key or _property(event, "vwo_envKey") or _property(data.get("visitor"), "vwo_fs_environment")
        return None if key is None or self._is_own(key) else OTHER_ENVIRONMENT

    def _query_key(self, query: bytes) -> str | None:
        raw = raw_query_value(query, b"env")
        if raw is None:
            return None
        return self._sdk_key if raw == self._raw_key else parameter_text(raw)

    def _is_own(self, key: str) -> bool:
        if key == self._sdk_key:
            return True
        snapshot = self._mirror.current
        return self._sdk_key is None if snapshot is None else key == snapshot.settings.sdk_key

    def _fill_visitor(self, request: Request, data: Fields) -> bool:
        """Put a browser's user agent and address where a batch keeps them. True if something was put in."""
        filled = False
        if not data.get("visitor_ua"):
            agent = request.header(b"x-device-user-agent") or request.header(b"user-agent")
            if agent:
                data["visitor_ua"] = agent.decode("utf-8", "replace")
                filled = True
        if not data.get("visitor_ip"):
            forwarded = request.header(b"vwo-x-forwarded-for")
            address = forwarded.decode("latin-1").strip() if forwarded else self._client_address(request)
            if address:
                data["visitor_ip"] = address
                filled = True
        return filled


def _property(part: object, name: str) -> str | None:
    props = part.get("props") if isinstance(part, dict) else None
    value = props.get(name) if isinstance(props, dict) else None
    return value if isinstance(value, str) and value not in ABSENT_TEXTS else None


def _encoded(document: object) -> bytes | None:
    """Return the JSON of a document, None if it is nested more deeply than the encoder allows."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return None


def _one_line(body: bytes) -> bytes:
    """Valid JSON has line breaks only between its tokens."""
    if _LINE_FEED in body or _RETURN in body:
        return body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body
