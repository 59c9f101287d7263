"""The numbers of the overview: sampled once a second from /status, so they cover the whole instance."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.layout import REQUEST_BUCKETS

Status = Callable[[], Mapping[str, Any]]
Json = dict[str, Any]

SAMPLE_SECONDS = 1.0
SAMPLES = 300

RATES = ("requests", "decisions", "received", "delivered", "rejected", "lost")
GAUGES = ("waiting", "dead", "lag_ms")
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99}  # of the latency in each second


def request_latencies(memory: SharedCounters) -> list[int]:
    """Return the number of requests of all workers in each of REQUEST_BUCKETS, and of longer ones."""
    rows = [row.counts for row in memory.read_all()]
    histogram = memory.layout.request_seconds
    starts = [histogram.at(route) for route in histogram.values]
    return [
        sum(counts[start + bucket] for counts in rows for start in starts) for bucket in range(len(REQUEST_BUCKETS) + 1)
    ]


def quantile_ms(counts: Sequence[int], quantile: float) -> float | None:
    """Return a quantile of the counts in REQUEST_BUCKETS, interpolated within a bucket; None without requests."""
    rank = quantile * sum(counts)
    if not rank:
        return None
    lower = 0.0
    for count, upper in zip(counts, REQUEST_BUCKETS, strict=False):
        if rank <= count:
            return round((lower + (upper - lower) * rank / count) * 1000, 3)
        rank -= count
        lower = upper
    return REQUEST_BUCKETS[-1] * 1000


@dataclass(slots=True)
class Sample:
    """The counters at one moment; None: unknown."""

    at: float
    values: dict[str, float | None]
    latencies: list[int]


class History:
    """A ring of one sample per second, and the rates between them."""

    def __init__(self, status: Status, latencies: Callable[[], list[int]]) -> None:
        self._status = status
        self._latencies = latencies
        self._ring: deque[Sample] = deque(maxlen=SAMPLES + 1)
        self._by_worker: dict[int, Mapping[str, int]] = {}
        self._totals = {"requests": 0, "decisions": 0}
        self._due: float | None = None
        self._timer = Periodic(self.sample, SAMPLE_SECONDS)

    def start(self) -> None:
        self.sample()
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def sample(self) -> None:
        status = self._status()
        now = time.monotonic()
        lag_ms = max(0.0, (now - self._due) * 1000) if self._due is not None else 0.0
        self._due = now + SAMPLE_SECONDS if lag_ms > SAMPLE_SECONDS * 1000 or self._due is None else self._due + 1.0
        self._count_requests(status.get("workers") or ())
        events = status["events"]
        counted = {name: events[name] for name in ("received", "delivered", "rejected", "lost", "waiting", "dead")}
        values = {**self._totals, **counted, "lag_ms": round(lag_ms, 2)}
        self._ring.append(Sample(time.time(), values, self._latencies()))

    def series(self) -> Json:
        """Return columns: the end of each second, the rates and latencies in it, and the gauges at its end."""
        samples = list(self._ring)
        pairs = list(pairwise(samples))
        return {
            "interval_seconds": SAMPLE_SECONDS,
            "at": [round(later.at, 3) for _, later in pairs],
            **{name: [_rate(name, *pair) for pair in pairs] for name in RATES},
            **{name: [later.values[name] for _, later in pairs] for name in GAUGES},
            **{name: [_latency(quantile, *pair) for pair in pairs] for name, quantile in QUANTILES.items()},
        }

    def _count_requests(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Add the requests of all workers since the last sample. The counts of ended workers stay."""
        counts = {worker["pid"]: worker["requests"] for worker in workers if "requests" in worker}
        for pid, count in counts.items():
            before = self._by_worker.get(pid, {})
            self._totals["requests"] += count["total"] - before.get("total", 0)
            self._totals["decisions"] += count["decisions"] - before.get("decisions", 0)
        self._by_worker = counts


def _latency(quantile: float, before: Sample, after: Sample) -> float | None:
    counts = [max(0, late - early) for early, late in zip(before.latencies, after.latencies, strict=True)]
    return quantile_ms(counts, quantile)


def _rate(name: str, before: Sample, after: Sample) -> float:
    seconds = max(after.at - before.at, 0.001)
    return round(max(0.0, (after.values[name] or 0) - (before.values[name] or 0)) / seconds, 2)
