"""GET /metrics: the numbers of the whole instance as text for Prometheus. The only module that imports its client.

Events are shown from one reading of the scoreboard: in each scrape
received = delivered + waiting + dead + rejected + discarded + lost + unknown. NaN stands for unknown numbers.
"""

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tornado_gateway.telemetry.counters import CounterRow, SharedCounters
from tornado_gateway.telemetry.layout import (
    CACHE_LOOKUPS,
    DECISIONS,
    FLUSH_REQUESTS,
    FLUSH_SECONDS,
    LAG_SECONDS,
    SETTINGS_POLLS,
    SUM_UNIT,
    UPSTREAM_REQUESTS,
    USAGE_STATISTICS,
    Block,
    Histogram,
    Layout,
)
from tornado_gateway.telemetry.scoreboard import InstanceReading, Scoreboard, WorkerRecord
from tornado_gateway.telemetry.waiting import Merged


@dataclass(frozen=True, slots=True)
class About:
    """Facts about the gateway that do not change while it runs."""

    version: str
    queue_limit: int  # of each worker


class Exposition(Collector):
    """The metrics of the whole instance as text. `refresh` publishes this worker's newest numbers."""

    def __init__(
        self, memory: SharedCounters, scoreboard: Scoreboard, about: About, refresh: Callable[[], object]
    ) -> None:
        self._memory = memory
        self._scoreboard = scoreboard
        self._about = about
        self._refresh = refresh
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the body of GET /metrics and its content type: OpenMetrics for clients that accept it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        return ()  # otherwise the registry would collect once to learn the names

    def collect(self) -> Iterator[Metric]:
        self._refresh()
        reading, events = self._memory.steady(self._read)
        workers = reading.workers
        rows = self._memory.read_all()
        layout = self._memory.layout
        counts = [sum(column) for column in zip(*(row.counts for row in rows), strict=True)] or [0] * layout.size
        gauges = [row.gauges for worker in workers if (row := self._row(worker)) is not None]
        yield from _requests(layout, counts, workers)
        yield from _events(events, reading, self._about.queue_limit * len(workers))
        yield from _upstream(counts)
        yield from _settings(counts, reading.newest_settings)
        yield from _facts(counts, gauges)
        yield _slow_patterns(reading.slow_patterns)
        yield from _stores(gauges)
        yield from self._processes(counts, workers)

    def _read(self) -> tuple[InstanceReading, dict[str, int]]:
        reading = self._scoreboard.read_all()
        return reading, reading.events

    def _row(self, worker: WorkerRecord) -> CounterRow | None:
        row = self._memory.read(worker["row"])
        return row if row is not None and row.generation == worker["generation"] else None

    def _processes(self, counts: list[int], workers: list[WorkerRecord]) -> Iterator[Metric]:
        yield _gauge("fme_workers", "Running workers.", len(workers))
        yield _counter("fme_worker_restarts", "Workers that have ended or were replaced.", self._scoreboard.retirements)
        uptime = time.monotonic() - self._scoreboard.started_at
        yield _gauge("fme_uptime_seconds", "Time since the gateway started.", round(uptime, 3))
        yield _histogram("fme_loop_lag_seconds", "Delay of timers in the event loops.", LAG_SECONDS, counts)
        info = {"version": self._about.version, "python": platform.python_version()}
        yield _info("fme_build_info", "The running version; always 1.", info)


def _requests(layout: Layout, counts: list[int], workers: list[WorkerRecord]) -> Iterator[Metric]:
    yield _counters("fme_requests", "Completed requests.", ("method", "route", "status"), layout.requests, counts)
    yield _histogram(
        "fme_request_seconds",
        "Time from the call of a data route's handler to its response.",
        layout.request_seconds,
        counts,
        "route",
    )
    in_flight = sum(worker["in_flight"] for worker in workers)
    yield _gauge("fme_requests_in_flight", "Requests in flight.", in_flight)
    yield _gauge("fme_connections", "Open client connections.", sum(worker["connections"] for worker in workers))
    yield _counters("fme_decisions", "Decisions of getFlag.", ("outcome",), DECISIONS, counts, with_zeros=True)


def _events(events: dict[str, int], reading: InstanceReading, limit: int) -> Iterator[Metric]:
    waiting, is_known = reading.waiting, reading.last_known is None
    yield _counter("fme_events_received", "Events received, rejected ones included.", events["received"])
    yield _counter("fme_events_delivered", "Events that VWO has accepted.", events["delivered"])
    yield _counter("fme_events_rejected", "Events rejected without being stored.", events["rejected"])
    yield _counter("fme_events_discarded", "Events discarded: old dead letters, or no account.", events["discarded"])
    yield _counter("fme_events_lost", "Stored events that the store has lost.", events["lost"])
    shown = events if is_known else {"waiting": math.nan, "dead": math.nan}
    yield _gauge("fme_events_waiting", "Events waiting for delivery.", shown["waiting"])
    yield _gauge("fme_events_dead", "Events that VWO rejected permanently; they can be re-queued.", shown["dead"])
    yield _gauge(
        "fme_events_unknown", "Events in a store that cannot be read, or of other gateways.", events["unknown"]
    )
    yield _gauge("fme_events_oldest_seconds", "Age of the oldest waiting event.", _age(waiting))
    stuck = waiting.stuck["events"] if waiting.stuck is not None else 0
    yield _gauge("fme_events_stuck", "Events that wait although delivery reports no error.", stuck)
    yield _gauge("fme_events_queue_limit", "Waiting events beyond which new ones are rejected.", limit)


def _age(waiting: Merged) -> float:
    """Return the age of the oldest event; NaN if it has never been read."""
    if waiting.oldest_at is not None:
        return round(max(0.0, time.time() - waiting.oldest_at), 3)
    return 0.0 if waiting.unknown_since is None else math.nan


def _upstream(counts: list[int]) -> Iterator[Metric]:
    yield _counters(
        "fme_flush_requests",
        "Delivery requests to VWO.",
        ("outcome",),
        FLUSH_REQUESTS,
        counts,
        with_zeros=True,
    )
    yield _histogram("fme_flush_seconds", "Duration of delivery requests.", FLUSH_SECONDS, counts)
    yield _counters(
        "fme_usage_statistics",
        "Usage statistics of SDKs, which are not among the events.",
        ("result",),
        USAGE_STATISTICS,
        counts,
        with_zeros=True,
    )
    yield _counters(
        "fme_upstream_requests",
        "Requests to VWO.",
        ("call", "status"),
        UPSTREAM_REQUESTS,
        counts,
        with_zeros=True,
    )


def _settings(counts: list[int], newest: dict[str, Any] | None) -> Iterator[Metric]:
    yield _counters("fme_settings_polls", "Settings polls.", ("outcome",), SETTINGS_POLLS, counts, with_zeros=True)
    is_loaded = newest is not None and newest["hash"] is not None
    yield _gauge("fme_settings_loaded", "Whether settings are loaded.", float(is_loaded))
    if newest is None or not is_loaded:
        return
    if newest["age_seconds"] is not None:
        age = round(newest["age_seconds"], 3)
        yield _gauge("fme_settings_age_seconds", "Time since VWO confirmed the settings in use.", age)
    info = {name: str(newest[name]) for name in ("version", "hash", "source")}
    yield _info("fme_settings_info", "The settings in use; always 1.", info)


def _facts(counts: list[int], gauges: list[dict[str, float]]) -> Iterator[Metric]:
    yield _counters(
        "fme_lookups",
        "Lookups of addresses and user agents, by cache result.",
        ("of", "result"),
        CACHE_LOOKUPS,
        counts,
        with_zeros=True,
    )
    built = [row["geo_built_at"] for row in gauges if not math.isnan(row["geo_built_at"])]
    if built:
        age = round(time.time() - min(built))
        yield _gauge("fme_location_database_age_seconds", "Age of the location database.", age)


def _slow_patterns(counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily("fme_slow_patterns", "Regexes that exceeded their time limit.", labels=["feature"])
    for feature, count in {"other": 0, **counts}.items():
        family.add_metric([feature], count)
    return family


def _stores(gauges: list[dict[str, float]]) -> Iterator[Metric]:
    is_degraded = any(row["degraded"] == 1.0 for row in gauges)
    yield _gauge(
        "fme_store_degraded",
        "Whether a worker uses its fallback store, or cannot store events.",
        float(is_degraded),
    )
    redis = [row["redis_up"] for row in gauges if not math.isnan(row["redis_up"])]
    if redis:
        yield _gauge("fme_redis_up", "Whether every worker can use Redis.", min(redis))


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(name, description, value)


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(name, description, value)


def _info(name: str, description: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(name, description, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _counters(
    name: str,
    description: str,
    labels: Sequence[str],
    block: Block,
    counts: list[int],
    *,
    with_zeros: bool = False,
) -> Metric:
    family = CounterMetricFamily(name, description, labels=labels)
    for index in range(block.size):
        count = counts[block.start + index]
        if count or with_zeros:
            family.add_metric(block.values(index), count)
    return family


def _histogram(name: str, description: str, histogram: Histogram, counts: list[int], label: str = "") -> Metric:
    family = HistogramMetricFamily(name, description, labels=[label] if label else [])
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
            family.add_metric([value] if label else [], rows, total / SUM_UNIT)
    return family
