"""Contexts from JSON, ids and uuids, event documents, and what hostile values do."""

import json
from typing import Any

import pytest

from core.documents import ab, holdout, one_feature, rollout
from tornado_gateway.core import (
    Context,
    attribute_document,
    attributes_problem,
    compile_settings,
    context_from_json,
    context_problem,
    decide,
    event_documents,
    event_problem,
    track_event_document,
    uuid_of,
)

NOW_MS = 1_700_000_000_123
WEB_UUID = "D7E2EAA667909A2DB8A6371FF0975C2A5"
SETTINGS = compile_settings(one_feature(rollout(), ab()))


# --- contexts ----------------------------------------------------------------


def test_every_field() -> None:
    fields = {
        "bucketingSeed": "team",
        "customVariables": {"a": 1},
        "variationTargetingVariables": {"b": 2},
        "postSegmentationVariables": ["a", 5],
        "platformVariables": {"webTestingCampaigns": {"1": "2"}},
        "userAgent": "agent",
        "ipAddress": "1.2.3.4",
        "_vwo": {"location": {"country": "US"}, "userAgent": {"os": "iOS"}},
        "sessionId": 5,
        "useIdForWeb": True,
        "isDevMode": True,
        "featureKey": "ignored",
    }
    context = context_from_json(fields, "u")
    assert {name: getattr(context, name) for name in dir(context) if not name.startswith("_")} == {
        "user_id": "u",
        "bucketing_seed": "team",
        "custom_variables": {"a": 1},
        "variation_targeting_variables": {"b": 2},
        "post_segmentation_variables": ("a",),
        "web_testing_campaigns": {"1": "2"},
        "user_agent": "agent",
        "ip_address": "1.2.3.4",
        "location": {"country": "US"},
        "device": {"os": "iOS"},
        "session_id": 5,
        "use_id_for_web": True,
        "is_dev_mode": True,
        "lists": {},
    }


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({}, "custom_variables", {}),
        ({"customVariables": None}, "custom_variables", None),
        ({"customVariables": "text"}, "custom_variables", None),
        ({"bucketingSeed": 5}, "bucketing_seed", None),
        ({"userAgent": 5}, "user_agent", None),
        ({"ipAddress": ""}, "ip_address", ""),
        ({"postSegmentationVariables": "a"}, "post_segmentation_variables", ()),
        ({"platformVariables": "text"}, "web_testing_campaigns", None),
        ({"useIdForWeb": 1}, "use_id_for_web", False),
        ({"_vwo": {}, "_wingify": {"location": {"city": "X"}}}, "location", {"city": "X"}),
        ({"_vwo": {"location": {"city": "X"}}}, "device", {}),
        ({"_vwo": {"location": None}}, "location", {}),
        ({"_vwo": "text"}, "location", None),
    ],
)
def test_lenient_fields(fields: Any, name: str, value: object) -> None:
    assert getattr(context_from_json(fields, "u"), name) == value


def test_null_variables_abort_with_the_first_rule_only() -> None:
    context = context_from_json({"customVariables": None}, "u")
    assert decide(SETTINGS, "f", context).error == "the custom variables are null"
    assert decide(SETTINGS, "unknown", context).error is None


# --- who the user is ---------------------------------------------------------


def test_web_uuids() -> None:
    connected, cut_off = SETTINGS, compile_settings(one_feature(rollout(), isWebConnectivityEnabled=False))
    assert uuid_of(connected, Context(WEB_UUID)) == WEB_UUID
    assert uuid_of(connected, Context(WEB_UUID + "\n")) != WEB_UUID + "\n"
    assert uuid_of(cut_off, Context(WEB_UUID)) == "B61BAD8A215152CE8E6A6EA028EC3598"
    assert context_problem(connected, Context("u", use_id_for_web=True))
    assert context_problem(connected, Context(WEB_UUID, use_id_for_web=True)) is None
    assert context_problem(cut_off, Context("u", use_id_for_web=True)) is None
    refused = decide(connected, "f", Context("u", use_id_for_web=True))
    assert (refused.enabled, refused.uuid, refused.reason) == (False, None, "error")


def test_holdout_events_know_no_web_uuid_and_no_session() -> None:
    settings = compile_settings(one_feature(rollout(), holdouts=[holdout(percent=0)]))
    context = Context(WEB_UUID, session_id=5)
    held_out, shown = documents(settings, context)
    assert (held_out["visId"], held_out["sessionId"]) == ("B61BAD8A215152CE8E6A6EA028EC3598", NOW_MS // 1000)
    assert (shown["visId"], shown["sessionId"]) == (WEB_UUID, 5)
    assert held_out["event"]["props"]["fId"] == 1


@pytest.mark.parametrize("seed", [None, "", "  "])
def test_a_blank_seed_is_none(seed: str | None) -> None:
    half = compile_settings(one_feature(rollout(weight=50)))
    assert decide(half, "f", Context("u1", bucketing_seed=seed)).enabled
    assert not decide(half, "f", Context("u1", bucketing_seed="u2")).enabled


def test_an_empty_id() -> None:
    settings = compile_settings(one_feature(rollout(), isMAU=True))
    decision = decide(settings, "f", Context(""), stored={})
    assert (decision.enabled, decision.uuid, decision.writes, decision.usage) == (False, None, [], True)
    (usage,) = documents(settings, Context(""))
    assert usage["visId"] is None


def test_a_lone_surrogate_aborts() -> None:
    assert decide(SETTINGS, "f", Context("\ud800")).reason == "error"
    assert decide(SETTINGS, "f", Context("u", bucketing_seed="\ud800")).reason == "error"


# --- documents ---------------------------------------------------------------


def documents(settings: Any, context: Context) -> list[Any]:
    body, count = event_documents(settings, context, decide(settings, "f", context), NOW_MS)
    lines = body.splitlines()
    assert len(lines) == count
    return [json.loads(line)["d"] for line in lines]


def test_a10_each_event_has_a_message_id_of_its_own() -> None:
    context = Context("u1")
    decision = decide(SETTINGS, "f", context)
    body, count = event_documents(SETTINGS, context, decision, NOW_MS, 0xAB0)
    ids = [json.loads(line)["d"]["msgId"] for line in body.splitlines()]
    ids.append(json.loads(track_event_document(SETTINGS, context, "event1", {}, NOW_MS, 0xCD0))["d"]["msgId"])
    ids.append(json.loads(attribute_document(SETTINGS, context, {"a": 1}, NOW_MS, 0xEF0))["d"]["msgId"])
    start = f"E012891C2EB85923932F7D318E2D678D-{NOW_MS}-"
    assert ids == [f"{start}{number}" for number in (*range(0xAB0, 0xAB0 + count), 0xCD0, 0xEF0)]
    assert count > 1


def test_a10_all_kinds_of_events_of_one_call_are_counted() -> None:
    holdouts = [holdout(number, percent=0) for number in (900, 901)]
    settings = compile_settings(one_feature(rollout(), holdouts=holdouts, isMAU=True, isDebuggerEnabled=True))
    names = [
        (event["msgId"].rpartition("-")[2], event["event"]["name"]) for event in documents(settings, Context("u1"))
    ]
    shown = [(str(number), "vwo_variationShown") for number in range(3)]
    assert names == [*shown, ("3", "vwo_sdkDebug")]
    settings = compile_settings(one_feature(rollout(weight=0), isMAU=True, isDebuggerEnabled=True))
    assert [event["msgId"].rpartition("-")[2] for event in documents(settings, Context("u1"))] == ["0", "1"]


def test_an_impression() -> None:
    context = Context(
        "u1",
        user_agent='agent "7"\n',
        ip_address="1.2.3.4",
        session_id=9,
        custom_variables={"plan": "é", "empty": None},
        post_segmentation_variables=("plan", "empty", "missing", "_vwoUserId"),
    )
    _, shown = documents(SETTINGS, context)
    assert shown == {
        "msgId": f"E012891C2EB85923932F7D318E2D678D-{NOW_MS}-1",
        "visId": "E012891C2EB85923932F7D318E2D678D",
        "sessionId": 9,
        "visitor_ua": 'agent "7"\n',
        "visitor_ip": "1.2.3.4",
        "visitor": {
            "props": {
                "vwo_fs_environment": "sdk0",
                "plan": "é",
                "empty": None,
                "_vwoUserId": "u1",
                "ip": "1.2.3.4",
            }
        },
        "event": {
            "time": NOW_MS,
            "name": "vwo_variationShown",
            "props": {
                "vwo_sdkName": "fme-gateway",
                "vwo_sdkVersion": "0",
                "vwo_envKey": "sdk0",
                "id": 20,
                "variation": 1,
                "isFirst": 1,
            },
        },
    }


def test_usage_and_debug_come_last() -> None:
    settings = compile_settings(one_feature(rollout(weight=0), isMAU=True, isDebuggerEnabled=True))
    usage, debug = documents(settings, Context("u1"))
    assert usage["event"]["name"] == "vwo_feTrackUsage"
    meta = debug["event"]["props"]["vwoMeta"]
    assert (meta["msg_t"], meta["msg"]) == ("FLAG_DECISION_GIVEN", "Flag decision given for feature:f.")
    assert usage["sessionId"] == meta["sId"] == NOW_MS // 1000


def test_custom_events() -> None:
    body = track_event_document(SETTINGS, Context("u1"), "event1", {"id": 7, "big": 10**30}, NOW_MS)
    props = json.loads(body)["d"]["event"]["props"]
    assert {name: props[name] for name in ("isCustomEvent", "variation", "id", "big")} == {
        "isCustomEvent": True,
        "variation": 1,
        "id": 7,
        "big": 10**30,
    }
    assert (
        event_problem(SETTINGS, Context("u1"), "other") == "event other belongs to no metric of a feature or a holdout"
    )
    assert track_event_document(SETTINGS, Context("u1"), "other", {}, NOW_MS) == b""
    assert track_event_document(SETTINGS, Context("u1", use_id_for_web=True), "event1", {}, NOW_MS) == b""


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"a": 1, "b": "", "c": False, "d": 1.5}, None),
        ({}, "attributes: expected an object with at least one key"),
        ([], "attributes: expected an object with at least one key"),
        ({"a": None}, "attributes.a: expected a string, number or boolean"),
        ({"a": [1]}, "attributes.a: expected a string, number or boolean"),
    ],
)
def test_attributes(attributes: Any, problem: str | None) -> None:
    assert attributes_problem(attributes) == problem
    body = attribute_document(SETTINGS, Context("u1"), attributes, NOW_MS)
    assert bool(body) is (problem is None)


# --- hostile values ----------------------------------------------------------


@pytest.mark.parametrize(
    ("operand", "value"),
    [("regex(x$)", "a" * 5_000 + "x"), ("gt(5)", "9" * 5_000 + ".1.1"), ("gt(5)", "²"), ("gt(.)", "5"), ("gt(5)", [9])],
)
def test_values_that_match_nothing(operand: str, value: object) -> None:
    settings = compile_settings(one_feature(rollout(segments={"custom_variable": {"v": operand}})))
    decision = decide(settings, "f", Context("u", custom_variables={"v": value}))
    assert (decision.enabled, decision.error) == (False, None)


@pytest.mark.parametrize("pattern", ["(", "(?<n>a)", "\\p{L}", "(?<=a*)b", "a{99999999999}", "[[a]b"])
def test_patterns_that_do_not_compile_match_nothing(pattern: str) -> None:
    settings = compile_settings(one_feature(rollout(segments={"custom_variable": {"v": f"regex({pattern})"}})))
    assert not decide(settings, "f", Context("u", custom_variables={"v": "x"})).enabled


def test_nested_json_of_web_campaigns() -> None:
    settings = compile_settings(one_feature(rollout(segments={"not": {"campaignVariation": "1"}})))
    context = Context("u", web_testing_campaigns="[" * 100_000)
    assert decide(settings, "f", context).enabled
