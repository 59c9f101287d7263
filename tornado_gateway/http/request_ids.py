"""The ids that clients give their requests; failed requests, their log lines and responses."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any, final

from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import CANCELLED, ErrorShape, Request, Response

logger = logging.getLogger(__name__)

MAX_PLACES = 100  # of failures that are remembered
LOGGED_PATH = 200  # characters of a path in a log line; a path can have 64 KB
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")

OnResponse = Callable[[Request, int], None]
HeaderLines = Callable[[Request], bytes]


def request_id(request: Request) -> bytes | None:
    """Return the client's id of a request: X-Request-Id, else the trace id of `traceparent`; None if not valid."""
    trace = None
    for name, value in request.headers:
        size = len(name)
        if size == 12 and name.lower() == b"x-request-id":
            return value if _ID.fullmatch(value) else None
        if size == 11 and name.lower() == b"traceparent":
            trace = value
    found = None if trace is None else _TRACE_PARENT.fullmatch(trace)
    return None if found is None else found[1]


def log_fields(request: Request) -> dict[str, str | None]:
    """Return the id of a failed request, as `extra` of its log line."""
    found = request_id(request)
    return {"request_id": None if found is None else found.decode("ascii")}


@final
class FailureLog:
    """Logs unexpected errors of requests, each with its traceback. Identical ones get one line per `seconds`.

    The next line then has the number of those that were left out. Errors are identical if the same kind was raised on
    the same line.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self.logged: dict[tuple[str, str], tuple[float, int]] = {}  # time of the last line, and the number since then

    def log(self, request: Request, error: BaseException | None) -> None:
        """Log an error without the query, which may hold a key."""
        place = _place(error)
        logged_at, further = self.logged.get(place, (-self._seconds, 0))
        now = time.monotonic()
        if now - logged_at < self._seconds:
            self.logged[place] = logged_at, further + 1
            return
        if len(self.logged) >= MAX_PLACES:
            self.logged.clear()
        self.logged[place] = now, 0
        path = ascii(request.path[:LOGGED_PATH].decode("latin-1"))[1:-1]
        method = request.method.decode("latin-1")
        more = f" ({further} more like the last one)" if further else ""
        logger.error("Unhandled error in %s %s%s", method, path, more, exc_info=error, extra=log_fields(request))


def _place(error: BaseException | None) -> tuple[str, str]:
    """Return the kind of an error and the line that raised it."""
    if error is None:
        return "", ""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    line = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return type(error).__qualname__, line


FAILURES = FailureLog()


def log_failure(request: Request, error: BaseException | None) -> None:
    FAILURES.log(request, error)


def failure_response(request: Request, error: Exception, shape: ErrorShape) -> Response:
    """Return the response that replaces one that a failed gate held back."""
    status, code = getattr(error, "status", 500), getattr(error, "code", "")
    return shape(request.path, RequestError(status, str(error), code=code))


def error_response(request: Request, error: BaseException, shape: ErrorShape) -> Response:
    """Return the response for an exception of a handler. It does not wait for a gate, because it confirms nothing."""
    request.gate = None
    if isinstance(error, RequestError):
        return shape(request.path, error)
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED
    log_failure(request, error)
    return shape(request.path, RequestError(500, "internal error"))


def outcome(request: Request, task: asyncio.Future[Any], shape: ErrorShape) -> Response:
    """Return the response of a handler's awaitable, even if it has failed or returned another value."""
    if task.cancelled():
        return CANCELLED
    error = task.exception()  # not raised, because its traceback would refer to the task: a cycle with the request
    if error is not None:
        return error_response(request, error, shape)
    response = task.result()
    if isinstance(response, Response):
        return response
    return error_response(request, TypeError(f"a handler must return a Response, not {response!r}"), shape)


class Tracing:
    """Returns ids to the clients that sent them, on data routes, beside the header lines of `more` (CORS).

    `echo_headers` are the headers of requests that get header lines, or are checked before their handler is called.
    None: all requests.
    """

    def __init__(self, more: HeaderLines | None) -> None:
        self.echo_headers = frozenset({b"x-request-id", b"traceparent", b"origin"}) if more is None else None
        self._more = more

    def header_lines(self, request: Request) -> bytes:
        lines = b"" if self._more is None else self._more(request)
        found = request_id(request)
        return lines if found is None else b"%bX-Request-Id: %b\r\n" % (lines, found)

    def with_log(self, on_response: OnResponse) -> OnResponse:
        """With LOG_LEVEL=DEBUG, log a line for each request, without the query, which contains the SDK key."""
        if not logger.isEnabledFor(logging.DEBUG):
            return on_response

        def logged(request: Request, status: int) -> None:
            on_response(request, status)
            found = request_id(request) or b"-"
            method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
            logger.debug("%s %s %d [request %s]", method, path, status, found.decode())

        return logged
