"""Rows A17 and A18: whatever is delayed, fails or is cancelled inside a store, every chunk is handed out in the end.

Each store runs with concurrent callers while its only way out (the thread of the database, the link to Redis) waits or
fails at random. Afterwards the faults end, and plain calls of `claim` must find everything that is not settled.
"""

import asyncio
import collections
import contextlib
import itertools
import random
import sqlite3

import pytest
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.spill import SpillingEvents
from tornado_gateway.store.sqlite.events import SqliteEvents

SECONDS = 30  # far more than any of this takes
STORES = ["sqlite", *(pytest.param(name, marks=needs_redis_server) for name in ("redis", "spill"))]


class Faults:
    """Delays and failures, before a call is passed on and after it was done."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.is_on = True

    def of_link(self, call):
        """A call fails before it reached Redis, or its answer gets lost."""

        async def unreliable(*command, **options):
            await self._wait()
            if self._fails():
                raise StoreError("injected")
            reply = await call(*command, **options)
            await self._wait()
            if self._fails():
                raise StoreError("injected")
            return reply

        return unreliable

    def of_database(self, run):
        """A job fails in the thread, before it has done anything."""

        def fail(*_):
            raise sqlite3.OperationalError("injected")

        async def unreliable(work, *args, **options):
            await self._wait()
            result = await run(fail if self._fails() else work, *args, **options)
            await self._wait()
            return result

        return unreliable

    async def _wait(self):
        if self.is_on and self.chance.random() < 0.7:
            await asyncio.sleep(self.chance.choice((0, 0, 0.001, 0.003)))

    def _fails(self):
        return self.is_on and self.chance.random() < 0.1


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=STORES)
def open_events(request, tmp_path):
    """Opens the event store, behind these faults if there are any."""
    if request.param != "sqlite":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")

    def primary(faults):
        config = Config(redis_host="127.0.0.1", redis_port=server.port, socket_timeout_seconds=2)
        events = open_redis(redis_options(config), "1", "gateway").events
        if faults is not None:
            events._link.call = faults.of_link(events._link.call)
        return events

    def local(faults):
        events = SqliteEvents(tmp_path / "data")
        if faults is not None:
            events._database.run = faults.of_database(events._database.run)
        return events

    async def opened(faults=None):
        if faults is not None:
            faults.is_on = False
        if request.param == "sqlite":
            events = local(faults)
        elif request.param == "redis":
            events = primary(faults)
        else:
            events = SpillingEvents(primary(faults), local(faults))
        await events.open()
        if faults is not None:
            faults.is_on = True
        return events

    return opened


class Callers:
    """Concurrent users of one store, as the queue and the flusher are."""

    def __init__(self, events, chance):
        self.events = events
        self.chance = chance
        self.names = itertools.count()
        self.appended = set()  # acknowledged
        self.settled = collections.Counter()
        self.handed_out = collections.Counter()
        self.mine = []

    async def append(self):
        new = [NewChunk(1, b"%d" % next(self.names)) for _ in range(self.chance.randint(1, 5))]
        with contextlib.suppress(StoreError):
            await self.events.append(new)
            self.appended.update(chunk.body for chunk in new)

    async def claim(self):
        with contextlib.suppress(StoreError):
            chunks = await self.events.claim(self.chance.randint(1, 8))
            self.mine += chunks

    async def cancelled_claim(self):
        """The claim that is cut off may have been done or not; it must not keep anything."""
        claiming = asyncio.ensure_future(self.events.claim(self.chance.randint(1, 8)))
        await asyncio.wait([claiming], timeout=self.chance.choice((0, 0.001, 0.004)))
        claiming.cancel()
        with contextlib.suppress(asyncio.CancelledError, StoreError):
            chunks = await claiming
            self.mine += chunks

    async def release(self):
        back, self.mine = self.mine, []
        await self.events.release(back)

    async def settle(self):
        done, self.mine = self.mine, []
        await self._settle(done)

    async def refuse(self):
        if self.mine:
            chunk = self.mine.pop()
            await self._settle([chunk], [(NewChunk(1, chunk.body), "no")])

    async def _settle(self, done, dead=()):
        try:
            await self.events.settle(done, dead)
            self.settled.update(chunk.body for chunk in done)
        except StoreError:
            await self.events.release(done)

    async def requeue(self):
        with contextlib.suppress(StoreError):
            await self.events.requeue()

    async def some(self, steps):
        kinds = [self.append, self.claim, self.cancelled_claim, self.release, self.settle, self.refuse, self.requeue]
        chosen = self.chance.choices(kinds, [6, 4, 2, 3, 3, 1, 1], k=steps)
        await asyncio.gather(*(step() for step in chosen))


@pytest.mark.parametrize("seed", range(8))
async def test_a17_nothing_stays_claimed_whatever_waits_or_fails_inside_the_store(open_events, seed):
    faults = Faults(seed)
    events = await open_events(faults)
    callers = Callers(events, faults.chance)
    for _ in range(30):
        await callers.some(callers.chance.randint(1, 8))
    await callers.release()
    faults.is_on = False

    async def everything_was_settled():
        if (await events.depth()).dead:  # otherwise it would wake what has to be awake already
            await events.requeue()
        if chunks := await events.claim(7):
            await events.settle(chunks)
            callers.settled.update(chunk.body for chunk in chunks)
        depth = await events.depth()
        return not depth.waiting and not depth.dead and not chunks

    async with asyncio.timeout(SECONDS):
        while not await everything_was_settled():
            await asyncio.sleep(0.005)
    missing = callers.appended - set(callers.settled)
    assert not missing, f"{len(missing)} of {len(callers.appended)} chunks were never handed out"
    await events.close()


async def test_a17_a_release_during_a_claim_is_not_forgotten(open_events):
    """The row itself: `claim` waits for the store while another caller gives its chunks back."""
    faults = Faults(1)
    events = await open_events(faults)
    faults.is_on = False
    await events.append([NewChunk(1, b"%d" % n) for n in range(300)])
    seen = set()
    for _ in range(20):
        mine = await events.claim(10)
        claiming = asyncio.ensure_future(events.claim(10))
        await asyncio.sleep(0)
        await events.release(mine)
        chunks = await claiming
        seen.update(chunk.body for chunk in chunks)
        await events.settle(chunks)
    async with asyncio.timeout(SECONDS):
        while chunks := await events.claim(50):
            seen.update(chunk.body for chunk in chunks)
            await events.settle(chunks)
    assert len(seen) == 300
    await events.close()


# ---- Row A18: many chunks, and no traffic afterwards -----------------------------------------------------------------

MANY = 2000  # chunks; some claims' worth


def many(prefix="e"):
    return [NewChunk(1, b"%s-%d" % (prefix.encode(), number)) for number in range(MANY)]


async def claim_everything(events, wanted=MANY):
    """Claims alone, as the flusher does; what it claims at once is far less than what waits."""
    bodies = []
    async with asyncio.timeout(SECONDS):
        while len(bodies) < wanted:
            chunks = await events.claim(400)
            assert chunks or await _still_moves(events), f"nothing to claim after {len(bodies)} of {wanted}"
            bodies += [chunk.body for chunk in chunks]
            await events.settle(chunks)
    return bodies


async def _still_moves(events):
    """A spilling store hands out nothing while it moves chunks from one of its stores to the other."""
    await asyncio.sleep(0.01)
    return isinstance(events, SpillingEvents) and (await events.depth()).waiting > 0


async def bury(events):
    """Makes a dead letter of each chunk."""
    await events.append(many())
    left = MANY
    while left:
        chunks = await events.claim(500)
        await events.settle(chunks, dead=[(NewChunk(c.count, c.body, c.query), "no") for c in chunks])
        left -= len(chunks)


async def test_a18_appended_chunks_are_all_handed_out(open_events):
    events = await open_events()
    for first in range(0, MANY, 100):
        await events.append(many()[first : first + 100])
    assert len(set(await claim_everything(events))) == MANY
    await events.close()


async def test_a18_chunks_of_a_previous_run_are_all_handed_out(open_events):
    events = await open_events()
    await events.append(many())
    await events.claim(100)
    await events.close()
    events = await open_events()
    assert len(set(await claim_everything(events))) == MANY
    await events.close()


@pytest.mark.parametrize("kept", [0, 3], ids=["empty", "with traffic before"])
async def test_a18_dead_letters_that_are_queued_again_are_all_handed_out(open_events, kept):
    events = await open_events()
    await bury(events)
    for number in range(kept):
        await events.append([NewChunk(1, b"before-%d" % number)])
    assert await events.requeue() == MANY
    assert len(set(await claim_everything(events, MANY + kept))) == MANY + kept
    assert (await events.depth()).dead == 0
    await events.close()


async def test_a18_what_settling_keeps_is_handed_out(open_events):
    events = await open_events()
    await events.append(many())
    chunks = await events.claim(2 * MANY)
    await events.settle(chunks, remaining=[NewChunk(c.count, c.body, c.query) for c in chunks])
    assert len(set(await claim_everything(events))) == MANY
    await events.close()


@pytest.mark.parametrize("kept", [0, 3], ids=["empty", "with traffic before"])
async def test_a18_the_log_of_a_dead_worker_is_handed_out(tmp_path, kept):
    first, second = SqliteEvents(tmp_path), SqliteEvents(tmp_path)
    await first.open()
    await second.open()
    await second.append(many())
    await second.close()
    for number in range(kept):
        await first.append([NewChunk(1, b"before-%d" % number)])
    assert await first.adopt() == MANY
    assert len(set(await claim_everything(first, MANY + kept))) == MANY + kept
    await first.close()


async def test_a18_logs_of_a_previous_run_are_handed_out_although_nothing_comes(tmp_path):
    """Two workers' logs, then one worker: its own log and the adopted one, in one start."""
    first, second = SqliteEvents(tmp_path), SqliteEvents(tmp_path)
    await first.open()
    await second.open()
    await first.append(many("a"))
    await second.append(many("b"))
    await first.close()
    await second.close()
    events = SqliteEvents(tmp_path)
    await events.open()
    assert (await events.depth()).waiting == 2 * MANY
    assert len(set(await claim_everything(events, 2 * MANY))) == 2 * MANY
    await events.close()


@needs_redis_server
async def test_a18_what_spilled_is_handed_out_after_it_has_moved_to_redis(tmp_path, redis_server):
    redis_server.command("FLUSHALL")
    local = SqliteEvents(tmp_path / "data")
    await local.open()
    await local.append(many())
    await local.close()
    config = Config(redis_host="127.0.0.1", redis_port=redis_server.port)
    primary = open_redis(redis_options(config), "1", "gateway").events
    events = SpillingEvents(primary, SqliteEvents(tmp_path / "data"))
    await events.open()
    assert len(set(await claim_everything(events))) == MANY
    assert (await events.depth()).waiting == 0
    await events.close()
