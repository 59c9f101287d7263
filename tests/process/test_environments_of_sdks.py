"""Real SDKs of several environments at one gateway: each gets its own settings, and nothing of another one.

Each client runs in a process of its own (tests/sdk/). The gateway is the same for all of them, with the same URL.
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from process import ROOT, sample_document
from redis_servers import RedisServer, needs_redis_server
from sdk import clients
from several import ACCOUNTS, KEYS, block, gateway_of
from vendor import Vendor

from tornado_gateway import core

NODE = "vwo-fme-node-sdk"
OLD_NODE = "vwo-fme-node-sdk-1.18"  # names no account in list checks, and has no aliases
PHONE = {"userAgent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148"}
GOLD = {"customVariables": {"plan": "gold"}}
LIST = "list-77"
KEYS_OF_OLD_SDKS = ("version", "accountId", "sdkKey", "features", "campaigns", "groups", "campaignGroups")
SECONDS = 60

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (clients.PACKAGES / NODE).exists(), reason="there are no Node SDKs here"
)


def document(name: str) -> bytes:
    """The sample account, in which the variables and the weights differ between environments."""
    more = orjson.loads((ROOT / "tests" / "data" / "sdk" / "features.json").read_bytes())
    sample = sample_document()
    campaigns = sample["campaigns"] + more["campaigns"]
    next(c for c in campaigns if c["id"] == 1002)["variations"][0]["variables"][0]["value"] = name
    variations = next(c for c in campaigns if c["id"] == 102)["variations"]
    chosen = list(KEYS).index(name) % len(variations)
    for index, variation in enumerate(variations):
        variation["weight"] = 100 if index == chosen else 0
    own = {"accountId": ACCOUNTS[name], "sdkKey": KEYS[name], "campaigns": campaigns}
    settings = sample | own | {"features": sample["features"] + more["features"]}
    return orjson.dumps({key: settings[key] for key in KEYS_OF_OLD_SDKS})


@pytest.fixture(params=["embedded", pytest.param("redis", marks=needs_redis_server)])
def gateway(request, tmp_path):
    """Requests without a key belong to production, and with the host 127.0.0.1 to staging."""
    blocks = block("production", default=True), block("staging", hosts=["127.0.0.1"]), block("other")
    options = {"WORKERS": 2, "ALIASING_ENABLED": "true", "STICKY_DECISIONS": "true", "EVENTS_PER_REQUEST": 1}
    with Vendor(sample_document()) as vendor, contextlib.ExitStack() as stack:
        vendor.environments = {key: document(name) for name, key in KEYS.items()}
        vendor.lists[LIST] = {"a@b.io"}
        if request.param == "redis":
            redis = stack.enter_context(RedisServer(tmp_path / "redis"))
            options |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        running = stack.enter_context(gateway_of(tmp_path, vendor, *blocks, **options))
        paths = [f"/ready?environment={name}" for name in KEYS]
        vendor.wait_until(lambda: all(running.get(path)[0] == 200 for path in paths), SECONDS, running.log)
        yield running, vendor
        assert "Traceback" not in running.log()


@pytest.fixture
def start(gateway, tmp_path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "client.log").open("wb"))

        def start(package: str, name: str) -> clients.Client:
            """An SDK that is initialized for an environment. Its own requests to VWO lead nowhere."""
            none = tmp_path / "no-certificate"
            made = clients.node_client(package, log, 1, none) if package else clients.python_client(log)
            client = stack.enter_context(made)
            options = {
                "accountId": str(ACCOUNTS[name]),
                "sdkKey": KEYS[name],
                "gatewayService": {"url": f"http://127.0.0.1:{gateway[0].port}"},
                "isAliasingEnabled": package != OLD_NODE,
                "logger": {"level": "ERROR"},
            }
            assert client.call("init", options)
            return client

        yield start


def visitor(name: str, user_id: str) -> str:
    return core.visitor_uuid(str(ACCOUNTS[name]), user_id)


def arrived(vendor: Vendor, event: str) -> dict[str, set[str]]:
    """The visitors of an event, by the environment of the request that brought it."""
    names = {(str(ACCOUNTS[name]), key): name for name, key in KEYS.items()}
    found: dict[str, set[str]] = {name: set() for name in KEYS}
    for identity, events in vendor.taken.items():
        for one in events:
            if one["d"]["event"]["name"] == event:
                found[names[identity]].add(one["d"]["visId"])
    return found


def until_arrived(vendor: Vendor, event: str, wanted: dict[str, set[str]], log: Any) -> None:
    vendor.wait_until(lambda: arrived(vendor, event) == wanted, SECONDS, lambda: f"{arrived(vendor, event)} {log()}")


@needs_node
def test_each_sdk_gets_the_settings_and_the_aliases_of_its_environment_and_sends_events_under_its_key(gateway, start):
    """Test 1 of the environments: two of one account and one of another, in one process, at the same time."""
    running, vendor = gateway
    sdks = {(kind, name): start(package, name) for name in KEYS for kind, package in (("node", NODE), ("python", ""))}
    wanted: dict[str, set[str]] = {name: set() for name in KEYS}
    for (kind, name), client in sdks.items():
        flag = client.call("getFlag", "by-device", {"id": f"{kind}-{name}", **PHONE})
        assert flag["variables"][0]["value"] == name
        assert client.call("setAlias", f"guest-{kind}-{name}", f"member-{kind}") is True
    for (kind, name), client in sdks.items():
        for user in (f"{kind}-{name}", f"member-{kind}"):
            assert client.call("trackEvent", "purchase", {"id": user}, {"amount": 1}) == {"purchase": True}
        wanted[name] |= {visitor(name, f"{kind}-{name}"), visitor(name, f"guest-{kind}-{name}")}
    until_arrived(vendor, "purchase", wanted, running.log)
    shown = {name: {visitor(name, f"{kind}-{name}") for kind in ("node", "python")} for name in KEYS}
    until_arrived(vendor, "vwo_variationShown", shown, running.log)
    for (_, key), events in vendor.taken.items():
        named = {event["d"]["event"]["props"].get("vwo_envKey", key) for event in events}
        assert named == {key}


@needs_node
def test_lists_of_the_environment_of_the_host_without_a_key_in_the_request(gateway, start):
    running, vendor = gateway
    for package, name in ((OLD_NODE, "staging"), (NODE, "staging"), (NODE, "other")):
        client = start(package, name)
        before = len(vendor.calls)
        member, stranger = f"{package}-{name}@b.io", "c@d.io"
        vendor.lists[LIST].add(member)
        is_enabled = [
            client.call("getFlag", "by-list", {"id": email, "customVariables": {"email": email}})["isEnabled"]
            for email in (member, stranger)
        ]
        assert is_enabled == [True, False]
        checks = [call.query for call in vendor.calls[before:] if call.path.endswith("/check-attribute")]
        assert checks
        assert {(check["accountId"], check["sdkKey"]) for check in checks} == {(str(ACCOUNTS[name]), KEYS[name])}
    assert "Traceback" not in running.log()


def test_sticky_decisions_and_aliases_of_one_environment_are_unknown_to_the_others(gateway):
    running, _ = gateway
    settings = {name: core.compile_settings(orjson.loads(document(name))) for name in KEYS}
    for user in ("ada", "bob", "eve"):
        for name, key in KEYS.items():
            context = core.context_from_json(GOLD, user)
            fields = {"featureKey": "new-checkout", "userId": user, **GOLD}
            status, flag = running.post(f"/server-side/getFlag?sdkKey={key}", fields)
            own = orjson.loads(core.decide(settings[name], "new-checkout", context).body)
            assert (status, flag) == (200, own)
    bodies = {core.decide(one, "new-checkout", core.context_from_json(GOLD, "ada")).body for one in settings.values()}
    assert len(bodies) > 1  # so a decision of another environment would be noticed
    alias = {"userId": "first", "aliasId": "second"}
    assert running.post(f"/user-alias/setUserAlias?sdkKey={KEYS['production']}", alias)[1] == {"isAliasSet": True}
    for name, found in (("production", "first"), ("staging", "second"), ("other", "second")):
        query = f'accountId={ACCOUNTS[name]}&sdkKey={KEYS[name]}&userId=["second"]'
        assert running.get(f"/user-alias/getAliasUserId?{query}")[1] == [{"aliasId": "second", "userId": found}]
    assert running.get('/user-alias/getAliasUserId?userId=["second"]')[1] == []  # Android, by host
