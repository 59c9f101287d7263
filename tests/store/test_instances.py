"""Several gateways on one Redis: one polls, all follow; what one leaves the others deliver; Redis may fail."""

import asyncio
import contextlib
import random
import sqlite3
import time

import orjson
import pytest
from ledger import STRICT, acknowledged, arrived, visitor_requests
from length import length
from load import Exchange, Load
from process import Gateway, sample_document
from redis_servers import Proxy, RedisServer, needs_redis_server
from vendor import Vendor

pytestmark = needs_redis_server

INSTANCES = 3
ROUNDS = length(4, long=10)
FAULT_SECONDS = length(5, long=10)
STALLED = "the store has not completed a write"
GOLD = {"featureKey": "new-checkout", "userId": "user-1", "customVariables": {"plan": "gold"}}


def gateway_on(directory, name, vendor, redis_port, **options):
    defaults = {
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": redis_port,
        "EVENTS_PER_REQUEST": 50,
        "FLUSH_EVENTS_INTERVAL": 1,
        "POLLING_TIME": 500,
        "SOCKET_TIMEOUT": 1,
        **STRICT,
    }
    return Gateway.of_vendor(directory / name, vendor, **(defaults | options))


@pytest.fixture
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture
def redis(tmp_path):
    """Redis as it should be run: what it has acknowledged survives its process."""
    with RedisServer(tmp_path / "redis", appendonly="yes") as redis:
        yield redis


@pytest.fixture
def gateways(tmp_path, vendor, redis):
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(gateway_on(tmp_path, f"data-{number}", vendor, redis.port))
            for number in range(INSTANCES)
        ]


def deliver_everything(gateways, vendor, exchanges, seconds=60):
    """Wait until all that was acknowledged has arrived; returns how many events came more than once."""
    wanted = acknowledged(exchanges)

    def missing():
        return f"{len(wanted - arrived(vendor))} missing; {[gateway.status()['events'] for gateway in gateways]}"

    vendor.wait_until(lambda: not wanted - arrived(vendor), seconds, missing)
    return sum((arrived(vendor) - wanted).values())


def test_one_instance_polls_for_all(gateways, vendor):
    vendor.wait_until(lambda: all(gateway.get("/ready")[0] == 200 for gateway in gateways))
    before, started = len(vendor.settings_calls()), time.monotonic()
    vendor.wait_until(lambda: len(vendor.settings_calls()) >= before + 10)
    polls = len(vendor.settings_calls()) - before
    intervals = (time.monotonic() - started) / 0.5
    assert polls <= 1.3 * intervals + 2, f"{polls} polls of {INSTANCES} instances in {intervals:.0f} intervals"


def test_a_change_reaches_all_instances(gateways, vendor):
    document = sample_document()
    document["version"] = 77
    vendor.settings = orjson.dumps(document)
    vendor.wait_until(lambda: any(gateway.status()["settings"]["version"] == 77 for gateway in gateways))
    first = time.monotonic()
    vendor.wait_until(lambda: all(gateway.status()["settings"]["version"] == 77 for gateway in gateways))
    print(f"the last instance switched {time.monotonic() - first:.2f} s after the first")


def test_an_alias_set_at_one_instance_resolves_at_another(gateways):
    first, second, _ = gateways
    status, answer = first.post("/user-alias/setUserAlias", {"userId": "guest-1", "aliasId": "member-9"})
    assert (status, answer) == (200, {"isAliasSet": True})
    path = '/user-alias/getAliasUserId?accountId=123456&userId=["member-9"]'
    assert second.get(path) == (200, [{"aliasId": "member-9", "userId": "guest-1"}])


def test_what_a_killed_instance_leaves_the_others_deliver(gateways, vendor):
    rng = random.Random(4)
    exchanges: list[Exchange] = []
    for number in range(ROUNDS):
        loads = [
            Load(gateway.port, visitor_requests(f"{number}-{instance}"), connections=8)
            for instance, gateway in enumerate(gateways)
        ]
        asyncio.run(kill_one_of(gateways, loads, rng.randrange(INSTANCES), 200 + rng.randrange(200)))
        exchanges += [exchange for load in loads for exchange in load.exchanges]
    duplicates = deliver_everything(gateways, vendor, exchanges)
    print(f"{sum(acknowledged(exchanges).values())} acknowledged events, {duplicates} duplicates in {ROUNDS} kills")


async def kill_one_of(gateways, loads, victim, answers):
    running = [asyncio.create_task(load.run()) for load in loads]
    while sum(load.answered for load in loads) < answers:
        await asyncio.sleep(0.001)
    gateways[victim].kill()
    await running[victim]
    for load in loads:
        load.stopping = True
    await asyncio.gather(*running)
    await asyncio.to_thread(gateways[victim].start, "/ready")


# Redis fails. Each row: how it begins, how it ends.


async def stop_and_start(redis, proxy):
    redis.kill()
    await asyncio.sleep(FAULT_SECONDS)
    redis.start()


async def pause_and_resume(redis, proxy):
    redis.pause()
    await asyncio.sleep(FAULT_SECONDS)
    redis.resume()


async def become_replica_and_back(redis, proxy):
    redis.command("REPLICAOF", "127.0.0.1", "1")  # of a master that does not answer: read-only
    await asyncio.sleep(3)
    redis.command("REPLICAOF", "NO", "ONE")


async def fill_up_and_grow(redis, proxy):
    redis.command("CONFIG", "SET", "maxmemory", "1mb")
    await asyncio.sleep(3)
    redis.command("CONFIG", "SET", "maxmemory", "0")


async def cut_connections(redis, proxy):
    for _ in range(20):
        await asyncio.sleep(0.15)
        proxy.cut()


FAULTS = {
    "stopped": stop_and_start,
    "paused": pause_and_resume,
    "read-only": become_replica_and_back,
    "out of memory": fill_up_and_grow,
    "network cut": cut_connections,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_redis_loses_no_event(tmp_path, vendor, redis, fault):
    exchanges = asyncio.run(load_during(tmp_path, vendor, redis, fault))
    print(f"{fault.__name__}: {report(exchanges)}")
    assert_accepted(exchanges, tmp_path)


def test_a_disk_that_stalls_while_redis_is_full_loses_no_event(tmp_path, vendor, redis):
    """Another process's lock plays the disk. Row A20: events are rejected meanwhile, so that no 200 is in vain."""

    async def stall(redis, proxy):
        redis.command("CONFIG", "SET", "maxmemory", "1mb")
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "events-0.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            while STALLED not in (tmp_path / "data.log").read_text():
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
            other.execute("ROLLBACK")
        redis.command("CONFIG", "SET", "maxmemory", "0")

    exchanges = asyncio.run(load_during(tmp_path, vendor, redis, stall))
    assert {exchange.status for exchange in exchanges} == {200, 503}
    assert_accepted(exchanges, tmp_path)


def assert_accepted(exchanges, tmp_path):
    """A 503 is for a disk that stalls only, as it may on a loaded machine."""
    may_reject = STALLED in (tmp_path / "data.log").read_text()
    assert {exchange.status for exchange in exchanges} <= {200, 503 if may_reject else 200}


async def load_during(tmp_path, vendor, redis, fault):
    async with Proxy(redis.port) as proxy:
        gateway = gateway_on(tmp_path, "data", vendor, proxy.port)
        try:
            await asyncio.to_thread(gateway.start)
            load = Load(gateway.port, visitor_requests(0), connections=4, pause_seconds=0.02)
            running = asyncio.create_task(load.run())
            await asyncio.sleep(0.5)
            await fault(redis, proxy)
            await asyncio.sleep(1)
            load.stopping = True
            await running
            duplicates = await asyncio.to_thread(deliver_everything, [gateway], vendor, load.exchanges)
            print(f"{duplicates} duplicates")
            await asyncio.to_thread(vendor.wait_until, lambda: gateway.status()["last_error"] is None)
            return load.exchanges
        finally:
            await asyncio.to_thread(gateway.__exit__)


def report(exchanges):
    seconds = sorted(exchange.seconds for exchange in exchanges)
    p99 = seconds[int(len(seconds) * 0.99)] * 1000
    statuses = {status: sum(e.status == status for e in exchanges) for status in {e.status for e in exchanges}}
    return f"{len(exchanges)} requests, answers {statuses}, p99 {p99:.0f} ms, longest {seconds[-1] * 1000:.0f} ms"


def test_redis_comes_back_empty_and_is_healed(tmp_path, vendor):
    """What is in a Redis without persistence dies with it; here everything had been delivered before."""
    with (
        RedisServer(tmp_path / "redis") as redis,
        gateway_on(tmp_path, "a", vendor, redis.port) as first,
        gateway_on(tmp_path, "b", vendor, redis.port) as second,
    ):
        before = Load(first.port, visitor_requests(0), connections=4, total=100)
        asyncio.run(before.run())
        deliver_everything([first], vendor, before.exchanges)
        vendor.wait_until(lambda: first.status()["events"]["waiting"] == 0)
        redis.kill()
        during = Load(first.port, visitor_requests(1), connections=4, total=100)
        asyncio.run(during.run())
        redis.start()
        after = Load(second.port, visitor_requests(2), connections=4, total=100)
        asyncio.run(after.run())
        exchanges = before.exchanges + during.exchanges + after.exchanges
        assert {exchange.status for exchange in exchanges} == {200}
        deliver_everything([first, second], vendor, exchanges)
        vendor.wait_until(lambda: any(b":document:" in key for key in redis.command("KEYS", "*")))


def test_a_wrong_password_degrades_and_is_told(tmp_path, vendor):
    with (
        RedisServer(tmp_path / "redis", requirepass="right") as redis,
        gateway_on(tmp_path, "data", vendor, redis.port, REDIS_PASSWORD="wrong-password") as gateway,
    ):
        vendor.wait_until(lambda: gateway.get("/ready")[0] == 200)
        load = Load(gateway.port, visitor_requests(0), connections=4, total=200)
        asyncio.run(load.run())
        assert {exchange.status for exchange in load.exchanges} == {200}
        deliver_everything([gateway], vendor, load.exchanges)
        assert "password" in gateway.status()["last_error"]
        assert "wrong-password" not in gateway.log()
