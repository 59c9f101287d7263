"""Free space in DATA_DIR: new events are rejected before the disk is full, so that delivered ones can be deleted.

SQLite needs room even to delete: pages go through the WAL, and from there into the file. A small reserve file is kept
for a disk that other programs have filled: it is removed when the store could not be opened or emptied otherwise.
"""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from tornado_gateway.errors import StoreError

FLOOR_BYTES = 4 * 1024 * 1024
FLOOR_SHARE = 8  # the floor is at most this part of a small file system
RESERVE_BYTES = 1024 * 1024
RESERVE_SHARE = 32
AMPLE_BYTES = 2 * 1024 * 1024 * 1024  # more than the WALs of 30 workers
CHECK_SECONDS = 0.1  # between two checks, unless many bytes were written
CHECKPOINT_TRIES = 25  # another connection may be making a checkpoint at the moment
CHECKPOINT_PAUSE_SECONDS = 0.02
SHRINK_BYTES = 4 * 1024 * 1024  # unused pages of a file that are worth a VACUUM
FULL_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


class DiskSpace:
    """Decides whether a directory has room for more events. Used by the thread that writes them."""

    def __init__(self, directory: Path) -> None:
        self.problem: str | None = None
        self._directory = directory
        self._checked_at = -CHECK_SECONDS
        self._unchecked_bytes = 0
        self._step = 0  # bytes that may be written without a check

    def claim(self, connection: sqlite3.Connection, size: int) -> None:
        """Raise StoreError if `size` bytes of new events would leave too little space."""
        self._unchecked_bytes += size
        now = time.monotonic()
        if self._unchecked_bytes > self._step or now - self._checked_at >= CHECK_SECONDS:
            self._checked_at, self._unchecked_bytes = now, size
            self.check(connection)
        if self.problem is not None:
            raise StoreError(self.problem)

    def claim_for_move(self, connection: sqlite3.Connection, size: int) -> None:
        """Raise StoreError if there is no room to move `size` bytes of stored events. They may go below the floor."""
        free, floor = self._free(), self._floor()
        if free >= AMPLE_BYTES:
            return
        reusable = _make_room(connection, floor // 4)
        free = self._free()
        if free - size < floor // 4 or free + reusable - size < floor // 2:
            raise StoreError(f"the disk of {self._directory} is full: {free / 1e6:.1f} MB are free")

    def check(self, connection: sqlite3.Connection) -> None:
        """Update `problem`. If space is low, empty the WAL first and count the file's unused pages as free."""
        had_problem = self.problem is not None
        self.problem = self._find_problem(0) and self._find_problem(_make_room(connection, self._step))
        if had_problem and self.problem is None:
            self.keep_reserve()

    def _find_problem(self, reusable_bytes: int) -> str | None:
        free, floor = self._free(), self._floor()
        self._step = floor // 4
        if free >= AMPLE_BYTES:
            return None
        after_checkpoint = free + reusable_bytes - _wal_bytes(self._directory)
        if free >= floor // 2 and after_checkpoint >= floor:
            return None
        return (
            f"the disk of {self._directory} is full: {free / 1e6:.1f} MB are free, new events are rejected"
            f" below {floor / 1e6:.1f} MB"
        )

    def drop_reserve(self, error: sqlite3.Error | OSError) -> bool:
        """Free the reserve if `error` is due to a full disk. Return whether another try is worthwhile."""
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, sqlite3.Error) and (code is None or code & 0xFF not in FULL_CODES):
            return False
        try:
            if self._free() >= self._floor():
                return False
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def keep_reserve(self) -> None:
        """Allocate the reserve, if there is none and enough space."""
        with suppress(OSError):
            size = min(RESERVE_BYTES, self.total() // RESERVE_SHARE)
            if self._reserve.exists() or self._free() < self._floor() + size:
                return
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError:
                self._reserve.unlink()
            finally:
                os.close(descriptor)

    @property
    def _reserve(self) -> Path:
        return self._directory / "reserve"

    def _floor(self) -> int:
        return min(FLOOR_BYTES, self.total() // FLOOR_SHARE)

    def _free(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def total(self) -> int:
        """Return the bytes of the file system."""
        status = os.statvfs(self._directory)
        return status.f_blocks * status.f_frsize


def shrink(connection: sqlite3.Connection, schema: str = "main", most_used_bytes: int | None = None) -> None:
    """Return the unused pages of a file to the disk, if they are many and not fewer than the others.

    The time that it needs depends on the used pages: with `most_used_bytes`, a file with more is left as it is.
    """
    free, used = _pages(connection, schema)
    if free < SHRINK_BYTES or used > free or (most_used_bytes is not None and used > most_used_bytes):
        return
    with suppress(sqlite3.Error):  # a full disk, or another process writes: the next time
        connection.execute("PRAGMA temp_store=MEMORY" if used < SHRINK_BYTES else "PRAGMA temp_store=DEFAULT")
        connection.execute(f"VACUUM {schema}")
        connection.execute(f"PRAGMA {schema}.wal_checkpoint(TRUNCATE)").fetchone()


def _wal_bytes(directory: Path) -> int:
    """Return the bytes that checkpoints may still have to copy into the files."""
    with suppress(OSError), os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.name.endswith("-wal"))
    return 0


def _make_room(connection: sqlite3.Connection, small: int) -> int:
    """Empty the WAL, and shrink the file if it holds little. Return the reusable bytes in the file."""
    _truncate_wal(connection)
    free, used = _pages(connection)
    if used <= small < free:
        with suppress(sqlite3.Error):  # other workers need the space as well
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("VACUUM main")
        _truncate_wal(connection)
        free, used = _pages(connection)
    return free


def _truncate_wal(connection: sqlite3.Connection) -> None:
    for _ in range(CHECKPOINT_TRIES):
        with suppress(sqlite3.Error):
            busy, *_ = connection.execute("PRAGMA main.wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
        time.sleep(CHECKPOINT_PAUSE_SECONDS)


def _pages(connection: sqlite3.Connection, schema: str = "main") -> tuple[int, int]:
    """Return the free and the used bytes of the file."""
    free, pages, size = (
        connection.execute(f"PRAGMA {schema}.{name}").fetchone()[0]
        for name in ("freelist_count", "page_count", "page_size")
    )
    return free * size, (pages - free) * size
