"""Flags that are remembered by their paths, and responses by the decisions that they were made for."""

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.api.ofrep.errors import ROOT
from tornado_gateway.api.ofrep.flags import LONGEST_PATH, MAX_PATHS, Flags
from tornado_gateway.core.types import RuleMatch

SETTINGS = core.compile_settings(sample_document())
KEY = "recommendations"


def decision():
    return core.decide(SETTINGS, KEY, core.context_from_json({}, "user-1"))


def of_no_impression(changed):
    changed.impressions = []


def of_another_experiment(changed):
    changed.experiment = RuleMatch(987, "another", 2)


def of_another_rollout(changed):
    changed.rollout, changed.experiment = RuleMatch(988, "another", 2), None


def of_another_reason(changed):
    changed.reason = "whitelisted"


@pytest.mark.parametrize("change", [of_no_impression, of_another_experiment, of_another_rollout, of_another_reason])
def test_a_response_is_that_of_its_own_decision(change):
    """Decisions with the same variation may differ in all else."""
    flags, other = Flags(SETTINGS), decision()
    flag = flags.find(KEY)
    first = flags.answer(flag, decision())
    assert flags.answer(flag, decision()) is first
    change(other)
    assert flags.answer(flag, other).response.body == Flags(SETTINGS).answer(flag, other).response.body
    assert flags.answer(flag, decision()) is first


def test_impressions_that_are_removed_later_stay_those_of_the_response():
    """Recent impressions are removed from a decision after its response was made."""
    flags, first = Flags(SETTINGS), decision()
    flag = flags.find(KEY)
    made = flags.answer(flag, first)
    first.impressions.clear()
    assert flags.answer(flag, decision()) is made
    assert b"exposure" in made.response.body
    assert b"exposure" not in flags.answer(flag, first).response.body


def test_paths_are_remembered_with_their_flags_in_bounded_number():
    flags = Flags(SETTINGS)
    assert flags.at(ROOT + KEY.encode(), None).key == KEY
    assert flags.by_path[ROOT + KEY.encode()] is flags.find(KEY)
    assert flags.at(ROOT + b"unknown", None) is None
    for number in range(1, MAX_PATHS + 1):
        assert flags.at(b"/" * number + ROOT + KEY.encode(), None) is flags.find(KEY)
    assert len(flags.by_path) <= MAX_PATHS
    assert max(map(len, flags.by_path)) <= LONGEST_PATH


def test_a_path_with_a_variable_in_the_context_is_not_remembered():
    """The same path stands for the feature in other requests."""
    flags = Flags(SETTINGS)
    feature = SETTINGS.features[KEY]
    variation = next(rule for rule in feature.experiments).variations[0]
    name = orjson.loads(variation.body)["variables"][0]["key"]
    assert flags.at(ROOT + KEY.encode(), name).variable == name
    assert not flags.by_path
    assert flags.at(ROOT + KEY.encode(), None).variable is None
