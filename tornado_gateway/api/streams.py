"""GET /stream: server-sent events that notify clients that flags may have changed (docs/openfeature.md).

An event says that, never what: the client evaluates again, with a request that is authorized and about one visitor.
One timer serves all streams, so that a stream costs a connection and an entry in a set.
"""

import asyncio
import contextlib
import ipaddress
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlencode

import orjson

from tornado_gateway.environments.client_tokens import Tickets
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments
from tornado_gateway.http.fields import is_from_browser, query_text, raw_query_value
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.http.streamed import EventStream
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
RETRY_MS = (2000, 4000)  # between a lost connection and the next one, spread over the clients
FULL_RETRY_MS = (30_000, 90_000)  # an EventSource never returns after an error, so the response is a short stream
DRAIN_RETRY_MS = (500, 5000)
MAX_UNSENT_BYTES = 64 * 1024  # of a client that does not read
SHARE_OF_ADDRESS = 10  # one address has at most a tenth of the streams
AGE_JITTER = 0.2
INACTIVITY_SECONDS = 30  # after which a provider closes the stream of a hidden page
KEEP_ALIVE = b": k\n\n"
SINCE = b"since"  # query parameter: the version that the client has


class StreamLimits(NamedTuple):
    """Limits of one worker. `connections` 0: no streams. `url` is their base URL, if not the gateway's."""

    connections: int = 5000
    keep_alive_seconds: float = 15.0
    max_seconds: float = 3600.0
    notifications_per_second: int = 500
    wait_seconds: float = 5.0  # for a refresh
    url: str = ""


class _Open:
    """One open stream. `due_at` and `ends_at` are by the monotonic clock."""

    __slots__ = ("address", "due_at", "ends_at", "environment", "known", "stream")

    def __init__(self, environment: str, address: str, known: bytes | None) -> None:
        self.environment = environment
        self.address = address
        self.known = known  # the version that the client names
        self.due_at = self.ends_at = 0.0
        self.stream: EventStream | None = None


class StreamsApi:
    """The endpoint, and all open streams of this worker.

    `address` returns the address of a client; one that is private is taken for a proxy and not limited. `refresh`
    refreshes the settings of an environment. `tickets` checks the credentials, if any are required.
    `on_closed` is called with the reason: client, age, slow, removed or drain.
    """

    def __init__(
        self,
        environments: Environments,
        limits: StreamLimits,
        address: Callable[[Request], str],
        refresh: Callable[[Environment], Awaitable[None]],
        tickets: Tickets | None = None,
        on_closed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._environments = environments
        self._limits = limits
        self._address = address
        self._refresh = refresh
        self._tickets = tickets
        self._on_closed = on_closed
        self._open: dict[EventStream, _Open] = {}
        self._by_address: Counter[str] = Counter()
        self._versions: dict[str, bytes] = {}  # by environment, as they were announced last
        self._to_notify: deque[EventStream] = deque()
        self._to_keep: deque[EventStream] = deque()  # by the time of the next keep-alive
        self._is_stopping = False
        self._timer = Periodic(self._tick, TICK_SECONDS)

    @property
    def count(self) -> int:
        return len(self._open)

    def start(self) -> None:
        self._timer.start()

    async def stop(self) -> None:
        """Close all streams, each with a time of its own for the next connection."""
        self._is_stopping = True
        await self._timer.end()
        for stream in tuple(self._open):
            self._close(stream, "drain", _retry(DRAIN_RETRY_MS))

    def has_room(self, request: Request) -> bool:
        """Return whether a client gets a stream now."""
        if self._is_stopping or len(self._open) >= self._limits.connections:
            return False
        address = self._address(request)
        return self._by_address[address] < self._limits.connections / SHARE_OF_ADDRESS or _is_private(address)

    def open(self, request: Request) -> Response | EventStream:
        if self._tickets is not None:
            self._tickets.check_client(request)
        environment = self._environments.of(request)
        if not environment.access.decides:
            raise environment.access.disabled()
        if self._tickets is not None:
            self._tickets.check_ticket(request, environment.access.name)
        if not self.has_room(request):
            retry = _retry(DRAIN_RETRY_MS if self._is_stopping else FULL_RETRY_MS)
            return Response(200, retry, b"text/event-stream", [(b"Cache-Control", b"no-cache")])
        known = request.header(b"last-event-id") or raw_query_value(request.query, SINCE)
        opened = _Open(environment.access.name, self._address(request), known)
        opened.stream = EventStream(lambda stream: self._opened(stream, opened), self._client_closed)
        return opened.stream

    def announcement(self, request: Request, environment: Environment) -> bytes:
        """Return the part of a bulk response that names the stream; only pages use it, and only while there is room.

        The stream gets the version of the response, because the settings may change before it is open.
        """
        if not is_from_browser(request) or not self.has_room(request):
            return b""
        query = {"environment": environment.access.name} if environment.access.is_from_file else {}
        if self._tickets is not None:
            query |= self._tickets.credential(request, environment.access.name)
        target = f"/stream?{urlencode({**query, SINCE.decode(): environment.version()})}"
        place = {"url": f"{self._limits.url}{target}"} if self._limits.url else {"endpoint": {"requestUri": target}}
        streams = [{"type": "sse", **place, "inactivityDelaySec": INACTIVITY_SECONDS}]
        return b',"eventStreams":%b' % orjson.dumps(streams)

    def catch_up(self, request: Request, environment: Environment) -> Awaitable[None] | None:
        """Refresh the settings for a client that knows of newer ones, from a worker or a gateway ahead of this one.

        Return None if the client knows of none.
        """
        announced = query_text(request.query, b"flagConfigEtag")
        if announced is None or announced.encode() == environment.version():
            return None
        return self._refreshed(environment)

    async def _refreshed(self, environment: Environment) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.wait_seconds):
                await self._refresh(environment)

    # --- One stream ---

    def _opened(self, stream: EventStream, opened: _Open) -> bytes:
        """Register a stream whose turn has come. Return its first events."""
        now = time.monotonic()
        self._open[stream] = opened
        self._by_address[opened.address] += 1
        opened.due_at = now + self._limits.keep_alive_seconds
        opened.ends_at = now + self._limits.max_seconds * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)
        self._to_keep.append(stream)
        environment = self._environments.named(opened.environment)
        if environment is None:
            return _retry(RETRY_MS)
        version = environment.version()
        self._versions.setdefault(opened.environment, version)
        known, opened.known = opened.known, version
        first = b"%bid: %b\n\n" % (_retry(RETRY_MS, end=b"\n"), version)
        return first if known in (None, version) else first + event_of(version)

    def _client_closed(self, stream: EventStream) -> None:
        self._forget(stream, "client")

    def _close(self, stream: EventStream, reason: str, last: bytes = b"") -> None:
        self._forget(stream, reason)
        stream.end(last)

    def _forget(self, stream: EventStream, reason: str) -> None:
        opened = self._open.pop(stream, None)
        if opened is not None:
            self._by_address[opened.address] -= 1
            if not self._by_address[opened.address]:
                del self._by_address[opened.address]
            self._on_closed(reason)

    # --- All streams ---

    def _tick(self) -> None:
        self._find_changes()
        self._notify(max(1, round(self._limits.notifications_per_second * TICK_SECONDS)))
        self._keep_alive(time.monotonic())

    def _find_changes(self) -> None:
        """Plan a notification of each stream whose environment has changed, in random order."""
        changed = set()
        for name, announced in tuple(self._versions.items()):
            environment = self._environments.named(name)
            version = b"" if environment is None else environment.version()
            if version != announced:
                changed.add(name)
                if environment is None:
                    del self._versions[name]
                else:
                    self._versions[name] = version
        if changed:
            streams = [stream for stream, opened in self._open.items() if opened.environment in changed]
            random.shuffle(streams)
            self._to_notify.extend(streams)

    def _notify(self, most: int) -> None:
        for _ in range(min(most, len(self._to_notify))):
            stream = self._to_notify.popleft()
            opened = self._open.get(stream)
            if opened is None:
                continue
            version = self._versions.get(opened.environment)
            if version is None:
                self._close(stream, "removed")
            elif opened.known != version:  # a second change may have been announced with the first one
                opened.known = version
                self._send(stream, event_of(version))

    def _keep_alive(self, now: float) -> None:
        while self._to_keep:
            stream = self._to_keep[0]
            opened = self._open.get(stream)
            if opened is not None and opened.due_at > now:
                return
            self._to_keep.popleft()
            if opened is None:
                continue
            if now >= opened.ends_at:
                self._close(stream, "age")
            elif self._send(stream, KEEP_ALIVE):
                opened.due_at = now + self._limits.keep_alive_seconds
                self._to_keep.append(stream)

    def _send(self, stream: EventStream, data: bytes) -> bool:
        """Return whether the stream remains open: a client that does not read loses it."""
        if stream.unsent_bytes() > MAX_UNSENT_BYTES:
            self._forget(stream, "slow")
            stream.abort()
            return False
        stream.send(data)
        return True


def event_of(version: bytes) -> bytes:
    data = {"type": "refetchEvaluation", "etag": version.decode(), "lastModified": int(time.time())}
    return b"id: %b\nevent: message\ndata: %b\n\n" % (version, orjson.dumps(data))


def _retry(limits_ms: tuple[int, int], end: bytes = b"\n\n") -> bytes:
    return b"retry: %d%b" % (random.randint(*limits_ms), end)


def _is_private(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_private
    except ValueError:
        return False
