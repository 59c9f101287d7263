"""Row A2, acceptance 4: the memory of a worker is bounded, however large the backlog is."""

import asyncio
from pathlib import Path

import orjson
from length import length
from process import Gateway, sample_document
from vendor import Fault, Vendor

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

SECONDS = 300
FOREVER = 1_000_000_000
MOST_MEGABYTES = 256
HUGE = length(10, long=40)  # events of 8 MB, as earlier versions accepted them
CHUNKS = length(30, long=160)  # of four events of 250 KB each


def test_a2_a_backlog_in_megabytes_is_drained_in_little_memory(tmp_path):
    asyncio.run(fill(tmp_path / "data"))
    total = HUGE + 4 * CHUNKS
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(503, times=FOREVER))
        with Gateway.of_vendor(tmp_path / "data", vendor, is_fresh=True, SOCKET_TIMEOUT=60) as gateway:
            vendor.wait_until(lambda: len(vendor.calls_to("/server-side/batch-events-v2")) > 4, SECONDS)
            vendor.calls.clear()
            assert gateway.status()["events"]["waiting"] == total
            vendor.event_faults.clear()
            drain(vendor, gateway, total)
            peak = peak_megabytes(gateway)
            print(f"{peak:.0f} MB at most")
            assert peak < MOST_MEGABYTES


async def fill(directory):
    events = SqliteEvents(directory)
    await events.open()
    for number in range(HUGE):
        await events.append([NewChunk(1, document(f"huge-{number}", 8_000_000))])
    for number in range(CHUNKS):
        documents = [document(f"{number}-{part}", 249_000) for part in range(4)]
        await events.append([NewChunk(4, b"\n".join(documents))])
    await events.close()


def document(name, size):
    return orjson.dumps({"d": {"event": {"name": "purchase", "props": {"name": name, "text": "x" * size}}}})


def drain(vendor, gateway, total):
    """Wait until all events have arrived, and keep only their names."""
    names = set()

    def has_all():
        vendor.calls.clear()
        vendor.taken.clear()
        taken = [vendor.events.pop(0) for _ in range(len(vendor.events))]
        names.update(event["d"]["event"]["props"]["name"] for event in taken)
        return len(names) >= total

    vendor.wait_until(has_all, SECONDS, lambda: f"{len(names)} of {total}: {gateway.status()['events']}")
    vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, SECONDS)


def peak_megabytes(gateway):
    """The most memory that the gateway, with one worker, has used."""
    pids = [gateway.process.pid, *gateway.worker_pids()]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
