"""An open-loop load: requests leave at a fixed rate, whatever the server does, and latency counts from the moment
when a request was meant to leave. A server that stalls is therefore charged for all requests that had to wait.

    python benchmarks/openloop.py PORT --rate 10000 --seconds 30 [--features 100] [--connections 64]

Prints one line of JSON. A request that finds no free connection waits for one, and that counts too. `late` is how much
later than meant the requests left although a connection was free: what this generator, and whoever shares its core,
adds by itself.
"""

import argparse
import gc
import json
import select
import socket
import statistics
import time
from array import array
from collections import deque

from measure import Row

PAUSE_MS = 20.0
BUCKETS_PER_SECOND = 10


class Load:
    """One run. Single-threaded: waits until the next request is due or an answer is there, whichever comes first."""

    def __init__(self, port: int, rate: float, seconds: float, features: int, connections: int) -> None:
        self._interval = 1 / rate
        self._count = int(rate * seconds)
        self._features = features
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        self._by_number = {sock.fileno(): sock for sock in self._sockets}
        self._free = deque(self._by_number)
        self._asked: dict[int, float] = {}  # connection: when its request was meant to leave
        self._first_visitor = time.time_ns() // 1000 % 10**10 * 1000
        self._poll = select.epoll()
        for sock in self._sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(sock, select.EPOLLIN)
        self.errors = 0
        self.meant_at = array("d")
        self.latencies = array("d")
        self.late = array("d")

    def run(self) -> float:
        """Send everything, wait for all answers; returns when it started."""
        gc.collect()
        gc.disable()
        started = time.monotonic() + 0.05
        sent, free_at = 0, started
        while sent < self._count or self._asked:
            now = time.monotonic()
            while sent < self._count and self._free and (due := started + sent * self._interval) <= now:
                self.late.append(now - max(due, free_at))
                self._send(self._free.popleft(), sent, due)
                sent += 1
                now = time.monotonic()
            if self._receive(started + sent * self._interval if sent < self._count and self._free else None):
                free_at = time.monotonic()
            if now > started + self._count * self._interval + 30:
                self.errors += len(self._asked) + self._count - sent
                break
        return started

    def _send(self, number: int, sent: int, due: float) -> None:
        plan = "none" if sent % 2 else "gold"
        body = (
            f'{{"featureKey":"feature-{sent % self._features}","userId":"visitor-{self._first_visitor + sent}",'
            f'"customVariables":{{"plan":"{plan}","age":33}}}}'
        )
        head = f"POST /server-side/getFlag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        self._by_number[number].send((head + body).encode())
        self._asked[number] = due

    def _receive(self, until: float | None) -> bool:
        """Take the answers that are there, after waiting for one; not longer than `until`. True if there were any.

        epoll waits for whole milliseconds only, select for microseconds.
        """
        patience = 1.0 if until is None else max(0.0, until - time.monotonic())
        if not select.select([self._poll], [], [], patience)[0]:
            return False
        for number, _ in self._poll.poll(0):
            answer = self._by_number[number].recv(65536)
            now, due = time.monotonic(), self._asked.pop(number)
            self.meant_at.append(due)
            self.latencies.append(now - due)
            self.errors += b'"isEnabled":true' not in answer
            self._free.append(number)
        return True


def percentile(ordered: list[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def result(load: Load, started: float) -> Row:
    ordered = sorted(latency * 1000 for latency in load.latencies)
    late = sorted(value * 1000 for value in load.late)
    return {
        "requests": len(ordered),
        "started_at": started,
        "errors": load.errors,
        "mean_ms": statistics.fmean(ordered),
        **{key: percentile(ordered, percent) for key, percent in (("p50_ms", 50), ("p99_ms", 99), ("p999_ms", 99.9))},
        "max_ms": ordered[-1],
        "late_p99_ms": percentile(late, 99),
        "late_max_ms": late[-1],
        "pauses": pauses(load, started),
        "timeline": timeline(load, started),
    }


def pauses(load: Load, started: float) -> list[Row]:
    """Stretches in which requests waited more than 20 ms: when each began, and the longest wait in it."""
    slow = sorted((at, wait) for at, wait in zip(load.meant_at, load.latencies, strict=True) if wait * 1000 > PAUSE_MS)
    found: list[Row] = []
    last = -1.0
    for at, wait in slow:
        if at - last > PAUSE_MS / 1000:
            found.append({"second": at - started, "longest_ms": 0.0, "requests": 0})
        last = at
        found[-1]["longest_ms"] = max(found[-1]["longest_ms"], wait * 1000)
        found[-1]["requests"] += 1
    return found


def timeline(load: Load, started: float) -> list[tuple[float, float]]:
    """The longest wait of each tenth of a second."""
    slowest: dict[int, float] = {}
    for at, wait in zip(load.meant_at, load.latencies, strict=True):
        bucket = int((at - started) * BUCKETS_PER_SECOND)
        slowest[bucket] = max(slowest.get(bucket, 0.0), wait * 1000)
    return [(bucket / BUCKETS_PER_SECOND, round(wait, 3)) for bucket, wait in sorted(slowest.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    load = Load(options.port, options.rate, options.seconds, options.features, options.connections)
    print(json.dumps(result(load, load.run())))


if __name__ == "__main__":
    main()
