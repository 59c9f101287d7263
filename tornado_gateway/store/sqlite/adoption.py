"""Moving the events of dead workers into the log of a living one."""

import os
import sqlite3
from pathlib import Path

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.chunks import Ids, Row, insert
from tornado_gateway.store.sqlite.database import Database, Then, transaction
from tornado_gateway.store.sqlite.dead_letters import adopt_dead_letters
from tornado_gateway.store.sqlite.locks import try_lock
from tornado_gateway.store.sqlite.repair.guard import Guard, GuardedFile
from tornado_gateway.store.sqlite.schema import EVENTS
from tornado_gateway.store.sqlite.space import DiskSpace

ADOPTED_AT_ONCE = 256  # chunks that move out of an abandoned log in one transaction
ADOPTED_BYTES = 256 * 1024


class Adoption:
    """Moves the logs of dead workers in a directory into the log that `database` holds."""

    def __init__(self, directory: Path, database: Database, space: DiskSpace, ids: Ids, inserted: Then) -> None:
        self._directory = directory
        self._database = database
        self._space = space
        self._ids = ids
        self._inserted = inserted

    async def adopt(self, log: str) -> int:
        """Move the contents of all logs without a living owner into `log`. Return the number of events moved.

        The two files cannot change in one transaction, so that a crash in between moves some chunks twice: an event
        may be delivered twice, but is never lost. A log that cannot be moved does not stop the others; its error is
        raised at the end.
        """
        moved = 0
        failure: StoreError | None = None
        for path in sorted(self._directory.glob("events-*.db")):
            try:
                moved += await self._adopt_log(path, log)
            except StoreError as error:
                failure = failure or error
            except OSError as error:  # such as a read-only directory: the empty log stays there
                failure = failure or StoreError(f"{path}: {error}")
        await self._database.run(self._space.check)  # also without events, because other workers may need the space
        if failure is not None:
            raise failure
        return moved

    async def _adopt_log(self, path: Path, log: str) -> int:
        lock = try_lock(path.with_suffix(".lock"))
        if lock is None:
            return 0
        try:
            return await self._move_log(path, log)
        finally:
            os.close(lock)

    async def _move_log(self, path: Path, log: str) -> int:
        moved = await self._database.run(adopt_dead_letters, path.stem, log)
        source = Guard([GuardedFile(path, EVENTS)], "", self._space)
        try:
            while True:
                events = await self._database.run(_move_page, self._ids, self._space, source, then=self._inserted)
                if not events:
                    break
                moved += events
        finally:
            await self._database.run(lambda _: source.close())
        for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            name.unlink(missing_ok=True)
        return moved


def _move_page(connection: sqlite3.Connection, ids: Ids, space: DiskSpace, source: Guard) -> int:
    """Move the next chunks of another log into this one. Return the number of their events."""
    rows, last = source.run(_first_page)
    if not rows:
        return 0
    space.claim_for_move(connection, sum(len(row[3]) for row in rows))
    with transaction(connection):
        insert(connection, ids, rows)
    source.run(lambda opened: opened.execute("DELETE FROM chunks WHERE id <= ?", (last,)))
    return sum(row[1] for row in rows)


def _first_page(source: sqlite3.Connection) -> tuple[list[Row], int]:
    """Return the first chunks of a log, and the id of the last one of them."""
    columns = "id, at, count, query, body, account_id, sdk_key"
    rows: list[Row] = []
    size = last = 0
    for id_, *row in source.execute(f"SELECT {columns} FROM chunks ORDER BY id LIMIT {ADOPTED_AT_ONCE}"):  # noqa: S608
        if rows and size + len(row[3]) > ADOPTED_BYTES:
            break
        rows.append(tuple(row))
        size += len(row[3])
        last = id_
    return rows, last
