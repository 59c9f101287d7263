"""Hostile input on every endpoint: it may be refused, but nothing fails, nothing is echoed as markup, limits hold."""

import http.client

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from process import ROOT, Gateway, sample_document
from sdk.wire import ask, exchange, parse, request_bytes
from vendor import Vendor

from tornado_gateway.api.routes import ROUTES as TABLE

BODY_LIMIT = 1 << 16  # row D6
BODY_LIMITS = {"/events/t": 1 << 20, "/server-side/batch-events-v2": 8 << 20}
PACED = "/server-side/v2-pull"  # answers once a second
MARKUP = "<script>alert(1)</script>"
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def routes() -> list[tuple[str, str]]:
    return [(route.method, route.path) for route in TABLE]


ROUTES = pytest.mark.parametrize(("method", "path"), routes(), ids=map(" ".join, routes()))
BODY_ROUTES = pytest.mark.parametrize("path", [path for method, path in routes() if method == "POST"])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """One that serves all there is, for browsers too."""
    options = {
        "CORS_CONFIG_REQUIRED": "true",
        "ALIASING_ENABLED": "true",
        "STREAM_MAX_CONNECTIONS": 0,  # a stream ends at once
        "WEBHOOK_TOKEN": "let-me-in-987654321",
        "TRUSTED_PROXIES": "127.0.0.0/8",
        "MAXMIND_DB_PATH": ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb",
    }
    folder = tmp_path_factory.mktemp("hostile")
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(folder / "d", vendor, **options) as gateway:
        yield gateway
        assert gateway.get("/ready")[0] == 200
        for trace in ("Traceback", "internal error", "Exception", "CRITICAL"):
            assert trace not in gateway.log()


def check(answer):
    """What holds for every answer, whatever was asked."""
    assert answer.status < 500, answer
    kind = answer.headers.get("content-type", "application/json")
    # No browser runs these.
    assert kind.startswith(("application/json", "application/javascript", "text/event-stream"))
    if answer.status >= 400:
        error = answer.json()
        assert error.get("status") == 0 or error["errorCode"]  # the latter is that of OFREP
    if answer.body and answer.headers.get("content-encoding") != "gzip" and not kind.startswith("text/"):
        orjson.loads(answer.body)


# Values with which decoders, maps, converters and stores have trouble.
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            *("", " ", "undefined", "null", "None", "NaN", "-0", "1e999", "\0", "\ud7ff", "\U0010ffff", "\r\nX: y"),
            *(MARKUP, "'; DROP TABLE aliases; --", "../../etc/passwd", "%s%n", "{}", "[]", "[[[", "inlist(x)"),
            *(
                "9" * 400,
                "a" * 5000,
                "__proto__",
                "wildcard(*)",
                "regex((a+)+$)",
                "1.2.3.4",
                "::1%eth0",
                "::ffff:1.2.3.4",
            ),
        ]
    ),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS.map(lambda text: text.encode("utf-8", "replace").decode()),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
NAMES = st.sampled_from(
    [
        *("featureKey", "userId", "id", "customVariables", "userAgent", "ipAddress", "variationTargetingVariables"),
        *("platformVariables", "webTestingCampaigns", "bucketingSeed", "sessionId", "postSegmentationVariables"),
        *("useIdForWeb", "_vwo", "_wingify", "isDevMode", "uuid", "location", "eventName", "eventProperties"),
        *("attributeKey", "attributeValue", "attributes", "d", "event", "name", "props", "ev", "visitor_ua"),
        *("visitor_ip", "aliasId", "dsl", "context", "stray"),
    ]
)
# The names of the protocol with values that do not belong to them; and real features, so that decisions are reached.
FIELDS = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=6)
PLAUSIBLE = st.builds(
    lambda fields, key: {"featureKey": key, "userId": "u", "eventName": "purchase", **fields},
    FIELDS,
    st.sampled_from([feature["key"] for feature in sample_document()["features"]]),
)
EVENTS = st.builds(lambda d, extra: {"d": {"event": {"name": "purchase"}, **d}, **extra}, FIELDS, FIELDS)
BATCHES = st.builds(lambda events: {"ev": events}, st.lists(EVENTS | FIELDS, max_size=3))
DEEP = st.integers(1, 3000).map(lambda depth: b'{"d":' * depth + b"1" + b"}" * depth)
DOCUMENTS = (FIELDS | PLAUSIBLE | EVENTS | BATCHES | VALUES).map(
    lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
)
BODIES = DOCUMENTS | st.binary(max_size=200) | DEEP

QUERY_NAMES = [
    *("a", "i", "accountId", "sdkKey", "api-version", "platform", "userAgent", "ipAddress", "attribute", "listId"),
    *("userId", "aliasId", "en", "env", "dh", "visitor_ua", "visitor_ip", "r", "uuid"),
]
# What the parser lets through to the routes, and what it lets through on the paths of SDKs only (row D1).
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(QUERY_NAMES),
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=60)
        | st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="#\x7f"), max_size=60)
        | st.sampled_from(
            ["%", "%zz", "%00", "%ff%fe", "%25" * 50, "[[", '["', '["x"', "[null]", "[[1]]", "{}", "+" * 99]
        )
        | st.sampled_from(["x" * 20000, "%5B%22" + "x" * 300 + "%22%5D", "123456", "1" * 500]),
    ),
    max_size=5,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))

HEADER_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("User-Agent", "Origin", "X-Forwarded-For", "X-Device-User-Agent", "VWO-X-Forwarded-For"),
            *("If-None-Match", "Accept-Encoding", "Content-Type", "Authorization", "X-Webhook-Token", "Cookie"),
        ]
    ),
    HEADER_VALUES | st.sampled_from(["gzip", "*", "," * 50, "::1, 1.2.3.4, x", MARKUP, "text/plain", '"']),
    max_size=4,
)


@ROUTES
def test_whatever_is_sent_to_an_endpoint(gateway, method, path):
    @settings(SETTINGS, max_examples=3 if path == PACED else SETTINGS.max_examples)
    @given(body=BODIES, query=QUERIES, headers=HEADERS)
    def attack(body, query, headers):
        check(ask(gateway.port, method, f"{path}?{query}", b"" if method == "GET" else body, headers))

    attack()


@ROUTES
@SETTINGS
@given(
    wrong=st.sampled_from(["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "PROPFIND", "TRACE"]),
    prefix=st.sampled_from(["", "/", "/..", "/./", "/eu01", "/%2e%2e", "//", "/server-side"]),
    body=st.binary(max_size=20),
)
def test_whatever_method_and_path(gateway, method, path, wrong, prefix, body):
    data = exchange(gateway.port, request_bytes(wrong, prefix + path, b"" if wrong == "HEAD" else body, {}))
    if wrong == "HEAD":
        assert data.split(b" ", 2)[1] < b"500"
        assert data.endswith(b"\r\n\r\n")
    else:
        check(parse(data)[0])


@ROUTES
def test_markup_comes_back_as_json_only(gateway, method, path):
    quoted = "%3Cscript%3Ealert(1)%3C/script%3E"
    names = ("userAgent", "ipAddress", "attribute", "listId", "userId", "aliasId", "accountId", "a", "i")
    query = "&".join(f"{name}={quoted}" for name in names if (method, name) != ("GET", "accountId"))
    fields = dict.fromkeys(("featureKey", "userId", "eventName", "aliasId", "attributeKey"), MARKUP)
    for target in (path, f"{path}?{query}", f"{path}{quoted}", f"/{quoted}"):
        check(ask(gateway.port, method, target, b"" if method == "GET" else orjson.dumps(fields)))


@BODY_ROUTES
def test_a_body_over_the_limit_is_refused_before_it_has_arrived(gateway, path):
    limit = BODY_LIMITS.get(path, BODY_LIMIT)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", str(limit + 1))
    connection.endheaders()  # and not one byte of the body
    answer = connection.getresponse()
    error = orjson.loads(answer.read())
    assert (answer.status, error.get("errorCode", "GENERAL"), error.get("status", 0)) == (413, "GENERAL", 0)
    connection.close()


@BODY_ROUTES
def test_a_body_of_the_limit_is_read(gateway, path):
    limit = BODY_LIMITS.get(path, BODY_LIMIT)
    answer = ask(gateway.port, "POST", path, b" " * (limit - 2) + b"{}")
    assert answer.status in (200, 400, 401)
    check(answer)


@BODY_ROUTES
def test_a_chunked_body_over_the_limit_is_refused(gateway, path):
    limit = BODY_LIMITS.get(path, BODY_LIMIT)
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    data = exchange(gateway.port, head + b"%x\r\n" % (limit + 1) + b" " * (limit + 1))
    assert parse(data)[0].status == 413
