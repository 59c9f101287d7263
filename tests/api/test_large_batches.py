"""Large bodies of events are read one at a time: the loop waits for each thread with the interpreter's lock."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from tornado_gateway.api.events import ACCEPTED, LARGE_BYTES, EventsApi
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Request

INVALID = {"no JSON": b"x" * (LARGE_BYTES + 1), "cut": b'{"ev":[' + b'{"d":{}},' * LARGE_BYTES}


class CountingExecutor(ThreadPoolExecutor):
    """Counts the calls that are in progress at once. Only the loop uses it."""

    def __init__(self):
        super().__init__()
        self.calls = self.now = self.most = 0

    def submit(self, work, *args):
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        loop, future = asyncio.get_running_loop(), super().submit(work, *args)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self.finished))
        return future

    def finished(self):
        self.now -= 1


@pytest.mark.parametrize("body", INVALID.values(), ids=INVALID)
async def test_one_large_body_is_read_at_a_time(body):
    executor = CountingExecutor()
    asyncio.get_running_loop().set_default_executor(executor)
    api = EventsApi(None, None, slice_events=100)
    taken = [take(Request(b"POST", b"/", b"", [], body)) for take in (api.take_batch, api.take_event) for _ in range(3)]
    results = await asyncio.gather(*taken, return_exceptions=True)
    assert {type(result) for result in results} == {RequestError}
    assert (executor.calls, executor.most) == (6, 1)


class CountingEvents(EventsApi):
    """Counts the bytes of events that are sorted in each turn of the loop."""

    def __init__(self):
        super().__init__(None, None, slice_events=100)
        self.turn = 0
        self.sizes = Counter()

    def _sort(self, event, scope, batch):
        size = len(orjson.dumps(event))
        self.sizes[self.turn] += size
        return size

    def _take(self, request, scope, batch):
        self.turn = -1


async def test_a_turn_of_the_loop_sorts_few_bytes():
    """100 events of 256 KB each were encoded and checked in one turn."""
    api = CountingEvents()
    events = [{"d": {"text": "x" * 30_000, "number": number}} for number in range(100)]
    request = Request(b"POST", b"/", b"", [], orjson.dumps({"ev": events}))
    taking = asyncio.ensure_future(api._take_slices(request, events, None, None))
    while api.turn >= 0:
        api.turn += 1
        await asyncio.sleep(0)
    await taking
    assert sum(api.sizes.values()) > 3_000_000
    assert max(api.sizes.values()) <= LARGE_BYTES + 31_000


class OneTree(EventsApi):
    """Notes how many batches are in memory as values at once, and which events are freed when one is sorted."""

    def __init__(self):
        super().__init__(None, None, slice_events=100)
        self.now = self.most = 0
        self.left = []

    def _take_document(self, request, document):
        self.now += 1
        self.most = max(self.most, self.now)
        self.events = document["ev"]
        return self._take_slices(request, self.events, None, None)

    def _sort(self, event, scope, batch):
        self.left.append(len(self.events))
        return LARGE_BYTES + 1

    def _take(self, request, scope, batch):
        self.now -= 1
        return ACCEPTED


async def test_the_values_of_one_large_batch_are_in_memory_at_a_time():
    """Those of the next one were read while the events of the last one were sorted, and freed at the end together."""
    api = OneTree()
    body = orjson.dumps({"ev": [{"text": "x" * 1000, "number": number} for number in range(100)]})
    await asyncio.gather(*(api.take_batch(Request(b"POST", b"/", b"", [], body)) for _ in range(3)))
    assert (api.most, api.now) == (1, 0)
    assert api.left == 3 * list(range(99, -1, -1))
