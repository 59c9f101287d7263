"""Pages are compressed for clients that accept it; data routes, tiny bodies and the data of operators are not."""

import gzip

import orjson
import pytest
from process import SAMPLE_SETTINGS, Gateway
from sdk.wire import ask

from tornado_gateway.console.openapi import DOCUMENT
from tornado_gateway.console.pages import ASSETS
from tornado_gateway.console.static_pages import SMALLEST_BYTES

TOKEN = "correct-horse-battery"
GZIP = {"Accept-Encoding": "gzip, deflate, br"}
STATIC = [*ASSETS, "/openapi.json"]
OTHERS = ["/", "/health", "/ready", "/status", "/metrics", "/no/such/path", "/admin/overview"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    options = {"SETTINGS_FILE": SAMPLE_SETTINGS, "ADMIN_TOKEN": TOKEN}
    with Gateway(tmp_path_factory.mktemp("pages") / "data", **options) as gateway:
        yield gateway


@pytest.mark.parametrize("path", STATIC)
def test_a_page_has_a_compressed_form_if_that_saves_something(gateway, path):
    plain, packed = (ask(gateway.port, "GET", path, headers=headers) for headers in ({}, GZIP))
    assert "content-encoding" not in plain.headers
    if len(plain.body) < SMALLEST_BYTES:
        assert (packed.body, packed.headers) == (plain.body, plain.headers)
        return
    assert gzip.decompress(packed.body) == plain.body
    assert (packed.headers["content-encoding"], len(packed.body) < len(plain.body)) == ("gzip", True)
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != packed.headers["etag"]
    assert packed.headers["content-type"] == plain.headers["content-type"]


def test_a_form_that_the_client_has_is_not_sent_again(gateway):
    for headers in ({}, GZIP):
        first = ask(gateway.port, "GET", "/docs", headers=headers)
        again = ask(gateway.port, "GET", "/docs", headers=headers | {"If-None-Match": first.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        head = ask(gateway.port, "HEAD", "/docs", headers=headers)
        assert head.headers.get("content-encoding") == first.headers.get("content-encoding")


def test_a_client_that_refuses_gzip_gets_the_plain_form(gateway):
    answer = ask(gateway.port, "GET", "/openapi.json", headers={"Accept-Encoding": "gzip;q=0"})
    assert orjson.loads(answer.body) == DOCUMENT


@pytest.mark.parametrize("path", OTHERS)
def test_other_pages_are_not_compressed(gateway, path):
    """Those of operators have secrets, whose compression beside the text of others would reveal them."""
    answer = ask(gateway.port, "GET", path, headers=GZIP | {"Authorization": f"Bearer {TOKEN}"})
    assert "content-encoding" not in answer.headers


def test_a_decision_is_not_compressed(gateway):
    body = b'{"featureKey":"new-checkout","userId":"u"}'
    assert "content-encoding" not in ask(gateway.port, "POST", "/server-side/getFlag", body, GZIP).headers


def test_an_unknown_path_is_reported_as_it_was_sent(gateway):
    answer = ask(gateway.port, "GET", "/no%20such%2Fpath")
    assert (answer.status, orjson.loads(answer.body)["error"]) == (404, "no such path: /no%20such%2Fpath")
