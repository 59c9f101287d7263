"""Rows A21 and B2 in each store: identity travels with chunks and dead letters; letters move and go in portions."""

import sqlite3
from contextlib import closing

import pytest
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NO_IDENTITY, Identity, NewChunk
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.spill import SpillingEvents
from tornado_gateway.store.sqlite.events import SqliteEvents

STORES = ["sqlite", *(pytest.param(name, marks=needs_redis_server) for name in ("redis", "spill"))]
ONE, TWO = Identity("1", "key-one"), Identity("2", "key-two")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def redis_events(server):
    return open_redis(redis_options(Config(redis_host="127.0.0.1", redis_port=server.port)), "1", "gateway").events


@pytest.fixture(params=STORES)
def events(request, tmp_path, io_loop):
    if request.param == "sqlite":
        events = SqliteEvents(tmp_path / "data")
    else:
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        events = redis_events(server)
        if request.param == "spill":
            events = SpillingEvents(events, SqliteEvents(tmp_path / "data"))
    io_loop.run_sync(events.open)
    yield events
    io_loop.run_sync(events.close)


def chunk(body, identity):
    return NewChunk(1, body, "", identity)


async def bury(events, count, events_each=1, identity=ONE):
    dead = [(NewChunk(events_each, b"%04d" % number, "", identity), "no") for number in range(count)]
    await events.settle([], dead=dead)


async def test_b2_identity_stays_with_a_chunk_on_all_its_ways(events):
    await events.append([chunk(b"a", ONE), chunk(b"b", TWO), chunk(b"c", NO_IDENTITY)])
    claimed = await events.claim(9)
    assert [c.identity for c in claimed] == [ONE, TWO, NO_IDENTITY]
    await events.settle(claimed, dead=[(chunk(b"a", ONE), "400")], remaining=[chunk(b"b", TWO)])
    (letter,) = await events.dead_letters()
    assert (letter.body, letter.identity) == (b"a", ONE)
    assert await events.requeue() == 1
    claimed = await events.claim(9)
    assert {c.body: c.identity for c in claimed} == {b"a": ONE, b"b": TWO}


async def test_a21_requeue_moves_at_most_so_many_events(events):
    await bury(events, 250, events_each=2)
    assert await events.requeue(max_events=301) == 300
    assert (await events.depth()).dead == 200
    letters = await events.dead_letters(10)
    ids = [letter.id for letter in letters]
    assert await events.requeue(ids, max_events=7) == 6
    assert await events.requeue(ids) == 14
    assert await events.requeue(max_events=1) == 0
    assert await events.requeue() == 180
    depth = await events.depth()
    assert (depth.waiting, depth.dead) == (500, 0)


async def test_a21_the_oldest_dead_letters_beyond_a_limit_are_discarded(events):
    await bury(events, 250, events_each=2)
    assert await events.trim_dead_letters(500) == 0
    assert await events.trim_dead_letters(51) == 450
    assert (await events.depth()).dead == 50
    assert [letter.body for letter in await events.dead_letters(1000)] == [b"%04d" % n for n in range(225, 250)]
    assert await events.trim_dead_letters(0) == 50
    assert await events.dead_letters() == []


async def test_a21_each_log_trims_the_dead_letters_that_it_counts(tmp_path):
    first, second = SqliteEvents(tmp_path), SqliteEvents(tmp_path)
    await first.open()
    await second.open()
    await bury(first, 5)
    await bury(second, 5)
    assert await first.trim_dead_letters(2) == 3
    assert [(await events.depth()).dead for events in (first, second)] == [2, 5]
    await first.close()
    await second.close()


async def test_b2_identity_moves_from_one_log_to_another(tmp_path):
    first, second = SqliteEvents(tmp_path), SqliteEvents(tmp_path)
    await first.open()
    await second.open()
    await second.append([chunk(b"a", TWO)])
    await second.close()
    await first.adopt()
    assert [c.identity for c in await first.claim(9)] == [TWO]
    await first.close()


@needs_redis_server
async def test_b2_identity_moves_from_the_local_store_to_redis(tmp_path, redis_server):
    redis_server.command("FLUSHALL")
    local = SqliteEvents(tmp_path / "data")
    await local.open()
    await local.append([chunk(b"a", TWO)])
    await local.close()
    primary = redis_events(redis_server)
    events = SpillingEvents(primary, SqliteEvents(tmp_path / "data"))
    await events.open()
    while not (claimed := await events.claim(9)):
        pass
    assert [(c.body, c.identity) for c in claimed] == [(b"a", TWO)]
    await events.close()


# What version 0.1 wrote

OLD_EVENTS = """
PRAGMA journal_mode=WAL;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL
);
"""
OLD_DEAD = """
PRAGMA journal_mode=WAL;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL,
    at REAL NOT NULL, count INTEGER NOT NULL, query TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL
);
"""


def write_old_files(directory, logs=("events-0", "events-1")):
    for name in logs:
        with closing(sqlite3.connect(directory / f"{name}.db")) as connection:
            connection.executescript(OLD_EVENTS)
            connection.execute("INSERT INTO chunks VALUES (7, 1.5, 1, '', ?)", (name.encode(),))
            connection.commit()
    with closing(sqlite3.connect(directory / "dead.db")) as connection:
        connection.executescript(OLD_DEAD)
        connection.execute("INSERT INTO dead VALUES (3, 'events-0', 1.5, 1, '', ?, '400')", (b"dead",))
        connection.commit()


async def test_b2_files_of_version_0_1_are_read_without_an_identity(tmp_path):
    write_old_files(tmp_path)
    events = SqliteEvents(tmp_path)
    await events.open()
    assert await events.requeue() == 1
    claimed = await events.claim(9)
    assert {c.body for c in claimed} == {b"events-0", b"events-1", b"dead"}
    assert {c.identity for c in claimed} == {NO_IDENTITY}
    await events.append([chunk(b"new", ONE)])
    assert [c.identity for c in await events.claim(9)] == [ONE]
    await events.close()


@needs_redis_server
async def test_b2_entries_of_version_0_1_are_read_without_an_identity(redis_server):
    redis_server.command("FLUSHALL")
    redis_server.command("XADD", "{fme:1}:events", "*", "n", 1, "q", "", "b", "old")
    redis_server.command("XADD", "{fme:1}:dead", "*", "n", 1, "q", "", "b", "dead", "r", "400")
    redis_server.command("HSET", "{fme:1}:counts", "waiting", 1, "dead", 1)
    events = redis_events(redis_server)
    await events.open()
    (letter,) = await events.dead_letters()
    assert (letter.body, letter.reason, letter.identity) == (b"dead", "400", NO_IDENTITY)
    assert await events.requeue() == 1
    claimed = await events.claim(9)
    assert [(c.body, c.identity) for c in claimed] == [(b"old", NO_IDENTITY), (b"dead", NO_IDENTITY)]
    await events.close()
