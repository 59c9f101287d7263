"""A settings refresh beside requests: what is kept, what is let go of, what the log says."""

import asyncio
import contextlib
import gc
import json
import logging
import sqlite3
import weakref

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.errors import UpstreamError
from tornado_gateway.settings.mirror import LastPoll, SettingsMirror
from tornado_gateway.store.sqlite.events import open_sqlite

SDK = core.Sdk("test", "1")


@pytest.fixture
def frozen():
    """What the refreshes of a test hide from the collector is its business again."""
    yield gc.get_freeze_count()
    gc.unfreeze()


def documents(*versions):
    for version in versions:
        yield orjson.dumps(sample_document() | {"version": version})


@pytest.fixture
def mirror(io_loop, tmp_path):
    """With `served`, the documents that upstream has one after the other."""
    served = documents(*range(1, 100))

    async def fetch():
        return next(served)

    store = open_sqlite(tmp_path)
    io_loop.run_sync(store.open)
    mirror = SettingsMirror(store.state, fetch, name="n", owner="o", source="upstream", poll_seconds=3600, sdk=SDK)
    yield mirror
    io_loop.run_sync(mirror.stop)
    io_loop.run_sync(store.close)


async def test_old_settings_go_when_nobody_uses_them_any_more(mirror, frozen):
    assert await mirror.refresh()
    in_use = mirror.current.settings
    old = weakref.ref(in_use.source.lifetime)
    feature = next(iter(in_use.features))
    gc.disable()
    try:
        assert await mirror.refresh()
        await asyncio.sleep(0.05)
        assert core.decide(in_use, feature, core.Context("u")).error is None
        del in_use
        async with asyncio.timeout(60):
            while old() is not None:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_settings_keep_the_bytes_and_not_what_was_parsed(mirror, frozen):
    assert await mirror.refresh()
    snapshot = mirror.current
    assert snapshot.settings.source.document is None
    assert snapshot.settings.document == json.loads(snapshot.document)


async def test_the_collector_does_not_look_at_compiled_settings(mirror, frozen):
    assert await mirror.refresh()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    features = {id(feature) for feature in mirror.current.settings.features.values()}
    assert not features & {id(item) for item in gc.get_objects()}


async def test_a_change_is_told_in_the_log(mirror, frozen, caplog):
    caplog.set_level(logging.INFO)
    assert await mirror.refresh()
    assert await mirror.refresh()
    first, second = (line for line in caplog.messages if line.startswith("settings "))
    assert first.endswith(" from upstream: 11 features")
    assert second.endswith(" from upstream: 11 features")  # the same ones: only the version is another


async def test_a_bad_document_changes_nothing(mirror, frozen):
    assert await mirror.refresh()
    before = mirror.current

    async def bad():
        return b'{"version":1,"features":[{},{}]}'

    assert not await mirror.pull(bad)
    assert mirror.current is before
    assert "accountId: expected a number or string, got nothing" in mirror.last_poll.error
    assert gc.isenabled()


# Several workers on one store


class Others:
    """Another worker of the same store, played by the test: it holds the lease and confirms what is stored."""

    def __init__(self, directory):
        self.store = open_sqlite(directory)
        self._path = directory / "state.db"

    async def __aenter__(self):
        await self.store.open()
        assert await self.store.state.acquire_lease("poll", "other:1")
        await self.store.state.save_document("n", next(documents(1)), "other:1")
        return self

    async def __aexit__(self, *_):
        await self.store.close()

    async def confirm(self, clock_is_off):
        """Confirm by a clock that is so many seconds off."""
        await self.store.state.confirm_document("n", "other:1")
        with contextlib.closing(sqlite3.connect(self._path)) as state, state:
            state.execute("UPDATE documents SET saved_at = saved_at + ?", (clock_is_off,))


def mirror_of(directory, fetch, **options):
    store = open_sqlite(directory)
    defaults = {"name": "n", "owner": "me:1", "source": "upstream", "poll_seconds": 0.2, "sdk": SDK}
    return store, SettingsMirror(store.state, fetch, **(defaults | options))


async def until(condition, seconds=30):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_ages_do_not_depend_on_wall_clocks(tmp_path, frozen):
    """Guarantee 7: another worker's confirmation counts from when it is seen, whatever time it bears."""
    fetched = []

    async def fetch():
        fetched.append(1)
        return next(documents(1))

    async with Others(tmp_path) as others:
        store, mirror = mirror_of(tmp_path, fetch, poll_seconds=600)  # stale after 25 minutes
        await store.open()
        await mirror.start(1)
        await until(lambda: mirror.last_poll.instance == "me:1")
        for clock_is_off in (86_400, -86_400, 3600, -3600):
            await others.confirm(clock_is_off)
            await mirror._poller._poll()
            assert mirror.last_poll.instance == "other:1"
            assert mirror.age_seconds() < 600
            assert mirror.last_poll.age_seconds() < 600
            assert mirror.last_poll.error is None
            mirror.last_poll = LastPoll()
        assert len(fetched) == 1  # at the start; afterwards the other one polls
        await mirror.stop()
        await store.close()


async def test_a_worker_polls_when_the_holder_of_the_lease_confirms_nothing(tmp_path, frozen, caplog):
    """Row C9: a lease is a hint, freshness wins. If upstream then fails, that is reported."""
    served = [next(documents(1))]

    async def fetch():
        if not served:
            raise UpstreamError("settings: upstream answered 503 Service Unavailable", 503)
        return served.pop()

    async with Others(tmp_path):
        store, mirror = mirror_of(tmp_path, fetch)
        await store.open()
        await mirror.start(1)
        await until(lambda: not served)
        assert mirror.last_poll.error is None
        await until(lambda: mirror.last_poll.error is not None)
        assert mirror.last_poll.error == "VWO returned 503 Service Unavailable."
        assert mirror.last_poll.instance == "me:1"
        (line,) = [line for line in caplog.messages if line.startswith("Settings refresh failed: ")]
        assert "Continuing with version 1, " in line
        await mirror.stop()
        await store.close()


async def test_a_stored_document_that_cannot_be_used_is_tried_once(tmp_path, caplog):
    """Row C3: a worker without settings takes them from the store, and does not compile a bad one in a loop."""

    async def fetch():
        raise UpstreamError("settings: upstream answered 503 Service Unavailable", 503)

    store, mirror = mirror_of(tmp_path, fetch, poll_seconds=60)
    await store.open()
    await store.state.save_document("n", b"{}", "other:1")
    await mirror.start(1)
    await asyncio.sleep(2)
    assert mirror.current is None
    assert sum("could not be used" in line for line in caplog.messages) <= 2  # at the start, and when it is watched
    await store.state.save_document("n", next(documents(3)), "other:1")
    await until(lambda: mirror.current is not None)
    await mirror.stop()
    await store.close()


async def test_a_store_that_comes_back_with_older_settings_gets_the_newer_ones(tmp_path, frozen):
    """Settings that were fetched while the store was down are neither replaced by older ones nor kept from it."""
    async with Others(tmp_path):
        pass  # leaves version 1

    async def fetch():
        return next(documents(2))

    store, mirror = mirror_of(tmp_path, fetch, poll_seconds=1)
    versions = []
    mirror.subscribe(lambda snapshot: versions.append(snapshot.settings.version))
    await mirror.start(1)  # the store is not open
    await mirror.loaded.wait()
    await store.open()
    await until(lambda: mirror.current.version)
    stored = await store.state.load_document("n")
    assert stored.body == mirror.current.document == next(documents(2))
    assert (versions, stored.version) == ([2], mirror.current.version)
    await mirror.stop()
    await store.close()


async def test_workers_that_start_together_share_a_poll(tmp_path, frozen):
    """Row C9: every start polls once. With stored settings, the worker with the lease does it for the others."""
    fetched, may_answer = [], asyncio.Event()

    async def slow_fetch():
        await may_answer.wait()
        fetched.append("first")
        return next(documents(1))

    async def fetch():
        fetched.append("second")
        return next(documents(1))

    async with Others(tmp_path):
        pass
    started = [
        mirror_of(tmp_path, slow_fetch, owner="me:1", poll_seconds=60),
        mirror_of(tmp_path, fetch, owner="me:2", poll_seconds=60, start_patience_seconds=60),
    ]
    for store, mirror in started:
        await store.open()
        await mirror.start(1)
        await asyncio.sleep(0.1)
    may_answer.set()
    await until(lambda: started[1][1].last_poll.instance == "me:1")
    assert fetched == ["first"]
    for store, mirror in started:
        await mirror.stop()
        await store.close()


async def test_c6_a_pull_starts_its_own_request_if_one_is_under_way(tmp_path):
    """Row C6: the one that is under way may return the older document."""
    versions, gate, started = [1], asyncio.Event(), []

    async def poll():
        (document,) = documents(versions[-1])
        started.append("poll")
        await gate.wait()
        return document

    async def pull():
        started.append("pull")
        (document,) = documents(versions[-1])
        return document

    store = open_sqlite(tmp_path)
    await store.open()
    mirror = SettingsMirror(store.state, poll, name="n", owner="o", source="upstream", poll_seconds=3600, sdk=SDK)
    polling = asyncio.create_task(mirror.refresh())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    versions.append(2)
    pulling = [asyncio.create_task(mirror.pull(pull)) for _ in range(5)]
    await asyncio.sleep(0.05)
    gate.set()
    assert await asyncio.gather(polling, *pulling) == [True] * 6
    assert started == ["poll", "pull"]
    assert mirror.current.settings.version == 2
    await mirror.stop()
    await store.close()
