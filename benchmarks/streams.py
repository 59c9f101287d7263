"""The cost of open streams (GET /stream), and a rolling restart with many of them.

    python benchmarks/streams.py [--quick] [--seconds 4] [--rounds 5]

getFlag is measured with and without 5,000 open streams in turn, at half of the maximal rate, on the same gateway. Then
two workers are replaced one after the other, while 1,000 clients have streams and one asks for flags without repeating
a request that fails. Exits with 1 if a limit is exceeded.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import openloop
from accounts import account
from measure import (
    CORES,
    HERE,
    LOAD_CORE,
    Effort,
    Row,
    Target,
    effort,
    end_cleanly_when_told,
    family_of,
    rss_megabytes,
    say,
    wrk,
)
from report import Column, Result, save
from servers import gateway

sys.path.append(str(HERE.parent / "tests" / "support"))
from steady_client import Client

FEATURES = 100
STREAMS, RESTARTED_STREAMS = 5000, 1000
MOST_MEGABYTES, MOST_SLOWDOWN, MOST_AWAY_SECONDS = 50.0, 1.10, 10.0
REQUESTS_PER_SECOND = 200  # during the restart
CONNECTIONS = 8  # of the client; a worker that ends closes those that are idle for a second
SETTLE_SECONDS = 2.0
PATIENCE_SECONDS = 90.0
SOURCES = [f"127.0.0.{number}" for number in range(2, 12)]  # so that no address runs out of ports
REQUEST = b"GET /stream HTTP/1.1\r\nHost: gateway\r\nOrigin: https://shop.example\r\n\r\n"
SAMPLE = json.loads((HERE.parent / "conf" / "sample-settings.json").read_text())
COLUMNS = (
    Column("name", "measurement"),
    Column("value", "value", ",.2f"),
    Column("limit", "at most", ",.2f"),
)


# --- Open streams ---


@contextlib.contextmanager
def open_streams(port: int, count: int) -> Iterator[None]:
    """Streams of clients that do not read after the first event: the kernel keeps the rest."""
    with contextlib.ExitStack() as stack:
        for source in itertools.islice(itertools.cycle(SOURCES), count):
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, (source, 0)))
            stream.sendall(REQUEST)
            received = b""
            while b"id: " not in received:
                received += (part := stream.recv(4096))
                if not part:
                    raise RuntimeError(f"no stream: {received!r}")
        yield


def measured(chosen: Effort) -> list[Row]:
    with gateway(account(FEATURES), STREAM_MAX_CONNECTIONS=STREAMS) as target:
        rate = _half_rate(target)
        rounds: dict[bool, list[Row]] = {False: [], True: []}
        sizes = []
        for number in range(chosen.rounds):
            for has_streams in (False, True):
                say(f"  round {number + 1}, {'with' if has_streams else 'without'} streams")
                before = rss_megabytes(target.pid)  # it grows with the load as well
                with open_streams(target.port, STREAMS if has_streams else 0):
                    time.sleep(SETTLE_SECONDS)
                    if has_streams:
                        sizes.append(rss_megabytes(target.pid) - before)
                    rounds[has_streams].append(_asked(target, rate, chosen.seconds))
    p99 = {has_streams: statistics.median(row["p99_ms"] for row in rows) for has_streams, rows in rounds.items()}
    return [
        {"name": f"MB of {STREAMS:,} streams", "value": max(sizes), "limit": MOST_MEGABYTES},
        {"name": f"getFlag, {rate:,.0f} requests/s: p99 ms without streams", "value": p99[False]},
        {"name": f"the same with {STREAMS:,} streams", "value": p99[True], "limit": MOST_SLOWDOWN * p99[False]},
        {
            "name": "failed requests",
            "value": sum(row["errors"] for rows in rounds.values() for row in rows),
            "limit": 0,
        },
    ]


def _half_rate(target: Target) -> float:
    for seconds in (1, 3):
        found = wrk(target.port, "getflag.lua", [FEATURES], seconds, [LOAD_CORE])
        target.drain()
    return float(found["requests"] / found["seconds"] / 2)


def _asked(target: Target, rate: float, seconds: float) -> Row:
    row = openloop.run(target.port, rate=rate, seconds=seconds, features=FEATURES)
    target.drain()
    return row


# --- A rolling restart ---


class Away(NamedTuple):
    """A time without a stream, of one client."""

    since: float
    until: float


class Follower:
    """A client that opens its stream again when it ends, after the time that the gateway has named."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lost_at = time.monotonic()
        self.is_open = False
        self.away: list[Away] = []

    async def run(self) -> None:
        retry_seconds = 0.0
        while True:
            await asyncio.sleep(retry_seconds)
            retry_seconds = 1.0
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(REQUEST)
                    while line := await reader.readline():
                        if named := re.match(rb"retry: (\d+)", line):
                            retry_seconds = int(named[1]) / 1000
                        elif line.startswith(b"id: "):
                            self._opened()
                finally:
                    writer.close()
            self._ended()

    def _opened(self) -> None:
        if not self.is_open:
            self.is_open = True
            self.away.append(Away(self._lost_at, time.monotonic()))

    def _ended(self) -> None:
        if self.is_open:
            self.is_open = False
            self._lost_at = time.monotonic()


class Asking:
    """A client that asks for a flag again and again."""

    def __init__(self, port: int) -> None:
        self._client = Client(port, CONNECTIONS)
        self.requests = 0
        self.errors: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._ask())
                await asyncio.sleep(1 / REQUESTS_PER_SECOND)

    async def _ask(self) -> None:
        self.requests += 1
        if error := await self._client.ask(self.requests):
            self.errors.append(error)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def _restart(target: Target) -> list[Row]:
    followers, asking = [Follower(target.port) for _ in range(RESTARTED_STREAMS)], Asking(target.port)
    tasks = [asyncio.create_task(one.run()) for one in (*followers, asking)]
    try:
        await _until(lambda: all(follower.is_open for follower in followers))
        old = set(family_of(target.pid)[1:])
        signalled = time.monotonic()
        os.kill(target.pid, signal.SIGHUP)
        await _until(lambda: not old & set(family_of(target.pid)))
        await _until(lambda: all(follower.is_open for follower in followers))
        await asyncio.sleep(SETTLE_SECONDS)
        back = time.monotonic()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for error in asking.errors[:5]:
        say(f"  {error}")
    lost = [away for follower in followers for away in follower.away if away.since > signalled]
    say(f"  {len(lost)} streams were opened again, all within {back - signalled - SETTLE_SECONDS:.1f} s of the signal")
    longest = max(away.until - away.since for away in lost)
    return [
        {"name": f"restart with {RESTARTED_STREAMS:,} streams: streams opened again", "value": len(lost)},
        {"name": "longest time of a client without a stream, s", "value": longest, "limit": MOST_AWAY_SECONDS},
        {"name": "getFlag during the restart: requests", "value": asking.requests},
        {"name": "failed or rejected requests", "value": len(asking.errors), "limit": 0},
    ]


def restarted() -> list[Row]:
    say("  rolling restart")
    with gateway(SAMPLE, workers=2, cores=CORES, SHUTDOWN_SECONDS=30) as target:
        return asyncio.run(_restart(target))


def main() -> int:
    chosen = effort(__doc__)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    rows = [*measured(chosen), *restarted()]
    save(Result("streams", "Open streams", COLUMNS, rows, chart=""), chosen)
    exceeded = [row["name"] for row in rows if "limit" in row and row["value"] > row["limit"]]
    for name in exceeded:
        say(f"  exceeds its limit: {name}")
    return int(bool(exceeded))


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
