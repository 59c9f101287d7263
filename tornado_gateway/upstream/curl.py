"""A driver of libcurl on the event loop. The only module that imports pycurl or configures curl.

A `CurlPool` sends the requests of one purpose. Its handles remain prepared for the URL and the headers of their last
request, so that only the body changes between posts to one URL. Proxies come from the environment (https_proxy,
all_proxy, no_proxy), certificate authorities from the places that Python's ssl uses.

Redirects are never followed, because requests carry keys. If a kept connection ends before the first line of a
response, curl sends the request once more on a new connection.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import select
import ssl
import struct
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pycurl

from tornado_gateway.errors import reason_phrase

CONNECTION_SECONDS = 60  # longest idle time and longest age of a connection, so that changes of DNS take effect
LONGEST_SECONDS = 900  # of a request that makes progress
CHECKS = 4  # of the progress of a request, until it counts as stalled
MAX_RESPONSE_BYTES = 65_536
LARGE_BYTES = 2 * 1024 * 1024  # bodies from this size on are joined in a thread, where that does not hold the lock
E_TOO_LARGE = 100  # a head of more than 300 KB; pycurl does not name it
WORDS = {  # text for each code of curl. After a colon, curl's own text is appended
    pycurl.E_OPERATION_TIMEDOUT: "no response in time",
    pycurl.E_GOT_NOTHING: "the connection was closed without a response",
    E_TOO_LARGE: "the response is too large",
    pycurl.E_PARTIAL_FILE: "the connection was closed before the end of the response",
    pycurl.E_SEND_ERROR: "the connection was lost: ",
    pycurl.E_RECV_ERROR: "the connection was lost: ",
    pycurl.E_UNSUPPORTED_PROTOCOL: "the response is not HTTP: ",
    pycurl.E_FTP_WEIRD_SERVER_REPLY: "the response is not HTTP: ",
    pycurl.E_SSL_CONNECT_ERROR: "the TLS handshake failed: ",
    pycurl.E_PEER_FAILED_VERIFICATION: "the TLS certificate is not valid: ",
}

EVENTS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}

Receive = Callable[[bytes, int], object]  # gets a part of the body and the expected size of the whole, 0 if unknown


class CurlResponse(NamedTuple):
    """Header names are in lower case. The body is empty if it went to a receiver."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes = b""


class CurlError(OSError):
    """There is no complete response. The message contains neither the URL nor headers.

    `response` is set if all of it but (a part of) the body arrived. `is_timeout`: it took too long.
    """

    def __init__(self, message: str, response: CurlResponse | None = None, *, is_timeout: bool = False) -> None:
        super().__init__(message)
        self.response = response
        self.is_timeout = is_timeout


class _Target(NamedTuple):
    """The part of a request for which a handle is prepared."""

    url: str
    headers: tuple[tuple[str, str], ...]
    is_post: bool


class _Handle:
    """A curl handle and the transfer that it is busy with."""

    def __init__(self, curl: Any, max_response_bytes: int) -> None:
        self.curl = curl
        self.target: _Target | None = None
        self.done: asyncio.Future[None] | None = None
        self.failure: Exception | None = None  # the reason for which `_write` ended the transfer
        self.lines: list[bytes] = []
        self.chunks: list[bytes] = []
        self._receive: Receive | None = None
        self._received = 0
        self._check: asyncio.TimerHandle | None = None  # of the progress
        self._max_response_bytes = max_response_bytes
        curl.setopt(pycurl.HEADERFUNCTION, self.lines.append)
        curl.setopt(pycurl.WRITEFUNCTION, self._write)

    def prepare(self, target: _Target) -> None:
        if self.target == target:
            return
        self.target = None  # in case that curl rejects a part of it
        is_tls = target.url.startswith("https:")
        lines = [f"{name}: {value}" for name, value in target.headers]
        if not all(line.isascii() and line.isprintable() for line in (target.url, *lines)):
            raise CurlError("the request has characters that HTTP does not allow")
        self.curl.setopt(pycurl.URL, target.url)
        self.curl.setopt(pycurl.HTTPHEADER, [*lines, "Expect:"])  # without "100-continue", which costs a round trip
        self.curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS if is_tls else pycurl.CURL_HTTP_VERSION_1_1)
        self.curl.setopt(pycurl.POST if target.is_post else pycurl.HTTPGET, 1)
        self.target = target

    def begin(self, body: bytes | None, receive: Receive | None) -> "asyncio.Future[None]":
        self.lines.clear()
        self.chunks, self._receive, self._received, self.failure = [], receive, 0, None
        if body is not None:
            self.curl.setopt(pycurl.POSTFIELDS, body)
        self.done = asyncio.get_running_loop().create_future()
        return self.done

    async def response(self) -> CurlResponse:
        head = self.head()
        if head is None:
            raise CurlError(WORDS[pycurl.E_GOT_NOTHING])
        if self._received >= LARGE_BYTES:
            return head._replace(body=await asyncio.to_thread(b"".join, self.chunks))
        return head._replace(body=b"".join(self.chunks))

    def watch(self, stalled: "Callable[[_Handle], None]", seconds: float) -> None:
        """Call `stalled` if the transfer makes no progress for so many seconds."""
        self._check_later(stalled, seconds, -1, 0)

    def _check_later(self, stalled: "Callable[[_Handle], None]", seconds: float, before: int, checks: int) -> None:
        def check() -> None:
            now = self.progress()
            count = checks + 1 if now == before else 1
            if count > CHECKS:
                stalled(self)
            else:
                self._check_later(stalled, seconds, now, count)

        self._check = asyncio.get_running_loop().call_later(seconds / CHECKS, check)

    def progress(self) -> int:
        """Return the bytes that the server has received, and those that it has sent."""
        sizes = (pycurl.SIZE_UPLOAD_T, pycurl.SIZE_DOWNLOAD_T, pycurl.HEADER_SIZE)
        return int(sum(self.curl.getinfo(size) for size in sizes)) - _unacknowledged(self.curl)

    def end(self) -> None:
        """Release the bodies: a handle may stay idle for long."""
        self.chunks, self._receive, self.done = [], None, None
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if self.target is not None and self.target.is_post:
            self.curl.setopt(pycurl.POSTFIELDS, b"")

    def _write(self, data: bytes) -> int | None:
        """Take a part of the body. Anything but None makes curl end the transfer."""
        self._received += len(data)
        try:
            if self._received > self._max_response_bytes:
                raise CurlError("the response is too large", read_head(self.lines))
            if self._receive is None:
                self.chunks.append(data)
            else:
                self._receive(data, self._expected_bytes())
        except Exception as error:
            self.failure = error
            return -1
        return None

    def head(self) -> CurlResponse | None:
        """Return the head of the server's response; that of a proxy to CONNECT is none."""
        return read_head(self.lines) if self.curl.getinfo(pycurl.RESPONSE_CODE) else None

    def _expected_bytes(self) -> int:
        head = read_head(self.lines)
        length = head.headers.get("content-length", "") if head is not None else ""
        return int(length) if length.isdecimal() else 0


class CurlPool:
    """At most `max_handles` concurrent requests; others wait. `timeout_seconds` bounds the wait and each request.

    A request with a patience of its own is bounded by that instead, and as long as it makes progress only by
    LONGEST_SECONDS. No connection is used for longer than `connection_seconds`. The authorities in the file `ca_path`
    replace those of the system.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        connect_seconds: float | None = None,
        user_agent: str = "tornado-gateway",
        max_handles: int = 16,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        accepts_compression: bool = False,
        connection_seconds: int = CONNECTION_SECONDS,
        ca_path: Path | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._max_response_bytes = max_response_bytes
        self._options: dict[int, Any] = {
            pycurl.USERAGENT: user_agent,
            pycurl.CONNECTTIMEOUT_MS: _milliseconds(connect_seconds or timeout_seconds),
            pycurl.MAXAGE_CONN: connection_seconds,
            pycurl.MAXLIFETIME_CONN: connection_seconds,
            **({pycurl.ACCEPT_ENCODING: "gzip, deflate"} if accepts_compression else {}),
        }
        self._ca_path = ca_path
        self._slots = asyncio.Semaphore(max_handles)
        self._idle: list[_Handle] = []
        self._busy: dict[Any, _Handle] = {}
        # The loop watches this one for all sockets: curl begins and ends with one in each request, which takes uvloop
        # several objects and system calls.
        self._epoll = select.epoll()
        self._loop: asyncio.AbstractEventLoop | None = None  # that watches it
        self._watched: set[int] = set()  # sockets
        self._timer: asyncio.Handle | None = None
        self._is_closed = False
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_handles)

    async def request(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        receive: Receive | None = None,
        patience_seconds: float | None = None,
    ) -> CurlResponse:
        """Send a GET, or a POST if there is a body. Raise CurlError unless a whole response arrives.

        With `patience_seconds` it fails if it makes no progress for this long. Raise the error of `receive` if that
        raises one.
        """
        target = _Target(url, tuple((headers or {}).items()), body is not None)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise CurlError("no response in time to earlier requests", is_timeout=True) from None
        try:
            handle = self._take(target)
            seconds = self._timeout_seconds if patience_seconds is None else LONGEST_SECONDS
            handle.curl.setopt(pycurl.TIMEOUT_MS, _milliseconds(seconds))
            if patience_seconds is not None:
                handle.watch(self._stalled, patience_seconds)
            return await self._transfer(handle, target, body, receive)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close all connections. Requests in flight fail."""
        if self._is_closed:
            return
        self._is_closed = True
        for handle in list(self._busy.values()):
            self._settle(handle, CurlError("the client is closed"))
        for handle in self._idle:
            handle.curl.close()
        self._multi.close()
        if self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._set_timer(-1)

    def new_curl(self) -> Any:
        """Return a handle with the options that all requests share."""
        curl = pycurl.Curl()
        for option, value in (self._options | _common_options()).items():
            if value is not None:
                curl.setopt(option, value)
        if self._ca_path is not None:
            curl.setopt(pycurl.CAINFO, str(self._ca_path))
            curl.unsetopt(pycurl.CAPATH)
        return curl

    def _take(self, target: _Target) -> _Handle:
        """Return the idle handle that is prepared for the target, or any other one."""
        if self._is_closed:
            raise CurlError("the client is closed")
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].target == target:
                return self._idle.pop(index)
        return self._idle.pop() if self._idle else _Handle(self.new_curl(), self._max_response_bytes)

    async def _transfer(
        self, handle: _Handle, target: _Target, body: bytes | None, receive: Receive | None
    ) -> CurlResponse:
        try:
            handle.prepare(target)
            done = handle.begin(body, receive)
            self._busy[handle.curl] = handle
            self._multi.add_handle(handle.curl)
            await done
            return await handle.response()
        except (pycurl.error, UnicodeError) as error:
            raise CurlError(f"the request is not valid: {error}") from None
        finally:
            self._give_back(handle)

    def _give_back(self, handle: _Handle) -> None:
        if self._busy.pop(handle.curl, None) is not None:  # the task was cancelled
            self._multi.remove_handle(handle.curl)
        if self._is_closed:
            handle.curl.close()
        else:
            handle.end()
            self._idle.append(handle)

    # --- Called by curl ---

    def _watch(self, wanted: int, fd: int, multi: Any, data: Any) -> None:
        events = EVENTS.get(wanted)
        if events is None:
            self._watched.discard(fd)
            with contextlib.suppress(OSError):  # it may be closed
                self._epoll.unregister(fd)
        elif fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                self._loop.add_reader(self._epoll.fileno(), self._act_on_sockets)
            self._epoll.register(fd, events)
            self._watched.add(fd)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0 and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    # --- Called by the loop ---

    def _stalled(self, handle: _Handle) -> None:
        if handle.curl in self._busy:
            self._settle(handle, _error(handle, pycurl.E_OPERATION_TIMEDOUT, ""))

    def _act_on_sockets(self) -> None:
        for fd, events in self._epoll.poll(0):
            if fd in self._watched:  # an action on another one may have ended it
                is_writable = pycurl.CSELECT_OUT if events & select.EPOLLOUT else 0
                self._act(fd, is_writable | (pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0))

    def _act(self, fd: int, events: int) -> None:
        if self._is_closed:
            return
        self._multi.socket_action(fd, events)
        pending = 1
        while pending:
            pending, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                self._settle(self._busy[curl], None)
            for curl, code, message in failed:
                handle = self._busy[curl]
                self._settle(handle, handle.failure or _error(handle, code, message))

    def _settle(self, handle: _Handle, error: Exception | None) -> None:
        del self._busy[handle.curl]
        self._multi.remove_handle(handle.curl)
        if handle.done is None or handle.done.done():
            return
        if error is None:
            handle.done.set_result(None)
        else:
            handle.done.set_exception(error)


def _common_options() -> dict[int, Any]:
    authorities = ssl.get_default_verify_paths()
    return {
        pycurl.NOSIGNAL: 1,
        pycurl.FOLLOWLOCATION: 0,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.CAINFO: authorities.cafile,
        pycurl.CAPATH: authorities.capath,
    }


def read_head(lines: list[bytes]) -> CurlResponse | None:
    """Return the last head among the header lines, without trailers. None if it is interim or incomplete."""
    head = _last_head(lines)
    if not head:
        return None
    _, status, reason = (*head[0].split(" ", 2), "", "")[:3]
    headers = (line.partition(":") for line in head[1:])
    if not status.isdecimal() or (int(status) < 200 and status != "101"):
        return None
    return CurlResponse(
        int(status),
        reason.strip() or reason_phrase(int(status)),
        {name.strip().lower(): value.strip() for name, _, value in headers},
    )


def _last_head(lines: list[bytes]) -> list[str]:
    """Return the lines of the last head; none if it is incomplete."""
    head: list[str] = []
    is_complete = False
    for line in lines:
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            head, is_complete = [text], False
        elif not text:
            is_complete = True
        elif not is_complete:
            head.append(text)
    return head if is_complete else []


def _error(handle: _Handle, code: int, message: str) -> CurlError:
    words = WORDS.get(code, "")
    details = message
    if code == pycurl.E_COULDNT_CONNECT:  # "Failed to connect to HOST:PORT after 3 ms: ..."
        number = handle.curl.getinfo(pycurl.OS_ERRNO)
        details = re.sub(r" after \d+ ms\b.*", f": {os.strerror(number)}" if number else "", message)
    elif words and not words.endswith(" "):
        details = ""
    is_timeout = code == pycurl.E_OPERATION_TIMEDOUT
    return CurlError(words + details or f"error {code} of curl", handle.head(), is_timeout=is_timeout)


def _unacknowledged(curl: Any) -> int:
    """Return the number of bytes that the kernel has accepted from curl, but the other end has not received."""
    fd = curl.getinfo(pycurl.ACTIVESOCKET)
    if fd < 0:
        return 0
    try:
        queued: int = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0]
    except OSError:
        return 0
    return queued


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
