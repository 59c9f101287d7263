"""Row B1: data of version 0.1 is migrated once by the first environment that starts, and nothing is lost."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from contextlib import closing

import pytest
from redis_servers import DEPLOYMENTS, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NO_IDENTITY
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.redis.takeover import take_over
from tornado_gateway.store.sqlite.events import open_sqlite

SECONDS = 60
EVENTS = 1234
OLD = "{fme:55}"


@pytest.fixture(params=["redis", "redis-cluster"])
def redis(request, tmp_path):
    with DEPLOYMENTS[request.param](tmp_path / "redis") as deployment:
        yield deployment


def config_of(redis, key="key-one", **options):
    return Config(**redis.options, account_id=55, sdk_key=key, **options)


def taker_of(config, owner, **limits):
    return take_over(redis_options(config), config.former_namespace, config.namespace, owner, **limits)


class Old:
    """Commands on the node that has the keys of version 0.1."""

    def __init__(self, redis):
        self._redis = redis

    def __call__(self, *words):
        for server in self._redis.servers:
            with contextlib.suppress(AssertionError):
                return server.command(*words)
        raise AssertionError(words)


def write_old_data(command):
    """As version 0.1 left it: a queue with a consumer that is dead, dead letters, aliases, decisions, a document."""
    for number in range(EVENTS):
        command("XADD", f"{OLD}:events", "*", "n", 2, "q", "", "b", f"event-{number}")
    for number in range(250):
        command("XADD", f"{OLD}:dead", "*", "n", 1, "q", "", "b", f"dead-{number}", "r", "400")
    command("HSET", f"{OLD}:counts", "waiting", 2 * EVENTS, "dead", 250)
    command("XGROUP", "CREATE", f"{OLD}:events", "gateway", "0")
    command("XREADGROUP", "GROUP", "gateway", "gone", "COUNT", 10, "STREAMS", f"{OLD}:events", ">")
    command("ZADD", f"{OLD}:consumers", int(time.time() * 1000) - 1000, "gone")
    for number in range(700):
        command("HSET", f"{OLD}:aliases", f"alias-{number}", f"user-{number}")
    command("SET", f"{OLD}:record:1:u:feature", '{"rolloutId":7}', "PX", 60_000)
    command("HSET", f"{OLD}:document:settings", "version", 4, "saved_at", "1.5", "body", "{}")


@needs_redis_server
async def test_b1_data_of_version_0_1_in_redis_is_taken_over_once(redis):
    old = Old(redis)
    await asyncio.to_thread(write_old_data, old)
    config = config_of(redis)
    store = open_redis(redis_options(config), config.namespace, "new")
    await store.open()
    moved = await taker_of(config, "new").once()
    expected = {"aliases": 700, "records": 1, "documents": 1, "events": 2 * EVENTS, "dead events": 250}
    assert moved == expected
    assert old("EXISTS", f"{OLD}:events", f"{OLD}:dead", f"{OLD}:counts", f"{OLD}:aliases", f"{OLD}:consumers") == 0

    depth = await store.events.depth()
    assert (depth.waiting, depth.dead) == (2 * EVENTS, 250)
    bodies = []
    while chunks := await store.events.claim(400):
        assert {(chunk.count, chunk.identity) for chunk in chunks} == {(2, NO_IDENTITY)}
        bodies += [chunk.body.decode() for chunk in chunks]
        await store.events.settle(chunks)
    assert bodies == [f"event-{number}" for number in range(EVENTS)]
    letters = await store.events.dead_letters(1000)
    assert [letter.body.decode() for letter in letters] == [f"dead-{number}" for number in range(250)]
    assert await store.events.requeue() == 250
    assert await store.state.aliases(["alias-0", "alias-699"]) == {"alias-0": "user-0", "alias-699": "user-699"}
    assert await store.state.load_records("u", ["feature"]) == {"feature": {"rolloutId": 7}}
    document = await store.state.load_document("settings")
    assert (document.body, document.version) == (b"{}", 4)

    second = config_of(redis, "key-two")
    assert await taker_of(second, "second").once() == {}
    assert await taker_of(config, "new").once() == {}
    await store.close()


@needs_redis_server
async def test_b1_two_environments_that_start_together_take_everything_once(redis):
    await asyncio.to_thread(write_old_data, Old(redis))
    configs = [config_of(redis, key) for key in ("key-one", "key-two")]
    takers = [taker_of(config, config.namespace) for config in configs]
    both = await asyncio.gather(*(taker.once() for taker in takers))
    assert sum(moved.get("events", 0) for moved in both) == 2 * EVENTS
    waiting = []
    for config in configs:
        store = open_redis(redis_options(config), config.namespace, "reader")
        await store.open()
        waiting.append((await store.events.depth()).waiting)
        await store.close()
    assert sorted(waiting) == [0, 2 * EVENTS]


@needs_redis_server
async def test_b1_nothing_is_taken_from_instances_of_version_0_1_that_are_alive(redis, caplog):
    caplog.set_level(logging.INFO)
    old = Old(redis)
    await asyncio.to_thread(write_old_data, old)
    old("ZADD", f"{OLD}:consumers", int(time.time() * 1000) + 3000, "alive")
    config = config_of(redis)
    taker = taker_of(config, "new", pause_seconds=0.1)
    assert await taker.once() == {}
    assert "1 instances of version 0.1 are running" in caplog.text
    taker.start()
    async with asyncio.timeout(SECONDS):
        while "migrated data of version 0.1" not in caplog.text:
            await asyncio.sleep(0.05)
    assert f"{2 * EVENTS} events" in caplog.text
    await taker.stop()


@needs_redis_server
async def test_b1_a_namespace_of_the_same_name_keeps_its_data(redis):
    """STORE_NAMESPACE=55 uses the keys of version 0.1 on, and no other environment takes them away."""
    keeper = config_of(redis, store_namespace="55")
    assert taker_of(keeper, "keeper") is None
    store = open_redis(redis_options(keeper), keeper.namespace, "keeper")
    await store.open()
    await store.state.set_alias("a", "b")
    await store.close()
    assert await taker_of(config_of(redis), "new").once() == {}


def test_b1_the_default_namespace_belongs_to_account_and_key_and_holds_no_secret():
    names = {
        Config(account_id=account, sdk_key=key).namespace for account in (1, 2) for key in ("secret-one", "secret-two")
    }
    assert len(names) == 4
    assert not [name for name in names if "secret" in name]
    assert Config(account_id=1, sdk_key="x", store_namespace="mine").namespace == "mine"


async def test_b1_the_embedded_state_of_version_0_1_goes_to_the_first_namespace(tmp_path):
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.executescript("""
            CREATE TABLE aliases (alias_id TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
            CREATE TABLE records (
                user_id TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, record BLOB NOT NULL,
                PRIMARY KEY (user_id, key)
            ) WITHOUT ROWID;
            CREATE INDEX records_until ON records (until);
            INSERT INTO aliases VALUES ('alias', 'user');
            INSERT INTO records VALUES ('u', 'f', 9e9, '{"rolloutId":1}');
        """)
    stores = [open_sqlite(tmp_path, namespace=name) for name in ("one", "two")]
    for store in stores:
        await store.open()
    one, two = (store.state for store in stores)
    assert await one.aliases(["alias"]) == {"alias": "user"}
    assert await two.aliases(["alias"]) == {}
    assert await one.load_records("u", ["f"]) == {"f": {"rolloutId": 1}}
    assert await two.load_records("u", ["f"]) == {}
    await two.set_alias("alias", "other")
    assert await one.aliases(["alias"]) == {"alias": "user"}
    assert await one.acquire_lease("poll", "a")
    assert await two.acquire_lease("poll", "b")
    assert await one.acquire_lease("shared:geoip", "a")
    assert not await two.acquire_lease("shared:geoip", "b")
    for store in stores:
        await store.close()
