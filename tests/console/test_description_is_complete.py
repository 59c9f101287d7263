"""Row H4: fields, limits and request fields in the API description and docs/endpoints.md are those of the code."""

import http.client
import math
import re
from urllib.parse import urlencode

import orjson
import pytest
from described import check_described
from process import ROOT, Gateway, sample_document
from several import KEYS, KeyedVendor, gateway_of
from vendor import Fault, Vendor

from tornado_gateway import core
from tornado_gateway.api.cors import MAX_AGE_SECONDS
from tornado_gateway.api.ofrep.context import MAX_FEATURES
from tornado_gateway.api.ofrep.exposures import REPEAT_SECONDS
from tornado_gateway.api.router import OTHER_PREFIX
from tornado_gateway.config import OPTIONS, Config
from tornado_gateway.console.insight.live import MAX_SECONDS
from tornado_gateway.console.openapi import DOCUMENT
from tornado_gateway.console.recent_events import RESPONSE_BYTES, SHOWN_BYTES
from tornado_gateway.core.context import FIELDS
from tornado_gateway.enrichment.lists import FRESH_SECONDS
from tornado_gateway.environments.slow_patterns import MOST_NAMES
from tornado_gateway.events import flusher
from tornado_gateway.experiments.features import STALE_SECONDS
from tornado_gateway.experiments.monitor import MERGE_SECONDS
from tornado_gateway.http.fields import MAX_DIGITS, MAX_DOCUMENT_BYTES, MAX_ID_BYTES, MAX_LEVELS, MAX_TEXT_BYTES
from tornado_gateway.telemetry.attempts import FAILURES, FAILURES_OF_ADDRESS, PERIOD_SECONDS
from tornado_gateway.telemetry.series import RINGS
from tornado_gateway.telemetry.turns import LONGEST_WAIT_SECONDS

ENDPOINTS = (ROOT / "docs" / "endpoints.md").read_text()
TOKEN = "correct-horse-battery"  # of operators and of the webhook
GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"
OPERATIONS = [
    (path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]
IDS = [f"{method} {path}" for path, method, _ in OPERATIONS]
# Objects whose fields are not ours: documents of VWO and of clients, and this description itself.
FOREIGN = {
    "/server-side/v2-settings get 200",
    "/server-side/v2-pull get 200",
    "/openapi.json get 200",
    "RecentEvent/document",
    "Evaluation/value",
    "Explained/change/fields",
    "Step/actual",
    "Step/node",
    "RuleVariable/value",
    "Variable/value",
}


# --- Fields of responses ---


def request(gateway, method, path, query=None, body=None, token=TOKEN):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Authorization": f"Bearer {token}"}
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method.upper(), target, None if body is None else orjson.dumps(body), headers)
        response = connection.getresponse()
        kind = response.getheader("Content-Type") or ""
        is_stream = kind.startswith("text/event-stream")  # which does not end by itself
        return response.status, kind, response.readline() if is_stream else response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with something in every part of its pages: events, a dead letter, a location database, problems."""
    options = {"ADMIN_TOKEN": TOKEN, "WEBHOOK_TOKEN": TOKEN, "MAXMIND_DB_PATH": GEOIP, "FLUSH_EVENTS_INTERVAL": "0.2"}
    options["STREAM_MAX_CONNECTIONS"] = "0"  # a stream ends at once
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(data_dir, vendor, **options) as gateway:
        vendor.event_faults.append(Fault(400, times=10**6, refuses=lambda event: "bad" in str(event)))
        gateway.post("/events/t", {"d": {"visId": "x", "event": {"name": "bad"}}})
        gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "user-1"})
        gateway.wait_for_dead_letters(1)
        yield gateway


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_h4_each_field_of_a_response_is_described(gateway, path, method, operation):
    examples = [p for p in operation.get("parameters", ()) if "example" in p]
    query = {p["name"]: p["example"] for p in examples if p["in"] == "query"}
    target = path.format(**{p["name"]: p["example"] for p in examples if p["in"] == "path"})
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    if path == "/admin/session" and method != "get":
        body = {"token": TOKEN}
    if path == "/admin/events/requeue":
        body = {"ids": []}  # the dead letter is for the other tests
    status, kind, data = request(gateway, method, target, query, body)
    assert status == (404 if path == "/admin/events/edit" else 200), data
    if kind.startswith("application/json") and data:
        check_described(path, method, status, orjson.loads(data))


VISITORS = [
    {"userId": "user-1", "ipAddress": "81.2.69.160", "userAgent": IPHONE, "customVariables": {"plan": "gold"}},
    {"userId": "user-2", "customVariables": {"customer": "member", "points": 6000, "referrer": "x"}},
    {"userId": "user-3", "featureKey": "no-such-feature"},
    *({"userId": f"user-{number}"} for number in range(4, 12)),
]


@pytest.mark.parametrize("visitor", VISITORS, ids=lambda visitor: visitor["userId"])
def test_h4_each_field_of_an_explanation_is_described(gateway, visitor):
    status, _, data = request(gateway, "post", "/admin/explain", body=visitor)
    check_described("/admin/explain", "post", status, orjson.loads(data))


def test_h4_fields_of_what_is_wrong_are_described(tmp_path):
    """Without settings, and with deliveries that fail."""
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(401, times=10**6))
        vendor.event_faults.append(Fault(403, times=10**6))
        with Gateway.of_vendor(tmp_path / "data", vendor, ADMIN_TOKEN=TOKEN, FLUSH_EVENTS_INTERVAL="0.2") as gateway:
            gateway.post("/events/t", {"d": {"visId": "x", "event": {"name": "good"}}})
            vendor.wait_until(lambda: gateway.status()["last_flush"]["error"], describe=gateway.status)
            for path in ("/ready", "/status", "/admin/overview", "/admin/features", "/admin/events"):
                status, _, data = request(gateway, "get", path)
                check_described(path, "get", status, orjson.loads(data))
            for path in ("/admin/overview", "/admin/session"):
                status, _, data = request(gateway, "get", path, token="wrong")
                assert status == 401
                check_described(path, "get", status, orjson.loads(data))


def test_h4_the_fields_of_environments_are_described(tmp_path):
    with KeyedVendor() as vendor, gateway_of(tmp_path, vendor, ADMIN_TOKEN=TOKEN) as gateway:
        vendor.wait_until(lambda: len(gateway.status().get("environments", ())) == len(KEYS), describe=gateway.status)
        for path in ("/ready", "/status", "/admin/overview", "/admin/events"):
            status, _, data = request(gateway, "get", path)
            check_described(path, "get", status, orjson.loads(data))


def open_objects(schema, place, seen):
    """The places of objects without a list of fields."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            seen.add(name)
            yield from open_objects(DOCUMENT["components"]["schemas"][name], name, seen)
        return
    is_object = "object" in schema.get("type", ()) and "properties" not in schema
    is_open = is_object and not isinstance(schema.get("additionalProperties"), dict)
    if is_open or not set(schema) - {"description"}:
        yield place
    for name, part in schema.get("properties", {}).items():
        yield from open_objects(part, f"{place}/{name}", seen)
    values = schema.get("additionalProperties")
    parts = [*schema.get("anyOf", ()), *([values] if isinstance(values, dict) else [])]
    for part in [*parts, *([schema["items"]] if "items" in schema else [])]:
        yield from open_objects(part, place, seen)


def test_h4_only_foreign_documents_have_fields_without_a_description():
    seen, found = set(), set()
    for path, method, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                found |= set(open_objects(content["schema"], f"{path} {method} {status}", seen))
    assert found == FOREIGN


# --- Fields of requests ---


class Recorded(dict):
    """A body that remembers which fields were asked for; those of the table are found in a body that has them."""

    def __init__(self):
        super().__init__(_wingify={})
        self.read = set()

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.read.add(name)
        return False


@pytest.mark.parametrize("name", ["FlagRequest", "TrackRequest", "AttributeRequest", "ExplainRequest"])
def test_h4_the_fields_of_a_visitor_are_those_that_are_read(name):
    fields = Recorded()
    core.context_from_json(fields, "user-1")
    own = {
        "FlagRequest": {"featureKey"},
        "TrackRequest": {"eventName", "eventProperties"},
        "AttributeRequest": {"attributeKey", "attributeValue", "attributes"},
        "ExplainRequest": {"featureKey", "version"},
    }
    described = set(DOCUMENT["components"]["schemas"][name]["properties"])
    assert described == fields.read | set(FIELDS) | {"userId", "id"} | own[name]


# --- Limits ---


def quantities():
    """Every limit that the texts may name, as they write it."""
    config = Config()
    shortest, longest = re.search(rb"\{(\d),(\d)\}", OTHER_PREFIX.pattern).groups()
    assert RESPONSE_BYTES < 1_000_000
    yield from (f"{MAX_DOCUMENT_BYTES >> 10} KiB", f"{MAX_TEXT_BYTES >> 10} KiB", f"{MAX_LEVELS} levels")
    yield from (f"{MAX_DIGITS} digits", f"{MAX_ID_BYTES >> 10} KB", "1 MB")
    yield from (f"{config.max_event_bytes >> 20} MiB", f"{config.max_batch_bytes >> 20} MiB")
    yield from (f"{config.max_body_bytes} bytes", f"{config.max_batch_bytes} bytes")
    yield from (f"{SHOWN_BYTES >> 10} KB", f"{SHOWN_BYTES} bytes", f"{flusher.RESPONSE_BYTES} bytes")
    yield from (f"{FAILURES_OF_ADDRESS} wrong tokens", f"{FAILURES_OF_ADDRESS} from", f"{FAILURES} in total")
    yield from (f"{FRESH_SECONDS / 60:.0f} minutes", f"{LONGEST_WAIT_SECONDS:.0f} s")
    yield from (f"{RINGS['1h'][0]} s", f"{math.prod(RINGS['24h']) // 3600} hours")
    yield f"{MAX_SECONDS / 60:.0f} minutes"
    yield f"{int(shortest)} to {int(longest)} small"
    yield f"Max-Age: {MAX_AGE_SECONDS}"
    yield from (f"{MOST_NAMES} features", f"{MAX_FEATURES} features", f"{REPEAT_SECONDS:.0f} s")
    yield f"{REPEAT_SECONDS:.0f} to {2 * REPEAT_SECONDS:.0f} s"
    yield from (f"{STALE_SECONDS / 86_400:.0f} days", f"{MERGE_SECONDS:.0f} seconds")
    for name in ("EVENT_QUEUE_LIMIT", "EVENT_QUEUE_BYTES"):
        (option,) = (option for option in OPTIONS if option.name == name)
        yield f"{option.default} {'events' if name.endswith('LIMIT') else 'bytes'}"


OF_SDKS = {"14 seconds"}  # facts about SDKs and not about the gateway
UNITS = (
    "KiB|MiB|KB|MB|bytes|levels|digits|minutes|seconds|s|in total|wrong tokens|from|small|events|features|hours|days"
)
QUANTITY = re.compile(rf"(?<![\w.:-])\d[\d,]*(?: to \d+)? (?:{UNITS})\b|Max-Age: \d+")


def test_h4_every_limit_in_the_texts_is_one_of_the_code():
    prose = re.sub(r"```.*?```", "", ENDPOINTS, flags=re.DOTALL)
    found = {}
    for source, text in (("endpoints.md", prose), ("openapi.json", orjson.dumps(DOCUMENT).decode())):
        for quantity in QUANTITY.findall(re.sub(r"\s+", " ", text)):
            found.setdefault(quantity.replace(",", ""), source)
    known = set(quantities())
    assert {name: source for name, source in found.items() if name not in known | OF_SDKS} == {}
    assert known - set(found) == set(), "limits that neither names"


def test_h4_the_window_of_wrong_tokens_is_the_minute_of_the_texts():
    assert PERIOD_SECONDS == 60
    assert f"{FAILURES_OF_ADDRESS} wrong tokens in a minute" in re.sub(r"\s+", " ", ENDPOINTS)
