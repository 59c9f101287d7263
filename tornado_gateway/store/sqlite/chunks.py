"""The table of stored chunks. Each function is one job of the thread of a database.

Chunks have numbers, and numbers of neighbours are deleted as ranges.
"""

import sqlite3
import time
from collections.abc import Sequence

from tornado_gateway.store.interfaces import CLAIM_BYTES, Chunk, Depth, Identity, NewChunk
from tornado_gateway.store.sqlite.database import ranges, transaction
from tornado_gateway.store.sqlite.dead_letters import INSERT_DEAD, count_dead
from tornado_gateway.store.sqlite.space import DiskSpace

READ_CHUNKS = 5000  # one claim never reads more chunks than this
INSERT_CHUNK = """
INSERT INTO chunks (id, at, count, query, body, account_id, sdk_key) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
Row = tuple[float, int, str, bytes, str, str]  # at, count, query, body, account, key


class Ids:
    """Numbers of chunks. Only the thread of the database assigns them; `last` may be read anywhere."""

    def __init__(self) -> None:
        self.last = 0

    def take(self, count: int) -> range:
        first = self.last + 1
        self.last += count
        return range(first, first + count)


def last_id(connection: sqlite3.Connection) -> int:
    last: int
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
    return last


def append(
    connection: sqlite3.Connection,
    ids: Ids,
    space: DiskSpace,
    chunks: Sequence[NewChunk],
    size: int,
    settled: Sequence[int],
) -> int:
    """Return the last id. Each statement hands over the interpreter's lock: one chunk needs no transaction."""
    space.claim(connection, size)
    now = time.time()
    if len(chunks) == 1 and not settled:
        chunk = chunks[0]
        ids.last += 1
        connection.execute(INSERT_CHUNK, (ids.last, now, chunk.count, chunk.query, chunk.body, *chunk.identity))
        return ids.last
    with transaction(connection):
        delete(connection, settled)  # first: its pages are used again at once
        insert(connection, ids, [(now, chunk.count, chunk.query, chunk.body, *chunk.identity) for chunk in chunks])
    return ids.last


def insert(connection: sqlite3.Connection, ids: Ids, rows: Sequence[Row]) -> None:
    new_ids = ids.take(len(rows))
    connection.executemany(INSERT_CHUNK, [(id_, *row) for id_, row in zip(new_ids, rows, strict=True)])


def write_again(connection: sqlite3.Connection, chunks: Sequence[Chunk]) -> int:
    """Store chunks under their ids if a new file does not have them. Return the number of their events.

    A claimed chunk may have no body here. Its row keeps the counts true, and the worker that has the body settles it.
    """
    now, events = time.time(), 0
    statement = INSERT_CHUNK.replace("INSERT", "INSERT OR IGNORE")
    with transaction(connection):
        for chunk in chunks:
            row = (chunk.id, now, chunk.count, chunk.query, chunk.body, *chunk.identity)
            events += chunk.count * connection.execute(statement, row).rowcount
    return events


def delete_alone(connection: sqlite3.Connection, space: DiskSpace, ids: Sequence[int]) -> None:
    try:
        with transaction(connection):
            delete(connection, ids)
    except sqlite3.Error as error:
        if not space.drop_reserve(error):
            raise
        with transaction(connection):
            delete(connection, ids)
    if space.problem is not None:
        space.check(connection)


def delete(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    for first, last in ranges(ids):
        connection.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, last))


def read_after(
    connection: sqlite3.Connection, ids: Ids, last: int, max_events: int, needs_one: bool
) -> tuple[list[Chunk], int]:
    """Return the next chunks, together at most `max_events`, but at least one if it is needed.

    Return also the last id up to which there are no others.
    """
    chunks: list[Chunk] = []
    size = 0
    query = "SELECT id, count, body, query, account_id, sdk_key FROM chunks WHERE id > ? ORDER BY id LIMIT ?"
    for id_, count, body, text, account_id, sdk_key in connection.execute(query, (last, READ_CHUNKS)):
        chunk = Chunk(id_, count, body, text, Identity(account_id, sdk_key))
        if (chunks or not needs_one) and (chunk.count > max_events or size + len(chunk.body) > CLAIM_BYTES):
            break
        chunks.append(chunk)
        max_events -= chunk.count
        size += len(chunk.body)
    else:
        if len(chunks) < READ_CHUNKS:
            return chunks, ids.last
    return chunks, int(chunks[-1].id) if chunks else last


def settle(
    connection: sqlite3.Connection,
    ids: Ids,
    space: DiskSpace,
    log: str,
    settled: Sequence[int],
    dead: Sequence[tuple[NewChunk, str]],
    remaining: Sequence[NewChunk],
) -> None:
    """Settle chunks. The two files cannot change in one transaction: letters first, so that a crash loses nothing."""
    now = time.time()
    letters = [(log, now, c.count, c.query, c.body, reason, *c.identity) for c, reason in dead]
    rows = [(now, c.count, c.query, c.body, *c.identity) for c in remaining]
    if letters:
        with transaction(connection):
            connection.executemany(INSERT_DEAD, letters)
    with transaction(connection):
        delete(connection, settled)
        insert(connection, ids, rows)
    if space.problem is not None:
        space.check(connection)


def depth(connection: sqlite3.Connection, log: str, settled: Sequence[int]) -> Depth:
    """Count the events of all chunks in the file; `oldest_at` and the bytes leave out settled ones."""
    (waiting,) = connection.execute("SELECT coalesce(sum(count), 0) FROM chunks").fetchone()
    query = "SELECT min(at), coalesce(sum(length(body)), 0) FROM chunks WHERE id > ? AND id < ?"
    found = [connection.execute(query, gap).fetchone() for gap in _gaps(ranges(settled))]
    oldest_at = min((at for at, _ in found if at is not None), default=None)
    return Depth(waiting, count_dead(connection, log), oldest_at, sum(size for _, size in found))


def _gaps(taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the bounds, exclusive, of the numbers between these ranges."""
    firsts = [0, *(last for _, last in taken)]
    return list(zip(firsts, [*(first for first, _ in taken), 1 << 62], strict=True))


def requeue_edited(connection: sqlite3.Connection, ids: Ids, space: DiskSpace, letter: int, body: bytes) -> int:
    """Move a letter of one event with another body, in the same order as `requeue`."""
    query = "SELECT at, count, query, account_id, sdk_key FROM letters.dead WHERE id = ? AND count = 1"
    rows = [(at, count, text, body, *identity) for at, count, text, *identity in connection.execute(query, (letter,))]
    space.claim(connection, len(body) * len(rows))
    with transaction(connection):
        insert(connection, ids, rows)
    with transaction(connection):
        connection.executemany("DELETE FROM letters.dead WHERE id = ?", [(letter,) for _ in rows])
    return len(rows)


def requeue(connection: sqlite3.Connection, ids: Ids, space: DiskSpace, letters: Sequence[int]) -> int:
    marks = ", ".join("?" * len(letters))
    columns = "at, count, query, body, account_id, sdk_key"
    query = f"SELECT {columns} FROM letters.dead WHERE id IN ({marks}) ORDER BY id"  # noqa: S608
    rows = connection.execute(query, letters).fetchall()
    space.claim(connection, sum(len(row[3]) for row in rows))
    with transaction(connection):
        insert(connection, ids, rows)
    with transaction(connection):
        connection.executemany("DELETE FROM letters.dead WHERE id = ?", [(id_,) for id_ in letters])
    return sum(row[1] for row in rows)
