"""A live server in a thread and a client on a plain socket, for the tests of the HTTP server."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from tornado_gateway.errors import RequestError
from tornado_gateway.gate import Gate
from tornado_gateway.http.limits import Limits, ServerOptions
from tornado_gateway.http.messages import Handler, Request, Response
from tornado_gateway.http.request_ids import FAILURES
from tornado_gateway.http.server import Server

QUICK = Limits(drain_seconds=0.02, linger_seconds=0.5)
NEW_LOOP: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
PATIENCE_SECONDS = 60  # for anything that is bound to happen


class HttpResponse:
    """What the client has got: status, headers by lower-case name, body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        document = self.json
        assert document["status"] == 0
        assert self.headers["content-type"].startswith("application/json")
        return str(document["error"])


class Client:
    """A socket that speaks whatever bytes a test wants."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = b""

    def send(self, data: bytes) -> "Client":
        self.sock.sendall(data)
        return self

    def half_close(self) -> "Client":
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def _more(self) -> None:
        data = self.sock.recv(65536)
        assert data, f"closed after {self.buffer!r}"
        self.buffer += data

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            self._more()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def response(self, *, is_head: bool = False) -> HttpResponse:
        version, status, _ = self.line().decode().split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        while line := self.line().decode("latin1"):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        if is_head or status in ("100", "204", "304"):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        elif "content-length" in headers:
            body = self.take(int(headers["content-length"]))
        else:
            body = self.rest()
        return HttpResponse(int(status), headers, body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.line(), 16):
            body += self.take(size)
            assert self.line() == b""
        assert self.line() == b""
        return body

    def rest(self) -> bytes:
        """Everything until the server closes; a reset fails the test."""
        while data := self.sock.recv(65536):
            self.buffer += data
        data, self.buffer = self.buffer, b""
        return data

    def assert_closed(self) -> None:
        assert self.rest() == b""

    def assert_silent(self, seconds: float = 0.05) -> None:
        self.sock.settimeout(seconds)
        try:
            assert self.sock.recv(1) == b"never", "the server should have said nothing"
        except TimeoutError:
            pass
        self.sock.settimeout(PATIENCE_SECONDS)


class Routes:
    """The data routes that the tests use. `gate` holds the responses of /gated; `started` counts handler calls."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.started: list[bytes] = []
        self.finished: list[bytes] = []
        self.table: dict[tuple[bytes, bytes], Handler] = {
            (b"GET", b"/const"): lambda request: Response(200, b'"const"'),
            (b"GET", b"/big"): lambda request: Response(200, b"x" * 200_000, b"text/plain"),
            (b"GET", b"/empty"): lambda request: Response(204),
            (b"GET", b"/none"): lambda request: None,  # type: ignore[dict-item,return-value]
            (b"GET", b"/text"): lambda request: "text",  # type: ignore[dict-item,return-value]
            (b"GET", b"/broken"): self.broken,
            (b"GET", b"/refused"): self.refused,
            (b"GET", b"/async"): self.slow,
            (b"POST", b"/async"): self.slow,
            (b"GET", b"/async-broken"): self.async_broken,
            (b"GET", b"/async-refused"): self.async_refused,
            (b"GET", b"/async-none"): self.async_none,
            (b"GET", b"/gated"): self.gated,
            (b"GET", b"/async-gated"): self.async_gated,
        }

    def find(self, method: bytes, path: bytes) -> Handler | None:
        if path.endswith(b"/echo") or method == b"OPTIONS":
            return self.echo
        return self.table.get((method, path))

    def echo(self, request: Request) -> Response:
        self.started.append(request.body)
        document = {
            "method": request.method.decode(),
            "path": request.path.decode("latin1"),
            "query": request.query.decode("latin1"),
            "headers": [[name.decode("latin1"), value.decode("latin1")] for name, value in request.headers],
            "body": request.body.decode("latin1"),
            "peer": request.peer,
            "keep_alive": request.keep_alive,
            "version": request.version,
        }
        return Response(200, json.dumps(document).encode())

    def broken(self, request: Request) -> Response:
        raise LookupError("on purpose")

    def refused(self, request: Request) -> Response:
        raise RequestError(400, "featureKey is required")

    async def slow(self, request: Request) -> Response:
        self.started.append(request.query)
        await asyncio.sleep(float(request.query or b"0.05"))
        self.finished.append(request.query)
        return Response(200, b'"async"')

    async def async_broken(self, request: Request) -> Response:
        raise LookupError("on purpose")

    async def async_refused(self, request: Request) -> Response:
        raise RequestError(409, "no")

    async def async_none(self, request: Request) -> Response:
        return None  # type: ignore[return-value]

    def gated(self, request: Request) -> Response:
        self.started.append(request.query)
        request.gate = self.gate
        return Response(200, b'"gated"')

    async def async_gated(self, request: Request) -> Response:
        await asyncio.sleep(0)
        return self.gated(request)


class Live:
    """A server on its own loop in its own thread."""

    def __init__(self, loop_name: str, listen: dict[str, Any] | None = None, **options: Any) -> None:
        self.routes = Routes()
        self.problems: list[str] = []
        self.clients: list[Client] = []
        options.setdefault("limits", QUICK)
        self.loop = NEW_LOOP[loop_name]()
        self.loop.set_exception_handler(self._record)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        ssl_context = options.pop("ssl_context", None)
        proxy_trusts = options.pop("proxy_trusts", None)
        options = ServerOptions(options.pop("find", self.routes.find), **options)
        self.server = Server(options, ssl_context, proxy_trusts)
        self.run(self.server.listen(**(listen or {"host": "127.0.0.1"})))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _record(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = PATIENCE_SECONDS) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def call(self, function: Callable[[], Any]) -> Any:
        async def in_loop() -> Any:
            return function()

        return self.run(in_loop())

    def turn(self) -> None:
        """Returns when the loop has seen what was sent before."""
        self.run(asyncio.sleep(0))
        self.run(asyncio.sleep(0))

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)

    def connect(self, **options: int) -> Client:
        sock = socket.socket()
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        client = Client(sock)
        self.clients.append(client)
        sock.connect(("127.0.0.1", self.server.port))
        return client

    def ask(self, data: bytes, *, is_head: bool = False) -> HttpResponse:
        """One request on a new connection."""
        return self.connect().send(data).response(is_head=is_head)

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        self.run(self.server.stop(5))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE_SECONDS)
        self.loop.close()
        assert self.problems == []
        assert not self.server.activity.clients
        assert not self.server.activity.orphans
        assert not self.server.activity.tasks


@pytest.fixture(params=sorted(NEW_LOOP))
def serve(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Live]]:
    """Starts servers; afterwards nothing may be left over, and nothing logged that the test has not cleared."""
    caplog.set_level(logging.WARNING)
    FAILURES.logged.clear()  # the tests before this one raise the same errors
    started: list[Live] = []

    def start(**options: Any) -> Live:
        started.append(Live(request.param, **options))
        return started[-1]

    yield start
    for live in started:
        live.close()
    assert [record.getMessage() for record in caplog.records if record.name != "tornado.access"] == []


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: example", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode("latin1") + b"\r\n"


def post(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    return get(path, f"Content-Length: {len(body)}", *headers, version=version, method="POST") + body
