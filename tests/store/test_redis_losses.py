"""Rows A24 and A11: Redis loses acknowledged events. The gateway counts them, and warns before it happens."""

import asyncio
import contextlib

import orjson
import pytest
from commands import run_doctor
from process import SAMPLE_SETTINGS, free_port
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.spill import SpillingEvents
from tornado_gateway.store.sqlite.events import SqliteEvents

pytestmark = needs_redis_server
SECONDS = 60
COUNTS = "{fme:1}:counts"


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path / "redis", appendonly="no") as server:
        yield server


async def opened(redis, directory):
    config = Config(redis_host="127.0.0.1", redis_port=redis.port, socket_timeout_seconds=2)
    primary = open_redis(redis_options(config), "1", "gateway").events
    events = SpillingEvents(primary, SqliteEvents(directory))
    await events.open()
    queue = EventQueue(events, limit=10_000, chunk_events=1, shared=True)
    await queue.start()
    return events, queue


async def closed(events, queue):
    await queue.stop()
    await events.close()


async def accept(queue, events, number):
    gates = [queue.append(b"{}", 1) for _ in range(number)]
    async with asyncio.timeout(SECONDS):
        # The reply counts as well: without it, the events are appended a second time when Redis is back.
        while not all(gate.is_open for gate in gates) or (await events.depth()).waiting < number:
            await asyncio.sleep(0.02)


async def until_lost(queue, number):
    async with asyncio.timeout(SECONDS):
        while queue.counts.lost != number:
            await asyncio.sleep(0.02)


async def until_depth(events, number):
    """Wait for the number of waiting events; while Redis cannot be reached, the last known one is returned."""
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(StoreError):
                if (await events.depth()).waiting == number:
                    return
            await asyncio.sleep(0.02)


def flush_all(redis):
    redis.command("FLUSHALL")


def restart_empty(redis):
    redis.kill()
    redis.start()


def evict_the_stream(redis):
    redis.command("DEL", "{fme:1}:events")


def become_a_replica_of_an_empty_server(redis):
    with RedisServer(redis._directory.with_name("empty")) as other:
        redis.command("REPLICAOF", "127.0.0.1", other.port)
        while redis.command("DBSIZE"):
            pass
    redis.command("REPLICAOF", "NO", "ONE")


LOSSES = [flush_all, restart_empty, evict_the_stream, become_a_replica_of_an_empty_server]


@pytest.mark.parametrize("lose", LOSSES)
async def test_a24_events_that_redis_has_lost_are_counted_without_traffic(tmp_path, redis, caplog, lose):
    events, queue = await opened(redis, tmp_path / "data")
    await accept(queue, events, 600)
    lose(redis)
    await until_lost(queue, 600)
    counts = queue.counts
    assert counts.received == counts.waiting + counts.lost == 600
    assert "600 stored events are lost" in caplog.text
    await accept(queue, events, 5)
    assert (counts.received, counts.lost) == (605, 600)
    await closed(events, queue)


async def test_a24_dead_letters_count_and_claimed_events_are_delivered_from_memory(tmp_path, redis):
    events, queue = await opened(redis, tmp_path / "data")
    await accept(queue, events, 100)
    dead = await events.claim(10)
    await events.settle(dead, dead=[(NewChunk(1, chunk.body), "400") for chunk in dead])
    queue.record_settled(0, 10, sum(chunk.size for chunk in dead))
    claimed = await events.claim(20)
    redis.command("FLUSHALL")
    await until_lost(queue, 80)
    await events.settle(claimed)
    queue.record_settled(20, 0, sum(chunk.size for chunk in claimed))
    assert queue.counts.received == queue.counts.delivered + queue.counts.lost
    await closed(events, queue)


async def test_a24_one_of_two_gateways_counts_the_loss(tmp_path, redis):
    first, second = await opened(redis, tmp_path / "a"), await opened(redis, tmp_path / "b")
    await accept(first[1], first[0], 50)
    async with asyncio.timeout(SECONDS):
        while second[1].counts.waiting != 50:
            await asyncio.sleep(0.02)
    redis.command("FLUSHALL")
    async with asyncio.timeout(SECONDS):
        while first[1].counts.lost + second[1].counts.lost != 50:
            await asyncio.sleep(0.02)
    await asyncio.sleep(2.5)  # some further counts
    assert first[1].counts.lost + second[1].counts.lost == 50
    for opened_ in (first, second):
        await closed(*opened_)


async def stores(redis, *owners):
    config = Config(redis_host="127.0.0.1", redis_port=redis.port, socket_timeout_seconds=2)
    opened_ = [open_redis(redis_options(config), "1", owner).events for owner in owners]
    for events in opened_:
        await events.open()
    return opened_


async def test_a24_a_loss_is_counted_once_although_the_gateways_know_different_states(redis):
    first, second = await stores(redis, "first", "second")
    await first.append([NewChunk(1, b"{}")] * 10)
    await second.append([NewChunk(1, b"{}")] * 5)  # which the first one has not heard of
    redis.command("FLUSHALL")
    for events in (first, second, first, second):
        await events.depth()
    assert (first.lost, second.lost) == (10, 0)
    for events in (first, second):
        await events.close()


def empty_and_full(redis, other):
    redis.command("CONFIG", "SET", "maxmemory", "1")
    redis.command("FLUSHALL")


def replica_of_an_empty_server(redis, other):
    redis.command("REPLICAOF", "127.0.0.1", other.port)
    while redis.command("DBSIZE"):
        pass


@pytest.mark.parametrize("lose", [empty_and_full, replica_of_an_empty_server])
async def test_a24_a_loss_is_counted_once_although_redis_cannot_note_it_yet(tmp_path, redis, lose):
    with RedisServer(tmp_path / "empty") as other:
        (events,) = await stores(redis, "first")
        await events.append([NewChunk(1, b"{}")] * 10)
        lose(redis, other)
        for _ in range(3):
            with contextlib.suppress(StoreError):
                await events.depth()
        redis.command("CONFIG", "SET", "maxmemory", "0")
        redis.command("REPLICAOF", "NO", "ONE")
        await until_depth(events, 0)  # a connection may have been closed
        for _ in range(3):
            await events.depth()
        assert events.lost == 10
        await events.close()


async def test_a24_an_older_copy_of_the_data_is_noticed(tmp_path, redis):
    """As after a restart with snapshots, or a failover to a replica that lags behind."""
    events, queue = await opened(redis, tmp_path / "data")
    await accept(queue, events, 10)
    redis.command("SAVE")
    await accept(queue, events, 30)
    redis.kill()
    redis.start()
    await until_lost(queue, 30)
    await until_depth(events, 10)
    await closed(events, queue)


async def test_a24_an_evicted_counter_loses_nothing(tmp_path, redis):
    events, queue = await opened(redis, tmp_path / "data")
    await accept(queue, events, 30)
    redis.command("DEL", COUNTS)
    assert (await events.depth()).waiting == 30
    assert events.lost == 0
    await closed(events, queue)


async def test_a11_start_and_doctor_warn_about_eviction_and_missing_persistence(tmp_path, redis, caplog):
    redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    events, queue = await opened(redis, tmp_path / "data")
    await closed(events, queue)
    assert "maxmemory-policy allkeys-lru" in caplog.text
    assert "no persistence" in caplog.text
    options = {"SETTINGS_FILE": SAMPLE_SETTINGS, "PORT": free_port(), "DATA_DIR": tmp_path / "data"}
    result = run_doctor("--json", REDIS_HOST="127.0.0.1", REDIS_PORT=redis.port, **options)
    (finding,) = [found for found in orjson.loads(result.stdout)["findings"] if found["check"] == "redis"]
    assert (finding["state"], finding["code"]) == ("warn", "redis-loses")
    assert "allkeys-lru" in finding["message"]
    assert "no persistence" in finding["message"]


async def test_a11_a_redis_that_keeps_its_data_causes_no_warning(tmp_path, caplog):
    with RedisServer(tmp_path / "redis", appendonly="yes") as redis:
        events, queue = await opened(redis, tmp_path / "data")
        await closed(events, queue)
    assert "can be lost" not in caplog.text
