"""Row A25: the disk space of delivered events is returned."""

import asyncio

from length import length

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

EVENTS = length(100_000, long=5_000_000)
PER_CHUNK = 100
SECONDS = 120
SMALL = 16_000_000


async def fill_and_deliver(directory):
    """Return the largest size of the file."""
    events = SqliteEvents(directory)
    await events.open()
    body = b"\n".join([b'{"x":"%s"}' % (b"x" * 500)] * PER_CHUNK)
    for _ in range(EVENTS // PER_CHUNK // 10):
        await events.append([NewChunk(PER_CHUNK, body)] * 10)
    path = directory / "events-0.db"
    while path.stat().st_size < SMALL:  # until the checkpoint has copied the WAL
        await asyncio.sleep(0.02)
    largest = path.stat().st_size
    while chunks := await events.claim(5000):
        await events.settle(chunks)
    return events, largest


async def test_a25_the_file_of_delivered_events_shrinks_while_the_gateway_runs(tmp_path):
    events, largest = await fill_and_deliver(tmp_path)
    assert largest > SMALL
    async with asyncio.timeout(SECONDS):
        while (tmp_path / "events-0.db").stat().st_size >= SMALL:
            await asyncio.sleep(0.05)
    await events.append([NewChunk(1, b'{"new":1}')])
    assert [chunk.body for chunk in await events.claim(9)] == [b'{"new":1}']
    await events.close()


async def test_a25_the_file_of_delivered_events_is_small_after_a_restart(tmp_path):
    events, _ = await fill_and_deliver(tmp_path)
    await events.append([NewChunk(1, b'{"waits":1}')])
    await events.close()
    again = SqliteEvents(tmp_path)
    await again.open()
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.name != "reserve") < SMALL
    assert [chunk.body for chunk in await again.claim(9)] == [b'{"waits":1}']
    await again.close()
