"""The pin at one worker: its end, failures of the store, and documents that arrive at the same time."""

import asyncio
import logging

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.errors import StoreError
from tornado_gateway.settings.mirror import SettingsMirror
from tornado_gateway.store.sqlite.events import open_sqlite
from tornado_gateway.store.versions import Pin, digest_of

SDK = core.Sdk("test", "1")


def document(version):
    return orjson.dumps(sample_document() | {"version": version})


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


class Worker:
    """A mirror on a store of its own connection. `served` is the document of upstream."""

    def __init__(self, directory, served=b"", **options):
        self.served = served
        self.store = open_sqlite(directory)
        defaults = {"name": "n", "owner": "me:1", "source": "upstream", "poll_seconds": 3600, "sdk": SDK}
        self.mirror = SettingsMirror(self.store.state, self._fetch, **(defaults | options))

    async def _fetch(self):
        return self.served

    async def __aenter__(self):
        await self.store.open()
        await self.mirror.start(30)
        return self

    async def __aexit__(self, *_):
        await self.mirror.stop()
        await self.store.close()

    @property
    def version(self):
        return self.mirror.current.settings.version

    async def pin(self, version, seconds=None):
        await self.store.state.pin_document("n", Pin(digest_of(document(version)), 1.0, "me", seconds=seconds))


async def test_a_pin_ends_after_its_time_whatever_the_wall_clock_says(tmp_path, monkeypatch):
    async with Worker(tmp_path, document(1)) as worker:
        worker.served = document(2)
        assert await worker.mirror.refresh()
        monkeypatch.setattr("time.time", lambda: 5e9)
        await worker.pin(1, seconds=1.5)
        await until(lambda: worker.version == 1)
        assert worker.mirror.pinning.left_seconds() <= 1.5
        worker.served = document(3)
        assert await worker.mirror.refresh()
        assert worker.version == 1
        assert worker.mirror.pinning.record()["changed_since"]
        await until(lambda: worker.version == 3)
        assert worker.mirror.pinning.pin is None


async def test_a_pin_whose_time_passed_while_no_worker_ran_ends_at_the_start(tmp_path):
    async with Worker(tmp_path, document(1)) as worker:
        worker.served = document(2)
        assert await worker.mirror.refresh()
        await worker.pin(1, seconds=0.001)
        await worker.mirror.stop()
    async with Worker(tmp_path, document(2)) as worker:
        await until(lambda: worker.version == 2 and worker.mirror.pinning.pin is None)


async def test_a_pin_ends_although_the_store_fails(tmp_path, monkeypatch):
    async with Worker(tmp_path, document(1)) as worker:
        worker.served = document(2)
        assert await worker.mirror.refresh()
        await worker.pin(1, seconds=1)

        async def fail(*_):
            raise StoreError("no store")

        for name in ("unpin_document", "save_document", "load_document"):
            monkeypatch.setattr(worker.store.state, name, fail)
        await until(lambda: worker.mirror.pinning.pin is not None)
        await until(lambda: worker.mirror.pinning.pin is None and worker.version == 2)


async def test_a_document_that_was_fetched_before_the_pin_does_not_replace_it(tmp_path):
    """Each document is stored before, during or after the pin: in the end, the pinned one is in use."""
    async with Worker(tmp_path, document(0)) as worker:
        for number in range(1, 15):
            worker.served = document(number)
            refreshing = asyncio.create_task(worker.mirror.refresh())
            await asyncio.sleep(0.002 * number)
            await worker.pin(0)
            assert await refreshing
            await until(lambda: worker.version == 0)
            await until(lambda: worker.mirror.pinning.latest == digest_of(worker.served))
            assert worker.version == 0
            await worker.store.state.unpin_document("n")
            await until(lambda: worker.version == number)  # noqa: B023


async def test_a_store_of_an_earlier_version_gets_its_first_version_with_the_next_poll(tmp_path):
    async with Worker(tmp_path, document(1)) as worker:
        await worker.store.state._database.run(lambda connection: connection.execute("DELETE FROM versions") and None)
    async with Worker(tmp_path, document(1)) as worker:
        state = worker.store.state
        assert await worker.mirror.refresh()
        assert [one.digest for one in await state.versions("n")] == [digest_of(document(1))]
        await worker.pin(1)
        await until(lambda: worker.mirror.pinning.pin is not None)
        await state._database.run(lambda connection: connection.execute("DELETE FROM versions") and None)
        assert await worker.mirror.refresh()  # as after data loss while a version is pinned
        assert [one.digest for one in await state.versions("n")] == [digest_of(document(1))]
        await state.unpin_document("n")
        await state._database.run(lambda connection: connection.execute("DELETE FROM versions") and None)
    async with Worker(tmp_path, document(2)) as worker:
        await until(lambda: worker.version == 2)
        newest, first = await worker.store.state.versions("n")
        assert (first.digest, first.source) == (digest_of(document(1)), "earlier version")
        assert newest.source == "poll"


async def test_a_gateway_with_a_file_stays_at_the_pinned_version_after_a_start(tmp_path):
    async with Worker(tmp_path, document(1), source="file") as worker:
        worker.served = document(2)
        assert await worker.mirror.refresh()
        await worker.pin(1)
        await until(lambda: worker.version == 1)
    async with Worker(tmp_path, document(2), source="file") as worker:
        assert await worker.mirror.refresh()
        assert worker.version == 1
        assert {one.source for one in await worker.store.state.versions("n")} == {"file"}


async def test_a_pin_is_logged_with_user_time_and_reason(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    async with Worker(tmp_path, document(1)) as worker:
        pin = Pin(digest_of(document(1)), 0.0, "ops@host", "too slow", until=7200.0, seconds=7200.0)
        await worker.store.state.pin_document("n", pin)
        await until(lambda: worker.mirror.pinning.pin is not None)
        worker.served = document(2)
        assert await worker.mirror.refresh()
        assert await worker.mirror.refresh()
        await worker.store.state.unpin_document("n", by="root@host")
        await until(lambda: worker.version == 2)
    first, second = digest_of(document(1)), digest_of(document(2))
    assert caplog.messages == [
        f"settings were pinned to {first} by ops@host at 1970-01-01T00:00:00Z until 1970-01-01T02:00:00Z (too slow)",
        f"settings {second} from VWO were stored but not used: {first} is pinned",
        f"settings were unpinned by root@host, the latest version {second} is used",
    ]


@pytest.mark.parametrize("order", ["pin", "pull"])
async def test_the_source_of_a_version_is_the_cause_of_its_request(tmp_path, order):
    async with Worker(tmp_path, document(1)) as worker:
        if order == "pin":
            await worker.pin(1)

        async def changed():
            return document(2)

        assert await worker.mirror.pull(changed, "webhook")
        assert [one.source for one in await worker.store.state.versions("n")] == ["webhook", "poll"]
