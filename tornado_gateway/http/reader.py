"""The reading half of a connection: bytes in, complete requests or one rejection out.

Decisions that HTTP leaves open:

- A head over its limit, request line included, is 431; malformed bytes are 400. Each ends the reading.
- Bytes after a complete request that do not even begin with a method are dropped, and the reading ends without a
  response: some SDKs leave a stray `Connection: close` behind their body.
- llhttp rejects control characters, spaces and bytes above 0x7F in a request target; all else reaches the route. On
  paths for which `lenient` is true, spaces, tabs and bytes above 0x7F in the query are then percent-encoded and the
  line is read again (`request_line.py`), because PHP SDKs write such lines. Everything else stays rejected. After more
  than `max_header_bytes` of pipelined requests without a pause the start of a line is not known, and it is rejected.
- A body in gzip or deflate is decoded, within the limits of bodies; another coding is 415.
- An `Upgrade` is ignored, as RFC 9110 allows: the request is served as if the header were not there.
"""

from collections.abc import Callable
from typing import Any, Final, final

import httptools

from tornado_gateway.http import request_line
from tornado_gateway.http.codings import decompressed
from tornado_gateway.http.limits import CHUNK_OVERHEAD, END_OF_HEAD, PARSED_FACTOR, Charge, ServerOptions, without_query
from tornado_gateway.http.messages import (
    BAD_EXPECTATION,
    BAD_HOST,
    BAD_REQUEST,
    HEAD_TOO_LARGE,
    INTERNAL_ERROR,
    NO_TUNNEL,
    UNKNOWN_CODING,
    UNKNOWN_VERSION,
    VALID_HOSTS,
    Packed,
    Request,
    Response,
    header_lines,
    is_valid_host,
    json_error,
    split_target,
)
from tornado_gateway.http.request_ids import log_failure

# The phases of reading; the order matters (`phase >= ENDED`: nothing more is read).
IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2
ENDED: Final = 3

# The client's Expect header.
NO_EXPECTATION: Final = 0
EXPECTS_CONTINUE: Final = 1
CONTINUE_DUE: Final = 2  # the client holds the body back until it gets 100 Continue
UNKNOWN_EXPECTATION: Final = 3

# Added to the number of Host headers (at most 128) by a header that response lines are for, and by one to act on.
ECHOED: Final = 1_000
MARKED: Final = 1_000_000

# After so many slices without a known head, none is searched in the rest of the cycle: the heads of the client differ.
SEARCHED_SLICES: Final = 8
CYCLE_SLICES: Final = 160


class _RejectedError(Exception):
    """Raised inside a parser callback to stop parsing: `response` is the last one that the client gets."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


@final
class _Incomplete:
    """The message that the last slice has left incomplete."""

    __slots__ = ("charge", "expectation", "max_body", "partial", "remaining", "seen_bytes")

    def __init__(self) -> None:
        self.expectation: int = NO_EXPECTATION
        self.max_body = 0  # bytes; more once a larger body needs them and its route allows them
        self.seen_bytes = 0  # of the head, or of the body
        self.charge: Charge | None = None  # of a body that needs more than one slice
        self.remaining = -1  # announced bytes of the body that have not arrived yet; -1 if unknown
        self.partial: bytearray | None = None  # all bytes of the head so far; None if unknown

    def since_boundary(self, data: bytes, started: int) -> bytes | None:
        """Return the bytes from the last known start of a message to the end of a slice; None if none is known."""
        if started == IDLE:
            return data
        if started == HEAD:
            return None if self.partial is None else bytes(self.partial) + data
        return data[self.remaining :] if self.remaining >= 0 else None

    def remember(self, data: bytes, started: int, max_bytes: int) -> None:
        """Keep the head at the end of a slice, in case that the next slice completes a rejected request line."""
        if started == HEAD and self.partial is not None:
            self.partial += data
            if len(self.partial) > max_bytes:
                self.partial = None
        else:
            known = self.since_boundary(data, started)
            self.partial = None if known is None else bytearray(known)


@final
class Reader:
    """Parses the bytes of one client. The parser calls the methods that begin with `on_`.

    The owner passes slices of at most `slice_bytes` to `read` while `phase` is below ENDED. Complete requests go to
    `deliver`. A `rejection` is the last response of the connection.
    """

    __slots__ = (
        *("body", "deliver", "fields", "head_headers", "incomplete", "messages", "misses", "noted"),
        *("options", "parser", "peer", "phase", "rejection", "url", "version"),
    )

    def __init__(self, options: ServerOptions, deliver: Callable[[Request], None]) -> None:
        self.options = options
        self.deliver = deliver
        self.parser: Any = httptools.HttpRequestParser(self)
        self.peer = self.version = ""
        self.phase: int = IDLE
        self.rejection: Response | None = None
        # the message being read
        self.url = b""
        self.head_headers: list[tuple[bytes, bytes]] = []
        self.fields = self.head_headers
        self.body: bytes | bytearray = b""
        self.noted: int = 0  # of its headers, see ECHOED
        self.messages: int = 0  # begun so far
        self.misses: int = 0  # slices since the last one with a known head
        self.incomplete = _Incomplete()

    # --- Callbacks of the parser ---

    def on_message_begin(self) -> None:
        self.phase, self.noted, self.messages = HEAD, 0, self.messages + 1
        self.url = self.body = b""
        self.fields = self.head_headers = []
        self.incomplete.max_body = self.options.limits.max_body_bytes

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))
        if len(name) in self.options.noted_sizes:
            self._note(name.lower(), value)

    def _note(self, name: bytes, value: bytes) -> None:
        """Note one of the few headers that matter before a handler asks for them."""
        if self.fields is not self.head_headers:
            return  # a trailer
        echo_headers = self.options.echo_headers
        if name == b"host":
            self.noted += 1
            if value not in VALID_HOSTS and not is_valid_host(value):
                raise _RejectedError(BAD_HOST)
        elif name == b"content-encoding":
            self.noted += MARKED
        elif name == b"expect":
            self.noted += MARKED
            self.incomplete.expectation = EXPECTS_CONTINUE if value.lower() == b"100-continue" else UNKNOWN_EXPECTATION
        elif echo_headers is not None and name in echo_headers:
            self.noted += ECHOED

    def on_headers_complete(self) -> None:
        self.phase = BODY
        # A head that came in one slice cannot be too large.
        if self.incomplete.seen_bytes:
            if self._head_size() > self.options.limits.max_header_bytes:
                raise _RejectedError(HEAD_TOO_LARGE)
            self.incomplete.seen_bytes = 0
        if len(self.fields) > self.options.limits.max_headers:
            raise _RejectedError(HEAD_TOO_LARGE)
        if not self.version:
            self.version = self.parser.get_http_version()
        hosts = self.noted % ECHOED
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2: one, or none in HTTP/1.0
            raise _RejectedError(BAD_HOST)

    def on_chunk_header(self) -> None:
        if self.fields is self.head_headers:
            self._check_codings()
        # Header fields that come from here on are trailers. They are read and dropped: merging them into the headers
        # would let a body change the meaning of the head.
        self.fields = []

    def on_body(self, data: bytes) -> None:
        if not self.body:
            self.body = data
        else:
            if type(self.body) is bytes:
                self.body = bytearray(self.body)
            self.body += data
        if len(self.body) > self.incomplete.max_body:
            self._check_body_size(len(self.body))

    def on_message_complete(self) -> None:
        parser = self.parser
        if parser.should_upgrade():
            return  # the parser raises HttpParserUpgrade next, see _without_upgrade
        packed = self._complete_marked() if self.noted >= MARKED else None
        keep_alive: bool = parser.should_keep_alive()
        self.phase = IDLE if keep_alive else ENDED
        # Asking the parser costs a quarter of a microsecond. A client does not change its version; if a proxy does, the
        # only effect is a needless or missing `Connection: keep-alive`.
        version = self.version if keep_alive else parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _RejectedError(UNKNOWN_VERSION)
        path, query = split_target(self.url)
        body = bytes(self.body)
        request = Request(parser.get_method(), path, query, self.head_headers, body, self.peer, keep_alive, version)
        if self.incomplete.charge is not None:
            self._charge(request)
        request.packed = packed
        request.wants_echo = packed is not None or self._wants_echo()
        self.deliver(request)

    # --- Slices ---

    def read(self, data: bytes) -> None:
        """Read a slice completely, limits included."""
        if self.phase == IDLE and self._read_known(data):
            return
        slices = [data]
        while slices and self.phase < ENDED:  # the last one first
            data = slices.pop()
            started = self.phase
            try:
                if data:
                    self.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                slices += self._restart(error, data, started)
            if started or self.phase:
                self.end_slice(data, started)
            elif not slices and self.noted == 1 and self.misses <= SEARCHED_SLICES:
                self.options.heads.add(data, self.parser.get_method(), self.url, self.head_headers, len(self.body))

    def _read_known(self, data: bytes) -> bool:
        """Deliver a slice between two requests if its head is known, or known except for its query. Else return False.

        The parser is in its first state there, in which it would find the same request.
        """
        # `partition`, because `find` costs five times as much
        head, end, body = data.partition(END_OF_HEAD) if self.misses < SEARCHED_SLICES else (b"", b"", b"")
        heads = self.options.heads
        exact = known = heads.by_bytes.get(head)
        query = b""
        if known is None and end:
            head, query = without_query(head)
            known = heads.by_bytes.get(head)
        if known is None or not end or len(body) != known.body_size:
            self.misses = (self.misses + 1) % CYCLE_SLICES
            return False
        if exact is None:
            heads.sample(known, query, data)
        else:
            query = known.query
        self.misses, self.version, self.url, self.head_headers = 0, "1.1", known.url, known.headers
        self.messages += 1
        request = Request(known.method, known.path, query, self.head_headers, body, self.peer)
        request.known_head, request.wants_echo = exact, self.options.echo_headers is None
        self.deliver(request)
        return True

    def _restart(self, error: Exception, data: bytes, started: int) -> list[bytes]:
        """Return the slices to be read next, the last one first, after the parser has stopped."""
        if not isinstance(error, httptools.HttpParserUpgrade):
            return self._recover(error, data, started)
        head = self._without_upgrade()
        if not head:
            return []
        self.phase = IDLE
        return [head + data[error.args[0] :]]

    def end_slice(self, data: bytes, started: int) -> None:
        """Apply the limits of a message that is not complete at the end of a slice."""
        incomplete, limits = self.incomplete, self.options.limits
        if self.phase == HEAD:
            if self.options.lenient is not None:
                incomplete.remember(data, started, limits.max_header_bytes + limits.slice_bytes)
            # In the first slice, bytes of earlier messages do not count.
            is_first = started != HEAD or not incomplete.seen_bytes
            incomplete.seen_bytes = self._head_size() if is_first else incomplete.seen_bytes + len(data)
            if incomplete.seen_bytes > limits.max_header_bytes or len(self.fields) > limits.max_headers:
                self.reject(HEAD_TOO_LARGE)
            return
        incomplete.partial = None
        if self.phase != BODY:
            incomplete.seen_bytes = 0
            return
        try:
            self._check_incomplete_body(len(data))
        except _RejectedError as rejected:
            self.reject(rejected.response)
        else:
            self._charge(None)

    def _charge(self, request: Request | None) -> None:
        """Count the body against the budget: the unfinished one, or that of a complete request."""
        charge = self.incomplete.charge or Charge(self.options.budget)
        charge.set(len(self.body) if request is None else PARSED_FACTOR * len(request.body))
        self.incomplete.charge = charge if request is None else None
        if request is not None:
            request.charge = charge

    def reject(self, response: Response) -> None:
        """Read nothing more; `response` is the last one, after those of earlier requests."""
        self.end()
        self.rejection = response

    def end(self) -> None:
        """Read nothing more, and drop an unfinished body."""
        self.phase = ENDED
        self.rejection = None
        self.body = b""
        self.incomplete.charge = None

    def release(self) -> None:
        """Break the reference cycles with the parser and the connection."""
        self.parser = self.incomplete.charge = None
        self.deliver = lambda request: None

    def rejected_request(self) -> Request:
        """Return the known parts of the request that has been rejected."""
        path, query = split_target(self.url) if self.url else (b"", b"")
        request = Request(b"", path, query, self.head_headers, b"", self.peer, False)
        request.wants_echo = self._wants_echo()
        return request

    def _wants_echo(self) -> bool:
        return self.noted % MARKED >= ECHOED or self.options.echo_headers is None

    # --- Limits ---

    def _check_incomplete_body(self, size: int) -> None:
        incomplete, max_body = self.incomplete, self.options.limits.max_body_bytes
        incomplete.remaining -= size
        if not incomplete.seen_bytes:
            announced = Request(b"", b"", b"", self.head_headers).header(b"content-length")
            incomplete.remaining = -1 if announced is None else int(announced) - len(self.body)
            if announced is not None and int(announced) > max_body:
                self._check_body_size(int(announced))
            if incomplete.expectation:
                self._check_expectation()
                is_1_1 = self.parser.get_http_version() == "1.1"
                incomplete.expectation = CONTINUE_DUE if is_1_1 else NO_EXPECTATION
        incomplete.seen_bytes += size
        overhead = incomplete.seen_bytes - len(self.body)
        limits = self.options.limits
        allowed = limits.max_header_bytes + limits.slice_bytes + CHUNK_OVERHEAD * len(self.body)
        if overhead > allowed:
            raise _RejectedError(json_error(413, f"the chunk headers of the body are larger than {allowed} bytes"))

    def _check_body_size(self, size: int) -> None:
        self.incomplete.max_body, rejection = self.options.body_limit(split_target(self.url)[0])
        if size > self.incomplete.max_body:
            raise _RejectedError(rejection)

    def _complete_marked(self) -> Packed | None:
        """Check the expectation of a complete request, and decode its body or describe it."""
        if self.incomplete.expectation:
            self._check_expectation()
        codings = Request(b"", b"", b"", self.head_headers).list_header(b"content-encoding")
        at_once = self.options.limits.max_body_bytes
        limit = self.options.body_limit(split_target(self.url)[0])
        decoded = decompressed(self.body, codings.strip().lower(), at_once, limit)
        if isinstance(decoded, Response):
            raise _RejectedError(decoded)
        if isinstance(decoded, bytes):
            self.body = decoded
        return decoded if isinstance(decoded, Packed) else None

    def _check_expectation(self) -> None:
        expectation, self.incomplete.expectation = self.incomplete.expectation, NO_EXPECTATION
        if expectation == UNKNOWN_EXPECTATION:
            raise _RejectedError(BAD_EXPECTATION)

    def _check_codings(self) -> None:
        codings = Request(b"", b"", b"", self.head_headers).header(b"transfer-encoding") or b""
        if codings.strip().lower() != b"chunked":
            raise _RejectedError(UNKNOWN_CODING)
        if self.parser.get_http_version() != "1.1":
            # RFC 9112 6.1: HTTP/1.0 has no chunks, so an intermediary is faulty
            raise _RejectedError(BAD_REQUEST)

    def _head_size(self) -> int:
        return 1 + len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.head_headers)

    # --- Heads that are read again ---

    def _without_upgrade(self) -> bytes:
        """Return the head just read without Upgrade: the parser takes the following bytes for another protocol."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.reject(NO_TUNNEL)
            return b""
        headers = [header for header in self.head_headers if header[0].lower() != b"upgrade"]
        line = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        return line + header_lines(headers) + b"\r\n"

    def _recover(self, error: Exception, data: bytes, started: int) -> list[bytes]:
        """Return the slices of a rejected request line, encoded; fail if the parser has rejected something else."""
        line = self._rejected_line(error, data, started)
        lenient = self.options.lenient
        path = None if line is None else request_line.path_of(line)
        if line is None or path is None or lenient is None or not lenient(path):
            self._fail(error)
            return []
        line, end, rest = line.partition(b"\n")
        if not end:
            self.parser = request_line.PendingLine(line)
            self.url = line.partition(b" ")[2]
            return []
        encoded = request_line.encoded(line)
        if encoded is None:
            self._fail(error)
            return []
        self.parser = httptools.HttpRequestParser(self)
        self.phase = IDLE
        return [rest, encoded]

    def _rejected_line(self, error: Exception, data: bytes, started: int) -> bytes | None:
        """Return the rejected request line, as far as it has arrived, and all behind it; None for other errors."""
        if isinstance(self.parser, request_line.PendingLine):
            return bytes(self.parser.data)
        if self.phase != HEAD or self.head_headers or isinstance(error, httptools.HttpParserCallbackError):
            return None
        known = None if self.options.lenient is None else self.incomplete.since_boundary(data, started)
        start = None if known is None else request_line.start_of_rejected_line(known)
        return None if known is None or start is None else known[start:]

    def _fail(self, error: Exception) -> None:
        """End the reading after a final error of the parser."""
        cause = error.__context__
        if isinstance(cause, _RejectedError):
            self.reject(cause.response)
        elif isinstance(error, httptools.HttpParserCallbackError):
            log_failure(Request(self.parser.get_method(), *split_target(self.url), self.head_headers), cause)
            self.reject(INTERNAL_ERROR)
        elif self.phase == ENDED or (self.version and not self.url):
            self.phase = ENDED  # stray bytes after a complete request
        else:
            self.reject(BAD_REQUEST)
