"""The files of the event log of one worker, and the lock that holds them."""

import os
from pathlib import Path

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.locks import lock_log, lock_new_log
from tornado_gateway.store.sqlite.repair.guard import Follower, Guard, GuardedFile
from tornado_gateway.store.sqlite.schema import EVENT_PRAGMAS, EVENTS, LETTERS, synchronous
from tornado_gateway.store.sqlite.space import DiskSpace


class EventFiles:
    """A log in `directory` that no living process has, and the dead letters, which all workers share."""

    def __init__(self, directory: Path, sync: str, space: DiskSpace, pace: int = 1) -> None:
        self._directory = directory
        self._pragmas = f"{EVENT_PRAGMAS} {synchronous(sync)}"
        self._space = space
        self._pace = pace
        self._lock: int | None = None
        self._guard: Guard | None = None

    @property
    def log(self) -> str:
        """The name of the log; empty before it was opened."""
        return "" if self._guard is None else self._guard.main.path.stem

    @property
    def wal_bytes(self) -> int:
        """The size of the log's WAL file."""
        try:
            return 0 if self._guard is None else self._guard.main.path.with_suffix(".db-wal").stat().st_size
        except OSError:  # none, or it cannot be read: the first commit fails then
            return 0

    @property
    def replaced(self) -> int:
        """How often a file was replaced, so that rows may be missing."""
        return 0 if self._guard is None else self._guard.replaced

    def lock(self) -> tuple[Guard, Follower]:
        """Lock a log. Return the connection to its files that is to be opened, and a further one for checkpoints."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path, self._lock = lock_log(self._directory)
        except OSError as error:
            raise StoreError(f"the event log in {self._directory} cannot be opened: {error}") from error
        letters = GuardedFile(self._directory / "dead.db", LETTERS, "letters", is_shared=True)
        self._guard = Guard([GuardedFile(path, EVENTS), letters], self._pragmas, self._space, self._relocate)
        self._guard.check_seconds *= self._pace
        return self._guard, Follower(self._guard, self._pragmas)

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _relocate(self) -> Path:
        """Return the path of a new log, locked, because this one has disappeared. Called in the database's thread."""
        self.unlock()  # the file of the lock may have been deleted too
        path, self._lock = lock_new_log(self._directory, self._directory / f"{self.log}.db")
        return path
