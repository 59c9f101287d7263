"""The labels of the metrics are those of the gateway."""

import re

import pytest
from process import ROOT

from tornado_gateway.api import routes
from tornado_gateway.console import pages
from tornado_gateway.process.counters import LAYOUT, new_counters
from tornado_gateway.telemetry.layout import OTHER, STATUSES


@pytest.mark.parametrize("route", [*routes.ROUTES, *pages.ROUTES], ids=lambda route: route.path)
def test_each_route_is_counted_with_its_label(route):
    assert LAYOUT.routes.label_of(route.path.encode()) == route.label
    assert route.label in LAYOUT.requests.labels[1]
    assert (route.label in LAYOUT.request_seconds.values) == (route in routes.ROUTES)


def test_there_are_no_other_labels():
    assert set(LAYOUT.requests.labels[1]) == {route.label for route in (*routes.ROUTES, *pages.ROUTES)} | {OTHER}
    assert LAYOUT.routes.trees < set(LAYOUT.routes.pages)


def test_all_processes_have_the_same_layout():
    assert new_counters().layout is new_counters(2).layout is LAYOUT


ROUTES_OF_PATHS = {
    b"/events/t": "/events/t",
    b"//events//t": "/events/t",
    b"/prefix/events/t": "/events/t",
    b"/ofrep/v1/evaluate/flags": "/ofrep/v1/evaluate/flags",
    b"//ofrep/v1/evaluate/flags/events/t": "/ofrep/v1/evaluate/flags/{key}",
    b"/admin/events/requeue": "/admin",
    b"/web/main.js": "/web",
    b"/": "/",
    b"": OTHER,
    b"/a/b/events/t": OTHER,
    b"/other": OTHER,
    b"/\xff\xfe": OTHER,
}


@pytest.mark.parametrize(("path", "route"), ROUTES_OF_PATHS.items())
def test_the_label_of_a_path(path, route):
    assert LAYOUT.routes.label_of(path) == route


def test_every_status_that_the_gateway_sends_is_known():
    sources = "".join(path.read_text() for path in (ROOT / "tornado_gateway").rglob("*.py"))
    sent = {int(status) for status in re.findall(r"(?:json_error|Response|RequestError|HTTPError)\((\d{3})\b", sources)}
    assert {200, 400, 404, 503} <= sent <= set(STATUSES)
