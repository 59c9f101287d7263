"""When a round begins, and what concerns one environment of it."""

import asyncio

from tornado_gateway.events.group_commit import Pace

NEVER = 3600.0


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_group_after_several_requests_waits_for_its_time():
    pace = Pace(NEVER, timer_seconds=NEVER)
    pace.begin(2)
    waiting = asyncio.create_task(pace.wait(is_wanted=True))
    for _ in range(3):  # requests arrive
        await turns()
        pace.want()
    assert not waiting.done()
    pace.want(at_once=True)
    await waiting


async def test_a_request_that_arrives_at_that_time_begins_it():
    pace = Pace(0.001, timer_seconds=NEVER)
    pace.begin(2)
    waiting = asyncio.create_task(pace.wait(is_wanted=True))
    while not waiting.done():
        await asyncio.sleep(0.001)
        pace.want()


async def test_without_further_requests_a_timer_begins_it():
    pace = Pace(NEVER, timer_seconds=0.001)
    pace.begin(2)
    await pace.wait(is_wanted=True)
    pace.begin(2)
    await pace.wait(is_wanted=True)  # again


async def test_a_lone_client_never_waits():
    pace = Pace(NEVER, timer_seconds=NEVER)
    pace.begin(2)
    pace.begin(1)
    assert not pace.is_early()
    waiting = asyncio.create_task(pace.wait(is_wanted=False))
    await turns()
    assert not waiting.done()
    pace.want()
    await waiting
