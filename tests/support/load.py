"""Load on a gateway from many keep-alive connections, remembering what was answered."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from process import Gateway


@dataclass
class Exchange:
    """One request and what became of it: `status` is None when no answer came."""

    path: str
    fields: dict[str, Any]
    status: int | None = None
    body: bytes = b""
    error: str | None = None
    seconds: float = 0.0
    sent_at: float = 0.0  # by the monotonic clock
    written_at: float = 0.0  # by that clock, when the kernel had the request


@dataclass
class Load:
    """Sends what `make(number)` gives, from `connections` connections at once, until `stop` or `total` requests."""

    port: int
    make: Callable[[int], tuple[str, dict[str, Any]]]
    connections: int = 32
    total: int | None = None
    pause_seconds: float = 0.0  # of each connection between two requests
    exchanges: list[Exchange] = field(default_factory=list)
    answered: int = 0
    stopping: bool = False

    def __post_init__(self) -> None:
        self._numbers: Iterator[int] = itertools.count() if self.total is None else iter(range(self.total))

    async def run(self) -> None:
        await asyncio.gather(*(self._connection() for _ in range(self.connections)))

    async def _connection(self) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            self.exchanges.append(Exchange("connect", {}, error=repr(error)))
            return
        try:
            while not self.stopping and (number := next(self._numbers, None)) is not None:
                exchange = Exchange(*self.make(number))
                self.exchanges.append(exchange)
                closes = await self._exchange(exchange, reader, writer)
                self.answered += 1
                if closes:
                    return
                if self.pause_seconds:
                    await asyncio.sleep(self.pause_seconds)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.exchanges[-1].error = exchange.error = repr(error)
        finally:
            writer.close()

    async def _exchange(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """True if the server closes the connection behind its answer."""
        exchange.sent_at = started = time.monotonic()
        body = orjson.dumps(exchange.fields)
        writer.write(f"POST {exchange.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        exchange.written_at = time.monotonic()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        exchange.body = await reader.readexactly(length)
        exchange.status = int(head[9:12])
        exchange.seconds = time.monotonic() - started
        return b"connection: close" in head


async def kill_after(gateway: Gateway, load: Load, answers: int, delay_seconds: float) -> None:
    running = asyncio.create_task(load.run())
    while load.answered < answers:
        assert not running.done()
        await asyncio.sleep(0.001)
    await asyncio.sleep(delay_seconds)
    gateway.kill()
    await running
