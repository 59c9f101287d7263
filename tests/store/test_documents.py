"""How documents are stored: compressed, so that a large one costs a busy core and its disk little."""

import asyncio
import random
import sqlite3

import orjson
import pytest

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.repair.rescue import replace
from tornado_gateway.store.sqlite.schema import STATE
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.store.versions import PACKED_PIECE_BYTES, PACKED_START, Pin, digest_of, pack, unpacked

RANDOM = random.Random(5)
LARGE = RANDOM.randbytes(3 * PACKED_PIECE_BYTES)  # such bytes stay as long as they are


@pytest.mark.parametrize("body", [b"", b"{}", b"1" * 1_000_000, LARGE])
def test_a_document_is_the_same_after_it_was_compressed(body):
    digest, packed = pack(body)
    assert (digest, unpacked(packed)) == (digest_of(body), body)
    assert packed[:1] == PACKED_START


@pytest.mark.parametrize("cut", [1, PACKED_PIECE_BYTES, 3 * PACKED_PIECE_BYTES])
def test_a_document_without_its_end_is_damaged(cut):
    packed = pack(LARGE)[1]
    with pytest.raises(StoreError, match="damaged"):
        unpacked(packed[:-cut])


def test_a_document_with_another_byte_is_damaged():
    packed = bytearray(pack(LARGE)[1])
    packed[PACKED_PIECE_BYTES] ^= 1
    with pytest.raises(StoreError, match="damaged"):
        unpacked(bytes(packed))


def execute(directory, statement, *parameters):
    """Execute a statement in the file of a store that is closed, or beside it. Return its rows."""
    connection = sqlite3.connect(directory / "state.db")
    try:
        with connection:
            return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


async def opened(directory):
    state = SqliteState(directory)
    await state.open()
    return state


async def pinned(directory):
    """A store with two versions of a document, the first one pinned."""
    state = await opened(directory)
    await state.save_document("s", b'{"a":1}')
    await state.save_document("s", b'{"b":2}')
    await state.pin_document("s", Pin(digest_of(b'{"a":1}'), 0.0, "one"))
    return state


async def test_a_document_takes_little_space_in_the_file(tmp_path):
    state = await opened(tmp_path)
    body = orjson.dumps([{"id": number, "name": "a feature"} for number in range(100_000)])
    await state.save_document("s", body)
    await state.close()
    assert [
        (name, len(stored) < len(body) / 5) for name, stored in execute(tmp_path, "SELECT name, body FROM documents")
    ] == [("s", True)]
    assert (tmp_path / "state.db").stat().st_size < len(body)


async def test_a_document_of_a_former_version_is_read_and_replaced(tmp_path):
    """It is not compressed."""
    state = await opened(tmp_path)
    await state.save_document("s", b'{"a":1}')
    await state.close()
    execute(tmp_path, "UPDATE documents SET body = ?, version = 7", b'{"former":1}')
    state = await opened(tmp_path)
    assert (await state.load_document("s")).body == b'{"former":1}'
    assert (await state.wait_for_document("s", 1)).version == 7
    assert (await state.save_document("s", b'{"b":2}')).version == 8
    await state.close()
    state = await opened(tmp_path)
    assert (await state.load_document("s")).body == b'{"b":2}'
    await state.close()


async def test_a_damaged_latest_version_does_not_replace_a_pinned_one(tmp_path):
    state = await pinned(tmp_path)
    execute(tmp_path, "UPDATE versions SET packed = x'78' WHERE digest = ?", digest_of(b'{"b":2}'))
    with pytest.raises(StoreError, match="damaged"):
        await state.unpin_document("s")
    assert (await state.load_document("s")).body == b'{"a":1}'
    await state.close()


async def test_documents_versions_and_pins_survive_the_repair_of_a_damaged_file(tmp_path):
    """Compressed documents counted as damaged rows."""
    state = await pinned(tmp_path)
    await state.close()
    replace(tmp_path / "state.db", STATE, "a test")
    state = await opened(tmp_path)
    loaded = await state.load_document("s")
    assert (loaded.body, loaded.pin.digest) == (b'{"a":1}', digest_of(b'{"a":1}'))
    assert await state.load_version("s", digest_of(b'{"b":2}')) == b'{"b":2}'
    await state.close()


async def test_a_damaged_document_is_replaced_by_the_next_one(tmp_path):
    state = await opened(tmp_path)
    await state.save_document("s", b'{"a":1}')
    await state.close()
    execute(tmp_path, "UPDATE documents SET body = CAST(x'78' || substr(body, 3) AS BLOB)")
    state = await opened(tmp_path)
    assert await state.load_document("s") is None
    assert (await state.save_document("s", b'{"b":2}')).body == b'{"b":2}'
    await state.close()


async def test_documents_are_pinned_and_saved_while_others_write(tmp_path):
    """Transactions that read first failed at once with "database is locked"."""
    states = [await opened(tmp_path) for _ in range(2)]
    await states[0].save_document("s", LARGE)
    is_done = False

    async def write():
        while not is_done:
            await states[1].save_records("user", {"key": {"rolloutId": 1}}, 60)

    writing = asyncio.create_task(write())
    for number in range(60):
        await states[0].pin_document("s", Pin(digest_of(LARGE), 0.0, "one"))
        await states[0].unpin_document("s")
        await states[0].save_document("s", b"%d" % (number % 2) + LARGE)
        await states[0].save_document("s", LARGE)
    is_done = True
    await writing
    for state in states:
        await state.close()
