"""Events when Redis fails: they spill to the embedded store and move to Redis, once, when it is back."""

import asyncio
import collections
import contextlib

import pytest
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.spill import LOCAL, SpillingEvents
from tornado_gateway.store.sqlite.events import open_sqlite

pytestmark = needs_redis_server

SECONDS = 60  # for what happens in the background


@pytest.fixture
def server(tmp_path, request):
    with RedisServer(tmp_path / "redis", **getattr(request, "param", {})) as server:
        yield server


keeps_its_data = pytest.mark.parametrize("server", [{"appendonly": "yes", "appendfsync": "always"}], indirect=True)


class Gateway:
    """The event store of one gateway process."""

    def __init__(self, server, directory, **options):
        config = Config(
            **{"redis_host": "127.0.0.1", "redis_port": server.port, "socket_timeout_seconds": 5, **options}
        )
        self.primary = open_redis(redis_options(config), "1", "gateway").events
        self.local = open_sqlite(directory).events
        self.events = SpillingEvents(self.primary, self.local)

    async def __aenter__(self):
        await self.events.open()
        return self

    async def __aexit__(self, *_):
        await self.events.close()

    async def append(self, *bodies):
        await self.events.append([NewChunk(1, body.encode()) for body in bodies])

    async def claimed(self):
        return [chunk.body.decode() for chunk in await self.events.claim(100)]

    async def until(self, condition):
        async with asyncio.timeout(SECONDS):
            while not await condition():
                await asyncio.sleep(0.02)

    async def until_recovered(self):
        async def recovered():
            return not self.events.is_degraded and not (await self.local.depth()).waiting

        await self.until(recovered)

    async def until_all_claimed(self, count):
        """Claims and settles until there were `count` of them, and then once more."""
        bodies = []

        async def all_claimed():
            enough = len(bodies) >= count
            chunks = await self.events.claim(100)
            await self.events.settle(chunks)
            bodies.extend(chunk.body.decode() for chunk in chunks)
            return enough

        await self.until(all_claimed)
        return bodies


@pytest.fixture
def gateway(server, tmp_path):
    return lambda **options: Gateway(server, tmp_path / "data", **options)


async def test_events_go_to_redis_while_it_works(gateway, server):
    async with gateway() as one:
        await one.append("a", "b")
        assert not one.events.is_degraded
        assert (await one.local.depth()).waiting == 0
        assert (await one.primary.depth()).waiting == (await one.events.depth()).waiting == 2
        assert await one.claimed() == ["a", "b"]


async def test_the_local_store_is_not_read_while_it_is_unused(gateway, server):
    async with gateway() as one:
        await one.until_recovered()
        await one.append("a")
        await one.events.depth()
        reads, read = [], one.local.depth

        def counted():
            reads.append(1)
            return read()

        one.local.depth = counted
        assert [(await one.events.depth()).waiting for _ in range(3)] == [1, 1, 1]
        assert not reads
        server.kill()
        await one.append("b")
        assert (await one.events.depth()).waiting == 2
        assert reads
        server.start()
        await one.until_recovered()
        await one.events.settle([], [(NewChunk(1, b"dead"), "400")])
        assert (await one.events.depth()).dead == 1
        await one.events.discard_dead_letters([letter.id for letter in await one.events.dead_letters()])
        depth = await one.events.depth()
        assert (depth.waiting, depth.dead) == (1, 0)


async def test_redis_is_away_at_start(gateway, server):
    server.kill()
    async with gateway() as one:
        assert one.events.is_degraded
        assert f"127.0.0.1:{server.port}" in one.events.failure
        await one.append("a", "b")
        claimed = await one.events.claim(1)
        assert [chunk.body for chunk in claimed] == [b"a"]
        await one.events.settle(claimed)
        assert (await one.events.depth()).waiting == 1
        server.start()
        await one.until_recovered()
        assert one.events.failure is None
        assert (await one.primary.depth()).waiting == 1
        assert await one.claimed() == ["b"]


async def test_a18_events_that_spill_while_redis_recovers_move_too(gateway, server):
    """Row A18: Redis fails for a moment; the events go to a slow disk, and arrive there after all others have moved."""
    async with gateway() as one:
        is_slow, go = asyncio.Event(), asyncio.Event()
        append = one.local.append

        async def append_slowly(chunks):
            is_slow.set()
            await go.wait()
            await append(chunks)

        one.local.append = append_slowly
        server.command("CONFIG", "SET", "maxmemory", "1")
        appending = asyncio.create_task(one.append("a"))
        await is_slow.wait()
        server.command("CONFIG", "SET", "maxmemory", "0")
        await one.until_recovered()
        await asyncio.sleep(0.1)  # the mover has nothing to do any more
        go.set()
        await appending
        assert await one.until_all_claimed(1) == ["a"]


async def test_a_wrong_password_is_told_and_nothing_is_lost(gateway, server, caplog):
    server.command("CONFIG", "SET", "requirepass", "right")
    async with gateway(redis_password="wrong-secret") as one:
        assert "password was rejected" in one.events.failure
        await one.append("a")
        assert await one.claimed() == ["a"]
    assert "wrong-secret" not in caplog.text


async def test_redis_goes_away_and_comes_back_empty_under_a_stream_of_events(gateway, server, caplog):
    async with gateway() as one:
        sent = [f"event-{i}" for i in range(400)]
        got = []
        for i, body in enumerate(sent):
            if i == 100:
                got += await one.claimed()  # Redis loses what it holds, so that nothing may wait in it
                await one.events.settle([])
                server.kill()
            if i == 300:
                server.start()
            await one.append(body)
            await asyncio.sleep(0.002)
        await one.until_recovered()
        got += await one.until_all_claimed(len(sent) - len(got))
        assert collections.Counter(got) == collections.Counter(sent)
        messages = [record.message for record in caplog.records if record.name.endswith("spill")]
        assert len(messages) == 2, messages


@keeps_its_data
async def test_redis_comes_back_with_its_data_and_every_chunk_arrives_once(server, gateway):
    async with gateway() as one:
        await one.append("before")
        server.kill()
        await one.append("during")
        server.start()
        await one.until_recovered()
        await one.append("after")
        assert sorted(await one.until_all_claimed(3)) == ["after", "before", "during"]


@keeps_its_data
async def test_what_was_delivered_during_the_outage_is_not_delivered_again(server, gateway):
    async with gateway() as one:
        await one.append("a", "b")
        claimed = await one.events.claim(2)
        server.kill()
        await one.events.settle(claimed, dead=[(NewChunk(1, b"a"), "400")], remaining=[NewChunk(1, b"b2")])
        assert [letter.body for letter in await one.events.dead_letters()] == [b"a"]
        server.start()
        await one.until_recovered()
        assert (await one.events.depth()).waiting == 1
        assert await one.claimed() == ["b2"]
        (letter,) = await one.events.dead_letters()
        assert str(letter.id).startswith(LOCAL)
        assert await one.events.requeue([letter.id]) == 1
        assert await one.until_all_claimed(1) == ["a"]


async def test_a_paused_redis_costs_one_time_out_and_repeats_nothing(server, gateway):
    async with gateway() as one:
        await one.append("before")
        server.pause()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for i in range(50):
            await one.append(f"event-{i}")
        assert loop.time() - began < SECONDS  # 50 times the time-out would be more
        assert one.events.is_degraded
        server.resume()
        await one.until_recovered()
        assert sorted(await one.until_all_claimed(51)) == sorted(["before", *(f"event-{i}" for i in range(50))])


async def test_a_full_redis_is_emptied_while_new_events_spill(server, gateway):
    async with gateway() as one:
        await one.append("old")
        server.command("CONFIG", "SET", "maxmemory", "1")
        await one.append("new")
        assert "memory is full" in one.events.failure
        assert sorted(await one.until_all_claimed(2)) == ["new", "old"]
        server.command("CONFIG", "SET", "maxmemory", "0")
        await one.until_recovered()


async def test_a_restart_while_redis_is_away_keeps_what_spilled(server, gateway):
    server.kill()
    async with gateway() as one:
        await one.append("a", "b")
        await one.events.claim(1)
    async with gateway() as two:
        assert (await two.events.depth()).waiting == 2
        server.start()
        await two.until_recovered()
        assert (await two.primary.depth()).waiting == 2
        assert await two.claimed() == ["a", "b"]


async def test_a18_chunks_that_the_local_store_has_only_after_the_recovery_move_too(server, gateway):
    """The primary fails and recovers while the local store is still writing."""
    async with gateway() as one:
        write, may_write = one.local.append, asyncio.Event()

        async def write_later(chunks, seconds=None):
            await may_write.wait()
            await write(chunks, seconds)

        one.local.append = write_later
        server.pause()
        appended = asyncio.create_task(one.append("late"))

        async def is_degraded():
            return one.events.is_degraded

        await one.until(is_degraded)
        server.resume()
        await one.until_recovered()
        may_write.set()
        await appended
        assert await one.until_all_claimed(1) == ["late"]


async def test_released_chunks_of_the_local_store_move_too(server, gateway):
    server.kill()
    async with gateway() as one:
        await one.append("a")
        claimed = await one.events.claim(1)
        server.start()
        await one.until(lambda: _is_up(one))
        await one.events.release(claimed)
        assert await one.until_all_claimed(1) == ["a"]
        assert (await one.local.depth()).waiting == 0


async def _is_up(gateway):
    return not gateway.events.is_degraded


async def test_dead_letters_of_both_stores_are_edited_discarded_and_expire(gateway):
    async with gateway() as one:
        for bodies in (b"ab", b"cd", b"ef"):
            await one.local.settle([], dead=[(NewChunk(1, bodies[:1]), "old")])
            await one.primary.settle([], dead=[(NewChunk(1, bodies[1:]), "new")])
        ids = {letter.body: letter.id for letter in await one.events.dead_letters()}
        assert await one.events.discard_dead_letters([ids[b"a"], ids[b"b"], "local:999", "9-9"]) == 2
        assert await one.events.requeue_edited(ids[b"c"], b"c2") == 1
        assert await one.events.requeue_edited(ids[b"d"], b"d2") == 1
        assert sorted(await one.until_all_claimed(2)) == ["c2", "d2"]
        assert (await one.events.depth()).dead == 2
        assert await one.events.expire_dead_letters(2**33) == 2
        assert (await one.events.depth()).dead == 0


async def test_dead_letters_of_both_stores_are_listed_and_queued_again(server, gateway):
    async with gateway() as one:
        await one.local.settle([], dead=[(NewChunk(2, b"x\ny"), "old")])
        await one.events.settle([], dead=[(NewChunk(1, b"z"), "new")])
        await one.primary.settle([], dead=[(NewChunk(1, b"w"), "new")])
        assert sorted(letter.body for letter in await one.events.dead_letters()) == [b"w", b"x\ny", b"z"]
        assert (await one.events.depth()).dead == 4
        assert await one.events.requeue() == 4
        assert sorted(await one.until_all_claimed(3)) == ["w", "x\ny", "z"]


class SlowStore:
    """A primary store that never answers."""

    def __getattr__(self, name):
        async def never(*_):
            await asyncio.sleep(3600)

        return never


async def test_a_primary_that_does_not_bound_itself_is_bounded(tmp_path):
    events = SpillingEvents(SlowStore(), open_sqlite(tmp_path).events, patience_seconds=0.1)
    await events.open()
    assert "no response" in events.failure
    await events.append([NewChunk(1, b"a")])
    assert [chunk.body for chunk in await events.claim(1)] == [b"a"]
    await events.close()
    with pytest.raises(StoreError):
        await events.append([NewChunk(1, b"b")])


async def test_d18_the_first_events_after_redis_hangs_are_stored_locally_at_once(server, tmp_path):
    """250 ms are the limit; Redis itself rejects what reaches it later, so that nothing arrives twice."""
    async with Gateway(server, tmp_path / "a", socket_timeout_seconds=60) as gateway:
        await gateway.append("before")
        assert await gateway.claimed() == ["before"]
        server.pause()
        try:
            async with asyncio.timeout(5):
                await gateway.append("during")
            assert (await gateway.local.depth()).waiting == 1
            await asyncio.sleep(0.5)
        finally:
            server.resume()
        await gateway.until_recovered()
        assert await gateway.claimed() == ["during"]
        assert await gateway.claimed() == []


async def test_d18_look_ups_of_a_decision_do_not_wait_for_a_redis_that_hangs(server):
    config = Config(redis_host="127.0.0.1", redis_port=server.port, socket_timeout_seconds=60)
    state = open_redis(redis_options(config), "1", "gateway").state
    await state.open()
    await state.set_alias("member", "guest")
    server.pause()
    try:
        async with asyncio.timeout(10):
            for call in (
                state.aliases(["member"]),
                state.load_records("u", ["f"]),
                state.save_records("u", {"f": {}}, 1),
            ):
                with contextlib.suppress(StoreError):
                    await call
    finally:
        server.resume()
    assert await state.aliases(["member"]) == {"member": "guest"}
    await state.close()
