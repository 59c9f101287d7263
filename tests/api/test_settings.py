"""The settings document, its refresh by clients, and the webhook (wire contract A.1)."""

import gzip
import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from endpoints import JSON, KEY, document, lines
from process import ROOT, Gateway, sample_document
from sdk.wire import ask
from vendor import Fault, Vendor


def settings_calls(vendor):
    return len(vendor.settings_calls())


@pytest.mark.parametrize(
    "query",
    [
        "",
        f"?a=123456&i={KEY}",
        f"?i={KEY}&r=0.3083&a=123456&platform=server&sn=vwo-fme-node-sdk&sv=1.35.0&api-version=1&s=prod",
        f"?s=prod&api-version=1&i={KEY}&r=F3A1-00&a=123456&source=prod",
        "?api-version=7&platform=toaster",
    ],
    ids=["nothing", "thin Go", "Node", "another order", "an unknown dialect"],
)
def test_settings_are_the_mirrored_bytes(get, vendor, query):
    calls = settings_calls(vendor)
    answer = get(f"/server-side/v2-settings{query}")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, vendor.settings)
    assert settings_calls(vendor) == calls


def test_settings_have_a_tag_and_a_compressed_form(get, vendor):
    plain = get("/server-side/v2-settings")
    tag = plain.headers["etag"]
    assert get("/server-side/v2-settings?r=2").headers["etag"] == tag
    packed = get("/server-side/v2-settings", {"Accept-Encoding": "gzip, deflate"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == vendor.settings
    assert packed.body == get("/server-side/v2-settings", {"Accept-Encoding": "gzip"}).body
    two_lines = lines("If-None-Match", '"other"', tag)["If-None-Match"]  # row E1: lists may come in several lines
    assert get("/server-side/v2-settings", lines("Accept-Encoding", "br", "gzip")).body == packed.body
    for known, status in ((tag, 304), (f'"other", {tag}', 304), (two_lines, 304), ("*", 304), ('"other"', 200)):
        answer = get("/server-side/v2-settings", {"If-None-Match": known})
        assert (answer.status, answer.headers["etag"]) == (status, tag)
        assert answer.body == (b"" if status == 304 else plain.body)


def test_each_dialect_has_its_own_document(get, vendor):
    third, client = orjson.dumps(document(version=3)), orjson.dumps(document(version=4))
    vendor.dialects = {("3", "server"): third, ("1", "client"): client}
    try:
        for query, wanted in (
            ("api-version=3", third),
            ("api-version=3&platform=server", third),
            ("platform=client&api-version=1", client),
            ("platform=server&api-version=1", vendor.settings),
        ):
            calls = settings_calls(vendor)
            assert get(f"/server-side/v2-settings?{query}").body == wanted
            assert get(f"/server-side/v2-settings?{query}&r=1").body == wanted
            assert settings_calls(vendor) - calls <= 1
    finally:
        vendor.dialects = {}


@pytest.mark.parametrize("path", ["/server-side/v2-settings", "/server-side/v2-pull"])
@pytest.mark.parametrize("query", ["a=1", "i=other", f"a=1&i={KEY}", "accountId=1"])
def test_another_account_gets_no_settings(get, path, query):
    answer = get(f"{path}?{query}")
    assert (answer.status, answer.headers["content-type"]) == (400, JSON)
    assert answer.json() == {
        "status": 0,
        "error": "accountId or sdkKey does not match this gateway",
        "code": "wrong_account",
    }


def test_older_sdks_get_lists_where_upstream_writes_empty_objects(tmp_path):
    empty = sample_document() | {"features": {}, "campaigns": {}, "groups": {}, "campaignGroups": {}, "holdouts": {}}
    with Vendor(empty) as vendor, Gateway.of_vendor(tmp_path / "d", vendor) as gateway:
        answer = ask(gateway.port, "GET", "/server-side/v2-settings")
        assert answer.json() == empty | {"features": [], "campaigns": []}


def test_pulls_share_a_request_and_all_get_the_change(get, vendor):
    before = len(vendor.calls_to("/server-side/v2-pull"))
    started = time.monotonic()
    for round_, clients, delay in ((1, 1, 0), (2, 8, 2)):  # the delay gives all of them the time to ask
        vendor.settings = orjson.dumps(document(version=10 + round_))
        vendor.settings_faults.append(Fault(200, delay_seconds=delay))
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda _: get(f"/server-side/v2-pull?a=123456&i={KEY}&r=1"), range(clients)))
        assert {(answer.status, answer.body) for answer in answers} == {(200, vendor.settings)}
        assert len(vendor.calls_to("/server-side/v2-pull")) == before + round_
    assert time.monotonic() - started >= 1.0 + delay  # the second request waited for its turn


def test_a_pull_that_fails_answers_what_is_there(get, vendor):
    before = len(vendor.calls_to("/server-side/v2-pull"))
    vendor.settings_faults.append(Fault(500))
    answer = get("/server-side/v2-pull")
    assert (answer.status, answer.body) == (200, vendor.settings)
    assert len(vendor.calls_to("/server-side/v2-pull")) == before + 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Webhook-Token": "let-me-in-987654321"}, 200),
        ({"X-VWO-Auth": "let-me-in-987654321"}, 200),
        ({"Authorization": "Bearer let-me-in-987654321"}, 200),
        ({}, 401),
        ({"X-Webhook-Token": ""}, 401),
        ({"X-Webhook-Token": "let-me-i"}, 401),
        ({"X-Webhook-Token": "let-me-in-987654321x"}, 401),
        ({"X-Webhook-Token": "l\xe4t-me-in"}, 401),
    ],
)
def test_a_webhook_needs_the_token(post, vendor, headers, status):
    before = settings_calls(vendor)
    answer = post("/webhook", b"", headers)
    assert (answer.status, answer.headers["content-type"]) == (status, JSON)
    assert settings_calls(vendor) == before + (status == 200)


def test_a_webhook_brings_the_change_at_once_and_says_if_it_could_not(post, get, vendor):
    vendor.settings = orjson.dumps(document(version=10))
    answer = post("/webhook", b"{}", {"X-Webhook-Token": "let-me-in-987654321"})
    assert (answer.json(), get("/server-side/v2-settings").body) == ({"refreshed": True}, vendor.settings)
    vendor.settings_faults.append(Fault(500))
    assert post("/webhook", b"{}", {"X-Webhook-Token": "let-me-in-987654321"}).json() == {"refreshed": False}


def test_without_a_token_there_is_no_webhook(tmp_path):
    with Gateway(tmp_path / "d", SETTINGS_FILE=ROOT / "conf" / "sample-settings.json") as gateway:
        answer = ask(gateway.port, "POST", "/webhook", headers={"X-Webhook-Token": ""})
        assert (answer.status, answer.json()["status"]) == (403, 0)


def test_c8_pulls_of_all_workers_and_dialects_cause_one_request_per_second(tmp_path):
    """Row C8."""
    paths = [
        f"/server-side/v2-{kind}?api-version={version}&platform={platform}"
        for kind in ("pull", "settings")
        for version in (1, 3)
        for platform in ("server", "client")
    ]
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, WORKERS=3) as gateway:
        for path in paths:
            assert ask(gateway.port, "GET", path).status == 200
        before, started = settings_calls(vendor), time.monotonic()
        with ThreadPoolExecutor(12) as pool:
            for _ in range(5):
                assert {answer.status for answer in pool.map(lambda p: ask(gateway.port, "GET", p), paths * 3)} == {200}
        seconds = time.monotonic() - started
        assert settings_calls(vendor) - before <= 2 * seconds + 10  # the first requests of dialects at each worker
