"""Counting in one worker: the hooks for the HTTP server, decisions, delivery, settings and upstream.

On the path of a request a counter is an int in a list; `publish` copies the list into shared memory. Latency is
measured for some requests and counted for all: see `Observer.sampled`.
"""

import asyncio
import math
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tornado_gateway.telemetry.counters import CounterRow, SharedCounters
from tornado_gateway.telemetry.layout import (
    CACHE_LOOKUPS,
    DECISIONS,
    FLUSH_REQUESTS,
    FLUSH_SECONDS,
    GAUGES,
    LAG_SECONDS,
    LOOKUPS,
    METHODS,
    OTHER,
    RESPONSES,
    SETTINGS_POLLS,
    STATUSES,
    STREAMS_CLOSED,
    SUM_UNIT,
    TRACKED_EXPOSURES,
    UPSTREAM_REQUESTS,
    USAGE_STATISTICS,
    Histogram,
)

SAMPLE_EVERY = 16  # requests, on average
BUSY_REQUESTS_PER_SECOND = 400  # below this rate every request is measured
BEAT_SECONDS = 0.1  # interval between measurements of the loop's lag
KNOWN_KEYS = 2048  # spellings of known routes that are cached
LONGEST_PATH = 256  # bytes of one
MAX_MEASURED = 10_000  # requests in flight whose start is remembered

R = TypeVar("R")


class ObservedRequest(Protocol):
    """The part of a request that is counted."""

    @property
    def method(self) -> bytes: ...
    @property
    def path(self) -> bytes: ...


Find = Callable[[bytes, bytes], Callable[[Any], R] | None]  # the handler of a method and a path


class Observer:
    """The counters of one worker. Its methods are hooks that other rooms call."""

    def __init__(self, memory: SharedCounters, row: int = 0, generation: int = 1) -> None:
        before = memory.read(row)
        self.counts: list[int] = before.counts if before else [0] * memory.layout.size
        self._memory = memory
        self._layout = memory.layout
        self._row = row
        self._generation = generation
        self._started: dict[ObservedRequest, tuple[float, int]] = {}
        self._index: dict[tuple[bytes, bytes, int], int] = {}
        self._find: Find[Any] = lambda method, path: None
        self._left = 1  # calls of `_find_sampled` until the next one that is measured
        self._weight = 1
        self._sampled = 0
        self._due = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._sources: dict[str, list[int]] = {}  # what each had counted at the last call
        self._inherited = self._totals()

    def start(self) -> None:
        """Start measuring the lag of the event loop."""
        self._expect_beat()

    def stop(self) -> None:
        if self._beat is not None:
            self._beat.cancel()

    def publish(self, gauges: Mapping[str, float | None]) -> None:
        """Copy all numbers into shared memory."""
        shown = {name: math.nan if (value := gauges.get(name)) is None else float(value) for name in GAUGES}
        self._memory.write(self._row, CounterRow(self._generation, shown, self.counts))

    # --- Requests ---

    def responded(self, request: ObservedRequest, status: int) -> None:
        """Count a response."""
        at = self._index.get((request.method, request.path, status))
        self.counts[self._find_index(request, status) if at is None else at] += 1
        if self._started and request in self._started:
            self._measure(request)

    def _find_index(self, request: ObservedRequest, status: int) -> int:
        method = request.method.decode("latin-1")
        route = self._layout.routes.label_of(request.path)
        shown = self._layout.requests.at(
            method if method in METHODS else OTHER, route, status if status in STATUSES else STATUSES[-1]
        )
        is_short = len(request.path) <= LONGEST_PATH  # a path can have the key of a flag, of any length
        if is_short and route != OTHER and method in METHODS:  # otherwise arbitrary paths would fill the cache
            if len(self._index) >= KNOWN_KEYS:
                self._index.clear()
            self._index[request.method, request.path, status] = shown
        return shown

    def sampled(self, find: Find[R]) -> Find[R]:
        """Return a `find` that measures the time from the call of a data route's handler to its response.

        The time includes the commit. Below BUSY_REQUESTS_PER_SECOND each request is measured, above it one of
        SAMPLE_EVERY, which then counts for that many. The gaps are random, because a client's requests may be periodic.
        """
        self._find = find
        return self._find_sampled

    def _find_sampled(self, method: bytes, path: bytes) -> Callable[[Any], Any] | None:
        self._left -= 1
        if self._left > 0:
            return self._find(method, path)
        weight = self._weight
        self._left = random.randrange(1, 2 * weight)
        handler = self._find(method, path)
        return None if handler is None else self._timed(handler, weight)

    def _timed(self, handler: Callable[[Any], R], weight: int) -> Callable[[Any], R]:
        self._sampled += 1
        started = self._started
        if len(started) >= MAX_MEASURED:
            started.clear()

        def timed(request: ObservedRequest) -> R:
            started[request] = time.perf_counter(), weight
            return handler(request)

        return timed

    def _measure(self, request: ObservedRequest) -> None:
        before, weight = self._started.pop(request)
        seconds = time.perf_counter() - before
        route = self._layout.routes.label_of(request.path)
        if route in self._layout.routes.data:
            self._observe(self._layout.request_seconds, route, seconds, weight)

    def totals(self) -> tuple[int, int]:
        """Return the number of responses of data routes from this process, and how many of them were to getFlag."""
        total, decisions = self._totals()
        return total - self._inherited[0], decisions - self._inherited[1]

    def _totals(self) -> tuple[int, int]:
        counts, statuses = self.counts, len(STATUSES)
        routes, requests = self._layout.routes, self._layout.requests
        decisions = requests.at("POST", routes.decisions, STATUSES[0])
        firsts = [requests.at(method, routes.data[0], STATUSES[0]) for method in METHODS]
        total = sum(sum(counts[first : first + len(routes.data) * statuses]) for first in firsts)
        return total, sum(counts[decisions : decisions + statuses])

    # --- Other hooks ---

    def exposures_tracked(self, result: str, number: int) -> None:
        """Count exposures that clients named: "recorded" or "unknown"."""
        self.counts[TRACKED_EXPOSURES.at(result)] += number

    def stream_closed(self, reason: str) -> None:
        """Count a stream of changes that has ended."""
        self.counts[STREAMS_CLOSED.at(reason)] += 1

    def unidentified(self, request: ObservedRequest) -> None:
        """Count a request that named no environment while there is no default one."""
        route = self._layout.routes.label_of(request.path)
        label = route if route in self._layout.routes.data else OTHER
        self.counts[self._layout.unidentified.at(label)] += 1

    def flushed(self, outcome: str, seconds: float) -> None:
        """Count a request that delivered events, or failed to."""
        self.counts[FLUSH_REQUESTS.at(outcome)] += 1
        self._observe(FLUSH_SECONDS, "", seconds)

    def usage_finished(self, result: str) -> None:
        """Count a usage statistics event that was delivered or dropped."""
        self.counts[USAGE_STATISTICS.at(result)] += 1

    def polled(self, outcome: str) -> None:
        """Count a settings poll."""
        self.counts[SETTINGS_POLLS.at(outcome)] += 1

    def upstream_responded(self, call: str, status: int) -> None:
        """Count a request to upstream; status 0 means no response."""
        response = f"{status // 100}xx"
        label = response if response in RESPONSES else "none"
        self.counts[UPSTREAM_REQUESTS.at(call.replace(" ", "_"), label)] += 1

    def count_lookups(self, name: str, hits: int, misses: int) -> None:
        """Add the lookups of a cache since the last call."""
        self._add_new(name, CACHE_LOOKUPS.at(name, LOOKUPS[0]), [hits, misses])

    def count_decisions(self, environment: str, decisions: Sequence[int]) -> None:
        """Add the decisions of an environment since the last call, by outcome."""
        self._add_new(f"decisions of {environment}", DECISIONS.start, list(decisions))

    def _add_new(self, source: str, first: int, numbers: list[int]) -> None:
        """Add what a source has counted since the last call; one that was replaced starts from zero again."""
        before = self._sources.get(source)
        if before is None or any(new < old for new, old in zip(numbers, before, strict=True)):
            before = [0] * len(numbers)
        for at, (new, old) in enumerate(zip(numbers, before, strict=True), first):
            self.counts[at] += new - old
        self._sources[source] = numbers

    def _observe(self, histogram: Histogram, value: str, seconds: float, weight: int = 1) -> None:
        start = histogram.at(value)
        self.counts[start + bisect_left(histogram.bounds, seconds)] += weight
        self.counts[start + histogram.width - 1] += int(max(0.0, seconds) * SUM_UNIT) * weight

    def _measure_lag(self) -> None:
        """Record how late the loop runs a timer: requests that arrive wait as long."""
        lag = max(0.0, time.monotonic() - self._due)
        self._observe(LAG_SECONDS, "", lag)
        requests_per_second = self._sampled * self._weight / (BEAT_SECONDS + lag)
        self._weight = SAMPLE_EVERY if requests_per_second > BUSY_REQUESTS_PER_SECOND else 1
        self._sampled = 0
        self._expect_beat()

    def _expect_beat(self) -> None:
        self._due = time.monotonic() + BEAT_SECONDS
        self._beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._measure_lag)
