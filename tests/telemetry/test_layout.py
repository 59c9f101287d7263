"""The labels of the metrics are those of the gateway."""

import inspect
import re
from unittest.mock import MagicMock

import pytest
from process import ROOT

from tornado_gateway.api.router import Api
from tornado_gateway.console.pages import build_application
from tornado_gateway.telemetry.layout import DATA_ROUTES, OTHER, STATUSES, route_of


def test_the_known_routes_are_the_routes_of_the_gateway():
    api = Api(*[MagicMock() for _ in range(4)], decides=True, serves_browsers=True)
    assert {path.decode() for _, path in api.routes} == set(DATA_ROUTES)
    parts = [MagicMock() for _ in inspect.signature(build_application).parameters]
    for rule in build_application(*parts).wildcard_router.rules:
        path = rule.matcher.regex.pattern.removesuffix("$").replace("\\", "")
        assert route_of(path.encode()) != OTHER, path


ROUTES_OF_PATHS = {
    b"/events/t": "/events/t",
    b"//events//t": "/events/t",
    b"/prefix/events/t": "/events/t",
    b"/admin/events/requeue": "/admin",
    b"/web/main.js": "/web",
    b"/": OTHER,
    b"": OTHER,
    b"/a/b/events/t": OTHER,
    b"/other": OTHER,
    b"/\xff\xfe": OTHER,
}


@pytest.mark.parametrize(("path", "route"), ROUTES_OF_PATHS.items())
def test_the_label_of_a_path(path, route):
    assert route_of(path) == route


def test_every_status_that_the_gateway_sends_is_known():
    sources = "".join(path.read_text() for path in (ROOT / "tornado_gateway").rglob("*.py"))
    sent = {int(status) for status in re.findall(r"(?:json_error|Response|RequestError|HTTPError)\((\d{3})\b", sources)}
    assert {200, 400, 404, 503} <= sent <= set(STATUSES)
