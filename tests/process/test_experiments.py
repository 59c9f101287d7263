"""Experiments in running gateways: several workers, both stores, a worker that is killed."""

import os
import signal

import orjson
import pytest
from described import check_described
from metrics import samples_of, scrape
from process import Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from several import ACCOUNTS, KEYS, KeyedVendor, gateway_of, statuses
from vendor import Vendor

from tornado_gateway import core

SECONDS = 60
FEATURE, CAMPAIGN = "checkout", 4711
VISITORS = 1_500


def document():
    """The sample account with an experiment whose variations have half of the visitors each."""
    sample = sample_document()
    variations = [
        {"id": number, "name": f"V{number}", "weight": 50, "segments": {}, "variables": []} for number in (1, 2)
    ]
    campaign = {
        "id": CAMPAIGN,
        "type": "FLAG_TESTING",
        "key": "checkout_test",
        "name": "Checkout test",
        "status": "RUNNING",
        "segments": {},
        "percentTraffic": 100,
        "variations": variations,
    }
    rule = {"type": "FLAG_TESTING", "ruleKey": "test", "campaignId": CAMPAIGN}
    feature = {**sample["features"][0], "id": 4711, "key": FEATURE, "name": "Checkout", "rules": [rule]}
    return {**sample, "features": [*sample["features"], feature], "campaigns": [*sample["campaigns"], campaign]}


@pytest.fixture(params=["embedded 1", "embedded 2", pytest.param("redis 2", marks=needs_redis_server)])
def options(request, tmp_path):
    """The options of store and workers."""
    store, _, workers = request.param.partition(" ")
    if store == "embedded":
        yield {"WORKERS": workers}
        return
    with RedisServer(tmp_path / "redis") as redis:
        yield {"WORKERS": workers, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}


def experiment(gateway):
    status, body = gateway.get("/admin/experiments", gateway.admin_headers)
    assert status == 200
    check_described("/admin/experiments", "get", 200, body)
    (report,) = (one for one in body["experiments"] if one["campaign"]["id"] == CAMPAIGN)
    return report


def usage(gateway):
    status, body = gateway.get("/admin/usage", gateway.admin_headers)
    assert status == 200
    check_described("/admin/usage", "get", 200, body)
    return body


def impression(user, variation, key=None, campaign=CAMPAIGN):
    """What a server SDK sends."""
    key = key or sample_document()["sdkKey"]
    visitor = core.visitor_uuid(str(sample_document()["accountId"]), user)
    props = {"vwo_envKey": key, "id": campaign, "variation": variation, "isFirst": 1}
    event = {"name": "vwo_variationShown", "time": 1_700_000_000_000, "props": props}
    return {"d": {"msgId": f"{visitor}-1", "visId": visitor, "sessionId": 1_700_000_000, "event": event}}


def batch(gateway, numbers, variation_of):
    events = [impression(f"sdk-{number}", variation_of(number)) for number in numbers]
    path = f"/server-side/batch-events-v2?a={sample_document()['accountId']}"
    headers = {"Authorization": sample_document()["sdkKey"]}
    return gateway.request("POST", path, orjson.dumps({"ev": events}), headers)


def test_visitors_of_all_workers_survive_a_killed_one(tmp_path, options):
    options |= {"METRICS_BY_FEATURE": "true"}
    with Vendor(document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        workers = gateway.workers
        for number in range(300):
            body = {"featureKey": FEATURE, "userId": f"user-{number % 200}"}
            assert gateway.post("/server-side/getFlag", body)[0] == 200
        gateway.post("/server-side/getFlag", {"featureKey": "no-such-feature", "userId": "user"})
        assert batch(gateway, range(VISITORS), lambda number: 1 + (number % 10 < 3))[0] == 200
        for number in (1, 2):  # single events of visitors of the batch, one of them with another variation
            assert gateway.post("/events/t?en=vwo_variationShown", impression(f"sdk-{number}", 1))[0] == 200
        distinct = pytest.approx(200 + VISITORS, rel=0.01)
        vendor.wait_until(lambda: experiment(gateway)["visitors"] == distinct, SECONDS, lambda: experiment(gateway))
        vendor.wait_until(
            lambda: usage(gateway)["features"][FEATURE]["exposures"] == 300 + VISITORS + 2, SECONDS, gateway.log
        )
        victim = gateway.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        vendor.wait_until(
            lambda: victim not in gateway.worker_pids() and len(gateway.worker_pids()) == workers, SECONDS, gateway.log
        )
        vendor.wait_until(lambda: gateway.get("/ready")[0] == 200, SECONDS, gateway.log)
        vendor.wait_until(lambda: len(gateway.status()["workers"]) == workers, SECONDS, gateway.status)
        for _ in range(4 * workers):  # each at another worker
            report = experiment(gateway)
            assert report["visitors"] == distinct
            assert report["verdict"] == "mismatch"
        assert usage(gateway)["features"][FEATURE]["decisions"]["enabled"] == 300
        assert [one["key"] for one in usage(gateway)["unknown_keys"]] == ["no-such-feature"]
        vendor.wait_until(lambda: problems(gateway) == ["sample-ratio"], SECONDS, gateway.status)
        (problem,) = gateway.status()["problems"]
        assert problem["message"].startswith(f"Experiment checkout_test of feature {FEATURE}: the shares")
        samples = samples_of(scrape(gateway)[0])
        assert samples["fme_experiments_mismatched", ()] == 1
        assert samples["fme_feature_decisions_total", (("feature", FEATURE), ("outcome", "enabled"))] == 300
        assert gateway.terminate() == 0
        gateway.start("/ready")
        assert experiment(gateway)["visitors"] == distinct


def test_each_environment_has_its_experiments(tmp_path):
    with KeyedVendor() as vendor, gateway_of(tmp_path, vendor, ADMIN_TOKEN="correct-horse-battery") as gateway:
        vendor.wait_until(lambda: all(part["settings"] for part in statuses(gateway).values()), SECONDS, gateway.log)
        events = [impression(f"sdk-{number}", 1, KEYS["staging"], 102) for number in range(1_200)]
        path, headers = f"/server-side/batch-events-v2?a={ACCOUNTS['staging']}", {"Authorization": KEYS["staging"]}
        assert gateway.request("POST", path, orjson.dumps({"ev": events}), headers)[0] == 200
        expected = {"production": 0, "staging": 1, "other": 0}
        for name, mismatched in expected.items():
            status, body = gateway.get(f"/admin/experiments?environment={name}", gateway.admin_headers)
            assert status == 200
            assert [one["verdict"] for one in body["experiments"]].count("mismatch") == mismatched
        vendor.wait_until(lambda: problems(gateway) == ["sample-ratio"], SECONDS, gateway.status)
        (problem,) = gateway.status()["problems"]
        assert problem["message"].startswith("Experiment ")
        assert problem["environment"] == "staging"
        samples = samples_of(scrape(gateway)[0])
        for name, mismatched in expected.items():
            assert samples["fme_experiments_mismatched", (("environment", name),)] == mismatched


def problems(gateway):
    return [problem["code"] for problem in gateway.status()["problems"]]
