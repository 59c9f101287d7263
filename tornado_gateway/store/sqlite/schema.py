"""The tables of the three kinds of files, and the pragmas of their connections."""

import sqlite3

# Some builds of SQLite overwrite deleted rows, which would write every event twice.
STATE_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA secure_delete=OFF;"
# A commit that caused a checkpoint would wait for the disk. `Checkpoints` makes them beside the commits; SQLite's own
# (after 64 MB) are the fallback.
EVENT_PRAGMAS = f"{STATE_PRAGMAS} PRAGMA wal_autocheckpoint=16384;"
SYNC_MODES = {"normal": "NORMAL", "full": "FULL"}
EVENT_TABLES = """
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL,
    account_id TEXT NOT NULL DEFAULT '', sdk_key TEXT NOT NULL DEFAULT ''
);
"""
# `owner` is the log that counts a letter; any worker may show it and queue it again.
DEAD_TABLES = """
PRAGMA letters.journal_mode=WAL;
CREATE TABLE IF NOT EXISTS letters.dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL,
    at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL,
    account_id TEXT NOT NULL DEFAULT '', sdk_key TEXT NOT NULL DEFAULT ''
);
"""
IDENTITY_COLUMNS = ("account_id", "sdk_key")  # version 0.1 has none
STATE_TABLES = """
CREATE TABLE IF NOT EXISTS documents (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, saved_at REAL NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS confirmations (name TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS user_aliases (
    namespace TEXT NOT NULL, alias_id TEXT NOT NULL, user_id TEXT NOT NULL, PRIMARY KEY (namespace, alias_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    namespace TEXT NOT NULL, user_id TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (namespace, user_id, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS decisions_until ON decisions (until);
"""


def run_script(connection: sqlite3.Connection, script: str) -> None:
    connection.executescript(script)


def set_up_events(script: str, connection: sqlite3.Connection) -> None:
    connection.executescript(script)
    _add_identity(connection, "main", "chunks")


def set_up_letters(connection: sqlite3.Connection) -> None:
    connection.executescript(DEAD_TABLES)
    _add_identity(connection, "letters", "dead")


def _add_identity(connection: sqlite3.Connection, schema: str, table: str) -> None:
    """Add the columns that a file of version 0.1 does not have."""
    names = {row[1] for row in connection.execute(f"PRAGMA {schema}.table_info({table})")}
    for name in IDENTITY_COLUMNS:
        if name not in names:
            connection.execute(f"ALTER TABLE {schema}.{table} ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")


def synchronous(sync: str) -> str:
    return f"PRAGMA synchronous={SYNC_MODES[sync]};"
