"""Slots in shared memory: each has one writing process and any number of readers, without locks.

A slot has two halves, written in turn, and the number before them says how many have been completed. So neither a
reader nor a later process in this slot ever gets half of a body that a killed writer did not complete. A reader that is
overtaken twice notices it by the number or the checksum.
"""

import mmap
import struct
import zlib

WORD_BYTES = 8
READ_TRIES = 100

_HEAD = struct.Struct("=QII")  # the number again, the length, the checksum


class Slots:
    """`count` slots from the byte `start` of a shared mapping. `start` and `slot_bytes` are multiples of 8."""

    def __init__(self, memory: mmap.mmap, count: int, slot_bytes: int, start: int = 0) -> None:
        self._memory = memory
        # Stores 8 bytes at once. `struct` fills with zeros first, which another process would see.
        self._numbers = memoryview(memory).cast("Q")
        self.count = count
        self._start = start
        self._slot_bytes = slot_bytes
        self._half_bytes = (slot_bytes - WORD_BYTES) // 2
        self.capacity = self._half_bytes - _HEAD.size  # bytes of a body

    def write(self, slot: int, body: bytes) -> None:
        """Replace the body of a slot. Only the process that owns the slot may call it."""
        if len(body) > self.capacity:
            raise ValueError(f"a record of {len(body)} bytes does not fit into {self.capacity}")
        start = self._start + slot * self._slot_bytes
        number = self._numbers[start // WORD_BYTES] + 1
        half = self._half(start, number)
        _HEAD.pack_into(self._memory, half, number, len(body), _checksum(number, body))
        self._memory[half + _HEAD.size : half + _HEAD.size + len(body)] = body
        self._numbers[start // WORD_BYTES] = number

    def read(self, slot: int) -> bytes | None:
        """Return the last complete body; None if there is none yet."""
        start = self._start + slot * self._slot_bytes
        for _ in range(READ_TRIES):
            number = self._numbers[start // WORD_BYTES]
            if not number:
                return None
            half = self._half(start, number)
            again, size, checksum = _HEAD.unpack_from(self._memory, half)
            body = self._memory[half + _HEAD.size : half + _HEAD.size + min(size, self.capacity)]
            if again == number and checksum == _checksum(number, body):
                return body
        return None

    def _half(self, start: int, number: int) -> int:
        return start + WORD_BYTES + number % 2 * self._half_bytes


def bytes_for(body_bytes: int) -> int:
    """Return the size of a slot whose bodies have up to `body_bytes` bytes, in whole words."""
    half = -(-(body_bytes + _HEAD.size) // WORD_BYTES) * WORD_BYTES
    return WORD_BYTES + 2 * half


def _checksum(number: int, body: bytes) -> int:
    return zlib.crc32(body, number & 0xFFFFFFFF)
