"""Claims of log lines: of all workers that see the same condition, one writes the line (`logs.share`)."""

import fcntl
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import orjson

from tornado_gateway.telemetry.slots import Slots, bytes_for

MEMORY_BYTES = 1 << 18  # MOST_CONDITIONS with MOST_ENVIRONMENTS each need 160 KB
MOST_CONDITIONS = 200  # at the same time; the lines of further ones are written by every worker
MOST_ENVIRONMENTS = 10  # with the same condition, because VWO may be unreachable for hundreds of them
FURTHER = "Further environments with this problem are in /status only."
LOCK_TRIES = 20
LOCK_RETRY_SECONDS = 0.001

Held = dict[str, dict[str, tuple[int, float]]]  # condition: environment: process ID and end (monotonic)


class Claims:
    """The conditions of which a process writes the lines now. Create it before forking."""

    def __init__(self) -> None:
        self._file = os.memfd_create("claims")  # a file, because a lock of a file ends with its process
        size = bytes_for(MEMORY_BYTES)
        self._slots = Slots(mmap.mmap(-1, size), 1, size)
        self._threads = threading.Lock()  # locks of files are those of the process

    def claim(self, condition: str, environment: str, seconds: float) -> str | None:
        """Return None if another process writes the lines of this condition, otherwise a text to add to the line.

        The claim ends after these seconds, or with its process. While the lock is not available, lines are written
        rather than lost.
        """
        key = hashlib.blake2b(condition.encode(), digest_size=8).hexdigest()
        with self._threads, self._locked() as is_locked:
            if not is_locked:
                return ""
            held = self._read()
            more = _added(held, key, environment, seconds)
            if more is not None:
                self._slots.write(0, orjson.dumps(held))
            return more

    def _read(self) -> Held:
        """Return the claims that have not ended."""
        body, now = self._slots.read(0), time.monotonic()
        held: Held = {} if body is None else orjson.loads(body)
        current = {
            key: {environment: claim for environment, claim in claims.items() if claim[1] > now}
            for key, claims in held.items()
        }
        return {key: claims for key, claims in current.items() if claims}

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Lock the memory. Yield False if that is not possible soon: the process that has locked it may be stopped."""
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError, PermissionError):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_RETRY_SECONDS)
        else:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _added(held: Held, key: str, environment: str, seconds: float) -> str | None:
    """Add or prolong the claim of this process. Return None if it is not possible, otherwise the text to add."""
    claims = held.get(key, {})
    holder = claims.get(environment)
    if holder is not None and holder[0] != os.getpid() and _is_running(holder[0]):
        return None
    if holder is None and len(claims) >= MOST_ENVIRONMENTS:
        return None
    if claims or len(held) < MOST_CONDITIONS:
        held[key] = claims | {environment: (os.getpid(), time.monotonic() + seconds)}
    return FURTHER if holder is None and len(claims) + 1 == MOST_ENVIRONMENTS else ""


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
