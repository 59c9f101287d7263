"""Rows D4 to D17: what a gateway responds to requests that are odd, as bytes on a socket."""

import itertools

import orjson
import pytest
from process import ROOT, Gateway, sample_document
from sdk.wire import ask, exchange, parse, request_bytes
from vendor import Vendor

SETTINGS = ROOT / "conf" / "sample-settings.json"
FEATURE = sample_document()["features"][0]["key"]


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    options = {"ALIASING_ENABLED": "true", "WEBHOOK_TOKEN": "let-me-in-please-1"}
    with Gateway.of_vendor(tmp_path_factory.mktemp("front") / "d", vendor, **options) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log()


def nested(levels):
    return b'{"featureKey":"%b","userId":"u","customVariables":{"a":%b1%b}}' % (
        FEATURE.encode(),
        b"[" * levels,
        b"]" * levels,
    )


BODY_PATHS = [
    *("/server-side/getFlag", "/server-side/trackEvent", "/user-alias/setUserAlias", "/evaluate-event-dsl"),
    *("/events/t", "/admin/explain"),
]


@pytest.mark.parametrize("levels", [70, 300, 1020, 5000])
@pytest.mark.parametrize("path", BODY_PATHS)
def test_d4_a_body_with_too_many_levels_is_a_400(gateway, path, levels):
    headers = gateway.admin_headers | {"Content-Type": "application/json"} if path.startswith("/admin") else {}
    body = nested(levels) if path != "/events/t" else b'{"d":{"event":{"name":"x","props":%b}}}' % nested(levels)
    answer = ask(gateway.port, "POST", path, body, headers)
    assert answer.status == 400
    assert ask(gateway.port, "GET", "/admin/events", headers=gateway.admin_headers).status == 200


def test_d4_a_body_with_few_levels_is_served(gateway):
    assert ask(gateway.port, "POST", "/server-side/getFlag", nested(50)).status == 200


@pytest.mark.parametrize(
    "name", ["x\r\nSet-Cookie: a=b", "x\0y", "n" * 900_000, 'quote"\\', "k\u00e4se"], ids=lambda name: repr(name[:9])
)
def test_d4_the_warning_is_printable_and_short(gateway, name):
    for fields in ({"attributes": {name: [1]}}, {"attributes": {name: {"a": 1}}}, {"attributeKey": name}):
        sent = orjson.dumps({"userId": "u", **fields})
        answer = ask(gateway.port, "POST", "/server-side/setAttribute", sent)
        assert (answer.status, answer.body) == (200, b"")
        assert "set-cookie" not in answer.headers
        warning = answer.headers.get("warning", '199 - "x"')
        assert len(warning) <= 210
        assert warning.isascii()
        assert warning.isprintable()


VERSIONS = {"HTTP/1.1": None, "HTTP/1.0": None, "HTTP/0.9": 505, "HTTP/2.0": 505, "": 505}
EXTRAS = {
    "upgrade": "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "expectation": "Connection: Upgrade\r\nUpgrade: h2c\r\nExpect: x\r\n",
    "many headers": "Connection: Upgrade\r\nUpgrade: h2c\r\n" + "A: b\r\n" * 200,
    "long body": "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 9999999999\r\n",
}
STATUS = {"expectation": 417, "many headers": 431, "long body": 413}


@pytest.mark.parametrize("tail", ["", "FOO\r\n\r\n", "GET /0 HTTP/0.9\r\n\r\n", "\0\0"], ids=repr)
@pytest.mark.parametrize(("version", "extra"), list(itertools.product(VERSIONS, EXTRAS)))
def test_d4_a_rejected_upgrade_is_no_internal_error(gateway, version, extra, tail):
    """Row D4: `GET /0` with Upgrade, which is then rejected for another reason."""
    data = f"GET /0 {version}".rstrip() + f"\r\nHost: x\r\nConnection: close\r\n{EXTRAS[extra]}\r\n{tail}"
    answer, _ = parse(exchange(gateway.port, data.encode()))
    assert answer.status in {STATUS.get(extra, 404), VERSIONS[version] or 404}


def test_d13_a_byte_order_mark_before_json_is_ignored(gateway):
    body = b'\xef\xbb\xbf{"featureKey":"%b","userId":"u"}' % FEATURE.encode()
    assert ask(gateway.port, "POST", "/server-side/getFlag", body).status == 200
    assert ask(gateway.port, "POST", "/server-side/batch-events-v2", b'\xef\xbb\xbf{"ev":[]}').status == 200


def test_d13_a_byte_order_mark_in_files_is_ignored(tmp_path, vendor):
    (tmp_path / "settings.json").write_bytes(b"\xef\xbb\xbf" + SETTINGS.read_bytes())
    with Gateway(tmp_path / "offline", SETTINGS_FILE=tmp_path / "settings.json") as gateway:
        served = ask(gateway.port, "GET", "/server-side/v2-settings").body
        assert orjson.loads(served)["sdkKey"] == sample_document()["sdkKey"]
    key = sample_document()["sdkKey"]
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf" + key.encode() + b"\r\n")
    options = {"ACCOUNT_ID": sample_document()["accountId"], "SDK_KEY_FILE": tmp_path / "key"}
    with Gateway(tmp_path / "online", UPSTREAM_URL=vendor.url, **options) as gateway:
        vendor.wait_until(lambda: gateway.get("/ready")[0] == 200)


def test_d16_a_503_says_when_to_retry(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.extend([503] * 1000)
        with Gateway.of_vendor(tmp_path / "d", vendor, SOCKET_TIMEOUT=1) as gateway:
            for method, path in (
                ("GET", "/ready"),
                ("GET", "/server-side/v2-settings"),
                ("POST", "/server-side/getFlag"),
            ):
                answer = parse(exchange(gateway.port, request_bytes(method, path, b"{}", {})))[0]
                assert answer.status == 503, path
                assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("query", ["", "?a=999", "?accountId=123456&sdkKey=other"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", nested(300)], ids=repr)
def test_d17_set_attribute_is_always_a_200(gateway, body, query):
    """Row D17: as the vendor documents. The reason of a rejection is in a header."""
    answer = ask(gateway.port, "POST", f"/server-side/setAttribute{query}", body)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["warning"].startswith('199 - "')
