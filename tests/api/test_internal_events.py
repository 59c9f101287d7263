"""INTERNAL_EVENTS: events of SDKs about themselves are forwarded, sampled or discarded, in each environment."""

import zlib

import orjson
import pytest
from metrics import samples_of, scrape
from process import sample_document
from several import ACCOUNTS, KEYS, KeyedVendor, balance, block, document, gateway_of, statuses, write

from tornado_gateway.environments.internal_events import DROP, FORWARD, NAMES, SAMPLE, SAMPLE_EVERY, is_discarded

POLICIES = {"production": FORWARD, "staging": SAMPLE, "other": DROP}
SINGLE, BATCH, DEBUGGED = 30, 30, 40  # events and decisions of each environment
FEATURE = "new-checkout"


def blocks(**policies):
    return [block(name, internal_events=policy) for name, policy in (POLICIES | policies).items()]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Three environments whose features have a debugger, so that decisions make a debug event as well."""
    features = [{**feature, "isDebuggerEnabled": True} for feature in sample_document()["features"]]
    directory = tmp_path_factory.mktemp("internal")
    with KeyedVendor() as vendor:
        for name, key in KEYS.items():
            vendor.environments[key] = document(ACCOUNTS[name], key, features=features)
        with gateway_of(directory, vendor, *blocks(), EVENTS_PER_REQUEST=1, POLLING_TIME=1000) as gateway:
            vendor.wait_until(lambda: gateway.get("/ready")[0] == 200)
            vendor.wait_until(lambda: all(part["settings"]["hash"] for part in statuses(gateway).values()))
            yield gateway, vendor, directory / "data.toml"


def events_of(key, name, prefix, count):
    props = {"vwo_envKey": key}
    return [{"d": {"msgId": f"{prefix}-{n}", "event": {"name": name, "props": props}}} for n in range(count)]


def arrived(vendor, prefix):
    return sorted(event["d"]["msgId"] for event in vendor.events if event["d"]["msgId"].startswith(f"{prefix}-"))


def kept(policy, events):
    every = {FORWARD: 1, SAMPLE: SAMPLE_EVERY, DROP: 10**12}[policy]
    return sorted(one["d"]["msgId"] for one in events if zlib.crc32(orjson.dumps(one)) % every == 0)


def wait_for_delivery(gateway, vendor):
    vendor.wait_until(lambda: all(part["events"]["waiting"] == 0 for part in statuses(gateway).values()))


@pytest.mark.parametrize("name", POLICIES)
def test_clients_events_are_forwarded_by_the_policy_of_their_environment(setting, name):
    gateway, vendor, _ = setting
    key, before = KEYS[name], statuses(gateway)[name]["events"]
    single, batch = (
        events_of(key, "vwo_fmeSdkInit", f"{name}S", SINGLE),
        events_of(key, "vwo_sdkDebug", f"{name}B", BATCH),
    )
    visitor = events_of(key, "purchase", f"{name}V", 1)
    for event in [*single, *single, *visitor]:  # again, as after a time-out: its fate is the same
        assert gateway.post("/events/t", event) == (200, {"success": True})
    assert gateway.post("/server-side/batch-events-v2", {"ev": [*batch, *visitor]}) == (200, {"success": True})
    wait_for_delivery(gateway, vendor)
    policy = POLICIES[name]
    assert arrived(vendor, f"{name}S") == sorted(2 * kept(policy, single))
    assert arrived(vendor, f"{name}B") == kept(policy, batch)
    assert arrived(vendor, f"{name}V") == [f"{name}V-0"] * 2
    events = statuses(gateway)[name]["events"]
    discarded = 2 * (SINGLE - len(kept(policy, single))) + BATCH - len(kept(policy, batch))
    for count in ("discarded", "discarded_internal"):
        assert events[count] - before[count] == discarded
    assert events["received"] - before["received"] == 2 * SINGLE + BATCH + 2
    assert balance(statuses(gateway)[name]) == 0
    assert (policy == SAMPLE) == (0 < discarded < 2 * SINGLE + BATCH)


@pytest.mark.parametrize(("name", "number"), [("production", 1), ("other", 0)])
def test_usage_statistics_too(setting, name, number):
    gateway, vendor, _ = setting
    (stats,) = events_of(KEYS[name], "vwo_sdkUsageStats", f"{name}U", 1)
    before = statuses(gateway)[name]["events"]["discarded_internal"]
    assert gateway.post("/events/t?a=888888", stats)[0] == 200
    vendor.wait_until(lambda: len(arrived(vendor, f"{name}U")) == number)
    assert statuses(gateway)[name]["events"]["discarded_internal"] - before == 1 - number


@pytest.mark.parametrize("name", POLICIES)
def test_debug_events_of_the_gateways_own_decisions_too(setting, name):
    gateway, vendor, _ = setting
    before, sent = statuses(gateway)[name]["events"], len(vendor.events)
    for number in range(DEBUGGED):
        body = {"featureKey": FEATURE, "userId": f"{name}-{number}"}
        assert gateway.post(f"/server-side/getFlag?sdkKey={KEYS[name]}", body)[0] == 200
    wait_for_delivery(gateway, vendor)
    names = [event["d"]["event"]["name"] for event in vendor.events[sent:]]
    debug = names.count("vwo_sdkDebug")
    events = statuses(gateway)[name]["events"]
    assert events["discarded_internal"] - before["discarded_internal"] == DEBUGGED - debug
    assert events["received"] - before["received"] == len(names) + DEBUGGED - debug
    assert balance(statuses(gateway)[name]) == 0
    if POLICIES[name] != SAMPLE:
        assert debug == (DEBUGGED if POLICIES[name] == FORWARD else 0)


def test_intended_discards_are_counted_and_no_problem(setting):
    gateway, _, _ = setting
    assert statuses(gateway)["other"]["events"]["discarded_internal"] > 0
    assert [problem["code"] for problem in gateway.status()["problems"]] == []
    samples = samples_of(scrape(gateway)[0])
    labels = (("environment", "other"),)
    assert samples["fme_events_discarded_internal_total", labels] == samples["fme_events_discarded_total", labels] > 0


def test_a_reload_changes_the_policy(setting):
    """Last, because the policies of the other tests no longer hold."""
    gateway, vendor, file = setting
    write(file, *blocks(production=DROP))
    before, number = statuses(gateway)["production"]["events"]["discarded_internal"], 0

    def is_discarded_now():
        nonlocal number
        number += 1
        (event,) = events_of(KEYS["production"], "vwo_fmeSdkInit", f"reload{number}", 1)
        assert gateway.post("/events/t", event)[0] == 200
        return statuses(gateway)["production"]["events"]["discarded_internal"] > before

    vendor.wait_until(is_discarded_now)
    wait_for_delivery(gateway, vendor)
    sent = len(vendor.events)
    body = {"featureKey": FEATURE, "userId": "after-reload"}
    assert gateway.post(f"/server-side/getFlag?sdkKey={KEYS['production']}", body)[0] == 200
    wait_for_delivery(gateway, vendor)
    assert "vwo_sdkDebug" not in [event["d"]["event"]["name"] for event in vendor.events[sent:]]


def test_a_tenth_is_the_sample_and_other_events_are_never_discarded():
    documents = [b'{"d":{"msgId":"D3B0-%d"}}' % (1795456261580 + 7 * number) for number in range(10_000)]
    for name in NAMES:
        forwarded = sum(not is_discarded(SAMPLE, name, document) for document in documents)
        assert 900 < forwarded < 1100
    assert not any(is_discarded(policy, "purchase", b"{}") for policy in (FORWARD, SAMPLE, DROP))
