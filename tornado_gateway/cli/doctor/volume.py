"""The check whether DATA_DIR outlives the container or the machine's next start."""

import re
from pathlib import Path

from tornado_gateway.cli.doctor.remedies import WARN, Finding

_ESCAPE = re.compile(r"\\([0-7]{3})")  # of a blank and some other characters in /proc/self/mountinfo
_IN_MEMORY = ("tmpfs", "ramfs")
_OF_A_CONTAINER = ("overlay", "aufs", "fuse-overlayfs")
# The place of a volume on the host, by the engine that made it.
_OF_A_POD = re.compile(r"/kubernetes\.io~empty-dir/")
_WITHOUT_A_NAME = re.compile(r"/volumes/[0-9a-f]{64}/_data(/|$)")


def check_volume(directory: Path, mounts: str) -> Finding | None:
    """Return a warning if the events in this directory are lost with the container. `mounts` is in the format of
    /proc/self/mountinfo."""
    reason = _temporary(*_mount_of(directory.absolute(), mounts))
    return Finding("volume", WARN, "data-temporary", f"{directory} is {reason}") if reason else None


def _temporary(kind: str, source: str) -> str | None:
    if kind in _IN_MEMORY:
        return "in memory (tmpfs)"
    if kind in _OF_A_CONTAINER:
        return "in the file system of the container, which is deleted with it"
    if _OF_A_POD.search(source):
        return "an emptyDir, which is deleted with the pod"
    if _WITHOUT_A_NAME.search(source):
        return "an anonymous volume, which a new container does not get"
    return None


def _mount_of(directory: Path, mounts: str) -> tuple[str, str]:
    """Return the kind of the file system that has this directory, and the directory of that file system in it."""
    best, found = -1, ("", "")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, *_ = before.split(" ")
        place = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), point))
        if directory.is_relative_to(place) and len(place.parts) >= best:  # of two at one place, the later one counts
            best, found = len(place.parts), (after.split(" ")[0], root)
    return found
