"""Memory of the problems of the whole instance, which all workers share: since when each one exists."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from tornado_gateway.telemetry.slots import Slots, bytes_for

MEMORY_BYTES = 1 << 20  # of address space: 200 environments need 100 KB

Memory = dict[str, Any]


class Judged:
    """One document, changed by one process at a time. Create it before forking.

    `last` and `rises` have the last value of each counter, and the time of its last increase on the monotonic clock;
    `samples` the load of the last minutes; `since` the start of each problem, in Unix seconds, and the
    last time when it was found.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("verdict")  # a file, because a lock of a file ends with its process
        size = bytes_for(MEMORY_BYTES)
        self._slots = Slots(mmap.mmap(-1, size), 1, size)

    @contextmanager
    def changing(self) -> Iterator[Memory]:
        """Lock the document, and store the changes made in the block."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            memory = self._read()
            yield memory
            self._slots.write(0, orjson.dumps(memory))
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read(self) -> Memory:
        body = self._slots.read(0)
        return {"last": {}, "rises": {}, "samples": [], "since": {}} if body is None else orjson.loads(body)
