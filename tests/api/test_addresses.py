"""Rows E1 to E4: one reading of addresses everywhere; only addresses are looked up and sent to the vendor."""

from ipaddress import ip_network

import orjson
import pytest
from endpoints import EVENT, GEOIP, LONDON, ORIGIN, lines, new_events
from process import Gateway, sample_document
from sdk.wire import ask
from vendor import Vendor

from tornado_gateway.http.fields import ClientAddress, address_in
from tornado_gateway.http.messages import Request

JAPAN = {"country": "Japan"}
READ = {
    "81.2.69.160": "81.2.69.160",
    " 81.2.69.160\t": "81.2.69.160",
    "81.2.69.160:54321": "81.2.69.160",
    "81.2.69.160, 10.0.0.1": "81.2.69.160",
    "unknown, 81.2.69.160": "81.2.69.160",
    "::ffff:81.2.69.160": "81.2.69.160",
    "[::ffff:81.2.69.160]:443": "81.2.69.160",
    "2001:218::1": "2001:218::1",
    "2001:0218:0:0::1": "2001:218::1",
    "[2001:218::1]": "2001:218::1",
    "[2001:218::1]:443": "2001:218::1",
    "fe80::1%eth0": "fe80::1",
}
NOT_READ = [
    *("", ",", "unknown", "_hidden", "localhost", "81.2.69", "0x51.2.69.160", "081.2.69.160", "81.2.69.256", "1" * 99),
    *("81.2.69.160:", "81.2.69.160:x", "81.2.69.160:123456", "[2001:218::1", "[2001:218::1]x", "2001:218::1]", "[]:1"),
    *("81.2.69.160 evil", "81.2.69.160\nX: y", "\u0661.2.69.160", "a" * 90 + "81.2.69.160", "x," * 40 + "81.2.69.160"),
]


@pytest.fixture(scope="module")
def vendor():
    changed = sample_document()
    campaign = next(campaign for campaign in changed["campaigns"] if campaign["id"] == 111)
    campaign["variations"][0]["segments"] = {"or": [{"and": [{"country": "United Kingdom"}]}]}
    with Vendor(changed) as vendor:
        vendor.feature = next(
            feature["key"]
            for feature in changed["features"]
            if any(rule["campaignId"] == 111 for rule in feature["rules"])
        )
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    options = {"MAXMIND_DB_PATH": GEOIP, "TRUSTED_PROXIES": "127.0.0.0/8,10.0.0.0/8", "EVENTS_PER_REQUEST": 1}
    with Gateway.of_vendor(tmp_path_factory.mktemp("addresses") / "d", vendor, **options) as gateway:
        yield gateway


@pytest.mark.parametrize(("text", "address"), READ.items(), ids=map(repr, READ))
def test_e2_an_address_is_found_in_its_usual_spellings(text, address):
    assert address_in(text) == address


@pytest.mark.parametrize("text", NOT_READ, ids=lambda text: repr(text[:30]))
def test_e2_a_text_without_an_address_is_none(text):
    assert address_in(text) is None


REPORTED = {
    "a port": ("81.2.69.160:54321", LONDON),
    "a trusted proxy with a port": ("81.2.69.160, 10.1.2.3:443", LONDON),
    "a mapped trusted proxy": ("81.2.69.160, ::ffff:10.1.2.3", LONDON),
    "brackets": ("[2001:218::1]", JAPAN),
    "brackets and a port": ("[2001:218::1]:443", JAPAN),
    "no address": ("2.125.160.216, unknown", {}),
    "markup": ("2.125.160.216, <script>", {}),
}


@pytest.mark.parametrize(("sent", "location"), REPORTED.values(), ids=REPORTED)
def test_e2_a_reported_address_is_located(gateway, sent, location):
    answer = ask(gateway.port, "GET", "/get-user-details", headers=ORIGIN | {"X-Forwarded-For": sent})
    assert answer.json()["location"] == location


@pytest.mark.parametrize("path", ["/get-user-details", "/getLocation"])
@pytest.mark.parametrize("given", ["81.2.69.160:54321", "%2081.2.69.160", "81.2.69.160,%2010.0.0.1"])
def test_e3_an_address_in_the_query_is_located(gateway, path, given):
    assert ask(gateway.port, "GET", f"{path}?ipAddress={given}").json()["location"] == LONDON


def test_e3_an_unreadable_address_in_the_query_is_not_replaced_by_another(gateway):
    headers = ORIGIN | {"X-Forwarded-For": "81.2.69.160"}
    assert ask(gateway.port, "GET", "/get-user-details?ipAddress=unknown", headers=headers).json()["location"] == {}


@pytest.mark.parametrize(
    "given", ["81.2.69.160", " 81.2.69.160", "81.2.69.160:54321", "81.2.69.160, 10.0.0.1", "[::ffff:81.2.69.160]:443"]
)
def test_e3_a_rule_for_a_country_matches_every_spelling(gateway, vendor, given):
    sent = orjson.dumps({"featureKey": vendor.feature, "userId": "u-1", "ipAddress": given})
    flag = ask(gateway.port, "POST", "/server-side/getFlag", sent).json()
    assert flag["isEnabled"] is True
    explained = gateway.request("POST", "/admin/explain", sent, gateway.admin_headers | {"Content-Type": JSON_TYPE})
    assert explained[1]["decisions"][0]["enabled"] is True


JSON_TYPE = "application/json"
SENT = {
    "81.2.69.160": "81.2.69.160",
    "81.2.69.160:54321": "81.2.69.160",
    "[2001:218::1]:443": "2001:218::1",
    "not an address": None,
    "<script>": None,
}


@pytest.mark.parametrize(("given", "expected"), SENT.items(), ids=SENT)
@pytest.mark.parametrize("way", ["event", "batch", "browser", "track"])
def test_e2_only_addresses_leave_the_gateway(gateway, vendor, given, expected, way):
    """Row E2: `visitor_ip` is an address, without port and brackets, or says nothing."""
    own = {"d": EVENT["d"] | {"visitor_ip": given}}
    act = {
        "event": lambda: ask(gateway.port, "POST", "/events/t", orjson.dumps(own)),
        "batch": lambda: ask(gateway.port, "POST", "/server-side/batch-events-v2", orjson.dumps({"ev": [own]})),
        "browser": lambda: ask(
            gateway.port, "POST", "/events/t", orjson.dumps(EVENT), ORIGIN | {"VWO-X-Forwarded-For": given}
        ),
        "track": lambda: ask(
            gateway.port,
            "POST",
            "/server-side/trackEvent",
            orjson.dumps({"eventName": "purchase", "userId": "u", "ipAddress": given}),
        ),
    }[way]
    (event,) = new_events(gateway, vendor, 1, act)
    assert event["d"].get("visitor_ip") in ((expected,) if expected else (None, ""))


def request_from(peer, *headers):
    return Request(b"GET", b"/", b"", list(headers), peer=peer)


NAMED = {
    "X-Real-IP": ("X-Real-IP", "81.2.69.160"),
    "CF-Connecting-IP": ("cf-connecting-ip", "81.2.69.160"),
    "Forwarded": ("Forwarded", "for=2.125.160.216;proto=http, For=81.2.69.160;proto=https;by=10.0.0.9, for=10.0.0.1"),
    "Forwarded with a port": ("Forwarded", 'proto=https;for="81.2.69.160:4711"'),
    "Forwarded by a forger": ("Forwarded", 'for="1.2.3.4, for=81.2.69.160'),
}


@pytest.mark.parametrize(("name", "value"), NAMED.values(), ids=NAMED)
def test_e4_one_option_names_the_header(name, value):
    request = request_from("10.0.0.2", (b"X-Forwarded-For", b"2.125.160.216"), (name.encode(), value.encode()))
    trusted = [ip_network("10.0.0.0/8")]
    assert ClientAddress(trusted, name)(request) == "81.2.69.160"
    assert ClientAddress(trusted)(request) == "2.125.160.216"
    assert ClientAddress((), name)(request) == "10.0.0.2"


def test_e4_forwarded_brackets_and_hidden_names():
    trusted = ClientAddress([ip_network("10.0.0.0/8")], "Forwarded")
    address = lambda value: trusted(request_from("10.0.0.2", (b"forwarded", value)))  # noqa: E731
    assert address(b'for="[2001:db8:cafe::17]:4711"') == "2001:db8:cafe::17"
    assert address(b"for=_hidden") == address(b"for=unknown") == address(b"proto=https") == ""


def test_e4_forwarded_names_the_protocol_too():
    proxies = ClientAddress([ip_network("10.0.0.0/8")], "Forwarded")
    assert proxies.reports_https("10.0.0.1", {"Forwarded": "for=1.2.3.4;proto=http, for=10.0.0.7;proto=https"})
    assert not proxies.reports_https("10.0.0.1", {"Forwarded": "proto=https, for=10.0.0.7"})
    assert not proxies.reports_https("10.0.0.1", {"X-Forwarded-Proto": "https"})
    assert not proxies.reports_https("192.0.2.1", {"Forwarded": "proto=https"})


def test_e1_all_lines_are_joined_and_read_from_the_right(gateway):
    """Row E1."""
    sent = ORIGIN | lines("X-Forwarded-For", "2.125.160.216", "81.2.69.160")
    assert ask(gateway.port, "GET", "/get-user-details", headers=sent).json()["location"] == LONDON


def test_e4_the_option_reaches_the_gateway(tmp_path, vendor):
    options = {"MAXMIND_DB_PATH": GEOIP, "TRUSTED_PROXIES": "127.0.0.1", "TRUSTED_ADDRESS_HEADER": "X-Real-IP"}
    with Gateway.of_vendor(tmp_path / "d", vendor, **options) as gateway:
        for name, location in (("X-Real-IP", LONDON), ("X-Forwarded-For", {})):
            answer = ask(gateway.port, "GET", "/get-user-details", headers=ORIGIN | {name: "81.2.69.160"})
            assert answer.json()["location"] == location
