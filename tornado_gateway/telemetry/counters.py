"""The counters of all workers in shared memory: one row for each row of the scoreboard.

A worker counts in a list of its own and copies it here regularly. A later process with the same row continues from the
numbers that its predecessor published last, so that no counter ever decreases: when a worker is killed, at most the
counts since its last copy are lost.
"""

import array
import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tornado_gateway.telemetry.layout import GAUGES, Layout
from tornado_gateway.telemetry.slots import WORD_BYTES, Slots, bytes_for

T = TypeVar("T")

_HEADER_WORDS = 2  # the received events that were shown last, and those missing, see `SharedCounters.steady`


@dataclass(frozen=True, slots=True)
class CounterRow:
    """The numbers that the process `generation` published last: its gauges, and the counts of its row."""

    generation: int
    gauges: dict[str, float]
    counts: list[int]


class SharedCounters:
    """One row for each row of the scoreboard, written by the process that owns it. Create it before forking."""

    def __init__(self, layout: Layout, rows: int = 1) -> None:
        self.layout = layout
        self.rows = rows
        slot_bytes = bytes_for((1 + len(GAUGES) + layout.size) * WORD_BYTES)
        size = _HEADER_WORDS * WORD_BYTES + rows * slot_bytes
        self._file = _anonymous_file()  # a file, because a lock of a file ends with the process that holds it
        os.ftruncate(self._file, size)
        memory = mmap.mmap(self._file, size)
        self._words = memoryview(memory).cast("Q")
        self._slots = Slots(memory, rows, slot_bytes, start=_HEADER_WORDS * WORD_BYTES)

    def write(self, number: int, row: CounterRow) -> None:
        gauges = array.array("d", [row.gauges[name] for name in GAUGES])
        counts = array.array("Q", [row.generation, *row.counts])
        self._slots.write(number, gauges.tobytes() + counts.tobytes())

    def read(self, number: int) -> CounterRow | None:
        body = self._slots.read(number)
        if body is None:
            return None
        words = memoryview(body)
        gauges = words[: len(GAUGES) * WORD_BYTES].cast("d").tolist()
        generation, *counts = words[len(GAUGES) * WORD_BYTES :].cast("Q").tolist()
        return CounterRow(generation, dict(zip(GAUGES, gauges, strict=True)), counts)

    def read_all(self) -> list[CounterRow]:
        return [row for number in range(self.rows) if (row := self.read(number)) is not None]

    def steady(self, read: Callable[[], tuple[T, dict[str, int]]]) -> tuple[T, dict[str, int]]:
        """Return event counts that never decrease, whichever workers show them one after the other.

        On the scoreboard they decrease when a worker is killed: its last deliveries are missing among received and
        delivered alike. Counts that have been shown already are added to both again, and stay added.
        """
        with self._locked():
            context, counts = read()
            shown, missing = self._words[0], self._words[1]
            missing += max(0, shown - missing - counts["received"])
            received = counts["received"] + missing
            self._words[0], self._words[1] = received, missing
        return context, {**counts, "received": received, "delivered": counts["delivered"] + missing}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
