"""An open-loop load: requests leave at a fixed rate, whatever the server does, and latency counts from the moment
when a request was meant to leave. A server that stalls is therefore charged for all requests that had to wait.

    python benchmarks/openloop.py PORT --rate 10000 --seconds 30 [--features 100] [--connections 64]

Prints one line of JSON. A request that finds no free connection waits for one, and that counts too. `late` is how much
later than meant the requests left although a connection was free: what the generator, and whoever shares its core,
adds by itself. The generator is openloop.c: one in Python would be as busy as the server, and be what is measured.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import HERE, LOAD_CORE, Row, UnavailableError

SOURCE = HERE / "openloop.c"
PROGRAM = HERE.parent / "build" / "openloop"
PAUSE_MS = 20.0
BUCKETS_PER_SECOND = 10


@dataclass(frozen=True)
class Samples:
    """For each answer, in the order in which they came. All in seconds, `meant_at` since `started_at`."""

    started_at: float  # of the monotonic clock
    meant_at: Sequence[float]
    latencies: Sequence[float]
    late: Sequence[float]
    errors: int


def new_visitors() -> int:
    """The first of many visitors that no other run has had."""
    return time.time_ns() // 1000 % 10**10 * 1000


def run(
    port: int,
    *,
    rate: float,
    seconds: float,
    features: int,
    connections: int = 64,
    queries: Sequence[str] = (),
    first_visitor: int = 0,
) -> Row:
    """Send everything, each request with one of the queries (`query_of`), and wait for all answers.

    Raises UnavailableError where the generator cannot be compiled.
    """
    numbers = (port, rate, seconds, features, connections, first_visitor or new_visitors())
    command = ["taskset", "-c", str(LOAD_CORE), str(_program()), *map(str, numbers), *queries]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the generator of the load failed: {done.stderr.decode()}")
    started_at, errors = done.stderr.split()
    values = array("d", done.stdout)
    return _result(Samples(float(started_at), values[::3], values[1::3], values[2::3], int(errors)))


def query_of(visitor: int, queries: int) -> int:
    """The index of the query for a visitor, by the same hash as in openloop.c.

    If queries were used in turn, all environments would have a full batch at the same time.
    """
    value = visitor & 0xFFFFFFFF
    value = (value ^ value >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    value = (value ^ value >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return (value ^ value >> 16) % queries


def _program() -> Path:
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        if shutil.which("cc") is None:
            raise UnavailableError("no C compiler (Debian: gcc)")
        PROGRAM.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(PROGRAM), str(SOURCE)], check=True)
    return PROGRAM


def _percentile(ordered: list[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def _result(samples: Samples) -> Row:
    ordered = sorted(latency * 1000 for latency in samples.latencies)
    late = sorted(value * 1000 for value in samples.late)
    return {
        "requests": len(ordered),
        "started_at": samples.started_at,
        "errors": samples.errors,
        "mean_ms": statistics.fmean(ordered),
        **{key: _percentile(ordered, percent) for key, percent in (("p50_ms", 50), ("p99_ms", 99), ("p999_ms", 99.9))},
        "max_ms": ordered[-1],
        "late_p99_ms": _percentile(late, 99),
        "late_max_ms": late[-1],
        "pauses": _pauses(samples),
        "timeline": _timeline(samples),
    }


def _pauses(samples: Samples) -> list[Row]:
    """Stretches in which requests waited more than 20 ms: when each began, and the longest wait in it."""
    waits = zip(samples.meant_at, samples.latencies, strict=True)
    slow = sorted((at, wait) for at, wait in waits if wait * 1000 > PAUSE_MS)
    found: list[Row] = []
    last = -1.0
    for at, wait in slow:
        if at - last > PAUSE_MS / 1000:
            found.append({"second": at, "longest_ms": 0.0, "requests": 0})
        last = at
        found[-1]["longest_ms"] = max(found[-1]["longest_ms"], wait * 1000)
        found[-1]["requests"] += 1
    return found


def _timeline(samples: Samples) -> list[tuple[float, float]]:
    """The longest wait of each tenth of a second."""
    slowest: dict[int, float] = {}
    for at, wait in zip(samples.meant_at, samples.latencies, strict=True):
        bucket = int(at * BUCKETS_PER_SECOND)
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
    chosen = {name: getattr(options, name) for name in ("rate", "seconds", "features", "connections")}
    print(json.dumps(run(options.port, **chosen)))


if __name__ == "__main__":
    main()
