"""Sends attacks (`attacks.py`) to a gateway until the time is over, and prints as JSON which statuses came back.

python tests/support/attackers.py PORT SECONDS NAME ...
"""

import asyncio
import collections
import gc
import random
import re
import socket
import struct
import sys
from typing import Any

import orjson
import uvloop
from attacks import EVERYTHING, MIXED, Attack, Blocks

STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d)")
TAIL_BYTES = 11  # of a status line that has arrived in part
MIXED_LOAD = "mixed load"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Pump(asyncio.Protocol):
    """One connection: writes blocks as fast as the peer takes them, counts the responses."""

    def __init__(self, statuses: "collections.Counter[str]", reads: bool) -> None:
        self.closed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._statuses = statuses
        self._reads = reads
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        if not self._reads:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        last = 0
        for match in STATUS.finditer(data):
            self._statuses[match[1].decode()] += 1
            last = match.end()
        self._tail = data[max(last, len(data) - TAIL_BYTES) :]

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._writable.set()

    async def send(self, transport: Any, blocks: Blocks, pause_seconds: float) -> None:
        for block in blocks:
            transport.write(block)
            await asyncio.sleep(pause_seconds)
            await self._writable.wait()
            if self.closed.is_set():
                return


async def connect(port: int, attack: Attack, chance: random.Random, statuses: "collections.Counter[str]") -> None:
    """One connection of an attack, from its start to its end."""
    loop = asyncio.get_running_loop()
    transport, pump = await loop.create_connection(lambda: Pump(statuses, attack.reads), "127.0.0.1", port)
    try:
        await pump.send(transport, attack.blocks(chance), attack.pause_seconds)
        if attack.resets and not pump.closed.is_set():
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        if attack.half_closes and not pump.closed.is_set():
            transport.write_eof()
        async with asyncio.timeout(attack.patience_seconds):
            await pump.closed.wait()
    finally:
        if not pump.closed.is_set():
            transport.abort()


async def repeat(port: int, attack: Attack, chance: random.Random, counts: "collections.Counter[str]") -> None:
    while True:
        try:
            await connect(port, attack, chance, counts)
        except (OSError, TimeoutError) as error:
            counts[type(error).__name__] += 1
        counts["connections"] += 1
        await asyncio.sleep(0)


async def attack(port: int, seconds: float, attacks: dict[str, Attack]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    tasks = [
        asyncio.create_task(repeat(port, one, random.Random(f"{name}{number}"), counts))
        for name, one in attacks.items()
        for number in range(one.connections)
    ]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    failures = [task.exception() for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if failures:
        raise RuntimeError("an attacker failed") from failures[0]
    return dict(counts)


def main(port: str, seconds: str, *names: str) -> None:
    gc.freeze()
    chosen = MIXED if names == (MIXED_LOAD,) else {name: EVERYTHING[name] for name in names}
    sys.stdout.buffer.write(orjson.dumps(uvloop.run(attack(int(port), float(seconds), chosen))))


if __name__ == "__main__":
    main(*sys.argv[1:])
