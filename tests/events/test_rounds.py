"""The environments of a worker commit to Redis together, and fail alone. Scripts and round trips are counted."""

import asyncio
import contextlib
from dataclasses import dataclass

import pytest
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.events.group_commit import ROUND_BYTES, ROUND_GROUPS, Commits
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import EventStore
from tornado_gateway.store.redis.events import Appends, open_redis
from tornado_gateway.store.redis.link import Links
from tornado_gateway.store.spill import SpillingAppends, SpillingEvents
from tornado_gateway.store.sqlite.events import SqliteEvents

pytestmark = needs_redis_server

SECONDS = 60
EVENT_BYTES = 200_000


@pytest.fixture
def server(tmp_path):
    with RedisServer(tmp_path / "redis") as running:
        yield running


@dataclass
class Environment:
    queue: EventQueue
    store: SpillingEvents
    local: EventStore

    async def accept(self, body, count=1):
        """Return whether the event is stored."""
        gate = self.queue.append(body.encode(), count)
        await until(lambda: gate.is_open)
        return gate.failure is None

    async def bodies(self):
        return [chunk.body.decode() for chunk in await self.store.claim(100)]


class HeldAppends:
    """The appends of a connection, which wait until `go` is set."""

    def __init__(self, together):
        self._together = together
        self.go = asyncio.Event()
        self.rounds = 0

    async def append(self, parts):
        self.rounds += 1
        await self.go.wait()
        return await self._together.append(parts)


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def environments(server, folder, number, hold=lambda together: together, append_seconds=SECONDS, **options):
    """So many environments of a worker, whose scripts Redis knows."""
    options = {"redis_host": "127.0.0.1", "redis_port": server.port, "socket_timeout_seconds": SECONDS, **options}
    config = redis_options(Config(**options))
    links = Links(config)
    together = SpillingAppends(Appends(links.shared), append_seconds)
    commits = Commits(hold(together))
    found = []
    async with contextlib.AsyncExitStack() as stack:
        for place in range(number):
            local = SqliteEvents(folder / str(place))
            primary = open_redis(config, str(place), "one", alive_seconds=600, links=links).events
            store = SpillingEvents(primary, local, together=together)
            await store.open()
            stack.push_async_callback(store.close)
            queue = EventQueue(store, limit=1000, chunk_events=10, shared=True, commits=commits)
            await queue.start()
            stack.push_async_callback(queue.stop)
            found.append(Environment(queue, store, local))
        yield found


async def accept_all(found, body):
    return await asyncio.gather(*(one.accept(body) for one in found))


def appends_of(server):
    """Return in how many scripts Redis has appended something: each asks for the time, and claims are not made."""
    lines = server.command("INFO", "commandstats").decode().splitlines()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if line.startswith("cmdstat_time:"))


async def test_environments_with_events_at_the_same_time_share_one_script(server, tmp_path):
    async with environments(server, tmp_path, 20) as found:
        assert all(await accept_all(found, "first"))
        before = appends_of(server)
        assert all(await accept_all(found, "second"))
        assert appends_of(server) == before + 1
        assert [await one.bodies() for one in found] == [["first", "second"]] * 20
        assert [one.queue.stored for one in found] == [2] * 20


async def test_events_that_arrive_during_a_round_share_the_next_one(server, tmp_path):
    held = []
    hold = lambda together: held.append(HeldAppends(together)) or held[0]  # noqa: E731
    async with environments(server, tmp_path, 5, hold) as found:
        first = asyncio.create_task(found[0].accept("a"))
        await until(lambda: held[0].rounds == 1)
        later = [asyncio.create_task(one.accept("b")) for one in found]
        await asyncio.sleep(0.01)
        assert held[0].rounds == 1
        held[0].go.set()
        assert await asyncio.gather(first, *later) == [True] * 6
        assert held[0].rounds == 2
        assert await found[0].bodies() == ["a", "b"]


async def test_a_round_is_limited_in_groups_and_bytes(tmp_path):
    class Counted:
        def __init__(self):
            self.parts = []

        async def append(self, parts):
            self.parts.append(len(parts))
            return [None] * len(parts)

    class Store:
        failure = None
        lost = repairs = letters_version = 0

        async def depth(self, *, patient=False):
            raise AssertionError

    together = Counted()
    commits = Commits(together)
    queues = [EventQueue(Store(), limit=10, chunk_events=10, shared=True, commits=commits) for _ in range(70)]
    for queue in queues:
        queue._commits.start()
    gates = [queue.append(b"{}", 1) for queue in queues]
    await until(lambda: all(gate.is_open for gate in gates))
    assert together.parts == [ROUND_GROUPS, 70 - ROUND_GROUPS]
    gates = [queue.append(b"x" * EVENT_BYTES, 1) for queue in queues[:12]]
    await until(lambda: all(gate.is_open for gate in gates))
    full = ROUND_BYTES // EVENT_BYTES + 1
    assert together.parts[2:] == [full, 12 - full]
    for queue in queues:
        await queue._commits.stop()


async def test_an_environment_whose_keys_are_broken_spills_alone(server, tmp_path):
    async with environments(server, tmp_path, 3) as found:
        server.command("SET", "{fme:1}:counts", "not a hash")
        assert all(await accept_all(found, "x"))
        assert [one.store.is_degraded for one in found] == [False, True, False]
        assert "WRONGTYPE" in found[1].store.failure
        assert (await found[1].local.depth()).waiting == 1
        assert all(await accept_all(found, "y"))
        assert [await found[place].bodies() for place in (0, 2)] == [["x", "y"]] * 2
        server.command("DEL", "{fme:1}:counts")
        await until(lambda: not found[1].store.is_degraded)


async def test_an_environment_whose_keys_are_forbidden_spills_alone(server, tmp_path):
    server.command("ACL", "SETUSER", "gateway", "on", ">secret", "~{fme:*", "&*", "+@all")
    user = {"redis_username": "gateway", "redis_password": "secret"}
    async with environments(server, tmp_path, 3, **user) as found:
        server.command("ACL", "SETUSER", "gateway", "resetkeys", "~{fme:0}*", "~{fme:2}*")
        assert all(await accept_all(found, "x"))
        assert [one.store.is_degraded for one in found] == [False, True, False]
        assert "ACL" in found[1].store.failure
        server.command("ACL", "SETUSER", "gateway", "~{fme:*")
        await until(lambda: not found[1].store.is_degraded)


async def test_a_redis_that_hangs_costs_all_environments_one_time_out(server, tmp_path):
    """Also those that wait behind the round that hangs, and each event is stored once."""
    held = []
    hold = lambda together: held.append(HeldAppends(together)) or held[0]  # noqa: E731
    async with environments(server, tmp_path, 6, hold, append_seconds=0.25) as found:
        held[0].go.set()
        assert all(await accept_all(found, "before"))
        rounds = held[0].rounds
        server.pause()
        try:
            first = asyncio.create_task(accept_all(found[:3], "during"))
            await until(lambda: held[0].rounds == rounds + 1)
            assert await accept_all(found[3:], "during") == [True] * 3
            assert await first == [True] * 3
            assert all(one.store.is_degraded for one in found)
            assert [(await one.local.depth()).waiting for one in found] == [1] * 6
        finally:
            server.resume()
        await until(lambda: not any(one.store.is_degraded for one in found))
        for one in found:
            async with asyncio.timeout(SECONDS):
                while (await one.local.depth()).waiting:
                    await asyncio.sleep(0.01)
            assert await one.bodies() == ["before", "during"]


async def test_a_local_store_that_stalls_delays_no_other_environment(server, tmp_path):
    async with environments(server, tmp_path, 3) as found:
        server.command("SET", "{fme:1}:counts", "not a hash")
        go, append = asyncio.Event(), found[1].local.append

        async def stalled(chunks):
            await go.wait()
            await append(chunks)

        found[1].local.append = stalled
        waiting = asyncio.create_task(found[1].accept("x"))
        for number in range(3):
            assert await accept_all([found[0], found[2]], f"{number}") == [True] * 2
        assert not waiting.done()
        go.set()
        assert await waiting
        counts = found[1].queue.counts
        assert (counts.received, counts.waiting, counts.rejected) == (1, 1, 0)


async def test_a_queue_that_stops_commits_its_events_while_others_go_on(server, tmp_path):
    async with environments(server, tmp_path, 2) as found:
        gate = found[0].queue.append(b"last", 1)
        await found[0].queue.stop()
        assert gate.is_open
        assert gate.failure is None
        assert await found[0].bodies() == ["last"]
        assert await found[1].accept("further")
        assert await found[1].bodies() == ["further"]
