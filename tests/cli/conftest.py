"""Fixtures of the commands."""

import asyncio

import pytest
from process import SAMPLE_SETTINGS, free_port

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents


@pytest.fixture
def graveyard(tmp_path):
    """A DATA_DIR that no gateway uses, with two dead letters and an event that waits."""
    directory = tmp_path / "data"
    asyncio.run(bury(directory))
    return {"SETTINGS_FILE": str(SAMPLE_SETTINGS), "DATA_DIR": str(directory), "PORT": str(free_port())}


async def bury(directory):
    events = SqliteEvents(directory)
    await events.open()
    await events.append([NewChunk(2, b'{"n":1}\n{"n":2}'), NewChunk(1, b'{"n":3}')])
    chunks = await events.claim(10)
    dead = [(NewChunk(chunk.count, chunk.body), f"answered 40{chunk.count}") for chunk in chunks]
    await events.settle(chunks, dead)
    await events.append([NewChunk(1, b'{"n":4}')])
    await events.close()
