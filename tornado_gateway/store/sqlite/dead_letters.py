"""The table of events that upstream rejected permanently, in a file that all workers share."""

import sqlite3
from collections.abc import Sequence

from tornado_gateway.store.interfaces import DeadLetter, Identity, read_letter
from tornado_gateway.store.sqlite.database import ranges, transaction

INSERT_DEAD = """
INSERT INTO letters.dead (owner, at, count, query, body, reason, account_id, sdk_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


ALL_LOGS = "*"


def count_dead(connection: sqlite3.Connection, log: str) -> int:
    """Return the number of dead events of a log, or of ALL_LOGS."""
    count: int
    query = "SELECT coalesce(sum(count), 0) FROM letters.dead WHERE owner GLOB ?"
    (count,) = connection.execute(query, (log,)).fetchone()
    return count


LIST_DEAD = """
SELECT id, count, body, query, reason, at, account_id, sdk_key FROM letters.dead WHERE id >= ? ORDER BY id LIMIT ?
"""


def dead_letters(connection: sqlite3.Connection, limit: int, first: int | str | None = None) -> list[DeadLetter]:
    rows = connection.execute(LIST_DEAD, (0 if first is None else first, limit))
    return [
        read_letter(id_, count, body, text, reason, at, Identity(account_id, sdk_key))
        for id_, count, body, text, reason, at, account_id, sdk_key in rows
    ]


def choose_letters(
    connection: sqlite3.Connection, ids: Sequence[int | str] | None, max_events: int | None
) -> list[int]:
    """Return the oldest of the wanted letters (None: all) that have together at most `max_events`."""
    wanted = None if ids is None else set(ids)
    chosen: list[int] = []
    for id_, count in connection.execute("SELECT id, count FROM letters.dead ORDER BY id"):
        if wanted is not None and id_ not in wanted:
            continue
        if max_events is not None:
            max_events -= count
            if max_events < 0:
                break
        chosen.append(id_)
    return chosen


def trim_dead_letters(connection: sqlite3.Connection, log: str, max_events: int) -> int:
    """Delete the oldest letters of a log, or of ALL_LOGS, beyond the limit. Return the number of their events."""
    excess = count_dead(connection, log) - max_events
    if excess <= 0:
        return 0
    letters: list[int] = []
    for id_, count in connection.execute("SELECT id, count FROM letters.dead WHERE owner GLOB ? ORDER BY id", (log,)):
        if excess <= 0:
            break
        letters.append(id_)
        excess -= count
    statement = "DELETE FROM letters.dead WHERE owner GLOB ? AND id BETWEEN ? AND ? RETURNING count"
    with transaction(connection):  # count the deleted ones: another worker may have requeued some
        deleted = [connection.execute(statement, (log, *ends)).fetchall() for ends in ranges(letters)]
    return sum(count for rows in deleted for (count,) in rows)


def delete_letters(connection: sqlite3.Connection, letters: Sequence[int | str]) -> int:
    """Delete letters of any log. Return the number of their events."""
    statement = "DELETE FROM letters.dead WHERE id = ? RETURNING count"
    with transaction(connection):
        deleted = [connection.execute(statement, (id_,)).fetchall() for id_ in _numbers(letters)]
    return sum(count for rows in deleted for (count,) in rows)


def _numbers(letters: Sequence[int | str]) -> list[int]:
    """Return those that can be ids of this store."""
    return [id_ for id_ in letters if isinstance(id_, int) and abs(id_) < 1 << 63]


def expired_letters(connection: sqlite3.Connection, log: str, before: float, most: int) -> list[int]:
    """Return the oldest letters of a log, or of ALL_LOGS, from before this time."""
    query = "SELECT id FROM letters.dead WHERE owner GLOB ? AND at < ? ORDER BY id LIMIT ?"
    return [id_ for (id_,) in connection.execute(query, (log, before, most))]


def letters_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another process has changed letters."""
    version: int
    (version,) = connection.execute("PRAGMA letters.data_version").fetchone()
    return version


def adopt_dead_letters(connection: sqlite3.Connection, former: str, log: str) -> int:
    """Count the dead letters of another log in this one. Return the number of their events."""
    moved = count_dead(connection, former)
    connection.execute("UPDATE letters.dead SET owner = ? WHERE owner = ?", (log, former))
    return moved
