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

import orjson

from tornado_gateway.telemetry.layout import GAUGES, Layout
from tornado_gateway.telemetry.slots import WORD_BYTES, Slots, bytes_for

T = TypeVar("T")

Counts = dict[str, int]

SHOWN_BYTES = 1 << 17  # of address space, for the numbers that were shown last: 200 environments need 8 KB


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
        size = rows * slot_bytes
        self._file = _anonymous_file()  # a file, because a lock of a file ends with the process that holds it
        os.ftruncate(self._file, size)
        memory = mmap.mmap(self._file, size)
        self._slots = Slots(memory, rows, slot_bytes)
        self._shown = Slots(mmap.mmap(-1, SHOWN_BYTES), 1, SHOWN_BYTES)

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

    def steady(self, read: Callable[[], tuple[T, dict[str, Counts]]]) -> tuple[T, dict[str, Counts]]:
        """Return event counts, by environment, that never decrease, whichever workers show them one after the other.

        On the scoreboard they decrease when a worker is killed: its last deliveries are missing among received and
        delivered alike. Counts that have been shown already are added to both again, and stay added.
        """
        with self._locked():
            context, counts = read()
            known = orjson.loads(self._shown.read(0) or b"{}")
            shown = {name: _shown_next(numbers, *known.get(name, (0, 0))) for name, numbers in counts.items()}
            self._shown.write(0, orjson.dumps(shown))
        return context, {name: _with_missing(numbers, shown[name][1]) for name, numbers in counts.items()}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _shown_next(counts: Counts, shown: int, missing: int) -> tuple[int, int]:
    """Return the received events to show, and the missing ones among them, after those that were shown last."""
    missing += max(0, shown - missing - counts["received"])
    return counts["received"] + missing, missing


def _with_missing(counts: Counts, missing: int) -> Counts:
    return {**counts, "received": counts["received"] + missing, "delivered": counts["delivered"] + missing}


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
