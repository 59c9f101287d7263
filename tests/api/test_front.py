"""Rows D4 to D17: what a gateway responds to requests that are odd, as bytes on a socket."""

import itertools
import socket
import tracemalloc
import zlib
from contextlib import ExitStack

import orjson
import pytest
from process import ROOT, Gateway, sample_document
from sdk.wire import ask, exchange, parse, request_bytes
from vendor import Vendor

from tornado_gateway.http.codings import decompressed
from tornado_gateway.http.messages import too_large

SETTINGS = ROOT / "conf" / "sample-settings.json"
FEATURE = sample_document()["features"][0]["key"]


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    options = {"ALIASING_ENABLED": "true", "WEBHOOK_TOKEN": "let-me-in-please-1", "EVENTS_PER_REQUEST": 1}
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


@pytest.mark.parametrize("levels", [130, 300, 1020, 5000])
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
    "name", ["x\r\nSet-Cookie: a=b", "x\0y", "n" * 60_000, 'quote"\\', "k\u00e4se"], ids=lambda name: repr(name[:9])
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


# --- D5: Host ---

HOSTS = {
    "none": ((), 400),
    "two": (("Host: a", "Host: a"), 400),
    "two spellings": (("Host: a", "HOST: b"), 400),
    "a path": (("Host: a/b",), 400),
    "a blank": (("Host: a b",), 400),
    "a user": (("Host: u@a",), 400),
    "markup": (("Host: <a>",), 400),
    "a name": (("Host: gateway_1.example:8000",), 200),
    "IPv6": (("host: [::1]:8000",), 200),
    "empty": (("Host:",), 200),
}


@pytest.mark.parametrize("path", ["/get-user-details", "/health", "/server-side/v2-settings"])
@pytest.mark.parametrize(("lines", "status"), HOSTS.values(), ids=HOSTS)
def test_d5_http_1_1_needs_one_valid_host(gateway, path, lines, status):
    data = "\r\n".join([f"GET {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    assert parse(exchange(gateway.port, data.encode()))[0].status == status


def test_d5_http_1_0_needs_no_host(gateway):
    assert parse(exchange(gateway.port, b"GET /get-user-details HTTP/1.0\r\n\r\n"))[0].status == 200
    assert parse(exchange(gateway.port, b"GET /health HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"))[0].status == 400


def test_d5_a_host_in_a_trailer_counts_not(gateway):
    head = b"POST /events/t HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = parse(exchange(gateway.port, head + b"2\r\n{}\r\n0\r\nHost: b/c\r\nContent-Encoding: br\r\n\r\n"))[0]
    assert answer.status == 200


# --- D8, D9: browsers ---


@pytest.fixture(scope="module")
def shop(vendor, tmp_path_factory):
    """A gateway for browsers of one shop."""
    origins = "https://shop.example:443,https://*.shop.example,http://plain.example:80,https://admin.example:8443"
    options = {"CORS_CONFIG_REQUIRED": "true", "CORS_ALLOWED_ORIGINS": origins}
    with Gateway.of_vendor(tmp_path_factory.mktemp("shop") / "d", vendor, **options) as gateway:
        yield gateway


TRACING = "content-type,traceparent,baggage,sentry-trace,x-datadog-trace-id"


def test_d8_a_preflight_allows_the_requested_headers(shop):
    requested = {"Origin": "https://shop.example", "Access-Control-Request-Headers": TRACING}
    data = exchange(shop.port, request_bytes("OPTIONS", "/events/t", b"", requested))
    answer = parse(data)[0]
    assert (answer.status, answer.headers["access-control-allow-headers"]) == (204, TRACING)
    assert b"\r\nVary: Access-Control-Request-Headers\r\n" in data
    assert b"\r\nVary: Origin\r\n" in data


@pytest.mark.parametrize("requested", ["a\tb", "x" * 3000, "<script>", "a;b", ""], ids=lambda text: repr(text[:9]))
def test_d8_only_names_of_headers_are_returned(shop, requested):
    sent = {"Origin": "https://shop.example", "Access-Control-Request-Headers": requested}
    allowed = ask(shop.port, "OPTIONS", "/events/t", headers=sent).headers["access-control-allow-headers"]
    assert allowed.startswith("Content-Type, Authorization")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", "/ready", 200), ("GET", "/status", 200), ("GET", "/health", 200), ("GET", "/nothing", 404)),
        *(("PUT", "/health", 405), ("PUT", "/events/t", 405), ("GET", "/check-attribute", 400)),
        *(("POST", "/server-side/getFlag", 400), ("OPTIONS", "/ready", 204)),
    ],
)
def test_d8_errors_and_probes_can_be_read_by_the_page(shop, method, path, status):
    answer = ask(shop.port, method, path, b"[", {"Origin": "https://shop.example"})
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-expose-headers"] == "Warning, ETag, X-Request-Id, Retry-After"
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/admin/events", "/admin/nothing", "/console", "/metrics"])
def test_d8_pages_of_operators_cannot_be_read_by_the_page(shop, path):
    answer = ask(shop.port, "GET", path, headers={"Origin": "https://shop.example"} | shop.admin_headers)
    assert "access-control-allow-origin" not in answer.headers


ORIGINS = {
    "https://shop.example": True,
    "http://plain.example": True,
    "https://www.shop.example": True,
    "https://admin.example:8443": True,
    "https://admin.example": False,
    "https://a.b.shop.example": False,
    "http://www.shop.example": False,
    "https://evilshop.example": False,
    "https://www.shop.example.evil.example": False,
    "https://www.shopXexample": False,
    "https://.shop.example": False,
}


@pytest.mark.parametrize(("origin", "is_allowed"), ORIGINS.items(), ids=ORIGINS)
def test_d9_default_ports_and_one_leading_wildcard(shop, origin, is_allowed):
    answer = ask(shop.port, "GET", "/get-user-details", headers={"Origin": origin})
    assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)


# --- D10: the paths that people and probes try ---


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", "/", 200), ("HEAD", "/", 200), ("OPTIONS", "/", 204), ("OPTIONS", "/health", 204)),
        *(("GET", "/health/", 200), ("GET", "/healthz", 200), ("GET", "/ready/", 200), ("GET", "/console/", 200)),
        *(("GET", "/healthzz", 404), ("GET", "/admin/events/", 401), ("OPTIONS", "/admin/events", 401)),
    ],
)
def test_d10_usual_paths(gateway, method, path, status):
    data = exchange(gateway.port, request_bytes(method, path, b"", {}))
    assert int(data.split(b" ", 2)[1]) == status
    if method == "OPTIONS" and status == 204:
        assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in data


def test_d10_a_browser_is_sent_to_the_console(gateway):
    answer = ask(gateway.port, "GET", "/", headers={"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"})
    assert (answer.status, answer.headers["location"]) == (302, "/console")


def test_any_other_client_gets_links_that_exist(gateway):
    root = ask(gateway.port, "GET", "/").json()
    assert set(root) == {"name", "version", "links"}
    for path in root["links"].values():
        assert ask(gateway.port, "GET", path).status == 200


# --- D12: content codings ---


def gzipped(data):
    return zlib.compress(data, wbits=31)


FLAG = b'{"featureKey":"%b","userId":"u"}' % FEATURE.encode()
CODED = {
    "gzip": gzipped(FLAG),
    "x-gzip": gzipped(FLAG),
    "GZIP": gzipped(FLAG),
    "deflate": zlib.compress(FLAG),
    "deflate ": zlib.compress(FLAG, wbits=-15),
    "identity": FLAG,
}


@pytest.mark.parametrize(("coding", "body"), CODED.items(), ids=map(repr, CODED))
def test_d12_a_coded_body_is_decoded(gateway, coding, body):
    answer = ask(gateway.port, "POST", "/server-side/getFlag", body, {"Content-Encoding": coding})
    assert answer.status == 200
    assert "isEnabled" in answer.json()


def test_d12_coded_events_arrive(gateway, vendor):
    event = {"d": {"msgId": "D12", "event": {"name": "purchase", "props": {"sku": "coded"}}}}
    arrived = lambda: [found for found in vendor.events if found["d"].get("msgId") == "D12"]  # noqa: E731
    for path, body in (("/events/t", event), ("/server-side/batch-events-v2", {"ev": [event]})):
        answer = ask(gateway.port, "POST", path, gzipped(orjson.dumps(body)), {"Content-Encoding": "gzip"})
        assert answer.status == 200
    vendor.wait_until(lambda: len(arrived()) >= 2)
    assert arrived() == [event, event]


REJECTED = {
    "br": ("br", b"\x0b\x02\x80{}\x03", 415),
    "two codings": ("gzip, gzip", gzipped(gzipped(FLAG)), 415),
    "no gzip": ("gzip", FLAG, 400),
    "half": ("gzip", gzipped(FLAG)[:-9], 400),
    "more behind it": ("gzip", gzipped(FLAG) + b"x", 400),
    "bomb": ("gzip", gzipped(b" " * (300 << 20)), 413),
    "deflate bomb": ("deflate", zlib.compress(b" " * (300 << 20)), 413),
}


@pytest.mark.parametrize(("coding", "body", "status"), REJECTED.values(), ids=REJECTED)
@pytest.mark.parametrize("path", ["/server-side/getFlag", "/server-side/batch-events-v2", "/events/t"])
def test_d12_other_bodies_are_rejected(gateway, path, coding, body, status):
    answer = ask(gateway.port, "POST", path, body, {"Content-Encoding": coding})
    assert (answer.status, answer.json()["status"]) == (status, 0)


def test_d12_a_bomb_is_not_inflated_beyond_the_limit():
    bomb = gzipped(b" " * (300 << 20))
    tracemalloc.start()
    try:
        assert decompressed(bomb, b"gzip", 1 << 20, (1 << 20, too_large(1 << 20))).status == 413
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# --- D15: prefixes ---


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/as01/events/t", 200), ("/eu01//events/t", 200), ("/toolong12/events/t", 404), ("/EU01/events/t", 404)),
        *(("/a/events/t", 404), ("/as01/eu01/events/t", 404), ("/admin/events/t", 401), ("/as01/webhook", 404)),
    ],
)
def test_d15_an_unknown_prefix_is_skipped(gateway, path, status):
    body = orjson.dumps({"d": {"event": {"name": "x"}}})
    assert ask(gateway.port, "POST", path, body, {"Content-Type": "application/json"}).status == status


# --- D3 ---


def test_d3_max_connections_is_an_option(tmp_path, vendor):
    """Row D3: one more client than allowed gets a 503, and events are delivered meanwhile."""
    event = {"d": {"msgId": "D3", "event": {"name": "purchase", "props": {}}}}
    options = {"MAX_CONNECTIONS": 5, "EVENTS_PER_REQUEST": 1}
    with Gateway.of_vendor(tmp_path / "d", vendor, **options) as gateway, ExitStack() as open_clients:
        before = len(vendor.events)
        clients = [
            open_clients.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 60)) for _ in range(5)
        ]
        clients[0].sendall(request_bytes("POST", "/events/t", orjson.dumps(event), {"Connection": "keep-alive"}))
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 200 ")
        vendor.wait_for_events(before + 1)
        answer = parse(exchange(gateway.port, b""))[0]
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")


# --- D6: large batches ---


def test_d6_a_batch_of_tiny_values_is_rejected_before_it_is_read(gateway):
    """Row D6: 8 MB of `[],` took half a second of the loop."""
    body = b'{"ev":[' + b"[]," * 2_700_000 + b"[]]}"
    assert gateway.post("/server-side/batch-events-v2", body)[0] == 413


def test_d6_a_large_batch_is_read_in_pieces(gateway, vendor):
    """Row D6: the events of 2 MB arrive, each once."""
    before = len(vendor.events)
    props = {f"name-{number}": "x" * 100 for number in range(100)}
    events = [{"d": {"msgId": f"D6-{n}", "event": {"name": "purchase", "props": props}}} for n in range(180)]
    assert gateway.post("/server-side/batch-events-v2", {"ev": events})[0] == 200
    vendor.wait_for_events(before + 180)
    arrived = [event["d"]["msgId"] for event in vendor.events[before:]]
    assert sorted(arrived) == sorted(event["d"]["msgId"] for event in events)


@pytest.mark.parametrize("end", [b'"\\ud83d"]}', b"]}]", b""], ids=["a lone surrogate", "invalid", "cut"])
def test_d6_a_large_body_that_is_not_valid_is_judged_as_a_small_one(gateway, end):
    body = b'{"ev":[' + b'{"x":"' + b"y" * 1000 + b'"},'
    body += (b'{"x":"' + b"y" * 1000 + b'"},') * 400 + end
    expected = 200 if end.endswith(b"]}") else 400
    assert gateway.post("/server-side/batch-events-v2", body)[0] == expected
