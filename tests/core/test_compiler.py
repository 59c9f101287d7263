"""Compiling settings: what is refused and how it is said, what is prepared, that nothing changes afterwards."""

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from core.documents import ab, document, feature, holdout, one_feature, personalize, rollout, rule, variation
from core.generator import Generator
from tornado_gateway.core import Context, Sdk, SettingsError, Trace, compile_settings, context_from_json, decide

Change = Callable[[Any], None]


def test_a_document_is_not_changed() -> None:
    settings = one_feature(rollout(), ab(), personalize())
    before = copy.deepcopy(settings)
    compiled = compile_settings(settings)
    decide(compiled, "f", Context("u"), stored={}, trace=Trace())
    assert settings == before
    assert compiled.document is settings


# --- messages ----------------------------------------------------------------


def broken(change: Change) -> Any:
    settings = one_feature(rollout(), ab(), holdouts=[holdout()], groups={"1": {"name": "G", "campaigns": ["20"]}})
    change(settings)
    return settings


MESSAGES: list[tuple[str, Change]] = [
    (
        "campaigns[1].variations[0].weight: expected a number or string, got null",
        lambda it: it["campaigns"][1]["variations"][0].update(weight=None),
    ),
    ("version: expected a number or string, got nothing", lambda it: it.pop("version")),
    ("accountId: expected a number or string, got true", lambda it: it.update(accountId=True)),
    ("sdkKey: expected a string that is not empty, got nothing", lambda it: it.pop("sdkKey")),
    ("features: expected an array, got an object with keys", lambda it: it.update(features={"a": 1})),
    ("features[0].rules: expected an array, got nothing", lambda it: it["features"][0].pop("rules")),
    (
        'features[0].rules[1].campaignId: expected a number, got the string "20"',
        lambda it: it["features"][0]["rules"][1].update(campaignId="20"),
    ),
    ("campaigns[0]: expected an object, got the number 5", lambda it: it["campaigns"].__setitem__(0, 5)),
    (
        'campaigns[1].variations[0].weight: expected a number in this type of campaign, got the string "50"',
        lambda it: it["campaigns"][1]["variations"][0].update(weight="50"),
    ),
    (
        "features[0].rules[0].campaignId: expected a campaign with variations, got campaign 10 without",
        lambda it: it["campaigns"][0].update(variations=[]),
    ),
    (
        "campaigns[0].variations[0].variables[0].value: expected a number, string, boolean or object, got an array",
        lambda it: it["campaigns"][0]["variations"][0]["variables"][0].update(value=[]),
    ),
    ("holdouts[0].featureIds[0]: expected a number, got null", lambda it: it["holdouts"][0].update(featureIds=[None])),
    ("groups.x: expected a key like 123, got this key", lambda it: it["groups"].update(x={})),
    (
        'groups.1.campaigns[1]: expected no duplicates, got the string "20"',
        lambda it: it["groups"]["1"]["campaigns"].append("20"),
    ),
    ("groups.1.wt.20: expected a number, got null", lambda it: it["groups"]["1"].update(wt={"20": None})),
    ("campaignGroups.20: expected a number, got null", lambda it: it.update(campaignGroups={"20": None})),
]


@pytest.mark.parametrize(("message", "change"), MESSAGES, ids=[message for message, _ in MESSAGES])
def test_the_message_names_the_key(message: str, change: Change) -> None:
    with pytest.raises(SettingsError) as caught:
        compile_settings(broken(change))
    assert caught.value.problems == (message,)
    assert str(caught.value) == message


def test_all_problems_at_once_but_not_endlessly() -> None:
    settings = one_feature(*[rollout(number) for number in range(10, 60)])
    for campaign in settings["campaigns"]:
        del campaign["name"]
    with pytest.raises(SettingsError) as caught:
        compile_settings(settings)
    assert len(caught.value.problems) == 20
    assert caught.value.problems[1] == "campaigns[1].name: expected a string, got nothing"


@pytest.mark.parametrize("value", [None, [], "text", 5, True])
def test_something_else_than_an_object(value: object) -> None:
    with pytest.raises(SettingsError, match="document: expected an object, got"):
        compile_settings(value)


def test_segments_as_deep_as_nobody_writes_them() -> None:
    """The document stays usable; only who reaches the node gets an error."""
    segment: Any = {"user": "u"}
    for _ in range(900):
        segment = {"not": segment}
    settings = compile_settings(
        document([feature(1, rule(rollout(10))), feature(2, rule(rollout(11)))], [rollout(10, segment), rollout(11)])
    )
    assert decide(settings, "f2", Context("u")).enabled
    assert decide(settings, "f1", Context("u")).error == "a segment is nested more than 200 levels deep"


# --- what is prepared --------------------------------------------------------


def test_account_wide_values() -> None:
    settings = compile_settings(
        one_feature(isMAU=True, collectionPrefix="as01", version=3, accountId="99"),
        sdk=Sdk("name", "1.0"),
    )
    assert (settings.account_id, settings.sdk_key, settings.version, settings.is_mau) == ("99", "sdk0", 3, True)
    assert (settings.collection_prefix, settings.sdk) == ("as01", Sdk("name", "1.0"))


@pytest.mark.parametrize("value", [" ", 5])
def test_a_collection_prefix_that_is_none(value: object) -> None:
    assert compile_settings(one_feature(collectionPrefix=value)).collection_prefix is None


def test_the_first_feature_of_a_key_and_the_last_campaign_of_an_id() -> None:
    late = rollout(10, weight=0)
    settings = document([feature(1, rule(late), key="f"), feature(2, key="f"), feature(3)], [rollout(10), late])
    compiled = compile_settings(settings)
    assert list(compiled.features) == ["f", "f3"]
    assert compiled.features["f"].id == 1
    assert not decide(compiled, "f", Context("u")).enabled


def test_event_names_are_those_of_features_and_holdouts() -> None:
    metric = {"id": 5, "type": "CUSTOM_GOAL", "identifier": "held"}
    settings = document(
        [feature(1), feature(2)],
        [],
        holdouts=[holdout(metrics=[metric]), holdout(901, m=[{**metric, "identifier": "m"}]), holdout(902, m=5)],
    )
    assert compile_settings(settings).event_names == {"event1", "event2", "held", "m"}


def test_settings_are_immutable() -> None:
    settings = compile_settings(one_feature(rollout()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.is_mau = True  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.features["f"].key = "g"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.features["g"] = settings.features["f"]  # type: ignore[index]


def test_the_document_is_read_again_for_those_who_ask() -> None:
    reads = []

    def read_again() -> Any:
        reads.append(one_feature(rollout()))
        return reads[-1]

    settings = compile_settings(one_feature(rollout()), read_again=read_again)
    assert decide(settings, "f", Context("u")).enabled
    assert not reads
    assert settings.document is settings.document is reads[0]
    assert decide(settings, "f", Context("u"), trace=Trace()).enabled
    assert len(reads) == 1


def test_what_is_equal_is_shared_between_features() -> None:
    segment = {"or": [{"custom_variable": {"plan": "gold"}}]}
    campaigns = [rollout(10), rollout(11), ab(20, segments=segment), ab(21, segments=copy.deepcopy(segment))]
    features = [feature(1, *map(rule, campaigns[::2])), feature(2, *map(rule, campaigns[1::2]))]
    one, other = compile_settings(document(features, campaigns)).features.values()
    assert one.experiments[0].segment is other.experiments[0].segment is not None
    assert one.rollouts[0].first.body is other.rollouts[0].first.body


def test_texts_of_segments_tell_them_apart() -> None:
    """Segments that Python finds equal, and that are not alike."""
    campaigns = [rollout(10, segments={"or": [{"ua": 1}]}), rollout(11, segments={"or": [{"ua": True}]})]
    features = [feature(number, rule(campaign)) for number, campaign in enumerate(campaigns)]
    settings = compile_settings(document(features, campaigns))
    errors = [decide(settings, key, Context("u", user_agent="x")).error for key in settings.features]
    assert errors == ["ua needs a text, got 1", "ua needs a text, got True"]


def test_settings_go_with_the_last_reference() -> None:
    """Without the garbage collector, which is kept from looking at what stays: nothing refers back."""
    documents = [Generator(seed).settings() for seed in range(300)]
    groups = 0
    gc.collect()
    gc.disable()
    try:
        for generated in documents:
            try:
                settings = compile_settings(generated)
            except SettingsError:
                continue
            for key in settings.features:
                decide(settings, key, Context("u"), stored={}, trace=Trace() if groups % 2 else None)
            groups += len(settings.group_features)
            settings_left = weakref.ref(settings.source.lifetime)
            del settings
            assert settings_left() is None
        found = gc.collect()
    finally:
        gc.enable()
    assert found == 0
    assert groups > 20


def test_parts_are_nearly_all() -> None:
    """What remains when the parts are kept is little, however many features there are."""
    campaigns = [rollout(number) for number in range(10, 60)]
    settings = compile_settings(document([feature(number) for number in range(50)], campaigns))
    decide(settings, "f1", Context("u"), trace=Trace())
    parts = settings.parts()
    assert {id(part) for part in settings.features.values()} <= {id(part) for part in parts}
    assert {id(part) for part in settings.source.traced.features.values()} <= {id(part) for part in parts}
    assert all(any(campaign is part for part in parts) for campaign in campaigns)


COUNTRY = {"and": [{"country": "US"}]}
DEVICE = {"or": [{"os": "iOS"}]}
OS_VERSION = {"os_version": "gt(1.2)"}
FORCED_COUNTRY = ab(isForcedVariationEnabled=True, variations=[variation(1, 100, COUNTRY)])
NEEDS: list[tuple[str, Any, tuple[bool, bool]]] = [
    ("nothing", one_feature(rollout(), ab()), (False, False)),
    ("location of a rollout", one_feature(rollout(segments=COUNTRY)), (True, False)),
    ("device of a test", one_feature(ab(segments=DEVICE)), (False, True)),
    ("a version", one_feature(personalize(30, variation(1, 100, OS_VERSION))), (False, True)),
    ("a word alone", one_feature(rollout(segments={"custom_variable": {"city": "x"}})), (False, False)),
    ("a place that no operator looks at", one_feature(rollout(segments={"not": {"country": "US"}})), (False, False)),
    ("only whitelisting: not marked", one_feature(FORCED_COUNTRY), (False, False)),
    ("whitelisting of a marked feature", one_feature(FORCED_COUNTRY, rollout(segments=DEVICE)), (True, True)),
    ("device alone does not mark", one_feature(rollout(segments={"or": [{"device": "x"}]})), (False, False)),
    ("own holdout", one_feature(rollout(), holdouts=[holdout(segments=COUNTRY)]), (True, False)),
    ("holdout of others", one_feature(rollout(), holdouts=[holdout(segments=COUNTRY, featureIds=[7])]), (False, False)),
    (
        "a holdout of others marks for everybody",
        one_feature(FORCED_COUNTRY, holdouts=[holdout(segments=DEVICE, featureIds=[7])]),
        (True, False),
    ),
    ("not the first variation", one_feature(personalize(30, variation(1), variation(2, 1, COUNTRY))), (False, False)),
]


@pytest.mark.parametrize(("settings", "expected"), [item[1:] for item in NEEDS], ids=[item[0] for item in NEEDS])
def test_needs(settings: Any, expected: tuple[bool, bool]) -> None:
    found = compile_settings(settings).features["f"]
    assert (found.needs_location, found.needs_device) == expected


def test_needs_through_a_group() -> None:
    """Deciding one feature evaluates the rules of the others in its group, as far as the feature itself is marked."""
    mine, theirs = ab(20, segments={"ua": "x"}), ab(21, segments=COUNTRY)
    groups = {"groups": {"1": {"name": "G", "campaigns": ["20", "21"]}}, "campaignGroups": {"20": 1, "21": 1}}
    features = [feature(1, rule(mine)), feature(2, rule(theirs))]
    assert compile_settings(document(features, [mine, theirs], **groups)).features["f1"].needs_location
    assert not compile_settings(document(features, [mine, theirs])).features["f1"].needs_location


def test_list_checks() -> None:
    forced = ab(isForcedVariationEnabled=True, variations=[variation(1, 100, {"custom_variable": {"v": "inlist(b)"}})])
    gate = {"or": [{"custom_variable": {"v": "inlist(a)"}}, {"custom_variable": {"v": "inlist(a)"}}]}
    assert compile_settings(one_feature(rollout(segments=gate), forced)).features["f"].list_checks == (
        ("v", "a"),
        ("v", "b"),
    )


def test_storage_keys() -> None:
    mine = ab(20, segments={"or": [{"featureId": {"3": "on"}}]})
    theirs = ab(21)
    settings = document(
        [feature(1, rule(mine)), feature(2, rule(theirs)), feature(3)],
        [mine, theirs],
        groups={"1": {"name": "G", "campaigns": ["20", "21"]}},
        campaignGroups={"20": 1, "21": 1},
    )
    features = compile_settings(settings).features
    assert set(features["f1"].storage_keys) == {"f1", "f2", "f3", "_vwo_meta_meg_1"}
    assert features["f3"].storage_keys == ("f3",)


class Recording(dict[str, Any]):
    """Records that remember who was asked for."""

    def __init__(self, records: dict[str, Any]) -> None:
        super().__init__(records)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def test_decisions_read_only_the_storage_keys() -> None:
    reads = 0
    for seed in range(400):
        generator = Generator(seed)
        generated = generator.settings()
        try:
            settings = compile_settings(generated)
        except SettingsError:
            continue
        for _ in range(5):
            fields, key = generator.context(generated), generated["features"][0]["key"]
            records = Recording(generator.records(generated))
            decide(settings, key, context_from_json(fields, fields["id"]), stored=records)
            assert records.read <= set(settings.features[key].storage_keys)
            reads += len(records.read) > 1
    assert reads > 50
