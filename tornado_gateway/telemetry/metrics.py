"""The numbers behind GET /metrics: counted by every worker, shown by any of them.

- On the way of a request a counter is an int in a list. A timer copies the list into shared memory, where each place
  of the scoreboard has a row. A later process in a place goes on from what its predecessor has left there, so that no
  counter ever goes backwards, whatever becomes of a worker: at most its last moment is missing.
- What is counted is fixed beforehand (`ROUTES`, `STATUSES`, ...), so the rows have one size, and what clients send
  cannot make new series: unknown paths, methods and statuses are all "other".
- Events are shown from one reading of the scoreboard: in each scrape
  received = delivered + waiting + dead + rejected + discarded.
- Latency is measured for some requests and counted for all: see `Metrics.sampled`.
"""

import array
import asyncio
import fcntl
import math
import mmap
import os
import platform
import random
import re
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tornado_gateway import core
from tornado_gateway.http.messages import Handler, Request
from tornado_gateway.telemetry.scoreboard import Reading, Record, Scoreboard
from tornado_gateway.telemetry.waiting import Merged

T = TypeVar("T")
Find = Callable[[bytes, bytes], Handler | None]

OTHER = "other"
METHODS = ("GET", "POST", "HEAD", "OPTIONS", OTHER)
DATA_ROUTES = (
    "/server-side/getFlag",
    "/server-side/trackEvent",
    "/server-side/setAttribute",
    "/server-side/v2-settings",
    "/server-side/v2-pull",
    "/get-user-details",
    "/check-attribute",
    "/events/t",
    "/server-side/batch-events-v2",
    "/user-alias/setUserAlias",
    "/user-alias/getAliasUserId",
    "/evaluate-event-dsl",
    "/webhook",
    "/getLocation",
    "/server-side/ua-parser",
    "/attributes/check",
    "/getUserData",
)
PAGES = ("/health", "/ready", "/status", "/metrics", "/console", "/docs", "/openapi.json", "/admin", "/web")
ROUTES = (*DATA_ROUTES, *PAGES, OTHER)
STATUSES = (200, 204, 304, 400, 401, 403, 404, 405, 408, 413, 415, 417, 431, 500, 501, 503, 505, OTHER)
OUTCOMES = ("enabled", "disabled", "not_found", "error")  # of decisions
FLUSHES = ("delivered", "refused", "failed")
POLLS = ("changed", "unchanged", "failed")
CALLS = ("settings", "events", "event", "list_check", "event_segments")  # what upstream is asked for
ANSWERS = ("2xx", "3xx", "4xx", "5xx", "none")
CACHES = ("location", "device")
LOOKUPS = ("hit", "miss")

REQUEST_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FLUSH_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
GAUGES = ("geo_built_at", "degraded", "redis_up")  # of a worker; NaN: does not apply

SAMPLE_EVERY = 16  # requests, on the average
BUSY_REQUESTS_PER_SECOND = 400  # below that every request is measured
BEAT_SECONDS = 0.1  # how often the lag of the loop is measured
KNOWN_KEYS = 2048  # spellings of known routes that are remembered
LONGEST_MEASURED = 10_000  # requests under way at the same time whose beginning is remembered

_WORD_BYTES = 8
_HEADER_WORDS = 2  # the received events that were shown last, and those missing, see `Memory.steady`
_SLASHES = re.compile(r"//+")
_UNIT = 1_000_000_000  # sums of seconds are kept in whole nanoseconds


class _Block(NamedTuple):
    """Where the counters of a metric are: one for each combination of its labels' values."""

    start: int
    labels: tuple[tuple[object, ...], ...]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.labels))

    def at(self, *values: object) -> int:
        place = 0
        for known, value in zip(self.labels, values, strict=True):
            place = place * len(known) + known.index(value)
        return self.start + place


class _Histogram(NamedTuple):
    """Where a histogram is: for each value of its label so many buckets, one for what is above, and the sum."""

    start: int
    values: tuple[str, ...]
    bounds: tuple[float, ...]

    @property
    def width(self) -> int:
        return len(self.bounds) + 2

    @property
    def size(self) -> int:
        return len(self.values) * self.width

    def at(self, value: str) -> int:
        return self.start + self.values.index(value) * self.width


class _Layout:
    def __init__(self) -> None:
        self.size = 0

    def block(self, *labels: Sequence[object]) -> _Block:
        block = _Block(self.size, tuple(map(tuple, labels)))
        self.size += block.size
        return block

    def histogram(self, values: Sequence[str], bounds: tuple[float, ...]) -> _Histogram:
        histogram = _Histogram(self.size, tuple(values), bounds)
        self.size += histogram.size
        return histogram


_LAYOUT = _Layout()
REQUESTS = _LAYOUT.block(METHODS, ROUTES, STATUSES)
DECISIONS = _LAYOUT.block(OUTCOMES)
FLUSH_REQUESTS = _LAYOUT.block(FLUSHES)
SETTINGS_POLLS = _LAYOUT.block(POLLS)
UPSTREAM_REQUESTS = _LAYOUT.block(CALLS, ANSWERS)
CACHE_LOOKUPS = _LAYOUT.block(CACHES, LOOKUPS)
REQUEST_SECONDS = _LAYOUT.histogram(DATA_ROUTES, REQUEST_BUCKETS)
FLUSH_SECONDS = _LAYOUT.histogram(("",), FLUSH_BUCKETS)
LAG_SECONDS = _LAYOUT.histogram(("",), LAG_BUCKETS)


_ENABLED, _DISABLED = DECISIONS.at("enabled"), DECISIONS.at("disabled")
_OUTCOME_OF_REASON = {"feature not found": DECISIONS.at("not_found"), "error": DECISIONS.at("error")}


# --- shared memory -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """What the process `generation` published last: its gauges, and the counts of its place."""

    generation: int
    gauges: dict[str, float]
    counts: list[int]


class Memory:
    """A row for each place of the scoreboard, written by the process that owns the place. Make it before forking."""

    def __init__(self, places: int = 1) -> None:
        self.places = places
        half = 1 + len(GAUGES) + _LAYOUT.size
        self._half_words = half
        self._row_words = 1 + 2 * half
        size = (_HEADER_WORDS + places * self._row_words) * _WORD_BYTES
        self._file = _anonymous_file()  # a file, because a lock of a file ends with the process that holds it
        os.ftruncate(self._file, size)
        memory = memoryview(mmap.mmap(self._file, size))
        self._words = memory.cast("Q")
        self._numbers = memory.cast("d")

    # A row has two halves, written in turn, and the number before them says how many have been completed. So neither a
    # reader nor a later process in this place ever gets half of what a writer that died was about to write.

    def write(self, place: int, row: Row) -> None:
        start = self._start(place)
        number = self._words[start] + 1
        half = start + 1 + number % 2 * self._half_words
        self._words[half] = row.generation
        gauges = half + 1 + len(GAUGES)
        self._numbers[half + 1 : gauges] = array.array("d", [row.gauges[name] for name in GAUGES])
        self._words[gauges : gauges + _LAYOUT.size] = array.array("Q", row.counts)
        self._words[start] = number

    def read(self, place: int) -> Row | None:
        start = self._start(place)
        while number := self._words[start]:
            half = start + 1 + number % 2 * self._half_words
            generation = self._words[half]
            gauges = half + 1 + len(GAUGES)
            values = self._numbers[half + 1 : gauges].tolist()
            counts = self._words[gauges : gauges + _LAYOUT.size].tolist()
            if self._words[start] == number:
                return Row(generation, dict(zip(GAUGES, values, strict=True)), counts)
        return None

    def steady(self, read: Callable[[], tuple[T, dict[str, int]]]) -> tuple[T, dict[str, int]]:
        """Event counts that do not go backwards, whichever workers show them one after the other.

        On the scoreboard they do when a worker is killed: what it had delivered in its last moment is missing among
        received and delivered alike. What has been shown already is added to both again, and stays added.
        """
        with self._locked():
            context, counts = read()
            shown, missing = self._words[0], self._words[1]
            missing += max(0, shown - missing - counts["received"])
            received = counts["received"] + missing
            self._words[0], self._words[1] = received, missing
        return context, {**counts, "received": received, "delivered": counts["delivered"] + missing}

    def _start(self, place: int) -> int:
        return _HEADER_WORDS + place * self._row_words

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# --- counting ----------------------------------------------------------------


class Metrics:
    """What one worker counts. The hooks are for `http`, `events`, `settings` and `upstream`."""

    def __init__(self, memory: Memory, place: int = 0, generation: int = 1) -> None:
        before = memory.read(place)
        self.counts: list[int] = before.counts if before else [0] * _LAYOUT.size
        self._memory = memory
        self._place = place
        self._generation = generation
        self._started: dict[Request, tuple[float, int]] = {}
        self._index: dict[tuple[bytes, bytes, int], int] = {}
        self._weight = 1
        self._sampled = 0
        self._due = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._caches = dict.fromkeys(CACHES, (0, 0))
        self._inherited = self._totals()
        self.answered = self._answered()

    def start(self) -> None:
        """Measure the loop."""
        self._expect_beat()

    def stop(self) -> None:
        if self._beat is not None:
            self._beat.cancel()

    def publish(self, gauges: Mapping[str, float | None]) -> None:
        shown = {name: math.nan if (value := gauges.get(name)) is None else float(value) for name in GAUGES}
        self._memory.write(self._place, Row(self._generation, shown, self.counts))

    # Requests

    def _answered(self) -> Callable[[Request, int], None]:
        """The `on_answer` hook. A closure: for each request of each client, names are looked up the cheapest way."""
        counts, index, started = self.counts, self._index, self._started

        def answered(request: Request, status: int) -> None:
            try:
                counts[index[request.method, request.path, status]] += 1
            except KeyError:
                counts[self._find_index(request, status)] += 1
            if started and request in started:
                self._measure(request)

        return answered

    def _find_index(self, request: Request, status: int) -> int:
        method = request.method.decode("latin-1")
        route = route_of(request.path)
        shown = REQUESTS.at(
            method if method in METHODS else OTHER, route, status if status in STATUSES else STATUSES[-1]
        )
        if route != OTHER and method in METHODS:  # else clients could fill the memory with their inventions
            if len(self._index) >= KNOWN_KEYS:
                self._index.clear()
            self._index[request.method, request.path, status] = shown
        return shown

    def sampled(self, find: Find) -> Find:
        """A `find` that measures the time from the call of a data route's handler to its answer, commit included.

        Below BUSY_REQUESTS_PER_SECOND each request is measured, above one of SAMPLE_EVERY, which then counts as so
        many. The gaps are random, because the requests of a client may have a rhythm of their own.
        """
        left = 1

        def sample(method: bytes, path: bytes) -> Handler | None:
            nonlocal left
            left -= 1
            if left > 0:
                return find(method, path)
            weight = self._weight
            left = random.randrange(1, 2 * weight)
            handler = find(method, path)
            return None if handler is None else self._timed(handler, weight)

        return sample

    def _timed(self, handler: Handler, weight: int) -> Handler:
        self._sampled += 1
        started = self._started
        if len(started) >= LONGEST_MEASURED:
            started.clear()

        def timed(request: Request) -> Any:
            started[request] = time.perf_counter(), weight
            return handler(request)

        return timed

    def _measure(self, request: Request) -> None:
        before, weight = self._started.pop(request)
        seconds = time.perf_counter() - before
        route = route_of(request.path)
        if route in DATA_ROUTES:
            self._observe(REQUEST_SECONDS, route, seconds, weight)

    def totals(self) -> tuple[int, int]:
        """How many requests of data routes this process has answered, and how many of them were getFlag."""
        total, decisions = self._totals()
        return total - self._inherited[0], decisions - self._inherited[1]

    def _totals(self) -> tuple[int, int]:
        counts, statuses = self.counts, len(STATUSES)
        decisions = REQUESTS.at("POST", DATA_ROUTES[0], STATUSES[0])
        firsts = [REQUESTS.at(method, DATA_ROUTES[0], STATUSES[0]) for method in METHODS]
        total = sum(sum(counts[first : first + len(DATA_ROUTES) * statuses]) for first in firsts)
        return total, sum(counts[decisions : decisions + statuses])

    # The rest

    def decided(self, decision: core.Decision) -> None:
        outcome = _ENABLED if decision.variation is not None else _OUTCOME_OF_REASON.get(decision.reason, _DISABLED)
        self.counts[outcome] += 1

    def flushed(self, outcome: str, seconds: float) -> None:
        """`Flusher.on_request`: one request with events."""
        self.counts[FLUSH_REQUESTS.at(outcome)] += 1
        self._observe(FLUSH_SECONDS, "", seconds)

    def polled(self, outcome: str) -> None:
        """`SettingsMirror.on_poll`."""
        self.counts[SETTINGS_POLLS.at(outcome)] += 1

    def asked_upstream(self, what: str, status: int) -> None:
        """`Upstream.on_answer`; status 0 is no answer."""
        answer = f"{status // 100}xx"
        call = what.replace(" ", "_")
        self.counts[UPSTREAM_REQUESTS.at(call, answer if answer in ANSWERS else "none")] += 1

    def count_lookups(self, name: str, hits: int, misses: int) -> None:
        """Take over what a cache has counted; one that begins anew does so from zero."""
        before_hits, before_misses = self._caches[name]
        if hits < before_hits or misses < before_misses:
            before_hits = before_misses = 0
        self.counts[CACHE_LOOKUPS.at(name, "hit")] += hits - before_hits
        self.counts[CACHE_LOOKUPS.at(name, "miss")] += misses - before_misses
        self._caches[name] = hits, misses

    def _observe(self, histogram: _Histogram, value: str, seconds: float, weight: int = 1) -> None:
        start = histogram.at(value)
        self.counts[start + bisect_left(histogram.bounds, seconds)] += weight
        self.counts[start + histogram.width - 1] += int(max(0.0, seconds) * _UNIT) * weight

    def _measure_lag(self) -> None:
        """How late the loop calls what is due: as late as it begins with what a client sends."""
        lag = max(0.0, time.monotonic() - self._due)
        self._observe(LAG_SECONDS, "", lag)
        requests_per_second = self._sampled * self._weight / (BEAT_SECONDS + lag)
        self._weight = SAMPLE_EVERY if requests_per_second > BUSY_REQUESTS_PER_SECOND else 1
        self._sampled = 0
        self._expect_beat()

    def _expect_beat(self) -> None:
        self._due = time.monotonic() + BEAT_SECONDS
        self._beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._measure_lag)


def route_of(path: bytes) -> str:
    """The label of a path. Clients may double slashes and put the account's prefix in front (wire contract 0.8)."""
    text = _SLASHES.sub("/", path.decode("latin-1"))
    if text in ROUTES:
        return text
    first, _, rest = text[1:].partition("/")
    if f"/{rest}" in DATA_ROUTES:
        return f"/{rest}"
    return f"/{first}" if f"/{first}" in ("/admin", "/web") else OTHER


# --- showing -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while a gateway runs."""

    version: str
    queue_limit: int  # of each worker


class Exposition(Collector):
    """The whole instance's metrics as text. `refresh` publishes this worker's newest numbers."""

    def __init__(self, memory: Memory, scoreboard: Scoreboard, about: About, refresh: Callable[[], object]) -> None:
        self._memory = memory
        self._scoreboard = scoreboard
        self._about = about
        self._refresh = refresh
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of GET /metrics and its content type: OpenMetrics for who asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        return ()  # otherwise the registry would collect once to see what there is

    def collect(self) -> Iterator[Metric]:
        self._refresh()
        reading, events = self._memory.steady(self._read)
        workers = reading.workers
        rows = [row for place in range(self._memory.places) if (row := self._memory.read(place)) is not None]
        counts = [sum(column) for column in zip(*(row.counts for row in rows), strict=True)] or [0] * _LAYOUT.size
        gauges = [row.gauges for worker in workers if (row := self._row(worker)) is not None]
        yield from _requests(counts, workers)
        yield from _events(events, reading.waiting, self._about.queue_limit * len(workers))
        yield from _upstream(counts)
        yield from _settings(counts, workers)
        yield from _facts(counts, gauges)
        yield from _stores(gauges)
        yield from self._processes(counts, workers)

    def _read(self) -> tuple[Reading, dict[str, int]]:
        reading = self._scoreboard.read_all()
        return reading, reading.events

    def _row(self, worker: Record) -> Row | None:
        row = self._memory.read(worker["place"])
        return row if row is not None and row.generation == worker["generation"] else None

    def _processes(self, counts: list[int], workers: list[Record]) -> Iterator[Metric]:
        yield _gauge("fme_workers", "Workers that run.", len(workers))
        yield _counter(
            "fme_worker_restarts", "Workers that have ended, killed or replaced.", self._scoreboard.retirements
        )
        uptime = time.monotonic() - self._scoreboard.started_at
        yield _gauge("fme_uptime_seconds", "How long the gateway has been running.", round(uptime, 3))
        yield _histogram("fme_loop_lag_seconds", "How late the event loops are.", LAG_SECONDS, counts)
        info = {"version": self._about.version, "python": platform.python_version()}
        yield _info("fme_build_info", "What runs here; always 1.", info)


def _requests(counts: list[int], workers: list[Record]) -> Iterator[Metric]:
    yield _counters(
        "fme_requests", "Requests that have been answered.", ("method", "route", "status"), REQUESTS, counts
    )
    yield _histogram(
        "fme_request_seconds", "From the call of a data route to its answer.", REQUEST_SECONDS, counts, "route"
    )
    in_flight = sum(worker["in_flight"] for worker in workers)
    yield _gauge("fme_requests_in_flight", "Requests that have been received and not been answered yet.", in_flight)
    yield _gauge("fme_connections", "Clients that are connected.", sum(worker["connections"] for worker in workers))
    yield _counters("fme_decisions", "Decisions of getFlag.", ("outcome",), DECISIONS, counts, with_zeros=True)


def _events(events: dict[str, int], waiting: Merged, limit: int) -> Iterator[Metric]:
    yield _counter("fme_events_received", "Events that have been taken, or refused.", events["received"])
    yield _counter("fme_events_delivered", "Events that upstream has taken.", events["delivered"])
    yield _counter("fme_events_rejected", "Events that were never stored.", events["rejected"])
    yield _counter("fme_events_discarded", "Dead letters beyond DEAD_LETTER_LIMIT.", events["discarded"])
    yield _gauge("fme_events_waiting", "Events that wait for upstream.", events["waiting"])
    yield _gauge("fme_events_dead", "Events that upstream refused for good; they can be re-queued.", events["dead"])
    yield _gauge("fme_events_oldest_seconds", "How long the oldest waiting event has been waiting.", _age(waiting))
    stuck = waiting.stuck["events"] if waiting.stuck is not None else 0
    yield _gauge("fme_events_stuck", "Events that wait although delivery reports no error.", stuck)
    yield _gauge("fme_events_queue_limit", "Events that may wait before new ones are refused.", limit)


def _age(waiting: Merged) -> float:
    """Of the oldest event; NaN if it has never been read."""
    if waiting.oldest_at is not None:
        return round(max(0.0, time.time() - waiting.oldest_at), 3)
    return 0.0 if waiting.unknown_since is None else math.nan


def _upstream(counts: list[int]) -> Iterator[Metric]:
    yield _counters(
        "fme_flush_requests",
        "Requests with events to upstream.",
        ("outcome",),
        FLUSH_REQUESTS,
        counts,
        with_zeros=True,
    )
    yield _histogram("fme_flush_seconds", "How long such a request took.", FLUSH_SECONDS, counts)
    yield _counters(
        "fme_upstream_requests",
        "Requests to upstream.",
        ("call", "status"),
        UPSTREAM_REQUESTS,
        counts,
        with_zeros=True,
    )


def _settings(counts: list[int], workers: list[Record]) -> Iterator[Metric]:
    yield _counters(
        "fme_settings_polls", "Attempts to get settings.", ("outcome",), SETTINGS_POLLS, counts, with_zeros=True
    )
    newest = max(
        (worker["settings"] for worker in workers),
        key=lambda s: (s["stored_version"] or 0, -(s["age_seconds"] or 0.0)),
        default=None,
    )
    is_loaded = newest is not None and newest["hash"] is not None
    yield _gauge("fme_settings_loaded", "Whether there are settings to decide with.", float(is_loaded))
    if newest is None or not is_loaded:
        return
    if newest["age_seconds"] is not None:
        age = round(newest["age_seconds"], 3)
        yield _gauge("fme_settings_age_seconds", "How long ago upstream confirmed the settings in use.", age)
    info = {name: str(newest[name]) for name in ("version", "hash", "source")}
    yield _info("fme_settings_info", "The settings in use; always 1.", info)


def _facts(counts: list[int], gauges: list[dict[str, float]]) -> Iterator[Metric]:
    yield _counters(
        "fme_lookups",
        "Lookups of addresses and user agents, by what the memory of recent ones knew.",
        ("of", "result"),
        CACHE_LOOKUPS,
        counts,
        with_zeros=True,
    )
    built = [row["geo_built_at"] for row in gauges if not math.isnan(row["geo_built_at"])]
    if built:
        age = round(time.time() - min(built))
        yield _gauge("fme_location_database_age_seconds", "How old the location database is.", age)


def _stores(gauges: list[dict[str, float]]) -> Iterator[Metric]:
    is_degraded = any(row["degraded"] == 1.0 for row in gauges)
    yield _gauge("fme_store_degraded", "Whether a worker cannot keep events where it should.", float(is_degraded))
    redis = [row["redis_up"] for row in gauges if not math.isnan(row["redis_up"])]
    if redis:
        yield _gauge("fme_redis_up", "Whether every worker can use Redis.", min(redis))


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value)


def _info(name: str, words: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _counters(
    name: str,
    words: str,
    labels: Sequence[str],
    block: _Block,
    counts: list[int],
    *,
    with_zeros: bool = False,
) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for place in range(block.size):
        count = counts[block.start + place]
        if count or with_zeros:
            family.add_metric(_values(block, place), count)
    return family


def _values(block: _Block, place: int) -> list[str]:
    """The label values of a place: `_Block.at` the other way round."""
    values: list[str] = []
    for known in reversed(block.labels):
        place, at = divmod(place, len(known))
        values.append(str(known[at]))
    return values[::-1]


def _histogram(name: str, words: str, histogram: _Histogram, counts: list[int], label: str = "") -> Metric:
    family = HistogramMetricFamily(name, words, labels=[label] if label else [])
    for value in histogram.values:
        start = histogram.at(value)
        *buckets, above, total = counts[start : start + histogram.width]
        seen = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip(histogram.bounds, buckets, strict=True):
            seen += count
            rows.append((str(bound), seen))
        rows.append(("+Inf", seen + above))
        if seen + above or not label:
            family.add_metric([value] if label else [], rows, total / _UNIT)
    return family
