"""Lists and past events (wire contract A.3, A.10)."""

import time

import orjson
import pytest
from endpoints import FALSE, JSON, KEY, MEMBERS, SCRIPT, TRUE
from process import Gateway, sample_document
from sdk.wire import ask
from vendor import Fault, Vendor

from tornado_gateway.enrichment import lists
from tornado_gateway.errors import UpstreamError


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("attribute", "body"),
    [
        ("a@b.io", TRUE),
        ("nobody@b.io", FALSE),
        ("a%40b.io", TRUE),
        ("a+b@b.io", TRUE),
        ("a%2Bb%40b.io", TRUE),
        ("two+words", TRUE),
        ("two%20words", TRUE),
        ("k%C3%A4se", TRUE),
        ("x%26y", TRUE),
        ("x&y", FALSE),
        ("undefined", FALSE),
    ],
)
@pytest.mark.parametrize(
    ("agent", "content_type"),
    [("Java/17", JSON), ("Dalvik/2.1.0 (Linux; U; Android 14)", SCRIPT), ("okhttp/4.12", SCRIPT)],
    ids=["server", "Android", "okhttp"],
)
def test_a_list_check_is_four_or_five_bytes(get, attribute, body, agent, content_type):
    answer = get(f"/check-attribute?attribute={attribute}&listId=list-77", {"User-Agent": agent})
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, content_type, body)


@pytest.mark.parametrize("query", ["", "attribute=a@b.io", "listId=list-77", "attribute=&listId=list-77"])
def test_a_list_check_needs_both(get, query):
    answer = get(f"/check-attribute?{query}")
    assert (answer.status, answer.headers["content-type"]) == (400, JSON)
    assert answer.json() == {"status": 0, "error": "attribute and listId are required", "code": "invalid_request"}


def test_a_value_that_is_too_long_is_in_no_list(get, vendor):
    """It cost milliseconds, and VWO would reject the request line."""
    before = len(list_calls(vendor))
    assert get(f"/check-attribute?listId=list-77&attribute={'%25' * 20_000}").body == FALSE
    assert len(list_calls(vendor)) == before


def list_calls(vendor):
    return [call.query for call in vendor.calls if call.path == "/check-attribute"]


def test_an_answer_about_a_list_is_kept(get, vendor):
    before = len(list_calls(vendor))
    for _ in range(3):
        assert get("/check-attribute?attribute=kept@b.io&listId=list-77").body == FALSE
    assert list_calls(vendor)[before:] == [
        {"attribute": "kept@b.io", "listId": "list-77", "accountId": "123456", "sdkKey": KEY}
    ]


@pytest.mark.parametrize(
    "fault", [Fault(500, 999), Fault(404, 999), Fault(close=True, times=999)], ids=["500", "404", "no-answer"]
)
def test_a_list_that_cannot_be_asked_has_no_members(get, vendor, fault, request):
    value = request.node.callspec.id
    vendor.lists["list-78"] = {value}
    vendor.lookup_faults.append(fault)
    failed = get(f"/check-attribute?attribute={value}&listId=list-78")
    vendor.lookup_faults.clear()
    assert (failed.status, failed.body) == (200, FALSE)
    eventually(lambda: get(f"/check-attribute?attribute={value}&listId=list-78").body == TRUE)  # kept for seconds


async def test_an_old_answer_is_better_than_none():
    answers: list[bool | UpstreamError] = [True, UpstreamError("down"), False, UpstreamError("down")]

    async def ask_upstream(list_id: str, value: str) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, UpstreamError):
            raise answer
        return answer

    checks = lists.ListChecks(ask_upstream, fresh_seconds=0.0, failure_seconds=0.0)
    assert [await checks.is_member("list-77", "a@b.io") for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("variables", "enabled"),
    [({"email": "a@b.io"}, True), ({"email": "no@b.io"}, False), ({"email": "x&y"}, True), ({}, False)],
    ids=["a member", "no member", "encoded", "without the variable"],
)
def test_the_gateways_own_decision_asks_the_list(post, vendor, variables, enabled):
    fields = {"featureKey": "by-list", "userId": "user-1", "customVariables": variables}
    assert post("/server-side/getFlag", fields).json()["isEnabled"] == enabled
    before = len(list_calls(vendor))
    assert post("/server-side/getFlag", fields).json()["isEnabled"] == enabled
    assert len(list_calls(vendor)) == before


def test_a_decision_without_the_list_is_off_and_not_kept(post, vendor):
    fields = {"featureKey": "by-list", "userId": "user-1", "customVariables": {"email": "early@b.io"}}
    vendor.lists["list-77"] = {*MEMBERS, "early@b.io"}
    vendor.lookup_faults.append(Fault(500))
    assert post("/server-side/getFlag", fields).json() == {"isEnabled": False, "variables": []}
    eventually(lambda: post("/server-side/getFlag", fields).json()["isEnabled"])


def test_a9_event_segments_are_forwarded_repaired(post, vendor):
    answer = post("/evaluate-event-dsl", rb'{"dsl":{},"context":{"id":"\ud83d"}}')
    assert (answer.status, answer.body) == (200, b"true")
    call = vendor.calls_to("/eu01/evaluate-event-dsl")[-1]
    assert orjson.loads(call.body) == {"dsl": {}, "context": {"id": "\ufffd"}}


def test_event_segments_are_asked_upstream(post, vendor):
    body = {"dsl": {"and": []}, "context": {"id": "u"}}
    answer = post("/evaluate-event-dsl?uuid=D&accountId=123456", body)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b"true")
    call = vendor.calls_to("/eu01/evaluate-event-dsl")[-1]
    assert (call.query, orjson.loads(call.body)) == ({"uuid": "D", "accountId": "123456"}, body)
    vendor.lookup_faults.append(Fault(500))
    answer = post("/evaluate-event-dsl", body)
    assert (answer.status, answer.body) == (200, FALSE)
    assert post("/evaluate-event-dsl", b"no JSON").status == 400


def test_f5_only_parameters_of_the_contract_are_forwarded_with_an_event_segment(post, vendor):
    """Escapes would hide another account from the check."""
    assert post("/evaluate-event-dsl?uuid=D&account%49d=1&uuid=E&sdkKey=", {"dsl": {}}).status == 200
    assert vendor.calls_to("/eu01/evaluate-event-dsl")[-1].query == {"uuid": "D"}


def paths(vendor, end):
    return [call.path for call in vendor.calls if call.path.endswith(end)]


def test_c7_prefixes_are_those_of_the_sdks(tmp_path):
    """Row C7: lists are at UPSTREAM_URL without the prefix, event segments at COLLECT_URL with it."""
    settings = sample_document() | {"collectionPrefix": "eu01"}
    with Vendor(settings) as vendor, Vendor() as collector:
        options = {"COLLECT_URL": collector.url}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            ask(gateway.port, "GET", "/check-attribute?attribute=a&listId=l")
            ask(gateway.port, "POST", "/evaluate-event-dsl", b"{}")
            assert paths(vendor, "/check-attribute") == ["/check-attribute"]
            assert paths(collector, "/evaluate-event-dsl") == ["/eu01/evaluate-event-dsl"]
            assert paths(vendor, "/evaluate-event-dsl") == paths(collector, "/check-attribute") == []


def test_c7_lists_that_are_only_below_the_prefix_are_found_once(tmp_path):
    with Vendor(sample_document() | {"collectionPrefix": "eu01"}) as vendor:
        vendor.lists["l"] = {"a", "b"}
        with Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
            vendor.lookup_faults.append(Fault(404))
            for value in "ab":
                assert ask(gateway.port, "GET", f"/check-attribute?attribute={value}&listId=l").body == TRUE
            assert paths(vendor, "/check-attribute") == ["/check-attribute", *["/eu01/check-attribute"] * 2]


def test_c5_the_age_of_a_running_poll_is_shown(tmp_path):
    """Row C5. /status shows that a poll is running, and for how long."""
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, POLLING_TIME=200) as gateway:
        vendor.settings_faults.append(Fault(delay_seconds=3, status=200, times=20))
        eventually(lambda: (gateway.status()["last_poll"]["running_seconds"] or 0) > 0.5)
