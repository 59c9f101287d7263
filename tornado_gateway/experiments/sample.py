"""A sample of the distinct visitors of one experiment, in 64 KB, which workers can merge without counting any twice.

A visitor is a hash, the last 15 digits of their uuid. It selects one of CELLS cells and one of SLOTS slots.

A cell keeps the variation of the first visitor that selects it, and never changes. So the filled cells are distinct
visitors in the order of their first visits, which is all that a test of their shares needs. Repeated visits and merges
change nothing.

A slot keeps the visitor with the smallest rest of the hash, if that is below _LIMIT, as a quarter of them are: the
others would change nothing once there are more visitors than cells can count. The rests show how many visitors there
were, however many these are, and a visitor that comes back with another variation is recognized.
"""

import math
import sys
import zlib
from array import array
from collections.abc import Sequence
from typing import Final

CELLS: Final = 32_768
SLOTS: Final = 4_096
SLOT_BYTES: Final = 8
SIZE_BYTES: Final = CELLS + SLOTS * SLOT_BYTES
MOST_CODES: Final = 127  # variations of an experiment; the codes begin with 1
DIGITS: Final = 16  # of the uuid: the first of these holds the variant, so it is not random

_RESTS: Final = 2**32
_LIMIT: Final = _RESTS // 4
_EMPTY: Final = 2**41 - 1  # larger than any visitor
_SWITCHED: Final = 0x80  # added to the code of the first variation
_FULL_SHARE: Final = 0.9  # of the cells: beyond it, the slots estimate the number of visitors more precisely
_IS_LITTLE: Final = sys.byteorder == "little"
_ALL_FILLED = int.from_bytes(b"\xff" * CELLS, "little")  # not Final: mypyc fails at a literal of this size
_FILLED: Final = bytes([0] + [255] * 255)


def hashes_of(uuids: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the places and the rests of visitors: the two halves of the last DIGITS hexadecimal digits of a uuid."""
    numbers = array("I", bytes.fromhex("".join([uuid[-DIGITS:] for uuid in uuids])))
    if _IS_LITTLE:
        numbers.byteswap()
    return numbers[::2].tolist(), numbers[1::2].tolist()


class VisitorSample:
    """The sample of one worker. `version` is that of the stored record that it contains.

    `has_news`: it has visitors that the stored record may not have.
    """

    __slots__ = ("cells", "has_news", "slots", "version")

    def __init__(self) -> None:
        self.cells = bytearray(CELLS)
        self.slots = array("Q", [_EMPTY]) * SLOTS
        self.has_news = False
        self.version = 0

    # --- Recording ---

    def add(self, place: int, rest: int, code: int) -> None:
        """Add a visitor with its place and its rest (`hashes_of`), and the code of its variation.

        They come in the order of their visits: if those of one variation came first, it would get more of the cells.
        """
        cell = place % CELLS
        if not self.cells[cell]:
            self.cells[cell] = code
            self.has_news = True
        if rest < _LIMIT:
            slot = place % SLOTS
            kept = self.slots[slot]
            if rest <= kept >> 8:
                self._use(slot, rest << 8 | code, kept)

    def _use(self, slot: int, entry: int, kept: int) -> None:
        """Use a visitor for a slot: a smaller one, or the same again."""
        if entry >> 8 == kept >> 8:
            if entry & _SWITCHED == 0 and (entry ^ kept) & ~_SWITCHED == 0:
                return
            entry = kept | _SWITCHED
        if entry != kept:
            self.slots[slot] = entry
            self.has_news = True

    # --- Merging ---

    def merge(self, other: "VisitorSample") -> None:
        """Add the visitors of another sample. For a visitor, or a cell, that is in both, the other one was first."""
        own = int.from_bytes(self.cells, "little")
        free = int.from_bytes(other.cells.translate(_FILLED), "little") ^ (_ALL_FILLED)
        merged = int.from_bytes(other.cells, "little") | own & free
        self.cells = bytearray(merged.to_bytes(CELLS, "little"))
        own_slots, self.slots = self.slots, array("Q", other.slots)
        for slot, entry in enumerate(own_slots):
            kept = self.slots[slot]
            if entry != kept and entry >> 8 <= kept >> 8:
                self._use(slot, entry, kept)
        self.has_news = self.cells != other.cells or self.slots != other.slots

    def raw(self) -> bytes:
        """Return a copy of the content, of SIZE_BYTES."""
        return bytes(self.cells) + self.slots.tobytes()

    # --- Results ---

    def count(self, code: int) -> int:
        """Return the number of sampled visitors with a variation."""
        return CELLS - len(self.cells.translate(None, bytes((code,))))  # five times as fast as `count`

    @property
    def size(self) -> int:
        """The number of sampled visitors."""
        return CELLS - self.count(0)

    @property
    def visitors(self) -> int:
        """The number of distinct visitors: nearly exact up to some thousands, then within 1 %, and finally 3 %."""
        size = self.size
        if size < _FULL_SHARE * CELLS:
            return round(-CELLS * math.log1p(-size / CELLS))
        total = sum([min(entry >> 8, _LIMIT) for entry in self.slots])
        return round(SLOTS * _RESTS * len(self._kept) / total)

    @property
    def switched(self) -> int:
        """The number of distinct visitors that were shown more than one variation, from those of the slots."""
        kept = self._kept
        found = sum([1 for entry in kept if entry & _SWITCHED])
        return round(self.visitors * found / len(kept)) if found else 0

    @property
    def _kept(self) -> list[int]:
        return [entry for entry in self.slots if entry >> 8 < _LIMIT]


def pack(raw: bytes) -> bytes:
    """Compress the content of a sample. A new one is small; a full one is two thirds of its size."""
    return zlib.compress(raw, 1)


def unpack(body: bytes) -> VisitorSample | None:
    """Return a stored sample, None for bytes that are none."""
    try:
        raw = zlib.decompressobj().decompress(body, SIZE_BYTES + 1)
    except zlib.error:
        return None
    if len(raw) != SIZE_BYTES:
        return None
    sample = VisitorSample()
    sample.cells = bytearray(raw[:CELLS])
    sample.slots = array("Q", raw[CELLS:])
    return sample
