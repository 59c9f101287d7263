"""Official SDKs, unmodified, against the real gateway with a stand-in for the vendor behind it.

Each client runs in a process of its own (tests/sdk/). The calls of one test are those that an application makes; what
they must lead to is read at the other end, where the events arrive.
"""

import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import orjson
import pytest
from process import ROOT, Gateway, sample_document
from sdk import clients
from sdk.wire import ask
from vendor import Vendor

USAGE_ACCOUNT = 888888
KEY = sample_document()["sdkKey"]
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2"
    " Mobile/15E148 Safari/604.1"
)
MAC = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0"
    " Safari/537.36"
)
LONDON, MILTON, PRIVATE = "81.2.69.160", "216.160.83.56", "10.0.0.1"
OFF = {"isEnabled": False, "variables": []}


class Sdk(NamedTuple):
    """`package` is a folder of tests/sdk/node_modules; `name` and `version` are what the SDK calls itself."""

    kind: str
    name: str
    version: str
    package: str = ""
    has_lists: bool = True
    polls: bool = True
    is_old: bool = False


SDKS = {
    # Takes a segment with a list for malformed, and so never asks for one.
    "python": Sdk("python", "vwo-fme-python-sdk", "1.65.0", has_lists=False),
    # Polls, but compares what it got with itself, so that it never sees a change.
    "node": Sdk("node", "vwo-fme-node-sdk", "1.35.0", "vwo-fme-node-sdk", polls=False),
    "browser": Sdk("browser", "vwo-fme-javascript-sdk", "1.35.0", "vwo-fme-node-sdk", polls=False),
    # From before aliases; refuses settings with a key that it does not know.
    "old-node": Sdk("node", "vwo-fme-node-sdk", "1.18.0", "vwo-fme-node-sdk-1.18", is_old=True),
    "old-browser": Sdk("browser", "vwo-fme-javascript-sdk", "1.18.0", "vwo-fme-node-sdk-1.18", is_old=True),
}


OLD_KEYS = ("version", "accountId", "sdkKey", "features", "campaigns", "groups", "campaignGroups")


def document(sdk: Sdk, who: str = "by-device") -> dict[str, Any]:
    """The sample account, with features that ask for a location, a device or a list. `who` is a variable's value."""
    more = orjson.loads((ROOT / "tests" / "data" / "sdk" / "features.json").read_bytes())
    more["campaigns"][1]["variations"][0]["variables"][0]["value"] = who
    sample = sample_document()
    settings = sample | {
        "features": sample["features"] + more["features"],
        "campaigns": sample["campaigns"] + more["campaigns"],
        "sdkMetaInfo": {"wasInitializedEarlier": False},
        "usageStatsAccountId": USAGE_ACCOUNT,
    }
    return {key: settings[key] for key in OLD_KEYS} if sdk.is_old else settings


@dataclass
class Setup:
    """One client with a gateway and a vendor of its own."""

    sdk: Sdk
    client: clients.Client
    gateway: Gateway
    vendor: Vendor
    visitors: Iterator[str] = field(default_factory=lambda: (f"user-{number}" for number in count(1)))

    def sent(self) -> list[dict[str, Any]]:
        """The SDK's own events, as the vendor got them; not those of the gateway's decisions, nor error logs."""
        datas = [event["d"] for event in self.vendor.events if event["d"]["event"]["name"] != "vwo_log"]
        return [data for data in datas if sdk_of(data) == (self.sdk.name, self.sdk.version)]

    def call(self, events: int, *command: Any) -> tuple[Any, list[dict[str, Any]]]:
        """The SDK's answer, and the events that came of it."""
        before = len(self.sent())
        answer = self.client.call(*command)
        self.vendor.wait_until(
            lambda: len(self.sent()) >= before + events, 10, lambda: f"{self.sent()[before:]}, {self.gateway.log()}"
        )
        return answer, self.sent()[before:]

    def decision(self, key: str, context: dict[str, Any]) -> dict[str, Any]:
        """What the gateway itself decides for the same visitor."""
        status, answer = self.gateway.post("/server-side/getFlag", {"featureKey": key, **context})
        assert status == 200
        return answer


def sdk_of(data: dict[str, Any]) -> tuple[Any, Any]:
    props = data["event"]["props"]
    return props.get("vwo_sdkName"), props.get("vwo_sdkVersion")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of the vendor's host: (certificate file, key file)."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(files[1])]
    subject = [
        "-subj",
        f"/CN={clients.VENDOR_HOST}",
        "-addext",
        f"subjectAltName=DNS:{clients.VENDOR_HOST}",
        "-days",
        "2",
    ]
    subprocess.run(["openssl", "req", "-x509", *key, "-out", str(files[0]), *subject], check=True, capture_output=True)
    return files


@pytest.fixture(scope="module")
def start_client(certificate, tmp_path_factory):
    """Starts the client with a name, or skips and says what is missing."""
    folder = tmp_path_factory.mktemp("clients")

    def start(sdk, vendor, log):
        if sdk.kind == "python":
            return clients.python_client(log)
        if not (clients.PACKAGES / sdk.package).exists():
            pytest.skip("the Node SDK is not installed: scripts/setup does it where there is npm")
        if sdk.kind == "node":
            if shutil.which("node") is None:
                pytest.skip("there is no Node here")
            return clients.node_client(sdk.package, log, vendor.tls_port, certificate[0])
        chromium = clients.chromium()
        if chromium is None:
            pytest.skip("there is no Chromium here")
        return clients.browser_client(chromium, sdk.package, log, folder / sdk.version, vendor.tls_port)

    return start


@pytest.fixture(scope="module", params=SDKS.values(), ids=SDKS)
def setup(request, certificate, start_client, tmp_path_factory):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    folder = tmp_path_factory.mktemp("client")
    options = {
        "ALIASING_ENABLED": "true",
        "CORS_CONFIG_REQUIRED": "true",
        "WEBHOOK_TOKEN": "let-me-in-987654321",
        "MAXMIND_DB_PATH": ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb",
        "EVENTS_PER_REQUEST": 1,
    }
    with Vendor(document(request.param), tls) as vendor, (folder / "client.log").open("wb") as log:
        vendor.lists["list-77"] = {"a@b.io"}
        with (
            start_client(request.param, vendor, log) as client,
            Gateway.of_vendor(folder / "data", vendor, **options) as gateway,
        ):
            setup = Setup(request.param, client, gateway, vendor)
            assert client.call(
                "init",
                {
                    "accountId": str(sample_document()["accountId"]),
                    "sdkKey": KEY,
                    "gatewayService": {"url": f"http://127.0.0.1:{gateway.port}"},
                    "isAliasingEnabled": True,
                    "pollInterval": 1000,
                    "logger": {"level": "ERROR"},
                },
            )
            yield setup


def names(events):
    return Counter(event["event"]["name"] for event in events)


def test_init_is_reported_once(setup):
    if setup.sdk.is_old:
        pytest.skip("this SDK is older than these events")
    wanted = {"vwo_fmeSdkInit": 1, "vwo_sdkUsageStats": 1}
    setup.vendor.wait_until(lambda: names(setup.sent()).keys() >= wanted.keys(), 60, lambda: setup.vendor.events)
    assert names(setup.sent()) == wanted
    for call in setup.vendor.calls:
        if call.query.get("en") == "vwo_sdkUsageStats":
            assert call.query["a"] == str(USAGE_ACCOUNT)  # not the account whose gateway it is


FLAGS = [
    pytest.param("by-city", {"ipAddress": LONDON, "userAgent": MAC}, True, id="the right city"),
    pytest.param("by-city", {"ipAddress": MILTON, "userAgent": MAC}, False, id="another city"),
    pytest.param("by-city", {"ipAddress": PRIVATE, "userAgent": MAC}, False, id="no city"),
    pytest.param("by-device", {"ipAddress": PRIVATE, "userAgent": IPHONE}, True, id="a phone"),
    pytest.param("by-device", {"ipAddress": PRIVATE, "userAgent": MAC}, False, id="no phone"),
    pytest.param("by-system", {"userAgent": IPHONE}, True, id="system and browser"),
    pytest.param("by-system", {"userAgent": MAC}, False, id="another system"),
    pytest.param("new-checkout", {"customVariables": {"plan": "gold"}}, True, id="an experiment"),
    pytest.param("new-checkout", {"customVariables": {"plan": "none"}}, True, id="a rollout"),
    pytest.param("no-such-feature", {}, False, id="an unknown feature"),
]


@pytest.mark.parametrize("_", range(2), ids=["", "again"])
@pytest.mark.parametrize(("key", "facts", "enabled"), FLAGS)
def test_a_flag_is_what_the_gateway_itself_decides(setup, key, facts, enabled, _):
    context = {"id": next(setup.visitors), **facts}  # a new one: browsers keep decisions
    wanted = setup.decision(key, context)
    assert wanted["isEnabled"] == enabled
    impressions = 0 if not enabled else 2 if facts.get("customVariables", {}).get("plan") == "gold" else 1
    flag, events = setup.call(impressions, "getFlag", key, context)
    assert flag == wanted
    assert names(events) == ({"vwo_variationShown": impressions} if impressions else {})
    for event in events:
        assert event["event"]["props"]["vwo_envKey"] == KEY
        assert event["visitor"]["props"]["vwo_fs_environment"] == KEY


@pytest.mark.parametrize(("email", "enabled"), [("a@b.io", True), ("c@d.io", False)])
def test_a_list_is_checked(setup, email, enabled):
    context = {"id": next(setup.visitors), "customVariables": {"email": email}}
    assert setup.decision("by-list", context)["isEnabled"] == enabled
    if not setup.sdk.has_lists:
        pytest.skip("this SDK never asks for a list")
    flag, events = setup.call(int(enabled), "getFlag", "by-list", context)
    assert flag == setup.decision("by-list", context)
    assert len(events) == enabled


def test_an_event_arrives_with_its_properties(setup):
    context = {"id": "user-1", "userAgent": MAC, "ipAddress": LONDON}
    answer, (event,) = setup.call(1, "trackEvent", "purchase", context, {"amount": 49.5, "sku": "A-1"})
    assert answer == {"purchase": True}
    props = {"isCustomEvent": True, "amount": 49.5, "sku": "A-1"}
    assert event["event"]["name"] == "purchase"
    assert event["event"]["props"] | props == event["event"]["props"]


@pytest.mark.parametrize("attributes", [{"tier": "gold"}, {"tier": "silver", "age": 33, "vip": True}], ids=len)
def test_attributes_arrive_in_one_event(setup, attributes):
    _, (event,) = setup.call(1, "setAttribute", attributes, {"id": "user-1", "userAgent": MAC})
    assert event["event"]["name"] == "vwo_syncVisitorProp"
    assert event["visitor"]["props"] | attributes == event["visitor"]["props"]


def test_an_alias_stands_for_the_first_id(setup):
    if setup.sdk.is_old:
        pytest.skip("this SDK is older than aliases")
    assert setup.client.call("setAlias", "guest-1", "member-9") is True
    context = {"id": "member-9", "customVariables": {"plan": "gold"}}
    flag, impressions = setup.call(2, "getFlag", "new-checkout", context)
    assert flag == setup.decision("new-checkout", context)
    _, first = setup.call(1, "trackEvent", "purchase", {"id": "guest-1"}, {})
    _, later = setup.call(1, "trackEvent", "purchase", {"id": "member-9"}, {})
    assert len({event["visId"] for event in impressions + first + later}) == 1


def who(setup):
    """What a new visitor reads who has the variable that `document` changes."""
    flag, _ = setup.call(1, "getFlag", "by-device", {"id": next(setup.visitors), "userAgent": IPHONE})
    return flag["variables"][0]["value"]


def test_update_settings_pulls_a_change_through(setup):
    setup.vendor.settings = orjson.dumps(document(setup.sdk, "pulled"))
    setup.client.call("updateSettings")
    assert who(setup) == "pulled"
    assert any(call.path == "/server-side/v2-pull" for call in setup.vendor.calls)


def test_polling_picks_up_what_a_webhook_brought(setup):
    if not setup.sdk.polls:
        pytest.skip("this SDK does not see a change when it polls")
    setup.vendor.settings = orjson.dumps(document(setup.sdk, "polled"))
    answer = ask(setup.gateway.port, "POST", "/webhook", headers={"X-Webhook-Token": "let-me-in-987654321"})
    assert (answer.status, answer.json()) == (200, {"refreshed": True})
    setup.vendor.wait_until(lambda: who(setup) == "polled")


def test_a_beacon_arrives_with_what_only_the_browser_knows(setup):
    """Newer browser SDKs send events so: as text, without preflight, and with `dh=1` for "look at the request"."""
    if setup.sdk.kind != "browser":
        pytest.skip("only a browser has beacons")
    props = {"vwo_sdkName": setup.sdk.name, "vwo_sdkVersion": setup.sdk.version}
    event = {"name": "beaconed", "time": 1795456294134, "props": props}
    body = orjson.dumps({"d": {"visId": "D" * 32, "event": event}}).decode()
    url = f"http://127.0.0.1:{setup.gateway.port}/events/t?en=beaconed&a=123456&dh=1"
    sent, (data,) = setup.call(1, "beacon", url, body)
    assert sent is True
    assert data["event"] == event
    assert (data["visitor_ua"], data["visitor_ip"]) == (setup.client.call("agent"), "127.0.0.1")


def test_every_event_arrived_exactly_once(setup):
    def all_have_arrived():
        counts = setup.gateway.status()["events"]
        others = sum(
            call.headers.get("Host") == clients.VENDOR_HOST or call.query.get("en") == "vwo_sdkUsageStats"
            for call in setup.vendor.calls
        )
        return counts["received"] == counts["delivered"] == len(setup.vendor.events) - others

    setup.vendor.wait_until(all_have_arrived)
    assert set(names(setup.sent())) <= {
        *("vwo_fmeSdkInit", "vwo_sdkUsageStats", "vwo_variationShown", "purchase", "vwo_syncVisitorProp", "beaconed"),
    }
    parts = [(data.get("msgId"), data["event"]["name"], data["event"]["props"].get("id")) for data in setup.sent()]
    assert len(parts) == len(set(parts))
    assert "Traceback" not in setup.gateway.log()
