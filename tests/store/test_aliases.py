"""Floods of alias requests do not delay decisions, which look up the alias of their visitor.

Found by `scripts/hostile`: each request was a job of the store's thread, and a decision waited for all earlier ones.
"""

import asyncio
import threading
from itertools import pairwise

import pytest

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.aliases import IDS, LISTS, MOST_STEPS, PAIRS
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.tasks import WOKEN

COUNT = 1000


@pytest.fixture
def open_state(tmp_path):
    async def opened():
        state = SqliteState(tmp_path)
        await state.open()
        return state

    return opened


async def statements_before(state, id_, *others):
    """Start `others` while the thread is busy, then look up an id. Return how many statements ran before its own."""
    statements, is_over = [], threading.Event()
    await state._database.run(lambda connection: connection.set_trace_callback(statements.append))
    busy = asyncio.ensure_future(state._database.run(lambda connection: is_over.wait(30)))
    tasks = [asyncio.ensure_future(other) for other in others]
    for _ in range(3):  # turns: all have arrived then
        await asyncio.sleep(0)
    lookup = asyncio.ensure_future(state.aliases([id_]))
    for _ in range(3):
        await asyncio.sleep(0)
    is_over.set()
    await asyncio.gather(busy, lookup, *tasks)
    return next(number for number, statement in enumerate(statements) if f"'{id_}'" in statement)


async def test_a_lookup_waits_for_one_job_of_a_flood(open_state):
    state = await open_state()
    sets = [state.set_alias(f"alias-{number}", f"user-{number}") for number in range(COUNT)]
    lists = [state.aliases([f"alias-{number}", f"user-{number}"]) for number in range(COUNT)]
    assert await statements_before(state, "visitor", *sets, *lists) <= 5
    assert await state.aliases(["alias-7"]) == {"alias-7": "user-7"}
    assert await state.aliases([f"alias-{COUNT - 1}", "x"]) == {f"alias-{COUNT - 1}": f"user-{COUNT - 1}"}
    await state.close()


async def test_lookups_of_many_decisions_share_statements(open_state):
    state = await open_state()
    await state.set_alias("member", "guest")
    others = [state.aliases([f"visitor-{number}"]) for number in range(COUNT)]
    assert await statements_before(state, "member", *others) <= COUNT / IDS
    await state.close()


async def test_few_lookups_of_a_group_continue_in_one_turn(open_state):
    """Each may be followed by a costly decision: 74 of them in one turn took 25 ms."""
    state = await open_state()
    turns, turn = [], 0
    for number in range(IDS):
        asyncio.ensure_future(state.aliases([f"visitor-{number}"])).add_done_callback(lambda _: turns.append(turn))
    while len(turns) < IDS:
        await asyncio.sleep(0)
        turn += 1
    assert max(turns.count(number) for number in set(turns)) <= WOKEN
    await state.close()


async def test_a_lone_lookup_takes_two_turns_after_its_job(open_state):
    """While other clients keep the loop busy, each turn takes milliseconds. A task for each group took two more."""
    state = await open_state()
    is_over, has_ended = threading.Event(), threading.Event()
    busy = asyncio.ensure_future(state._database.run(lambda connection: is_over.wait(30)))
    await asyncio.sleep(0)
    lookup = asyncio.ensure_future(state.aliases(["visitor"]))
    await asyncio.sleep(0)
    last = asyncio.ensure_future(state._database.run(lambda connection: has_ended.set()))
    await asyncio.sleep(0)
    is_over.set()
    has_ended.wait(30)  # the loop rests meanwhile
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lookup.done()
    await asyncio.gather(busy, last)
    await state.close()


async def test_aliases_of_one_group_see_each_other(open_state):
    """Those that are set at once have the same result as one after the other."""
    state = await open_state()
    pairs = [("phone", "member"), ("tablet", "phone"), ("member", "tablet"), ("phone", "other"), ("watch", "phone")]
    assert await asyncio.gather(*(state.set_alias(*pair) for pair in pairs)) == [True, True, False, True, True]
    found = await state.aliases(["phone", "tablet", "member", "watch"])
    assert found == {"phone": "other", "tablet": "member", "watch": "other"}
    await state.close()


async def test_the_limit_holds_within_a_group(open_state):
    state = await open_state()
    state.max_aliases = 3
    results = await asyncio.gather(*(state.set_alias(f"alias-{number}", "user") for number in range(PAIRS)))
    assert results == [True] * 3 + [False] * (PAIRS - 3)
    await state.close()


async def test_long_chains_and_odd_ids(open_state):
    state = await open_state()
    ids = [f"id-{number}" for number in range(MOST_STEPS)]
    for alias, user in pairwise(ids):
        assert await state.set_alias(alias, user)
    odd = ["\0", "a\0b", 'quote"', "\\", "\ud7ff\U0010ffff", "", "é"]
    await asyncio.gather(*(state.set_alias(id_, f"user of {id_}") for id_ in odd))
    assert await state.aliases(ids) == dict.fromkeys(ids[:-1], ids[-1])
    assert await state.aliases(odd) == {id_: f"user of {id_}" for id_ in odd}
    many = [f"unknown-{number}" for number in range(IDS * LISTS + 1)]
    assert await state.aliases([*many, ids[0]]) == {ids[0]: ids[-1]}
    await state.close()


async def test_all_calls_of_a_group_fail_with_the_store(open_state):
    state = await open_state()
    await state.close()
    results = await asyncio.gather(*(state.aliases([str(number)]) for number in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreError] * 3
