"""Where the product decides otherwise than the reference on purpose: fixed cases, for the generator leaves them out."""

import json
from typing import Any

import pytest

from core.documents import ab, document, feature, holdout, one_feature, personalize, rollout, rule, variation
from tornado_gateway.core import (
    Context,
    Decision,
    attribute_document,
    compile_settings,
    context_from_json,
    decide,
    event_documents,
    list_value,
    operators,
    track_event_document,
)

NOW_MS = 1_700_000_000_000


def is_in(segment: dict[str, Any], context: Context) -> bool:
    decision = decide(compile_settings(one_feature(rollout(segments=segment))), "f", context)
    assert decision.error is None
    return decision.enabled


@pytest.mark.parametrize(
    ("operand", "value", "expected"),
    [
        ("true", True, True),
        ("True", True, False),
        ("false", False, True),
        ("lower(TRUE)", True, True),
        ("wildcard(*ru*)", True, True),
        ("wildcard(fal*)", False, True),
        ("regex(^true$)", True, True),
        ("1", True, False),
        ("gt(0)", True, False),
    ],
)
def test_booleans_read_as_in_json(operand: str, value: bool, expected: bool) -> None:
    segment = {"custom_variable": {"v": operand}}
    assert is_in(segment, Context("u", custom_variables={"v": value})) is expected


@pytest.mark.parametrize(
    ("operand", "version", "expected"),
    [
        ("1.1", "1.10", False),
        ("1.10", "1.10", True),
        ("gt(1.9)", "1.10", True),
        ("lt(1.9)", "1.10", False),
        ("10", "10.0", True),
        ("10.0.0", "10", True),
        ("10.0", "10.0a", False),
        ("wildcard(1.10*)", "1.10.2", True),
        ("wildcard(1.1)", "1.10", False),
        ("regex(^1\\.10$)", "1.10", True),
        ("gte(17)", "17.0", True),
        ("gte(17)", "beta", False),
        ('"1.10"', "1.10", True),
    ],
)
@pytest.mark.parametrize("operator", ["os_version", "browser_version", "ip_address"])
def test_versions_are_not_numbers(operator: str, operand: str, version: str, expected: bool) -> None:
    context = Context("u", ip_address=version, device={"os_version": version, "browser_version": version})
    assert is_in({operator: operand}, context) is expected


class TestValuesThatMatchNoOperand:
    """Row D6: lists, objects and texts above 4,096 characters."""

    OPERANDS = ["wildcard(*)", "wildcard(*x*)", "wildcard(x*)", "wildcard(*x)", "regex(.*)", "regex(x)", "lower(X)"]
    OPERANDS += ["gt(0)", "gte(0)", "lt(9)", "lte(9)", "gt(.)", "['x']", "[]", "{}", "x" * 4097, "1"]

    @pytest.mark.parametrize("value", [[], ["x"], {}, {"x": 1}, "x" * 4097, "1" * 4097, [["x" * 4097]]], ids=repr)
    @pytest.mark.parametrize("operand", OPERANDS)
    def test_d6_custom_variables(self, operand: str, value: object) -> None:
        segment = {"custom_variable": {"v": operand}}
        assert not is_in(segment, Context("u", custom_variables={"v": value}))
        assert is_in({"not": segment}, Context("u", custom_variables={"v": value}))

    @pytest.mark.parametrize("operator", ["os_version", "browser_version", "ip_address", "ua"])
    @pytest.mark.parametrize("operand", OPERANDS)
    def test_d6_other_texts(self, operator: str, operand: str) -> None:
        for value in ("x" * 4097, "1" * 4097):
            context = Context("u", ip_address=value, user_agent=value, device={operator: value})
            assert not is_in({operator: operand}, context)
        context = Context("u", device={operator: ["x"]})
        assert not is_in({operator: operand}, context)

    @pytest.mark.parametrize("value", ["x" * 4096, "1" * 4096, 5, 2.5, 2**70, True, None, ""])
    def test_d6_others_match(self, value: object) -> None:
        assert is_in({"custom_variable": {"v": "wildcard(*)"}}, Context("u", custom_variables={"v": value}))

    @pytest.mark.parametrize("value", [["x"], {}, "x" * 4097])
    def test_d6_no_list_has_them(self, value: object) -> None:
        assert list_value(value) is None
        segment = {"custom_variable": {"v": "inlist(l)"}}
        lists = {("l", "x"): True, ("l", "['x']"): True, ("l", "x" * 4097): True}
        assert not is_in(segment, Context("u", custom_variables={"v": value}, lists=lists))

    @pytest.mark.parametrize("value", ["9" * 4000, ".".join(["12"] * 1000), "9" * 4000 + "x"], ids=lambda it: it[:3])
    def test_d6_the_text_of_a_variable_is_computed_once(self, value: str) -> None:
        """Whatever the number of conditions: 0.1 ms for each comparison of versions otherwise."""
        operands = ["gt(99999)", "lt(1)", "5", "regex(^x)", "wildcard(*y*)", "lower(Y)"] * 20
        segment = {"or": [{"custom_variable": {"v": operand}} for operand in operands]}
        caches = (operators._normalised_once, operators._parts_once)
        for cache in caches:
            cache.cache_clear()
        is_in(segment, Context("u", custom_variables={"v": value}))
        assert [cache.cache_info().misses for cache in caches] <= [1, 1]


class TestLists:
    SEGMENT = {"or": [{"custom_variable": {"email": "inlist(abc123)"}}]}

    @pytest.mark.parametrize(
        ("value", "text"),
        [("a@b.io", "a@b.io"), (5, "5"), (5.0, "5"), (5.5, "5.5"), (True, "true"), (None, ""), (" x ", " x ")],
    )
    def test_member(self, value: object, text: str) -> None:
        assert list_value(value) == text
        assert is_in(self.SEGMENT, Context("u", custom_variables={"email": value}, lists={("abc123", text): True}))

    def test_not_a_member_unknown_or_without_the_variable(self) -> None:
        variables = {"email": "a@b.io"}
        assert not is_in(self.SEGMENT, Context("u", custom_variables=variables, lists={("abc123", "a@b.io"): False}))
        assert not is_in(self.SEGMENT, Context("u", custom_variables=variables))
        assert not is_in(self.SEGMENT, Context("u", lists={("abc123", ""): True}))

    @pytest.mark.parametrize("operand", ["inlist()", "inlist", "inlist abc123)"])
    def test_no_list_id(self, operand: str) -> None:
        settings = compile_settings(one_feature(rollout(segments={"custom_variable": {"email": operand}})))
        assert settings.features["f"].list_checks == ()
        assert not decide(settings, "f", Context("u", custom_variables={"email": operand})).enabled

    def test_the_name_of_the_list_may_be_anywhere_in_the_operand(self) -> None:
        segment = {"custom_variable": {"email": "lower(inlist(abc123))"}}
        lists = {("abc123", "x"): True}
        assert is_in(segment, Context("u", custom_variables={"email": "x"}, lists=lists))


class TestStoredGroupWinner:
    """B3: the stored winner is the second rule of the same personalization."""

    campaign = personalize(30, variation(1), variation(2))
    settings = compile_settings(
        document(
            [feature(1, rule(campaign, 1), rule(campaign, 2), key="f")],
            [campaign],
            groups={"1": {"name": "G", "campaigns": ["30_1", "30_2"]}},
            campaignGroups={"30_1": 1, "30_2": 1},
        )
    )

    @pytest.mark.parametrize("winner", [1, 2])
    def test_the_stored_rule_wins(self, winner: int) -> None:
        record = {"experimentId": 30, "experimentKey": "f_rule", "experimentVariationId": winner}
        decision = decide(self.settings, "f", Context("u"), stored={"_vwo_meta_meg_1": record})
        assert decision.experiment
        assert decision.experiment.variation_id == winner


class TestNewHoldouts:
    """Holdouts that came after a stored decision."""

    def test_segments_of_a_stored_holdout_see_the_current_context(self) -> None:
        """D1: the reference looks at the location of the call before."""
        segment = {"and": [{"country": "US"}]}
        settings = compile_settings(one_feature(rollout(), holdouts=[holdout(900), holdout(901, segments=segment)]))
        stored = {"f": {"isInHoldoutId": [900], "notInHoldoutId": []}}
        at_home = Context("u", ip_address="1.2.3.4", location={"country": "US"})
        abroad = Context("u", ip_address="1.2.3.4", location={"country": "DE"})
        assert decide(settings, "f", at_home, stored=stored).writes[0]["isInHoldoutId"] == [900, 901]
        decision = decide(settings, "f", abroad, stored=stored)
        assert decision.writes[0]["notInHoldoutId"] == [901]
        assert decision.reason == "holdout"

    def test_a_stored_experiment_survives(self) -> None:
        """D2: the reference forgets the experiment."""
        settings = compile_settings(one_feature(rollout(), ab(), holdouts=[holdout(900)]))
        first = decide(compile_settings(one_feature(rollout(), ab())), "f", Context("u1"), stored={})
        assert first.experiment
        assert first.experiment.id == 20
        second = decide(settings, "f", Context("u1"), stored={"f": first.writes[-1]})
        (record,) = second.writes
        assert record == {**first.writes[-1], "notInHoldoutId": [900]}
        assert [(item.campaign_id, item.variation_id) for item in second.impressions] == [(900, 2)]
        third = decide(settings, "f", Context("u1"), stored={"f": record})
        assert (third.reason, third.variables, third.writes) == ("stored", first.variables, [])


def test_a_rollout_in_a_group_aborts() -> None:
    """D5: the reference recurses until its stack is full."""
    settings = compile_settings(
        one_feature(rollout(), groups={"1": {"name": "G", "campaigns": ["10"]}}, campaignGroups={"10": 1})
    )
    decision = decide(settings, "f", Context("u"))
    assert (decision.enabled, decision.reason) == (False, "error")
    assert decision.error == "group 1 depends on itself: it has a rollout campaign"


def test_nothing_to_send_is_no_document() -> None:
    """D4: the reference posts an empty batch."""
    settings = compile_settings(one_feature(rollout(weight=0)))
    context = Context("u")
    assert event_documents(settings, context, decide(settings, "f", context), NOW_MS) == (b"", 0)


@pytest.mark.parametrize(("given", "sent"), [(2, 2), ("2", 2), (2.0, 2), (2.5, 2.5), ("b", "b")])
def test_variations_are_integers_in_events(given: Any, sent: Any) -> None:
    settings = compile_settings(one_feature(ab(variations=[variation(given)])))
    context = Context("u")
    body, count = event_documents(settings, context, decide(settings, "f", context), NOW_MS)
    props = json.loads(body)["d"]["event"]["props"]
    assert count == 1
    assert (props["variation"], type(props["variation"])) == (sent, type(sent))


class TestDevMode:
    """Row 29: with the account and the context in dev mode nothing is sent; the decision is the same."""

    @pytest.mark.parametrize(("account", "user", "silent"), [(1, 1, True), (1, 0, False), (0, 1, False), (0, 0, False)])
    def test_events(self, account: int, user: int, silent: bool) -> None:
        settings = compile_settings(one_feature(rollout(), devMode=bool(account)))
        context = context_from_json({"isDevMode": bool(user)}, "u")
        decision = decide(settings, "f", context)
        assert decision.enabled
        assert (event_documents(settings, context, decision, NOW_MS) == (b"", 0)) is silent
        assert (track_event_document(settings, context, "event1", {}, NOW_MS) == b"") is silent
        assert (attribute_document(settings, context, {"a": 1}, NOW_MS) == b"") is silent


def test_device_versions_go_with_impressions() -> None:
    settings = compile_settings(one_feature(rollout(), impactCampaign={"campaignId": 5}, holdouts=[holdout(percent=0)]))
    device = {"os": "iOS", "os_version": "17.4", "browser_version": ""}
    context = Context("u", device=device, ip_address="1.2.3.4")
    held_out, shown, impact = visitors(settings, context, decide(settings, "f", context))
    assert held_out == {"vwo_fs_environment": "sdk0"}
    assert shown == impact == {"vwo_fs_environment": "sdk0", "ip": "1.2.3.4", "vwo_osv": "17.4"}


def visitors(settings: Any, context: Context, decision: Decision) -> list[Any]:
    body, _ = event_documents(settings, context, decision, NOW_MS)
    return [json.loads(line)["d"]["visitor"]["props"] for line in body.splitlines()]
