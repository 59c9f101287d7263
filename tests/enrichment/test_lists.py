"""Row C5: a flood of list checks is bounded, and a list that cannot be checked is not asked for each request."""

import asyncio

from tornado_gateway.enrichment.lists import MAX_WAITING, ListChecks
from tornado_gateway.errors import UpstreamError


class Lists:
    """VWO: responds when `open`, raises when `fails`."""

    def __init__(self):
        self.asked = []
        self.open = asyncio.Event()
        self.fails = False

    async def check(self, list_id, value):
        self.asked.append(value)
        await self.open.wait()
        if self.fails:
            raise UpstreamError("down")
        return True


async def test_c5_at_most_64_checks_wait_and_further_ones_get_the_last_known_result():
    lists = Lists()
    checks = ListChecks(lists.check, fresh_seconds=0.0)
    lists.open.set()
    assert await checks.is_member("l", "known")
    lists.open.clear()
    waiting = [asyncio.create_task(checks.is_member("l", str(number))) for number in range(1000)]
    done, _ = await asyncio.wait(waiting[MAX_WAITING:], timeout=60)
    assert [task.result() for task in done] == [False] * (1000 - MAX_WAITING)
    assert await checks.is_member("l", "known")
    assert len(lists.asked) == 1 + MAX_WAITING
    lists.open.set()
    assert await asyncio.gather(*waiting[:MAX_WAITING]) == [True] * MAX_WAITING


async def test_c5_a_failure_is_kept_for_a_while():
    lists = Lists()
    lists.open.set()
    lists.fails = True
    checks = ListChecks(lists.check, failure_seconds=3600.0)
    assert [await checks.is_member("l", "a") for _ in range(5)] == [False] * 5
    assert lists.asked == ["a"]
    lists.fails = False
    soon = ListChecks(lists.check, failure_seconds=0.0)
    lists.fails = True
    assert not await soon.is_member("l", "b")
    lists.fails = False
    assert await soon.is_member("l", "b")


async def test_c5_long_values_are_checked_each_time_and_take_no_memory():
    """A hundred thousand values of 60 KB would take gigabytes."""
    lists = Lists()
    lists.open.set()
    checks = ListChecks(lists.check)
    for number in range(3):
        assert await checks.is_member("l", f"{number}" + "x" * 60_000)
    assert await checks.is_member("l", "0" + "x" * 60_000)
    assert await checks.is_member("l", "short")
    assert await checks.is_member("l", "short")
    assert len(lists.asked) == 5
    assert list(checks._known) == [("l", "short")]


async def test_a_known_result_needs_no_task():
    """Neither one in the cache, nor one while too many checks wait. A flood of them continued in one turn."""
    lists = Lists()
    checks = ListChecks(lists.check)
    assert checks.known_member("l", "member") is None
    lists.open.set()
    assert await checks.is_member("l", "member")
    assert checks.known_member("l", "member")
    lists.open.clear()
    waiting = [asyncio.create_task(checks.is_member("l", str(number))) for number in range(MAX_WAITING)]
    await asyncio.sleep(0)
    assert checks.known_member("l", "other") is False
    assert checks.known_member("l", "7") is None  # shares the check that waits
    lists.open.set()
    assert await asyncio.gather(*waiting) == [True] * MAX_WAITING
