"""The limits, the options and the state that all connections of one server share."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic, sleep
from typing import Any, Final, NamedTuple, final

from tornado.httputil import HTTPServerConnectionDelegate

from tornado_gateway.http.codings import Unpacking
from tornado_gateway.http.messages import (
    ErrorShape,
    Handler,
    Head,
    Request,
    Response,
    Result,
    error_response,
    too_large,
)

# The parser cannot be paused within one call, so it gets at most this much at once.
SLICE_BYTES: Final = 16384
# Of pipelined requests the parser gets less: each of them takes up to 30 times its bytes until its turn comes.
DENSE_SLICE_BYTES: Final = 2048
# Flow control is by bytes. Small responses are joined and written at this size, which is also when a peer that does not
# read is noticed; a larger piece is never joined, because the copy would cost as much as the response.
WRITE_BYTES: Final = 65536
# A large piece is handed to the transport in slices of this size, one per turn of the loop: asyncio copies unsent data,
# and other connections must get their turn.
WRITE_SLICE_BYTES: Final = 131072
# No further request starts while complete responses of this size wait for their turn: 128 responses of 2 KB, so a group
# commit is not split.
MAX_QUEUED_BYTES: Final = 262144
# A request in flight counts this many times its body against the budget of the server, as its parsed form does.
PARSED_FACTOR: Final = 8
# Of remembered heads: the bytes of one, and of all with their objects. A header is three objects.
HEAD_BYTES: Final = 2048
HEADER_BYTES: Final = 192
MAX_HEADS_BYTES: Final = 3 << 20
# Pipelined requests, large bodies and pages of all clients together get this much of each turn of the loop, and one
# client this much before it is the turn of another. A lone request waits no longer than that, whatever others send.
TURN_SECONDS: Final = 0.002
SHARE_SECONDS: Final = 0.0005
REST_SECONDS: Final = (
    0.00005  # between two such turns, in which the threads of the store can get the interpreter's lock
)
# New connections whose first bytes are read in one turn of the loop. Others wait for the next turns.
MAX_ADMITTED: Final = 16
# Chunk sizes, extensions and trailers may take this many bytes for each byte of body (1-byte chunks take 5).
CHUNK_OVERHEAD: Final = 8

END_OF_HEAD: Final = b"\r\n\r\n"
_VERSION: Final = b" HTTP/1.1"
_LINE_FEED: Final = 10
# Changes the bytes that the parser would reject in a query, or not take as a part of it.
_OF_QUERIES: Final = bytes(byte if 0x20 < byte < 0x7F and byte != ord("#") else ord("x") for byte in range(256))
# One in so many heads that differ from a known one only in their query is remembered with its query, because some
# clients use few of them. A prime, so that requests that repeat in turn are all sampled.
SAMPLED_QUERIES: Final = 61

Guard = Callable[[Handler, Request], Result]


class Limits(NamedTuple):
    """Bounds on the cost of one client. Time-outs are noticed by a periodic sweep, so up to a quarter late."""

    max_header_bytes: int = 65536
    max_headers: int = 128
    max_body_bytes: int = 1 << 20
    max_pipelined: int = 16
    max_connections: int = 0  # 0: as many as the system allows
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 2.0
    drain_seconds: float = 1.0
    max_bodies_bytes: int = 16 << 20  # of all clients together: unfinished bodies, and requests with large ones
    starved_seconds: float = 5.0  # that a body may wait for room in it
    # Of all clients together. Beyond it, each waits for its last response before its next request starts: tasks that
    # wait for the same event continue together, and a lone request would have to wait for all of them.
    max_tasks: int = 64

    @property
    def slice_bytes(self) -> int:
        """How much the parser gets at once."""
        return min(SLICE_BYTES, self.max_header_bytes)


DEFAULT_LIMITS = Limits()


@final
class Budget:
    """The bytes that the large bodies of all clients of a server may take together. Bodies of one slice do not count.

    Beyond it, connections stop reading their bodies until there is room.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self._starved: set[Callable[[], None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def is_exceeded(self) -> bool:
        return self.used > self.most

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once there is room again."""
        self._loop = asyncio.get_running_loop()
        self._starved.add(resume)

    def add(self, size: int) -> None:
        self.used += size
        if self._starved and self.used <= self.most and self._loop is not None and not self._loop.is_closed():
            starved, self._starved = self._starved, set()
            for resume in starved:
                self._loop.call_soon(resume)


@final
class Charge:
    """The share of one body in the budget. It ends with the last reference to it, whatever became of the request."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def set(self, size: int) -> None:
        change, self._size = size - self._size, size
        self._budget.add(change)

    def __del__(self) -> None:
        self._budget.add(-self._size)


@final
class KnownHeads:
    """Heads of complete HTTP/1.1 requests, because a client sends the same one again and again, with another body.

    `by_bytes` has them without their empty line: a slice that is such a head, that line and a body of the same size is
    one request. It also has heads as `without_query` returns them, for clients that send another query each time. No
    request names one of these as its known head; their memo counts the requests that were read with them.
    """

    def __init__(self) -> None:
        self.by_bytes: dict[bytes, Head] = {}
        self._bytes = 0
        self._parts: dict[Any, Any] = {}  # of all heads, each once. Compiled code copies tuples of known types

    def add(self, data: bytes, method: bytes, url: bytes, headers: list[Any], body_size: int) -> None:
        """Remember the head of a slice of complete requests, if that is one request and its body is not chunked.

        Of several requests, the first head is followed by more than the last body; the same holds for chunks.
        """
        head, _, body = data.partition(END_OF_HEAD)
        line = head.partition(b"\r\n")[0]
        # The parser takes a line feed for the end of a request line without version.
        if len(body) != body_size or len(head) > HEAD_BYTES or line[-len(_VERSION) :] != _VERSION or _LINE_FEED in line:
            return
        if head in self.by_bytes:  # it was not searched
            return
        if self._bytes > MAX_HEADS_BYTES:
            self.by_bytes.clear()
            self._parts.clear()
            self._bytes = 0
        # Heads that differ in their path have the rest in common. Many copies would not stay in the processor's cache.
        before = len(self._parts)
        method = self._common(method)
        headers = [self._common(header) for header in headers]
        headers = self._parts.setdefault(tuple(headers), headers)
        self._bytes += HEADER_BYTES * (len(self._parts) - before) + 16 * len(headers)
        self._keep(head, Head(method, url, headers, body_size))
        similar = without_query(head)[0] if url.startswith(b"/") else b""
        if similar and similar not in self.by_bytes:
            self._keep(similar, Head(method, url.partition(b"?")[0], headers, body_size))

    def sample(self, known: Head, query: bytes, data: bytes) -> None:
        """Remember the heads of slices that differ from `known` only in their query: one in SAMPLED_QUERIES."""
        if known.memo % SAMPLED_QUERIES == 0:
            self.add(data, known.method, b"%b?%b" % (known.path, query), known.headers, known.body_size)
        known.memo += 1

    def _keep(self, head: bytes, parsed: Head) -> None:
        self.by_bytes[head] = parsed
        self._bytes += 3 * len(head) + 2 * HEADER_BYTES  # most of it may be the target, of which there are two copies

    def _common(self, part: Any) -> Any:
        return self._parts.setdefault(part, part)


def without_query(head: bytes) -> tuple[bytes, bytes]:
    """Return a head without its query and version, marked by an empty line, which no head has; and its query.

    Both are empty if it has no query, or one that the parser may reject or change.
    """
    line, _, fields = head.partition(b"\r\n")
    target, mark, rest = line.partition(b"?")
    query = rest[: -len(_VERSION)]
    if not mark or rest[-len(_VERSION) :] != _VERSION or query.translate(_OF_QUERIES) != query:
        return b"", b""
    return b"%b%b%b" % (target, END_OF_HEAD, fields), query


@final
class RunQueue:
    """Steps of work that can wait for the requests of other clients. Each turn of the loop runs some, the oldest first.

    A step that returns True is the last one of its turn, because the costly part of its work is still to come. One of
    `every` turns runs steps.
    """

    def __init__(self, turn_seconds: float = TURN_SECONDS, every: int = 1) -> None:
        self._turn_seconds = turn_seconds
        self._every = every
        self._rested = 0  # turns
        self._steps: deque[Callable[[], bool]] = deque()
        self.newcomers: set[object] = set()  # clients from which no bytes have arrived
        self._admitted = 0  # of them, in this turn

    def add(self, step: Callable[[], bool]) -> None:
        self._steps.append(step)
        if len(self._steps) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    def admits(self, client: object) -> bool:
        """Return whether the bytes of a client are read at once, or in a later step.

        A flood of new connections does not hold up those that are kept.
        """
        if client not in self.newcomers:
            return True
        self.newcomers.discard(client)
        if not self._admitted:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._admitted += 1
        return self._admitted <= MAX_ADMITTED and not self._steps

    def _end_turn(self) -> None:
        self._admitted = 0

    def _run(self) -> None:
        self._rested += 1
        if self._rested < self._every:
            asyncio.get_running_loop().call_soon(self._run)
            return
        self._rested = 0
        steps, end = self._steps, monotonic() + self._turn_seconds
        try:
            while not steps[0]() and len(steps) > 1 and monotonic() < end:
                steps.popleft()
        finally:
            steps.popleft()
            if steps:
                sleep(REST_SECONDS)
                asyncio.get_running_loop().call_soon(self._run)


def _no_page_lines(request: Request, status: int) -> bytes:
    return b""


def _no_lines(request: Request) -> bytes:
    return b""


def _nothing(request: Request, status: int) -> None:
    pass


def _unguarded(handler: Handler, request: Request) -> Result:
    return handler(request)


@final
class ServerOptions:
    """The routes of one server, and their limits.

    `find(method, path)` returns the handler of a data route, or None. A request without handler goes to `fallback`, a
    `tornado.web.Application`. `body_limit(path)` returns the largest size of a body and the response to larger ones; it
    is called only for a body larger than `limits.max_body_bytes`, so it can raise that limit but not lower it.
    `on_response(request, status)` is called once for each response; a request that could not be parsed has an empty
    method. `extra_header_lines(request)` returns header lines that each response of a data route, errors included, gets
    in addition; with `echo_headers`, names in lower case, it is called only for requests that have one of these
    headers. `guard(handler, request)` responds to these requests and may call their handler. `page_lines(request,
    status)` returns the lines of the application's responses. `lenient(path)`: whether a query with spaces, tabs and
    bytes above 0x7F is accepted. `error_shape(path, error)` returns the response to a request that has failed.
    """

    def __init__(
        self,
        find: Callable[[bytes, bytes], Handler | None],
        fallback: HTTPServerConnectionDelegate | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        body_limit: Callable[[bytes], tuple[int, Response]] | None = None,
        on_response: Callable[[Request, int], object] | None = None,
        extra_header_lines: Callable[[Request], bytes] | None = None,
        guard: Guard = _unguarded,
        echo_headers: Collection[bytes] | None = None,
        lenient: Callable[[bytes], bool] | None = None,
        page_lines: Callable[[Request, int], bytes] | None = None,
        error_shape: ErrorShape | None = None,
    ) -> None:
        self.find = find
        self.fallback = fallback
        self.limits = limits
        self.small_bytes = min(DENSE_SLICE_BYTES, limits.slice_bytes)  # that are never cut into slices
        self.body_limit = body_limit or (lambda path: (limits.max_body_bytes, too_large(limits.max_body_bytes)))
        self.on_response = on_response or _nothing
        self.error_shape = error_shape or (lambda path, error: error_response(error))
        self.extra_header_lines = extra_header_lines or _no_lines
        self.guard = Unpacking(guard).call
        self.echo_headers = echo_headers if extra_header_lines else ()
        self.lenient = lenient
        self.budget = Budget(limits.max_bodies_bytes)
        self.heads = KnownHeads()
        self.page_lines = page_lines or _no_page_lines
        names = (b"host", b"expect", b"content-encoding", *(self.echo_headers or ()))
        self.noted_sizes = frozenset(map(len, names))  # of the names of headers that the reader has to note

    def slice_size(self, data: bytes) -> int:
        """Return how much of the data the parser gets at once."""
        most = self.limits.slice_bytes
        if len(data) <= DENSE_SLICE_BYTES or data.count(END_OF_HEAD) <= self.limits.max_pipelined:
            return most
        return min(DENSE_SLICE_BYTES, most)
