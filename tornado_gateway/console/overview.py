"""The numbers of the overview: sampled once a second from the counts of /status, so they cover the whole instance."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tornado_gateway.errors import RequestError
from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.layout import REQUEST_BUCKETS
from tornado_gateway.telemetry.series import RINGS, Sample, Series

Status = Callable[[], Mapping[str, Any]]
Counts = Callable[[], Awaitable[Mapping[str, Any]]]  # those of /status
Json = dict[str, Any]

SAMPLE_SECONDS = 1.0
SHORTEST = "5m"
PUBLISH_SAMPLES = 10
COUNTS = ("received", "delivered", "rejected", "lost", "waiting", "dead")


def request_latencies(memory: SharedCounters) -> list[int]:
    """Return the number of requests of all workers in each of REQUEST_BUCKETS, and of longer ones."""
    rows = [row.counts for row in memory.read_all()]
    histogram = memory.layout.request_seconds
    starts = [histogram.at(route) for route in histogram.values]
    return [
        sum(counts[start + bucket] for counts in rows for start in starts) for bucket in range(len(REQUEST_BUCKETS) + 1)
    ]


class History:
    """Takes one sample per second for the series of the charts."""

    def __init__(self, counts: Counts, latencies: Callable[[], list[int]], series: Series | None = None) -> None:
        self._read_counts = counts
        self._latencies = latencies
        self._series = series or Series()
        self._samples = 0
        self._by_worker: dict[int, Mapping[str, int]] = {}
        self._totals = {"requests": 0, "decisions": 0}
        self._due: float | None = None
        self._timer = Periodic(self.sample, SAMPLE_SECONDS)

    def start(self) -> None:
        self._series.adopt()
        self._timer.start(at_once=True)

    def stop(self) -> None:
        self._timer.stop()

    async def sample(self) -> None:
        now = time.monotonic()
        lag_ms = max(0.0, (now - self._due) * 1000) if self._due is not None else 0.0
        self._due = now + SAMPLE_SECONDS if lag_ms > SAMPLE_SECONDS * 1000 or self._due is None else self._due + 1.0
        status = await self._read_counts()
        self._count_requests(status.get("workers") or ())
        events = _events_of_all(status)
        values = {**self._totals, **events, "lag_ms": round(lag_ms, 2)}
        self._series.add(Sample(time.time(), values, self._latencies()))
        self._samples += 1
        if self._samples % PUBLISH_SAMPLES == 0:
            self._series.publish()

    def series(self, name: str = SHORTEST) -> Json:
        """Return the columns of one of RINGS."""
        if name not in RINGS:
            raise RequestError(400, f"range: expected {', '.join(RINGS)}")
        return self._series.columns(name)

    def _count_requests(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Add the requests of all workers since the last sample. The counts of ended workers stay."""
        counts = {worker["pid"]: worker["requests"] for worker in workers if "requests" in worker}
        for pid, count in counts.items():
            before = self._by_worker.get(pid, {})
            self._totals["requests"] += count["total"] - before.get("total", 0)
            self._totals["decisions"] += count["decisions"] - before.get("decisions", 0)
        self._by_worker = counts


def _events_of_all(status: Mapping[str, Any]) -> Mapping[str, float | None]:
    """Return the counts of all environments together, as those of requests are. None: one of them is unknown."""
    counts = [one["events"] for one in status.get("environments", ())] or [status["events"]]
    return {
        name: None if any(one[name] is None for one in counts) else sum(one[name] for one in counts) for name in COUNTS
    }
