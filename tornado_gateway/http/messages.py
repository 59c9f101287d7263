"""Requests and responses as values."""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, final

import orjson

from tornado_gateway.errors import RequestError, default_code, reason_phrase
from tornado_gateway.gate import Gate

MAX_HOSTS = 100  # that are remembered
LONGEST_HOST = 300  # of them, in bytes: 253 of a name, and a port
JSON = b"application/json; charset=utf-8"
RETRY_SECONDS = b"5"  # after a 503: a queue, a store or the settings recover within seconds, or not soon
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Page(Protocol):
    """A request of the Tornado application, which streams its response: see `streamed`."""

    def start(self) -> None:
        """Hand the request over, once its turn has come."""

    def client_closed(self) -> None:
        """Report that the client has closed, or half-closed, its side."""


ErrorShape = Callable[[bytes, RequestError], "Response"]  # from the path of the request


class Packed(NamedTuple):
    """A body that is to be decoded from its content coding before the handler is called.

    `too_large` is the response if it has more than `most` bytes then.
    """

    coding: bytes
    most: int
    too_large: "Response"


@final
class Head:
    """The parsed form of a head, for requests whose bodies have the same size.

    `memo` is a number that readers of requests may keep with it: what they know about all requests with this head.
    `headers` are those of all these requests, and of other heads, so they must not be changed.
    """

    __slots__ = ("body_size", "headers", "memo", "method", "path", "query", "url")

    def __init__(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]], body_size: int) -> None:
        self.method = method
        self.url = url
        self.path, self.query = split_target(url)
        self.headers = headers
        self.body_size = body_size
        self.memo = 0


@final
class Request:
    """One request, complete with its body. `headers` keep the client's order and spelling; `version` is "1.1" or "1.0".

    A handler may set `gate`: its response is then held back until that gate opens. `wants_echo`: see `ServerOptions`.
    `response` or `page` is set by the connection when the request waits for its turn. `client` is the client that the
    credentials name. `known_head` is the known head that the request was read from, if any: requests with the same one
    have the same method, target and headers, in one list, so nothing may change `headers`.
    """

    __slots__ = (
        "body",
        "charge",
        "client",
        "gate",
        "headers",
        "keep_alive",
        "known_head",
        "method",
        "packed",
        "page",
        "path",
        "peer",
        "query",
        "response",
        "version",
        "wants_echo",
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
        self.wants_echo = False
        self.client: object = None
        self.known_head: Head | None = None
        self.gate: Gate | None = None
        self.response: Response | None = None
        self.page: Page | None = None
        self.charge: object | None = None  # held for as long as a request with a large body is
        self.packed: Packed | None = None

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header, or None. `name` is in lower case."""
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


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Split a request target into path and query. The host of an absolute form (`GET http://host/path`) is dropped."""
    if not target.startswith((b"/", b"*")):
        rest = target.partition(b"://")[2]
        start = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        target = rest[start:] if rest[start : start + 1] == b"/" else b"/" + rest[start:]
    path, _, query = target.partition(b"?")
    return path, query


@lru_cache(maxsize=256)
def _status_line(status: int, content_type: bytes | None) -> bytes:
    line = f"HTTP/1.1 {status} {reason_phrase(status)}\r\n".encode()
    return line if content_type is None else b"%bContent-Type: %b\r\n" % (line, content_type)


def header_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    if lines.count(b"\r") != len(headers) or lines.count(b"\n") != len(headers) or lines.find(b"\0") >= 0:
        raise ValueError(f"line breaks in headers: {lines!r}")
    return lines


@final
class Response:
    """A response, encoded once and used for any number of requests. `content_type` None: no such header.

    `lines` are header lines that are encoded already, and known to have no other line breaks.
    """

    __slots__ = ("_head", "body", "encoded", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: bytes | None = JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        lines: bytes = b"",
    ) -> None:
        self.status = status
        if headers:
            lines += header_lines(tuple(headers))
        if status in (204, 304):
            # RFC 9110: no content, so no headers that describe it.
            self.body = b""
            self._head = _status_line(status, None) + lines
            self.encoded = self._head + b"\r\n"
        else:
            self.body = body
            self._head = b"%bContent-Length: %d\r\n%b" % (_status_line(status, content_type), len(body), lines)
            self.encoded = b"%b\r\n%b" % (self._head, body)

    def render(self, connection: bytes, is_head: bool) -> bytes:
        """Return the bytes for a request other than plain HTTP/1.1 keep-alive; `connection` is b"" or a header line."""
        return b"%b%b\r\n%b" % (self._head, connection, b"" if is_head else self.body)

    def head(self, connection: bytes) -> bytes:
        """Return the bytes of `render` without the body, for a body that is too large to be copied for each client."""
        return b"%b%b\r\n" % (self._head, connection)


def error_body(message: str, code: str) -> bytes:
    """Return the one format of all errors. `code` is one of `errors.CODES`."""
    return orjson.dumps({"status": 0, "error": message, "code": code})


def json_error(status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = (), *, code: str = "") -> Response:
    """Return an error response. Without `code` it has that of the status. A 503 says when to retry."""
    if status == 503:
        headers = [*headers, (b"Retry-After", RETRY_SECONDS)]
    return Response(status, error_body(message, code or default_code(status)), headers=headers)


def error_response(error: RequestError) -> Response:
    """Return the response to a request that cannot be served, in the format of all errors."""
    return json_error(error.status, str(error), error.headers, code=error.code)


@lru_cache(maxsize=16)
def too_large(most: int, option: str = "") -> Response:
    """Return the response to a body of more than `most` bytes, a limit that `option` changes, if any does."""
    named = f" ({option})" if option else ""
    return json_error(413, f"the request body is larger than {most} bytes{named}")


INTERNAL_ERROR = json_error(500, "internal error")
NOT_FOUND = json_error(404, "not found")
BAD_REQUEST = json_error(400, "malformed HTTP request", code="malformed_request")
TIMEOUT = json_error(408, "the request took too long to arrive")
HEAD_TOO_LARGE = json_error(431, "the request line and headers are too large")
BAD_HOST = json_error(400, "expected one valid Host header", code="malformed_request")
BAD_ENCODING = json_error(400, "the body is not what Content-Encoding says", code="malformed_request")
UNKNOWN_ENCODING = json_error(
    415,
    "the supported content encodings are gzip and deflate",
    [(b"Accept-Encoding", b"gzip, deflate")],
    code="unsupported_encoding",
)
BAD_EXPECTATION = json_error(417, "the only supported expectation is 100-continue")
NO_TUNNEL = json_error(405, "CONNECT is not supported")
UNKNOWN_CODING = json_error(501, "the only supported transfer coding is chunked")
UNKNOWN_VERSION = json_error(505, "only HTTP/1.1 and HTTP/1.0 are supported")
CANCELLED = json_error(503, "the request was cancelled")
BUSY = json_error(503, "too many large requests are in progress", code="overloaded")
OVERLOADED = json_error(503, "too many connections", code="overloaded")

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
VALID_HOSTS: set[bytes] = set()  # some of those that were valid


def is_valid_host(value: bytes) -> bool:
    if not _HOST.fullmatch(value):
        return False
    if len(VALID_HOSTS) < MAX_HOSTS and len(value) <= LONGEST_HOST:
        VALID_HOSTS.add(value)
    return True


def respond_not_found(request: Request) -> Response:
    return NOT_FOUND


class Streamed:
    """A response that is written in parts by a handler: see `streamed`."""

    def attach(self, connection: Any, request: Request) -> None:
        """Take the place of the response of a request."""
        raise NotImplementedError


Result = Response | Awaitable[Response] | Streamed
Handler = Callable[[Request], Result]
