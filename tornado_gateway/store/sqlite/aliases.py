"""Aliases and sticky decisions in the file that all workers of a machine share.

A decision looks them up, so that it must not wait behind a flood of other requests: they share jobs, and at most one
job of each kind waits for the thread at any time.
"""

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from tornado_gateway.core.types import StickyRecord
from tornado_gateway.store.sqlite.database import Database, Grouped, transaction

Item = TypeVar("Item")
Pair = tuple[str, str]  # an alias and the id of a user
Wanted = tuple[str, Sequence[str], float]  # a visitor, keys of records, and the time at which they count
Row = tuple[str, str, str, float, bytes]  # of a record: namespace, visitor, key, the end of its time

MOST_STEPS = 64  # from an alias to its root
UNCOUNTED_ALIASES = 1000
IDS = 100  # of one statement
LISTS = 4  # of ids, in one job
PAIRS = IDS // 2  # in one job: the first statement looks up all their ids
RECORDS_AT_ONCE = 50  # in one statement
MOST_RECORDS = 100  # in one job, unless one request needs more
# One row, because the interpreter's lock is handed over for each.
USERS = "SELECT json_group_object(alias_id, user_id) FROM user_aliases WHERE namespace = ? AND alias_id IN ({})"
STORE = "INSERT OR REPLACE INTO user_aliases VALUES {}"
# The records are texts in it, because damaged ones must not fail those of others.
RECORDS = """
WITH wanted (number, namespace, user_id, key) AS (VALUES {})
SELECT json_group_array(json_array(number, until, CAST(record AS TEXT)))
FROM wanted CROSS JOIN decisions USING (namespace, user_id, key)
"""
KEEP = "INSERT OR REPLACE INTO decisions VALUES {}"
# Statements of few sizes, so that they stay compiled.
USERS_BY_SIZE = {size: USERS.format(", ".join("?" * size)) for size in (1, IDS)}
STORE_BY_SIZE = {size: STORE.format(", ".join(["(?, ?, ?)"] * size)) for size in (1, PAIRS)}
RECORDS_BY_SIZE = {
    size: RECORDS.format(", ".join(f"({number}, ?, ?, ?)" for number in range(size))) for size in (1, RECORDS_AT_ONCE)
}
KEEP_BY_SIZE = {size: KEEP.format(", ".join(["(?, ?, ?, ?, ?)"] * size)) for size in (1, RECORDS_AT_ONCE)}


class SqliteAliases:
    """The aliases of one namespace. All namespaces together have at most `most()`."""

    def __init__(self, database: Database, namespace: str, most: Callable[[], int]) -> None:
        self._most = most
        self._room = 0  # aliases that can be added until they are counted again
        self._namespace = namespace
        self._find_one = Grouped(database, self._find_ids, IDS)
        self._find_list = Grouped(database, self._find_lists, LISTS)
        self._set = Grouped(database, self._store_pairs, PAIRS)

    async def set(self, alias_id: str, user_id: str) -> bool:
        """As promised by StateStore."""
        return await self._set((alias_id, user_id))

    async def find(self, ids: Sequence[str]) -> dict[str, str]:
        """As promised by StateStore."""
        if len(ids) == 1:
            return await self._find_one(ids[0])
        return await self._find_list(ids)

    def _find_ids(self, connection: sqlite3.Connection, ids: Sequence[str]) -> list[dict[str, str]]:
        return self._find_lists(connection, [[id_] for id_ in ids])

    def _find_lists(self, connection: sqlite3.Connection, lists: Sequence[Sequence[str]]) -> list[dict[str, str]]:
        users = users_of(connection, self._namespace, {id_ for ids in lists for id_ in ids})
        return [{id_: root for id_ in ids if (root := root_of(id_, users)) != id_} for ids in lists]

    def _store_pairs(self, connection: sqlite3.Connection, pairs: Sequence[Pair]) -> list[bool]:
        users = users_of(connection, self._namespace, {id_ for pair in pairs for id_ in pair})
        self._count(connection, len(pairs))
        added: dict[str, str] = {}
        results = [self._add(users, added, *pair) for pair in pairs]
        store(connection, self._namespace, added)
        return results

    def _count(self, connection: sqlite3.Connection, wanted: int) -> None:
        """Counting all aliases is slow: there is room for some more until the next count."""
        if self._room < wanted:
            (count,) = connection.execute("SELECT count(*) FROM user_aliases").fetchone()
            self._room = min(UNCOUNTED_ALIASES, self._most() - count)

    def _add(self, users: dict[str, str], added: dict[str, str], alias_id: str, user_id: str) -> bool:
        root = root_of(user_id, users)
        if root == alias_id or (self._room <= 0 and alias_id not in users):
            return False
        users[alias_id] = added[alias_id] = root
        self._room -= 1
        return True


class SqliteRecords:
    """The sticky decisions of the visitors of one namespace."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._namespace = namespace
        self._load = Grouped(database, self._load_all, MOST_RECORDS, lambda wanted: len(wanted[1]))
        self._save = Grouped(database, _save_all, MOST_RECORDS, len)

    async def load(self, user_id: str, keys: Sequence[str], now: float) -> dict[str, StickyRecord]:
        """As promised by StateStore."""
        return await self._load((user_id, keys, now))

    async def save(self, user_id: str, records: Mapping[str, Mapping[str, Any]], until: float) -> None:
        """As promised by StateStore."""
        owner = self._namespace, user_id
        await self._save([(*owner, key, until, orjson.dumps(record)) for key, record in records.items()])

    def _load_all(self, connection: sqlite3.Connection, requests: Sequence[Wanted]) -> list[dict[str, StickyRecord]]:
        found: list[dict[str, StickyRecord]] = [{} for _ in requests]
        wanted = [(number, key) for number, (_, keys, _) in enumerate(requests) for key in keys]
        for start in range(0, len(wanted), RECORDS_AT_ONCE):
            page = wanted[start : start + RECORDS_AT_ONCE]
            owners = [(requests[number][0], key) for number, key in page]
            for place, until, record in _records_of(connection, self._namespace, owners):
                number, key = page[min(place, len(page) - 1)]
                if until > requests[number][2] and (read := _read(record)) is not None:
                    found[number][key] = read
        return found


def _read(record: str) -> StickyRecord | None:
    """Return a record, None if it is damaged: then the visitor gets a new decision, and others their own."""
    try:
        read: StickyRecord = orjson.loads(record)
    except orjson.JSONDecodeError:
        return None
    return read


def _records_of(
    connection: sqlite3.Connection, namespace: str, owners: Sequence[tuple[str, str]]
) -> list[tuple[int, float, str]]:
    """Return the place of each visitor and key that has a record, with its end and its JSON."""
    page = filled(owners, RECORDS_BY_SIZE)
    values = [text for owner in page for text in (namespace, *owner)]
    (found,) = connection.execute(RECORDS_BY_SIZE[len(page)], values).fetchone()
    rows: list[tuple[int, float, str]] = orjson.loads(found)
    return rows


def _save_all(connection: sqlite3.Connection, requests: Sequence[Sequence[Row]]) -> list[None]:
    rows = [row for request in requests for row in request]
    with transaction(connection):
        for start in range(0, len(rows), RECORDS_AT_ONCE):
            page = filled(rows[start : start + RECORDS_AT_ONCE], KEEP_BY_SIZE)
            connection.execute(KEEP_BY_SIZE[len(page)], [value for row in page for value in row])
    return [None] * len(requests)


def users_of(connection: sqlite3.Connection, namespace: str, ids: Collection[str]) -> dict[str, str]:
    """Return the stored users of these ids, and of those users, and so on: all that is needed to find their roots."""
    users: dict[str, str] = {}
    asked: set[str] = set()
    wanted = set(ids)
    for _ in range(MOST_STEPS):
        if not wanted:
            break
        found = _users_of(connection, namespace, list(wanted))
        asked |= wanted
        users |= found
        wanted = set(found.values()) - asked
    return users


def _users_of(connection: sqlite3.Connection, namespace: str, ids: Sequence[str]) -> dict[str, str]:
    users: dict[str, str] = {}
    for start in range(0, len(ids), IDS):
        page = filled(ids[start : start + IDS], USERS_BY_SIZE)
        (found,) = connection.execute(USERS_BY_SIZE[len(page)], (namespace, *page)).fetchone()
        users |= orjson.loads(found)
    return users


def root_of(id_: str, users: dict[str, str]) -> str:
    """Return the root of an id: the last one in its chain of aliases. A cycle, which version 0.1 could store, ends."""
    seen = [id_]
    while len(seen) <= MOST_STEPS and (user := users.get(seen[-1])) and user not in seen:
        seen.append(user)
    return seen[-1]


def store(connection: sqlite3.Connection, namespace: str, added: dict[str, str]) -> None:
    """Store at most PAIRS aliases in one statement, which locks the file for no longer than it takes."""
    if added:
        pairs = filled(list(added.items()), STORE_BY_SIZE)
        values = [text for pair in pairs for text in (namespace, *pair)]
        connection.execute(STORE_BY_SIZE[len(pairs)], values)


def filled(items: Sequence[Item], sizes: Collection[int]) -> list[Item]:
    """Return the items, with the last one repeated up to the next of the ascending `sizes`."""
    size = next(size for size in sizes if size >= len(items))
    return [*items, *[items[-1]] * (size - len(items))]
