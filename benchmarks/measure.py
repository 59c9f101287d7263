"""What all benchmarks share: processes pinned to cores, load by wrk, CPU time and memory from /proc, rounds.

CPU time per request is user and system time of the server's processes with all their threads, divided by the requests
that they answered. It is steadier on a noisy machine than requests per second. The server has one core; the load and
the stand-in for the vendor have the other.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PURE = str(HERE.parent)  # as PYTHONPATH: the gateway in pure Python
COMPILED = f"{HERE.parent / 'build' / 'compiled'}:{PURE}"  # the compiled one, which scripts/compile makes
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 64
DRAIN_SECONDS = 15.0
UNSENT_EVENTS = 200

Row = dict[str, Any]


class UnavailableError(Exception):
    """Something that a case needs is not installed: the case is skipped, with this message."""


@dataclass(frozen=True)
class Target:
    """A server under load. `drain` waits until all work of the requests is done and tells what came of it."""

    pid: int
    port: int
    drain: Callable[[], Row] = dict


@dataclass(frozen=True)
class Case:
    """One row of a result: a server, the Lua script that asks it, and what one answer must contain.

    `arguments` are those of the script behind the first number.
    """

    name: str
    serve: Callable[[], AbstractContextManager[Target]]
    script: str
    arguments: Sequence[object] = ()
    probe: tuple[str, bytes | None, bytes] | None = None  # path, body, what the answer must contain
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    seconds: float
    rounds: int
    warm_up_seconds: float
    is_quick: bool


def effort(description: str | None) -> Effort:
    """From the command line, which is the same for all questions."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_effort(parser)
    return read_effort(parser.parse_args())


def add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--seconds", type=float, help="of one round")
    parser.add_argument("--rounds", type=int)


def read_effort(options: argparse.Namespace) -> Effort:
    seconds, rounds, warm_up = (2.0, 1, 1.0) if options.quick else (3.0, 3, 1.0)
    return Effort(options.seconds or seconds, options.rounds or rounds, warm_up, options.quick)


# ---- Processes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(
    *command: object, cores: Sequence[int], ready: Callable[[], bool], seconds: float = 30.0, **environment: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on the given cores, once `ready` says so; ended afterwards, and with this process in any case."""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": COMPILED, "HOME": tempfile.gettempdir()}
    variables |= {name: str(value) for name, value in environment.items()}
    pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(pinned, env=variables, stdout=log, stderr=log)
        try:
            _wait_until_ready(running, ready, seconds, log)
            yield running
        finally:
            _end(running)


def _wait_until_ready(running: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float, log: Any) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and running.poll() is None:
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.01)
    log.seek(0)
    raise RuntimeError(f"{running.args!r} is not ready:\n{log.read().decode(errors='replace')[-2000:]}")


def _end(running: subprocess.Popen[bytes]) -> None:
    """The children of a supervisor end with it; what does not end by itself is killed."""
    family = family_of(running.pid)
    running.terminate()
    try:
        running.wait(10)
    except subprocess.TimeoutExpired:
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> Callable[[], bool]:
    """A GET of the URL gives 200."""

    def ask() -> bool:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)

    return ask


def accepts(port: int) -> Callable[[], bool]:
    """Somebody listens on the port."""

    def ask() -> bool:
        with socket.create_connection(("127.0.0.1", port), 5):
            return True

    return ask


def family_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(descendant for child in children for descendant in family_of(child))]


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and its descendants, all threads."""
    return sum(_cpu_seconds_of_one(member) for member in family_of(pid))


def _cpu_seconds_of_one(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_megabytes(pid: int) -> float:
    """Resident memory of a process and its descendants."""
    return sum(_rss_megabytes_of_one(member) for member in family_of(pid))


def highest_rss_megabytes(pid: int) -> float:
    """Return the largest resident memory of a process so far, without its descendants."""
    return _megabytes(pid, "VmHWM")


def _rss_megabytes_of_one(pid: int) -> float:
    return _megabytes(pid, "VmRSS")


def _megabytes(pid: int, field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def fetch_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


# ---- Load ------------------------------------------------------------------------------------------------------------


def load(target: Target, case: Case, seconds: float, cores: Sequence[int] = (LOAD_CORE,)) -> Row:
    """One round of wrk. CPU time counts until the server has done all work of these requests."""
    before = cpu_seconds(target.pid)
    row = wrk(target.port, case.script, case.arguments, seconds, cores)
    row["rss_mb"] = rss_megabytes(target.pid)
    row |= target.drain()
    if "arrived_events" in row:  # of a server that sends one for each request, and keeps the last ones for a full batch
        row["is_balanced"] = row["arrived_events"] > row["requests"] - UNSENT_EVENTS
    row["cpu_us"] = (cpu_seconds(target.pid) - before) / row["requests"] * 1e6
    row["per_second"] = row["requests"] / row["seconds"]
    return row


def wrk(port: int, script: str, arguments: Sequence[object], seconds: float, cores: Sequence[int]) -> Row:
    """Closed loop: 64 connections, each of which asks again as soon as it has its answer. wrk takes whole seconds.

    What takes longer than two seconds is slow, not wrong: wrk's own time-out would count it as an error.
    """
    first = time.time_ns() // 1000 % 10**10 * 1000  # no two rounds use the same visitors
    command = ["taskset", "-c", ",".join(map(str, cores)), "wrk", "-t1", "--timeout", "10s", f"-c{CONNECTIONS}"]
    command += [
        f"-d{max(1, round(seconds))}s",
        "-s",
        script,
        f"http://127.0.0.1:{port}",
        "--",
        str(first),
        *map(str, arguments),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE / "lua", timeout=60).stdout
    found = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"unexpected output of wrk:\n{output}")
    row: Row = json.loads(found[1])
    return row


def run_cases(cases: Sequence[Case], effort: Effort) -> list[Row]:
    """All cases in turn, round by round, so that what disturbs the machine disturbs all of them. One row for each."""
    rounds: dict[str, list[Row]] = {case.name: [] for case in cases}
    skipped: dict[str, str] = {}
    for number in range(effort.rounds):
        for case in cases:
            if case.name not in skipped:
                say(f"  round {number + 1}: {case.name}")
                try:
                    rounds[case.name].append(run_case(case, effort))
                except UnavailableError as problem:
                    skipped[case.name] = str(problem)
                    say(f"  skipped: {problem}")
    return [summary(case.name, rounds[case.name], skipped.get(case.name)) for case in cases]


def run_case(case: Case, effort: Effort) -> Row:
    with case.serve() as target:
        check_answer(target, case)
        wrk(target.port, case.script, case.arguments, effort.warm_up_seconds, (LOAD_CORE,))
        target.drain()
        return load(target, case, effort.seconds)


def check_answer(target: Target, case: Case) -> None:
    if case.probe is None:
        return
    path, body, expected = case.probe
    headers = {"Content-Type": "application/json"} | case.headers
    request = urllib.request.Request(f"http://127.0.0.1:{target.port}{path}", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = response.read()
    if expected not in answer:
        raise RuntimeError(f"{case.name} answers {answer[:300]!r}, expected something with {expected!r}")


def summary(name: str, rounds: Sequence[Row], skipped: str | None = None) -> Row:
    """Medians of the rounds, with half of their range as spread. A row with any error is not valid."""
    if skipped is not None or not rounds:
        return {"name": name, "skipped": skipped or "not run"}
    row: Row = {"name": name, "rounds": list(rounds)}
    for key in rounds[0]:
        values = [one[key] for one in rounds]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            row[key] = statistics.median(values)
            row[f"{key}_spread"] = (max(values) - min(values)) / 2
    row["errors"] = sum(one["errors"] for one in rounds)
    row["is_valid"] = row["errors"] == 0 and all(one.get("is_balanced", True) for one in rounds)
    return row


def fastest(row: Row) -> float:
    """Return the smallest CPU time of the rounds of a row: noise only adds time."""
    return min(float(one["cpu_us"]) for one in row["rounds"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def end_cleanly_when_told() -> None:
    """SIGTERM leaves through the same doors as Ctrl-C, so that all servers are ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
