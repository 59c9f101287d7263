"""The gateway as its users meet it: a real process, real HTTP, a vendor that looks at what arrives."""

import http.client

import orjson
import pytest
from process import ROOT, SAMPLE_SETTINGS, Gateway, sample_document
from vendor import Fault, Vendor

from tornado_gateway import core

OFF = {"isEnabled": False, "variables": []}
GOLD = {"featureKey": "new-checkout", "userId": "user-1", "customVariables": {"plan": "gold"}}


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    with Gateway.of_vendor(tmp_path_factory.mktemp("gateway") / "data", vendor, EVENTS_PER_REQUEST=1) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def expected():
    """What the core decides for a visitor of the sample account."""
    settings = core.compile_settings(sample_document())

    def decide(fields):
        context = core.context_from_json(fields, fields.get("userId") or fields["id"])
        return orjson.loads(core.decide(settings, fields["featureKey"], context).body)

    return decide


def new_events(vendor, gateway, path, body, count):
    """What arrives upstream because of a request, when the events of earlier ones have arrived."""
    vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, describe=lambda: "nothing waits")
    before = len(vendor.events)
    status, answer = gateway.post(path, body)
    assert status == 200
    return vendor.wait_for_events(before + count)[before:], answer


# getFlag


@pytest.mark.parametrize(
    "fields",
    [
        GOLD,
        GOLD | {"userId": "user-2"},
        GOLD | {"customVariables": {}},
        {"featureKey": "new-checkout", "id": "user-1", "customVariables": {"plan": "gold"}},
        {"featureKey": "dark-mode", "userId": "user-2"},
        {"featureKey": "landing-page", "userId": "u", "platformVariables": {"webTestingCampaigns": '{"7":"2"}'}},
        {"featureKey": "loyalty", "userId": "user-1", "customVariables": {"points": 5001}},
    ],
    ids=["experiment", "other variation", "rollout only", "id", "partial rollout", "web testing", "comparison"],
)
def test_getflag_answers_what_the_core_decides(gateway, expected, fields):
    status, answer = gateway.post("/server-side/getFlag", fields)
    assert (status, answer) == (200, expected(fields))
    assert answer["isEnabled"]


def test_a_disabled_flag_has_an_empty_list_of_variables(gateway):
    assert gateway.post("/server-side/getFlag", {"featureKey": "dark-mode", "userId": "user-1"}) == (200, OFF)
    assert gateway.post("/server-side/getFlag", {"featureKey": "no-such", "userId": "user-1"}) == (200, OFF)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "ignored", "userId": "user-1"},
        {"eventName": "left over", "attributeKey": "left over", "eventProperties": None, "custom": {"x": [1]}},
        {"sessionId": "not a number", "postSegmentationVariables": "no list", "bucketingSeed": "  "},
    ],
    ids=["userId wins over id", "leftovers of earlier calls", "odd context"],
)
def test_what_does_not_belong_is_ignored(gateway, expected, change):
    assert gateway.post("/server-side/getFlag", GOLD | change) == (200, expected(GOLD))


def test_a_numeric_id_is_its_text(gateway, expected):
    status, answer = gateway.post("/server-side/getFlag", GOLD | {"userId": 12345})
    assert (status, answer) == (200, expected(GOLD | {"userId": "12345"}))


def test_of_duplicate_keys_the_last_counts(gateway, expected):
    body = b'{"featureKey":"no-such","featureKey":"new-checkout","userId":"user-1","customVariables":{"plan":"gold"}}'
    assert gateway.post("/server-side/getFlag", body) == (200, expected(GOLD))


@pytest.mark.parametrize(
    "path", ["//server-side/getFlag", "/server-side/getFlag?accountId=123456&sdkKey=sample-sdk-key-0123456789abcdef"]
)
def test_the_path_may_be_written_in_the_clients_way(gateway, expected, path):
    assert gateway.post(path, GOLD) == (200, expected(GOLD))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        ({"userId": "u"}, "featureKey is required"),
        ({"featureKey": " ", "userId": "u"}, "featureKey is required"),
        ({"featureKey": 7, "userId": "u"}, "featureKey must be a string"),
        ({"featureKey": "f"}, "userId is required"),
        ({"featureKey": "f", "userId": ""}, "userId is required"),
        ({"featureKey": "f", "userId": True}, "userId is required"),
    ],
    ids=str,
)
def test_a_mistake_of_the_client_is_a_400_that_names_it(gateway, body, message):
    status, answer = gateway.post("/server-side/getFlag", body)
    assert status == 400
    assert answer["status"] == 0
    assert message in answer["error"]


@pytest.mark.parametrize("query", ["accountId=1", "sdkKey=other", "accountId=123456&sdkKey=x"])
def test_another_account_is_refused(gateway, query):
    status, answer = gateway.post(f"/server-side/getFlag?{query}", GOLD)
    assert (status, answer["error"]) == (400, "accountId or sdkKey does not match this gateway")


def test_impressions_arrive_upstream_in_order(gateway, vendor):
    events, _ = new_events(vendor, gateway, "/server-side/getFlag", GOLD | {"ipAddress": "192.0.2.1"}, 2)
    props = [event["d"]["event"]["props"] for event in events]
    assert [(p["id"], p["variation"]) for p in props] == [(101, 1), (102, 1)]
    assert events[0]["d"]["visId"] == core.visitor_uuid("123456", "user-1")
    assert events[0]["d"]["visitor"]["props"]["ip"] == "192.0.2.1"
    call = next(call for call in reversed(vendor.calls) if call.path.endswith("batch-events-v2"))
    assert call.query["a"] == "123456"
    assert call.headers["Authorization"] == call.query["env"] == sample_document()["sdkKey"]


# trackEvent and setAttribute


def test_an_event_of_a_metric_is_taken(gateway, vendor):
    fields = {"eventName": "purchase", "userId": "user-1", "eventProperties": {"price": 49.5, "sku": "A-1"}}
    (event,), answer = new_events(vendor, gateway, "/server-side/trackEvent", fields, 1)
    assert answer == {"purchase": True}
    assert event["d"]["event"]["name"] == "purchase"
    assert (
        event["d"]["event"]["props"] | {"price": 49.5, "sku": "A-1", "isCustomEvent": True}
        == event["d"]["event"]["props"]
    )


def test_an_event_of_no_metric_is_not(gateway):
    fields = {"eventName": "nothing", "userId": "user-1", "eventProperties": None}
    assert gateway.post("/server-side/trackEvent", fields) == (200, {"nothing": False})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"userId": "u"}, "eventName is required"),
        ({"eventName": "purchase"}, "userId is required"),
        ({"eventName": "purchase", "userId": "u", "eventProperties": [1]}, "eventProperties: expected an object"),
    ],
    ids=str,
)
def test_trackevent_names_what_is_wrong(gateway, fields, message):
    status, answer = gateway.post("/server-side/trackEvent", fields)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("fields", "attributes"),
    [
        ({"attributeKey": "tier", "attributeValue": "gold"}, {"tier": "gold"}),
        ({"attributeKey": "age", "attributeValue": 33}, {"age": 33}),
        ({"attributes": {"a": 1, "b": True, "c": ""}}, {"a": 1, "b": True, "c": ""}),
    ],
    ids=["text", "number", "several"],
)
def test_attributes_arrive_upstream(gateway, vendor, fields, attributes):
    (event,), answer = new_events(vendor, gateway, "/server-side/setAttribute", fields | {"userId": "user-1"}, 1)
    assert answer is None
    assert event["d"]["event"]["name"] == "vwo_syncVisitorProp"
    assert event["d"]["visitor"]["props"] | attributes == event["d"]["visitor"]["props"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"userId": "u"}, "attributeKey is required"),
        ({"userId": "u", "attributeKey": "a"}, "attributeValue is required"),
        ({"userId": "u", "attributes": {"a": [1]}}, "attributes.a"),
        ({"attributeKey": "a", "attributeValue": 1}, "userId is required"),
    ],
    ids=str,
)
def test_setattribute_is_always_200_and_empty_and_tells_what_is_wrong_in_a_header(gateway, fields, message):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port)
    connection.request("POST", "/server-side/setAttribute", orjson.dumps(fields))
    response = connection.getresponse()
    assert (response.status, response.read(), response.getheader("Content-Type")) == (200, b"", None)
    assert message in response.getheader("Warning")
    connection.close()


# Pages and errors


def test_unknown_paths_and_wrong_methods_are_told_in_json(gateway):
    status, answer = gateway.get("/nothing")
    assert (status, answer["status"]) == (404, 0)
    for path, allow in (("/server-side/getFlag", "POST"), ("/ready", "GET, HEAD")):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port)
        connection.request("PUT", path, b"{}")
        response = connection.getresponse()
        assert (response.status, response.getheader("Allow")) == (405, allow)
        assert orjson.loads(response.read())["status"] == 0
        connection.close()


def test_a_body_over_the_limit_is_a_413(gateway):
    status, answer = gateway.post("/server-side/getFlag", b" " * (1 << 20) + orjson.dumps(GOLD))
    assert (status, answer["status"]) == (413, 0)


def test_status_tells_what_there_is(gateway):
    status = gateway.status()
    assert status["version"]
    assert status["settings"]["source"] == "upstream"
    assert status["settings"]["age_seconds"] >= 0
    events = status["events"]
    names = ("waiting", "delivered", "dead", "rejected", "discarded")
    assert events["received"] == sum(events[key] for key in names) > 0


def test_secrets_are_neither_logged_nor_shown(gateway):
    key = sample_document()["sdkKey"]
    assert key not in gateway.log()
    assert key not in orjson.dumps(gateway.status()).decode()


# Settings


def changed_document(title):
    document = sample_document()
    for campaign in document["campaigns"]:
        for variation in campaign["variations"]:
            for variable in variation.get("variables", []):
                if variable["key"] == "headline":
                    variable["value"] = title
    return document


def headline(gateway):
    _, answer = gateway.post("/server-side/getFlag", GOLD)
    return answer["variables"][0]["value"] if answer["isEnabled"] else None


def test_a_change_is_picked_up_and_a_bad_document_is_not(tmp_path):
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, POLLING_TIME=100) as gateway:
        assert headline(gateway) == "Almost there"
        vendor.settings = orjson.dumps(changed_document("Changed"))
        vendor.wait_until(lambda: headline(gateway) == "Changed")
        vendor.settings = orjson.dumps({"features": 7})
        vendor.wait_until(lambda: gateway.status()["last_poll"]["error"])
        assert headline(gateway) == "Changed"
        assert "features" in gateway.status()["last_poll"]["error"]
        assert gateway.get("/ready")[0] == 200


def test_it_starts_from_the_stored_settings_when_upstream_is_down(tmp_path):
    with Vendor(changed_document("Stored")) as vendor:
        gateway = Gateway.of_vendor(tmp_path / "d", vendor)
        with gateway:
            assert headline(gateway) == "Stored"
            gateway.terminate()
    with gateway:
        assert headline(gateway) == "Stored"
        assert gateway.status()["settings"]["source"] == "store"
        assert gateway.get("/ready")[0] == 200


def test_without_any_settings_it_is_alive_but_not_ready_until_they_come(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(500, times=10**6))
        with Gateway.of_vendor(tmp_path / "d", vendor, POLLING_TIME=200) as gateway:
            assert gateway.get("/health") == (200, {"status": "ok"})
            status, answer = gateway.get("/ready")
            assert status == 503
            assert "500" in answer["reason"]
            assert gateway.post("/server-side/getFlag", GOLD)[0] == 503
            vendor.settings_faults.clear()
            vendor.wait_until(lambda: gateway.get("/ready")[0] == 200)
            assert headline(gateway) == "Almost there"


def test_a_settings_file_bootstraps_when_upstream_is_down(tmp_path):
    with Vendor() as vendor:
        vendor.settings_faults.append(Fault(close=True, times=10**6))
        options = {"SETTINGS_FILE": SAMPLE_SETTINGS}
        with Gateway.of_vendor(tmp_path / "d", vendor, **options) as gateway:
            assert headline(gateway) == "Almost there"
            assert gateway.status()["settings"]["source"] == "file"


def test_without_decision_required_the_three_endpoints_say_which_variable_to_set(tmp_path):
    with Gateway(tmp_path / "d", SETTINGS_FILE=SAMPLE_SETTINGS, DECISION_REQUIRED="false") as gateway:
        for path in ("getFlag", "trackEvent", "setAttribute"):
            status, answer = gateway.post(f"/server-side/{path}", GOLD)
            assert status == 403
            assert "DECISION_REQUIRED" in answer["error"]


def test_location_and_device_decide_from_the_database(tmp_path):
    database = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
    document = sample_document()
    shipping = {"featureKey": "free-shipping", "userId": "user-1"}
    with Gateway(tmp_path / "d", SETTINGS_FILE=SAMPLE_SETTINGS, MAXMIND_DB_PATH=database) as gateway:
        settings = core.compile_settings(document)
        for address, location in (
            ("216.160.83.56", {"country": "United States", "region": "Washington", "city": "Milton"}),
            ("81.2.69.160", {"country": "United Kingdom", "region": "England", "city": "London"}),
            ("10.0.0.1", {}),
        ):
            fields = shipping | {"ipAddress": address}
            known = core.context_from_json(
                fields | {"_vwo": {"location": location, "userAgent": {"os": "x"}}}, "user-1"
            )
            wanted = orjson.loads(core.decide(settings, "free-shipping", known).body)
            assert gateway.post("/server-side/getFlag", fields) == (200, wanted)
