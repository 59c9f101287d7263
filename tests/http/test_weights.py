"""Lists with weights in request headers (RFC 9110, 12.4.2)."""

import gzip
import http.client

import pytest
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway.http.fields import accepts_gzip, weights


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ("gzip", {"gzip": 1}),
        ("gzip, deflate;q=0.5 , BR ; Q=0.1", {"gzip": 1, "deflate": 0.5, "br": 0.1}),
        ("gzip;q=0", {"gzip": 0}),
        ("gzip;q=0.000,*;q=1.000", {"gzip": 0, "*": 1}),
        ("a;version=1;q=0.2, a;version=2;q=0.7, a", {"a": 1}),
        ("gzip;q=high, br;q=-1, zstd;q=7", {"gzip": 0, "br": 0, "zstd": 0}),
        (",,;q=1, ,gzip", {"gzip": 1}),
        (", ".join(["x"] * 100_000), {"x": 1}),
    ],
)
def test_weights(header, expected):
    assert weights(header) == expected


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip, deflate, br", True),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("gzip;q=0, deflate", False),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip", True),
        ("not-gzip", False),
        ("*", False),  # allowed, but hardly meant by a client that does not name gzip
        ("", False),
    ],
)
def test_g6_gzip_by_weight(header, accepted):
    """Row G6."""
    assert accepts_gzip(header) == accepted


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path_factory.mktemp("gateway") / "data", vendor) as gateway,
    ):
        vendor.wait_until(lambda: gateway.get("/ready")[0] == 200)
        yield gateway


def fetch(gateway, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_g6_settings_are_compressed_by_weight(gateway):
    """Row G6."""
    path = "/server-side/v2-settings"
    plain, body = fetch(gateway, path, Accept_Encoding="gzip;q=0, identity")
    packed, packed_body = fetch(gateway, path, Accept_Encoding="deflate, gzip;q=0.1")
    assert (plain.headers["Content-Encoding"], packed.headers["Content-Encoding"]) == (None, "gzip")
    assert gzip.decompress(packed_body) == body


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "openmetrics"),
        ("text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0.5", "plain"),
        ("application/openmetrics-text;q=0, */*", "plain"),
    ],
)
def test_g6_metrics_by_weight(gateway, accept, kind):
    """Row G6."""
    response, _ = fetch(gateway, "/metrics", Accept=accept)
    assert kind in response.headers["Content-Type"]
