"""Row A22: DATA_DIR is deleted or moved while the gateway runs."""

import asyncio
import shutil

import pytest

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents, open_sqlite

SECONDS = 60


def delete(directory):
    shutil.rmtree(directory)


def move(directory):
    directory.rename(directory.with_name("elsewhere"))


def delete_the_files(directory):
    for path in list(directory.iterdir()):
        path.unlink()


LOSSES = pytest.mark.parametrize("lose", [delete, move, delete_the_files])


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def claim_all(events):
    found = []
    while chunks := await events.claim(50):
        found += chunks
    return found


@LOSSES
async def test_a22_a_deleted_directory_is_created_again_with_all_its_events(tmp_path, caplog, lose):
    directory = tmp_path / "data"
    store = open_sqlite(directory)
    await store.open()
    await store.events.append([NewChunk(1, b'{"n":%d}' % number) for number in range(300)])
    await store.events.settle((await store.events.claim(1)), dead=[(NewChunk(1, b'{"dead":1}'), "400")])
    claimed = await store.events.claim(10)
    await store.state.set_alias("member", "guest")
    lose(directory)
    await until(lambda: list(directory.glob("events-*.db")) and (directory / "state.db").exists())  # without traffic
    await store.events.append([NewChunk(1, b'{"after":1}')])
    assert (await store.events.depth()).waiting == 300
    assert await store.state.aliases(["member"]) == {"member": "guest"}
    assert "deleted or moved" in caplog.text
    # What a killed process leaves: another one reads the files, although nothing was closed.
    left = sorted(path.name for path in directory.glob("events-*.db"))
    shutil.copytree(directory, tmp_path / "copy")
    other = SqliteEvents(tmp_path / "copy")
    await other.open()
    bodies = {chunk.body for chunk in await claim_all(other)}
    assert bodies == {b'{"n":%d}' % number for number in range(1, 300)} | {b'{"after":1}'}
    assert [letter.body for letter in await other.dead_letters()] == [b'{"dead":1}']
    await other.close()
    assert len(left) == 1
    await store.events.settle(claimed)
    assert (await store.events.depth()).waiting == 290
    assert (await store.events.depth()).dead == 1
    await store.close()


@LOSSES
async def test_a22_two_workers_keep_their_own_logs_and_share_the_dead_letters(tmp_path, lose):
    directory = tmp_path / "data"
    workers = [SqliteEvents(directory) for _ in range(2)]
    for number, events in enumerate(workers):
        await events.open()
        await events.append([NewChunk(1, b'{"w":%d,"n":%d}' % (number, n)) for n in range(50)])
        await events.settle((await events.claim(1)), dead=[(NewChunk(1, b'{"dead":%d}' % number), "400")])
    lose(directory)
    await until(lambda: len(list(directory.glob("events-*.db"))) == 2 and (directory / "dead.db").exists())
    await until(lambda: all(events.repairs for events in workers))
    for events in workers:
        assert ((await events.depth()).waiting, (await events.depth()).dead) == (49, 1)
        assert len(await events.dead_letters()) == 2
    assert await workers[0].requeue() == 2
    for events in workers:
        await events.close()


async def test_a22_events_are_rejected_while_the_directory_cannot_be_created_again(tmp_path):
    parent = tmp_path / "parent"
    directory = parent / "data"
    events = SqliteEvents(directory)
    await events.open()
    await events.append([NewChunk(1, b'{"n":1}')])
    shutil.rmtree(parent)
    parent.write_text("a file")

    async def is_rejected():
        try:
            await events.append([NewChunk(1, b'{"n":2}')])
        except Exception as error:
            return str(error)
        return ""

    async with asyncio.timeout(SECONDS):
        while not (message := await is_rejected()):
            await asyncio.sleep(0.02)
    assert str(directory) in message
    parent.unlink()
    async with asyncio.timeout(SECONDS):
        while await is_rejected():
            await asyncio.sleep(0.02)
    assert b'{"n":1}' in {chunk.body for chunk in await claim_all(events)}
    await events.close()
