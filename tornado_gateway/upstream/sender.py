"""Posts to one server over connections of our own, which stay open between requests.

All events leave through it: curl takes five times the CPU for a post. It does what posting events needs and no more:
HTTP/1.1 without proxies, redirects and bodies of answers. Used by `upstream.py`.

What it decides where HTTP leaves a choice:

- The head is the answer: a 200 stands though the rest of the answer is cut off, late or endless. Sending the same once
  more would only make duplicates.
- A request is sent once more, on a new connection, if the kept one that it was written to ended before any byte of an
  answer: nearly always the server had closed it just then for being idle. Whoever posts events would send them again
  after such a failure anyway, so that this makes no duplicate that there would not have been.
- Connections that have been idle for a minute are not used again: what is between here and there may have forgotten
  them without a word.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

__all__ = ["Answer", "Sender"]

KEPT_CONNECTIONS = 16
MOST_IDLE_SECONDS = 60.0
MAX_ANSWER_BYTES = 65536
TOO_LATE = "no answer in time"
PORTS = {"http": 80, "https": 443}


class Answer(NamedTuple):
    """All that is kept of an answer; `retry_after` as the server wrote it."""

    status: int
    reason: str
    retry_after: str = ""


class Sender:
    """Posts to the server of `url`, whose path goes before every target.

    `timeout_seconds` bounds connecting and each whole request. There are as many connections as requests at the same
    time; a few of them are kept.
    """

    def __init__(self, url: str, *, user_agent: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS[parts.scheme]
        self._path = parts.path.rstrip("/")
        self._headers = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": user_agent, "Accept": "*/*"}
        self._timeout_seconds = timeout_seconds
        self._tls = _client_context() if parts.scheme == "https" else None
        self._last_address: object = None
        self._is_closed = False
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()

    def close(self) -> None:
        self._is_closed = True
        for connection in list(self._connections):
            connection.close()

    async def post(self, target: str, headers: Mapping[str, str], body: Sequence[bytes]) -> Answer:
        """Post the pieces of `body` as one. Raises OSError if there is no answer; the message has no target in it."""
        head = _head(self._path + target, {**self._headers, **headers}, sum(map(len, body)))
        request = (head, *body)
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        kept = self._kept_connection()
        if kept is not None:
            try:
                return await self._ask(kept, request, deadline)
            except ConnectionError:
                if kept.received:
                    raise
        return await self._ask(await self._connect(deadline), request, deadline)

    async def _ask(self, connection: "_Connection", request: Sequence[bytes], deadline: float) -> Answer:
        try:
            if self._is_closed:
                raise OSError("this sender is closed")
            answer = await connection.ask(request, deadline)
        except BaseException:  # also when this task is cancelled
            connection.close()
            raise
        if connection.is_reusable and len(self._idle) < KEPT_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _kept_connection(self) -> "_Connection | None":
        """The one that was used last, so that those which are not needed grow old."""
        since = asyncio.get_running_loop().time() - MOST_IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive and connection.idle_since > since:
                return connection
            connection.close()
        return None

    async def _connect(self, deadline: float) -> "_Connection":
        try:
            async with asyncio.timeout_at(deadline):
                return await self._connect_to_any(deadline)
        except (OSError, ValueError) as error:  # a name that cannot be one is a ValueError
            reason = str(error) or TOO_LATE
            raise OSError(f"no connection to {self._host}, port {self._port}: {reason}") from error

    async def _connect_to_any(self, deadline: float) -> "_Connection":
        """Try one address after the other, that of the last connection first.

        Each gets half of the time that is left. uvloop itself would wait for the first one as long as the kernel does.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        addresses = sorted((entry[4] for entry in found), key=lambda address: address != self._last_address)
        name = self._host.rstrip(".") if self._tls is not None else None
        for address in addresses:
            is_last = address is addresses[-1]
            try:
                async with asyncio.timeout_at(deadline if is_last else (loop.time() + deadline) / 2):
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self._connections), *address[:2], ssl=self._tls, server_hostname=name
                    )
            except OSError:
                if is_last:
                    raise
            else:
                self._last_address = address
                return connection
        raise OSError("the name has no address")


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way. It is in `connections` while it is open."""

    def __init__(self, connections: "set[_Connection]") -> None:
        self.is_reusable = False
        self.idle_since = 0.0
        self.received = 0  # bytes of the present answer
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked: asyncio.Future[Answer] | None = None
        self._answer: Answer | None = None
        self._failure: OSError | None = None  # why it is closed
        self._reason = self._retry_after = b""

    def ask(self, request: Sequence[bytes], deadline: float) -> "asyncio.Future[Answer]":
        """Send a request. Its answer comes until `deadline`, or a TimeoutError."""
        if self._failure is not None:  # the server closed a new connection at once
            raise self._failure
        self._asked = self._loop.create_future()
        self._timer = self._loop.call_at(deadline, self._end, TimeoutError(TOO_LATE))
        self._answer = None
        self.received = 0
        self.is_reusable = False
        self._transport.writelines(request)
        return self._asked

    @property
    def is_alive(self) -> bool:
        """As far as can be seen from here."""
        return self.is_reusable and not self._transport.is_closing()

    def close(self) -> None:
        self.is_reusable = False
        self._transport.abort()

    # ---- the transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(OSError(f"the answer is not HTTP: {error}"))
            return
        if self.is_reusable:
            self._settle()
        elif self.received > MAX_ANSWER_BYTES:
            self._end(OSError("the answer is too large"))

    def eof_received(self) -> None:
        self._end(ConnectionResetError("the connection was closed without an answer"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError(f"the connection was lost: {exc or 'closed without an answer'}"))
        self._connections.discard(self)
        self._parser = None  # it refers to this object

    # ---- the parser calls these

    def on_message_begin(self) -> None:
        if self._asked is None or self._answer is not None:
            raise ValueError("an answer that nothing was asked for")
        self._reason = self._retry_after = b""

    def on_status(self, part: bytes) -> None:
        self._reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after":
            self._retry_after = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 or status == 101:
            reason = self._reason.decode("latin-1") or _usual_reason(status)
            self._answer = Answer(status, reason, self._retry_after.decode("latin-1"))

    def on_message_complete(self) -> None:
        if self._answer is None:  # an answer of 1xx: the real one follows
            return
        if self._parser.should_keep_alive() and not self._transport.get_write_buffer_size():
            self.is_reusable = True
            self.idle_since = self._loop.time()
        else:
            self._end(ConnectionResetError("this was its last answer"))

    # ----

    def _end(self, failure: OSError) -> None:
        """The connection is of no use any more. If the head of an answer has come, it stands."""
        self._failure = self._failure or failure
        self.close()
        self._settle()

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        asked, self._asked = self._asked, None
        if asked is None or asked.done():
            return
        if self._answer is not None:
            asked.set_result(self._answer)
        elif self._failure is not None:
            asked.set_exception(self._failure)


def _head(target: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    if not all(text.isascii() and text.isprintable() for text in (target, *headers.values())) or " " in target:
        raise OSError("the request has characters that HTTP does not allow")
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"POST {target} HTTP/1.1\r\n{lines}Content-Length: {body_bytes}\r\n\r\n".encode()


def _client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _usual_reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
