"""The connection of one thread to its files, which survives damage to a file and its deletion.

A damaged file is replaced by a new one with the rows that can still be read. If files are deleted or moved while they
are in use, the connection still has all their rows: they are copied into new files.
"""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.repair.rescue import copy_rows, is_damage, move_misplaced_aside, replace
from tornado_gateway.store.sqlite.schema import Kind, set_up
from tornado_gateway.store.sqlite.space import DiskSpace

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BUSY_SECONDS = 10.0  # maximum time for which another process may lock a file
BUSY_PAUSE_SECONDS = 0.02
CHECK_SECONDS = 0.25  # between two checks whether the files are still in their place
OPEN_TRIES = 4  # each of two files may be damaged

Place = tuple[int, int] | None  # device and number of the file at a path


@dataclass(slots=True)
class GuardedFile:
    """A file under its schema name. Other processes use an `is_shared` file as well."""

    path: Path
    kind: Kind
    schema: str = "main"
    is_shared: bool = False
    place: Place = None


class Guard:
    """Opens the files, the first one as `main`. All methods but `__init__` belong to the thread of the database.

    `relocate` returns the path for a new main file after the old one has disappeared.
    """

    def __init__(
        self, files: Sequence[GuardedFile], pragmas: str, space: DiskSpace, relocate: Callable[[], Path] | None = None
    ) -> None:
        self.main = files[0]
        self.replaced = 0  # how often a file was replaced, so that rows may be missing
        self.check_seconds = CHECK_SECONDS
        self._files = files
        self._pragmas = pragmas
        self._space = space
        self._relocate = relocate
        self._connection: sqlite3.Connection | None = None
        self._opening = files[0]
        self._checked_at = 0.0

    @property
    def name(self) -> str:
        return str(self.main.path)

    def connect(self) -> sqlite3.Connection:
        """Open all files, and replace damaged ones. Raise StoreError."""
        for _ in range(OPEN_TRIES):
            places = [_place_of(file.path) for file in self._files]
            try:
                self._connection = self._open_all()
                return self._connection
            except (sqlite3.Error, OSError) as error:
                file = self._opening
                if not is_damage(error):
                    raise StoreError(f"{file.path} cannot be opened: {error}") from error
                self._replace(file, places[self._files.index(file)], error)
        raise StoreError(f"{self._opening.path} cannot be opened: it is damaged again and again")

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """Call `work(connection, ...)`, again if it has failed because of a damaged file. Raise StoreError."""
        connection = self._connection or self.connect()
        try:
            return work(connection, *args)
        except (sqlite3.Error, OSError) as error:
            failure = error
        if not self._repair(failure):
            raise StoreError(f"{self.name}: {failure}") from failure
        try:
            return work(self._connection or self.connect(), *args)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.name}: {error}") from error

    def check(self, *, at_once: bool = False) -> None:
        """If files have disappeared, create them again with all their rows. Raise StoreError if that fails."""
        now = time.monotonic()
        if self._connection is None or (not at_once and now - self._checked_at < CHECK_SECONDS):
            return
        self._checked_at = now
        missing = [file for file in self._files if _place_of(file.path) != file.place]
        if missing:
            self._checked_at = 0.0  # until it has worked, each job tries
            self._restore(missing)
            self._checked_at = now

    def _open_all(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        try:
            for file in self._files:
                self._opening = file
                connection = self._open(file, connection)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        assert connection is not None  # noqa: S101  there is at least one file
        return connection

    def _open(self, file: GuardedFile, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        move_misplaced_aside(file.path)
        is_new = connection is None
        if connection is None:
            connection = sqlite3.connect(file.path, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            if is_new:
                set_up_patiently(connection, lambda new: new.executescript(self._pragmas), self._space)
            else:
                attach = f"ATTACH DATABASE ? AS {file.schema}"  # reads the file, which needs space for its WAL's index
                set_up_patiently(connection, lambda opened: opened.execute(attach, (str(file.path),)), self._space)
            set_up_patiently(connection, partial(set_up, schema=file.schema, kind=file.kind), self._space)
        except BaseException:
            if is_new:
                connection.close()
            raise
        file.place = _place_of(file.path)
        return connection

    def _repair(self, error: BaseException) -> bool:
        """Replace the damaged file. Return whether there was one."""
        file = self._find_damaged() if is_damage(error) else None
        if file is None:
            return False
        self.close()
        self._replace(file, file.place, error)
        self.connect()
        return True

    def _find_damaged(self) -> GuardedFile | None:
        for file in self._files:
            if self._connection is None or not _is_intact(self._connection, file.schema):
                return file
        return None

    def _replace(self, file: GuardedFile, place: Place, error: BaseException) -> None:
        """Replace a file, unless another process has already done so."""
        with _exclusive([file]):
            if _place_of(file.path) == place:
                try:
                    replace(file.path, file.kind, error)
                except (sqlite3.Error, OSError) as failure:
                    raise StoreError(f"{file.path} is damaged and cannot be replaced: {failure}") from failure
        self.replaced += 1

    def _restore(self, missing: Sequence[GuardedFile]) -> None:
        old = self._connection
        places = [file.place for file in self._files]
        former = self.main.path
        try:
            self.main.path.parent.mkdir(parents=True, exist_ok=True)
            if self.main in missing and self._relocate is not None:
                self.main.path = self._relocate()
            with _exclusive(missing):
                absent = [file for file in missing if not file.path.exists()]
                connection = self._open_all()
                copied = sum(copy_rows(old, connection, file.schema, file.kind).rows for file in absent if old)
        except (sqlite3.Error, OSError) as error:
            for file, place in zip(self._files, places, strict=True):
                file.place = place
            raise StoreError(f"{former} was deleted or moved and cannot be created again: {error}") from error
        self._connection = connection
        self.replaced += 1
        if old is not None:
            old.close()
        names = ", ".join(str(file.path) for file in missing)
        logger.error("files in use were deleted or moved: %s created again, with %d rows", names, copied)


class Follower:
    """A further connection to the main file of a guard, in another thread, without a check of its own."""

    check_seconds: float | None = None

    def __init__(self, guard: Guard, pragmas: str) -> None:
        self._guard = guard
        self._pragmas = pragmas
        self._connection: sqlite3.Connection | None = None
        self._place: Place = None

    @property
    def name(self) -> str:
        return self._guard.name

    def connect(self) -> sqlite3.Connection:
        self.close()
        self._place = self._guard.main.place
        self._connection = sqlite3.connect(self._guard.main.path, isolation_level=None, timeout=BUSY_SECONDS)
        self._connection.executescript(self._pragmas)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check(self, *, at_once: bool = False) -> None:
        """Do nothing: `run` follows the guard."""

    def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        try:
            is_current = self._connection is not None and self._place == self._guard.main.place
            connection = self._connection if is_current and self._connection else self.connect()
            return work(connection, *args)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.name}: {error}") from error


def set_up_patiently(
    connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], object], space: DiskSpace
) -> None:
    """Wait for another process that makes or changes the same file, which SQLite's own time-out does not cover."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            work(connection)
            return
        except sqlite3.OperationalError as error:
            if space.drop_reserve(error):
                continue
            if is_damage(error) or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_SECONDS)


def _is_intact(connection: sqlite3.Connection, schema: str) -> bool:
    with suppress(sqlite3.DatabaseError):
        (first,) = connection.execute(f"PRAGMA {schema}.quick_check(1)").fetchone()
        return bool(first == "ok")
    return False


def _place_of(path: Path) -> Place:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def _exclusive(files: Sequence[GuardedFile]) -> Iterator[None]:
    """Keep other processes from replacing or creating those of the files that are shared."""
    with ExitStack() as stack:
        for file in files:
            if file.is_shared:
                lock = os.open(file.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
