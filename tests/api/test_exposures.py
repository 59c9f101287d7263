"""Which exposures count as recorded a moment ago: only those that were stored, in their own environment."""

import pytest
from process import sample_document
from several import KEYS, KeyedVendor, gateway_of

from tornado_gateway import core
from tornado_gateway.api.ofrep.exposures import RecentExposures
from tornado_gateway.events.group_commit import Group

SETTINGS = core.compile_settings(sample_document())


def decision():
    return core.decide(SETTINGS, "new-checkout", core.context_from_json({}, "user-1"))


def is_repeat(recent):
    again = decision()
    recent.keep_new("production", again)
    return not again.impressions


def test_stored_exposure_is_not_repeated():
    recent, group = RecentExposures(), Group(one_gate=False)
    recent.note_once_stored("production", group.decisions, decision())
    assert not is_repeat(recent)
    group.open()
    assert is_repeat(recent)


@pytest.mark.parametrize("one_gate", [False, True])
def test_exposure_that_could_not_be_stored_is_recorded_again(one_gate):
    """Decisions are released without a failure if their impressions are lost, so a lost one counted as recorded."""
    recent, group = RecentExposures(), Group(one_gate=one_gate)
    recent.note_once_stored("production", group.decisions, decision())
    group.release("the disk is full")
    assert not is_repeat(recent)


def test_exposure_that_a_full_queue_rejected_is_recorded_again():
    recent = RecentExposures()
    recent.note_once_stored("production", None, decision())
    assert not is_repeat(recent)


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
