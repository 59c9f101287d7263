"""The state of a gateway, read from outside: memory, descriptors, threads, the size of DATA_DIR, log and accounting."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metrics import assert_adds_up, samples_of, scrape
from process import Gateway

MB = 1 << 20
LISTENING = "0A"  # in /proc/net/tcp


@dataclass(frozen=True)
class Reading:
    """The state of a gateway at one moment; of several workers the sum, except for the memory of the largest.

    `connections` are the TCP connections of clients and to the upstream, `descriptors` all other open files.
    """

    at: float
    memory_bytes: int
    descriptors: int
    connections: int
    threads: int
    data_bytes: int


def field_of(pid: int, name: str) -> int:
    """A number of /proc/PID/status, such as VmRSS, VmHWM (in kB) and Threads."""
    found = re.search(rf"^{name}:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def memory_of(pid: int, name: str = "VmRSS") -> int:
    return field_of(pid, name) * 1024


def directory_bytes(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:  # deleted meanwhile
            continue
        total += found.st_blocks * 512 if path.is_file() else 0
    return total


def core_times(pid: int) -> tuple[int, int]:
    """Nanoseconds that the main thread of a process has run, and that it has waited for a core."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran), int(waited)


def connected_sockets() -> set[str]:
    """The sockets of this machine with a TCP connection, as /proc/PID/fd names them."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {f"socket:[{row[9]}]" for row in rows if row[3] != LISTENING}


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process refer to."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(path.readlink()))
    return found


def read(gateway: Gateway, at: float) -> Reading:
    pids = gateway.worker_pids()
    files = [name for pid in pids for name in open_files(pid)]
    connections = len(connected_sockets().intersection(files))
    return Reading(
        at,
        max(map(memory_of, pids)),
        len(files) - connections,
        connections,
        sum(field_of(pid, "Threads") for pid in pids),
        directory_bytes(gateway.data_dir),
    )


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not exceeded by this share of the values; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def general_faults(gateway: Gateway, workers: list[int]) -> list[str]:
    """What is wrong after a long run, whatever it was about; `workers` are the process ids at its beginning."""
    imbalance = ""
    try:
        assert_adds_up(samples_of(scrape(gateway)[0]))
    except AssertionError as error:
        imbalance = str(error)
    found = {
        "tracebacks in the log": "Traceback" in gateway.log(),
        f"workers were replaced: {workers}, {gateway.worker_pids()}": workers != gateway.worker_pids(),
        "the gateway is not ready": gateway.get("/ready")[0] != 200,
        f"the accounting of events does not add up: {imbalance}": imbalance,
    }
    return [text for text, is_wrong in found.items() if is_wrong]
