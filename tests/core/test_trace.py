"""The explanation of a decision, as data and as lines."""

import json
from typing import Any

from core.documents import ab, document, feature, holdout, one_feature, personalize, rollout, rule, variation
from tornado_gateway.core import Context, Trace, compile_settings, decide, explain_lines


def explained(settings: Any, context: Context, key: str = "f", **given: Any) -> tuple[list[str], Trace]:
    trace = Trace()
    compiled = compile_settings(settings)
    decision = decide(compiled, key, context, trace=trace, **given)
    assert decision.body == decide(compiled, key, context, **given).body
    assert json.loads(json.dumps(trace.steps)) == trace.steps
    return explain_lines(trace), trace


def test_a_rule_that_decided() -> None:
    segment = {"and": [{"or": [{"custom_variable": {"plan": "pro"}}]}]}
    lines, trace = explained(
        one_feature(rollout(weight=50), ab(segments=segment)), Context("u1", custom_variables={"plan": "pro"})
    )
    assert lines == [
        "rollout rule rule10 (campaign 10 Campaign 10): passed",
        "traffic: bucket 23 of 100, 50% are let in: in",
        "ab rule rule20 (campaign 20 Campaign 20): passed",
        "  [x] and",
        "    [x] or",
        '      [x] plan is "pro": the user has "pro"',
        "traffic: bucket 40 of 100, 100% are let in: in",
        "variation: bucket 1351 of 10000 gives variation 1 V1 (1: 1-5000, 2: 5001-10000)",
        "f is enabled: experiment",
    ]
    assert trace.steps[1] == {"step": "traffic", "bucket": 23, "limit": 50, "passed": True}


def test_a_node_that_was_false() -> None:
    segment = {"and": [{"custom_variable": {"plan": "pro"}}, {"not": {"user": "u1,u2"}}]}
    lines, _ = explained(one_feature(rollout(segments=segment)), Context("u1", custom_variables={"plan": "pro"}))
    assert lines == [
        "rollout rule rule10 (campaign 10 Campaign 10): not passed",
        "  [ ] and",
        '    [x] plan is "pro": the user has "pro"',
        "    [ ] not",
        '      [x] user is "u1,u2": the user has "u1"',
        "f is disabled: no rule matched",
    ]


def test_a_variable_that_is_missing() -> None:
    lines, _ = explained(one_feature(rollout(segments={"custom_variable": {"plan": "pro"}})), Context("u1"))
    assert lines[1] == '  [ ] plan is "pro": the user has none'


def test_location_and_device() -> None:
    segment = {
        "and": [
            {"and": [{"country": "US"}, {"region": "CA"}]},
            {"or": [{"os": "iOS"}, {"os": "wildcard(And*)"}]},
            {"country": "DE"},
        ]
    }
    context = Context(
        "u", ip_address="1.2.3.4", user_agent="x", location={"country": "US", "region": "CA"}, device={"os": "Android"}
    )
    lines, _ = explained(one_feature(rollout(segments=segment)), context)
    assert lines[1:8] == [
        "  [x] and",
        "    [x] and",
        '      [x] country is "US", region is "CA": the user has {"country": "US", "region": "CA"}',
        "    [x] or",
        '      [ ] os is "iOS"',
        '      [x] os is ["iOS", "wildcard(And*)"]: the user has {"os": "Android"}',
        '    [-] skipped, as a location beside other conditions: {"country": "DE"}',
    ]


def test_whitelisting() -> None:
    forced = ab(isForcedVariationEnabled=True, variations=[variation(1, 50), variation(2, 50, {"user": "qa"})])
    assert explained(one_feature(forced), Context("qa"))[0] == [
        '[x] user is "qa": the user has "qa"',
        "whitelisting: the user is listed for variation 2",
        "f is enabled: whitelisted",
    ]
    assert explained(one_feature(forced), Context("u1"))[0][:2] == [
        '[ ] user is "qa": the user has "u1"',
        "whitelisting: the user is not listed",
    ]


def test_a_group() -> None:
    mine, theirs = ab(20), ab(21)
    settings = document(
        [feature(1, rule(mine)), feature(2, rule(theirs))],
        [mine, theirs],
        groups={"1": {"name": "G", "campaigns": ["20", "21"]}},
        campaignGroups={"20": 1, "21": 1},
    )
    lines, _ = explained(settings, Context("u1"), "f2", stored={})
    assert lines[:2] == [
        "ab rule rule21 (campaign 21 Campaign 21): not passed",
        "  group 1: eligible are 20, 21; campaign 20 wins at bucket 191 of 10000",
    ]
    record = {"experimentId": 20, "experimentKey": "f_rule20", "experimentVariationId": -1}
    lines, _ = explained(settings, Context("u1"), "f2", stored={"_vwo_meta_meg_1": record})
    assert lines[1] == "  stored decision for _vwo_meta_meg_1: campaign 20"


def test_holdouts() -> None:
    settings = one_feature(rollout(), holdouts=[holdout(900, 50), holdout(901, 50, {"user": "x"})])
    assert explained(settings, Context("u1"))[0] == [
        "holdout 900 Holdout 900: bucket 43 of 100, limit 50: in the holdout",
        "holdout 901 Holdout 901: its segment is not met: not in the holdout",
        '  [ ] user is "x": the user has null',
        "f is disabled: holdout",
    ]


def test_stored_decisions() -> None:
    record = {"experimentId": 20, "experimentKey": "f_rule20", "experimentVariationId": 1}
    lines, _ = explained(one_feature(ab()), Context("u1"), stored={"f": record})
    assert lines == ["stored decision for f: experiment f_rule20 variation 1", "f is enabled: stored"]
    lines, _ = explained(one_feature(ab()), Context("u1"), stored={"f": {**record, "experimentVariationId": 9}})
    assert lines[0] == "stored decision for f: experiment f_rule20 variation 9 is no longer in the settings"


def test_errors_and_unknown_features() -> None:
    lines, _ = explained(one_feature(rollout(segments={"not": {}})), Context("u1"))
    assert lines == [
        "rollout rule rule10 (campaign 10 Campaign 10): not passed",
        "  [!] not",
        "    [!] {}",
        "f is disabled: error (a segment node must be an object with an operator, got {})",
    ]
    assert explained(one_feature(), Context("u1"), "g")[0] == ["g is disabled: feature not found"]
    assert explained(one_feature(personalize()), Context("u", use_id_for_web=True))[0] == [
        "f is disabled: error (UUID passed in context is not a valid UUID)"
    ]


def test_settings_are_compiled_for_tracing_once() -> None:
    settings = compile_settings(one_feature(rollout()))
    decide(settings, "f", Context("u"), trace=Trace())
    traced = settings.source.traced
    decide(settings, "f", Context("u"), trace=Trace())
    assert traced is not None
    assert settings.source.traced is traced
    assert traced.source.is_traced


def test_d7_a_pattern_that_took_too_long() -> None:
    pattern = r"(a*)*\1b"
    trace = Trace()
    settings = compile_settings(one_feature(rollout(segments={"custom_variable": {"v": f"regex({pattern})"}})))
    decide(settings, "f", Context("u", custom_variables={"v": "a" * 4000}), trace=trace)
    assert {"step": "slow", "patterns": [pattern]} in trace.steps
    expected = "these patterns exceeded their time limit and counted as not matching: " + json.dumps([pattern])
    assert expected in explain_lines(trace)
