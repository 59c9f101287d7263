"""The OFREP provider of OpenFeature's Python SDK, unmodified, against a gateway of the sample account."""

import orjson
import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway import core

SAMPLE = sample_document()
VISITORS = 200
DEFAULTS = {"boolean": True, "string": "default", "integer": -1, "double": -1.5, "json": {"default": True}}
KINDS = {"boolean": "boolean", "string": "string", "integer": "integer", "double": "float", "json": "object"}


@pytest.fixture(scope="module")
def vendor():
    with Vendor(SAMPLE) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    with Gateway.of_vendor(tmp_path_factory.mktemp("openfeature") / "data", vendor, EVENTS_PER_REQUEST=1) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log()


@pytest.fixture(scope="module")
def client(gateway):
    api.set_provider(OFREPProvider(f"http://127.0.0.1:{gateway.port}"))
    yield api.get_client()
    api.clear_providers()


def visitor(number):
    return {"plan": ("gold", "free")[number % 2], "country": ("DE", "US", "IN")[number % 3], "age": 18 + number % 50}


def context(number, **attributes):
    return EvaluationContext(f"user-{number}", visitor(number) | attributes)


def types_of(feature_key):
    """The variables of a feature and their types, over all variations."""
    feature = next(feature for feature in SAMPLE["features"] if feature["key"] == feature_key)
    ids = {rule["campaignId"] for rule in feature["rules"]}
    campaigns = [campaign for campaign in SAMPLE["campaigns"] if campaign["id"] in ids]
    variations = [variation for campaign in campaigns for variation in campaign["variations"]]
    return {one["key"]: one["type"] for variation in variations for one in variation["variables"]}


@pytest.mark.parametrize("feature_key", [feature["key"] for feature in SAMPLE["features"]])
def test_every_value_is_that_of_get_flag(gateway, client, feature_key):
    types = types_of(feature_key)
    for number in range(VISITORS):
        body = {"userId": f"user-{number}", "featureKey": feature_key, "customVariables": visitor(number)}
        _, flag = gateway.post("/server-side/getFlag", body)
        found = client.get_boolean_details(feature_key, not flag["isEnabled"], context(number))
        assert (found.value, found.error_code) == (flag["isEnabled"], None)
        values = {one["key"]: one["value"] for one in flag["variables"]}
        for key, kind in types.items():
            get = getattr(client, f"get_{KINDS[kind]}_details")
            found = get(f"{feature_key}.{key}", DEFAULTS[kind], context(number))
            assert found.error_code is None
            assert found.value == values.get(key, DEFAULTS[kind])
            assert type(found.value) is type(DEFAULTS[kind])
            assert (found.reason == Reason.DISABLED) == (key not in values)


def test_an_unknown_flag_and_a_missing_targeting_key_are_errors_with_their_codes(client):
    found = client.get_boolean_details("unknown", True, context(1))
    assert (found.value, found.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
    found = client.get_boolean_details("new-checkout", False, EvaluationContext())
    assert (found.value, found.error_code) == (False, ErrorCode.TARGETING_KEY_MISSING)


def test_the_convention_of_the_vendors_provider_works(client):
    asked = EvaluationContext(attributes={"id": "user-1", "key": "headline"})
    assert client.get_string_details("new-checkout", "default", asked).value != "default"


def test_a_flag_of_four_evaluations_is_one_exposure(gateway, client, vendor):
    def impressions(user):
        uuid = core.visitor_uuid(str(SAMPLE["accountId"]), user)
        own = [event["d"] for event in vendor.events if event["d"]["visId"] == uuid]
        return sorted(orjson.dumps([d["event"]["props"][name] for name in ("id", "variation")]) for d in own)

    gateway.post("/server-side/getFlag", {"userId": "plain", "featureKey": "new-checkout"})
    vendor.wait_until(lambda: impressions("plain"))
    expected = len(impressions("plain"))
    asked = EvaluationContext("exposed")
    client.get_boolean_details("new-checkout", False, asked)
    for key in ("headline", "theme", "maxItems"):
        client.get_object_details(f"new-checkout.{key}", {}, asked)
    client.get_boolean_details("new-checkout", False, EvaluationContext("last"))
    vendor.wait_until(lambda: impressions("last"))
    assert len(impressions("exposed")) == expected
