"""Events of SDKs that decide by themselves: /events/t and batches (wire contract A.4, A.7).

An event is stored as the client wrote it, so that upstream gets the SDK's own content. The response to any valid JSON
is 200 unless it cannot be stored at the moment: .NET SDKs repeat an event forever after any other status, and PHP SDKs
block for 14 s. Documents that are not events, events that exceed a limit, and events of other environments are counted
as rejected. Only a single event that exceeds a limit gets a 4xx.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from time import monotonic
from typing import Any, Final

import orjson

from tornado_gateway.core.event_templates import SHOWN
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.internal_events import is_discarded
from tornado_gateway.environments.registry import Environments, Scope
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import (
    ABSENT_TEXTS,
    MAX_LEVELS,
    ClientAddress,
    Fields,
    address_in,
    document_problem,
    is_from_browser,
    json_value,
    known_parameters,
    repaired_value,
)
from tornado_gateway.http.limits import REST_SECONDS
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.settings.incremental_json import parse

logger = logging.getLogger(__name__)

ACCEPTED: Final = Response(200, b'{"success":true}')
LARGE_BYTES: Final = 65536  # of JSON that the loop reads at once: 3 ms at most
SLICE_SECONDS: Final = 0.001  # of the events of a large batch, in each turn of the loop
MAX_PARTS = 400_000  # of a large body. In a batch: 80 for each of 5,000 events
USAGE_STATS: Final = "vwo_sdkUsageStats"
# Parameters of wire contract A.4 that are forwarded with usage statistics, besides `en`.
USAGE_PARAMETERS = tuple(b"a env eTime random p visitor_ua visitor_ip sn sv".split())
NO_BATCH = 'the document is no batch, expected {"ev":[...]}'
NO_OBJECT = 'the event is no object with an object "d"'
NO_NAME = 'the event has no name, expected {"d":{"event":{"name":...}}}'
TOO_DEEP = f"the document has more than {MAX_LEVELS} levels of nested lists and objects"
NO_KEY = "they have no SDK key (CLIENT_KEY_REQUIRED)"
OTHER_ENVIRONMENT = "their SDK key is that of another environment"
# Numbers, because for other operands `in` of bytes raises and catches an exception first.
_LINE_FEED: Final = 10
_RETURN: Final = 13


class _Batch:
    """The documents of a batch that are to be stored, how many are rejected, by reason, and how many discarded.

    All stored ones are of one environment, because a batch is accepted or rejected as a whole.
    """

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.rejected: dict[str, int] = {}
        self.discarded = 0
        self.environment: Environment | None = None

    def add(self, environment: Environment, name: str, document: bytes) -> None:
        if self.environment is None:
            self.environment = environment
        elif environment is not self.environment:
            names = self.environment.access.name, environment.access.name
            raise RequestError(
                400,
                f"the events of the batch name two environments: {names[0]} and {names[1]}",
                code="ambiguous_environment",
            )
        if is_discarded(environment.access.internal_events, name, document):
            self.discarded += 1
        else:
            self.documents.append(document)

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1


class EventsApi:
    """The endpoints that accept events.

    Batches of more than `slice_events` are read in slices, so that other requests are served between them. Of large
    bodies one is read at a time: its values take up to 50 MB, and the loop waits for a piece of each thread that wants
    the interpreter's lock.
    """

    def __init__(
        self,
        environments: Environments,
        client_address: ClientAddress,
        *,
        slice_events: int,
    ) -> None:
        self._environments = environments
        self._client_address = client_address
        self._slice_events = slice_events
        self._reading = asyncio.Lock()
        self._foreign = ThrottledLog(logger, 3600)
        self._malformed = ThrottledLog(logger)

    def take_event(self, request: Request) -> Response | Awaitable[Response]:
        """Accept one event document `{"d":{...}}`."""
        if len(request.body) > LARGE_BYTES:
            return self._take_large_event(request)
        document, body = json_value(request.body)
        return self._take_event(request, document, body, document_problem(document, body))

    async def _take_large_event(self, request: Request) -> Response:
        async with self._reading:
            read = await asyncio.to_thread(_read_event, request.body)
        return self._take_event(request, *read)

    def _take_event(self, request: Request, document: Any, body: bytes, problem: RequestError | None) -> Response:
        scope = self._environments.scope_of(request)
        environment = self._environment_or_reason(document, scope)
        if isinstance(environment, str):
            self._reject(scope.counting, environment, 1)
            return ACCEPTED
        if problem is not None:
            self._reject(environment, str(problem), 1)
            raise problem
        data = document["d"]
        if is_discarded(environment.access.internal_events, data["event"]["name"], body):
            environment.events.discard_internal(1)
            return ACCEPTED
        if data["event"]["name"] == USAGE_STATS:  # filed under the vendor's account: sent alone, with its query
            environment.usage.append(_usage_query(request.query), body)
            return ACCEPTED
        _note_impression(environment, data)
        is_changed = _clean_address(data)
        if is_from_browser(request) or request.query.find(b"dh=1") >= 0:
            is_changed |= self._fill_visitor(request, data)
        if is_changed:
            return _append(request, environment, orjson.dumps(document), 1)
        return _append(request, environment, _one_line(body), 1)

    def take_batch(self, request: Request) -> Response | Awaitable[Response]:
        """Accept a batch `{"ev":[{"d":{...}}, ...]}`. Its accepted events are stored together."""
        if len(request.body) > LARGE_BYTES:
            return self._take_large_batch(request)
        return self._take_document(request, json_value(request.body)[0])

    async def _take_large_batch(self, request: Request) -> Response:
        async with self._reading:
            document = (await asyncio.to_thread(_read_in_pieces, request.body))[0]
            response = self._take_document(request, document)
            return response if isinstance(response, Response) else await response

    def _take_document(self, request: Request, document: object) -> Response | Awaitable[Response]:
        scope = self._environments.scope_of(request, has_header=True)
        events = document.get("ev") if isinstance(document, dict) else None
        if not isinstance(events, list):
            self._reject(scope.counting, NO_BATCH, 1)
            return ACCEPTED
        batch = _Batch()
        if len(events) > self._slice_events or len(request.body) > LARGE_BYTES:
            return self._take_slices(request, events, scope, batch)
        for event in events:
            self._sort(event, scope, batch)
        return self._take(request, scope, batch)

    async def _take_slices(self, request: Request, events: list[Any], scope: Scope, batch: _Batch) -> Response:
        """Take events as `_take_document` does, and free each of them: to free all at once takes 20 ms."""
        events.reverse()
        size, end = 0, monotonic() + SLICE_SECONDS
        while events:
            size += self._sort(events.pop(), scope, batch)
            if size > LARGE_BYTES or monotonic() >= end:
                await asyncio.sleep(0)
                size, end = 0, monotonic() + SLICE_SECONDS
        return self._take(request, scope, batch)

    def _sort(self, event: Any, scope: Scope, batch: _Batch) -> int:
        """Accept or reject an event of a batch. Return the bytes of its document."""
        environment = self._environment_or_reason(event, scope)
        if isinstance(environment, str):
            batch.reject(environment)
            return 0
        _clean_address(event["d"])
        document = _encoded(event)
        if document is None:
            batch.reject(TOO_DEEP)
            return 0
        reason = _reason_too_large(event, document)
        if reason is None:
            batch.add(environment, event["d"]["event"]["name"], document)
            _note_impression(environment, event["d"])
        else:
            batch.reject(reason)
        return len(document)

    def _take(self, request: Request, scope: Scope, batch: _Batch) -> Response:
        environment = batch.environment or scope.counting
        if batch.documents:  # first: if the queue is full, the client sends all of it again
            _append(request, environment, b"\n".join(batch.documents), len(batch.documents))
        if batch.discarded:
            environment.events.discard_internal(batch.discarded)
        for reason, count in batch.rejected.items():
            self._reject(environment, reason, count)
        return ACCEPTED

    def _reject(self, environment: Environment, reason: str, count: int) -> None:
        environment.events.reject(count)
        log = self._foreign if reason == OTHER_ENVIRONMENT else self._malformed
        log.warning(reason, "events were rejected: %s", reason, count=count)

    def _environment_or_reason(self, document: object, scope: Scope) -> Environment | str:
        """Return the environment of an event, or the reason why the event is not accepted."""
        data = document.get("d") if isinstance(document, dict) else None
        if not isinstance(data, dict):
            return NO_OBJECT
        event = data.get("event")
        name = event.get("name") if isinstance(event, dict) else None
        if not isinstance(name, str) or not name:
            return NO_NAME
        key = None if scope.is_final else _key_of(event, data) or scope.fallback_key
        if name == USAGE_STATS:
            return self._environments.of_usage_statistics(scope, key)
        if key is None and scope.key is None and self._environments.needs_key:
            return NO_KEY
        return self._environments.of_event(scope, key) or OTHER_ENVIRONMENT

    def _fill_visitor(self, request: Request, data: Fields) -> bool:
        """Add a browser's user agent and address to an event that has none. Return True if the event has changed."""
        filled = False
        if not data.get("visitor_ua"):
            agent = request.header(b"x-device-user-agent") or request.header(b"user-agent")
            if agent:
                data["visitor_ua"] = agent.decode("utf-8", "replace")
                filled = True
        if not data.get("visitor_ip"):
            forwarded = request.header(b"vwo-x-forwarded-for")
            address = address_in(forwarded.decode("latin-1")) if forwarded else self._client_address(request)
            if address:
                data["visitor_ip"] = address
                filled = True
        return filled


def _read_in_pieces(body: bytes) -> tuple[Any, bytes]:
    if _has_too_many_parts(body):
        raise RequestError(413, f"the body has more than {MAX_PARTS} values")
    try:
        return parse(body, _rest), body
    except orjson.JSONDecodeError as error:
        problem = str(error)
    _rest()
    return repaired_value(body, problem)


def _read_event(body: bytes) -> tuple[Any, bytes, RequestError | None]:
    document, body = _read_in_pieces(body)
    return document, body, document_problem(document, body, pause=_rest)


def _rest() -> None:
    """Let the loop have the interpreter's lock, which a sleep of no time would take back at once."""
    time.sleep(REST_SECONDS)


def _has_too_many_parts(body: bytes) -> bool:
    """Whether a body has so many values that reading them would take longer than other requests should wait."""
    parts = 0
    for start in range(0, len(body), LARGE_BYTES):
        piece = body[start : start + LARGE_BYTES]
        parts += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if parts > MAX_PARTS:
            return True
        _rest()
    return False


def _clean_address(data: Fields) -> bool:
    """Reduce `visitor_ip` to its address, because only addresses leave the gateway. Return True if it has changed."""
    given = data.get("visitor_ip")
    if not given:
        return False
    address = address_in(given) if isinstance(given, str) else None
    if address == given:
        return False
    data["visitor_ip"] = address or ""
    return True


def _note_impression(environment: Environment, data: Fields) -> None:
    if data["event"]["name"] == SHOWN:
        environment.experiments.exposures.shown_by_sdk(data)


def _append(request: Request, environment: Environment, documents: bytes, count: int) -> Response:
    environment.append(request, documents, count)
    return ACCEPTED


def _key_of(event: object, data: Fields) -> str | None:
    """Return the SDK key that an event names."""
    return _property(event, "vwo_envKey") or _property(data.get("visitor"), "vwo_fs_environment")


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


def _reason_too_large(event: object, document: bytes) -> str | None:
    problem = document_problem(event, document)
    return None if problem is None else str(problem)


def _usage_query(query: bytes) -> str:
    """Return the parameters of the contract. The event is named here, because the query may name another."""
    known = known_parameters(query, USAGE_PARAMETERS)
    return f"en={USAGE_STATS}&{known}" if known else f"en={USAGE_STATS}"


def _one_line(body: bytes) -> bytes:
    """Return the body without line breaks. Valid JSON has them only between its tokens."""
    if _LINE_FEED in body or _RETURN in body:
        return body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body
