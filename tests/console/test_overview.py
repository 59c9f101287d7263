"""The samples behind the charts of the overview."""

import time

import pytest

from tornado_gateway.console.overview import COUNTS, History
from tornado_gateway.telemetry.layout import REQUEST_BUCKETS
from tornado_gateway.telemetry.scoreboard import Scoreboard
from tornado_gateway.telemetry.series import GAUGES, PUBLISHED, RATES, RINGS, SHARED_BYTES, Sample, Series, quantile_ms


def reading(make):
    """Return what reads the counts, as the scoreboard does."""

    async def read():
        return make()

    return read


async def test_the_overview_samples_rates_and_gauges():
    workers = {"pid": 1, "requests": {"total": 0, "decisions": 0}}
    events = {"received": 0, "delivered": 0, "rejected": 0, "lost": 0, "waiting": 0, "dead": 0}
    latencies = [0] * (len(REQUEST_BUCKETS) + 1)
    history = History(
        reading(lambda: {"workers": [dict(workers, requests=dict(workers["requests"]))], "events": dict(events)}),
        lambda: list(latencies),
    )
    await history.sample()
    workers["requests"]["total"] += 500
    events["received"] += 70
    events["waiting"] = 7
    events["lost"] = 70
    latencies[1] = 500
    time.sleep(0.05)
    await history.sample()
    series = history.series()
    seconds = 70 / series["received"][0]
    assert series["requests"][0] == pytest.approx(500 / seconds, rel=0.01)
    assert series["waiting"] == [7]
    assert series["lost"] == series["received"]
    assert 0.25 < series["p50_ms"][0] < series["p99_ms"][0] <= 0.5
    workers["pid"] = 2  # the worker has been replaced
    workers["requests"]["total"] = 20
    time.sleep(0.05)
    await history.sample()
    assert history.series()["requests"][1] > 0


def test_a_quantile_lies_in_its_bucket():
    """99 requests took 0.5 to 1 ms, one took more than 2.5 ms and less than 5 ms."""
    counts = [0, 0, 99, 0, 1] + [0] * (len(REQUEST_BUCKETS) - 4)
    assert quantile_ms(counts, 0.5) == pytest.approx(0.5 + 0.5 * 50 / 99, abs=0.01)
    assert 2.5 < quantile_ms(counts, 0.995) <= 5
    assert quantile_ms([0] * len(counts), 0.5) is None
    assert quantile_ms([*[0] * len(REQUEST_BUCKETS), 3], 0.5) == REQUEST_BUCKETS[-1] * 1000


def sample(second, waiting=0):
    """The counters after so many seconds with 100 requests, all of them shorter than 0.5 ms."""
    values = {**dict.fromkeys(RATES, 100 * second), **dict.fromkeys(GAUGES, 0), "waiting": waiting}
    return Sample(1000.0 + second, values, [0, 100 * second, *[0] * (len(REQUEST_BUCKETS) - 1)])


def test_a_day_of_samples_is_kept_in_bounded_rings():
    """A spike of one second is visible in each of them: gauges are the highest of their interval."""
    series = Series()
    spike = 90_000 - 100
    for second in range(90_001):
        series.add(sample(second, waiting=7 if second == spike else None))
    for name, (every, rows) in RINGS.items():
        columns = series.columns(name)
        assert len(columns["at"]) == rows
        assert columns["interval_seconds"] == every
        assert columns["at"][-1] - columns["at"][0] == every * (rows - 1)
        assert set(columns["requests"]) == {100.0}
        assert 0.25 < columns["p50_ms"][-1] < 0.5
        assert [value for value in columns["waiting"] if value is not None] == [7]


def test_a_worker_that_replaces_another_continues_the_long_rings():
    shared = Scoreboard(2).series
    assert shared.capacity >= SHARED_BYTES
    first = Series(shared, 0)
    for second in range(5000):
        first.add(sample(second))
    first.publish()
    Series(shared, 1).publish()
    later = Series(shared, 0)
    later.adopt()
    for name in PUBLISHED:
        assert later.columns(name) == first.columns(name)
    assert len(later.columns("1h")["at"]) == RINGS["1h"][1]
    assert later.columns("5m")["at"] == []


async def test_the_rates_of_events_are_those_of_all_environments_as_the_requests_are():
    counts = dict.fromkeys(COUNTS, 0)
    environments = [{"name": name, "events": dict(counts)} for name in ("production", "staging")]
    status = {"workers": [], "events": environments[0]["events"], "environments": environments}
    history = History(reading(lambda: status), lambda: [0] * (len(REQUEST_BUCKETS) + 1))
    await history.sample()
    for one, number in zip(environments, (30, 40), strict=True):
        one["events"] |= {"received": number, "delivered": number, "waiting": number}
    await history.sample()
    series = history.series()
    assert series["waiting"] == [70]
    assert series["received"] == series["delivered"]
    environments[1]["events"]["waiting"] = None  # its store cannot be read
    await history.sample()
    assert history.series()["waiting"][1] is None
