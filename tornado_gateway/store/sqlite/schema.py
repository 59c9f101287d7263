"""The tables of the three kinds of files, their version, and the migration of files that an earlier version wrote."""

import sqlite3
from dataclasses import dataclass
from functools import cache

VERSION = 1  # PRAGMA user_version; files of version 0.1 have 0
# Some builds of SQLite overwrite deleted rows, which would write every event twice.
STATE_PRAGMAS = "PRAGMA secure_delete=OFF;"
# A commit that caused a checkpoint would wait for the disk. `Checkpoints` makes them beside the commits; SQLite's own
# (after 128 MB) are the fallback.
EVENT_PRAGMAS = f"{STATE_PRAGMAS} PRAGMA wal_autocheckpoint=32768;"
SYNC_MODES = {"normal": "NORMAL", "full": "FULL"}
IDENTITY_COLUMNS = ("account_id", "sdk_key")  # version 0.1 has none


class ForeignFileError(sqlite3.DatabaseError):
    """The file is a database, but not one that this version has written or can migrate."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The tables of a kind of file. `script` makes those that are missing, `former` are tables of version 0.1."""

    script: str
    former: frozenset[str] = frozenset()


EVENTS = Kind("""
CREATE TABLE IF NOT EXISTS {schema}.chunks (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL,
    account_id TEXT NOT NULL DEFAULT '', sdk_key TEXT NOT NULL DEFAULT ''
);
""")
# `owner` is the log that counts a letter; any worker may show it and queue it again.
LETTERS = Kind("""
CREATE TABLE IF NOT EXISTS {schema}.dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL,
    at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL,
    account_id TEXT NOT NULL DEFAULT '', sdk_key TEXT NOT NULL DEFAULT ''
);
""")
STATE = Kind(
    """
CREATE TABLE IF NOT EXISTS {schema}.documents (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, saved_at REAL NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS {schema}.confirmations (name TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.versions (
    name TEXT NOT NULL, digest TEXT NOT NULL, number INTEGER NOT NULL, first_at REAL NOT NULL, at REAL NOT NULL,
    source TEXT NOT NULL, owner TEXT NOT NULL, size INTEGER NOT NULL, packed BLOB NOT NULL, PRIMARY KEY (name, digest)
);
CREATE TABLE IF NOT EXISTS {schema}.pins (name TEXT PRIMARY KEY, pin TEXT, ends REAL, unpinned_by TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.user_aliases (
    namespace TEXT NOT NULL, alias_id TEXT NOT NULL, user_id TEXT NOT NULL, PRIMARY KEY (namespace, alias_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {schema}.decisions (
    namespace TEXT NOT NULL, user_id TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (namespace, user_id, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {schema}.decisions_until ON decisions (until);
CREATE TABLE IF NOT EXISTS {schema}.statistics (
    namespace TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
);
CREATE TABLE IF NOT EXISTS {schema}.reckoning (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, uptime REAL NOT NULL, boot TEXT NOT NULL
);
""",
    frozenset({"aliases", "records"}),
)


def set_up(connection: sqlite3.Connection, schema: str, kind: Kind) -> None:
    """Make the tables, or migrate those of an earlier version. Raise ForeignFileError if that is not possible."""
    expected = columns_of(kind)
    present = tables(connection, schema)
    if present and not present & (expected.keys() | kind.former):
        raise ForeignFileError("the tables are those of another program")
    version = _version(connection, schema)
    if version > VERSION:
        raise ForeignFileError(f"it was written by a newer version (format {version})")
    connection.execute(f"PRAGMA {schema}.journal_mode=WAL")
    connection.executescript(kind.script.format(schema=schema))
    for table, wanted in expected.items():
        _add_identity(connection, schema, table, wanted)
        if not wanted <= columns(connection, schema, table):
            raise ForeignFileError(f"the table {table} has other columns")
    if version < VERSION:
        connection.execute(f"PRAGMA {schema}.user_version={VERSION}")


@cache
def columns_of(kind: Kind) -> dict[str, frozenset[str]]:
    """Return the tables of a kind and their columns."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(kind.script.format(schema="main"))
        return {table: frozenset(columns(connection, "main", table)) for table in tables(connection, "main")}
    finally:
        connection.close()


def tables(connection: sqlite3.Connection, schema: str) -> set[str]:
    names = f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"  # noqa: S608
    return {name for (name,) in connection.execute(names)}


def columns(connection: sqlite3.Connection, schema: str, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA {schema}.table_info({table})")}


def _version(connection: sqlite3.Connection, schema: str) -> int:
    version: int
    (version,) = connection.execute(f"PRAGMA {schema}.user_version").fetchone()
    return version


def _add_identity(connection: sqlite3.Connection, schema: str, table: str, wanted: frozenset[str]) -> None:
    """Add the columns that a file of version 0.1 does not have."""
    missing = wanted - columns(connection, schema, table)
    if missing and missing <= set(IDENTITY_COLUMNS):
        for name in sorted(missing):
            connection.execute(f"ALTER TABLE {schema}.{table} ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")


def synchronous(sync: str) -> str:
    return f"PRAGMA synchronous={SYNC_MODES[sync]};"
