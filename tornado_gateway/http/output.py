"""The writing half of a connection: small pieces joined, large ones in slices, as fast as the peer reads.

It owns the transport.
"""

import asyncio
import fcntl
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import final

from tornado.iostream import StreamClosedError

from tornado_gateway.http.limits import WRITE_BYTES, WRITE_SLICE_BYTES


def _nothing() -> None:
    pass


@final
class Output:
    """Collects the responses of one turn in `pieces`, of `size` bytes together, and writes them with `write_out`, or at
    once with `write_pieces` if they reach `WRITE_BYTES`.

    `on_full` is called when the peer has to read before more may be written, `on_drained` when it has done so.
    """

    __slots__ = (
        "_feed_due",
        "_loop",
        "_writers",
        "is_paused",
        "on_drained",
        "on_full",
        "pieces",
        "size",
        "transport",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, on_full: Callable[[], None], on_drained: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._feed_due = False
        self._writers: list[asyncio.Future[None]] = []
        self.on_full = on_full
        self.on_drained = on_drained
        self.transport: asyncio.Transport | None = None
        self.is_paused = False  # by the transport
        self.pieces: list[bytes] = []
        self.size = 0
        self.unsent: deque[memoryview] = deque()  # a large piece, and all that follows it
        self.unsent_bytes = 0

    def open_transport(self) -> asyncio.Transport | None:
        """Return the transport, or None if the connection is closed or being closed."""
        transport = self.transport
        return None if transport is None or transport.is_closing() else transport

    def put(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def write_out(self) -> None:
        """Write all pieces, which are smaller than `WRITE_BYTES` together."""
        pieces = self.pieces
        if self.unsent_bytes:
            self.write_pieces()
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def write_pieces(self) -> None:
        """Write pieces that may be large, after the unsent ones. Pieces are joined only up to `WRITE_BYTES`."""
        pieces, self.pieces, self.size = self.pieces, [], 0
        if self.open_transport() is None:
            return
        is_first = not self.unsent_bytes
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) < WRITE_BYTES:
                small.append(piece)
            else:
                self._append_unsent(b"".join(small))
                self._append_unsent(piece)
                small.clear()
        self._append_unsent(b"".join(small))
        if is_first:
            self._write_slice()
            if self.unsent_bytes:
                self.on_full()
                self._feed_later()

    def _append_unsent(self, data: bytes) -> None:
        if data:
            self.unsent.append(memoryview(data))
            self.unsent_bytes += len(data)

    def _write_slice(self) -> None:
        """Hand up to a slice of the unsent data to the transport, unless that has enough."""
        room: int = WRITE_SLICE_BYTES
        while self.unsent_bytes and room and not self.is_paused:
            transport = self.open_transport()
            if transport is None:
                self._drop_unsent()
                return
            piece = self.unsent.popleft()
            if len(piece) > room:
                self.unsent.appendleft(piece[room:])
                piece = piece[:room]
            room -= len(piece)
            self.unsent_bytes -= len(piece)
            transport.write(piece)

    def _drop_unsent(self) -> None:
        self.unsent.clear()
        self.unsent_bytes = 0

    def _feed(self) -> None:
        self._feed_due = False
        self._write_slice()
        if not self.unsent_bytes and not self.is_paused:
            self._drained()
        else:
            self._feed_later()

    def _feed_later(self) -> None:
        """Write the next slice in the next turn of the loop, or in resume_writing."""
        if self.unsent_bytes and not self.is_paused and not self._feed_due:
            self._feed_due = True
            self._loop.call_soon(self._feed)

    def _drained(self) -> None:
        self._release_writers()
        self.on_drained()

    def pause(self) -> None:
        """Write nothing more for now: the peer does not read as fast as responses are written."""
        self.is_paused = True
        self.on_full()

    def resume(self) -> None:
        self.is_paused = False
        if self.unsent_bytes:
            self._feed()
        else:
            self._drained()

    def push(self, data: bytes) -> None:
        """Write a part of a streamed response, without waiting for the peer to read."""
        if self.open_transport() is not None:
            self.put(data)
            self.write_pieces()

    def write(self, *pieces: bytes) -> asyncio.Future[None]:
        """Write a part of a streamed response. The future is done when more may follow."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self.open_transport() is None:
            future.set_exception(StreamClosedError())
            future.exception()  # not every caller awaits it
            return future
        for piece in pieces:
            self.put(piece)
        self.write_pieces()
        if self.is_paused or self.unsent_bytes:
            self._writers.append(future)
        else:
            future.set_result(None)
        return future

    def _release_writers(self) -> None:
        writers, self._writers = self._writers, []
        for future in writers:
            if future.done():
                continue
            if self.transport is None:
                future.set_exception(StreamClosedError())
                future.exception()
            else:
                future.set_result(None)

    def lost(self) -> None:
        """Drop all unsent data: the peer has closed the connection."""
        self.transport = None
        self.is_paused = False
        self._drop_unsent()
        self._release_writers()

    def release(self) -> None:
        """Break the reference cycle with the connection."""
        self.on_full = self.on_drained = _nothing

    def close(self) -> None:
        """Close without lingering, once: a second close makes asyncio's TLS transport forget its protocol."""
        transport = self.open_transport()
        if transport is not None:
            transport.close()

    def half_close(self) -> None:
        """Close our side; the peer's side stays open."""
        if self.transport is not None:
            try:
                self.transport.write_eof()
            except OSError:  # reset by the peer in this very moment
                self.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def buffered(self) -> int:
        """Return the number of bytes that the kernel has not taken yet."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size() + self.unsent_bytes

    def unacknowledged(self) -> int:
        """Return the number of bytes that the kernel has taken and the peer has not acknowledged."""
        sock = None if self.transport is None else self.transport.get_extra_info("socket")
        if sock is None:
            return 0
        try:
            size: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        except (OSError, ValueError):  # closed meanwhile
            return 0
        return size
