"""GET /metrics: the numbers of the whole instance as text for Prometheus. The only module that imports its client.

Events are shown from one reading of the scoreboard: in each scrape
received + elsewhere = delivered + waiting + dead + rejected + discarded + lost + unknown. NaN stands for unknown
numbers. With ENVIRONMENTS_FILE this holds for each environment, and these and some other metrics have the label
`environment`.
"""

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tornado_gateway.telemetry.counters import CounterRow, SharedCounters
from tornado_gateway.telemetry.judging.verdict import Problem, Verdict
from tornado_gateway.telemetry.layout import (
    CACHE_LOOKUPS,
    DECISIONS,
    FLUSH_REQUESTS,
    FLUSH_SECONDS,
    LAG_SECONDS,
    SETTINGS_POLLS,
    STREAMS_CLOSED,
    SUM_UNIT,
    TRACKED_EXPOSURES,
    UPSTREAM_REQUESTS,
    USAGE_STATISTICS,
    Block,
    Histogram,
    Layout,
)
from tornado_gateway.telemetry.problems import CONDITIONS
from tornado_gateway.telemetry.scoreboard import InstanceReading, PartReading, Scoreboard, WorkerRecord
from tornado_gateway.telemetry.waiting import Merged


@dataclass(frozen=True, slots=True)
class About:
    """Facts about the gateway that do not change while it runs."""

    version: str
    queue_limit: int  # of each worker


class ExperimentFigures(NamedTuple):
    """The numbers of one environment. The others are by feature, and empty without METRICS_BY_FEATURE."""

    mismatched: int
    decisions: Mapping[str, Mapping[str, int]]
    exposures: Mapping[str, int]


class Exposition(Collector):
    """The metrics of the whole instance as text. `refresh` publishes this worker's newest numbers.

    `experiments` returns those of the experiments by the name of the environment, "" without ENVIRONMENTS_FILE.
    """

    def __init__(
        self,
        memory: SharedCounters,
        scoreboard: Scoreboard,
        about: About,
        refresh: Callable[[], object],
        experiments: Callable[[], Mapping[str, ExperimentFigures]] = dict,
    ) -> None:
        self._memory = memory
        self._scoreboard = scoreboard
        self._about = about
        self._refresh = refresh
        self._experiments = experiments
        self._verdict = Verdict(scoreboard, memory)
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
        limit = self._about.queue_limit * len(workers)
        views = _views(reading, events) or [_view((), events[""], reading, limit)]
        yield from _requests(layout, counts, workers)
        yield from _unidentified(layout, counts)
        yield from _outcomes(counts, reading.environments)
        yield from _events(views)
        yield from _upstream(counts)
        yield from _settings(views)
        yield from _facts(counts, gauges)
        yield _slow_patterns(reading.slow_patterns)
        yield from _experiments(self._experiments())
        yield from _stores(gauges)
        yield _gauge("fme_streams", "Open streams of changes.", sum(row["streams"] for row in gauges))
        yield from self._processes(counts, workers)
        yield _problems(self._verdict.problems(reading))

    def _read(self) -> tuple[InstanceReading, dict[str, dict[str, int]]]:
        reading = self._scoreboard.read_all()
        parts = {name: part.events for name, part in reading.environments.items()}
        return reading, parts or {"": reading.events}

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
    yield _counters(
        "fme_streams_closed",
        "Streams of changes that have ended.",
        ("reason",),
        STREAMS_CLOSED,
        counts,
        with_zeros=True,
    )
    yield _counters(
        "fme_exposures", "Exposures of trackExposure.", ("result",), TRACKED_EXPOSURES, counts, with_zeros=True
    )


def _outcomes(counts: list[int], environments: Mapping[str, PartReading]) -> Iterator[Metric]:
    """Yield the counters that each environment has: from the counters, or from the parts of the environments."""
    for name, description, block, key in (
        ("fme_decisions", "Decisions.", DECISIONS, "decisions"),
        ("fme_flush_requests", "Delivery requests to VWO.", FLUSH_REQUESTS, "flushes"),
        ("fme_settings_polls", "Settings polls.", SETTINGS_POLLS, "polls"),
    ):
        if environments:
            yield _counters_of_each(name, description, "outcome", key, environments)
        else:
            yield _counters(name, description, ("outcome",), block, counts, with_zeros=True)
    if environments:
        description = "Requests that named an SDK key, current or previous."
        yield _counters_of_each("fme_sdk_key_requests", description, "key", "keys", environments)


def _counters_of_each(
    name: str, description: str, label: str, key: str, environments: Mapping[str, PartReading]
) -> Metric:
    family = CounterMetricFamily(name, description, labels=("environment", label))
    for environment, part in environments.items():
        for value, count in part.counts.get(key, {}).items():
            family.add_metric((environment, value), count)
    return family


def _unidentified(layout: Layout, counts: list[int]) -> Iterator[Metric]:
    family = _counters(
        "fme_unidentified", "Requests that named no environment.", ("route",), layout.unidentified, counts
    )
    if family.samples:  # only with ENVIRONMENTS_FILE
        yield family


class View(NamedTuple):
    """The events and the settings of one environment. `labels` has its name, or nothing without ENVIRONMENTS_FILE."""

    labels: tuple[str, ...]
    events: dict[str, int]
    waiting: Merged
    limit: int
    settings: dict[str, Any] | None
    is_known: bool  # the numbers of the queue can be read


def _views(reading: InstanceReading, events: dict[str, dict[str, int]]) -> list[View]:
    views = []
    for name, part in reading.environments.items():
        limit = sum(one["queue_limit"] for one in part.parts)
        views.append(_view((name,), events[name], part, limit))
    return views


def _view(labels: tuple[str, ...], events: dict[str, int], reading: InstanceReading | PartReading, limit: int) -> View:
    return View(labels, events, reading.waiting, limit, reading.newest_settings, reading.last_known is None)


EVENT_COUNTERS = {
    "received": "Events received, rejected ones included.",
    "delivered": "Events that VWO has accepted.",
    "rejected": "Events rejected without being stored.",
    "discarded": "Events discarded: old dead letters, no account, or INTERNAL_EVENTS.",
    "discarded_internal": "Events of SDKs about themselves, which are among the discarded ones (INTERNAL_EVENTS).",
    "lost": "Stored events that the store has lost.",
}


def _events(views: Sequence[View]) -> Iterator[Metric]:
    for key, description in EVENT_COUNTERS.items():
        yield _of_each(CounterMetricFamily, f"fme_events_{key}", description, views, partial(_count, key))
    gauge = partial(_of_each, GaugeMetricFamily)
    yield gauge("fme_events_waiting", "Events waiting for delivery.", views, partial(_stored, "waiting"))
    description = "Events that VWO rejected permanently; they can be requeued."
    yield gauge("fme_events_dead", description, views, partial(_stored, "dead"))
    description = "Events in a store that cannot be read, or delivered by other gateways."
    yield gauge("fme_events_unknown", description, views, partial(_count, "unknown"))
    description = "Events of these counts that other gateways have received."
    yield gauge("fme_events_elsewhere", description, views, partial(_count, "elsewhere"))
    yield gauge("fme_events_oldest_seconds", "Age of the oldest waiting event.", views, lambda view: _age(view.waiting))
    yield gauge("fme_events_stuck", "Events that wait although delivery reports no error.", views, _stuck)
    description = "Waiting events beyond which new ones are rejected."
    yield gauge("fme_events_queue_limit", description, views, lambda view: view.limit)


def _count(key: str, view: View) -> float:
    return view.events[key]


def _stored(key: str, view: View) -> float:
    return view.events[key] if view.is_known else math.nan


def _stuck(view: View) -> float:
    return 0 if view.waiting.stuck is None else float(view.waiting.stuck["events"])


def _age(waiting: Merged) -> float:
    """Return the age of the oldest event; NaN if it has never been read."""
    if waiting.oldest_at is not None:
        return round(max(0.0, time.time() - waiting.oldest_at), 3)
    return 0.0 if waiting.unknown_since is None else math.nan


def _upstream(counts: list[int]) -> Iterator[Metric]:
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


def _settings(views: Sequence[View]) -> Iterator[Metric]:
    yield _of_each(GaugeMetricFamily, "fme_settings_loaded", "Whether settings are loaded.", views, _is_loaded)
    loaded = [view for view in views if _is_loaded(view)]
    aged = [view for view in loaded if _settings_age(view) is not None]
    if aged:
        description = "Time since VWO confirmed the settings in use."
        yield _of_each(GaugeMetricFamily, "fme_settings_age_seconds", description, aged, _settings_age)
    if loaded:
        names = ("version", "hash", "source")
        labels = [*_labels(loaded), *names]
        family = GaugeMetricFamily("fme_settings_info", "The settings in use; always 1.", labels=labels)
        for view in loaded:
            family.add_metric([*view.labels, *(str((view.settings or {})[name]) for name in names)], 1)
        yield family
    description = "Whether a version of the settings is pinned."
    yield _of_each(GaugeMetricFamily, "fme_settings_pinned", description, views, _is_pinned)


def _is_pinned(view: View) -> float:
    return float((view.settings or {}).get("pin") is not None)


def _is_loaded(view: View) -> float:
    return float(view.settings is not None and view.settings["hash"] is not None)


def _settings_age(view: View) -> float | None:
    age = (view.settings or {}).get("age_seconds")
    return None if age is None else round(age, 3)


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


def _experiments(figures: Mapping[str, ExperimentFigures]) -> Iterator[Metric]:
    names = {name: (name,) if name else () for name in figures}
    own = ("environment",) if any(figures) else ()
    mismatched = GaugeMetricFamily(
        "fme_experiments_mismatched", "Experiments with a sample ratio mismatch.", labels=own
    )
    decisions = CounterMetricFamily("fme_feature_decisions", "Decisions.", labels=(*own, "feature", "outcome"))
    exposures = CounterMetricFamily("fme_feature_exposures", "Impressions.", labels=(*own, "feature"))
    for name, figure in figures.items():
        mismatched.add_metric(names[name], figure.mismatched)
        for feature, outcomes in figure.decisions.items():
            for outcome, count in outcomes.items():
                decisions.add_metric((*names[name], feature, outcome), count)
        for feature, count in figure.exposures.items():
            exposures.add_metric((*names[name], feature), count)
    yield mismatched
    yield from (family for family in (decisions, exposures) if family.samples)


def _problems(problems: Sequence[Problem]) -> Metric:
    """Return 1 or 0 for each condition. Problems of an environment of ENVIRONMENTS_FILE have its name."""
    found = {(problem["code"], problem["environment"] or "") for problem in problems}
    with_zeros = {**dict.fromkeys(((code, "") for code in CONDITIONS), 0), **dict.fromkeys(sorted(found), 1)}
    has_names = any(environment for _, environment in found)
    labels = ["code", "severity", *(["environment"] if has_names else [])]
    family = GaugeMetricFamily("fme_problem", "Whether a condition is a problem now.", labels=labels)
    for (code, environment), value in with_zeros.items():
        family.add_metric([code, CONDITIONS[code].severity, *([environment] if has_names else [])], value)
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


def _labels(views: Sequence[View]) -> list[str]:
    return ["environment"] if any(view.labels for view in views) else []


def _of_each(
    family_of: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    description: str,
    views: Sequence[View],
    value: Callable[[View], float | None],
) -> Metric:
    family = family_of(name, description, labels=_labels(views))
    for view in views:
        family.add_metric(view.labels, value(view) or 0)
    return family


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
