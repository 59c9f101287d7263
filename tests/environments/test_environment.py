"""One environment with a real store, a real upstream client and a stand-in for the vendor."""

import asyncio
import threading

import orjson
import pytest
from environment_parts import environment_of
from process import sample_document
from vendor import Vendor

from tornado_gateway import core, logs
from tornado_gateway.errors import StoreError
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.settings.documents import prepare_document
from tornado_gateway.settings.mirror import SettingsMirror, Snapshot
from tornado_gateway.store.interfaces import NO_IDENTITY, Identity
from tornado_gateway.store.sqlite.events import open_sqlite
from tornado_gateway.upstream.client import Dialect, Upstream

SAMPLE = sample_document()
ACCOUNT, KEY = str(SAMPLE["accountId"]), SAMPLE["sdkKey"]


@pytest.fixture
def vendor():
    with Vendor(SAMPLE) as vendor:
        yield vendor


class Made:
    """An environment of the sample account with a store of its own. Without `key` its settings name the account."""

    def __init__(self, directory, vendor, *, key=KEY, **parts):
        self.store = open_sqlite(directory)
        self.queue = EventQueue(self.store.events, limit=100, chunk_events=10)
        self.queue.identity = Identity(ACCOUNT, KEY) if key else NO_IDENTITY
        names = (ACCOUNT, KEY) if key else ("", "")
        self.upstream = Upstream(vendor.url, vendor.url, *names, sdk_name="s", sdk_version="1", timeout_seconds=5)
        self.mirror = SettingsMirror(
            self.store.state,
            lambda: self.upstream.fetch_settings(Dialect()),
            name="settings",
            owner="test",
            source="upstream",
            poll_seconds=60,
            sdk=core.Sdk("s", "1"),
        )
        flusher = Flusher(self.store.events, self.queue, self.upstream, events_per_request=100, interval_seconds=3600)
        parts = {"upstream": self.upstream, "flusher": flusher, **parts}
        self.environment = environment_of(self.mirror, self.queue, self.store, sdk_key=key, **parts)
        self.mirror.subscribe(self.environment.settings_changed)


def in_loop(test):
    asyncio.run(test())


def event(name):
    return orjson.dumps({"d": {"event": {"name": name}}})


def settings_with(**changes):
    return core.compile_settings({**SAMPLE, **changes})


def snapshot_of(settings):
    served = prepare_document(b"{}", {}, core.never_yield)
    return Snapshot(settings, b"{}", "digest", served, {}, 1, "upstream")


def test_a_stop_delivers_what_was_accepted_last(tmp_path, vendor):
    async def test():
        made = Made(tmp_path, vendor)
        await made.store.open()
        await made.environment.start()
        made.queue.append(event("last"), 1)
        await made.environment.stop()
        await made.store.close()
        assert (made.queue.counts.delivered, made.queue.counts.waiting) == (1, 0)

    in_loop(test)
    assert [delivered["d"]["event"]["name"] for delivered in vendor.events] == ["last"]


def test_a_start_has_the_settings_and_the_events_of_the_previous_run(tmp_path, vendor):
    async def test():
        first = Made(tmp_path, vendor, flush_seconds=0.0)
        await first.store.open()
        await first.queue.start()
        first.queue.append(event("kept"), 1)
        await first.queue.stop()
        await first.store.close()
        made = Made(tmp_path, vendor)
        assert not made.environment.has_counted
        await made.store.open()
        await made.environment.start()
        assert made.environment.has_counted
        assert made.mirror.current is not None
        assert made.queue.counts.received == 1
        await made.environment.stop()
        await made.store.close()

    in_loop(test)
    assert [delivered["d"]["event"]["name"] for delivered in vendor.events] == ["kept"]


@pytest.mark.parametrize("is_open", [False, True], ids=["never started", "start failed"])
def test_a_stop_works_without_a_complete_start(tmp_path, vendor, is_open):
    async def test():
        made = Made(tmp_path, vendor)
        if is_open:
            with pytest.raises(StoreError):  # the store is not open
                await made.environment.start()
        await made.environment.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_loop(test)


def test_new_settings_change_the_prefix_and_hide_the_key(tmp_path, vendor):
    async def test():
        made = Made(tmp_path, vendor)
        for prefix in ("eu01", None):
            settings = settings_with(collectionPrefix=prefix, sdkKey="the-key-of-the-settings")
            made.environment.settings_changed(snapshot_of(settings))
            assert made.upstream._prefix == (f"/{prefix}" if prefix else "")
        assert made.upstream._account == Identity(ACCOUNT, KEY)
        assert made.queue.identity == Identity(ACCOUNT, KEY)
        made.upstream.close()

    in_loop(test)
    assert "the-key-of-the-settings" not in logs.masked("key the-key-of-the-settings")


def test_without_a_key_the_settings_name_the_account(tmp_path, vendor):
    async def test():
        made = Made(tmp_path, vendor, key=None)
        made.environment.settings_changed(snapshot_of(settings_with(accountId=77, sdkKey="another")))
        assert made.upstream._account == Identity("77", "another")
        assert made.queue.identity == Identity("77", "another")
        made.upstream.close()

    in_loop(test)


@pytest.mark.parametrize("feature_key", ["new-checkout", "free-shipping"])
def test_device_rules_are_loaded_in_a_thread_if_a_rule_needs_them(tmp_path, vendor, feature_key):
    loaded = []
    features = [feature for feature in SAMPLE["features"] if feature["key"] == feature_key]

    async def test():
        made = Made(tmp_path, vendor, load_device=lambda: loaded.append(threading.current_thread()))
        made.environment.settings_changed(snapshot_of(settings_with(features=features)))
        await asyncio.get_running_loop().shutdown_default_executor()
        made.upstream.close()

    in_loop(test)
    assert len(loaded) == (feature_key == "free-shipping")
    assert threading.main_thread() not in loaded
