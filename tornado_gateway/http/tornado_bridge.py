"""Requests of the Tornado application: its `RequestHandler`s write to a `Page` instead of a connection of Tornado."""

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
from tornado_gateway.http.messages import INTERNAL_ERROR, Request, Response, header_lines, json_error
from tornado_gateway.http.output import Output
from tornado_gateway.http.request_ids import log_failure


class PageConnection(Protocol):
    """The connection that a page is written to."""

    options: ServerOptions
    output: Output

    def connection_line(self, request: Request) -> bytes: ...

    def count(self, request: Request, status: int) -> None: ...

    def page_finished(self, request: Request) -> None: ...


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
        task = asyncio.ensure_future(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True  # it costs milliseconds

    async def _run(self) -> None:
        try:
            await self._deliver()
        except HTTPInputError as error:
            self._send_error(json_error(400, str(error)))
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
