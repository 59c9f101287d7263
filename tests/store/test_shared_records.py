"""Sticky decisions of many visitors share statements. Each request was a job of the thread, with one for each key.

Under load every statement waits for the interpreter's lock, and decisions wait for their records.
"""

import asyncio
import threading
from contextlib import asynccontextmanager

from tornado_gateway.store.sqlite.aliases import MOST_RECORDS, RECORDS_AT_ONCE, RECORDS_BY_SIZE
from tornado_gateway.store.sqlite.state import SqliteState

COUNT = 400


@asynccontextmanager
async def opened(directory):
    state = SqliteState(directory, namespace="shop")
    await state.open()
    yield state
    await state.close()


async def statements_of(state, *calls):
    """Make the calls while the thread is busy. Return their results, and the statements of all."""
    statements, is_over = [], threading.Event()
    await state._database.run(lambda connection: connection.set_trace_callback(statements.append))
    busy = asyncio.ensure_future(state._database.run(lambda connection: is_over.wait(30)))
    await asyncio.sleep(0)
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    is_over.set()
    results = await asyncio.gather(*tasks)
    await busy
    return results, statements


async def test_visitors_share_statements(tmp_path):
    """400 visitors with two records each: 8 jobs of 100 records, of two statements each, and the transactions."""
    async with opened(tmp_path) as state:
        records = {"f": {"rolloutId": 1}, "g": {"rolloutId": 2.5}}
        saves = [state.save_records(f"user-{number}", records, 3600) for number in range(COUNT)]
        _, statements = await statements_of(state, *saves)
        jobs = 2 * COUNT // MOST_RECORDS + 1  # the first one has a single visitor
        assert len(statements) <= jobs * (2 + MOST_RECORDS // RECORDS_AT_ONCE) + 2
        loads = [state.load_records(f"user-{number}", ["f", "none", "g"]) for number in range(COUNT)]
        results, statements = await statements_of(state, *loads)
        assert results == [records] * COUNT
        assert len(statements) <= 3 * COUNT // RECORDS_AT_ONCE + 20


async def test_each_visitor_gets_its_own_records(tmp_path):
    async with opened(tmp_path) as state:
        odd = ["\0", "a\0b", 'quote"', "\\", "\ud7ff\U0010ffff", "", "é"]
        await asyncio.gather(*(state.save_records(id_, {key: {"of": [id_, key]}}, 3600) for id_ in odd for key in odd))
        many = [f"key-{number}" for number in range(3 * MOST_RECORDS)]
        await state.save_records("one", {key: {"of": key} for key in many}, 3600)
        loads = [*(state.load_records(id_, odd) for id_ in odd), state.load_records("one", [*many, "f"])]
        *few, one = await asyncio.gather(*loads)
        assert few == [{key: {"of": [id_, key]} for key in odd} for id_ in odd]
        assert one == {key: {"of": key} for key in many}
        assert await state.load_records("one", []) == {}


async def test_the_last_record_of_a_group_counts(tmp_path):
    async with opened(tmp_path) as state:
        await asyncio.gather(*(state.save_records("u", {"f": {"rolloutId": number}}, 3600) for number in range(9)))
        assert await state.load_records("u", ["f"]) == {"f": {"rolloutId": 8}}


async def test_a_damaged_record_is_none(tmp_path):
    async with opened(tmp_path) as state:
        await state.save_records("u", {"f": {"rolloutId": 1}, "g": {"rolloutId": 2}}, 3600)
        damage = "UPDATE decisions SET record = X'7B' WHERE key = 'f'"
        await state._database.run(lambda connection: connection.execute(damage))
        assert await state.load_records("u", ["f", "g"]) == {"g": {"rolloutId": 2}}


async def test_records_are_found_by_their_key(tmp_path):
    """A scan of the table would take seconds with a million records."""
    async with opened(tmp_path) as state:
        query = f"EXPLAIN QUERY PLAN {RECORDS_BY_SIZE[1]}"
        plan = await state._database.run(lambda connection: connection.execute(query, list("abc")).fetchall())
        assert any("SEARCH decisions USING PRIMARY KEY (namespace=? AND user_id=? AND key=?)" in row[3] for row in plan)
