"""An environment among many stores small chunks. How many commands Redis executes for them is counted."""

import contextlib
from math import ceil

from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis.consumer import STEP_CHUNKS
from tornado_gateway.store.redis.events import open_redis

pytestmark = needs_redis_server

MANY = 80
MORE_THAN_A_PAGE = 1001  # of `settle.lua`


@contextlib.asynccontextmanager
async def opened(folder):
    """A server, and the events of two processes with the same queue."""
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(folder / "redis"))
        options = redis_options(Config(redis_host="127.0.0.1", redis_port=server.port, socket_timeout_seconds=60))
        stores = [open_redis(options, "1", owner, alive_seconds=600) for owner in ("one", "two")]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        yield server, *[store.events for store in stores]


def chunks(*counts, size=10):
    return [NewChunk(count, b"x" * size) for count in counts]


def executed(server, name):
    """The number of commands of this name so far."""
    lines = server.command("INFO", "commandstats").decode().splitlines()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if line.startswith(f"cmdstat_{name}:"))


async def test_small_chunks_are_claimed_and_settled_by_few_commands(tmp_path):
    async with opened(tmp_path) as (server, events, _):
        assert await events.claim(1) == []  # now there is a group of consumers
        await events.append(chunks(*[1, 2] * (MANY // 2)))
        before = {name: executed(server, name) for name in ("xreadgroup", "xack", "xdel")}
        claimed = await events.claim(1000)
        await events.settle(claimed)
        assert len(claimed) == MANY
        assert (await events.depth()).waiting == 0
        assert {name: executed(server, name) - count for name, count in before.items()} == {
            "xreadgroup": 2 * ceil(MANY / STEP_CHUNKS),
            "xack": 1,
            "xdel": 1,
        }


async def test_a_claim_leaves_chunks_beyond_its_bytes_to_others(tmp_path):
    async with opened(tmp_path) as (_, one, two):
        await one.append(chunks(*[1] * MANY, size=1000))
        assert len(await one.claim(1000, 10_000)) == 10
        assert len(await two.claim(1000, 1_000_000)) == MANY - 10


async def test_a_claim_leaves_most_chunks_beyond_its_events_to_others(tmp_path):
    async with opened(tmp_path) as (_, one, two):
        await one.append(chunks(*[2] * MANY))
        assert sum(chunk.count for chunk in await one.claim(40)) == 40
        assert sum(chunk.count for chunk in await two.claim(1000)) == 2 * MANY - 40


async def test_many_chunks_are_settled_exactly_if_another_process_has_settled_some(tmp_path):
    async with opened(tmp_path) as (_, one, two):
        await one.append(chunks(*[1, 3] * MORE_THAN_A_PAGE))
        claimed = await one.claim(MORE_THAN_A_PAGE * 10, 10**7)
        assert len(claimed) == 2 * MORE_THAN_A_PAGE
        await two.settle(claimed[1:3])
        waiting = (await one.depth()).waiting
        assert waiting == 4 * MORE_THAN_A_PAGE - 4
        await one.append(chunks(5, size=7))
        await one.settle(claimed)
        depth = await two.depth()
        assert (depth.waiting, depth.waiting_bytes) == (5, 7)
        await one.settle(await one.claim(10))
        assert (await two.depth()).waiting == 0
