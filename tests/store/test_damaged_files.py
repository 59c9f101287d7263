"""Row A23: damaged, truncated, foreign and older files in DATA_DIR are moved aside, and their readable rows rescued."""

import asyncio
import logging
import os
import random
import sqlite3
from contextlib import closing

import orjson
import pytest
from commands import run_doctor
from process import SAMPLE_SETTINGS, Gateway, sample_document
from vendor import Vendor

from tornado_gateway.events.queue import EventQueue
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents, open_sqlite
from tornado_gateway.store.sqlite.state import SqliteState

EVENTS = 600
SECONDS = 60
PAGE = 4096


def document(number, size=900):
    return b'{"n":%d,"x":"%s"}' % (number, b"x" * size)


async def write_log(directory, events=EVENTS, size=900):
    """A log as a stopped gateway leaves it."""
    store = SqliteEvents(directory)
    await store.open()
    for number in range(events):
        await store.append([NewChunk(1, document(number, size))])
    await store.close()
    return directory / "events-0.db"


async def write_dead_letters(directory):
    store = SqliteEvents(directory)
    await store.open()
    chunks = [NewChunk(1, document(number)) for number in range(EVENTS)]
    await store.append(chunks)
    await store.settle(await store.claim(EVENTS), dead=[(chunk, "400") for chunk in chunks])
    await store.close()
    return directory / "dead.db"


async def write_state(directory):
    state = SqliteState(directory)
    await state.open()
    await state.save_document("s", b"{}")
    for number in range(EVENTS):
        await state.set_alias(f"alias-{number}", f"user-{number}-{'x' * 200}")
        await state.save_records(f"user-{number}", {"f": {"rolloutId": number}}, 3600)
    await state.close()
    return directory / "state.db"


def truncate(path):
    os.truncate(path, path.stat().st_size * 2 // 3 // PAGE * PAGE + 100)


def overwrite_pages(path):
    chance = random.Random(1)
    with path.open("r+b") as file:
        for page in (path.stat().st_size // PAGE // 2, path.stat().st_size // PAGE - 20):
            file.seek(page * PAGE)
            file.write(chance.randbytes(2 * PAGE))


def overwrite_the_first_page(path):
    with path.open("r+b") as file:
        file.write(random.Random(2).randbytes(PAGE))


def replace_by_random_bytes(path):
    path.write_bytes(random.Random(3).randbytes(50_000))


def replace_by_text(path):
    path.write_text("no database\n" * 1000)


def replace_by_a_directory(path):
    path.unlink()
    path.mkdir()


def replace_by_a_foreign_database(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")


def give_the_table_other_columns(path):
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        table = next(name for name in tables if name in ("chunks", "dead", "documents"))
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"CREATE TABLE {table} (name TEXT)")


def claim_a_newer_version(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")


# How a file is damaged, and the least share of its rows that must be rescued.
DAMAGES = {
    truncate: 0.4,
    overwrite_pages: 0.8,
    overwrite_the_first_page: 0.9,
    replace_by_random_bytes: 0,
    replace_by_text: 0,
    replace_by_a_directory: 0,
    replace_by_a_foreign_database: 0,
    give_the_table_other_columns: 0,
    claim_a_newer_version: 1,
}
every_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


async def empty_wal(events):
    def checkpoint(connection):
        return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    async with asyncio.timeout(SECONDS):
        while await events._database.run(checkpoint):  # another checkpoint is being made
            await asyncio.sleep(0.02)


async def everything(events):
    bodies = []
    while chunks := await events.claim(100):
        bodies += [chunk.body for chunk in chunks]
        await events.settle(chunks)
    return bodies


def assert_reported(caplog, path):
    (copy,) = [
        other
        for other in path.parent.iterdir()
        if other.name.startswith(f"{path.name}.damaged-") and not other.name.endswith(("-wal", "-shm", ".json"))
    ]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any(
        str(path) in error and copy.name in error and ("rescued" in error or "was not a file" in error)
        for error in errors
    ), errors


@every_damage
async def test_a23_a_damaged_event_log_is_replaced_and_its_readable_rows_are_rescued(tmp_path, caplog, damage):
    path = await write_log(tmp_path)
    damage(path)
    events = SqliteEvents(tmp_path)
    await events.open()
    await events.append([NewChunk(1, b'{"new":1}')])
    bodies = await everything(events)
    assert b'{"new":1}' in bodies
    rescued = set(bodies) & {document(number) for number in range(EVENTS)}
    assert len(bodies) == len(rescued) + 1, "rows that were never stored"
    assert len(rescued) >= EVENTS * DAMAGES[damage]
    assert (await events.depth()).waiting == 0
    await events.close()
    assert_reported(caplog, path)


@every_damage
async def test_a23_damaged_dead_letters_are_replaced_and_rescued(tmp_path, caplog, damage):
    path = await write_dead_letters(tmp_path)
    damage(path)
    events = SqliteEvents(tmp_path)
    await events.open()
    letters = await events.dead_letters(EVENTS)
    assert len(letters) >= EVENTS * DAMAGES[damage]
    await events.append([NewChunk(1, b'{"new":1}')])
    await events.settle(await events.claim(1), dead=[(NewChunk(1, b'{"new":1}'), "400")])
    assert len(await events.dead_letters(2 * EVENTS)) == len(letters) + 1
    await events.close()
    assert_reported(caplog, path)


@every_damage
async def test_a23_a_damaged_state_is_replaced(tmp_path, caplog, damage):
    path = await write_state(tmp_path)
    damage(path)
    state = SqliteState(tmp_path)
    await state.open()
    await state.save_document("s", b'{"new":1}')
    loaded = await state.load_document("s")
    assert loaded.body == b'{"new":1}'
    for number in range(EVENTS):
        await state.aliases([f"alias-{number}"])
        await state.load_records(f"user-{number}", ["f"])
    await state.set_alias("new", "user")
    assert await state.aliases(["new"]) == {"new": "user"}
    await state.close()
    assert_reported(caplog, path)


@every_damage
async def test_a23_a_damaged_log_of_a_dead_worker_stops_neither_the_start_nor_the_other_logs(tmp_path, caplog, damage):
    first, second, third = (SqliteEvents(tmp_path) for _ in range(3))
    for events in (first, second, third):
        await events.open()
    for number in range(EVENTS):
        await second.append([NewChunk(1, document(number))])
    await third.append([NewChunk(1, b'{"third":1}')])
    for events in (second, third):
        await events.close()
    damage(tmp_path / "events-1.db")
    await first.adopt()
    bodies = await everything(first)
    assert b'{"third":1}' in bodies
    assert len(set(bodies) & {document(number) for number in range(EVENTS)}) >= EVENTS * DAMAGES[damage]
    await first.close()
    assert_reported(caplog, tmp_path / "events-1.db")


async def test_a23_damage_while_the_gateway_runs_is_repaired_and_events_in_memory_are_written_again(tmp_path, caplog):
    """Bodies of 20 KB are not in memory (1 MB is); the damage is in the pages of some of them."""
    events = SqliteEvents(tmp_path, fresh_bytes=1 << 20)
    await events.open()
    for number in range(200):
        await events.append([NewChunk(1, document(number, 20_000))])
    claimed = await events.claim(5)
    await empty_wal(events)
    path = tmp_path / "events-0.db"
    overwrite_pages(path)
    bodies = await everything(events)
    found = set(bodies) | {chunk.body for chunk in claimed}
    assert 190 <= len(found) < 200
    await events.append([NewChunk(1, b'{"new":1}')])
    assert await everything(events) == [b'{"new":1}']
    async with asyncio.timeout(SECONDS):
        while events.repairs < 1:
            await asyncio.sleep(0.02)
    assert (await events.depth()).waiting == 5
    await events.release(claimed)
    assert len(await everything(events)) == 5
    await events.close()
    assert_reported(caplog, path)


@pytest.mark.parametrize("number", [0, 60], ids=["none claimed", "most claimed"])
async def test_a23_events_in_memory_survive_the_damage_of_their_rows_and_then_a_kill(tmp_path, number):
    """The new file has all of them, for the next process, although some rows of the old one cannot be read."""
    events = SqliteEvents(tmp_path)
    await events.open()
    for written in range(100):
        await events.append([NewChunk(1, document(written, 20_000))])
    await events.claim(number)
    await empty_wal(events)
    overwrite_pages(tmp_path / "events-0.db")
    read = "SELECT count(*) FROM chunks WHERE body LIKE '%y%'"
    await events._database.run(lambda connection: connection.execute(read).fetchone())
    async with asyncio.timeout(SECONDS):
        while events.repairs < 1:
            await asyncio.sleep(0.02)
    with closing(sqlite3.connect(tmp_path / "events-0.db")) as new:  # nothing was closed
        assert {body for (body,) in new.execute("SELECT body FROM chunks")} == {
            document(written, 20_000) for written in range(100)
        }
    await events.close()


@pytest.mark.parametrize("name", ["events-0.lock", "events-0.db-wal", "dead.db-wal", "state.db-wal"])
async def test_a23_a_directory_in_the_place_of_an_auxiliary_file_is_moved_aside(tmp_path, name):
    await write_log(tmp_path, 3)
    for path in tmp_path.glob(f"{name}*"):
        path.unlink()
    (tmp_path / name).mkdir()
    store = open_sqlite(tmp_path)
    await store.open()
    assert len(await everything(store.events)) == 3
    await store.close()
    assert list(tmp_path.glob(f"{name}.damaged-*"))


async def test_a23_errors_name_their_file(tmp_path):
    events = SqliteEvents(tmp_path)
    await events.open()
    with pytest.raises(Exception, match=r"events-0\.db: no such table"):
        await events._database.run(lambda connection: connection.execute("SELECT * FROM absent"))
    await events.close()


async def test_a23_files_have_a_version(tmp_path):
    store = open_sqlite(tmp_path)
    await store.open()
    await store.close()
    for name in ("events-0.db", "dead.db", "state.db"):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (1,), name


async def test_a23_the_state_of_version_0_1_is_migrated(tmp_path):
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.executescript("""
            PRAGMA journal_mode=WAL;
            CREATE TABLE documents (
                name TEXT PRIMARY KEY, version INTEGER NOT NULL, saved_at REAL NOT NULL, body BLOB NOT NULL);
            CREATE TABLE aliases (alias_id TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
            INSERT INTO documents VALUES ('s', 7, 1.5, '{}');
            INSERT INTO aliases VALUES ('member', 'guest');
        """)
    state = SqliteState(tmp_path, namespace="n")
    await state.open()
    assert (await state.load_document("s")).version == 7
    assert await state.aliases(["member"]) == {"member": "guest"}
    await state.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


async def count_until(queue, expected):
    async with asyncio.timeout(SECONDS):
        while (queue.counts.waiting, queue.counts.lost) != expected:
            await asyncio.sleep(0.02)


async def test_a23_events_on_unreadable_pages_count_as_lost(tmp_path):
    """Guarantee 2: received = delivered + waiting + dead + rejected + discarded + lost."""
    events = SqliteEvents(tmp_path, fresh_bytes=0)
    queue = EventQueue(events, limit=1000, chunk_events=1)
    await events.open()
    await queue.start()
    for number in range(200):
        queue.append(document(number, 20_000), 1)
    await count_until(queue, (200, 0))
    async with asyncio.timeout(SECONDS):
        while queue.stored < 200:
            await asyncio.sleep(0.02)
    await empty_wal(events)
    overwrite_pages(tmp_path / "events-0.db")
    found = 0
    while chunks := await events.claim(1):
        await events.settle(chunks)
        queue.record_settled(1, 0, sum(chunk.size for chunk in chunks))
        found += 1
    assert 190 <= found < 200
    await count_until(queue, (0, 200 - found))
    assert queue.counts.received == queue.counts.delivered + queue.counts.lost == 200
    await queue.stop()
    await events.close()


def test_a23_a_gateway_starts_with_damaged_files_and_the_doctor_names_them(tmp_path):
    with Vendor(sample_document()) as vendor:
        with Gateway.of_vendor(tmp_path / "data", vendor):
            pass
        for path in [*(tmp_path / "data").glob("*-wal"), *(tmp_path / "data").glob("*-shm")]:
            path.unlink()  # the gateway was killed: everything is still in the WALs
        for name in ("events-0.db", "dead.db", "state.db"):
            (tmp_path / "data" / name).write_bytes(random.Random(4).randbytes(20_000))
        with Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
            assert gateway.get("/ready")[0] == 200
            options = {"DATA_DIR": tmp_path / "data", "SETTINGS_FILE": SAMPLE_SETTINGS, "PORT": gateway.port}
            findings = orjson.loads(run_doctor("--json", **options).stdout)["findings"]
            assert [found["state"] for found in findings if found["code"] == "damaged-files"] == ["warn"] * 3
            assert gateway.log().count("was damaged") == 3
