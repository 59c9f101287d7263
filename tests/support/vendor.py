"""A stand-in for the vendor's service on loopback, with faults on demand."""

import asyncio
import collections
import contextlib
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


@dataclass
class Fault:
    """What the next requests meet: a status, a delay before it, or a connection closed without an answer."""

    status: int = 500
    times: int = 1
    delay_seconds: float = 0.0
    close: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None  # the body, instead of JSON
    refuses: Any = None  # predicate of an event; only requests that hold such an event meet the fault
    takes: bool = (
        False  # the events are taken before the delay, so that a client that gets no response sends them again
    )


@dataclass
class Arrival:
    """Events that were taken together, by the monotonic clock. `answered` is None if the client got no response."""

    events: list[dict[str, Any]]
    began: float
    taken: float
    answered: float | None = None


@dataclass
class Call:
    """One request that arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Vendor:
    """Runs in a thread of its own; use as a context manager. Everything that arrived can be looked at any time.

    With a TLS context it also listens on `tls_port`. Port 0 means any free one. With `keep` it remembers only as many
    calls and events, for long runs.
    """

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        keep: int | None = None,
    ) -> None:
        self.settings: bytes = orjson.dumps(settings if settings is not None else {})
        self.environments: dict[str, bytes] = {}  # SDK key: a document of its own
        self.dialects: dict[tuple[str, str], bytes] = {}  # (api-version, platform): a document of its own
        self.lists: dict[str, set[str]] = {}  # list id: its members, for check-attribute
        self.event_dsl = b"true"
        self.new_list: Any = list if keep is None else lambda: collections.deque(maxlen=keep)
        self.calls: list[Call] = self.new_list()
        self.events: list[dict[str, Any]] = self.new_list()  # every event that was taken with a 200, in order
        self.batches: list[int] = self.new_list()  # their sizes
        self.taken: dict[
            tuple[str, str], list[dict[str, Any]]
        ] = {}  # the same events by account and key of the request
        self.troubles: dict[str, dict[str, Any]] = {}  # SDK key: the fields of a fault that all its requests meet
        self.arrivals: list[Arrival] = []  # the same events by request
        self.rejects: Any = None  # predicate of an event; a request that holds such an event always gets a 400
        self.event_faults: collections.deque[Fault] = collections.deque()
        self.settings_faults: collections.deque[Fault] = collections.deque()
        self.lookup_faults: collections.deque[Fault] = collections.deque()  # of lists and event segments
        self.port = port
        self.tls_port = 0
        self._tls = tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def wait_for_events(self, count: int, seconds: float = 60.0) -> list[dict[str, Any]]:
        """All events once at least `count` have arrived; fails after `seconds`."""
        self.wait_until(lambda: len(self.events) >= count, seconds, lambda: f"{len(self.events)} of {count} events")
        return list(self.events)

    def wait_until(self, condition: Any, seconds: float = 60.0, describe: Any = lambda: "") -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {describe()}"
            time.sleep(0.01)

    def settings_calls(self) -> list[Call]:
        return self.calls_to("/server-side/v2-")

    def calls_to(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path.startswith(path)]

    def users_by_key(self) -> dict[tuple[str, str], set[str]]:
        """The visitors whose events were taken in batches, by account and key of the requests."""
        return {whose: {event["d"]["visId"] for event in events} for whose, events in self.taken.items()}

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        sockets = bind_sockets(self.port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        application = Application(
            [
                (r"(?:/\w+)?/server-side/v2-(?:settings|pull)", _Settings),
                (r"(?:/\w+)?/check-attribute", _Lists),
                (r"(?:/\w+)?/evaluate-event-dsl", _EventSegments),
                (r".*", _Events),
            ],
            vendor=self,
            log_function=lambda handler: None,
        )
        server = HTTPServer(application, max_buffer_size=256 * 1024 * 1024)
        server.add_sockets(sockets)
        servers = [server]
        if self._tls is not None:
            tls_sockets = bind_sockets(0, "127.0.0.1")
            self.tls_port = tls_sockets[0].getsockname()[1]
            servers.append(HTTPServer(application, ssl_options=self._tls))
            servers[-1].add_sockets(tls_sockets)
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.stop()
            await server.close_all_connections()


class _Handler(RequestHandler):
    def take(self, events: list[dict[str, Any]]) -> None:
        """Keep the events of a request; only requests with events have any."""

    def set_default_headers(self) -> None:
        self.set_header("Access-Control-Allow-Origin", "*")

    @property
    def vendor(self) -> Vendor:
        vendor: Vendor = self.application.settings["vendor"]
        return vendor

    def record(self) -> None:
        query = {key: self.get_query_argument(key, strip=False) for key in self.request.query_arguments}
        request = self.request
        self.vendor.calls.append(
            Call(request.method or "", request.path, query, dict(request.headers.get_all()), request.body)
        )

    async def meet(self, faults: "collections.deque[Fault]", events: list[Any]) -> bool:
        """Play the next fault, if there is one for this request. True if the request is answered by it."""
        key = self.get_query_argument("i", "") or self.get_query_argument("env", "")
        if key in self.vendor.troubles:
            return await self._play(Fault(**self.vendor.troubles[key]), events)
        if not faults:
            return False
        fault = faults[0]
        if fault.refuses is not None and not any(map(fault.refuses, events)):
            return False
        fault.times -= 1
        if not fault.times:
            faults.popleft()
        return await self._play(fault, events)

    async def _play(self, fault: Fault, events: list[Any]) -> bool:
        if fault.takes:
            self.take(events)
        await asyncio.sleep(fault.delay_seconds)
        if fault.close:
            self.request.connection.stream.close()  # type: ignore[union-attr]
            return True
        if fault.status == 200:
            return False
        self.set_status(fault.status)
        for name, value in fault.headers.items():
            self.set_header(name, value)
        with contextlib.suppress(StreamClosedError):  # the client has given up
            await self.finish({"error": "injected"} if fault.text is None else fault.text)
        return True


class _Settings(_Handler):
    async def get(self) -> None:
        self.record()
        if not await self.meet(self.vendor.settings_faults, []):
            self.set_header("Content-Type", "application/json")
            dialect = self.get_query_argument("api-version", ""), self.get_query_argument("platform", "")
            settings = self.vendor.environments.get(self.get_query_argument("i", ""), self.vendor.settings)
            self.finish(self.vendor.dialects.get(dialect, settings))


class _Lists(_Handler):
    async def get(self) -> None:
        self.record()
        if not await self.meet(self.vendor.lookup_faults, []):
            members = self.vendor.lists.get(self.get_query_argument("listId"), set())
            self.set_header("Content-Type", "application/json")
            self.finish(b"true" if self.get_query_argument("attribute", strip=False) in members else b"false")


class _EventSegments(_Handler):
    async def post(self) -> None:
        self.record()
        if not await self.meet(self.vendor.lookup_faults, []):
            self.finish(self.vendor.event_dsl)


class _Events(_Handler):
    _arrival: Arrival | None = None

    async def post(self) -> None:
        self._began = time.monotonic()
        self.record()
        body = orjson.loads(self.request.body)
        events = body.get("ev", [body])
        if self.vendor.rejects is not None and any(map(self.vendor.rejects, events)):
            self.set_status(400)
            self.finish({"error": "rejected"})
        elif not await self.meet(self.vendor.event_faults, events):
            if self._arrival is None:
                self.take(events)
            self.finish({"success": True})

    def take(self, events: list[dict[str, Any]]) -> None:
        self.vendor.events += events
        key = self.get_query_argument("env", "")
        if self.request.headers.get("Authorization", key) != key:  # only batches have the header
            raise AssertionError("the query and the header name different keys")
        self.vendor.taken.setdefault((self.get_query_argument("a", ""), key), self.vendor.new_list()).extend(events)
        self.vendor.batches.append(len(events))
        self._arrival = Arrival(events, self._began, time.monotonic())
        self.vendor.arrivals.append(self._arrival)

    def on_finish(self) -> None:
        is_open = not self.request.connection.stream.closed()  # type: ignore[union-attr]
        if self._arrival is not None and is_open and self.get_status() == 200:
            self._arrival.answered = time.monotonic()

    async def get(self) -> None:
        self.record()
        self.set_status(404)
        self.finish({"error": "not here"})
