"""Turns of all workers for something that may be done once in a while, such as a refresh that clients cause."""

import fcntl
import mmap
import os
import time
import zlib

LONGEST_WAIT_SECONDS = 3.0  # less than SDKs wait for a response
TURN_SECONDS = 1.0
PLACES = 256  # names with the same place share their turns
_WORD_BYTES = 8


class Turns:
    """One turn for each name every `pause_seconds` for all processes together. Create it before forking."""

    def __init__(self, pause_seconds: float = TURN_SECONDS) -> None:
        self._pause_seconds = pause_seconds
        self._file = os.memfd_create("turns")  # a file, because a lock of a file ends with its process
        os.ftruncate(self._file, PLACES * _WORD_BYTES)
        self._words = memoryview(mmap.mmap(self._file, PLACES * _WORD_BYTES)).cast("Q")

    def take(self, longest_wait_seconds: float = LONGEST_WAIT_SECONDS, name: str = "") -> float | None:
        """Return the time until the turn of the caller; None if it would be longer, then it gets no turn."""
        place = zlib.crc32(name.encode()) % PLACES
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            now = time.monotonic()
            last = self._words[place] / 1e9
            turn = max(now, last + self._pause_seconds) if last else now
            if turn - now > longest_wait_seconds:
                return None
            self._words[place] = int(turn * 1e9)
            return turn - now
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
