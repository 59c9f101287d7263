"""Redis alone: what happens when processes, servers and networks fail. The common promises are in test_store.py."""

import asyncio
import subprocess
import sys
import time

import pytest
from redis_servers import (
    Proxy,
    RedisServer,
    behind_sentinels,
    cluster,
    make_certificates,
    needs_redis_server,
    tls,
)

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.redis.link import PIPELINES, Links
from tornado_gateway.store.redis.state import RECHECK_SECONDS
from tornado_gateway.store.versions import Pin
from tornado_gateway.tasks import end_tasks

pytestmark = needs_redis_server

SECONDS = 60  # for what takes its time
TIMEOUT_SECONDS = 2  # of one command: a loaded machine needs a part of a second for some
BOUND_SECONDS = 60  # far more than one time-out, far less than a hundred of them


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """An empty server, for tests that leave it as it was."""
    shared_server.command("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server(tmp_path):
    """A server for a test that stops it or changes its configuration."""
    with RedisServer(tmp_path / "own") as server:
        yield server


def store_on(port, owner="one", alive_seconds=1.0, recheck_seconds=RECHECK_SECONDS, **options):
    options = {"redis_host": "127.0.0.1", "redis_port": port, "socket_timeout_seconds": TIMEOUT_SECONDS, **options}
    times = {"alive_seconds": alive_seconds, "recheck_seconds": recheck_seconds}
    return open_redis(redis_options(Config(**options)), "1", owner, **times)


class Opened:
    """Opens stores and closes them at the end."""

    def __init__(self, *stores):
        self.stores = stores

    async def __aenter__(self):
        for store in self.stores:
            await store.open()
        return self.stores[0] if len(self.stores) == 1 else self.stores

    async def __aexit__(self, *_):
        for store in self.stores:
            await store.close()


def chunks(*bodies, count=1):
    return [NewChunk(count, body.encode()) for body in bodies]


async def claimed(store, events=100):
    return [chunk.body.decode() for chunk in await store.events.claim(events)]


async def until(condition, seconds=SECONDS):
    """Call until the result is true and no StoreError is raised; returns the result."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if result := await condition():
                    return result
            except StoreError:
                pass
            await asyncio.sleep(0.05)


async def works(store):
    await store.events.append(chunks("probe"))
    return True


# ---- Consumers that die ----------------------------------------------------------------------------------------------

CLAIM_AND_HANG = """
import asyncio, sys
from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.redis.events import open_redis

async def main():
    options = redis_options(Config(redis_host="127.0.0.1", redis_port=int(sys.argv[1])))
    store = open_redis(options, "1", "doomed", alive_seconds=1.0)
    await store.open()
    await store.events.claim(2)
    print("claimed", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_chunks_of_a_killed_process_are_taken_over(server):
    async with Opened(store_on(server.port, alive_seconds=3.0)) as store:
        await store.events.append(chunks("a", "b", "c"))
        command = [sys.executable, "-c", CLAIM_AND_HANG, str(server.port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            await asyncio.sleep(3.5)  # longer than a silent consumer is thought to live
            assert await claimed(store) == ["c"]
            process.kill()
        assert await until(lambda: claimed(store)) == ["a", "b"]
        await store.events.settle(await store.events.claim(9))
        assert await _consumers(server, 1)


async def _consumers(server, count):
    """The dead leave no consumer behind."""
    return len(server.command("XINFO", "CONSUMERS", "{fme:1}:events", "gateway")) == count


async def test_a_dead_consumer_without_chunks_is_forgotten(server):
    first, second = store_on(server.port), store_on(server.port, "two", alive_seconds=0.3)
    async with Opened(first):
        await first.events.append(chunks("a", "b"))
        await second.open()
        await second.events.settle(await second.events.claim(1))
        await _vanish(second)
        assert await until(lambda: claimed(first)) == ["b"]

        async def forgotten():
            await first.events.claim(1)
            return await _consumers(server, 1) and server.command("ZCARD", "{fme:1}:consumers") == 1

        await until(forgotten)


async def _vanish(store):
    """What Redis sees of a process that is killed: it says nothing any more."""
    consumer = store.events._consumer
    consumer._heart.cancel()
    consumer._heart = None
    await store.events._link.close()
    await store.state.close()


async def test_a_claim_takes_over_no_more_than_it_may(server):
    first, second = store_on(server.port), store_on(server.port, "two")
    await second.open()
    await second.events.append(chunks("a", "b", "c", count=40))
    await second.events.claim(1000)
    async with Opened(first):
        await second.close()
        assert await claimed(first, 100) == ["a", "b"]
        assert await claimed(first, 100) == ["c"]


async def test_after_an_outage_nobody_takes_over_what_the_living_work_on(own_server):
    stores = store_on(own_server.port, alive_seconds=2.0), store_on(own_server.port, "two", alive_seconds=2.0)
    async with Opened(*stores) as (one, two):
        await one.events.append(chunks("a"))
        mine = await one.events.claim(1)
        own_server.pause()
        await asyncio.sleep(2 * TIMEOUT_SECONDS)  # all count as dead now
        own_server.resume()

        for _ in range(20):
            assert await until(lambda: claimed_as_list(two)) == [[]]
            await asyncio.sleep(0.1)
        await one.events.settle(mine)
        assert (await two.events.depth()).waiting == 0


async def test_after_a_short_outage_a_consumer_waits_for_the_others_before_it_takes_over(own_server):
    """Its own heartbeat lasted, but others may need longer to reach Redis again."""
    stores = store_on(own_server.port, alive_seconds=60), store_on(own_server.port, "two", alive_seconds=60)
    async with Opened(*stores) as (one, two):
        await one.events.append(chunks("a"))
        await one.events.claim(1)
        own_server.command("ZADD", "{fme:1}:consumers", 1, one.events._consumer.name)  # its last heartbeat was long ago
        _let_have_lived(two, 60)
        own_server.pause()
        with pytest.raises(StoreError):
            await two.events.claim(1)
        own_server.resume()
        assert await until(lambda: claimed_as_list(two)) == [[]]
        _let_have_lived(two, 60)
        assert await until(lambda: claimed(two)) == ["a"]


def _let_have_lived(store, seconds):
    store.events._consumer._alive_since = time.monotonic() - seconds


async def claimed_as_list(store):
    """Claim, so that the result is true also if there is nothing to claim."""
    return [await claimed(store)]


async def test_a_chunk_that_another_settled_meanwhile_is_not_counted_twice(server):
    async with Opened(store_on(server.port), store_on(server.port, "two")) as (one, two):
        await one.events.append(chunks("a", "b"))
        mine = await one.events.claim(2)
        await two.events.settle(mine)
        await one.events.settle(mine, remaining=chunks("rest"))
        assert (await one.events.depth()).waiting == 1
        assert await claimed(two) == ["rest"]


# ---- Answers that get lost -------------------------------------------------------------------------------------------


async def test_a_claim_whose_answer_was_lost_is_found_again(server):
    async with Proxy(server.port) as proxy, Opened(store_on(proxy.port)) as store:
        await store.events.append(chunks("a", "b"))
        proxy.loses_answers = True
        with pytest.raises(StoreError, match="no response within"):
            await store.events.claim(9)
        proxy.loses_answers = False
        proxy.cut()
        assert await until(lambda: claimed(store)) == ["a", "b"]
        assert await claimed(store) == []


async def test_a_settlement_whose_answer_was_lost_can_be_repeated(server):
    async with Proxy(server.port) as proxy, Opened(store_on(proxy.port)) as store:
        await store.events.append(chunks("a", "b"))
        mine = await store.events.claim(1)
        proxy.loses_answers = True
        with pytest.raises(StoreError):
            await store.events.settle(mine)
        proxy.loses_answers = False

        async def settled():
            await store.events.settle(mine)
            return True

        await until(settled)
        assert (await store.events.depth()).waiting == 1


async def test_a_broken_connection_is_replaced(server):
    async with Proxy(server.port) as proxy, Opened(store_on(proxy.port)) as store:
        proxy.cut()
        await until(lambda: works(store))


async def test_a_connection_that_was_closed_while_idle_is_noticed_before_its_next_use(server):
    async with Opened(store_on(server.port, alive_seconds=60)) as store:
        await works(store)
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.1)  # until this process has been told
        assert await works(store)


async def test_a_command_that_fails_leaves_the_replies_of_the_others(server):
    link = Links(redis_options(Config(redis_host="127.0.0.1", redis_port=server.port))).of("1")
    link.open()
    await link.call("SET", "text", "a")
    results = await asyncio.gather(
        link.call("GET", "text"), link.call("INCR", "text"), link.call("STRLEN", "text"), return_exceptions=True
    )
    assert [type(result) for result in results] == [bytes, StoreError, int]
    assert await link.call("GET", "text") == b"a"
    await link.close()


async def test_commands_of_one_turn_of_the_loop_share_a_round_trip(server):
    async with Proxy(server.port) as proxy, Opened(store_on(proxy.port, alive_seconds=60)) as store:
        await store.state.save_records("u1", {"f": {"rolloutId": 1}}, 60)
        await store.state.aliases(["first"])  # the script is sent once
        before = proxy.sent
        records, *aliases = await asyncio.gather(
            store.state.load_records("u1", ["f"]), *(store.state.aliases([f"user-{i}"]) for i in range(50))
        )
        assert records == {"f": {"rolloutId": 1}}
        assert aliases == [{}] * 50
        assert proxy.sent == before + 1


# ---- Servers that fail -----------------------------------------------------------------------------------------------


async def test_redis_comes_back_empty(own_server):
    async with Opened(store_on(own_server.port)) as store:
        await store.events.append(chunks("a", "b"))
        mine = await store.events.claim(1)
        assert (await store.state.save_document("s", b"1")).version == 1
        own_server.kill()
        own_server.start()
        await until(lambda: works(store))
        await store.events.settle(mine)
        assert (await store.events.depth()).waiting == 1
        assert await claimed(store) == ["probe"]
        assert await store.state.load_document("s") is None
        assert (await store.state.save_document("s", b"2")).version == 2


async def test_a_document_that_redis_has_lost_is_put_back_by_who_watches_it(own_server):
    stores = store_on(own_server.port), store_on(own_server.port, "two", recheck_seconds=0.1)
    async with Opened(*stores) as (one, two):
        saved = await one.state.save_document("s", b"1")
        assert (await two.state.load_document("s")) == saved
        waiting = asyncio.create_task(two.state.wait_for_document("s", saved.version))
        own_server.kill()
        own_server.start()
        assert await until(lambda: one.state.load_document("s")) == saved
        assert not waiting.done()
        await one.state.save_document("s", b"2")
        assert (await asyncio.wait_for(waiting, SECONDS)).version == 2


async def test_a_pin_is_put_back_with_its_document(own_server):
    async with Opened(store_on(own_server.port, recheck_seconds=0.1)) as store:
        saved = await store.state.save_document("s", b"1")
        pin = Pin(saved.latest, 1.0, "me", seconds=3600)
        pinned = await store.state.pin_document("s", pin)
        waiting = asyncio.create_task(store.state.wait_for_document("s", pinned.version))
        own_server.kill()
        own_server.start()
        found = await until(lambda: store.state.load_document("s"))
        assert (found.body, found.pin, found.latest, found.left_seconds) == (b"1", pin, saved.latest, 3600)
        assert (await store.state.save_document("s", b"2")).body == b"1"
        assert (await asyncio.wait_for(waiting, SECONDS)).pin == pin
        assert await store.state.unpin_document("s")
        assert (await store.state.load_document("s")).body == b"2"


async def test_changes_are_announced_also_after_a_broken_connection(server):
    async with (
        Proxy(server.port) as proxy,
        Opened(store_on(proxy.port, recheck_seconds=3600), store_on(server.port, "two")) as (one, two),
    ):
        for cut in (False, True):
            before = await two.state.save_document("s", b"before")
            waiting = asyncio.create_task(one.state.wait_for_document("s", before.version))
            await asyncio.sleep(0.2)
            if cut:
                proxy.cut()
            await two.state.save_document("s", b"after")
            assert (await asyncio.wait_for(waiting, SECONDS)).body == b"after"


async def test_a_change_that_could_not_be_read_is_read_soon(server, monkeypatch):
    """The message and the reading use different connections, and both may be broken at the same time."""
    async with Opened(store_on(server.port, recheck_seconds=3600), store_on(server.port, "two")) as (one, two):
        before = await two.state.save_document("s", b"before")
        load, failures = one.state._load_unless, [StoreError("broken")]

        async def load_later(*names):
            found = await load(*names)
            if found is not None and failures:
                raise failures.pop()
            return found

        monkeypatch.setattr(one.state, "_load_unless", load_later)
        waiting = asyncio.create_task(one.state.wait_for_document("s", before.version))
        await two.state.save_document("s", b"after")
        assert (await asyncio.wait_for(waiting, SECONDS)).body == b"after"
        assert failures == []


async def test_waiting_for_a_document_ends_when_the_store_is_closed(server):
    store = store_on(server.port)
    await store.open()
    waiting = asyncio.create_task(store.state.wait_for_document("s", 1))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await asyncio.wait_for(waiting, SECONDS)


async def test_a_lost_group_is_made_again(server):
    async with Opened(store_on(server.port)) as store:
        await store.events.append(chunks("a", "b"))
        assert await claimed(store, 1) == ["a"]
        server.command("XGROUP", "DESTROY", "{fme:1}:events", "gateway")
        assert await claimed(store) == ["a", "b"]


async def test_a_full_redis_says_so_and_can_be_emptied(own_server):
    async with Opened(store_on(own_server.port)) as store:
        await store.events.append(chunks("a", "b"))
        await store.state.acquire_lease("poll", "one")
        own_server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreError, match="memory is full"):
            await store.events.append(chunks("c"))
        with pytest.raises(StoreError, match="memory is full"):
            await store.events.append(())
        with pytest.raises(StoreError, match="memory is full"):
            await store.state.set_alias("a", "b")
        assert await store.state.acquire_lease("poll", "one")
        mine = await store.events.claim(2)
        assert [chunk.body for chunk in mine] == [b"a", b"b"]
        await store.events.settle(mine, dead=[(NewChunk(1, b"a"), "400")])
        depth = await store.events.depth()
        assert (depth.waiting, depth.dead) == (0, 1)


async def test_a_process_that_starts_while_redis_is_full_can_deliver(own_server):
    async with Opened(store_on(own_server.port)) as one:
        await one.events.append(chunks("a"))
        own_server.command("CONFIG", "SET", "maxmemory", "1")
        async with Opened(store_on(own_server.port, "two")) as two:
            assert await claimed(two) == ["a"]


async def test_a_replica_says_that_it_is_read_only(own_server, tmp_path):
    with RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {own_server.port}") as replica:
        store = store_on(replica.port)
        with pytest.raises(StoreError, match="read-only replica"):
            await store.events.open()


async def test_a_wrong_password_is_told_without_it(own_server):
    own_server.command("CONFIG", "SET", "requirepass", "right")
    store = store_on(own_server.port, redis_password="wrong-secret")
    with pytest.raises(StoreError, match="password was rejected") as failure:
        await store.events.open()
    assert "wrong-secret" not in str(failure.value)
    async with Opened(store_on(own_server.port, redis_password="right")) as store:
        await works(store)


async def test_a_user_needs_the_right_permissions(own_server):
    own_server.command("ACL", "SETUSER", "gateway", "on", ">secret", "~{fme:*", "&*", "+@all", "-@admin")
    own_server.command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read")
    async with Opened(store_on(own_server.port, redis_username="gateway", redis_password="secret")) as store:
        await works(store)
    with pytest.raises(StoreError, match="ACL"):
        await store_on(own_server.port, redis_username="reader", redis_password="secret").events.open()


async def test_g5_documents_are_stored_and_recognised_without_the_right_to_any_channel(own_server):
    """Row G5: the document was stored, but its writer got an error; other instances compare the version."""
    own_server.command("ACL", "SETUSER", "gateway", "on", ">secret", "~{fme:*", "resetchannels", "+@all", "-@admin")
    user = {"redis_username": "gateway", "redis_password": "secret"}
    async with (
        Opened(store_on(own_server.port, **user)) as one,
        Opened(store_on(own_server.port, "two", recheck_seconds=0.05, **user)) as two,
    ):
        assert not await one.state.can_notify()
        waiting = asyncio.create_task(two.state.wait_for_document("d", 0))
        saved = await one.state.save_document("d", b"{}")
        async with asyncio.timeout(SECONDS):
            assert await waiting == saved
        own_server.command("FLUSHALL")
        async with asyncio.timeout(SECONDS):  # it is put back, too
            assert (await one.state.wait_for_document("d", 0)).body == b"{}"


async def test_a_user_with_the_channels_can_notify(own_server):
    own_server.command("ACL", "SETUSER", "gateway", "on", ">secret", "~{fme:*", "resetchannels", "&{fme:*", "+@all")
    async with Opened(store_on(own_server.port, redis_username="gateway", redis_password="secret")) as store:
        assert await store.state.can_notify()


async def test_a_paused_redis_costs_one_time_out_and_then_nothing(own_server):
    async with Opened(store_on(own_server.port)) as store:
        own_server.pause()
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreError, match="no response within"):
                await store.state.aliases(["a"])
        assert time.monotonic() - began < BOUND_SECONDS  # 100 time-outs are more
        own_server.resume()
        await until(lambda: works(store))


async def test_what_a_paused_redis_was_asked_it_does_not_do_later(own_server):
    async with Opened(store_on(own_server.port)) as store:
        own_server.pause()
        with pytest.raises(StoreError):
            await store.events.append(chunks("late"))
        await asyncio.sleep(TIMEOUT_SECONDS)
        own_server.resume()
        await until(lambda: works(store))
        assert set(await claimed(store)) == {"probe"}


async def test_nobody_listens(own_server):
    own_server.kill()
    store = store_on(own_server.port)
    await store.state.open()
    with pytest.raises(StoreError, match=f"127.0.0.1:{own_server.port}"):
        await store.state.load_document("s")
    with pytest.raises(StoreError, match=f"127.0.0.1:{own_server.port}"):
        await store.events.open()
    await store.state.close()


# ---- Several environments --------------------------------------------------------------------------------------------


async def test_environments_share_connections_and_get_their_own_messages(own_server):
    """They are told of changes by messages: a check without one would come after an hour."""
    options = redis_options(Config(redis_host="127.0.0.1", redis_port=own_server.port))
    links = Links(options)
    stores = [open_redis(options, str(number), "one", recheck_seconds=3600, links=links) for number in range(20)]
    async with Opened(*stores):
        waiting = [asyncio.create_task(store.state.wait_for_document("settings", 0)) for store in stores]
        for store in stores:
            await store.events.append(chunks(f"of {stores.index(store)}"))
        assert [await claimed(store) for store in stores] == [[f"of {number}"] for number in range(20)]
        connections = own_server.command("CLIENT", "LIST").splitlines()
        assert len([line for line in connections if b"cmd=client" not in line]) <= PIPELINES + 2
        for number in (3, 17):
            await stores[number].state.save_document("settings", b"body")
            assert (await asyncio.wait_for(waiting[number], SECONDS)).body == b"body"
        assert not any(task.done() for task in waiting if waiting.index(task) not in (3, 17))
        own_server.command("CLIENT", "KILL", "TYPE", "pubsub")  # all of them are subscribed again
        await asyncio.sleep(0.1)
        await until(lambda: stores[5].state.save_document("settings", b"later"))
        assert (await asyncio.wait_for(waiting[5], SECONDS)).body == b"later"
        await end_tasks(*waiting)


# ---- Ways to connect -------------------------------------------------------------------------------------------------


async def test_tls_is_checked_only_if_wanted(tmp_path):
    with tls(tmp_path / "tls") as redis:
        files = make_certificates(tmp_path / "other")
        async with Opened(open_redis(redis_options(Config(**redis.options)), "1", "one")) as store:
            await works(store)

        unknown = redis.options | {"redis_tls_ca_path": files["other.pem"]}
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            await open_redis(redis_options(Config(**unknown)), "1", "one").events.open()
        unchecked = unknown | {"redis_tls_reject_unauthorized": False}
        async with Opened(open_redis(redis_options(Config(**unchecked)), "1", "one")) as store:
            await works(store)

        anonymous = redis.options | {"redis_tls_cert_path": None, "redis_tls_key_path": None}
        with pytest.raises(StoreError):
            await open_redis(redis_options(Config(**anonymous)), "1", "one").events.open()


async def test_the_host_name_is_checked_with_the_certificate(tmp_path):
    with tls(tmp_path / "tls") as redis:
        by_name = redis.options | {"redis_host": "localhost"}  # the certificate is for 127.0.0.1
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            await open_redis(redis_options(Config(**by_name)), "1", "one").events.open()


async def test_plain_text_to_a_tls_port_fails_in_time(tmp_path):
    with tls(tmp_path / "tls") as redis:
        plain = redis.options | {"redis_enable_tls": False, "socket_timeout_seconds": TIMEOUT_SECONDS}
        with pytest.raises(StoreError):
            await open_redis(redis_options(Config(**plain)), "1", "one").events.open()


@pytest.mark.parametrize("password", [None, "secret"])
async def test_sentinels_lead_to_the_new_master(tmp_path, password):
    passwords = {"requirepass": password, "masterauth": password} if password else {}
    with behind_sentinels(tmp_path, silent_ms=500, **passwords) as redis:
        master, replica = redis.servers
        config = Config(**redis.options, redis_password=password, socket_timeout_seconds=2)
        async with Opened(open_redis(redis_options(config), "1", "one", alive_seconds=1.0)) as store:
            await store.events.append(chunks("a"))
            mine = await store.events.claim(1)
            await until(lambda: _replicated(replica))
            master.kill()
            await until(lambda: works(store))
            await store.events.settle(mine)
            assert set(await claimed(store)) == {"probe"}


async def _replicated(replica):
    return replica.command("XLEN", "{fme:1}:events") == 1


async def test_sentinels_that_know_no_master(tmp_path):
    with behind_sentinels(tmp_path) as redis:
        config = Config(**redis.options | {"redis_sentinel_master": "nobody"})
        with pytest.raises(StoreError, match="nobody"):
            await open_redis(redis_options(config), "1", "one").events.open()


async def test_a_slot_that_moves_is_followed(tmp_path):
    with cluster(tmp_path) as redis:
        config = Config(**redis.options, socket_timeout_seconds=2)
        async with Opened(open_redis(redis_options(config), "1", "one", alive_seconds=60)) as store:
            slot = redis.servers[0].command("CLUSTER", "KEYSLOT", "{fme:1}")
            owner = await works_on(redis, store)
            target = next(node for node in redis.servers if node is not owner)
            redis.flush()
            for node in redis.servers:
                node.command("CLUSTER", "SETSLOT", slot, "NODE", target.command("CLUSTER", "MYID").decode())
            await store.events.append(chunks("moved"))
            assert await claimed(store) == ["moved"]
            assert await works_on(redis, store) is target


async def works_on(redis, store):
    """Append, and return the node that has it."""
    await works(store)
    (owner,) = [node for node in redis.servers if node.command("DBSIZE")]
    return owner


async def test_a_cluster_that_lost_a_node_says_so_and_recovers(tmp_path):
    with cluster(tmp_path, silent_ms=1000) as redis:
        config = Config(**redis.options, socket_timeout_seconds=2)
        async with Opened(open_redis(redis_options(config), "1", "one", alive_seconds=60)) as store:
            owner = await works_on(redis, store)
            other = next(node for node in redis.servers if node is not owner)
            other.kill()

            async def is_down():
                try:
                    await store.events.append(())
                except StoreError as error:
                    return "the cluster is down" in str(error)
                return False

            await until(is_down)
            other.start()
            await until(lambda: works(store))


async def test_c4_a_heartbeat_in_the_future_counts_no_longer_than_a_heartbeat(server):
    """The clock of Redis was set back by a day: the chunks of a consumer that died before are not stuck until then."""
    async with Opened(store_on(server.port, owner="one"), store_on(server.port, owner="two")) as (dead, living):
        await dead.events.append(chunks("a"))
        assert await claimed(dead) == ["a"]
        await end_tasks(dead.events._consumer._heart)
        tomorrow = (int(time.time()) + 86_400) * 1000
        server.command("ZADD", "{fme:1}:consumers", "XX", tomorrow, dead.events._consumer.name)

        async def taken_over():
            return await claimed(living)

        assert await until(taken_over) == ["a"]
