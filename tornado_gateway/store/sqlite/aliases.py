"""Aliases in the file that all workers of a machine share.

A decision looks up the id of its visitor, so that it must not wait behind a flood of other requests. Under load each
statement waits milliseconds for the interpreter's lock: requests that arrive during a job share the next one, which has
few statements, whatever their number. At most one job of each kind waits for the thread at any time.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Generic, TypeVar

import orjson

from tornado_gateway.store.sqlite.database import Database

Item = TypeVar("Item")
Result = TypeVar("Result")
Pair = tuple[str, str]  # an alias and the id of a user

MOST_STEPS = 64  # from an alias to its root
UNCOUNTED_ALIASES = 1000
IDS = 100  # of one statement
LISTS = 4  # of ids, in one job
PAIRS = IDS // 2  # in one job: the first statement looks up all their ids
# One row, because the interpreter's lock is handed over for each.
USERS = "SELECT json_group_object(alias_id, user_id) FROM user_aliases WHERE namespace = ? AND alias_id IN ({})"
STORE = "INSERT OR REPLACE INTO user_aliases VALUES {}"
# Statements of few sizes, so that they stay compiled.
USERS_BY_SIZE = {size: USERS.format(", ".join("?" * size)) for size in (1, IDS)}
STORE_BY_SIZE = {size: STORE.format(", ".join(["(?1, ?, ?)"] * size)) for size in (1, PAIRS)}


class Grouped(Generic[Item, Result]):
    """Passes the items of concurrent calls to `work` together, up to `most` at once, one group after the other.

    `work` returns one result for each item. If it fails, so does each call of the group.
    """

    def __init__(self, work: Callable[[list[Item]], Awaitable[Sequence[Result]]], most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        waiting = self._waiting
        try:
            while waiting:
                group = [waiting.popleft() for _ in range(min(self._most, len(waiting)))]
                await self._pass_on([item for item, _ in group], [done for _, done in group])
        finally:
            self._task = None

    async def _pass_on(self, items: list[Item], futures: Sequence["asyncio.Future[Result]"]) -> None:
        try:
            results = await self._work(items)
        except Exception as error:
            for future in futures:
                if not future.done():  # by the cancellation of its caller
                    future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(result)


class SqliteAliases:
    """The aliases of one namespace. All namespaces together have at most `most()`."""

    def __init__(self, database: Database, namespace: str, most: Callable[[], int]) -> None:
        self._most = most
        self._room = 0  # aliases that can be added until they are counted again
        self._database = database
        self._namespace = namespace
        self._find_one = Grouped(self._find_ids, IDS)
        self._find_list = Grouped(self._find_lists, LISTS)
        self._set = Grouped(self._set_pairs, PAIRS)

    async def set(self, alias_id: str, user_id: str) -> bool:
        """As promised by StateStore."""
        return await self._set((alias_id, user_id))

    async def find(self, ids: Sequence[str]) -> dict[str, str]:
        """As promised by StateStore."""
        if len(ids) == 1:
            return await self._find_one(ids[0])
        return await self._find_list(ids)

    async def _find_ids(self, ids: list[str]) -> list[dict[str, str]]:
        return await self._find_lists([[id_] for id_ in ids])

    async def _find_lists(self, lists: Sequence[Sequence[str]]) -> list[dict[str, str]]:
        users = await self._database.run(users_of, self._namespace, {id_ for ids in lists for id_ in ids})
        return [{id_: root for id_ in ids if (root := root_of(id_, users)) != id_} for ids in lists]

    async def _set_pairs(self, pairs: list[Pair]) -> list[bool]:
        return await self._database.run(self._store_pairs, pairs)

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
        values = [id_ for pair in pairs for id_ in pair]
        connection.execute(STORE_BY_SIZE[len(pairs)], (namespace, *values))


def filled(items: Sequence[Item], sizes: Collection[int]) -> list[Item]:
    """Return the items, with the last one repeated up to the next of the ascending `sizes`."""
    size = next(size for size in sizes if size >= len(items))
    return [*items, *[items[-1]] * (size - len(items))]
