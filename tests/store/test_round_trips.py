"""The regular work of many environments shares the round trips of one connection to Redis, which are counted."""

import asyncio
import contextlib

import pytest
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis import link
from tornado_gateway.store.redis.connections import Connections
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.redis.link import Links

pytestmark = needs_redis_server

MANY = 20


@pytest.fixture
def trips(monkeypatch):
    """The commands of each round trip."""
    made = []
    exchange = Connections.exchange

    async def counted_exchange(self, commands):
        made.append([command[0] for command in commands])
        return await exchange(self, commands)

    monkeypatch.setattr(Connections, "exchange", counted_exchange)
    return made


@contextlib.asynccontextmanager
async def opened_stores(folder):
    """Stores of environments that share a connection, one event in the first one, and scripts that Redis knows."""
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(folder / "redis"))
        options = redis_options(Config(redis_host="127.0.0.1", redis_port=server.port, socket_timeout_seconds=60))
        links = Links(options)
        stores = [open_redis(options, str(number), "one", alive_seconds=600, links=links) for number in range(MANY)]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        await stores[0].events.append([NewChunk(1, b"{}")])
        await stores[0].events.depth()
        yield stores


async def begun(calls):
    """Begin each call in a turn of its own."""
    tasks = []
    for call in calls:
        tasks.append(asyncio.ensure_future(call))
        await asyncio.sleep(0)
    return tasks


async def test_readings_of_many_environments_share_a_round_trip(tmp_path, trips, monkeypatch):
    async with opened_stores(tmp_path) as stores:
        monkeypatch.setattr(link, "PATIENT_SECONDS", 1.0)
        trips.clear()
        readings = await asyncio.gather(*await begun(store.events.depth(patient=True) for store in stores))
        assert [reading.waiting for reading in readings] == [1] + [0] * (MANY - 1)
        assert trips == [["EVALSHA"] * MANY]


async def test_readings_travel_with_the_next_append(tmp_path, trips, monkeypatch):
    async with opened_stores(tmp_path) as stores:
        monkeypatch.setattr(link, "PATIENT_SECONDS", 60.0)
        trips.clear()
        readings = await begun(store.events.depth(patient=True) for store in stores)
        assert trips == []
        await stores[1].events.append([NewChunk(3, b"{}\n{}\n{}")])
        assert trips == [["EVALSHA"] * (MANY + 1)]
        assert (await readings[1]).waiting == 3
        await asyncio.gather(*readings)
