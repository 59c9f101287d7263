"""What every store promises; the same tests for each implementation."""

import asyncio
import functools
import itertools
import random
import shutil
import sqlite3
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis_servers import DEPLOYMENTS, needs_redis_server

from tornado_gateway.config import Config
from tornado_gateway.errors import StoreError
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.interfaces import NO_STATISTICS, Chunk, NewChunk, Store
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.redis.state import LEASE_SECONDS
from tornado_gateway.store.sqlite import database
from tornado_gateway.store.sqlite.events import LEAST_WAL_BYTES, WAL_BYTES, SqliteEvents, open_sqlite
from tornado_gateway.store.sqlite.space import DiskSpace
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.store.versions import MOST_BYTES, MOST_VERSIONS, Pin, digest_of

IMPLEMENTATIONS = ["sqlite", *(pytest.param(name, marks=needs_redis_server) for name in DEPLOYMENTS)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """Redis of a kind, started when the first test wants it."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(DEPLOYMENTS[kind](tmp_path_factory.mktemp(kind))))


@pytest.fixture(params=IMPLEMENTATIONS)
def open_store(request, tmp_path, deployment):
    """Opens another connection to the same store, as a further worker would."""
    if request.param == "sqlite":
        return lambda: open_sqlite(tmp_path / "data")
    redis = deployment(request.param)
    redis.flush()
    return lambda: patient_store(redis)


def patient_store(redis):
    """A store whose decisions wait for replies as long as everything else, however slow the machine is."""
    options = redis_options(Config(**redis.options))
    store = open_redis(options, "123456", "worker")
    store.state.decision_seconds = options.timeout_seconds
    return store


@pytest.fixture
def store(open_store, io_loop):
    store: Store = open_store()
    io_loop.run_sync(store.open)
    yield store
    io_loop.run_sync(store.close)


def chunks(*bodies: str, count: int = 1) -> list[NewChunk]:
    return [NewChunk(count, body.encode()) for body in bodies]


async def bodies_claimed(store: Store, events: int) -> list[str]:
    return [chunk.body.decode() for chunk in await store.events.claim(events)]


async def test_chunks_are_claimed_in_order_and_only_once(store):
    await store.events.append(chunks("a", "b"))
    await store.events.append(chunks("c"))
    assert await bodies_claimed(store, 2) == ["a", "b"]
    assert await bodies_claimed(store, 2) == ["c"]
    assert await bodies_claimed(store, 2) == []


async def test_a_claim_keeps_to_the_number_of_events_but_takes_at_least_one_chunk(store):
    await store.events.append(chunks("a", "b", "c", count=40))
    assert await bodies_claimed(store, 100) == ["a", "b"]
    assert await bodies_claimed(store, 10) == ["c"]


async def test_a2_a_claim_keeps_to_its_bytes_but_takes_at_least_one_chunk(store):
    await store.events.append(chunks(*(letter * 1000 for letter in "abcde")))
    assert [len(await store.events.claim(10, max_bytes=2000)) for _ in range(3)] == [2, 2, 1]
    await store.events.append(chunks("f" * 5000, "g"))
    first = await store.events.claim(10, max_bytes=2000)
    assert [chunk.body[:1] for chunk in first] == [b"f"]
    await store.events.release(first)
    assert [len(await store.events.claim(10, max_bytes=2000)) for _ in range(2)] == [1, 1]


async def test_a2_waiting_events_are_counted_in_bytes(store):
    await store.events.append(chunks("a" * 100, "b" * 200, "c" * 300))
    assert (await store.events.depth()).waiting_bytes == 600
    claimed = await store.events.claim(2)
    await store.events.settle(claimed, dead=[(NewChunk(1, b"a" * 100), "no")], remaining=[NewChunk(1, b"b" * 50)])
    assert (await store.events.depth()).waiting_bytes == 350
    await store.events.requeue()
    assert (await store.events.depth()).waiting_bytes == 450
    claimed = await store.events.claim(9)
    await store.events.settle([chunk.without_body() for chunk in claimed])
    assert (await store.events.depth()).waiting_bytes == 0


async def test_released_chunks_are_the_next(store):
    await store.events.append(chunks("a", "b", "c"))
    first = await store.events.claim(1)
    second = await store.events.claim(1)
    await store.events.release(second)
    await store.events.release(first)
    assert await bodies_claimed(store, 3) == ["a", "b", "c"]


async def test_settled_chunks_are_gone_after_a_restart_and_claimed_ones_are_back(open_store):
    store = open_store()
    await store.open()
    await store.events.append(chunks("a", "b"))
    claimed = await store.events.claim(2)
    await store.events.settle(claimed[:1])
    await store.close()
    again = open_store()
    await again.open()
    assert (await again.events.depth()).waiting == 1
    assert await bodies_claimed(again, 2) == ["b"]
    await again.close()


async def test_settling_keeps_the_dead_and_what_remains(store):
    await store.events.append([NewChunk(3, b"a\nb\nc", "")])
    claimed = await store.events.claim(3)
    await store.events.settle(claimed, dead=[(NewChunk(1, b"b"), "400 bad")], remaining=[NewChunk(1, b"c", "en=x")])
    depth = await store.events.depth()
    assert (depth.waiting, depth.dead) == (1, 1)
    (left,) = await store.events.claim(3)
    assert (left.body, left.query) == (b"c", "en=x")
    (letter,) = await store.events.dead_letters()
    assert (letter.body, letter.reason, letter.count) == (b"b", "400 bad", 1)


async def test_dead_letters_can_be_queued_again(store):
    await store.events.append(chunks("a", "b", "c"))
    claimed = await store.events.claim(3)
    await store.events.settle(claimed, dead=[(NewChunk(1, body), "no") for body in (b"a", b"b", b"c")])
    letters = await store.events.dead_letters()
    assert await store.events.requeue([letters[1].id]) == 1
    assert await bodies_claimed(store, 9) == ["b"]
    assert await store.events.requeue() == 2
    assert await bodies_claimed(store, 9) == ["a", "c"]
    assert (await store.events.depth()).dead == 0


async def buried(store, *bodies, count=1, reason="no"):
    """The dead letters of these bodies."""
    await store.events.append(chunks(*bodies, count=count))
    claimed = await store.events.claim(count * len(bodies))
    await store.events.settle(claimed, dead=[(NewChunk(chunk.count, chunk.body), reason) for chunk in claimed])
    return await store.events.dead_letters()


async def test_dead_letters_can_be_discarded(store):
    letters = await buried(store, "a", "b", "c", count=2)
    assert await store.events.discard_dead_letters([letters[1].id, "no-such", 999_999, "5-5"]) == 2
    assert [letter.body for letter in await store.events.dead_letters()] == [b"a", b"c"]
    assert await store.events.discard_dead_letters([letters[1].id]) == 0
    assert (await store.events.depth()).dead == 4


async def test_old_dead_letters_expire(store):
    before = time.time() - 5
    letters = await buried(store, *"abc")
    assert await store.events.expire_dead_letters(before) == 0
    assert await store.events.expire_dead_letters(letters[-1].at + 1) == 3
    assert ((await store.events.depth()).dead, await store.events.dead_letters()) == (0, [])


async def test_the_response_of_upstream_is_kept_beside_the_reason(store):
    (letter,) = await buried(store, "a", reason="400 bad\nno such goal\nhelp")
    assert (letter.reason, letter.response) == ("400 bad", "no such goal\nhelp")


async def test_a_dead_letter_of_one_event_is_queued_again_with_another_body(store):
    letter, *_ = await buried(store, "a", "b")
    assert await store.events.requeue_edited(letter.id, b"edited") == 1
    assert await store.events.requeue_edited(letter.id, b"edited") == 0
    assert await store.events.requeue_edited("no-such", b"edited") == 0
    (claimed,) = await store.events.claim(9)
    assert (claimed.body, claimed.count, claimed.identity) == (b"edited", 1, letter.identity)
    depth = await store.events.depth()
    assert (depth.waiting, depth.dead) == (1, 1)
    await store.events.settle([claimed])
    *_, pair = await buried(store, "x\ny", count=2)
    assert await store.events.requeue_edited(pair.id, b"edited") == 0


async def test_documents_have_growing_versions_seen_by_all(store, open_store):
    other = open_store()
    await other.open()
    assert await store.state.load_document("s") is None
    assert (await store.state.save_document("s", b"1")).version == 1
    assert (await other.state.save_document("s", b"2")).version == 2
    loaded = await store.state.load_document("s")
    assert (loaded.body, loaded.version) == (b"2", 2)
    await other.close()


async def test_a_confirmed_document_is_fresh_but_not_changed(store):
    await store.state.confirm_document("s", "one")
    assert await store.state.last_confirmation("s") is None
    saved = await store.state.save_document("s", b"1", "one")
    first = await store.state.last_confirmation("s")
    assert (first.at, first.by) == (saved.saved_at, "one")
    await asyncio.sleep(0.01)
    await store.state.confirm_document("s", "two")
    second = await store.state.last_confirmation("s")
    assert second.at > first.at
    assert second.by == "two"
    loaded = await store.state.load_document("s")
    assert (loaded.version, loaded.body) == (1, b"1")


async def test_a_body_is_read_only_if_it_is_another_one(store, open_store):
    other = open_store()
    await other.open()
    first, second = b"1" * 300_000, b"2" * 300_000  # in several pieces
    assert (await store.state.save_document("s", first)).body is first
    assert (await store.state.load_document("s")).body is first
    assert (await store.state.wait_for_document("s", 0)).body is first
    read = (await other.state.load_document("s")).body
    assert read == first
    await other.state.confirm_document("s", "two")
    again = await other.state.load_document("s")
    confirmation = await store.state.last_confirmation("s")
    assert (again.body is read, again.saved_at) == (True, confirmation.at)
    await other.state.save_document("s", second)
    assert (await store.state.load_document("s")).body == second
    await store.state.pin_document("s", Pin(digest_of(first), 0.0, "one"))
    assert (await other.state.load_document("s")).body == first
    await other.state.unpin_document("s")
    assert (await store.state.load_document("s")).body == second
    assert await store.state.load_version("s", digest_of(first)) == first
    await other.close()


async def test_a_change_of_a_document_is_noticed(store, open_store):
    other = open_store()
    await other.open()
    await store.state.save_document("s", b"1")
    waiting = asyncio.ensure_future(other.state.wait_for_document("s", 1))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.state.save_document("s", b"2")
    changed = await asyncio.wait_for(waiting, 60)
    assert (changed.body, changed.version) == (b"2", 2)
    await other.close()


# Versions of a document, and the pin


async def saved(store, *bodies):
    return [(await store.state.save_document("s", body, "one", "poll")).latest for body in bodies]


async def test_versions_are_kept_with_their_times_and_sources(store, open_store):
    other = open_store()
    await other.open()
    assert await store.state.versions("s") == []
    a, b, again = await saved(store, b"a" * 1000, b"b", b"a" * 1000)
    assert again == a
    newest, older = await other.state.versions("s")
    assert (newest.digest, newest.number, newest.source, newest.by, newest.size) == (a, 3, "poll", "one", 1000)
    assert newest.first_at <= older.at <= newest.at
    assert newest.packed_size < 100
    assert (older.digest, older.number) == (b, 2)
    assert await other.state.load_version("s", b) == b"b"
    assert await other.state.load_version("s", "0" * 16) is None
    assert (await other.state.load_document("s")).latest == a
    await other.close()


async def test_the_number_and_the_bytes_of_versions_are_limited(store):
    first, *_ = await saved(store, *(b"%d" % number for number in range(MOST_VERSIONS)))
    await store.state.pin_document("s", Pin(first, 1.0, "me"))
    await saved(store, *(b"%d" % number for number in range(MOST_VERSIONS, MOST_VERSIONS + 3)))
    kept = [one.digest for one in await store.state.versions("s")]
    assert len(kept) in (MOST_VERSIONS, MOST_VERSIONS + 1)
    assert kept[-1] == first  # the pinned one
    (large,) = await saved(store, random.Random(1).randbytes(MOST_BYTES))
    assert [one.digest for one in await store.state.versions("s")] == [large, first]


async def test_a_large_document_is_stored_completely(store, open_store):
    other = open_store()
    await other.open()
    for body in (random.Random(1).randbytes(1_000_003), b"small", random.Random(2).randbytes(600_000)):
        (digest,) = await saved(store, body)
        found = await other.state.load_document("s")
        assert (found.body, found.latest) == (body, digest)
        assert await store.state.pin_document("s", Pin(digest, 1.0, "me"))
        await saved(store, b"another")
        assert (await other.state.load_document("s")).body == body
        assert await store.state.unpin_document("s")
        assert (await other.state.load_document("s")).body == b"another"
    await other.close()


async def test_a_pinned_version_stays_the_document_until_it_is_unpinned(store, open_store):
    other = open_store()
    await other.open()
    first, second = await saved(store, b"a", b"b")
    waiting = asyncio.ensure_future(other.state.wait_for_document("s", 2))
    pin = Pin(first, 1000.5, "root@host", "checkout is broken", 4600.5, 3600.0)
    pinned = await store.state.pin_document("s", pin)
    assert (pinned.body, pinned.version, pinned.pin, pinned.latest) == (b"a", 3, pin, second)
    assert 3500 < pinned.left_seconds <= 3600
    assert (await asyncio.wait_for(waiting, 60)).pin == pin
    held = await other.state.save_document("s", b"c")
    assert (held.body, held.version, held.pin, held.latest) == (b"a", 4, pin, digest_of(b"c"))
    assert not await store.state.unpin_document("s", Pin(second, 1.0, "me"))
    assert await other.state.unpin_document("s", pin, "admin")
    assert not await store.state.unpin_document("s")
    document = await store.state.load_document("s")
    assert (document.body, document.version, document.pin, document.left_seconds) == (b"c", 5, None, None)
    assert document.unpinned_by == "admin"
    await other.close()


async def test_a_pin_outlives_all_workers_and_ends_by_the_clock_of_the_store(open_store):
    store = open_store()
    await store.open()
    (first,) = await saved(store, b"a")
    await store.state.pin_document("s", Pin(first, 1.0, "me", seconds=0.001))
    await store.close()
    again = open_store()
    await again.open()
    document = await again.state.load_document("s")
    assert document.pin.by == "me"
    await asyncio.sleep(0.01)
    assert (await again.state.load_document("s")).left_seconds < 0
    await again.close()


async def test_only_a_version_that_is_kept_can_be_pinned(store):
    assert await store.state.pin_document("s", Pin("0" * 16, 1.0, "me")) is None
    await saved(store, b"a")
    assert await store.state.pin_document("s", Pin("0" * 16, 1.0, "me")) is None
    assert (await store.state.load_document("s")).version == 1


async def test_a_lease_has_one_holder_until_it_is_released(store, open_store):
    other = open_store()
    await other.open()
    assert await store.state.acquire_lease("poll", "one")
    assert await store.state.acquire_lease("poll", "one")
    assert not await other.state.acquire_lease("poll", "two")
    assert await other.state.acquire_lease("geoip:host:/var/lib/" + "x" * 300, "two")
    await other.state.release_lease("poll", "two")
    assert not await other.state.acquire_lease("poll", "two")
    await store.state.release_lease("poll", "one")
    assert await other.state.acquire_lease("poll", "two")
    assert not await store.state.acquire_lease("poll", "one")
    await other.close()


async def test_a_closed_store_holds_no_lease(store, open_store):
    other = open_store()
    await other.open()
    assert await other.state.acquire_lease("poll", "two")
    await other.close()
    assert await store.state.acquire_lease("poll", "one")


HOLD_LEASE = """
import asyncio, sys
from pathlib import Path
from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.store.redis.events import open_redis
from tornado_gateway.store.sqlite.events import open_sqlite

async def hold(directory, port):
    state = (open_redis(redis_options(Config(redis_host="127.0.0.1", redis_port=port)), "123456", "w") if port
             else open_sqlite(Path(directory))).state
    await state.open()
    print(await state.acquire_lease("poll", "killed"), flush=True)
    await asyncio.sleep(600)

asyncio.run(hold(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize("open_store", [IMPLEMENTATIONS[0], IMPLEMENTATIONS[1]], indirect=True)
async def test_a_lease_ends_with_a_killed_process_and_not_before(store, tmp_path, deployment, request):
    """Rows C2 and C3, and guarantee 7: no clock is involved, and no polling interval."""
    port = deployment("redis").options["redis_port"] if "redis" in request.node.name else 0
    command = [sys.executable, "-c", HOLD_LEASE, str(tmp_path / "data"), str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert await process.stdout.readline() == b"True\n"
        assert not await store.state.acquire_lease("poll", "one")
        if port:
            await asyncio.sleep(LEASE_SECONDS * 1.25)  # it lives on because its owner does
            assert not await store.state.acquire_lease("poll", "one")
    finally:
        process.kill()
        await process.wait()
    async with asyncio.timeout(60):
        while not await store.state.acquire_lease("poll", "one"):
            await asyncio.sleep(0.1)


async def test_aliases_resolve_and_unknown_ids_are_left_out(store):
    await store.state.set_alias("member-9", "guest-1")
    await store.state.set_alias("member-9", "guest-2")
    assert await store.state.aliases(["member-9", "nobody"]) == {"member-9": "guest-2"}


async def test_b4_an_alias_is_resolved_to_its_root_and_a_cycle_is_rejected(store):
    assert await store.state.set_alias("member", "guest")
    assert await store.state.set_alias("device2", "member")
    assert not await store.state.set_alias("guest", "device2")
    assert not await store.state.set_alias("guest", "guest")
    assert await store.state.aliases(["device2", "member", "guest"]) == {"device2": "guest", "member": "guest"}


async def test_b4_an_alias_of_an_id_that_becomes_an_alias_later_has_the_new_root(store):
    assert await store.state.set_alias("phone", "member")
    assert await store.state.set_alias("member", "guest")
    assert await store.state.aliases(["phone"]) == {"phone": "guest"}
    assert not await store.state.set_alias("guest", "phone")


async def test_b4_a_cycle_that_an_earlier_version_stored_ends(store):
    state = store.state
    if hasattr(state, "_link"):
        await state._link.call("HSET", state._key("aliases"), "a", "b", "b", "a")
    else:
        rows = [("", "a", "b"), ("", "b", "a")]
        await state._database.run(lambda c: c.executemany("INSERT INTO user_aliases VALUES (?, ?, ?)", rows) and None)
    assert set(await state.aliases(["a", "b"])) <= {"a", "b"}
    assert await state.set_alias("new", "user")


async def test_b5_aliases_have_a_limit(store):
    store.state.max_aliases = 3
    assert [await store.state.set_alias(f"alias-{n}", "user") for n in range(5)] == [True] * 3 + [False] * 2
    assert await store.state.set_alias("alias-1", "other")  # a known one can be changed
    assert len(await store.state.aliases([f"alias-{n}" for n in range(5)])) == 3


async def test_records_are_kept_for_their_time(store):
    await store.state.save_records("u", {"f": {"rolloutId": 1}, "g": {"rolloutId": 2}}, 300)
    await store.state.save_records("u", {"g": {"rolloutId": 3}}, 300)
    assert await store.state.load_records("u", ["f", "g", "h"]) == {"f": {"rolloutId": 1}, "g": {"rolloutId": 3}}
    await store.state.save_records("u", {"g": {"rolloutId": 4}}, 1)
    async with asyncio.timeout(60):
        while "g" in (records := await store.state.load_records("u", ["f", "g"])):
            assert records["g"] == {"rolloutId": 4}
            await asyncio.sleep(0.1)
    assert records == {"f": {"rolloutId": 1}}
    assert await store.state.load_records("other", ["f"]) == {}


async def test_of_two_workers_that_replace_the_same_statistics_one_succeeds(store):
    state = store.state
    assert await state.load_statistics("a") == NO_STATISTICS
    assert [await state.replace_statistics("a", body, 0) for body in (b"1", b"\x00\xff")] == [True, False]
    assert await asyncio.gather(*(state.replace_statistics("a", body, 1) for body in (b"2", b"2"))) in (
        [True, False],
        [False, True],
    )
    assert await state.replace_statistics("b", b"3", 0)
    assert await state.load_statistics("a") == (2, b"2")
    assert await state.statistics_versions() == {"a": 2, "b": 1}
    assert not await state.replace_statistics("c", b"4", 7)
    await state.forget_statistics(["a", "unknown"])
    await state.forget_statistics([])
    assert await state.statistics_versions() == {"b": 1}
    assert await state.load_statistics("a") == NO_STATISTICS


async def test_a_closed_store_says_so(open_store):
    store = open_store()
    await store.open()
    await store.close()
    with pytest.raises(StoreError):
        await store.events.append(chunks("a"))


# The embedded store alone


def store_with(directory, **limits):
    return Store(SqliteEvents(directory, **limits), SqliteState(directory))


async def test_each_worker_has_its_own_log_and_a_living_one_adopts_that_of_a_dead_one(tmp_path):
    first, second = open_sqlite(tmp_path), open_sqlite(tmp_path)
    await first.open()
    await second.open()
    await second.events.append(chunks("b"))
    assert await bodies_claimed(first, 9) == []
    await second.close()
    assert await first.events.adopt() == 1
    assert await bodies_claimed(first, 9) == ["b"]
    assert sorted(path.name for path in tmp_path.glob("events-*.db")) == ["events-0.db"]
    await first.close()


async def test_workers_see_each_others_dead_letters_and_any_may_queue_them_again(tmp_path):
    first, second = open_sqlite(tmp_path), open_sqlite(tmp_path)
    await first.open()
    await second.open()
    for store, body in ((first, b"a"), (second, b"b")):
        await store.events.append([NewChunk(2, body)])
        await store.events.settle(await store.events.claim(2), dead=[(NewChunk(2, body), "no")])
    assert [letter.body for letter in await first.events.dead_letters()] == [b"a", b"b"]
    assert ((await first.events.depth()).dead, (await second.events.depth()).dead) == (2, 2)
    letters = await second.events.dead_letters()
    assert await second.events.requeue([letters[0].id]) == 2
    assert await bodies_claimed(second, 9) == ["a"]
    assert ((await first.events.depth()).dead, (await second.events.depth()).dead) == (0, 2)
    await second.close()
    await first.events.adopt()
    assert (await first.events.depth()).dead == 2
    await first.close()


async def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/data"):
        await open_sqlite(Path(tmp_path / "file" / "data")).open()


@pytest.mark.parametrize("memory", [0, 40, 1 << 20])
@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_each_chunk_is_claimed_in_turn_and_settled_once(tmp_path, seed, memory):
    """However much of the log is held in memory, and whatever is under way at the same time; a checkpoint always is."""
    chance = random.Random(seed)
    store = store_with(tmp_path, fresh_bytes=memory, wal_bytes=1, settle_seconds=0.001)
    await store.open()
    names = itertools.count(1)
    claimed: list[Chunk] = []  # and neither settled nor released
    seen: list[int] = []
    appended = 0

    async def append():
        nonlocal appended
        new = [NewChunk(1, b"%d" % next(names)) for _ in range(chance.randint(1, 4))]
        await store.events.append(new)
        appended += len(new)

    async def claim():
        got = await store.events.claim(chance.randint(1, 6))
        ids = [int(chunk.id) for chunk in got]
        assert ids == sorted(set(ids) - {chunk.id for chunk in claimed})
        claimed.extend(got)

    async def settle():
        done, claimed[:] = claimed[:], []
        seen.extend(int(chunk.body) for chunk in done)
        await store.events.settle(done)

    async def release():
        back, claimed[:] = claimed[:], []
        await store.events.release(back)

    async def refuse():
        if claimed:
            chunk = claimed.pop(0)
            await store.events.settle([chunk], dead=[(NewChunk(1, chunk.body), "no")])
            await store.events.requeue()

    for _ in range(40):
        steps = chance.choices([append, claim, settle, release, refuse], [6, 4, 3, 2, 1], k=chance.randint(1, 4))
        await asyncio.gather(*(step() for step in steps))
        depth = await store.events.depth()
        assert depth.waiting == appended - len(seen)
    while len(seen) < appended:
        await asyncio.gather(claim(), append() if chance.random() < 0.3 else asyncio.sleep(0))
        await settle()
    assert sorted(seen) == list(range(1, appended + 1))
    await store.close()
    await store.open()
    assert (await store.events.depth()).waiting == 0
    await store.close()


async def test_the_wal_begins_anew_while_events_come(tmp_path):
    """A WAL file never shrinks: it is smaller than half of all events only if it has begun anew."""
    store = store_with(tmp_path, wal_bytes=LEAST_WAL_BYTES // 4)
    await store.open()
    wal, count = tmp_path / "events-0.db-wal", 0
    async with asyncio.timeout(60):
        while count < 100 or 2 * wal.stat().st_size > count * 100_000:
            await store.events.append([NewChunk(1, b"x" * 100_000)])
            count += 1
            assert wal.stat().st_size < 120_000_000, "at 128 MB SQLite itself would make a checkpoint"
    assert (await store.events.depth()).waiting == count
    await store.close()


async def test_the_wal_is_copied_many_times_before_it_begins_anew(tmp_path, monkeypatch):
    """So a power cut loses few events, and commits seldom wait for the end of a checkpoint."""
    monkeypatch.setattr(database, "COPY_BYTES", 200_000)
    store = store_with(tmp_path, wal_bytes=2_000_000)
    await store.open()
    log, wal, copied = tmp_path / "events-0.db", tmp_path / "events-0.db-wal", []
    checkpoints = store.events._checkpoints
    copy = checkpoints._database.run

    async def copy_beside_a_commit(*job):
        reader = sqlite3.connect(log)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM chunks").fetchone()
        await store.events.append([NewChunk(1, b"x" * 100_000)])  # is not copied, as if it came during the copy
        await copy(*job)
        reader.close()
        copied.append(log.stat().st_size)

    checkpoints._database.run = copy_beside_a_commit
    for count in range(1, 101):
        await store.events.append([NewChunk(1, b"x" * 100_000)])
        while (task := checkpoints._task) is not None:
            await asyncio.wait([task])
        assert log.stat().st_size > (count - 4) * 100_000  # all but the last few are in the file
    assert len(set(copied)) > 40
    assert 2_000_000 < wal.stat().st_size < 3_000_000
    assert checkpoints._wal_bytes < 2_000_000  # it has restarted several times
    await store.close()


async def test_a_wal_does_not_count_as_copied_while_another_connection_copies(tmp_path):
    store = store_with(tmp_path)
    await store.open()
    await store.events.append(chunks("a"))
    run = store.events._database.run
    with sqlite3.connect(tmp_path / "events-0.db") as other:
        assert other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM chunks").fetchone()
        await store.events.append(chunks("b"))
        assert not await run(database._copy_wal, "main")
    other.close()
    assert await run(database._copy_wal, "main")
    locked = SimpleNamespace(execute=lambda _: SimpleNamespace(fetchone=lambda: (1, -1, -1)))  # SQLite's result then
    assert not database._copy_wal(locked, "main")
    await store.close()


async def test_dead_letters_are_copied_as_often_as_events(tmp_path):
    """Otherwise a power cut could find an event neither in the log, which has forgotten it, nor among the letters."""
    store = store_with(tmp_path, wal_bytes=WAL_BYTES)
    await store.open()
    await store.events.append(chunks("bad"))
    claimed = await store.events.claim(1)
    await store.events.settle(claimed, dead=[(NewChunk(1, b"bad"), "400")])
    checkpoints = store.events._checkpoints
    checkpoints.count(database.COPY_BYTES)
    await asyncio.wait([checkpoints._task])
    copy = sqlite3.connect(f"file:{tmp_path / 'dead.db'}?immutable=1", uri=True)  # without its WAL
    assert copy.execute("SELECT count(*) FROM dead").fetchone() == (1,)
    copy.close()
    await store.close()


async def test_the_wal_of_a_killed_process_counts(tmp_path):
    store = store_with(tmp_path)
    await store.open()
    await store.events.append([NewChunk(1, b"x" * 300_000)])
    (copy := tmp_path / "copy").mkdir()
    for name in ("events-0.db", "events-0.db-wal"):
        shutil.copy(tmp_path / name, copy)
    await store.close()
    found = store_with(copy)
    await found.open()
    assert found.events._checkpoints._wal_bytes > 300_000
    assert (await found.events.depth()).waiting == 1
    await found.close()


@pytest.mark.parametrize(
    ("disk_bytes", "expected"),
    [(10**12, WAL_BYTES), (5 * 2**30, 10 * 2**20), (10**8, LEAST_WAL_BYTES)],
)
async def test_wals_are_smaller_on_small_disks(tmp_path, monkeypatch, disk_bytes, expected):
    """A WAL file does not shrink, and that of each worker takes space from events."""
    monkeypatch.setattr(DiskSpace, "total", lambda _: disk_bytes)
    store = store_with(tmp_path)
    await store.open()
    assert store.events._checkpoints._most_bytes == expected
    await store.close()


async def test_events_are_stored_although_the_checkpoint_fails(tmp_path, caplog):
    async def fail(*_):
        raise StoreError("SQLite: disk I/O error")

    store = store_with(tmp_path, wal_bytes=1)
    await store.open()
    store.events._checkpoints._database.run = fail
    await store.events.append(chunks("a"))
    await store.events.append(chunks("b"))
    assert await bodies_claimed(store, 9) == ["a", "b"]
    await store.close()
    message = "a checkpoint of the event log failed, its WAL grows: SQLite: disk I/O error"
    assert caplog.messages.count(message) == 1
    assert store.events._checkpoints._wal_bytes == 0  # the writer has copied it


async def test_what_is_delivered_is_deleted_even_if_nothing_is_appended_any_more(tmp_path):
    store = open_sqlite(tmp_path)
    await store.open()
    await store.events.append(chunks("a", "b"))
    await store.events.settle(await store.events.claim(2))
    assert (await store.events.depth()).waiting == 0
    await store.close()


async def _rows(store):
    return await store.events._database.run(
        lambda connection: connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
    )


async def test_a_log_that_cannot_be_written_deletes_what_is_delivered_as_soon_as_it_can(tmp_path):
    store = store_with(tmp_path, retry_seconds=0.01)
    await store.open()
    await store.events.append(chunks("a", "b"))
    claimed = await store.events.claim(2)
    await store.events._database.run(lambda connection: connection.execute("PRAGMA query_only=ON"))
    await store.events.settle(claimed)  # row A19: a delivery does not wait for this
    with pytest.raises(StoreError, match="readonly"):
        await store.events.append(chunks("c"))
    await asyncio.sleep(0.05)
    assert (await store.events.depth()).waiting == 0
    assert await _rows(store) == 2
    await store.events._database.run(lambda connection: connection.execute("PRAGMA query_only=OFF"))
    async with asyncio.timeout(30):
        while await _rows(store):
            await asyncio.sleep(0.01)
    assert (await store.events.depth()).waiting == 0
    await store.events.append(chunks("d"))
    assert await bodies_claimed(store, 9) == ["d"]
    await store.close()
