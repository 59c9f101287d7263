"""Finding handlers in the table of routes: each row leads to its endpoint, in all spellings that SDKs use."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import orjson
import pytest

from tornado_gateway.api.endpoints import Endpoints
from tornado_gateway.api.router import LONGEST_KNOWN, MAX_KNOWN, Router
from tornado_gateway.api.routes import ROUTES
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Request

EACH_ROUTE = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")


def router(**options):
    endpoints = Endpoints(*[MagicMock() for _ in Endpoints._fields])
    made = Router(endpoints, **{"serves_browsers": False} | options)
    made.settings_changed(SimpleNamespace(settings=SimpleNamespace(collection_prefix="eu01")))
    return endpoints, made


@EACH_ROUTE
@pytest.mark.parametrize("spelling", ["{}", "/eu01{}", "/{}", "//eu01/{}"])
def test_each_row_leads_to_its_endpoint(route, spelling):
    endpoints, made = router()
    room, name = route.handler.split(".")
    wanted = getattr(getattr(endpoints, room), name)
    path = spelling.format(route.path).encode()
    assert leads_to(made.find(route.method.encode(), path), wanted)
    assert leads_to(made.find(b"HEAD", path), wanted) == (route.method == "GET")
    assert made.takes_events(path) == route.is_event
    assert made.takes_batches(path) == route.is_batch
    assert made.is_sdk_path(path) == route.is_for_sdks


def leads_to(handler, wanted):
    return handler is wanted


@pytest.mark.parametrize("start", ["", "/eu01/", "//eu01/"])
@pytest.mark.parametrize(
    ("end", "name"), [("/a%2Fb+c", "evaluate"), ("//a", "evaluate"), ("/", "evaluate_all"), ("///", "evaluate_all")]
)
def test_a_tree_has_all_paths_below_it_but_an_empty_key_means_all_flags(start, end, name):
    endpoints, made = router()
    found = made.find(b"POST", f"{start}/ofrep/v1/evaluate/flags{end}".encode())
    assert leads_to(found, getattr(endpoints.evaluation, name))


def test_failures_have_the_shape_of_their_route():
    _, made = router()
    error = RequestError(400, "no")
    bodies = [
        orjson.loads(made.error_response(path, error).body) for path in (b"/ofrep/v1/evaluate/flags/a", b"/stream")
    ]
    assert bodies[0] == {"key": "a", "errorCode": "GENERAL", "errorDetails": "no"}
    assert bodies[1]["error"] == "no"


def test_paths_are_remembered_until_prefixes_change_and_in_bounded_number():
    _, made = router()
    path = "/ofrep/v1/evaluate/flags/{}".format
    first, known = path(0).encode(), made._known[b"POST"]
    assert made.find(b"POST", first) is made.find(b"POST", first) is known[first]
    for number in range(1, MAX_KNOWN + 1):
        assert made.find(b"POST", path(number).encode()) is not None
    assert first not in known
    assert len(known) <= MAX_KNOWN
    long = path("x" * LONGEST_KNOWN).encode()
    assert made.find(b"POST", long) is not None
    assert long not in known
    assert made.find(b"POST", b"/eu02/events/t") is not None
    made.settings_changed(SimpleNamespace(settings=SimpleNamespace(collection_prefix="eu02")))
    assert not known


def test_methods_and_paths_are_unique():
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


@EACH_ROUTE
def test_the_protection_of_a_route_is_in_front_of_its_endpoint(route):
    endpoints, made = router(protect=lambda route, handler: lambda request: (route, handler))
    room, name = route.handler.split(".")
    protected, handler = made.find(route.method.encode(), route.path.encode())(Request(b"", b"", b"", []))
    assert protected is route
    assert leads_to(handler, getattr(getattr(endpoints, room), name))


@pytest.mark.parametrize("path", [b"/", b"/health", b"/us-01/events/t", b"/events/t/", b"/EVENTS/T"])
def test_other_paths_are_not_data_routes(path):
    _, made = router()
    assert made.find(b"GET", path) is made.find(b"OPTIONS", path) is None
    assert not made.is_sdk_path(path)
    assert not made.takes_events(path)
    assert not made.takes_batches(path)
