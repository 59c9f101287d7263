"""The HTTP/1.1 front: one `asyncio.Protocol` that parses with llhttp and answers with one write.

Data routes are plain functions from `Request` to `Response`; everything else goes to a `tornado.web.Application`
through Tornado's public interfaces. Used by `worker.py` (starts and stops a `Server`), `api.py` (data routes) and
`pages.py` (the application behind it).

What it decides where HTTP leaves a choice:

- A head over its limit, request line included, is 431; a slow head or body is 408; garbage is 400. Each closes.
- Bytes after an answered request that do not even begin with a method are dropped and the connection closes without
  a word: some SDKs leave a stray `Connection: close` behind their body.
- Pipelined requests start at once, answers leave in order. Starting them one after the other would cost one group
  commit each. Only requests for the Tornado application wait for their turn, because they stream.
- llhttp rejects control characters, spaces and bytes above 0x7F in a request target; all else reaches the route. On
  paths for which `lenient` is true, spaces, tabs and bytes above 0x7F in the query are then percent-encoded and the
  line is read again (`request_line.py`), because PHP SDKs write such lines. Everything else stays rejected. After more
  than `max_header_bytes` of pipelined requests without a pause the start of a line is not known, and it is rejected.
- Data routes send no Date: it would have to be rendered anew each second, and no client of ours reads it.
- An `Upgrade` is ignored, as RFC 9110 allows: the request is served as if the header were not there.
- A connection is closed by half-closing it and reading on for a moment. Closing at once with unread bytes in the
  kernel would make it send a reset, which can destroy an answer on its way.
"""

import asyncio
import fcntl
import logging
import re
import socket
import ssl
import struct
import termios
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple, final

import httptools
import orjson
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPOutputError,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import StreamClosedError

from tornado_gateway.errors import RequestError
from tornado_gateway.http import request_line

__all__ = ["Gate", "Handler", "Limits", "Request", "Response", "Server", "json_error", "log_failure", "request_id"]

logger = logging.getLogger(__name__)

JSON = b"application/json; charset=utf-8"

# What a connection is doing; the order matters (`phase >= _ENDED`: nothing more is read).
_IDLE, _HEAD, _BODY, _ENDED, _LINGER = range(5)

_SLASH = b"/"[0]

# The parser cannot be paused inside one call, so it gets at most this much at once.
_SLICE_BYTES = 16384
# Flow control is by bytes. Small responses are joined and written at this size, which is also when a peer that does not
# read is noticed; a larger piece is never joined, because the copy would cost as much as the response.
_WRITE_BYTES = 65536
# A large piece is handed to the transport in slices of this size, one per turn of the loop: asyncio copies unsent data,
# and other connections must get their turn.
_WRITE_SLICE_BYTES = 131072
# No further request starts while complete responses of this size wait for their turn: 128 responses of 2 KB, so a group
# commit is not split.
_MAX_QUEUED_BYTES = 262144
_CHECK_SECONDS = 0.01  # between two looks at what is left to be answered while the server stops
# Chunk sizes, extensions and trailers may take this many bytes for each byte of body (1-byte chunks take 5).
_CHUNK_OVERHEAD = 8

_LOGGED_PATH = 200  # characters of a path in a log line; a path can have 64 KB
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class Limits(NamedTuple):
    """Bounds on what one client can cost. Time-outs are noticed by a periodic sweep, so up to a quarter late."""

    max_header_bytes: int = 65536
    max_headers: int = 128
    max_body_bytes: int = 1 << 20
    max_pipelined: int = 64
    max_connections: int = 0  # 0: as many as the system allows
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 2.0
    drain_seconds: float = 1.0


_DEFAULT_LIMITS = Limits()


class Request:
    """One request, complete with its body. `headers` keep the client's order and spelling; `version` is "1.1" or "1.0".

    A handler may set `gate`: its answer is then held back until that gate opens. `is_marked`: see `Server`.
    """

    __slots__ = (
        "_answer",
        "body",
        "gate",
        "headers",
        "is_marked",
        "keep_alive",
        "method",
        "path",
        "peer",
        "query",
        "version",
    )

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes = b"",
        peer: str = "",
        keep_alive: bool = True,
        version: str = "1.1",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.peer = peer
        self.keep_alive = keep_alive
        self.version = version
        self.is_marked = False
        self.gate: Gate | None = None
        self._answer: Response | _Page | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, or None. `name` is in lower case."""
        size = len(name)
        for key, value in self.headers:
            if len(key) == size and key.lower() == name:
                return value
        return None

    def list_header(self, name: bytes) -> bytes:
        """Join all lines of a header that is a list, in their order (RFC 9110, 5.3); b"" if it is absent.

        Some proxies append a line instead of a value, as haproxy does with `option forwardfor`.
        """
        size = len(name)
        return b", ".join([value for key, value in self.headers if len(key) == size and key.lower() == name])


def request_id(request: Request) -> bytes | None:
    """The client's name for this request: X-Request-Id, else the trace id of `traceparent`; None if it is not sound."""
    trace = None
    for name, value in request.headers:
        size = len(name)
        if size == 12 and name.lower() == b"x-request-id":
            return value if _ID.fullmatch(value) else None
        if size == 11 and name.lower() == b"traceparent":
            trace = value
    found = None if trace is None else _TRACE_PARENT.fullmatch(trace)
    return None if found is None else found[1]


def _log_fields(request: Request) -> dict[str, str | None]:
    """The id of a failed request for its log line: `logs.py` cannot find it, as compiled code has no frames."""
    found = request_id(request)
    return {"request_id": None if found is None else found.decode("ascii")}


def log_failure(request: Request, error: BaseException | None) -> None:
    """Log an error that a request was not meant to cause, without the query, which may hold a key."""
    path = ascii(request.path[:_LOGGED_PATH].decode("latin-1"))[1:-1]
    method = request.method.decode("latin-1")
    logger.error("Unhandled error in %s %s", method, path, exc_info=error, extra=_log_fields(request))


@lru_cache(maxsize=256)
def _status_line(status: int, content_type: bytes | None) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    line = f"HTTP/1.1 {status} {reason}\r\n".encode()
    return line if content_type is None else b"%bContent-Type: %b\r\n" % (line, content_type)


def _header_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    if lines.count(b"\r") != len(headers) or lines.count(b"\n") != len(headers) or b"\0" in lines:
        raise ValueError(f"line breaks in headers: {lines!r}")
    return lines


@final
class Response:
    """An answer, rendered once and used for as many requests as wanted. `content_type` None: no such header."""

    __slots__ = ("_head", "body", "status", "wire")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: bytes | None = JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.status = status
        if status in (204, 304):
            # RFC 9110: no content, so nothing that describes it.
            self.body = b""
            self._head = _status_line(status, None)
        else:
            self.body = body
            self._head = b"%bContent-Length: %d\r\n" % (_status_line(status, content_type), len(body))
        if headers:
            self._head += _header_lines(tuple(headers))
        self.wire = b"%b\r\n%b" % (self._head, self.body)

    def render(self, connection: bytes, is_head: bool) -> bytes:
        """The bytes for a request that is not plain HTTP/1.1 keep-alive; `connection` is b"" or a header line."""
        return b"%b%b\r\n%b" % (self._head, connection, b"" if is_head else self.body)

    def head(self, connection: bytes) -> bytes:
        """The bytes of `render` without the body, for a body that is too large to be copied for each client."""
        return b"%b%b\r\n" % (self._head, connection)


def json_error(status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    """The one shape of every error: `{"status":0,"error":message}`."""
    return Response(status, orjson.dumps({"status": 0, "error": message}), headers=headers)


_INTERNAL_ERROR = json_error(500, "internal error")
_NOT_FOUND = json_error(404, "not found")
_BAD_REQUEST = json_error(400, "malformed HTTP request")
_TIMEOUT = json_error(408, "the request took too long to arrive")
_HEAD_TOO_LARGE = json_error(431, "the request line and headers are too large")
_BODY_TOO_LARGE = json_error(413, "the request body is too large")
_BAD_EXPECTATION = json_error(417, "only 100-continue can be expected")
_NO_TUNNEL = json_error(405, "CONNECT is not served here")
_UNKNOWN_CODING = json_error(501, "the only transfer coding is chunked")
_UNKNOWN_VERSION = json_error(505, "only HTTP/1.1 and HTTP/1.0 are served here")
_CANCELLED = json_error(503, "the request was cancelled")
_OVERLOADED = json_error(503, "too many connections")


class Gate:
    """Holds back the answers of many requests, on many connections, until one event, such as a group commit."""

    __slots__ = ("_failure", "_holders", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._failure: Response | None = None
        self._holders: list[_Connection] = []

    def open(self) -> None:
        """Release all held answers, with one write per connection. Later holders pass at once."""
        if self.is_open:
            return
        self.is_open = True
        holders, self._holders = self._holders, []
        for connection in holders:
            connection.flush()

    def fail(self, response: Response) -> None:
        """Release, but answer `response` in the place of each held answer, and of later ones."""
        if not self.is_open:
            self._failure = response
            self.open()


Handler = Callable[[Request], Response | Awaitable[Response]]


def _no_lines(request: Request) -> bytes:
    return b""


class _RefusedError(Exception):
    """Raised inside a parser callback to stop parsing: the client gets `response` as its last answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def _split_target(target: bytes) -> tuple[bytes, bytes]:
    """A request target as path and query. Of the absolute form (`GET http://host/path`) the host is left out."""
    if not target.startswith((b"/", b"*")):
        rest = target.partition(b"://")[2]
        start = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        target = rest[start:] if rest[start : start + 1] == b"/" else b"/" + rest[start:]
    path, _, query = target.partition(b"?")
    return path, query


class _Connection(asyncio.Protocol):
    """One client. Bytes come in through the parser's callbacks; answers leave in the order of their requests.

    A request goes through these places, and everything that moves it is in this class:
    held (bytes not parsed yet) -> parser -> waiting (not started yet) -> queue (started, in order) -> out.
    Without pipelining and gates only parser and out are used.
    """

    __slots__ = (
        "blocked",
        "body",
        "continue_due",
        "corked",
        "eof",
        "expect",
        "feed_due",
        "fields",
        "find",
        "gate",
        "head_headers",
        "held",
        "is_marked",
        "loop",
        "mark",
        "max_body",
        "max_headers",
        "max_pipelined",
        "more_headers",
        "noted_initials",
        "on_answer",
        "out",
        "out_bytes",
        "parser",
        "partial",
        "peer",
        "phase",
        "queue",
        "queued_bytes",
        "refusal",
        "remaining",
        "seen_bytes",
        "server",
        "since",
        "slice_bytes",
        "stopping",
        "tls",
        "transport",
        "unsent",
        "unsent_bytes",
        "url",
        "version",
        "waiting",
        "write_paused",
        "writers",
    )

    def __init__(self, server: "Server") -> None:
        limits = server.limits
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.find = server.find
        self.more_headers = server.more_headers
        self.on_answer = server.on_answer
        self.max_body = limits.max_body_bytes
        self.max_headers = limits.max_headers
        self.max_pipelined = limits.max_pipelined
        self.noted_initials = server.noted_initials
        self.slice_bytes = min(_SLICE_BYTES, limits.max_header_bytes)
        self.stopping = server.stopping
        self.parser: Any = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.tls = False
        self.phase = _IDLE
        self.version = ""
        # the message being read
        self.url = b""
        self.head_headers: list[tuple[bytes, bytes]] = []
        self.fields = self.head_headers
        self.body: bytes | bytearray = b""
        self.expect: bytes | None = None
        self.is_marked = server.marks is None
        self.continue_due = False
        self.seen_bytes = 0
        # where the message began that the last slice has left incomplete: see _since_boundary
        self.partial: bytearray | None = None
        self.remaining = -1
        # requests and answers
        # (`gate` is the last one that knows this connection, so that it is told only once)
        self.held: deque[bytes] = deque()
        self.waiting: deque[Request] = deque()
        self.queue: deque[Request] = deque()
        self.queued_bytes = 0  # of the complete responses in the queue
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.unsent: deque[memoryview] = deque()  # a large piece, and all that follows it
        self.unsent_bytes = 0
        self.feed_due = False
        self.refusal: Response | None = None
        self.gate: Gate | None = None
        self.writers: list[asyncio.Future[None]] = []
        self.corked = False
        self.blocked = False
        self.write_paused = False
        self.eof = False
        # for the sweep
        self.mark: tuple[int, list[tuple[bytes, bytes]], int] = (-1, self.head_headers, 0)
        self.since = 0.0

    # ---- the transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio hands a Transport to a stream protocol
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = peer[0].removeprefix("::ffff:")
        self.tls = transport.get_extra_info("sslcontext") is not None
        if self.tls:  # as for plain connections; the default for TLS is eight times as much
            self.transport.set_write_buffer_limits(_WRITE_BYTES)  # type: ignore[union-attr]  # set above
        server = self.server
        server.clients.add(self)
        if server.limits.max_connections and len(server.clients) > server.limits.max_connections:
            self._refuse(_OVERLOADED)

    def data_received(self, data: bytes) -> None:
        started = self.phase
        if started >= _ENDED:
            return
        if self.blocked or len(data) > self.slice_bytes:
            self._hold_and_pump(data)
            return
        self.corked = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse(self._without_upgrade() + data[upgrade.args[0] :], _IDLE)
            if self._reads_again():
                return
        except httptools.HttpParserError as error:
            self._recover(error, data, started)
            if self._reads_again():
                return
        self.corked = False
        if self.phase or self.blocked or self.stopping:
            self._after_slice(data, started)
        elif started:
            self.partial = None
        if self.out:
            self._write_out()

    def eof_received(self) -> bool:
        """The client sends no more, but may still read: what it asked for is answered. TLS has no such half-close."""
        self.eof = True
        for request in self.queue:
            if isinstance(request._answer, _Page):
                request._answer.client_closed()
        if self.tls:
            return False
        self._settle()
        return bool(self.queue or self.waiting or self.held or self.unsent_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone. What it has asked for is still done; the answers lead nowhere."""
        self.transport = None
        self.write_paused = False
        self._forget_unsent()
        self.server.clients.discard(self)
        self.server.orphans.add(self)
        self._release_writers()
        pages = [request._answer for request in self.queue if isinstance(request._answer, _Page)]
        self.queue = deque(request for request in self.queue if not isinstance(request._answer, _Page))
        for page in pages:
            page.client_closed()
            page.start()
        self._send_ready()
        self._pump()

    def pause_writing(self) -> None:
        """The peer does not read its answers as fast as they come, so it is not asked for more."""
        self.write_paused = True
        self._block()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.unsent_bytes:
            self._feed()
        else:
            self._go_on()

    # ---- the parser calls these

    def on_message_begin(self) -> None:
        self.phase = _HEAD
        self.url = self.body = b""
        self.fields = self.head_headers = []
        self.seen_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))
        if name[0] in self.noted_initials:
            self._note(name.lower(), value)

    def _note(self, name: bytes, value: bytes) -> None:
        """Of all headers only these few are looked at before a handler asks for them."""
        if self.fields is not self.head_headers:
            return  # a trailer
        if name == b"expect":
            self.expect = value
        elif self.server.marks is not None and name in self.server.marks:
            self.is_marked = True

    def on_headers_complete(self) -> None:
        self.phase = _BODY
        # A head that came in one slice cannot be too large.
        if self.seen_bytes:
            if self._head_size() > self.server.limits.max_header_bytes:
                raise _RefusedError(_HEAD_TOO_LARGE)
            self.seen_bytes = 0
        if len(self.fields) > self.max_headers:
            raise _RefusedError(_HEAD_TOO_LARGE)
        if not self.version:
            self.version = self.parser.get_http_version()

    def on_chunk_header(self) -> None:
        if self.fields is self.head_headers:
            self._check_codings()
        # Header fields that come from here on are trailers. They are read and forgotten: merging them into the
        # headers would let a body change what the head has said.
        self.fields = []

    def on_body(self, data: bytes) -> None:
        if not self.body:
            self.body = data
        else:
            if type(self.body) is bytes:
                self.body = bytearray(self.body)
            self.body += data
        if len(self.body) > self.max_body:
            self._check_body_size(len(self.body))

    def on_message_complete(self) -> None:
        parser = self.parser
        if parser.should_upgrade():
            return  # the parser raises HttpParserUpgrade next, see _without_upgrade
        if self.expect is not None:
            self._check_expectation()
        if parser.should_keep_alive():
            self.phase = _IDLE
            keep_alive = True
            # Asking the parser costs a quarter of a microsecond. A client does not change its version on the way; if
            # a proxy does, all that is lost is a needless or missing `Connection: keep-alive`.
            version = self.version
        else:
            self.phase = _ENDED
            keep_alive = False
            version = parser.get_http_version()
            if version not in ("1.1", "1.0"):
                raise _RefusedError(_UNKNOWN_VERSION)
        url = self.url
        if url[0] == _SLASH:
            path, _, query = url.partition(b"?")
        else:
            path, query = _split_target(url)
        body = self.body
        if type(body) is not bytes:
            body = bytes(body)
        request = Request(parser.get_method(), path, query, self.head_headers, body, self.peer, keep_alive, version)
        if self.is_marked:
            request.is_marked = True
            self.is_marked = self.server.marks is None
        if self.blocked:
            self.waiting.append(request)
        else:
            self._serve(request)

    # ---- reading: what is not on the fast path

    def _hold_and_pump(self, data: bytes) -> None:
        size = self.slice_bytes
        self.held.extend(data[at : at + size] for at in range(0, len(data), size))
        self._pump()

    def _pump(self) -> None:
        """Start what waits and parse what is held, for as long as there is room; then read on."""
        if self.corked:
            return
        while (self.waiting or self.held) and self._has_room():
            self.corked = True
            while (self.waiting or self.held) and self._has_room():
                self._advance()
            self.corked = False
            self._send_ready()
        if self.blocked and self._has_room():
            self.blocked = False
            self._resume_reading()
        self._end_turn()

    def _advance(self) -> None:
        if self.waiting:
            self._serve(self.waiting.popleft())
            return
        data = self.held.popleft()
        started = self.phase
        if started < _ENDED:
            self._parse(data, started)
            self._check_incomplete(data, started)

    def _parse(self, data: bytes, started: int) -> None:
        """Feed a slice to the parser; `started` is the phase at its beginning."""
        while data and self.phase < _ENDED:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data, started = self._without_upgrade() + data[upgrade.args[0] :], _IDLE
            except httptools.HttpParserError as error:
                self._recover(error, data, started)
                return

    def _after_slice(self, data: bytes, started: int) -> None:
        """The slice has ended, but not everything is done."""
        self._check_incomplete(data, started)
        self.flush()

    def _check_incomplete(self, data: bytes, started: int) -> None:
        """The limits of a message that is not complete at the end of a slice."""
        size = len(data)
        if self.phase == _HEAD:
            self._remember(data, started)
            # Of the first slice only what is known to belong to this head counts.
            self.seen_bytes += size if self.seen_bytes else self._head_size()
            if self.seen_bytes > self.server.limits.max_header_bytes:
                self._refuse(_HEAD_TOO_LARGE)
            return
        self.partial = None
        if self.phase == _BODY:
            try:
                self._check_incomplete_body(size)
            except _RefusedError as refused:
                self._refuse(refused.response)

    def _check_incomplete_body(self, size: int) -> None:
        self.remaining -= size
        if not self.seen_bytes:
            self.continue_due = False
            announced = Request(b"", b"", b"", self.head_headers).header(b"content-length")
            self.remaining = -1 if announced is None else int(announced) - len(self.body)
            if announced is not None and int(announced) > self.max_body:
                self._check_body_size(int(announced))
            if self.expect is not None:
                self._check_expectation()
                self.continue_due = self.parser.get_http_version() == "1.1"
        self.seen_bytes += size
        overhead = self.seen_bytes - len(self.body)
        if overhead > self.server.limits.max_header_bytes + self.slice_bytes + _CHUNK_OVERHEAD * len(self.body):
            raise _RefusedError(_BODY_TOO_LARGE)

    def _check_body_size(self, size: int) -> None:
        override = self.server.body_limit
        if override is None or size > override(_split_target(self.url)[0]):
            raise _RefusedError(_BODY_TOO_LARGE)

    def _check_expectation(self) -> None:
        expect, self.expect = self.expect, None
        if expect is not None and expect.lower() != b"100-continue":
            raise _RefusedError(_BAD_EXPECTATION)

    def _check_codings(self) -> None:
        codings = Request(b"", b"", b"", self.head_headers).header(b"transfer-encoding") or b""
        if codings.strip().lower() != b"chunked":
            raise _RefusedError(_UNKNOWN_CODING)
        if self.parser.get_http_version() != "1.1":
            raise _RefusedError(_BAD_REQUEST)  # RFC 9112 6.1: HTTP/1.0 has no chunks, somebody on the way is confused

    def _head_size(self) -> int:
        return 1 + len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.head_headers)

    def _continue(self) -> None:
        """Ask for a body that the client holds back, as soon as all earlier answers are out."""
        if self.continue_due and self.phase == _BODY and not self.queue and not self.waiting:
            self.continue_due = False
            self._put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _without_upgrade(self) -> bytes:
        """The head just read, to be read again without Upgrade: the parser takes what follows for another protocol."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(_NO_TUNNEL)
            return b""
        headers = [header for header in self.head_headers if header[0].lower() != b"upgrade"]
        line = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        return line + _header_lines(headers) + b"\r\n"

    # ---- reading a request line again, leniently: see request_line.py

    def _since_boundary(self, data: bytes, started: int) -> bytes | None:
        """The bytes from the last known start of a message to the end of a slice; None if none is known."""
        if started == _IDLE:
            return data
        if started == _HEAD:
            return None if self.partial is None else bytes(self.partial) + data
        return data[self.remaining :] if self.remaining >= 0 else None

    def _remember(self, data: bytes, started: int) -> None:
        """At the end of a slice, keep what is needed if the next one turns out to end a rejected line."""
        if self.server.lenient is None:
            return
        if started == _HEAD and self.partial is not None:
            self.partial += data
            if len(self.partial) > self.server.limits.max_header_bytes + self.slice_bytes:
                self.partial = None
        else:
            known = self._since_boundary(data, started)
            self.partial = None if known is None else bytearray(known)

    def _recover(self, error: httptools.HttpParserError, data: bytes, started: int) -> None:
        """The parser has rejected something: let it read the request line again if it was that, otherwise fail."""
        line = self._rejected_line(error, data, started)
        lenient = self.server.lenient
        path = None if line is None else request_line.path_of(line)
        if line is None or path is None or lenient is None or not lenient(path):
            self._fail(error)
            return
        line, end, rest = line.partition(b"\n")
        if not end:
            self.parser = request_line.PendingLine(line)
            self.url = line.partition(b" ")[2]
            return
        encoded = request_line.encoded(line)
        if encoded is None:
            self._fail(error)
            return
        self.parser = httptools.HttpRequestParser(self)
        self.phase = _IDLE
        self.held.extendleft((rest, encoded))

    def _reads_again(self) -> bool:
        """Go on with the line that _recover has encoded, and with what follows it. False if it has not."""
        if not self.held:
            return False
        self.corked = False
        self._pump()
        return True

    def _rejected_line(self, error: httptools.HttpParserError, data: bytes, started: int) -> bytes | None:
        """The rejected request line, as far as it has arrived, and what follows it; None if it was something else."""
        if isinstance(self.parser, request_line.PendingLine):
            return bytes(self.parser.data)
        if self.phase != _HEAD or self.head_headers or isinstance(error, httptools.HttpParserCallbackError):
            return None
        known = None if self.server.lenient is None else self._since_boundary(data, started)
        start = None if known is None else request_line.start_of_rejected_line(known)
        return None if known is None or start is None else known[start:]

    def _fail(self, error: httptools.HttpParserError) -> None:
        """The parser has stopped for good."""
        cause = error.__context__
        if isinstance(cause, _RefusedError):
            self._refuse(cause.response)
        elif isinstance(error, httptools.HttpParserCallbackError):
            log_failure(Request(self.parser.get_method(), *_split_target(self.url), self.head_headers), cause)
            self._refuse(_INTERNAL_ERROR)
        elif self.phase == _ENDED or (self.version and not self.url):
            self.phase = _ENDED  # stray bytes after a complete request
        else:
            self._refuse(_BAD_REQUEST)

    def _refuse(self, response: Response) -> None:
        """Read nothing more; `response` is the last answer, after those of earlier requests."""
        self.phase = _ENDED
        self.refusal = response
        self.held.clear()
        self._settle()

    def _block(self) -> None:
        self.blocked = True
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def _has_room(self) -> bool:
        return (
            not self.write_paused
            and not self.unsent_bytes
            and self.queued_bytes < _MAX_QUEUED_BYTES
            and len(self.queue) < self.max_pipelined
        )

    def _resume_reading(self) -> None:
        if self.transport is not None and not self.transport.is_closing() and not self.eof:
            self.transport.resume_reading()

    # ---- serving

    def _serve(self, request: Request) -> None:
        try:
            handler = self.find(request.method, request.path) or self._other_handler(request)
            if handler is None:
                return
            answer = handler(request)
        except Exception as error:
            answer = _error_answer(request, error)
        if type(answer) is Response:
            gate = request.gate
            if gate is None and not self.queue and not self.stopping:
                self._send(request, answer)
                return
            request._answer = answer
            self.queued_bytes += len(answer.body)
            self._enqueue(request)
            if gate is not None:
                self._hold(gate)
        else:
            self._enqueue(request)
            self._start_task(request, answer)

    def _other_handler(self, request: Request) -> Handler | None:
        """HEAD is served by the handler of GET. What has no handler goes to the Tornado application."""
        if request.method == b"HEAD":
            handler = self.find(b"GET", request.path)
            if handler is not None:
                return handler
        if self.server.fallback is None:
            return _answer_not_found
        request._answer = _Page(self, request, self.server.fallback)
        self._enqueue(request)
        self.flush()
        return None

    def _enqueue(self, request: Request) -> None:
        self.queue.append(request)
        if len(self.queue) >= self.max_pipelined or self.queued_bytes >= _MAX_QUEUED_BYTES:
            self._block()

    def _hold(self, gate: Gate) -> None:
        if self.gate is not gate and not gate.is_open:
            self.gate = gate
            gate._holders.append(self)
        elif gate.is_open:
            self.flush()

    def _start_task(self, request: Request, answer: Awaitable[Response]) -> None:
        try:
            task = asyncio.ensure_future(answer)
        except TypeError as error:  # neither a Response nor an awaitable
            self._complete(request, _error_answer(request, error))
            self.flush()
            return
        self.server.tasks.add(task)
        task.add_done_callback(lambda done: self._finish_task(request, done))

    def _finish_task(self, request: Request, task: asyncio.Future[Response]) -> None:
        self.server.tasks.discard(task)
        self._complete(request, _outcome(request, task))
        if request.gate is not None:
            self._hold(request.gate)
        self.flush()

    def _complete(self, request: Request, answer: Response) -> None:
        request._answer = answer
        self.queued_bytes += len(answer.body)

    def flush(self) -> None:
        """Send every answer that is ready and whose turn it is, and go on with what waited for that."""
        self._send_ready()
        if self.corked:
            return
        if self.blocked:
            self._pump()
        else:
            self._end_turn()

    def _send_ready(self) -> None:
        queue = self.queue
        while queue and not self.write_paused and not self.unsent_bytes:
            request = queue[0]
            answer = request._answer
            if answer is None:
                return
            if isinstance(answer, _Page):
                answer.start()
                return
            size = len(answer.body)
            gate = request.gate
            if gate is not None:
                if not gate.is_open:
                    return
                if gate._failure is not None:
                    answer = gate._failure
            queue.popleft()
            self.queued_bytes -= size
            self._send(request, answer)

    def _end_turn(self) -> None:
        if self.continue_due:
            self._continue()
        if self.out:
            self._write_out()
        if self.phase >= _ENDED or self.eof or self.transport is None:
            self._settle()

    def _send(self, request: Request, answer: Response) -> None:
        lines = self.more_headers(request) if request.is_marked else b""
        plain = request.keep_alive and request.version == "1.1" and request.method != b"HEAD" and not self.stopping
        data = answer.wire if plain and not lines else self._render(request, answer, lines)
        if self.on_answer is not None:
            self.count(request, answer.status)
        self.out.append(data)
        self.out_bytes += len(data)
        if self.out_bytes >= _WRITE_BYTES:
            self._write_out()

    def _render(self, request: Request, answer: Response, lines: bytes) -> bytes:
        """The response, or of a large one the body, after its head has been put in front."""
        lines = self.connection_line(request) + lines
        if len(answer.body) < _WRITE_BYTES or request.method == b"HEAD":
            return answer.render(lines, request.method == b"HEAD")
        self._put(answer.head(lines))
        return answer.body

    def _put(self, data: bytes) -> None:
        self.out.append(data)
        self.out_bytes += len(data)

    def connection_line(self, request: Request) -> bytes:
        """Decide whether the connection goes on after this answer, and say so in a header line if need be."""
        if self.stopping and self.phase == _IDLE and not self.corked and self._is_last(request):
            self.phase = _ENDED
            request.keep_alive = False
        if not request.keep_alive:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if request.version == "1.0" else b""

    def _is_last(self, request: Request) -> bool:
        return not (self.waiting or self.held or any(other is not request for other in self.queue))

    def count(self, request: Request, status: int) -> None:
        """Tell the metrics hook about a finished answer."""
        if self.on_answer is not None:
            try:
                self.on_answer(request, status)
            except Exception:
                logger.exception("the on_answer hook failed", extra=_log_fields(request))

    def _write_out(self) -> None:
        out = self.out
        if self.out_bytes >= _WRITE_BYTES or self.unsent_bytes:
            self._write_pieces()
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self.out_bytes = 0
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def _write_pieces(self) -> None:
        """Write what may hold large pieces, behind what is unsent: pieces are joined only up to `_WRITE_BYTES`."""
        pieces, self.out, self.out_bytes = self.out, [], 0
        if self.transport is None or self.transport.is_closing():
            return
        is_first = not self.unsent_bytes
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) < _WRITE_BYTES:
                small.append(piece)
            else:
                self._leave(b"".join(small))
                self._leave(piece)
                small.clear()
        self._leave(b"".join(small))
        if is_first:
            self._write_slice()
            if self.unsent_bytes:
                self._block()
                self._feed_later()

    def _leave(self, data: bytes) -> None:
        if data:
            self.unsent.append(memoryview(data))
            self.unsent_bytes += len(data)

    def _write_slice(self) -> None:
        """Hand up to a slice of what is unsent to the transport, unless that has enough."""
        room = _WRITE_SLICE_BYTES
        while self.unsent_bytes and room and not self.write_paused:
            if self.transport is None or self.transport.is_closing():
                self._forget_unsent()
                return
            piece = self.unsent.popleft()
            if len(piece) > room:
                self.unsent.appendleft(piece[room:])
                piece = piece[:room]
            room -= len(piece)
            self.unsent_bytes -= len(piece)
            self.transport.write(piece)

    def _forget_unsent(self) -> None:
        self.unsent.clear()
        self.unsent_bytes = 0

    def _feed(self) -> None:
        self.feed_due = False
        self._write_slice()
        if not self.unsent_bytes and not self.write_paused:
            self._go_on()
        else:
            self._feed_later()

    def _feed_later(self) -> None:
        """Write the next slice in the next turn of the loop, or in resume_writing."""
        if self.unsent_bytes and not self.write_paused and not self.feed_due:
            self.feed_due = True
            self.loop.call_soon(self._feed)

    def _go_on(self) -> None:
        """Continue with everything that waited because the peer had not read enough."""
        self._release_writers()
        self._send_ready()
        self._pump()

    def _settle(self) -> None:
        """When nothing more will be read and all is answered: the last word, and close."""
        is_over = self.phase >= _ENDED or self.eof or self.transport is None
        if not is_over or self.corked or self.queue or self.waiting or self.held or self.unsent_bytes:
            return
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            path, query = _split_target(self.url) if self.url else (b"", b"")
            request = Request(b"", path, query, self.head_headers, b"", self.peer, False)
            request.is_marked = self.is_marked
            self._send(request, refusal)
        if self.out:
            self._write_out()
        self.linger()

    def linger(self) -> None:
        """Close our side and wait for the peer to close its own."""
        is_first, self.phase = self.phase != _LINGER, _LINGER
        transport = self.transport
        if transport is None:
            self.server.orphans.discard(self)
            self.parser = None  # breaks a reference cycle
        elif self.eof or self.tls:
            self.close()
        elif is_first and not transport.is_closing():
            self._resume_reading()
            try:
                transport.write_eof()
            except OSError:  # reset by the peer in this very moment
                transport.abort()

    # ---- for pages

    def write(self, *pieces: bytes) -> asyncio.Future[None]:
        """Write a part of a streamed answer. The future is done when more may follow."""
        future: asyncio.Future[None] = self.loop.create_future()
        if self.transport is None or self.transport.is_closing():
            future.set_exception(StreamClosedError())
            future.exception()  # not everybody awaits it
            return future
        for piece in pieces:
            self._put(piece)
        self._write_out()
        if self.write_paused or self.unsent_bytes:
            self.writers.append(future)
        else:
            future.set_result(None)
        return future

    def page_finished(self, request: Request) -> None:
        """The page at the head of the queue is written completely."""
        if not (self.queue and self.queue[0] is request):
            return  # the client has gone
        self.queue.popleft()
        if not request.keep_alive:
            # The handler may have decided so: what was pipelined behind it cannot be answered any more.
            self.phase = max(self.phase, _ENDED)
            self.refusal = None
            for later in (self.held, self.waiting, self.queue):
                later.clear()
        self.flush()

    def close(self) -> None:
        """Close without lingering. asyncio's TLS transport forgets too much when it is closed twice."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def _release_writers(self) -> None:
        writers, self.writers = self.writers, []
        for future in writers:
            if future.done():
                continue
            if self.transport is None:
                future.set_exception(StreamClosedError())
                future.exception()
            else:
                future.set_result(None)

    # ---- time

    def is_busy(self) -> bool:
        """Whether a request has been received, at least in part, and its answer is not with the kernel yet."""
        if self.phase in (_HEAD, _BODY) or self.queue or self.waiting or self.held or self.refusal:
            return True
        return self._buffered() > 0

    def _buffered(self) -> int:
        if self.transport is None:
            return 0
        return self.transport.get_write_buffer_size() + self.unsent_bytes

    def sweep(self, now: float) -> None:
        """Called from time to time: close the connection if nothing has changed for too long."""
        buffered = self._buffered()
        if buffered:
            # The kernel takes more only when a large part of its buffer, up to 4 MB, is free: progress is seen there.
            buffered += _kernel_bytes(self.transport)
        phase, headers, before = self.mark
        answering = self.queue and not buffered
        if phase != self.phase or headers is not self.head_headers or before != buffered or answering:
            self.mark = (self.phase, self.head_headers, buffered)
            self.since = now
        else:
            self._expire(now - self.since, buffered)

    def _expire(self, age: float, buffered: int) -> None:
        limits = self.server.limits
        if buffered:
            if age > limits.write_seconds:
                self.abort()
        elif self.phase == _IDLE:
            if age > limits.keep_alive_seconds:
                self.linger()
        elif self.phase == _LINGER:
            if age > limits.linger_seconds:
                self.close()
        elif age > (limits.header_seconds if self.phase == _HEAD else limits.body_seconds):
            self._refuse(_TIMEOUT)


def _kernel_bytes(transport: asyncio.Transport | None) -> int:
    """Bytes that the kernel has taken and the peer has not acknowledged."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return 0
    try:
        size: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except (OSError, ValueError):  # closed meanwhile
        return 0
    return size


def _answer_not_found(request: Request) -> Response:
    return _NOT_FOUND


def _error_answer(request: Request, error: BaseException) -> Response:
    """What an exception of a handler means to the client. It does not wait for a gate: nothing was promised."""
    request.gate = None
    if isinstance(error, RequestError):
        return json_error(error.status, str(error))
    if isinstance(error, asyncio.CancelledError):
        return _CANCELLED
    log_failure(request, error)
    return _INTERNAL_ERROR


def _outcome(request: Request, task: asyncio.Future[Response]) -> Response:
    """The answer of a handler's awaitable, whatever has become of it."""
    try:
        answer: object = task.result()
    except (Exception, asyncio.CancelledError) as error:
        return _error_answer(request, error)
    if isinstance(answer, Response):
        return answer
    return _error_answer(request, TypeError(f"a handler must return a Response, not {answer!r}"))


class _PageContext(NamedTuple):
    """What `tornado.httputil.HTTPServerRequest` wants to know about the connection."""

    remote_ip: str
    protocol: str


class _Page(HTTPConnection):
    """One request of the Tornado application: what a `RequestHandler` sees as its connection."""

    def __init__(self, connection: _Connection, request: Request, application: HTTPServerConnectionDelegate) -> None:
        self.context = _PageContext(connection.peer, "https" if connection.tls else "http")
        self._connection = connection
        self._request = request
        self._application = application
        self._is_started = False
        self._status = 0
        self._is_chunked = False
        self._remaining: int | None = None
        self._close_callback: Callable[[], None] | None = None

    def start(self) -> None:
        """Hand the request over, once its turn has come."""
        if not self._is_started:
            self._is_started = True
            tasks = self._connection.server.tasks
            task = asyncio.ensure_future(self._run())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _run(self) -> None:
        try:
            await self._deliver()
        except HTTPInputError as error:
            self._send_error(json_error(400, str(error)))
        except Exception as error:
            log_failure(self._request, error)
            self._send_error(_INTERNAL_ERROR)

    async def _deliver(self) -> None:
        request = self._request
        delegate = self._application.start_request(self._connection.server, self)
        headers = HTTPHeaders()
        for name, value in request.headers:
            headers.add(name.decode("latin1"), value.decode("latin1"))
        target = (request.path + b"?" + request.query if request.query else request.path).decode("latin1")
        line = RequestStartLine(request.method.decode(), target, f"HTTP/{request.version}")
        ready = delegate.headers_received(line, headers)
        if ready is not None:
            await ready
        if request.body:
            ready = delegate.data_received(request.body)
            if ready is not None:
                await ready
        delegate.finish()

    def _send_error(self, response: Response) -> None:
        if self._status:
            self._connection.abort()  # half an answer is out, only a broken connection can say that it is wrong
            return
        self._status = response.status
        request = self._request
        line = self._connection.connection_line(request)
        self._connection.write(response.render(line, request.method == b"HEAD"))
        self.finish()

    def client_closed(self) -> None:
        """The client has closed, or half-closed, its side."""
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            callback()

    # ---- tornado.httputil.HTTPConnection

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self._close_callback = callback

    def write_headers(
        self,
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        if not isinstance(start_line, ResponseStartLine):
            raise TypeError("a server writes responses")
        request = self._request
        self._status = start_line.code
        has_body = request.method != b"HEAD" and start_line.code >= 200 and start_line.code not in (204, 304)
        length = headers.get("Content-Length")
        self._remaining = None if not has_body or length is None else int(length)
        self._is_chunked = has_body and length is None and request.version == "1.1"
        if has_body and length is None and not self._is_chunked:
            request.keep_alive = False  # HTTP/1.0 knows the end of such a body by the end of the connection
        lines = [(name.encode("latin1"), value.encode("latin1")) for name, value in headers.get_all()]
        if self._is_chunked:
            lines.append((b"Transfer-Encoding", b"chunked"))
        head = b"HTTP/1.1 %d %b\r\n" % (start_line.code, start_line.reason.encode("latin1"))
        head += _header_lines(lines) + self._connection_line(headers) + b"\r\n"
        return self._connection.write(head, *self._frame(chunk or b""))

    def _connection_line(self, headers: HTTPHeaders) -> bytes:
        if headers.get("Connection", "").lower() == "close":
            self._request.keep_alive = False
            return b""
        return self._connection.connection_line(self._request)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        return self._connection.write(*self._frame(chunk))

    def _frame(self, chunk: bytes) -> tuple[bytes, ...]:
        if self._remaining is not None:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                self._connection.abort()
                raise HTTPOutputError("more data written than Content-Length says")
        if self._is_chunked and chunk:  # an empty chunk would be the end
            return b"%x\r\n" % len(chunk), chunk, b"\r\n"
        return (chunk,)

    def finish(self) -> None:
        connection = self._connection
        if self._remaining:
            connection.abort()
            raise HTTPOutputError(f"{self._remaining} bytes less written than Content-Length says")
        if self._is_chunked:
            connection.write(b"0\r\n\r\n")
        connection.count(self._request, self._status)
        connection.page_finished(self._request)


class Server:
    """Listens, and owns the connections. `find(method, path)` names the handler of a data route, or None.

    A request without handler goes to `fallback`, a `tornado.web.Application`. `body_limit(path)` is asked only about
    a body larger than `limits.max_body_bytes`, so it can raise that limit but not lower it. `on_answer(request,
    status)` is called once for each answer; a request that could not be parsed has an empty method.
    `more_headers(request)` gives header lines that each answer of a data route, errors included, gets in addition;
    with `marks`, names in lower case, it is asked only for requests that have one of these headers. `lenient(path)`:
    whether a query with spaces, tabs and bytes above 0x7F is accepted.
    """

    def __init__(
        self,
        find: Callable[[bytes, bytes], Handler | None],
        fallback: HTTPServerConnectionDelegate | None = None,
        *,
        limits: Limits = _DEFAULT_LIMITS,
        body_limit: Callable[[bytes], int] | None = None,
        on_answer: Callable[[Request, int], object] | None = None,
        more_headers: Callable[[Request], bytes] | None = None,
        marks: Collection[bytes] | None = None,
        lenient: Callable[[bytes], bool] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.find = find
        self.fallback = fallback
        self.limits = limits
        self.body_limit = body_limit
        self.on_answer = on_answer
        self.more_headers = more_headers or _no_lines
        self.marks = marks if more_headers else ()
        self.lenient = lenient
        initials = {name[:1] for name in (b"expect", *(self.marks or ()))}
        self.noted_initials = frozenset(b"".join(initials) + b"".join(initials).upper())
        self.port = 0
        self.stopping = False
        self.clients: set[_Connection] = set()
        self.orphans: set[_Connection] = set()  # the peer is gone, its requests are still being worked on
        self.tasks: set[asyncio.Future[Any]] = set()
        self._ssl_context = ssl_context
        self._listener: asyncio.Server | None = None
        self._backlog: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self.clients)

    @property
    def in_flight(self) -> int:
        """How many requests have been received and not been answered yet."""
        return sum(len(c.queue) + len(c.waiting) for c in (*self.clients, *self.orphans))

    async def listen(
        self, host: str = "", port: int = 0, *, reuse_port: bool = False, sock: socket.socket | None = None
    ) -> None:
        """Accept connections on an address (`""`: on all of them), or on a bound socket, which is then ours."""
        if sock is None:
            sock = _bind(host, port, reuse_port)
        self.port = sock.getsockname()[1]
        # The second descriptor keeps the kernel's queue of new connections alive while stop() empties it.
        self._backlog = sock.dup()
        self._backlog.setblocking(False)
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), sock=sock, backlog=4096, **self._tls_options()
        )
        self._sweep()

    def _tls_options(self) -> dict[str, Any]:
        if self._ssl_context is None:
            return {}
        return {
            "ssl": self._ssl_context,
            "ssl_handshake_timeout": self.limits.header_seconds,
            "ssl_shutdown_timeout": self.limits.linger_seconds,
        }

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        limits = self.limits
        shortest = min(
            limits.header_seconds,
            limits.body_seconds,
            limits.keep_alive_seconds,
            limits.write_seconds,
            limits.linger_seconds,
        )
        self._timer = loop.call_later(min(1.0, shortest / 4), self._sweep)
        now = loop.time()
        for connection in tuple(self.clients):
            connection.sweep(now)

    async def stop(self, deadline_seconds: float) -> bool:
        """Stop without losing a request that has reached this machine. True if all were answered in time.

        1. Accept what the kernel has accepted already, then close the listening socket.
        2. Let the loop read what lies in the sockets' buffers.
        3. From now on the last answer of each connection says `Connection: close`. Idle connections stay for
           `drain_seconds`, because a request may be on its way; then they are closed. That time is counted in turns
           of the loop, each of which reads what has arrived: a process that was held up has not looked meanwhile.
        4. Wait for the requests in flight, then a moment for the peers to close.
        5. At the deadline, cancel and abort what is left.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        await self._close_listener()
        for _ in range(3):
            await asyncio.sleep(0)
        self.stopping = True
        for connection in self.clients:
            connection.stopping = True
        quiet_checks: dict[_Connection, int] = {}
        await self._until(lambda: self._close_quiet(quiet_checks), deadline)
        is_finished = not self._is_busy()
        await self._until(lambda: not self.clients, min(deadline, loop.time() + self.limits.drain_seconds))
        await self._abort()
        if self._timer is not None:
            self._timer.cancel()
        return is_finished

    async def _close_listener(self) -> None:
        if self._listener is None or self._backlog is None:
            return
        # asyncio loses a connection that it has accepted but not set up when its listener closes; so: first no more
        # accepting, then a turn for those on their way. uvloop sets up at once and has no reader here.
        sockets: Iterable[Any] = getattr(self._listener, "sockets")  # noqa: B009 - typed as a tuple, with uvloop a list
        for listening in sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._listener.close()
        await asyncio.sleep(0)
        try:
            while True:
                self._adopt(self._backlog.accept()[0])
        except OSError:  # mostly BlockingIOError: no more
            self._backlog.close()

    def _adopt(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connecting = loop.connect_accepted_socket(lambda: _Connection(self), accepted, **self._tls_options())
        task = loop.create_task(connecting)
        self.tasks.add(task)
        task.add_done_callback(self._adopted)

    def _adopted(self, task: asyncio.Future[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a client left while it was connecting: %r", task.exception())

    def _close_quiet(self, quiet_checks: dict[_Connection, int]) -> bool:
        """Close the connections that have been idle for long enough. True if there were no others."""
        for connection in tuple(self.clients):
            checks = quiet_checks.get(connection, 0)
            if connection.is_busy():
                quiet_checks.pop(connection, None)
            elif checks * _CHECK_SECONDS >= self.limits.drain_seconds:
                connection.linger()
            else:
                quiet_checks[connection] = checks + 1
        return not self._is_busy() and all(connection.phase == _LINGER for connection in self.clients)

    def _is_busy(self) -> bool:
        return bool(self.tasks or self.orphans or any(connection.is_busy() for connection in self.clients))

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not condition() and loop.time() < deadline:
            await asyncio.sleep(_CHECK_SECONDS)

    async def _abort(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()
        for connection in tuple(self.clients):
            if connection.is_busy():
                connection.abort()
            else:
                connection.close()
        await asyncio.sleep(0)


def _bind(host: str, port: int, reuse_port: bool) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=4096, reuse_port=reuse_port, dualstack_ipv6=True
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=4096, reuse_port=reuse_port)
