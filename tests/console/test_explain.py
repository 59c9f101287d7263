"""Beyond the decision, an explanation names similar keys, reasons of an unknown location, and the smallest change."""

import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.console.explain import NO_CHANGE, Explainer
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.insight.smallest_change import possible_changes

SETTINGS = core.compile_settings(sample_document())


def explainer(location=None):
    location = location or LocationReader(None)
    return Explainer(Evaluator(location, DeviceReader()), location)


async def explained(key, settings=SETTINGS, **visitor):
    explanation = await explainer().explain(settings, {"id": "user-1", "featureKey": key, **visitor})
    return explanation["decisions"][0], explanation["visitor"]["notes"]


def with_rollout(segment, traffic=100):
    """The sample account, whose feature dark-mode has this segment and traffic."""
    document = sample_document()
    campaign = next(item for item in document["campaigns"] if item["id"] == 161)
    campaign["variations"][0] |= {"segments": segment, "weight": traffic}
    return core.compile_settings(document)


async def test_an_unknown_feature_has_a_suggestion():
    decision, _ = await explained("new-chekout")
    assert (decision["enabled"], decision["did_you_mean"]) == (False, "new-checkout")
    decision, _ = await explained("zzzz")
    assert decision["did_you_mean"] is None
    assert "did_you_mean" not in (await explained("new-checkout"))[0]


async def test_an_invalid_address_and_a_missing_database_are_named(tmp_path):
    assert (await explained("new-checkout"))[1] == []
    _, notes = await explained("new-checkout", ipAddress="300.1.1.1")
    assert notes == ["The IP address “300.1.1.1” is invalid, it counts as absent: expected IPv4 or IPv6."]
    _, notes = await explained("free-shipping", ipAddress="192.0.2.7")
    assert notes == ["There is no location database (MAXMIND_DB_PATH). Country, region and city are unknown."]
    (tmp_path / "broken.mmdb").write_bytes(b"no database")
    location = LocationReader(tmp_path / "broken.mmdb")
    location.open()
    explanation = await explainer(location).explain(SETTINGS, {"id": "u", "featureKey": "free-shipping"})
    assert location.error
    assert location.error in explanation["visitor"]["notes"][0]


PLAN = {"custom_variable": {"plan": "gold"}}
AGE = {"custom_variable": {"age": "gte(18)"}}


@pytest.mark.parametrize(
    ("segment", "visitor", "text"),
    [
        (PLAN, {}, 'set plan to "gold"'),
        ({"and": [AGE, PLAN]}, {"customVariables": {"plan": "gold", "age": 3}}, "set age to 18"),
        ({"not": PLAN}, {"customVariables": {"plan": "gold"}}, "remove plan"),
        ({"or": [{"custom_variable": {"plan": "wildcard(*go*)"}}]}, {}, 'set plan to "go"'),
        ({"and": [{"country": "Germany"}]}, {}, 'visit from country "Germany"'),
        ({"or": [{"device_type": "Mobile Phone"}]}, {}, 'use a device with device_type "Mobile Phone"'),
        ({"and": [AGE, PLAN]}, {}, NO_CHANGE),  # two conditions fail
        ({"custom_variable": {"plan": "regex(^g+$)"}}, {}, NO_CHANGE),
        ({"user": "another"}, {}, NO_CHANGE),
    ],
    ids=str,
)
async def test_the_smallest_change_of_a_visitor_turns_the_feature_on(segment, visitor, text):
    settings = with_rollout(segment)
    decision, _ = await explained("dark-mode", settings, **visitor)
    assert not decision["enabled"]
    assert decision["change"]["text"] == text
    assert decision["change"]["found"] == (text != NO_CHANGE)
    changed = (decision["change"]["fields"] or {}).get("customVariables")
    if changed is not None:
        kept = {**visitor.get("customVariables", {}), **changed}
        kept = {name: value for name, value in kept.items() if value is not None}
        assert (await explained("dark-mode", settings, customVariables=kept))[0]["enabled"]


async def test_the_share_of_traffic_can_be_the_smallest_change():
    decision, _ = await explained("dark-mode")
    bucket = next(step["bucket"] for step in decision["steps"] if step["step"] == "traffic")
    expected = f"raise the traffic of rolloutRule1 from 30 % to {bucket} %: this visitor's bucket is {bucket}"
    assert decision["change"] == {"found": True, "text": expected, "fields": None}
    assert (await explained("dark-mode", with_rollout({}, bucket)))[0]["enabled"]
    decision, _ = await explained("dark-mode", with_rollout(PLAN, bucket - 1))
    assert decision["change"]["text"] == NO_CHANGE  # neither of the two suffices


async def test_a_list_reads_the_targeting_variables():
    decision, _ = await explained("beta-console")
    assert decision["change"]["text"] == 'set the targeting variable team to "console"'
    targeted, _ = await explained("beta-console", variationTargetingVariables={"team": "console"})
    assert targeted["enabled"]


def test_a_large_trace_gives_few_changes():
    steps = [{"step": "segment", "node": {"custom_variable": {f"v{n}": "x"}}, "result": False} for n in range(1000)]
    assert len(possible_changes([{"step": "rule", "passed": False, "steps": steps}])) == 12
