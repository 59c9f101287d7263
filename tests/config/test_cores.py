"""The number of cores: real control groups if the test may create one, otherwise files as the kernel shows them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tornado_gateway.config import Config
from tornado_gateway.config.cores import usable_cores

REAL_GROUPS = Path("/sys/fs/cgroup/cpu")  # version 1


def host(root: Path, group: str, **files: str) -> Path:
    """A host whose /proc/self/cgroup is `group`, with these files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000", 1), ("100000", 1), ("100001", 2), ("150000", 2), ("400000", 4), ("max", 8)]
)
def test_g4_the_quota_of_a_container_with_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    """Row G4: half a core gets one worker; a part of a core counts as one."""
    root = host(tmp_path, "0::/\n", **{"cpu.max": f"{quota} 100000\n"})
    assert usable_cores(root, cores=8) == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("150000", 2), ("-1", 8)])
@pytest.mark.parametrize("controllers", ["cpu,cpuacct", "cpu"])
def test_g4_the_quota_of_a_container_with_version_1(tmp_path: Path, controllers: str, quota: str, cores: int) -> None:
    """Row G4. The path is that of the host, which a container does not see."""
    files = {f"{controllers}/cpu.cfs_quota_us": quota, f"{controllers}/cpu.cfs_period_us": "100000"}
    root = host(tmp_path, f"5:memory:/\n4:{controllers}:/docker/0123\n", **files)
    assert usable_cores(root, cores=8) == cores


def test_g4_the_smallest_quota_of_all_groups_counts(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000", "a.slice/cpu.max": "200000 100000", "a.slice/b.service/cpu.max": "600000 100000"}
    root = host(tmp_path, "0::/a.slice/b.service\n", **files)
    assert usable_cores(root, cores=8) == 2


@pytest.mark.parametrize("text", ["", "nonsense", "0::/\n", "4:cpu:/x\n"])
def test_files_that_are_absent_or_strange_change_nothing(tmp_path: Path, text: str) -> None:
    root = host(tmp_path, text, **{"cpu.max": "many 0", "cpu/cpu.cfs_quota_us": "1"})
    assert usable_cores(root, cores=8) == 8
    assert usable_cores(tmp_path / "nowhere", cores=8) == 8


def test_no_more_than_the_cores_of_the_process() -> None:
    assert 1 <= Config().worker_count <= len(os.sched_getaffinity(0))
    assert Config(workers=3).worker_count == 3


@pytest.mark.skipif(not os.access(REAL_GROUPS, os.W_OK), reason="may not create a control group of version 1")
def test_g4_a_real_quota(tmp_path: Path) -> None:
    """Row G4, with the kernel's own files."""
    group = REAL_GROUPS / f"tornado-gateway-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        code = "from tornado_gateway.config import Config; print(Config().worker_count)"
        join = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c '{code}'"
        result = subprocess.run(["sh", "-c", join], capture_output=True, text=True, check=True)
    finally:
        group.rmdir()
    assert result.stdout == "1\n"
