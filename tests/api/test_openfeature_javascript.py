"""OpenFeature's JavaScript clients, unmodified, against a gateway of the sample account: in Node and in Chromium.

The page is of another origin than the gateway. Its provider is the web provider of OFREP, from its packages.
"""

import copy
import shutil
import time

import flags
import orjson
import pytest
from process import PATIENCE_SECONDS, Gateway
from sdk import clients
from vendor import Fault, Vendor

VISITORS = 12
KINDS = {"boolean": "Boolean", "string": "String", "integer": "Number", "double": "Number", "json": "Object"}

vendor, gateway = flags.fixtures(CORS_CONFIG_REQUIRED="true", POLLING_TIME=200)


def base_url(gateway):
    return f"http://127.0.0.1:{gateway.port}"


def expected(gateway, context):
    return [one for key in flags.FEATURES for one in flags.expected(gateway, context, key)]


def evaluation(one, *more):
    return [KINDS[one.type], one.key, one.default, *more]


def check(found, one):
    assert "errorCode" not in found
    assert found["value"] == one.value
    assert (found["reason"] == "DISABLED") == one.is_default


def wait_for(condition, describe):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)


# --- Node ---


@pytest.fixture(scope="module")
def node(gateway, tmp_path_factory):
    if shutil.which("node") is None or not (clients.PACKAGES / "@openfeature").exists():
        pytest.skip("OpenFeature's packages are not installed: scripts/setup does it where there is npm")
    with (tmp_path_factory.mktemp("node") / "log").open("wb") as log, clients.openfeature_node_client(log) as client:
        client.call("connect", {"baseUrl": base_url(gateway)})
        yield client


def test_every_value_in_node_is_that_of_get_flag(gateway, node):
    contexts = [flags.context(number) for number in range(VISITORS)]
    asked = [(one, context) for context in contexts for one in expected(gateway, context)]
    answers = node.call("evaluate", [evaluation(one, context) for one, context in asked])
    assert len(answers) == len(asked) > VISITORS * len(flags.FEATURES)
    for found, (one, _) in zip(answers, asked, strict=True):
        check(found, one)


def test_errors_in_node_have_their_codes(node):
    (unknown, keyless) = node.call(
        "evaluate", [["Boolean", "unknown", True, {"targetingKey": "u"}], ["Boolean", "new-checkout", False, {}]]
    )
    assert (unknown["value"], unknown["errorCode"]) == (True, "FLAG_NOT_FOUND")
    assert unknown["errorMessage"] == "there is no feature or variable with this key"
    assert (keyless["value"], keyless["errorCode"]) == (False, "TARGETING_KEY_MISSING")
    assert keyless["errorMessage"] == "context.targetingKey is required"


def test_the_web_provider_starts_before_the_gateway_has_settings(node, tmp_path):
    with Vendor(flags.SAMPLE) as vendor:
        vendor.settings_faults.append(Fault(status=500, delay_seconds=1))
        with Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
            node.call("init", {"baseUrl": base_url(gateway), "cacheMode": "disabled"}, flags.context(1))
            (found,) = node.call("details", [["Boolean", "new-checkout", False]])
            assert (found["value"], "errorCode" in found) == (True, False)
            node.call("close")


# --- Chromium ---


class Page:
    """The web provider in a page. `start` gives it a new provider and visitor."""

    def __init__(self, client, gateway, log):
        self.client, self.gateway, self.log = client, gateway, log

    def start(self, context, **options):
        self.client.call("init", {"baseUrl": base_url(self.gateway), **options}, context)

    def values_are(self, context):
        asked = expected(self.gateway, context)
        answers = self.client.call("details", [evaluation(one) for one in asked])
        return [found["value"] for found in answers] == [one.value for one in asked]

    def requests(self):
        return self.client.call("requests")

    def events(self, name):
        return [event for event in self.client.call("events") if event["name"] == name]

    def console(self):
        return [line for line in self.log.read_text("utf-8", "replace").splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def page(gateway, tmp_path_factory):
    chromium = clients.chromium()
    if chromium is None or not (clients.PACKAGES / "@openfeature").exists():
        pytest.skip("Chromium or OpenFeature's packages are not installed: scripts/setup does it")
    folder = tmp_path_factory.mktemp("chromium")
    with (
        (folder / "log").open("wb") as log,
        clients.openfeature_browser_client(chromium, log, folder / "profile") as client,
    ):
        page = Page(client, gateway, folder / "log")
        yield page
        client.call("close")
        client.call("logError", "the last line")
        wait_for(page.console, lambda: page.log.read_text("utf-8", "replace"))
        assert [line for line in page.console() if "the last line" not in line] == []


def test_every_value_in_a_page_is_that_of_get_flag(gateway, page):
    page.start(flags.context(1))
    asked = expected(gateway, flags.context(1))
    for found, one in zip(page.client.call("details", [evaluation(one) for one in asked]), asked, strict=True):
        check(found, one)


def test_an_attribute_changes_the_values_of_a_page(page):
    free, gold = ({**flags.context(2), "plan": plan} for plan in ("free", "gold"))
    page.start(free)
    assert page.values_are(free)
    assert not page.values_are(gold)
    page.client.call("setContext", gold)
    wait_for(lambda: page.values_are(gold), page.requests)
    assert page.requests()[-1]["known"] == page.requests()[0]["etag"]


def test_the_second_evaluation_of_a_page_is_a_304(page):
    page.start(flags.context(3))
    page.client.call("setContext", flags.context(3))
    wait_for(lambda: len(page.requests()) == 2, page.requests)
    first, second = page.requests()
    assert (first["status"], first["known"]) == (200, None)
    assert (second["status"], second["known"], second["etag"]) == (304, first["etag"], first["etag"])
    assert page.values_are(flags.context(3))


def test_a_polling_page_gets_304(page):
    page.start(flags.context(4), changeDetection="polling", pollInterval=200)
    wait_for(lambda: len(page.requests()) > 2, page.requests)
    assert [request["status"] for request in page.requests()[:3]] == [200, 304, 304]


def test_a_change_of_the_settings_reaches_a_page_through_the_stream(page, vendor):
    page.start(flags.context(5))
    changed = copy.deepcopy(flags.SAMPLE)
    for campaign in changed["campaigns"]:
        for variation in campaign["variations"]:
            for variable in variation["variables"]:
                if variable["key"] == "headline":
                    variable["value"] = "changed"
    vendor.settings = orjson.dumps(changed)
    try:
        wait_for(
            lambda: page.events("PROVIDER_CONFIGURATION_CHANGED"), lambda: (page.requests(), page.client.call("events"))
        )
        assert page.events("PROVIDER_CONFIGURATION_CHANGED")[0]["flags"] == ["new-checkout.headline"]
        (found,) = page.client.call("details", [["String", "new-checkout.headline", "default"]])
        assert found["value"] == "changed"
        assert "flagConfigEtag=" in page.requests()[-1]["url"]
        assert len(page.requests()) == 2
    finally:
        vendor.settings = orjson.dumps(flags.SAMPLE)
