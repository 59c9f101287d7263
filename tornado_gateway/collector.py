"""Events of SDKs that decide by themselves: /events/t and batches (wire contract A.4, A.7).

An event is stored as the client wrote it, so that upstream gets the SDK's own content.
"""

import orjson

from .errors import RequestError
from .events import EventQueue
from .http1 import Request, Response, json_error
from .settings import SettingsMirror
from .wire import ClientAddress, Fields, is_from_browser, json_object, query_text

TAKEN = Response(200, b'{"success":true}')
USAGE_STATS = "vwo_sdkUsageStats"
# As numbers: `in` of bytes takes what it looks for as a number first, and what is none costs an exception.
_LINE_FEED, _RETURN = b"\n\r"


class Collector:
    """The endpoints that take events."""

    def __init__(
        self, mirror: SettingsMirror, events: EventQueue, client_address: ClientAddress, *, account_id: str, limit: int
    ) -> None:
        self._mirror = mirror
        self._events = events
        self._client_address = client_address
        self._account_id = account_id
        self._limit = limit

    def take_event(self, request: Request) -> Response:
        """One event document `{"d":{...}}`."""
        document = json_object(request.body)
        name = _event_name(document)
        if name == USAGE_STATS:  # filed under the vendor's account, so it must keep its query and travel alone
            return self._append(request, _one_line(request.body), 1, request.query.decode("latin-1"))
        self._check_account(request)
        body = _one_line(request.body)
        has_visitor = is_from_browser(request) or request.query.find(b"dh=1") >= 0
        if has_visitor and self._fill_visitor(request, document["d"]):
            body = orjson.dumps(document)
        return self._append(request, body, 1)

    def take_batch(self, request: Request) -> Response:
        """`{"ev":[{"d":{...}}, ...]}`, at most MAX_EVENTS_PER_REQUEST."""
        self._check_account(request)
        events = json_object(request.body).get("ev")
        if not isinstance(events, list) or not events:
            raise RequestError(400, "ev: expected a list with at least one event")
        if len(events) > self._limit:
            return json_error(413, f"ev: {len(events)} events, at most {self._limit} fit into one request")
        for event in events:
            _event_name(event)
        return self._append(request, b"\n".join(map(orjson.dumps, events)), len(events))

    def _append(self, request: Request, documents: bytes, count: int, query: str = "") -> Response:
        gate = self._events.append(documents, count, query)
        if self._events.durable:
            request.gate = gate
        return TAKEN

    def _check_account(self, request: Request) -> None:
        snapshot = self._mirror.current
        own = snapshot.settings.account_id if snapshot is not None else self._account_id
        given = query_text(request.query, b"a")
        if given is not None and own and given != own:
            raise RequestError(400, "a: this gateway takes events of another account")

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


def _event_name(document: object) -> str:
    data = document.get("d") if isinstance(document, dict) else None
    event = data.get("event") if isinstance(data, dict) else None
    name = event.get("name") if isinstance(event, dict) else None
    if not isinstance(name, str) or not name:
        raise RequestError(400, 'invalid event payload: expected {"d":{"event":{"name":...}}}')
    return name


def _one_line(body: bytes) -> bytes:
    """Valid JSON has line breaks only between its tokens."""
    if _LINE_FEED in body or _RETURN in body:
        return body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body
