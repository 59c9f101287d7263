"""Counting in one worker: every request once, bounded memory, and continuing after a former process."""

import pytest

from tornado_gateway.core import OUTCOMES
from tornado_gateway.http.messages import Request
from tornado_gateway.process.counters import LAYOUT, new_counters
from tornado_gateway.telemetry.layout import CACHE_LOOKUPS, DECISIONS, OTHER
from tornado_gateway.telemetry.observer import KNOWN_KEYS, Observer


def observer_of(**counts):
    memory = new_counters()
    return Observer(memory, **counts), memory


def request(method=b"POST", path=b"/server-side/getFlag"):
    return Request(method, path, b"", [])


def count_of(observer, method, route, status):
    return observer.counts[LAYOUT.requests.at(method, route, status)]


def test_a_later_process_with_a_row_continues_the_counters_of_the_former_one():
    first, memory = observer_of(generation=1)
    first.responded(request(), 200)
    first.publish({})
    second = Observer(memory, generation=2)
    second.responded(request(), 200)
    assert count_of(second, "POST", "/server-side/getFlag", 200) == 2
    assert second.totals() == (1, 1)  # of this process


def test_methods_and_statuses_that_nobody_knows_are_other():
    observer, _ = observer_of()
    observer.responded(request(b"PROPFIND"), 207)
    observer.responded(request(b"", b""), 400)  # could not be parsed
    assert count_of(observer, OTHER, "/server-side/getFlag", OTHER) == 1
    assert count_of(observer, OTHER, OTHER, 400) == 1


def test_the_spellings_that_are_remembered_are_bounded():
    observer, _ = observer_of()
    for number in range(KNOWN_KEYS + 10):
        observer.responded(request(b"POST", b"/p%d/events/t" % number), 200)
        observer.responded(request(b"POST", b"/p%d" % number), 404)
    assert len(observer._index) <= KNOWN_KEYS
    assert count_of(observer, "POST", "/events/t", 200) == KNOWN_KEYS + 10


@pytest.mark.parametrize("weight", [1, 16])
def test_measured_requests_stand_for_the_others(weight):
    observer, _ = observer_of()
    observer._weight = weight
    find = observer.sampled(lambda method, path: lambda request: None)
    total = 32_000
    for _ in range(total):
        one = request()
        find(one.method, one.path)(one)
        observer.responded(one, 200)
    start = LAYOUT.request_seconds.at("/server-side/getFlag")
    measured = sum(observer.counts[start : start + LAYOUT.request_seconds.width - 1])
    assert measured == total if weight == 1 else 0.85 * total < measured < 1.15 * total
    assert not observer._started


def test_a_cache_that_begins_anew_takes_nothing_back():
    observer, _ = observer_of()
    for hits, misses in ((5, 2), (7, 3), (1, 1)):
        observer.count_lookups("location", hits, misses)
    block = CACHE_LOOKUPS
    assert observer.counts[block.at("location", "hit")] == 8
    assert observer.counts[block.at("location", "miss")] == 4


def test_decisions_of_environments_are_added_also_if_one_begins_anew():
    observer, _ = observer_of()
    for environment, decisions in (("a", [5, 1, 0, 2]), ("b", [1, 0, 0, 0]), ("a", [6, 1, 1, 2]), ("a", [1, 0, 0, 0])):
        observer.count_decisions(environment, decisions)
    assert [observer.counts[DECISIONS.at(outcome)] for outcome in OUTCOMES] == [8, 1, 1, 2]


def test_long_paths_of_flags_are_counted_and_take_no_memory():
    observer = Observer(new_counters())
    for number in range(3):
        path = b"/ofrep/v1/evaluate/flags/%d" % number + b"x" * 60_000
        observer.responded(Request(b"POST", path, b"", []), 404)
    assert count_of(observer, "POST", "/ofrep/v1/evaluate/flags/{key}", 404) == 3
    assert len(observer._index) == 0
