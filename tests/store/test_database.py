"""The thread of a database: its callers continue without waiting for the loop."""

import asyncio

import pytest

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.events import SqliteEvents


@pytest.fixture
def database(tmp_path, io_loop):
    events = SqliteEvents(tmp_path)
    io_loop.run_sync(events.open)
    yield events._database
    io_loop.run_sync(events.close)


def fail(connection):
    raise StoreError("a failure")


@pytest.mark.parametrize("work", [lambda connection: None, fail], ids=["result", "error"])
async def test_a_caller_continues_in_the_turn_in_which_its_result_arrives(database, work):
    """It continued in the next turn, which takes 10 ms under attack, and each event waited for it."""
    seen = []

    def note(result, error):
        seen.append("result")
        asyncio.get_running_loop().call_soon(seen.append, "next turn")

    async def call():
        try:
            await database.run(work, then=note)
        except StoreError:
            pass
        seen.append("caller")

    await asyncio.create_task(call())
    assert seen[:2] == ["result", "caller"]


async def test_a_cancelled_caller_ends_and_its_result_is_dropped(database):
    calling = asyncio.create_task(database.run(lambda connection: 1))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await database.run(lambda connection: 2) == 2
