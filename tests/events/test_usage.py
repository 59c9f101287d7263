"""Usage statistics of SDKs, apart from the events of visitors."""

import asyncio
import collections

import pytest

from tornado_gateway.errors import UpstreamError
from tornado_gateway.events.usage import UsageStatistics


class Sink:
    """Accepts single events once `go` is set; `failures` are those of the next ones."""

    def __init__(self):
        self.sent = []
        self.failures = collections.deque()
        self.go = asyncio.Event()
        self.in_flight = self.most_in_flight = 0

    async def send_event(self, query, document):
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.go.wait()
        finally:
            self.in_flight -= 1
        if self.failures:
            raise self.failures.popleft()
        self.sent.append((query, document))


@pytest.fixture
def counted():
    return collections.Counter()


@pytest.fixture
def make(counted):
    def make(sink, **limits):
        return UsageStatistics(sink, lambda outcome: counted.update([outcome]), **limits)

    return make


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a15_usage_statistics_are_sent_one_after_the_other(make, counted):
    sink = Sink()
    usage = make(sink)
    for number in range(5):
        usage.append(f"a={number}", b"{}")
    sink.go.set()
    await until(lambda: counted["delivered"] == 5)
    assert sink.sent == [(f"a={number}", b"{}") for number in range(5)]
    assert sink.most_in_flight == 1
    usage.append("a=5", b"{}")
    await until(lambda: counted["delivered"] == 6)
    await usage.stop(60)


@pytest.mark.parametrize("limits", [{"max_events": 3}, {"max_bytes": 300}])
async def test_a15_their_queue_is_bounded_in_number_and_bytes(make, counted, limits):
    sink = Sink()
    usage = make(sink, **limits)
    for _ in range(1000):
        usage.append("a=1", b"x" * 97)
    await asyncio.sleep(0)
    assert counted == {"dropped": 997}
    sink.go.set()
    await until(lambda: counted["delivered"] == 3)
    usage.append("a=2", b"x" * 97)
    await until(lambda: counted["delivered"] == 4)
    await usage.stop(60)


async def test_a15_one_that_fails_is_dropped_and_counted(make, counted):
    sink = Sink()
    sink.failures += [UpstreamError("no response"), UpstreamError("rejected", 400)]
    sink.go.set()
    usage = make(sink)
    for number in range(3):
        usage.append(f"a={number}", b"{}")
    await until(lambda: counted.total() == 3)
    assert counted == {"dropped": 2, "delivered": 1}
    await usage.stop(60)


async def test_a15_a_stop_sends_the_rest_within_its_deadline(make, counted):
    sink = Sink()
    usage = make(sink)
    for number in range(3):
        usage.append(f"a={number}", b"{}")
    asyncio.get_running_loop().call_later(0.01, sink.go.set)
    await usage.stop(60)
    assert counted == {"delivered": 3}


async def test_a15_a_stop_drops_and_counts_what_it_cannot_send(make, counted):
    usage = make(Sink())
    for number in range(3):
        usage.append(f"a={number}", b"{}")
    await usage.stop(0.01)
    assert counted == {"dropped": 3}
