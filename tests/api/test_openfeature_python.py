"""The OFREP provider of OpenFeature's Python SDK, unmodified, against a gateway of the sample account."""

import flags
import orjson
import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from tornado_gateway import core

VISITORS = 200
KINDS = {"boolean": "boolean", "string": "string", "integer": "integer", "double": "float", "json": "object"}

vendor, gateway = flags.fixtures(EVENTS_PER_REQUEST=1)


@pytest.fixture(scope="module")
def client(gateway):
    api.set_provider(OFREPProvider(f"http://127.0.0.1:{gateway.port}"))
    yield api.get_client()
    api.clear_providers()


def context(number, **attributes):
    return EvaluationContext(f"user-{number}", flags.visitor(number) | attributes)


@pytest.mark.parametrize("feature_key", flags.FEATURES)
def test_every_value_is_that_of_get_flag(gateway, client, feature_key):
    for number in range(VISITORS):
        for one in flags.expected(gateway, flags.context(number), feature_key):
            get = getattr(client, f"get_{KINDS[one.type]}_details")
            found = get(one.key, one.default, context(number))
            assert found.error_code is None
            assert found.value == one.value
            assert type(found.value) is type(one.default)
            assert (found.reason == Reason.DISABLED) == one.is_default


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
        uuid = core.visitor_uuid(str(flags.SAMPLE["accountId"]), user)
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
