"""Responses that are written in parts: streams of events, and pages of the Tornado application.

Its `RequestHandler`s write to a `Page` instead of a connection of Tornado.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPOutputError,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from tornado_gateway.http.limits import RunQueue, ServerOptions
from tornado_gateway.http.messages import INTERNAL_ERROR, Request, Response, Streamed, header_lines, json_error
from tornado_gateway.http.output import Output
from tornado_gateway.http.request_ids import log_failure

EVENT_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nConnection: close\r\n"  # nginx must not buffer it
)


class PageConnection(Protocol):
    """The connection that a page is written to."""

    options: ServerOptions
    output: Output

    def connection_line(self, request: Request) -> bytes: ...

    def count(self, request: Request, status: int) -> None: ...

    def flush(self) -> None: ...

    def page_finished(self, request: Request) -> None: ...


class EventStream(Streamed):
    """A response that stays open for server-sent events. Its connection ends with it; one to HEAD ends at once.

    `first` is called once, when the turn of the request has come, and returns the first events; `closed` once, when the
    client has gone. A handler returns an object of this class.
    """

    __slots__ = ("_closed", "_connection", "_first", "_has_left", "_request", "is_open")

    def __init__(self, first: Callable[["EventStream"], bytes], closed: Callable[["EventStream"], None]) -> None:
        self._first = first
        self._closed = closed
        self._connection: PageConnection | None = None
        self._request: Request | None = None
        self._has_left = False  # the client, before the turn of the request
        self.is_open = False

    def attach(self, connection: PageConnection, request: Request) -> None:
        self._connection = connection
        self._request = request
        request.keep_alive = False
        request.page = self
        connection.flush()

    def start(self) -> None:
        connection, request = self._connection, self._request
        if self.is_open or connection is None or request is None:
            return
        if connection.output.open_transport() is None or self._has_left:
            self._connection = None
            connection.page_finished(request)
            return
        self.is_open = True
        lines = connection.options.extra_header_lines(request) if request.wants_echo else b""
        connection.count(request, 200)  # now, because it may stay open for hours
        is_head = request.method == b"HEAD"
        connection.output.push(b"%b%b\r\n%b" % (EVENT_STREAM_HEAD, lines, b"" if is_head else self._first(self)))
        if is_head:
            self.end()

    def send(self, data: bytes) -> None:
        if self.is_open and self._connection is not None:
            self._connection.output.push(data)

    def unsent_bytes(self) -> int:
        return 0 if self._connection is None else self._connection.output.buffered()

    def end(self, data: bytes = b"") -> None:
        """Send the last events and close the connection."""
        connection, request = self._connection, self._request
        if self.is_open and connection is not None and request is not None:
            if data:
                connection.output.push(data)
            self.is_open, self._connection = False, None
            connection.page_finished(request)

    def abort(self) -> None:
        """Drop the connection of a client that does not read."""
        if self._connection is not None:
            self._connection.output.abort()

    def client_closed(self) -> None:
        self._has_left = True
        if self.is_open:
            self._closed(self)
            self.end()


class PageContext(NamedTuple):
    """The facts about a connection that `tornado.httputil.HTTPServerRequest` reads."""

    remote_ip: str
    protocol: str


class Page(HTTPConnection):
    """One request of the Tornado application: the object that a `RequestHandler` sees as its connection."""

    def __init__(
        self,
        connection: PageConnection,
        context: PageContext,
        request: Request,
        application: HTTPServerConnectionDelegate,
        tasks: set[asyncio.Future[Any]],
        run_queue: RunQueue,
    ) -> None:
        self.context = context
        self._connection = connection
        self._request = request
        self._application = application
        self._tasks = tasks
        self._run_queue = run_queue
        self._is_started = False
        self._status = 0
        self._is_chunked = False
        self._remaining: int | None = None
        self._close_callback: Callable[[], None] | None = None

    def start(self) -> None:
        """Hand the request over, once it is the first of its connection and its turn has come."""
        if not self._is_started:
            self._is_started = True
            self._run_queue.add(self._start)

    def _start(self) -> bool:
        if self._connection.output.open_transport() is None:  # its client has gone meanwhile
            self._connection.page_finished(self._request)
            return False
        task = asyncio.ensure_future(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True  # it costs milliseconds

    async def _run(self) -> None:
        try:
            await self._deliver()
        except HTTPInputError as error:
            self._send_error(json_error(400, str(error), code="malformed_request"))
        except Exception as error:
            log_failure(self._request, error)
            self._send_error(INTERNAL_ERROR)

    async def _deliver(self) -> None:
        request = self._request
        delegate = self._application.start_request(self._connection, self)
        target = (request.path + b"?" + request.query if request.query else request.path).decode("latin1")
        line = RequestStartLine(request.method.decode(), target, f"HTTP/{request.version}")
        ready = delegate.headers_received(line, _headers_of(request))
        if ready is not None:
            await ready
        if request.body:
            ready = delegate.data_received(request.body)
            if ready is not None:
                await ready
        delegate.finish()

    def _send_error(self, response: Response) -> None:
        if self._status:
            # A part of the response has been sent. Only a broken connection can still report the failure.
            self._connection.output.abort()
            return
        self._status = response.status
        request = self._request
        line = self._connection.connection_line(request) + self._connection.options.page_lines(request, self._status)
        self._connection.output.write(response.render(line, request.method == b"HEAD"))
        self.finish()

    def client_closed(self) -> None:
        """Report that the client has closed, or half-closed, its side."""
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            callback()

    # The methods of tornado.httputil.HTTPConnection:

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
            request.keep_alive = False  # in HTTP/1.0 such a body ends with the connection
        lines = [(name.encode("latin1"), value.encode("latin1")) for name, value in headers.get_all()]
        if self._is_chunked:
            lines.append((b"Transfer-Encoding", b"chunked"))
        head = b"HTTP/1.1 %d %b\r\n" % (start_line.code, start_line.reason.encode("latin1"))
        head += header_lines(lines) + self._connection_line(headers)
        head += self._connection.options.page_lines(request, start_line.code) + b"\r\n"
        return self._connection.output.write(head, *self._frame(chunk or b""))

    def _connection_line(self, headers: HTTPHeaders) -> bytes:
        if headers.get("Connection", "").lower() == "close":
            self._request.keep_alive = False
            return b""
        return self._connection.connection_line(self._request)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        return self._connection.output.write(*self._frame(chunk))

    def _frame(self, chunk: bytes) -> tuple[bytes, ...]:
        if self._remaining is not None:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                self._connection.output.abort()
                raise HTTPOutputError("more data written than Content-Length says")
        if self._is_chunked and chunk:  # an empty chunk would be the end
            return b"%x\r\n" % len(chunk), chunk, b"\r\n"
        return (chunk,)

    def finish(self) -> None:
        connection = self._connection
        if self._remaining:
            connection.output.abort()
            raise HTTPOutputError(f"{self._remaining} bytes less written than Content-Length says")
        if self._is_chunked:
            connection.output.write(b"0\r\n\r\n")
        connection.count(self._request, self._status)
        connection.page_finished(self._request)


def _headers_of(request: Request) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in request.headers:
        headers.add(name.decode("latin1"), value.decode("latin1"))
    return headers
