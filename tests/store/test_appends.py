"""The environments of a worker append to Redis together, and fail alone. Scripts and round trips are counted."""

import asyncio

import pytest
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis.appends import ROUND_APPENDS, ROUND_BYTES
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.redis.link import Links

pytestmark = needs_redis_server

ENVIRONMENTS = 50
PATIENCE_SECONDS = 60.0


@pytest.fixture
def server(tmp_path):
    with RedisServer(tmp_path) as running:
        yield running


class Environments:
    """The event stores of one worker, on one link."""

    def __init__(self, port, number=ENVIRONMENTS, **options):
        options = {"redis_host": "127.0.0.1", "redis_port": port, "socket_timeout_seconds": PATIENCE_SECONDS, **options}
        config = redis_options(Config(**options))
        links = Links(config)
        stores = [open_redis(config, str(place), "one", alive_seconds=600, links=links) for place in range(number)]
        self.events = [store.events for store in stores]

    async def __aenter__(self):
        await asyncio.gather(*(events.open() for events in self.events))
        await self.append_all()  # Redis knows the script now, and each environment the clock of Redis
        return self.events

    async def __aexit__(self, *_):
        await asyncio.gather(*(events.close() for events in self.events))

    async def append_all(self):
        await asyncio.gather(*(append(events, "first") for events in self.events))


async def append(events, *bodies):
    await events.append([NewChunk(1, body.encode()) for body in bodies])


async def bodies_of(events):
    return [chunk.body.decode() for chunk in await events.claim(100)]


def scripts_of(server):
    """Return how many scripts Redis has executed."""
    lines = server.command("INFO", "commandstats").decode().splitlines()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if line.startswith("cmdstat_evalsha:"))


async def test_environments_that_append_at_the_same_time_share_one_script(server):
    async with Environments(server.port) as environments:
        before = scripts_of(server)
        await asyncio.gather(*(append(events, f"of {place}") for place, events in enumerate(environments)))
        assert scripts_of(server) == before + 1
        assert [await bodies_of(events) for events in environments] == [
            ["first", f"of {place}"] for place in range(ENVIRONMENTS)
        ]


async def test_appends_that_arrive_during_a_round_share_the_next_one(server):
    async with Environments(server.port) as environments:
        before = scripts_of(server)
        server.pause()
        appends = []
        for events in environments:
            appends.append(asyncio.create_task(append(events, "second")))
            await asyncio.sleep(0.001)
        server.resume()
        await asyncio.gather(*appends)
        assert scripts_of(server) == before + 2


async def test_a_round_is_limited_in_appends_and_bytes(server):
    number = ROUND_APPENDS + 1
    async with Environments(server.port, number) as environments:
        before = scripts_of(server)
        await asyncio.gather(*(append(events, "small") for events in environments))
        assert scripts_of(server) == before + 2
        await asyncio.gather(*(append(events, "x" * ROUND_BYTES) for events in environments[:3]))
        assert scripts_of(server) == before + 2 + 3


async def test_an_environment_whose_keys_are_broken_fails_alone(server):
    async with Environments(server.port, 3) as environments:
        server.command("SET", "{fme:1}:counts", "not a hash")
        results = await asyncio.gather(*(append(events, "x") for events in environments), return_exceptions=True)
        assert [isinstance(result, StoreError) for result in results] == [False, True, False]
        assert "WRONGTYPE" in str(results[1])
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await append(environments[1], "alone")
        for events in (environments[0], environments[2]):
            assert await bodies_of(events) == ["first", "x"]
            assert (await events.depth()).waiting == 2


async def test_an_environment_whose_keys_are_forbidden_fails_alone(server):
    server.command("ACL", "SETUSER", "gateway", "on", ">secret", "~{fme:*", "&*", "+@all")
    user = {"redis_username": "gateway", "redis_password": "secret"}
    async with Environments(server.port, 3, **user) as environments:
        server.command("ACL", "SETUSER", "gateway", "resetkeys", "~{fme:0}*", "~{fme:2}*")
        results = await asyncio.gather(*(append(events, "x") for events in environments), return_exceptions=True)
        assert [isinstance(result, StoreError) for result in results] == [False, True, False]
        assert "ACL" in str(results[1])
        for events in (environments[0], environments[2]):
            assert await bodies_of(events) == ["first", "x"]
        server.command("ACL", "SETUSER", "gateway", "~{fme:*")


async def test_an_append_that_was_given_up_is_not_executed_although_others_of_its_round_are(server):
    async with Environments(server.port, 3) as environments:
        server.pause()
        first = asyncio.create_task(append(environments[0], "x"))
        await asyncio.sleep(0.01)
        given_up = asyncio.create_task(environments[1].append([NewChunk(1, b"late")], 0.1))
        patient = asyncio.create_task(append(environments[2], "x"))
        await asyncio.sleep(0.2)
        server.resume()
        with pytest.raises(StoreError, match="too slow"):
            await given_up
        await asyncio.gather(first, patient)
        assert await bodies_of(environments[1]) == ["first"]
        assert await bodies_of(environments[2]) == ["first", "x"]
