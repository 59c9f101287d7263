"""When a round begins, and what concerns one environment of it."""

import asyncio
import time

from tornado_gateway.events.group_commit import GROUP_SECONDS, MANY_REQUESTS, Pace

NEVER = 3600.0


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def busy_pace(seconds, timer_seconds):
    """A pace while requests are many."""
    pace = Pace(seconds, timer_seconds, rate_seconds=0.0)
    pace.begin(2)
    pace.begin(1000 * MANY_REQUESTS)
    return pace


async def test_a_group_after_many_requests_waits_for_its_time():
    pace = busy_pace(NEVER, timer_seconds=NEVER)
    waiting = asyncio.create_task(pace.wait(is_wanted=True))
    for _ in range(3):  # requests arrive
        await turns()
        pace.want()
    assert not waiting.done()
    pace.want(at_once=True)
    await waiting


async def test_a_full_group_waits_for_no_time():
    pace = busy_pace(NEVER, timer_seconds=NEVER)
    waiting = asyncio.create_task(pace.wait(is_wanted=True))
    await turns()
    pace.hurry()
    assert not pace.is_early()
    await waiting


async def test_a_request_that_arrives_at_that_time_begins_it():
    pace = busy_pace(0.001, timer_seconds=NEVER)
    waiting = asyncio.create_task(pace.wait(is_wanted=True))
    while not waiting.done():
        await asyncio.sleep(0.001)
        pace.want()


async def test_without_further_requests_a_timer_begins_it():
    pace = busy_pace(NEVER, timer_seconds=0.001)
    await pace.wait(is_wanted=True)
    pace.begin(2)
    await pace.wait(is_wanted=True)  # again


async def test_a_lone_client_never_waits():
    pace = busy_pace(NEVER, timer_seconds=NEVER)
    pace.begin(1)
    assert not pace.is_early()
    waiting = asyncio.create_task(pace.wait(is_wanted=False))
    await turns()
    assert not waiting.done()
    pace.want()
    await waiting


def test_requests_that_are_few_never_wait():
    """Two at a time, but too rarely to share rounds with others."""
    pace = Pace(rate_seconds=0.0)
    for _ in range(3):
        time.sleep(3 * GROUP_SECONDS)
        pace.begin(2)
        assert not pace.is_early()
