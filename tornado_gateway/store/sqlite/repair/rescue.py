"""Moving a damaged file aside, and copying its readable rows into a new one.

A row is copied if it can be read and its documents are JSON, or compressed and complete, because a damaged page can
also yield wrong bytes.
"""

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.repair.reports import STAMP, write_report
from tornado_gateway.store.sqlite.schema import (
    IDENTITY_COLUMNS,
    ForeignFileError,
    Kind,
    columns,
    columns_of,
    set_up,
    tables,
)
from tornado_gateway.store.versions import PACKED_START, unpacked

logger = logging.getLogger(__name__)

DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SUFFIXES = ("", "-wal", "-shm")
FIRST_PAGE_BYTES = 4096
DOCUMENT_COLUMNS = {"body", "record", "packed"}
LONGEST_GAP = 1 << 40  # ids that are skipped at most, to find the next readable row
MOST_GAPS = 10_000
TEXT_SIGN = "Could not decode"  # in the error for a text of damaged bytes, which has no code

Row = tuple[Any, ...]


@dataclass(slots=True)
class Rescued:
    """The numbers of rows that were copied and of those that were read but are damaged."""

    rows: int = 0
    damaged: int = 0


def is_damage(error: BaseException) -> bool:
    """Return whether an error shows that the file is damaged or foreign; a full disk is another error."""
    if isinstance(error, ForeignFileError):
        return True
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return (code is not None and code & 0xFF in DAMAGE_CODES) or TEXT_SIGN in str(error)


def _misplaced(path: Path) -> list[Path]:
    """Return the entries that are not regular files although they have the name of the file or of a part of it."""
    parts = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    return [part for part in parts if part.exists() and not part.is_file()]


def move_aside(path: Path) -> Path:
    """Rename a file. Return its new path, whose ending is the time."""
    stamp = time.strftime(STAMP, time.gmtime())
    copy, number = path.with_name(f"{path.name}.damaged-{stamp}"), 1
    while copy.exists():
        number += 1
        copy = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    path.rename(copy)
    return copy


def move_misplaced_aside(path: Path) -> None:
    for part in _misplaced(path):
        logger.error("%s was not a file, it is now %s and a new file is created", part, move_aside(part).name)


def replace(path: Path, kind: Kind, reason: object) -> None:
    """Move a damaged file and its WAL aside, and create a new file with the rows that can be read."""
    if _misplaced(path):
        move_misplaced_aside(path)
        return
    copy = _move_database_aside(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as target:
        set_up(target, "main", kind)
        rescued = _rescue(copy, target, kind)
    write_report(copy, rescued.rows, rescued.damaged)
    logger.error(
        "%s was damaged (%s), it is now %s. In a new file: %d rescued rows; %d rows were read but are damaged, rows on"
        " unreadable pages are lost",
        path,
        reason,
        copy.name,
        rescued.rows,
        rescued.damaged,
    )


def _move_database_aside(path: Path) -> Path:
    copy = move_aside(path)
    for suffix in SUFFIXES[1:]:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(copy.with_name(copy.name + suffix))
    return copy


def copy_rows(source: sqlite3.Connection, target: sqlite3.Connection, schema: str, kind: Kind) -> Rescued:
    """Copy all rows that can be read and that `target` does not have, between schemas of the same name."""
    rescued = Rescued()
    source.text_factory = str
    present = tables(source, schema)
    shared = {table: wanted & columns(source, schema, table) for table, wanted in columns_of(kind).items()}
    source.text_factory = bytes
    for table, names in shared.items():
        if table in present and columns_of(kind)[table] - names <= set(IDENTITY_COLUMNS):
            _copy_table(source, target, f"{schema}.{table}", sorted(names), rescued)
    return rescued


def _copy_table(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, names: list[str], rescued: Rescued
) -> None:
    marks = ", ".join("?" * len(names))
    insert = f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608
    target.execute("BEGIN")
    try:
        for row in _readable_rows(source, table, names):
            _insert(target, insert, names, row, rescued)
        target.execute("COMMIT")
    except BaseException:
        if target.in_transaction:
            target.execute("ROLLBACK")
        raise


def _insert(target: sqlite3.Connection, insert: str, names: list[str], row: Row, rescued: Rescued) -> None:
    texts = _decoded(names, row)
    if texts is None:
        rescued.damaged += 1
        return
    try:
        rescued.rows += target.execute(insert, texts).rowcount
    except sqlite3.IntegrityError:
        rescued.damaged += 1


def _decoded(names: list[str], row: Row) -> Row | None:
    """Return the row with texts instead of their bytes, None if it is damaged."""
    values = []
    for name, value in zip(names, row, strict=True):
        is_document = name in DOCUMENT_COLUMNS
        if is_document and not (_is_json(value) or _is_packed(value)):
            return None
        if isinstance(value, bytes) and not is_document:
            try:
                value = value.decode()
            except UnicodeDecodeError:
                return None
        values.append(value)
    return tuple(values)


def _is_json(body: object) -> bool:
    """Return whether it is a JSON document, or a document in each line."""
    return isinstance(body, bytes) and (_parses(body) or all(map(_parses, body.split(b"\n"))))


def _is_packed(body: object) -> bool:
    """Return whether it is a compressed document, which has a checksum."""
    try:
        return isinstance(body, bytes) and body[:1] == PACKED_START and bool(unpacked(body, rest_seconds=0))
    except StoreError:
        return False


def _parses(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _readable_rows(source: sqlite3.Connection, table: str, names: list[str]) -> Iterator[Row]:
    columns_ = ", ".join(names)
    try:
        source.execute(f"SELECT rowid FROM {table} LIMIT 0")  # noqa: S608
    except sqlite3.OperationalError:  # WITHOUT ROWID
        yield from _until_damage(source, f"SELECT {columns_} FROM {table}")  # noqa: S608
        return
    # Row by row: in a longer result, an error of the next row would take the last good one with it.
    query = f"SELECT rowid, {columns_} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1"  # noqa: S608
    position, gaps = -1, 0
    while gaps < MOST_GAPS:
        try:
            row = source.execute(query, (position,)).fetchone()
        except sqlite3.DatabaseError:
            if (after := _next_readable(source, query, position)) is None:
                return
            position, gaps = after, gaps + 1
            continue
        if row is None or row[0] <= position:  # the order is that of the pages, which may be wrong
            return
        position = row[0]
        yield row[1:]


def _until_damage(source: sqlite3.Connection, query: str) -> Iterator[Row]:
    with suppress(sqlite3.DatabaseError):
        yield from source.execute(query)


def _next_readable(source: sqlite3.Connection, query: str, position: int) -> int | None:
    """Return the first id above `position` after which rows can be read again, None if there is none."""
    step = 1
    while not _is_readable(source, query, position + step):
        step *= 2
        if step > LONGEST_GAP:
            return None
    low, high = position + step // 2, position + step  # the former is unreadable, or `position` itself
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_readable(source, query, middle) else (middle, high)
    return high


def _is_readable(source: sqlite3.Connection, query: str, position: int) -> bool:
    try:
        source.execute(query, (position,)).fetchone()
    except sqlite3.DatabaseError:
        return False
    return True


def _rescue(copy: Path, target: sqlite3.Connection, kind: Kind) -> Rescued:
    """Copy rows out of a damaged file; if its first page is unreadable, out of a copy with a new one."""
    with closing(_open_tolerant(copy)) as source, suppress(sqlite3.Error):
        return copy_rows(source, target, "main", kind)
    repaired = copy.with_name(f"{copy.name}.copy")
    try:
        _copy_with_new_first_page(copy, repaired, kind)
        with closing(_open_tolerant(repaired)) as source:
            return copy_rows(source, target, "main", kind)
    except (sqlite3.Error, OSError):
        return Rescued()
    finally:
        for suffix in SUFFIXES:
            with suppress(FileNotFoundError):
                repaired.with_name(repaired.name + suffix).unlink()


def _open_tolerant(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA writable_schema=ON")  # allows a file that is shorter than its header says
    return connection


def _copy_with_new_first_page(source: Path, target: Path, kind: Kind) -> None:
    """Give a copy the first page of an empty file of its kind: the root pages of the tables are the same ones."""
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        set_up(connection, "main", kind)
    page = bytearray(target.read_bytes()[:FIRST_PAGE_BYTES])
    page[92:96] = b"\xff" * 4  # the header's number of pages is ignored, and the size of the file counts
    shutil.copyfile(source, target)
    with suppress(FileNotFoundError):
        shutil.copyfile(source.with_name(source.name + "-wal"), target.with_name(target.name + "-wal"))
    with target.open("r+b") as file:
        file.write(page)
    os.truncate(target, target.stat().st_size // FIRST_PAGE_BYTES * FIRST_PAGE_BYTES)
