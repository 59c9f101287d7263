"""One server and its connections: listening, accepting, time-outs, draining.

A slow head or body is 408 and closes the connection.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from tornado_gateway.http.connection import Activity, Connection
from tornado_gateway.http.limits import ServerOptions
from tornado_gateway.http.messages import BUSY, TIMEOUT
from tornado_gateway.http.reader import BODY, HEAD, IDLE
from tornado_gateway.http.streamed import EventStream

logger = logging.getLogger(__name__)

PROXY_1 = b"PROXY "
PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n"
MAX_PROXY_HEADER = 4096
# The kernel's buffer of bytes that a client has sent. All of it is read at once, so it bounds the memory of each client
# that must wait. The kernel's own limit is 6 MB. Over 50 ms of latency it allows about 1 MB/s.
RECEIVE_BYTES = 65536
SWEEP_SLICE = 100  # connections that are checked at once: thousands would hold up requests for milliseconds
BACKLOG = 4096  # connections that the kernel accepts before the server does
ACCEPTED_AT_ONCE = 64  # by asyncio, whose argument `backlog` has this meaning as well; uvloop accepts one
CHECK_SECONDS = 0.01  # between two checks of the requests in flight while the server stops


class Server:
    """Listens on one address, and stops without losing a request.

    `proxy_trusts(address)`: whether connections from an address begin with a header of the PROXY protocol. None: no
    connection does.
    """

    def __init__(
        self,
        options: ServerOptions,
        ssl_context: ssl.SSLContext | None = None,
        proxy_trusts: Callable[[str], bool] | None = None,
    ) -> None:
        self.options = options
        self._proxy_trusts = proxy_trusts
        self.activity = Activity()
        self.port = 0
        self.stopping = False
        self._ssl_context = ssl_context
        self._listener: asyncio.Server | None = None
        self._backlog: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        limits = options.limits
        shortest = min(limits.header_seconds, limits.body_seconds, limits.keep_alive_seconds)
        shortest = min(shortest, limits.write_seconds, limits.linger_seconds)
        self._sweep_seconds = self._sweep_pause = min(1.0, shortest / 4)
        self._unchecked: list[Connection] = []  # of this sweep
        self._counted = 0  # requests in flight, of this sweep
        self._in_flight = 0  # of the last one

    @property
    def connections(self) -> int:
        """The number of connected clients."""
        return len(self.activity.clients)

    @property
    def in_flight(self) -> int:
        """The number of requests received and without a response yet, open streams excluded.

        Of many clients it is as the last sweep has counted it, because to count those of 5,000 takes up to 3 ms.
        """
        clients = self.activity.clients
        if len(clients) > SWEEP_SLICE:
            return self._in_flight
        return sum([requests_in(connection) for connection in (*clients, *self.activity.orphans)])

    def _new_connection(self) -> Connection:
        return Connection(self.options, self.activity, self.stopping)

    async def listen(
        self, host: str = "", port: int = 0, *, reuse_port: bool = False, sock: socket.socket | None = None
    ) -> None:
        """Accept connections on an address (`""`: on all of them), or on a bound socket, which the server closes."""
        if sock is None:
            sock = _bind(host, port, reuse_port)
        self.port = sock.getsockname()[1]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        # The second descriptor keeps the kernel's queue of new connections alive while stop() empties it.
        self._backlog = sock.dup()
        self._backlog.setblocking(False)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._new_connection, sock=sock, backlog=ACCEPTED_AT_ONCE, **self._tls_options()
            )
            sock.listen(BACKLOG)
        except BaseException:
            self._backlog.close()
            sock.close()
            raise
        if self._proxy_trusts is not None:
            self._accept_by_ourselves()
        self._sweep()

    def _accept_by_ourselves(self) -> None:
        """Accept in place of asyncio, which would begin TLS before the PROXY protocol's header has been read."""
        loop = asyncio.get_running_loop()
        assert self._listener is not None and self._backlog is not None  # noqa: S101, PT018
        self._listener.close()
        loop.add_reader(self._backlog.fileno(), self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # usually BlockingIOError: another worker was faster
            if self._backlog is not None:
                self._adopt(self._backlog.accept()[0])

    def _tls_options(self) -> dict[str, Any]:
        if self._ssl_context is None:
            return {}
        return {
            "ssl": self._ssl_context,
            "ssl_handshake_timeout": self.options.limits.header_seconds,
            "ssl_shutdown_timeout": self.options.limits.linger_seconds,
        }

    def _sweep(self) -> None:
        """Check the progress of some connections. All of them get their turn in a quarter of the shortest time-out."""
        loop = asyncio.get_running_loop()
        if not self._unchecked:
            self._unchecked = list(self.activity.clients)
            slices = -(-len(self._unchecked) // SWEEP_SLICE)
            self._sweep_pause = self._sweep_seconds / max(1, slices)
            self._in_flight, self._counted = self._counted, 0
        now = loop.time()
        for connection in self._unchecked[-SWEEP_SLICE:]:
            if connection in self.activity.clients:  # it may have been closed since
                check_progress(connection, now)
                self._counted += requests_in(connection)
        del self._unchecked[-SWEEP_SLICE:]
        self._timer = loop.call_later(self._sweep_pause, self._sweep)

    async def stop(self, deadline_seconds: float) -> bool:
        """Stop without losing a request that has reached this machine. Return True if all got their response in time.

        1. Accept the connections that the kernel has accepted already, then close the listening socket.
        2. Let the loop read the bytes in the sockets' buffers.
        3. From now on the last response of each connection says `Connection: close`. Idle connections stay for
           `drain_seconds`, because a request may be arriving; then they are closed. That time is counted in turns of
           the loop, each of which reads all bytes that have arrived, because a process may have been suspended.
        4. Wait for the requests in flight, then a moment for the peers to close.
        5. At the deadline, cancel the remaining requests and abort their connections.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        await self._close_listener()
        for _ in range(3):
            await asyncio.sleep(0)
        self.stopping = True
        for connection in self.activity.clients:
            connection.stopping = True
        quiet_checks: dict[Connection, int] = {}
        await self._until(lambda: self._close_quiet(quiet_checks), deadline)
        is_finished = not self._is_busy()
        await self._until(
            lambda: not self.activity.clients, min(deadline, loop.time() + self.options.limits.drain_seconds)
        )
        await self._abort()
        if self._timer is not None:
            self._timer.cancel()
        return is_finished

    async def _close_listener(self) -> None:
        if self._listener is None or self._backlog is None:
            return
        # asyncio loses a connection that it has accepted but not set up when its listener closes. So it
        # first stops accepting, then gets a turn for accepted ones. uvloop sets up at once and has no reader here.
        sockets: Iterable[Any] = getattr(self._listener, "sockets")  # noqa: B009 - typed as a tuple, with uvloop a list
        for listening in sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        if self._proxy_trusts is not None:
            asyncio.get_running_loop().remove_reader(self._backlog.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._listener.close()
        await asyncio.sleep(0)
        self._adopt_all(self._backlog)

    def _adopt_all(self, backlog: socket.socket) -> None:
        try:
            while True:
                self._adopt(backlog.accept()[0])
        except OSError:  # usually BlockingIOError: there are no more connections
            backlog.close()

    def _adopt(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Any]
        if self._proxy_trusts is None:
            connecting = loop.connect_accepted_socket(self._new_connection, accepted, **self._tls_options())
            task = loop.create_task(connecting)
        else:
            task = loop.create_task(self._adopt_proxied(accepted, self._proxy_trusts))
        self.activity.tasks.add(task)
        task.add_done_callback(self._adopted)

    async def _adopt_proxied(self, accepted: socket.socket, trusts: Callable[[str], bool]) -> None:
        accepted.setblocking(False)
        try:
            async with asyncio.timeout(self.options.limits.header_seconds):
                peer = await proxied_peer(accepted, trusts)
        except (OSError, ValueError) as error:  # a TimeoutError is an OSError
            accepted.close()
            self.activity.log.warning("proxy", "a connection was closed, it has no valid PROXY header: %s", error)
            return
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Connection(self.options, self.activity, self.stopping, peer), accepted, **self._tls_options()
        )

    def _adopted(self, task: asyncio.Future[Any]) -> None:
        self.activity.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a new connection was dropped, its setup failed: %r", task.exception())

    def _close_quiet(self, quiet_checks: dict[Connection, int]) -> bool:
        """Close the connections that have been idle for long enough. Return True if there were no others."""
        for connection in tuple(self.activity.clients):
            checks = quiet_checks.get(connection, 0)
            if is_busy(connection):
                quiet_checks.pop(connection, None)
            elif checks * CHECK_SECONDS >= self.options.limits.drain_seconds:
                connection.linger()
            else:
                quiet_checks[connection] = checks + 1
        return not self._is_busy() and all(connection.is_lingering for connection in self.activity.clients)

    def _is_busy(self) -> bool:
        return bool(
            self.activity.tasks
            or self.activity.orphans
            or any(is_busy(connection) for connection in self.activity.clients)
        )

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not condition() and loop.time() < deadline:
            await asyncio.sleep(CHECK_SECONDS)

    async def _abort(self) -> None:
        for task in tuple(self.activity.tasks):
            task.cancel()
        for connection in tuple(self.activity.clients):
            if is_busy(connection):
                connection.output.abort()
            else:
                connection.output.close()
        await asyncio.sleep(0)


async def proxied_peer(sock: socket.socket, trusts: Callable[[str], bool]) -> str:
    """Return the client's address by the header with which a trusted proxy begins a connection; it is read.

    Connections from other addresses have no header, and those from this machine can omit it (commands, health checks).
    """
    peer: str = sock.getpeername()[0].removeprefix("::ffff:")
    while trusts(peer):
        data = sock_peek(sock)
        size = None if data is None else proxy_header_size(data)
        if data is not None and size is not None:
            if not size and ipaddress.ip_address(peer).is_loopback:
                break
            return proxied_address(sock.recv(size), peer) if size else _raise("the connection begins with other bytes")
        await asyncio.sleep(CHECK_SECONDS)
    return peer


def _raise(message: str) -> str:
    raise ValueError(message)


def sock_peek(sock: socket.socket) -> bytes | None:
    """Return the first bytes of a connection, None if none have arrived."""
    try:
        data = sock.recv(MAX_PROXY_HEADER, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    return data or _raise("the peer has closed it").encode()


def proxy_header_size(data: bytes) -> int | None:
    """Return the size of the header of the PROXY protocol (version 1 or 2); 0 if there is none, None if more is due."""
    if data.startswith(PROXY_2):
        if len(data) < 16:
            return None
        size = 16 + int.from_bytes(data[14:16], "big")
        return 0 if size > MAX_PROXY_HEADER else size if len(data) >= size else None
    if data.startswith(PROXY_1):
        end = data.find(b"\r\n", 0, 107) + 2
        return end if end > 1 else None if len(data) < 107 else 0
    return None if PROXY_2.startswith(data) or PROXY_1.startswith(data) else 0


def proxied_address(header: bytes, peer: str) -> str:
    """Return the source address in a complete header; `peer` if the proxy speaks for itself."""
    if header.startswith(PROXY_1):
        words = header.decode("latin-1").split()
        if words[1:2] == ["UNKNOWN"]:
            return peer
        if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
            raise ValueError("version 1 of the header is malformed")
        return str(ipaddress.ip_address(words[2]))
    version, command = header[12] >> 4, header[12] & 15
    if version != 2 or command > 1:
        raise ValueError("version 2 of the header is malformed")
    size = {1: 4, 2: 16}.get(header[13] >> 4, 0)
    if not command or not size:
        return peer
    if len(header) < 16 + 2 * size:
        raise ValueError("version 2 of the header is too short")
    return str(ipaddress.ip_address(header[16 : 16 + size])).removeprefix("::ffff:")


def requests_in(connection: Connection) -> int:
    """Return the number of requests that wait for their response. An open stream has its response."""
    queue = connection.queue
    page = queue[-1].page if queue else None
    return len(queue) + len(connection.waiting) - (isinstance(page, EventStream) and page.is_open)


def is_busy(connection: Connection) -> bool:
    """Whether a request has been received, at least in part, and its response is not with the kernel yet."""
    reader = connection.reader
    if reader.phase in (HEAD, BODY) or connection.queue or connection.waiting or connection.held or reader.rejection:
        return True
    return connection.output.buffered() > 0


def check_progress(connection: Connection, now: float) -> None:
    """Close a connection if nothing has changed for too long."""
    reader, output = connection.reader, connection.output
    buffered = output.buffered()
    if buffered:
        # The kernel takes more only when a large part of its buffer, up to 4 MB, is free: progress is seen there.
        buffered += output.unacknowledged()
    phase = reader.phase + connection.is_lingering
    before, messages, buffered_before = connection.last_progress
    responding = connection.is_queued or (connection.queue and not buffered)
    if before != phase or messages != reader.messages or buffered_before != buffered or responding:
        connection.last_progress = (phase, reader.messages, buffered)
        connection.since = now
    else:
        _expire(connection, now - connection.since, buffered)


def _expire(connection: Connection, age: float, buffered: int) -> None:
    """Apply the time-outs to a connection without progress for `age` seconds."""
    limits, phase = connection.options.limits, connection.reader.phase
    if buffered:
        if age > limits.write_seconds:
            connection.output.abort()
    elif phase == IDLE:
        if age > limits.keep_alive_seconds:
            connection.linger()
    elif connection.is_lingering:
        if age > limits.linger_seconds:
            connection.output.close()
    elif age > limits.starved_seconds and connection.blocked and connection.is_starved():
        connection.reject(BUSY)
    elif age > (limits.header_seconds if phase == HEAD else limits.body_seconds):
        connection.reject(TIMEOUT)


def _bind(host: str, port: int, reuse_port: bool) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=BACKLOG, reuse_port=reuse_port, dualstack_ipv6=True
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port)
