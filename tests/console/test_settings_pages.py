"""The endpoints below /admin/settings: versions, differences, the pin with its audit, and former decisions."""

import copy
import time

import orjson
import pytest
from exchanges import exchange
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway.store.versions import digest_of

VISITOR = {"featureKey": "new-checkout", "userId": "user-1"}


def document(headline):
    settings = copy.deepcopy(sample_document())
    settings["campaigns"][0]["variations"][0]["variables"][0]["value"] = headline
    return orjson.dumps(settings)


OLD, NEW = document("old"), document("new")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway whose settings have changed once, after a webhook."""
    with Vendor(sample_document()) as vendor:
        vendor.settings = OLD
        options = {"WEBHOOK_TOKEN": "webhook-token-1234", "LOG_LEVEL": "ERROR"}
        with Gateway.of_vendor(tmp_path_factory.mktemp("settings") / "data", vendor, **options) as gateway:
            vendor.settings = NEW
            headers = {"Authorization": "Bearer webhook-token-1234"}
            assert gateway.request("POST", "/webhook", b"{}", headers)[0] == 200
            yield gateway


def ask(gateway, method, path, body=None, **headers):
    status, _, answer = exchange(gateway, method, path, body, **gateway.admin_headers, **headers)
    return status, answer


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def headline(gateway, **fields):
    status, explained = ask(gateway, "POST", "/admin/explain", VISITOR | fields)
    assert status == 200, explained
    return explained["decisions"][0]["variables"][0]["value"], explained["settings"]["hash"]


def markers(gateway):
    return [(one["version"], one["label"]) for one in ask(gateway, "GET", "/admin/overview")[1]["markers"]]


def test_versions_and_their_differences(gateway):
    _, listed = ask(gateway, "GET", "/admin/settings/versions")
    assert [(one["digest"], one["source"]) for one in listed["versions"]] == [
        (digest_of(NEW), "webhook"),
        (digest_of(OLD), "poll"),
    ]
    assert (listed["current"], listed["pin"]) == (digest_of(NEW), None)
    expected = 'rule New checkout for everyone: variable headline of variation Everyone "old" -> "new"'
    _, found = ask(gateway, "GET", "/admin/settings/diff")
    assert found["changes"] == [{"subject": "new-checkout", "texts": [expected]}]
    _, none = ask(gateway, "GET", "/admin/settings/diff?from=current&to=latest")
    assert none["changes"] == []
    until(lambda: markers(gateway))
    assert markers(gateway) == [
        (digest_of(OLD), f"settings {digest_of(OLD)[:8]}"),
        (digest_of(NEW), f"new-checkout: {expected}"[:79] + "…"),
    ]


def test_a_decision_of_former_settings_is_explained(gateway):
    assert headline(gateway) == ("new", digest_of(NEW))
    for _ in range(2):
        assert headline(gateway, version="previous") == ("old", digest_of(OLD))
    assert headline(gateway, version=1) == ("old", digest_of(OLD))
    assert headline(gateway, version="latest") == ("new", digest_of(NEW))
    assert ask(gateway, "POST", "/admin/explain", VISITOR | {"version": {"a": 1}})[0] == 404


def test_a_version_is_pinned_and_unpinned_with_its_user_in_the_log(gateway):
    body = {"version": "previous", "seconds": 3600, "reason": "too slow"}
    status, pinned = ask(gateway, "POST", "/admin/settings/pin", body)
    assert (status, pinned["pinned"]) == (200, digest_of(OLD))
    until(lambda: headline(gateway)[0] == "old")
    pin = gateway.status()["settings"]["pin"]
    assert (pin["by"], pin["reason"], pin["changed_since"]) == ("the admin token at 127.0.0.1", "too slow", False)
    assert ask(gateway, "GET", "/admin/settings/versions")[1]["pin"]["digest"] == digest_of(OLD)
    assert ask(gateway, "POST", "/admin/settings/unpin", {}) == (200, {"unpinned": digest_of(OLD)})
    until(lambda: headline(gateway)[0] == "new")
    assert f"settings were pinned to {digest_of(OLD)} by the admin token at 127.0.0.1 at 20" in gateway.log()
    assert "settings were unpinned by the admin token at 127.0.0.1" in gateway.log()
    assert ask(gateway, "POST", "/admin/settings/unpin", {})[0] == 409


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "version: expected a number or a digest of the list"),
        ({"version": True}, 400, "version: "),
        ({"version": "nothing"}, 404, "there is no version 'nothing'"),
        ({"version": "previous", "seconds": "1"}, 400, "seconds: expected a number, or null for no end"),
        ({"version": "previous", "seconds": 0}, 400, "duration: expected 1 to"),
        ({"version": "previous", "reason": 1}, 400, "reason: expected a text"),
        ({"version": "previous", "reason": "a\nb"}, 400, "reason: expected one line"),
        ([], 400, ""),
    ],
)
def test_a_mistake_in_a_pin_is_named(gateway, body, status, words):
    found, answer = ask(gateway, "POST", "/admin/settings/pin", body)
    assert (found, answer["error"][: len(words)]) == (status, words)


def test_a_pin_needs_the_token_and_is_not_taken_from_another_site(gateway):
    body = {"version": "previous"}
    for path in ("/admin/settings/pin", "/admin/settings/unpin"):
        assert exchange(gateway, "POST", path, body)[0] == 401
        assert ask(gateway, "POST", path, body, Origin="https://other.example")[0] == 403
        assert ask(gateway, "GET", path)[0] == 405
    assert exchange(gateway, "GET", "/admin/settings/versions")[0] == 401
    assert ask(gateway, "GET", "/admin/settings/diff?from=abcdef")[0] == 404
