"""A gateway under attack, next to a well-behaved client: `scripts/hostile [SECONDS]`.

Each attack of `attacks.py` runs alone, and then all run at once for the last third. The attackers have the lowest
priority, because they share the cores with the gateway. The verdict is about the gateway: its responses, its log, its
memory, and the time that the well-behaved client waits.

That time is worthless while other programs keep the machine busy. `--turns` shows the longest turn of the event loop in
CPU time as well, with its callbacks (`turns/sitecustomize.py`): a request of the well-behaved client needs about eight.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from attacks import ADMIN_TOKEN, EVERYTHING, WEBHOOK_TOKEN, settings
from endpoints import GEOIP
from process import Gateway, build
from steady_client import Sample
from vendor import Vendor
from watch import MB, core_times, general_faults, memory_of, percentile

HERE = Path(__file__).parent
TOGETHER = "all at once"
OPTIONS = {
    "WORKERS": 2,
    "ALIASING_ENABLED": "true",
    "CORS_CONFIG_REQUIRED": "true",
    "TRUSTED_PROXIES": "127.0.0.0/8",
    "WEBHOOK_TOKEN": WEBHOOK_TOKEN,
    "ADMIN_TOKEN": ADMIN_TOKEN,
    "MAXMIND_DB_PATH": GEOIP,
    "EVENT_QUEUE_BYTES": 256 * MB,
}
MAX_SECONDS = 0.1  # p99 of the well-behaved client
MAX_MEMORY = 256 * MB  # of each worker
MAX_LOG = MB


@dataclass(frozen=True)
class Phase:
    name: str
    started: float
    ended: float
    counts: dict[str, int]
    memory_bytes: int  # of the largest worker, the most since its start
    starved: float = 0.0  # the share of the time in which workers waited for a core, because other processes had them


@dataclass(frozen=True)
class Turn:
    """The longest turn of a worker's event loop within a second."""

    ended: float
    seconds: float  # of CPU time
    callbacks: list[str]


@dataclass
class Result:
    """All that the verdict is about."""

    phases: list[Phase] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)  # of the well-behaved client
    idle: list[Sample] = field(default_factory=list)  # of an idle process
    log_bytes: int = 0
    general: list[str] = field(default_factory=list)  # faults that have nothing to do with attacks
    turns: list[Turn] = field(default_factory=list)

    @property
    def memory_bytes(self) -> int:
        return max((phase.memory_bytes for phase in self.phases), default=0)

    def p99(self, phase: Phase | None = None) -> float:
        return percentile([sample.seconds for sample in within(self.samples, phase)], 0.99)

    def idle_p99(self, phase: Phase | None = None) -> float:
        return percentile([sample.late for sample in within(self.idle, phase)], 0.99)


def within(samples: list[Sample], phase: Phase | None) -> list[Sample]:
    return samples if phase is None else [one for one in samples if phase.started <= one.due < phase.ended]


def faults(result: Result) -> list[str]:
    """What is wrong with the gateway; empty if nothing is."""
    failed = {phase.name: phase.counts["500"] for phase in result.phases if phase.counts.get("500")}
    errors = [sample.error for sample in result.samples if sample.error]
    found = {
        "the well-behaved client got no response": not result.samples,
        f"responses with 500: {failed}": failed,
        f"{len(errors)} requests of the well-behaved client failed, the first one: {errors[:1]}": errors,
        f"p99 of the well-behaved client is {result.p99() * 1000:.0f} ms": result.p99() >= MAX_SECONDS,
        f"a worker had {result.memory_bytes / MB:.0f} MB": result.memory_bytes >= MAX_MEMORY,
        f"the log has {result.log_bytes / MB:.2f} MB": result.log_bytes >= MAX_LOG,
    }
    return [text for text, is_wrong in found.items() if is_wrong] + result.general


def table(result: Result) -> str:
    rows = [
        "| attack | connections | responses | p99 ms | longest ms | idle p99 ms | no core % | memory MB | statuses |"
    ]
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for phase in result.phases:
        counts = dict(sorted(phase.counts.items()))
        responses = sum(count for name, count in counts.items() if name.isdigit())
        longest = max((sample.seconds for sample in within(result.samples, phase)), default=0.0)
        times = f"{result.p99(phase) * 1000:.0f} | {longest * 1000:.0f} | {result.idle_p99(phase) * 1000:.0f}"
        times += f" | {phase.starved:.0%}".replace("%", "")
        shown = ", ".join(f"{name} {count}" for name, count in counts.items() if name != "connections")
        connections = counts.get("connections", 0)
        memory = f"{phase.memory_bytes / MB:.0f}"
        rows.append(f"| {phase.name} | {connections:,} | {responses:,} | {times} | {memory} | {shown} |")
    return "\n".join(rows)


def turns_table(result: Result) -> str:
    rows = ["| attack | longest turn, ms of CPU time | callbacks |", "|---|---:|---|"]
    for phase in result.phases:
        turns = [turn for turn in result.turns if phase.started <= turn.ended < phase.ended]
        longest = max(turns, key=lambda turn: turn.seconds, default=Turn(0.0, 0.0, []))
        rows.append(f"| {phase.name} | {longest.seconds * 1000:.1f} | {', '.join(longest.callbacks)} |")
    return "\n".join(rows)


# --- The run ---


def turns_in(folder: Path) -> list[Turn]:
    lines = [line for file in folder.glob("*.turns") for line in file.read_text().splitlines()]
    return [Turn(*json.loads(line)) for line in lines]


@contextlib.contextmanager
def steady_client(target: str, samples: list[Sample]) -> Iterator[None]:
    """A process that samples until the end of the block."""
    command = [sys.executable, HERE / "steady_client.py", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield
            output, _ = process.communicate(timeout=120)
            samples += [Sample(*one) for one in json.loads(output)]
        finally:
            process.kill()


def waiting_seconds(gateway: Gateway) -> float:
    waits = [core_times(pid)[1] / 1e9 for pid in gateway.worker_pids()]
    return sum(waits) / len(waits)


def attack(gateway: Gateway, phase: str, names: list[str], seconds: float) -> Phase:
    started = time.monotonic()
    before = waiting_seconds(gateway)
    command = ["nice", "-n", "19", sys.executable, HERE / "attackers.py", str(gateway.port), str(seconds), *names]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 600).stdout
    memory = max(memory_of(pid, "VmHWM") for pid in gateway.worker_pids())
    ended = time.monotonic()
    starved = (waiting_seconds(gateway) - before) / (ended - started)
    found = Phase(phase, started, ended, json.loads(output), memory, starved)
    print(f"{phase}: {memory / MB:.0f} MB", file=sys.stderr, flush=True)
    return found


def run_phases(gateway: Gateway, result: Result, names: list[str], seconds: float) -> None:
    with steady_client("idle", result.idle), steady_client(str(gateway.port), result.samples):
        os.nice(10)  # the stand-in for the vendor, which lies on another machine otherwise
        for name in names:
            result.phases.append(attack(gateway, name, [name], seconds * 2 / 3 / len(names)))
        result.phases.append(attack(gateway, TOGETHER, names, seconds / 3))


def run(seconds: float, names: list[str], log: Path | None, *, measures_turns: bool = False) -> Result:
    result = Result()
    with tempfile.TemporaryDirectory() as folder, Vendor(settings(), keep=100) as vendor:
        vendor.lists = {"list-1": {"visitor-1"}}
        measuring = {"TURNS_FOLDER": folder, "PYTHONPATH": f"{HERE / 'turns'}:{build()}"} if measures_turns else {}
        with Gateway.of_vendor(Path(folder) / "data", vendor, is_fresh=True, **OPTIONS, **measuring) as gateway:
            vendor.wait_until(lambda: len(gateway.worker_pids()) == OPTIONS["WORKERS"])
            workers = gateway.worker_pids()
            try:
                run_phases(gateway, result, names, seconds)
                result.general = general_faults(gateway, workers)
            finally:
                result.log_bytes = gateway.log_path.stat().st_size
                result.turns = turns_in(Path(folder))
                if log is not None:
                    shutil.copy(gateway.log_path, log)
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/hostile", description="Attack a gateway and judge it.")
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    parser.add_argument("--only", action="append", choices=EVERYTHING, help="an attack, instead of all")
    parser.add_argument("--turns", action="store_true", help="show the longest turns of the event loop")
    parser.add_argument("--log", type=Path, help="write the log of the gateway to this file")
    options = parser.parse_args(arguments)
    logging.getLogger("tornado").setLevel(logging.CRITICAL)  # the stand-in for the vendor gets odd requests, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = run(options.seconds, options.only or list(EVERYTHING), options.log, measures_turns=options.turns)
    print(table(result))
    if options.turns:
        print(f"\n{turns_table(result)}")
    print(f"\n{len(result.samples):,} requests of the well-behaved client: p99 {result.p99() * 1000:.1f} ms")
    print(f"an idle process woke up late: p99 {result.idle_p99() * 1000:.1f} ms")
    print(f"memory of a worker at most {result.memory_bytes / MB:.0f} MB, log {result.log_bytes:,} bytes")
    found = faults(result)
    print("\n".join(f"FAILED: {fault}" for fault in found) or "passed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
