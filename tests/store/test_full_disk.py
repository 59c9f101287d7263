"""Row A19: a full disk rejects new events, delivers the stored ones, and recovers by itself.

The disk is a small file system in memory, which only root may mount.
"""

import asyncio
import contextlib
import os
import sqlite3
import subprocess

import pytest
from commands import run_doctor
from ledger import acknowledged, arrived, visitor_requests
from load import Load
from process import SAMPLE_SETTINGS, Gateway, free_port, sample_document
from vendor import Fault, Vendor

from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents, open_sqlite

SECONDS = 60


@pytest.fixture
def disk(tmp_path):
    """A file system of 6 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory):
    """Another program takes all that is left."""
    with contextlib.suppress(OSError), (directory / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


async def append_until_rejected(events, size=20_000):
    """How many chunks there was room for."""
    for number in range(10_000):
        try:
            await events.append([NewChunk(1, b"%06d" % number + b"x" * size)])
        except StoreError:
            return number
    raise AssertionError("the disk never got full")


async def deliver_everything(events):
    bodies = set()
    while chunks := await events.claim(50):
        bodies.update(chunk.body[:6] for chunk in chunks)
        async with asyncio.timeout(SECONDS):
            await events.settle(chunks)
    return bodies


async def until_accepted(events):
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await events.append([NewChunk(1, b"x" * 20_000)])
            except StoreError:
                await asyncio.sleep(0.05)


async def until_deleted(events):
    def rows(connection):
        return connection.execute("SELECT count(*) FROM chunks").fetchone()[0]

    async with asyncio.timeout(SECONDS):
        while await events._database.run(rows):
            await asyncio.sleep(0.05)


async def test_a19_again_and_again_a_full_disk_is_emptied_and_filled(disk):
    events = SqliteEvents(disk / "data")
    await events.open()
    for _ in range(3):
        stored = await append_until_rejected(events)
        assert stored > 50, "there is room for more than 1 MB on a disk of 6 MB"
        assert len(await deliver_everything(events)) == stored
        assert (await events.depth()).waiting == 0
        await until_deleted(events)
        await until_accepted(events)
        await deliver_everything(events)
    await events.close()


async def test_a19_workers_return_the_space_that_they_do_not_need(disk):
    """Each has its log on the same disk; what one of them has delivered makes room for the other."""
    first, second = SqliteEvents(disk / "data"), SqliteEvents(disk / "data")
    await first.open()
    await second.open()
    for events in (first, second, first):
        stored = await append_until_rejected(events, size=5000)
        assert stored > 200
        await deliver_everything(events)
        await until_deleted(events)
        await events.adopt()  # as a worker does every few seconds
    await first.close()
    await second.close()


async def test_a19_the_log_of_a_dead_worker_that_fills_the_disk_is_delivered(disk):
    first, second = SqliteEvents(disk / "data"), SqliteEvents(disk / "data")
    await first.open()
    await second.open()
    stored = await append_until_rejected(second, size=5000)
    await second.close()
    delivered = 0
    async with asyncio.timeout(SECONDS):
        while delivered < stored:  # what does not fit yet follows when delivered chunks have made room
            with contextlib.suppress(StoreError):
                await first.adopt()
            delivered += len(await deliver_everything(first))
    assert (await first.depth()).waiting == 0
    assert [path.name for path in (disk / "data").glob("events-*.db")] == ["events-0.db"]
    await first.close()


async def test_a19_a_start_on_a_full_disk_delivers_what_waits(disk, caplog):
    events = SqliteEvents(disk / "data")
    await events.open()
    stored = await append_until_rejected(events)
    await events.close()
    events = SqliteEvents(disk / "data")
    await events.open()
    assert f"{stored} events wait" in caplog.text
    assert len(await deliver_everything(events)) == stored
    await until_accepted(events)
    await events.close()


async def test_a19_a_disk_that_others_have_filled_stops_neither_start_nor_delivery(disk):
    store = open_sqlite(disk / "data")
    await store.open()
    for number in range(40):
        await store.events.append([NewChunk(1, b"%06d" % number + b"x" * 20_000)])
    await store.close()
    fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    store = open_sqlite(disk / "data")
    await store.open()
    with pytest.raises(StoreError, match="the disk of"):
        await store.events.append([NewChunk(1, b"new")])
    assert len(await deliver_everything(store.events)) == 40
    assert (await store.events.depth()).waiting == 0
    (disk / "ballast").unlink()
    await until_accepted(store.events)
    await store.close()


async def test_a19_a_disk_that_gets_full_during_a_start_prevents_it_not(disk):
    """The first file is open already, so that the second one is the first to need space."""
    events = SqliteEvents(disk / "data")
    await events.open()
    await events.append([NewChunk(1, b"waits")])
    await events.close()
    with contextlib.closing(sqlite3.connect(disk / "data" / "events-0.db")) as other:
        other.execute("SELECT count(*) FROM chunks").fetchone()
        fill(disk)
        await events.open()
        assert len(await deliver_everything(events)) == 1
        await events.close()


async def test_a19_delivery_goes_on_although_nothing_can_be_deleted(disk):
    events = SqliteEvents(disk / "data")
    await events.open()
    for number in range(100):
        await events.append([NewChunk(1, b"%06d" % number + b"x" * 10_000)])
    (disk / "data" / "reserve").unlink()
    fill(disk)
    assert len(await deliver_everything(events)) == 100
    assert (await events.depth()).waiting == 0
    (disk / "ballast").unlink()
    await until_deleted(events)
    await events.close()


@pytest.mark.parametrize("way", ["running", "SIGTERM", "SIGKILL"])
def test_a19_a_gateway_whose_disk_gets_full(disk, tmp_path, way):
    with Vendor(sample_document()) as vendor:
        gateway = Gateway.of_vendor(disk / "data", vendor, SHUTDOWN_SECONDS=2, FLUSH_EVENTS_INTERVAL=1, WORKERS=1)
        gateway.log_path = tmp_path / "gateway.log"
        vendor.event_faults.append(Fault(503, times=10**6))
        with gateway:
            vendor.wait_until(lambda: gateway.get("/ready")[0] == 200, SECONDS)
            exchanges = asyncio.run(load_until_rejected(gateway))
            if way == "SIGTERM":
                assert gateway.terminate() == 0
                gateway.start()
            elif way == "SIGKILL":
                gateway.kill()
                gateway.start()
            vendor.event_faults.clear()
            wanted = acknowledged(exchanges)
            vendor.wait_until(lambda: not wanted - arrived(vendor), SECONDS, lambda: gateway.log()[-3000:])
            vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, SECONDS, gateway.status)
            vendor.wait_until(lambda: accepts(gateway), SECONDS, gateway.log)
            if way != "running":
                assert "wait in events-0" in gateway.log()


async def load_until_rejected(gateway):
    """Large events, until all are rejected."""

    def request(number):
        path, fields = visitor_requests("full")(number * 4 + 2)  # trackEvent
        return path, fields | {"eventProperties": {"n": number, "text": "x" * 5000}}

    exchanges = []
    for number in range(50):
        load = Load(gateway.port, lambda i, first=number * 200: request(first + i), connections=8, total=200)
        await load.run()
        exchanges += load.exchanges
        if load.exchanges[-1].status == 503:
            return exchanges
    raise AssertionError("the disk never got full")


def accepts(gateway):
    return gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "later"})[0] == 200


def test_a19_doctor_reports_the_full_disk_and_the_events(disk, tmp_path):
    async def store_some():
        events = SqliteEvents(disk / "data")
        await events.open()
        await events.append([NewChunk(3, b'{"n":1}\n{"n":2}\n{"n":3}')])
        await events.close()

    asyncio.run(store_some())
    fill(disk)
    result = run_doctor(SETTINGS_FILE=SAMPLE_SETTINGS, DATA_DIR=disk / "data", PORT=free_port())
    assert result.returncode == 1
    assert (
        "disk-full"
        in run_doctor("--json", SETTINGS_FILE=SAMPLE_SETTINGS, DATA_DIR=disk / "data", PORT=free_port()).stdout
    )
    assert "3 wait" in result.stdout, result.stdout
