"""A settings refresh beside requests: what is kept, what is let go of, what the log says."""

import asyncio
import gc
import json
import logging
import weakref

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.settings import SettingsMirror
from tornado_gateway.store.sqlite import open_sqlite

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
    old = weakref.ref(in_use.life)
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
    assert snapshot.settings.documents == []
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

    assert not await mirror.refresh(bad)
    assert mirror.current is before
    assert "accountId: expected a number or string, got nothing" in mirror.last_poll.error
    assert gc.isenabled()
