"""The number of cores that this process may use: those of its affinity, within the CPU quotas of its control groups."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNIFIED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")  # where version 2 is mounted, alone or beside version 1


def usable_cores(root: Path = Path("/"), cores: int | None = None) -> int:
    """Return at least 1. A part of a core counts as one. `root` and `cores` are for tests."""
    quota = min(_quotas(root), default=math.inf)
    allowed = cores or _allowed_cores()
    return allowed if quota >= allowed else max(1, math.ceil(quota))


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of the control groups of this process and of the groups above them."""
    for mount, group, is_unified in _groups(root):
        for path in (group, *group.parents):
            directory = mount / path.relative_to("/")
            try:
                yield _unified_quota(directory) if is_unified else _quota(directory)
            except (OSError, ValueError, ZeroDivisionError):
                continue  # no quota here, or a group above the root of a container


def _groups(root: Path) -> Iterator[tuple[Path, PurePosixPath, bool]]:
    """Yield mount points and groups from /proc/self/cgroup (cgroups(7)), and whether they are of version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        if not controllers:
            yield from ((root / mount, PurePosixPath(path), True) for mount in UNIFIED)
        elif "cpu" in controllers.split(","):
            yield root / "sys/fs/cgroup" / controllers, PurePosixPath(path), False


def _unified_quota(directory: Path) -> float:
    quota, period = (directory / "cpu.max").read_text().split()
    return math.inf if quota == "max" else int(quota) / int(period)


def _quota(directory: Path) -> float:
    quota = int((directory / "cpu.cfs_quota_us").read_text())
    return math.inf if quota < 0 else quota / int((directory / "cpu.cfs_period_us").read_text())
