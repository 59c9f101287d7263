"""What all benchmarks share: processes pinned to cores, load by wrk, CPU time from /proc.

CPU time per request (user and system time of the server process, divided by the requests that it answered) is steadier
on a noisy machine than requests per second. The server has one core, the load and the stand-in vendor the other.
"""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SERVER_CORE, LOAD_CORE = 0, 1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Result:
    """One round of load on one server. Latencies in milliseconds."""

    requests: int
    seconds: float
    cpu_microseconds: float  # of the server, for each request
    p50: float
    p99: float
    errors: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


@contextlib.contextmanager
def process(*command: str, core: int, ready: str, **environment: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, once the URL `ready` answers; ended afterwards."""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parent)}
    variables |= {name: str(value) for name, value in environment.items()}
    running = subprocess.Popen(["taskset", "-c", str(core), *command], env=variables)
    try:
        _wait_for(ready, running)
        yield running
    finally:
        running.terminate()
        running.wait(60)


def _wait_for(url: str, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{running.args!r} does not answer {url}")


def gateway(port: int, **options: object) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """The gateway with one worker, as it is installed."""
    defaults = {"HOST": "127.0.0.1", "PORT": port, "WORKERS": 1, "DECISION_REQUIRED": "true"}
    return process(
        sys.executable,
        "-m",
        "tornado_gateway",
        "serve",
        core=SERVER_CORE,
        ready=f"http://127.0.0.1:{port}/ready",
        **(defaults | {"DATA_DIR": tempfile.mkdtemp(prefix="bench-")} | options),
    )


def python_server(
    script: str, port: int, *arguments: str, core: int = SERVER_CORE
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A script of this folder that serves on `port`."""
    command = (sys.executable, str(HERE / script), str(port), *arguments)
    return process(*command, core=core, ready=f"http://127.0.0.1:{port}/")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def load(server: subprocess.Popen[bytes], port: int, script: str, seconds: float, connections: int = 64) -> Result:
    """wrk with one of the Lua scripts of this folder."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    command += ["-s", str(HERE / script), f"http://127.0.0.1:{port}"]
    before, started = cpu_seconds(server.pid), time.monotonic()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    elapsed, used = time.monotonic() - started, cpu_seconds(server.pid) - before
    requests = int(_found(r"(\d+) requests in", output))
    errors = sum(int(number) for number in re.findall(r"(?:Non-2xx or 3xx responses|timeout|read|write): (\d+)", output))
    p50, p99 = (_milliseconds(_found(rf"{percent}%\s+(\S+)", output)) for percent in (50, 99))
    return Result(requests, elapsed, used / requests * 1e6, p50, p99, errors)


def median(results: Sequence[Result]) -> Result:
    """The round with the median CPU time per request."""
    return sorted(results, key=lambda result: result.cpu_microseconds)[len(results) // 2]


def spread(results: Sequence[Result]) -> float:
    """Half of the range of CPU times per request, in microseconds."""
    times = [result.cpu_microseconds for result in results]
    return (max(times) - min(times)) / 2 if len(times) > 1 else statistics.fmean(times) * 0


def _found(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    if match is None:
        raise RuntimeError(f"unexpected output of wrk:\n{output}")
    return match[1]


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}[unit]
