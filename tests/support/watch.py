"""Memory, descriptors and threads of processes, and the size of a directory, read from outside."""

import re
from dataclasses import dataclass
from pathlib import Path

from process import Gateway

MB = 1 << 20


@dataclass(frozen=True)
class Reading:
    """The state of a gateway at one moment; of several workers the sum, except for the memory of the largest."""

    at: float
    memory_bytes: int
    descriptors: int
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


def read(gateway: Gateway, at: float) -> Reading:
    pids = gateway.worker_pids()
    return Reading(
        at,
        max(map(memory_of, pids)),
        sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        sum(field_of(pid, "Threads") for pid in pids),
        directory_bytes(gateway.data_dir),
    )


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not exceeded by this share of the values; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
