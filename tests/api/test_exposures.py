"""Which exposures count as recorded a moment ago: only those that were stored, in their own environment."""

import re
import time

import pytest
from exchanges import exchange
from process import Gateway, sample_document
from several import KEYS, KeyedVendor, gateway_of
from vendor import Fault, Vendor

from tornado_gateway import core
from tornado_gateway.api.ofrep import exposures
from tornado_gateway.api.ofrep.exposures import RecentExposures, name_of
from tornado_gateway.events.group_commit import Group

SETTINGS = core.compile_settings(sample_document())
FEATURES = list(SETTINGS.features)


def decision(feature="new-checkout", settings=SETTINGS):
    return core.decide(settings, feature, core.context_from_json({}, "user-1"))


def kept(recent, of):
    return recent.keep_new("production", of, tuple(map(name_of, of.impressions)))


def is_repeat(recent):
    again = decision()
    return not kept(recent, again) and not again.impressions


def note(recent, gate):
    recent.note_once_stored(gate, kept(recent, decision()))


def test_stored_exposure_is_not_repeated():
    recent, group = RecentExposures(), Group(one_gate=False)
    note(recent, group.decisions)
    assert not is_repeat(recent)
    group.open()
    assert is_repeat(recent)


@pytest.mark.parametrize("one_gate", [False, True])
def test_exposure_that_could_not_be_stored_is_recorded_again(one_gate):
    """Decisions are released without a failure if their impressions are lost, so a lost one counted as recorded."""
    recent, group = RecentExposures(), Group(one_gate=one_gate)
    note(recent, group.decisions)
    group.release("the disk is full")
    assert not is_repeat(recent)


def test_exposure_that_a_full_queue_rejected_is_recorded_again():
    recent = RecentExposures()
    note(recent, None)
    assert not is_repeat(recent)


def holdout_of(*features):
    """Settings in which every visitor is held out of these features."""
    ids = [SETTINGS.features[feature].id for feature in features]
    holdout = {"id": 900, "name": "h", "segments": {}, "featureIds": ids, "isGlobal": False, "percentTraffic": 100}
    return core.compile_settings(sample_document() | {"holdouts": [holdout | {"metrics": []}]})


def test_a_holdout_of_two_features_is_recorded_for_each():
    """The features have the same holdout and variation, so that of the second one counted as a repetition."""
    recent, group, features = RecentExposures(), Group(one_gate=False), FEATURES[:2]
    settings = holdout_of(*features)
    recent.note_once_stored(group.decisions, kept(recent, decision(features[0], settings)))
    group.open()
    second = decision(features[1], settings)
    assert kept(recent, second)
    assert [shown.feature_id for shown in second.impressions] == [settings.features[features[1]].id]


def test_only_the_new_ones_of_several_impressions_are_recorded():
    recent = RecentExposures()
    first, again = decision("recommendations"), decision("recommendations")
    assert len(first.impressions) == 2
    known = first.impressions.pop(0)
    stored(recent, first)
    again.vwo_user_ids = {0: "a", 1: "b"}
    stored(recent, again)
    assert (again.impressions, again.vwo_user_ids) == ([known], {0: "a"})


def test_a_visitor_who_changes_between_two_variations_has_each_recorded_once():
    """As with another plan at another page. The entry of the second one replaced that of the first."""
    recent = RecentExposures()
    rollout, experiment = decision("recommendations").impressions
    for shown, new in (([rollout], 1), ([rollout, experiment], 1), ([rollout], 0), ([experiment], 0)):
        one = decision("recommendations")
        one.impressions = shown
        if kept(recent, one) is not None:
            stored(recent, one)
        assert len(one.impressions) == new


@pytest.mark.parametrize("has_one_gate", [True, False])
def test_two_variations_of_a_visitor_at_the_same_time_are_both_remembered(has_one_gate):
    """The entry of the second one replaced that of the first."""
    recent, groups = RecentExposures(), [Group(one_gate=False), Group(one_gate=False)]
    for impression, group in zip(decision("recommendations").impressions, groups, strict=True):
        one = decision("recommendations")
        one.impressions = [impression]
        recent.note_once_stored(groups[0].decisions if has_one_gate else group.decisions, kept(recent, one))
    for group in groups:
        group.open()
    again = decision("recommendations")
    assert kept(recent, again) is None
    assert not again.impressions


def test_a_decision_without_impressions_is_always_recorded():
    """It may have a usage or a debug event, which counted as repetitions."""
    recent = RecentExposures()
    for shown in ([], decision().impressions, []):
        one = decision()
        one.impressions = shown
        assert kept(recent, one) is not None
        if shown:
            stored(recent, one)


def stored(recent, of):
    group = Group(one_gate=False)
    recent.note_once_stored(group.decisions, kept(recent, of))
    group.open()


def unshown(visitors):
    """Entries without impressions."""
    return [(visitor, ()) for visitor in visitors]


class Clock:
    """A recent memory of 60 seconds, and its time."""

    def __init__(self, monkeypatch, **options):
        self.now = float(int(time.monotonic()))  # sums of whole seconds are exact
        monkeypatch.setattr(exposures.time, "monotonic", lambda: self.now)
        self.recent = RecentExposures(seconds=60, **options)

    def note(self):
        stored(self.recent, decision())


@pytest.mark.parametrize("noted_at", [0, 1, 29, 31, 59, 61, 1000])
@pytest.mark.parametrize("is_used", [False, True])
def test_exposures_are_remembered_for_60_to_120_seconds(monkeypatch, noted_at, is_used):
    clock = Clock(monkeypatch)
    clock.now += noted_at
    clock.note()
    seconds = 0
    while is_repeat(clock.recent):
        clock.now += 1
        seconds += 1
        if is_used:  # by other visitors
            clock.recent.note(unshown([seconds]))
    assert 60 <= seconds <= 120


def test_exposures_are_recorded_again_after_a_long_time_without_others(monkeypatch):
    clock = Clock(monkeypatch)
    clock.note()
    clock.now += 1e7
    assert not is_repeat(clock.recent)


def test_the_memory_of_exposures_is_bounded(monkeypatch):
    """The oldest are forgotten first, one generation at a time."""
    clock = Clock(monkeypatch, entries=10)
    clock.note()
    clock.recent.note(unshown(range(10)))
    clock.recent.note(unshown(range(10, 19)))
    assert is_repeat(clock.recent)
    clock.recent.note(unshown((19, 20)))
    assert not is_repeat(clock.recent)


def test_environments_of_one_account_have_their_own_exposures(tmp_path):
    """Their visitors have the same uuids and their campaigns may have the same ids: staging swallowed production's."""
    with KeyedVendor() as vendor, gateway_of(tmp_path, vendor) as gateway:
        names = ("staging", "production")
        vendor.wait_until(lambda: all(gateway.get(f"/ready?environment={name}")[0] == 200 for name in names), 60)
        for name in names:
            body = {"context": {"targetingKey": "user-1"}}
            code, flag = gateway.post(f"/ofrep/v1/evaluate/flags/new-checkout?sdkKey={KEYS[name]}", body)
            assert (code, "exposure" in flag["metadata"]) == (200, True)
        vendor.wait_until(lambda: {KEYS[name] for name in names} <= shown(vendor), 60, gateway.log)


def shown(vendor):
    events = [event["d"]["event"] for event in vendor.events]
    return {event["props"]["vwo_envKey"] for event in events if event["name"] == "vwo_variationShown"}


def test_exposures_that_a_full_queue_rejects_are_not_reported_as_tracked(tmp_path):
    """They are all that the request is for, so it gets a 503 like trackEvent; it was a 200 that said `tracked`."""
    options = {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 10}
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        vendor.event_faults.append(Fault(status=503, times=10**9))
        asked = {"userId": "u", "exposures": ["[[101,1],[102,1]]"]}
        statuses = [gateway.post("/server-side/trackExposure", asked)[0] for _ in range(20)]
        assert (statuses[0], statuses[-1]) == (200, 503)
        recorded = re.search(
            rb'fme_exposures_total\{result="recorded"\} (\d+)', exchange(gateway, "GET", "/metrics")[2]
        )
        assert int(recorded[1]) == 2 * statuses.count(200)
