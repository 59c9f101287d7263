"""Sticky decisions: what a visitor was shown stays, also after the settings change."""

import itertools

import orjson
import pytest
from process import Gateway
from vendor import Fault, Vendor

from tornado_gateway import core


def account(weights, traffic=100):
    variations = [
        {"id": number, "name": f"v{number}", "weight": weight, "variables": [variable(f"v{number}")]}
        for number, weight in enumerate(weights, 1)
    ]
    test = {"id": 2, "type": "FLAG_TESTING", "key": "t", "name": "t", "status": "RUNNING", "segments": {}}
    rollout = {"id": 1, "type": "FLAG_ROLLOUT", "key": "r", "name": "r", "status": "RUNNING", "segments": {}}
    rollout["variations"] = [{"id": 1, "name": "r", "weight": traffic, "variables": [variable("r")]}]
    rules = [
        {"type": "FLAG_ROLLOUT", "ruleKey": "rollout", "campaignId": 1, "variationId": 1},
        {"type": "FLAG_TESTING", "ruleKey": "test", "campaignId": 2},
    ]
    feature = {"id": 1, "key": "f", "name": "f", "status": "ON", "type": "FEATURE_FLAG", "metrics": [], "rules": rules}
    return {
        "version": 1,
        "accountId": 5,
        "sdkKey": "k",
        "features": [feature],
        "campaigns": [rollout, test | {"percentTraffic": traffic, "variations": variations}],
    }


def variable(text):
    return {"id": 1, "type": "string", "key": "title", "value": text}


def title(gateway, user):
    _, answer = gateway.post("/server-side/getFlag", {"featureKey": "f", "userId": user})
    return answer["variables"][0]["value"] if answer["isEnabled"] else None


def impressions_of(user, vendor):
    return sum(event["d"]["visId"] == core.visitor_uuid("5", user) for event in vendor.events)


@pytest.mark.parametrize("sticky", [True, False])
def test_a_variation_survives_a_change_of_weights_only_if_it_is_remembered(tmp_path, sticky):
    before, after = account([100, 0]), account([0, 100])
    options = {"ACCOUNT_ID": 5, "SDK_KEY": "k", "POLLING_TIME": 100, "STICKY_DECISIONS": sticky}
    with Vendor(before) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, **options) as gateway:
        assert title(gateway, "early") == "v1"
        vendor.settings = orjson.dumps(after)
        vendor.wait_until(lambda: title(gateway, f"late-{len(vendor.calls)}") == "v2")
        assert title(gateway, "early") == ("v1" if sticky else "v2")


def test_a_remembered_decision_survives_a_restart_and_sends_no_second_impression(tmp_path):
    options = {"ACCOUNT_ID": 5, "SDK_KEY": "k", "STICKY_DECISIONS": True}
    with Vendor(account([50, 50])) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, **options) as gateway:
        shown = title(gateway, "visitor")
        assert gateway.terminate() == 0
        assert impressions_of("visitor", vendor) == 2
        vendor.settings = orjson.dumps(account([50, 50], traffic=0))
        gateway.start(path="/ready")
        others = (f"another-{number}" for number in itertools.count())  # each would be remembered
        vendor.wait_until(lambda: title(gateway, next(others)) is None)
        assert title(gateway, "visitor") == shown
        assert gateway.terminate() == 0
        assert impressions_of("visitor", vendor) == 2


REQUESTS = {
    "getFlag": ("/server-side/getFlag", {"featureKey": "f"}),
    "getFlags": ("/server-side/getFlags", {"impressions": True}),
    "OFREP": ("/ofrep/v1/evaluate/flags/f", {"context": {}}),
    "OFREP, all flags": ("/ofrep/v1/evaluate/flags", {"context": {"fme": {"impressions": True}}}),
}


def test_a_decision_whose_impressions_were_rejected_is_not_remembered(tmp_path):
    """A remembered decision sends no impression, so the repetition of a request with a 503 lost the exposure."""
    options = {"ACCOUNT_ID": 5, "SDK_KEY": "k", "STICKY_DECISIONS": True, "EVENT_QUEUE_FULL": "refuse"}
    options |= {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 10}
    with Vendor(account([50, 50])) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, **options) as gateway:
        vendor.event_faults.append(Fault(status=503, times=10**9))
        statuses = [gateway.post("/server-side/getFlag", {"featureKey": "f", "userId": f"u-{n}"})[0] for n in range(20)]
        assert statuses[-1] == 503
        for user, (path, body) in REQUESTS.items():
            named = {"context": {**body["context"], "targetingKey": user}} if "context" in body else {"userId": user}
            assert gateway.post(path, body | named)[0] == 503, user
            _, flags = gateway.post("/server-side/getFlags", {"userId": user, "details": True})
            assert "exposure" in flags["flags"]["f"]["details"], user
