"""Everything that is counted, and the index of each counter.

The series are fixed beforehand (`Routes`, `STATUSES`, ...), so all processes agree on the indices, and requests cannot
create new series: unknown paths, methods and statuses are counted as "other".
"""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from tornado_gateway import core

OTHER = "other"
METHODS = ("GET", "POST", "HEAD", "OPTIONS", OTHER)
STATUSES = (200, 204, 304, 400, 401, 403, 404, 405, 408, 409, 413, 415, 417, 429, 431, 500, 501, 503, 505, OTHER)
STREAM_ENDS = ("client", "age", "slow", "removed", "drain")  # why streams of changes have ended
EXPOSURES = ("recorded", "unknown")  # that clients name
USAGE_RESULTS = ("delivered", "dropped")
FLUSHES = ("delivered", "refused", "failed")
POLLS = ("changed", "unchanged", "failed")
CALLS = ("settings", "events", "event", "list_check", "event_segments")  # kinds of requests to upstream
RESPONSES = ("2xx", "3xx", "4xx", "5xx", "none")
CACHES = ("location", "device")
LOOKUPS = ("hit", "miss")
GAUGES = ("geo_built_at", "degraded", "redis_up", "streams")  # of a worker; NaN: does not apply

REQUEST_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FLUSH_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SUM_UNIT: Final = 1_000_000_000  # sums of seconds are kept in whole nanoseconds

_SLASHES = re.compile(r"//+")


class Block(NamedTuple):
    """The counters of one metric: one for each combination of its labels' values."""

    start: int
    labels: tuple[tuple[object, ...], ...]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.labels))

    def at(self, *values: object) -> int:
        index = 0
        for known, value in zip(self.labels, values, strict=True):
            index = index * len(known) + known.index(value)
        return self.start + index

    def values(self, index: int) -> list[str]:
        """Return the label values of the counter `start + index`: the inverse of `at`."""
        values: list[str] = []
        for known in reversed(self.labels):
            index, at = divmod(index, len(known))
            values.append(str(known[at]))
        return values[::-1]


class Histogram(NamedTuple):
    """The counters of one histogram: for each value of its label the buckets, one for longer times, and the sum."""

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


class _Blocks:
    def __init__(self, size: int = 0) -> None:
        self.size = size

    def block(self, *labels: Sequence[object]) -> Block:
        block = Block(self.size, tuple(map(tuple, labels)))
        self.size += block.size
        return block

    def histogram(self, values: Sequence[str], bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(self.size, tuple(values), bounds)
        self.size += histogram.size
        return histogram


_BLOCKS = _Blocks()
DECISIONS = _BLOCKS.block(core.OUTCOMES)
TRACKED_EXPOSURES = _BLOCKS.block(EXPOSURES)
STREAMS_CLOSED = _BLOCKS.block(STREAM_ENDS)
FLUSH_REQUESTS = _BLOCKS.block(FLUSHES)
SETTINGS_POLLS = _BLOCKS.block(POLLS)
UPSTREAM_REQUESTS = _BLOCKS.block(CALLS, RESPONSES)
CACHE_LOOKUPS = _BLOCKS.block(CACHES, LOOKUPS)
FLUSH_SECONDS = _BLOCKS.histogram(("",), FLUSH_BUCKETS)
LAG_SECONDS = _BLOCKS.histogram(("",), LAG_BUCKETS)
USAGE_STATISTICS = _BLOCKS.block(USAGE_RESULTS)


class Routes(NamedTuple):
    """The labels of all routes, from the tables of `api` and `console`, which this room cannot import.

    Requests for `data` are also measured; those for the label `decisions` are counted as decisions. `trees` are those
    of `pages` that stand for all paths below them, `data_trees` the same of `data` with their labels.
    """

    data: tuple[str, ...]
    decisions: str
    pages: tuple[str, ...]
    trees: frozenset[str]
    data_trees: Mapping[str, str] = MappingProxyType({})

    def label_of(self, path: bytes) -> str:
        """Return the label of a path. SDKs may double slashes and prepend the account's prefix (wire contract 0.8)."""
        text = _SLASHES.sub("/", path.decode("latin-1"))
        for tree, label in self.data_trees.items():
            if text.startswith(tree):
                return label
        if text in self.data or text in self.pages:
            return text
        first, _, rest = text[1:].partition("/")
        if f"/{rest}" in self.data:
            return f"/{rest}"
        return f"/{first}" if f"/{first}" in self.trees else OTHER


class Layout:
    """The counters above and those of each route. All processes that share memory need the same layout."""

    def __init__(self, routes: Routes) -> None:
        blocks = _Blocks(_BLOCKS.size)
        self.routes = routes
        self.requests = blocks.block(METHODS, (*routes.data, *routes.pages, OTHER), STATUSES)
        self.unidentified = blocks.block((*routes.data, OTHER))
        self.request_seconds = blocks.histogram(routes.data, REQUEST_BUCKETS)
        self.size = blocks.size
