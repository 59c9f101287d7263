"""A gateway under a mixed load for a long time, while its surroundings change: `scripts/soak [SECONDS]`.

All types of requests arrive from a fixed number of visitors, so that aliases, stored decisions and caches have their
final size after the first third of the time. Settings change, location databases are swapped, and the upstream fails
in turns. From then on nothing may grow: the median of the last third is compared with that of the second.
"""

import argparse
import itertools
import json
import logging
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from attacks import ADMIN_TOKEN, WEBHOOK_TOKEN, settings
from location_files import BROKEN, CITY, COUNTRY, GEOIP2_CITY, replace
from process import Gateway
from vendor import Fault, Vendor
from watch import MB, Reading, general_faults, read

HERE = Path(__file__).parent
SETTINGS_SECONDS, LOCATION_SECONDS, FAILURE_SECONDS = 3, 7, 20
FAILING_SECONDS = 6  # of each FAILURE_SECONDS
READINGS = 180  # in the whole run
DELIVERY_SECONDS = 120  # for the events that are left at the end
# What the median of the last third may have more than that of the second: a share, and an amount. Memory: fragmentation
# of the allocator. Connections: those to the upstream come and go with its failures, up to the limits of the pools.
# Threads: the pool for work beside the loop starts them when they are needed, up to six in a worker. DATA_DIR: the WAL,
# and pages that wait to be used again.
TOLERANCES = {
    "memory_bytes": (0.03, 3 * MB),
    "descriptors": (0.0, 4),
    "connections": (0.0, 30),
    "threads": (0.0, 2),
    "data_bytes": (0.05, 4 * MB),
}
OPTIONS = {
    "WORKERS": 2,
    "ALIASING_ENABLED": "true",
    "STICKY_DECISIONS": "true",
    "CORS_CONFIG_REQUIRED": "true",
    "WEBHOOK_TOKEN": WEBHOOK_TOKEN,
    "ADMIN_TOKEN": ADMIN_TOKEN,
    "POLLING_TIME": 1000,
    "SOCKET_TIMEOUT": 2,
    "FLUSH_EVENTS_INTERVAL": 2,
}


@dataclass
class Result:
    readings: list[Reading] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # responses by status
    undelivered: int = 0
    general: list[str] = field(default_factory=list)


def thirds(readings: list[Reading], name: str) -> list[float]:
    """The median of a figure in each third of the run."""
    size = len(readings) // 3
    values = [getattr(reading, name) for reading in readings]
    return [statistics.median(values[at : at + size]) for at in (0, size, len(values) - size)]


def grows(readings: list[Reading], name: str) -> bool:
    _, second, last = thirds(readings, name)
    share, amount = TOLERANCES[name]
    return last > second * (1 + share) + amount


def faults(result: Result) -> list[str]:
    found = {
        **{f"{name} grows: {thirds(result.readings, name)}": grows(result.readings, name) for name in TOLERANCES},
        f"{result.counts.get('500')} responses with 500": result.counts.get("500"),
        "no responses": not result.counts.get("200"),
        f"{result.undelivered} events were not delivered in the end": result.undelivered,
    }
    return [text for text, is_wrong in found.items() if is_wrong] + result.general


def table(result: Result) -> str:
    rows = ["| figure | first third | second third | last third | most | allowed |", "|---|---:|---:|---:|---:|---:|"]
    for name, (share, amount) in TOLERANCES.items():
        medians = thirds(result.readings, name)
        most = max(getattr(reading, name) for reading in result.readings)
        values = [*medians, most, medians[1] * (1 + share) + amount]
        shown = [f"{value / MB:.1f} MB" if name.endswith("bytes") else f"{value:.0f}" for value in values]
        rows.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(rows)


# --- Changes of the surroundings ---


def changed_settings(number: int) -> bytes:
    """A document with a version of its own, and one of seven contents."""
    document = settings(version=number)
    for feature in document["features"][: number % 7]:
        feature["name"] = f"{feature['name']} {number % 7}"
    document["campaigns"][0]["percentTraffic"] = 100 - number % 7
    return orjson.dumps(document)


FAILURES: tuple[tuple[str, Callable[[], Fault]], ...] = (
    ("event_faults", lambda: Fault(status=503, times=sys.maxsize)),
    ("settings_faults", lambda: Fault(status=500, times=sys.maxsize)),
    ("event_faults", lambda: Fault(close=True, times=sys.maxsize)),
    ("lookup_faults", lambda: Fault(close=True, times=sys.maxsize)),
    ("event_faults", lambda: Fault(status=401, times=sys.maxsize)),
    ("settings_faults", lambda: Fault(delay_seconds=3, times=sys.maxsize)),
    ("lookup_faults", lambda: Fault(delay_seconds=3, times=sys.maxsize)),
    ("event_faults", lambda: Fault(delay_seconds=3, times=sys.maxsize)),
)


class Surroundings:
    """Changes what is due at each `tick`."""

    def __init__(self, vendor: Vendor, location: Path) -> None:
        self._vendor = vendor
        self._location = location
        self._numbers = itertools.count(2)
        self._databases: Iterator[Path] = itertools.cycle((GEOIP2_CITY, CITY, random.choice(BROKEN), COUNTRY))
        self._failures = itertools.cycle(FAILURES)
        self._due = dict.fromkeys((self.change_settings, self.swap_location, self.fail, self.recover), 0.0)
        self._due[self.recover] = FAILING_SECONDS
        self._started = time.monotonic()

    def tick(self) -> None:
        passed = time.monotonic() - self._started
        for change, due in self._due.items():
            if passed >= due:
                self._due[change] = due + change()

    def change_settings(self) -> float:
        self._vendor.settings = changed_settings(next(self._numbers))
        return SETTINGS_SECONDS

    def swap_location(self) -> float:
        replace(self._location, next(self._databases).read_bytes())
        return LOCATION_SECONDS

    def fail(self) -> float:
        queue, fault = next(self._failures)
        getattr(self._vendor, queue).append(fault())
        return FAILURE_SECONDS

    def recover(self) -> float:
        for queue, _ in FAILURES:
            getattr(self._vendor, queue).clear()
        return FAILURE_SECONDS


# --- The run ---


def watch(gateway: Gateway, surroundings: Surroundings, seconds: float) -> list[Reading]:
    started = time.monotonic()
    readings: list[Reading] = []
    while (passed := time.monotonic() - started) < seconds:
        surroundings.tick()
        if passed >= len(readings) * seconds / READINGS:
            readings.append(read(gateway, passed))
        time.sleep(0.1)
    surroundings.recover()
    return readings


def wait_for_delivery(gateway: Gateway) -> int:
    """Wait until all events are delivered. Return the number of the others after a while."""
    deadline = time.monotonic() + DELIVERY_SECONDS
    while (waiting := gateway.status()["events"]["waiting"]) and time.monotonic() < deadline:
        time.sleep(0.5)
    return int(waiting)


def load(gateway: Gateway, seconds: float) -> Any:
    command = [sys.executable, HERE / "attackers.py", str(gateway.port), str(seconds), "mixed load"]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def run(seconds: float) -> Result:
    result = Result()
    with tempfile.TemporaryDirectory() as folder, Vendor(settings(), keep=100) as vendor:
        location = Path(folder) / "location.mmdb"
        replace(location, CITY.read_bytes())
        options = OPTIONS | {"MAXMIND_DB_PATH": location}
        with Gateway.of_vendor(Path(folder) / "data", vendor, is_fresh=True, **options) as gateway:
            vendor.wait_until(lambda: len(gateway.worker_pids()) == OPTIONS["WORKERS"])
            workers = gateway.worker_pids()
            with load(gateway, seconds) as process:
                try:
                    result.readings = watch(gateway, Surroundings(vendor, location), seconds)
                    result.counts = json.loads(process.communicate(timeout=120)[0])
                finally:
                    process.kill()
            result.undelivered = wait_for_delivery(gateway)
            result.general = general_faults(gateway, workers)
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Watch a gateway under load for a long time.")
    parser.add_argument("seconds", type=float, nargs="?", default=900.0)
    options = parser.parse_args(arguments)
    logging.getLogger("tornado").setLevel(logging.CRITICAL)  # the stand-in for the vendor gets odd requests, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = run(options.seconds)
    print(table(result))
    print(f"\nresponses: {dict(sorted(result.counts.items()))}")
    found = faults(result)
    print("\n".join(f"FAILED: {fault}" for fault in found) or "passed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
