"""getFlags and the bulk evaluation of OFREP: equal to getFlag, with ETags that can be trusted."""

import gzip
import random
import re

import flags
import orjson
import pytest
from exchanges import exchange
from process import Gateway
from sdk.wire import ask

from tornado_gateway import core
from tornado_gateway.api.ofrep.context import Browser
from tornado_gateway.api.ofrep.context import read as read_context

SAMPLE, FEATURES = flags.SAMPLE, flags.FEATURES
BULK, GET_FLAGS = "/ofrep/v1/evaluate/flags", "/server-side/getFlags"


vendor, gateway = flags.fixtures(EVENTS_PER_REQUEST=1, POLLING_TIME=200)


def visitor(number):
    variables = {"plan": ("gold", "free")[number % 2], "country": ("DE", "US")[number % 3 == 0], "age": number % 70}
    return {"userId": f"user-{number}", "customVariables": variables}


def body_of(answer):
    assert answer.status == 200, answer
    return answer.body


# --- getFlags ---


@pytest.mark.parametrize("number", range(50))
def test_each_entry_is_the_body_of_get_flag_byte_for_byte(gateway, number):
    bodies = [
        body_of(ask(gateway.port, "POST", "/server-side/getFlag", orjson.dumps(visitor(number) | {"featureKey": key})))
        for key in FEATURES
    ]
    expected = b",".join(b'"%b":%b' % (key.encode(), body) for key, body in zip(FEATURES, bodies, strict=True))
    assert body_of(ask(gateway.port, "POST", GET_FLAGS, orjson.dumps(visitor(number)))) == b'{"flags":{%b}}' % expected


def test_features_come_in_the_requested_order_and_once(gateway):
    asked = {"userId": "u", "featureKeys": [FEATURES[2], "unknown", FEATURES[0], FEATURES[2]]}
    _, _, flags = exchange(gateway, "POST", GET_FLAGS, asked)
    assert list(flags["flags"]) == [FEATURES[2], "unknown", FEATURES[0]]
    assert flags["flags"]["unknown"] == {"isEnabled": False, "variables": []}


def test_details_say_why(gateway):
    asked = {"userId": "u", "featureKeys": ["new-checkout", "unknown"], "details": True}
    _, _, flags = exchange(gateway, "POST", GET_FLAGS, asked)
    details = flags["flags"]["new-checkout"]["details"]
    assert details["reason"] in ("STATIC", "TARGETING_MATCH", "SPLIT")
    assert details["campaignId"] in orjson.loads(details["exposure"])[-1]
    assert flags["flags"]["unknown"]["details"] == {"reason": "NOT_FOUND"}
    _, _, flag = exchange(gateway, "POST", "/server-side/getFlag", asked | {"featureKey": "new-checkout"})
    assert flag == flags["flags"]["new-checkout"]


def impressions(vendor, user):
    uuid = core.visitor_uuid(str(SAMPLE["accountId"]), user)
    shown = [event["d"]["event"] for event in vendor.events if event["d"]["visId"] == uuid]
    return sorted([event["props"]["id"], event["props"]["variation"]] for event in shown)


def test_impressions_are_recorded_only_on_request(gateway, vendor):
    for key in FEATURES:
        gateway.post("/server-side/getFlag", {"userId": "single", "featureKey": key})
    exchange(gateway, "POST", GET_FLAGS, {"userId": "silent"})
    code, headers, _ = exchange(gateway, "POST", GET_FLAGS, {"userId": "loud", "impressions": True})
    assert code == 200
    assert "etag" not in headers
    gateway.post("/server-side/getFlag", {"userId": "last", "featureKey": "new-checkout"})
    vendor.wait_until(lambda: impressions(vendor, "last") and impressions(vendor, "loud"))
    assert impressions(vendor, "silent") == []
    # The bucket depends on the user, so the two are compared by the number of features that recorded something.
    _, _, flags = exchange(gateway, "POST", GET_FLAGS, {"userId": "loud", "details": True})
    exposed = [orjson.loads(one["details"].get("exposure", "[]")) for one in flags["flags"].values()]
    assert impressions(vendor, "loud") == sorted(pair[:2] for pairs in exposed for pair in pairs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"featureKeys": "new-checkout"}, "featureKeys must be a list of at most 1000 texts"),
        ({"featureKeys": [1]}, "featureKeys must be a list of at most 1000 texts"),
        ({"featureKeys": ["f"] * 1001}, "featureKeys must be a list of at most 1000 texts"),
        ({"impressions": "yes"}, "impressions must be true or false"),
        ({"details": 1}, "details must be true or false"),
        ({"userId": ""}, "userId is required and must be a non-empty string"),
    ],
)
def test_invalid_fields_are_named(gateway, fields, message):
    code, _, body = exchange(gateway, "POST", GET_FLAGS, {"userId": "u"} | fields)
    assert (code, body["status"], body["error"]) == (400, 0, message)


# --- Exposures ---


def test_a_tracked_exposure_is_the_impression_of_the_decision(gateway, vendor):
    _, _, bulk = exchange(gateway, "POST", BULK, {"context": {"targetingKey": "page"}})
    shown = [flag["metadata"]["exposure"] for flag in bulk["flags"] if flag["key"] in ("new-checkout", "dark-mode")]
    expected = sorted(pair[:2] for text in shown for pair in orjson.loads(text))
    asked = {"userId": "page", "exposures": [*shown, shown[0], "[[999999,1]]"]}
    code, _, body = exchange(gateway, "POST", "/server-side/trackExposure", asked)
    assert (code, body) == (200, {"tracked": len(expected)})
    vendor.wait_until(lambda: len(impressions(vendor, "page")) >= len(expected))
    assert impressions(vendor, "page") == expected
    _, _, metrics = exchange(gateway, "GET", "/metrics")
    assert re.search(rb'fme_exposures_total\{result="unknown"\} [1-9]', metrics)


@pytest.mark.parametrize(
    "exposures",
    [
        None,
        [],
        "x",
        ["x"],
        ["{}"],
        ["[1]"],
        ["[[1]]"],
        ["[[1,2,3,4]]"],
        ["[[[],1]]"],
        ["[[true,1]]"],
        ["[[1,1]]"] * 101,
    ],
)
def test_invalid_exposures_are_rejected(gateway, exposures):
    asked = {"userId": "u", "exposures": exposures}
    code, _, body = exchange(gateway, "POST", "/server-side/trackExposure", asked)
    assert (code, body["error"].split(" of ")[0]) == (400, "exposures must be a list")


# --- ETags ---


def context_of(source):
    attributes = {"targetingKey": f"user-{source.randrange(40)}", "plan": source.choice(["gold", "free"])}
    if source.random() < 0.5:
        attributes["country"] = source.choice(["DE", "US", "IN"])
    return attributes


def test_equal_etags_mean_equal_bodies_at_two_gateways(gateway, vendor, tmp_path):
    source = random.Random(5)
    bodies = {}
    with Gateway.of_vendor(tmp_path / "other", vendor) as other:
        for number in range(300):
            asked = orjson.dumps({"context": context_of(source)})
            answer = ask((gateway, other)[number % 2].port, "POST", BULK, asked)
            assert bodies.setdefault(answer.headers["etag"], answer.body) == answer.body
    assert len(bodies) > 40


@pytest.mark.parametrize("path", [BULK, GET_FLAGS])
def test_a_known_etag_gets_304_without_a_decision(gateway, path):
    asked = {"userId": "etag", "context": {"targetingKey": "etag"}}
    _, headers, _ = exchange(gateway, "POST", path, asked)
    etag = headers["etag"]
    before = decisions(gateway)
    strong = etag.removeprefix("W/")
    for given in (etag, f'"other", {etag}', strong, strong.strip('"')):
        code, headers, body = exchange(gateway, "POST", path, asked, If_None_Match=given)
        assert (code, headers["etag"], body) == (304, etag, b"")
    assert decisions(gateway) == before
    for given in ("*", '"other"'):
        assert exchange(gateway, "POST", path, asked, If_None_Match=given)[0] == 200
    changed = {
        "userId": "etag",
        "context": {"targetingKey": "etag", "plan": "gold"},
        "customVariables": {"plan": "gold"},
    }
    assert exchange(gateway, "POST", path, changed, If_None_Match=etag)[0] == 200


def decisions(gateway):
    return re.findall(rb"^fme_decisions_total\{.*$", exchange(gateway, "GET", "/metrics")[2], re.MULTILINE)


def test_a_change_of_the_settings_changes_the_etag(gateway, vendor):
    asked = {"context": {"targetingKey": "change"}}
    _, headers, _ = exchange(gateway, "POST", BULK, asked)
    vendor.settings = orjson.dumps(SAMPLE | {"version": 77})
    vendor.wait_until(lambda: exchange(gateway, "POST", BULK, asked, If_None_Match=headers["etag"])[0] == 200)


@pytest.mark.parametrize("options", [{"STICKY_DECISIONS": True}, {"ALIASING_ENABLED": True}])
def test_with_a_store_the_etag_is_that_of_the_response(vendor, tmp_path, options):
    with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        asked = {"context": {"targetingKey": "u"}}
        _, headers, _ = exchange(gateway, "POST", BULK, asked)
        assert exchange(gateway, "POST", BULK, asked, If_None_Match=headers["etag"])[0] == 304


def test_a_large_response_is_compressed_if_the_client_accepts_it(gateway):
    asked = orjson.dumps({"context": {"targetingKey": "u"}})
    plain = ask(gateway.port, "POST", BULK, asked)
    answer = ask(gateway.port, "POST", BULK, asked, {"Accept-Encoding": "gzip, deflate"})
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(answer.body) == plain.body
    assert len(answer.body) < len(plain.body)


def test_compressed_and_plain_responses_have_the_same_weak_etag(gateway):
    """It was a strong one, which says that the bytes are the same."""
    asked = orjson.dumps({"context": {"targetingKey": "u"}})
    plain, compressed = (
        ask(gateway.port, "POST", BULK, asked, {"Accept-Encoding": coding}).headers for coding in ("identity", "gzip")
    )
    assert "content-encoding" not in plain
    assert compressed["content-encoding"] == "gzip"
    assert plain["etag"] == compressed["etag"]
    assert plain["etag"].startswith('W/"')


def test_a_rejected_get_flag_records_nothing(gateway, vendor):
    """The impression was appended before `details` was read, so a 400 counted as an exposure."""
    asked = {"userId": "rejected", "featureKey": "new-checkout"}
    assert exchange(gateway, "POST", "/server-side/getFlag", asked | {"details": "yes"})[0] == 400
    gateway.post("/server-side/getFlag", asked | {"userId": "after-rejected"})
    vendor.wait_until(lambda: impressions(vendor, "after-rejected"), 60, gateway.log)
    assert impressions(vendor, "rejected") == []


@pytest.mark.parametrize("given", [None, ""])
def test_a_browser_that_sends_no_value_gets_the_values_of_its_connection(given):
    """A page that names its unknown address as null or "" had none: location and device rules did not work."""
    body = orjson.dumps({"context": {"targetingKey": "u", "ipAddress": given, "userAgent": given}})
    visitor, _, _ = read_context(body, Browser("192.0.2.1", "Mozilla/5.0"))
    assert (visitor.ip_address, visitor.user_agent) == ("192.0.2.1", "Mozilla/5.0")


@pytest.mark.parametrize(
    ("attributes", "user_id", "variables"),
    [
        ({"targetingKey": "u", "plan": "gold", "id": "x", "key": "a"}, "u", {"plan": "gold", "id": "x", "key": "a"}),
        ({"targetingKey": 5, "fme": {"impressions": True}}, "5", {}),
        ({"targetingKey": " ", "userId": 2.5, "id": "x"}, "2.5", {"id": "x"}),
        ({"targetingKey": None, "userId": "", "id": "x" * 300}, "x" * 300, {"userId": ""}),
        ({"targetingKey": "u", "user_agent": "", "plan": "gold"}, "u", {"plan": "gold"}),
        ({"targetingKey": "u", "a": 1, "b": 1, "custom_variables": {"b": 2}}, "u", {"a": 1, "b": 2}),
    ],
)
@pytest.mark.parametrize("browser", [None, Browser(None, None)])
def test_attributes_without_a_meaning_are_custom_variables(browser, attributes, user_id, variables):
    visitor, variable, _ = read_context(orjson.dumps({"context": attributes}), browser)
    assert (visitor.user_id, visitor.custom_variables) == (user_id, variables)
    assert (variable, visitor.user_agent, visitor.ip_address) == (attributes.get("key"), None, None)
