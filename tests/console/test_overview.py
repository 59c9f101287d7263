"""The samples behind the charts of the overview."""

import time

import pytest

from tornado_gateway.console.overview import History, quantile_ms
from tornado_gateway.telemetry.layout import REQUEST_BUCKETS


def test_the_overview_samples_rates_and_gauges():
    workers = {"pid": 1, "requests": {"total": 0, "decisions": 0}}
    events = {"received": 0, "delivered": 0, "rejected": 0, "lost": 0, "waiting": 0, "dead": 0}
    latencies = [0] * (len(REQUEST_BUCKETS) + 1)
    history = History(
        lambda: {"workers": [dict(workers, requests=dict(workers["requests"]))], "events": dict(events)},
        lambda: list(latencies),
    )
    history.sample()
    workers["requests"]["total"] += 500
    events["received"] += 70
    events["waiting"] = 7
    events["lost"] = 70
    latencies[1] = 500
    time.sleep(0.05)
    history.sample()
    series = history.series()
    seconds = 70 / series["received"][0]
    assert series["requests"][0] == pytest.approx(500 / seconds, rel=0.01)
    assert series["waiting"] == [7]
    assert series["lost"] == series["received"]
    assert 0.25 < series["p50_ms"][0] < series["p99_ms"][0] <= 0.5
    workers["pid"] = 2  # the worker has been replaced
    workers["requests"]["total"] = 20
    time.sleep(0.05)
    history.sample()
    assert history.series()["requests"][1] > 0


def test_a_quantile_lies_in_its_bucket():
    """99 requests took 0.5 to 1 ms, one took more than 2.5 ms and less than 5 ms."""
    counts = [0, 0, 99, 0, 1] + [0] * (len(REQUEST_BUCKETS) - 4)
    assert quantile_ms(counts, 0.5) == pytest.approx(0.5 + 0.5 * 50 / 99, abs=0.01)
    assert 2.5 < quantile_ms(counts, 0.995) <= 5
    assert quantile_ms([0] * len(counts), 0.5) is None
    assert quantile_ms([*[0] * len(REQUEST_BUCKETS), 3], 0.5) == REQUEST_BUCKETS[-1] * 1000
