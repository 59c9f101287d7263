"""The series behind the charts: three rings of rows, for 5 minutes, 1 hour and 24 hours.

Each worker samples the same numbers, those of the whole instance. It publishes its long rings, so that a worker that
replaces it continues them. All rings of a worker take 95 KB, and its published copy 75 KB.
"""

import math
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tornado_gateway.telemetry.layout import REQUEST_BUCKETS
from tornado_gateway.telemetry.slots import Slots

RATES = ("requests", "decisions", "received", "delivered", "rejected", "lost")
GAUGES = ("waiting", "dead", "lag_ms")
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99}  # of the latency in each interval
COLUMNS = (*RATES, *GAUGES, *QUANTILES)
RINGS = {"5m": (1, 300), "1h": (10, 360), "24h": (240, 360)}  # samples of a row, and rows
PUBLISHED = ("1h", "24h")

_ROW = struct.Struct(f"=d{len(COLUMNS)}f")  # the end of the interval, and the columns; NaN: unknown
_HEAD = struct.Struct("=2I")  # the rows of each ring in PUBLISHED
SHARED_BYTES = _HEAD.size + sum(RINGS[name][1] for name in PUBLISHED) * _ROW.size


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment; None: unknown."""

    at: float
    values: Mapping[str, float | None]
    latencies: Sequence[int]


class Ring:
    """The last `rows` rows, each from `every` samples: rates and quantiles between two samples, the highest gauges."""

    def __init__(self, every: int, rows: int) -> None:
        self.rows: deque[bytes] = deque(maxlen=rows)
        self._every = every
        self._first: Sample | None = None
        self._gauges: list[Sample] = []

    def add(self, sample: Sample) -> None:
        if self._first is None:
            self._first = sample
            return
        self._gauges.append(sample)
        if len(self._gauges) == self._every:
            self.rows.append(_row(self._first, self._gauges))
            self._first = sample
            self._gauges.clear()

    def series(self) -> dict[str, list[float | None]]:
        """Return columns: the end of each interval, and its numbers."""
        rows = [_ROW.unpack(row) for row in self.rows]
        columns: dict[str, list[float | None]] = {"at": [round(row[0], 3) for row in rows]}
        for index, name in enumerate(COLUMNS, 1):
            columns[name] = [None if math.isnan(row[index]) else round(row[index], 3) for row in rows]
        return columns


class Series:
    """All rings of one worker, in the row `number` of `shared`."""

    def __init__(self, shared: Slots | None = None, number: int = 0) -> None:
        self._rings = {name: Ring(*shape) for name, shape in RINGS.items()}
        self._shared = shared
        self._number = number

    def add(self, sample: Sample) -> None:
        for ring in self._rings.values():
            ring.add(sample)

    def columns(self, name: str) -> dict[str, Any]:
        """Return the columns of one of RINGS."""
        return {"interval_seconds": float(RINGS[name][0]), **self._rings[name].series()}

    def publish(self) -> None:
        if self._shared is not None:
            published = [self._rings[name].rows for name in PUBLISHED]
            head = _HEAD.pack(*map(len, published))
            self._shared.write(self._number, head + b"".join(row for rows in published for row in rows))

    def adopt(self) -> None:
        """Continue the longest rings that a worker has published, the newest among equally long ones."""
        if self._shared is None:
            return
        bodies = [body for number in range(self._shared.count) if (body := self._shared.read(number)) is not None]
        published = [_split(body) for body in bodies]
        for index, name in enumerate(PUBLISHED):
            longest = max((rings[index] for rings in published), key=lambda rows: (len(rows), rows[-1:]), default=[])
            self._rings[name].rows.extend(longest)


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


def _row(first: Sample, samples: Sequence[Sample]) -> bytes:
    last = samples[-1]
    seconds = max(last.at - first.at, 0.001)
    rates = [max(0.0, (last.values[name] or 0) - (first.values[name] or 0)) / seconds for name in RATES]
    gauges = [_highest(sample.values[name] for sample in samples) for name in GAUGES]
    counts = [max(0, late - early) for early, late in zip(first.latencies, last.latencies, strict=True)]
    quantiles = [_number(quantile_ms(counts, quantile)) for quantile in QUANTILES.values()]
    return _ROW.pack(last.at, *rates, *gauges, *quantiles)


def _highest(values: Iterable[float | None]) -> float:
    return max((value for value in values if value is not None), default=math.nan)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _split(body: bytes) -> list[list[bytes]]:
    """Return the rows of each ring in PUBLISHED."""
    rows = [body[start : start + _ROW.size] for start in range(_HEAD.size, len(body), _ROW.size)]
    hour, _ = _HEAD.unpack_from(body)
    return [rows[:hour], rows[hour:]]
