"""Locks on files, which end with their process. No clock is involved."""

import fcntl
import os
from itertools import chain, count
from pathlib import Path

from tornado_gateway.store.sqlite.repair.rescue import move_misplaced_aside


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock until it is closed, or None if a living process has it."""
    move_misplaced_aside(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lock_log(directory: Path) -> tuple[Path, int]:
    """Lock the largest log that no living process has, because a full disk has no room to move it; or a new one."""
    for path in sorted(directory.glob("events-*.db"), key=_size, reverse=True):
        if (lock := try_lock(path.with_suffix(".lock"))) is not None:
            return path, lock
    return lock_new_log(directory)


def lock_new_log(directory: Path, *preferred: Path) -> tuple[Path, int]:
    """Lock the name of a log that does not exist yet."""
    for path in chain(preferred, (_log_path(directory, slot) for slot in count())):
        if path.exists() or (lock := try_lock(path.with_suffix(".lock"))) is None:
            continue
        if not path.exists():
            return path, lock
        os.close(lock)
    raise AssertionError("unreachable")


def _log_path(directory: Path, slot: int) -> Path:
    return directory / f"events-{slot}.db"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another worker has adopted it
        return 0
