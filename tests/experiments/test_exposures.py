"""Visitors and decisions that are noted, and merged by several workers in one store."""

import asyncio
import gc
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import orjson
import pytest
from core.documents import ab, document, feature, holdout, one_feature, rollout, rule, variation

from tornado_gateway.core import Context, compile_settings, decide, visitor_uuid
from tornado_gateway.errors import StoreError
from tornado_gateway.experiments.exposures import FREED_AT_ONCE, Exposures
from tornado_gateway.experiments.features import (
    FORGET_SECONDS,
    LONGEST_KEY,
    MOST_UNKNOWN,
    STALE_SECONDS,
    STEP_FEATURES,
    FeatureCounts,
    FeatureNews,
    merge,
    unknown_keys,
    usage_of,
)
from tornado_gateway.experiments.monitor import ExperimentMonitor
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.tasks import in_turns

SETTINGS = compile_settings(one_feature(rollout(), ab()))
NOW = 1_700_000_000.0


@asynccontextmanager
async def workers(directory, count=2, settings=SETTINGS, **options):
    """The monitors of so many workers, which share a store."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            state = SqliteState(directory)
            await state.open()
            stack.push_async_callback(state.close)
            monitor = ExperimentMonitor(state, **options)
            await monitor.follow(settings)
            found.append(monitor)
        yield found


def show(monitor, users, settings=SETTINGS):
    for user in users:
        decision = decide(settings, "f", Context(user, custom_variables={}))
        monitor.features.decided(decision)
        monitor.exposures.shown(decision)


@pytest.mark.parametrize("campaign", [20, "20"])
@pytest.mark.parametrize("ids", [(1, 2), ("1", "2"), ("blue", "red")])
async def test_an_sdk_names_variations_by_numbers_or_texts(tmp_path, campaign, ids):
    variations = [{**variation(1, 50), "id": each} for each in ids]
    settings = compile_settings(one_feature(rollout(), ab(20, variations=variations)))
    async with workers(tmp_path, 1, settings) as (monitor,):
        for number in range(10):
            visitor = visitor_uuid("12345", f"guest-{number}")
            monitor.exposures.shown_by_sdk(event(visitor, campaign, ids[number % 2]))
            monitor.exposures.shown_by_sdk(event(visitor, campaign, "green"))
        assert (await one(monitor))["sampled"] == 10


def event(visitor, campaign, variation):
    props = {"id": campaign, "variation": variation}
    return {"visId": visitor, "event": {"name": "vwo_variationShown", "props": props}}


def users(count, first=0):
    return [f"guest-{number}" for number in range(first, first + count)]


async def one(monitor):
    (report,) = (await monitor.report())["experiments"]
    return report


async def test_visitors_of_workers_and_sdks_are_merged_and_counted_once(tmp_path):
    async with workers(tmp_path) as (first, second):
        show(first, users(600))
        show(second, users(600, first=400))
        for number in range(900, 1200):  # of SDKs: some with the same visitors as ours
            chosen = decide(SETTINGS, "f", Context(f"guest-{number}", custom_variables={})).experiment
            visitor = visitor_uuid("12345", f"guest-{number}")
            second.exposures.shown_by_sdk(event(visitor, "20", str(chosen.variation_id)))
        await asyncio.gather(first.merge(), second.merge())
        for monitor in (first, second):
            report = await one(monitor)
            assert report["visitors"] == pytest.approx(1200, rel=0.01)
            assert report["switched"] == 0
            assert report["verdict"] == "as configured"
            assert [round(each["share"]) in range(45, 56) for each in report["variations"]] == [True, True]
            assert [each["weight"] for each in report["variations"]] == [50, 50]
        usage = first.usage_report()["features"]["f"]
        assert usage["decisions"] == {"enabled": 1200, "disabled": 0, "error": 0}
        assert usage["exposures"] == 2 * 1200 + 300
        assert usage["last_evaluated_at"] is not None


async def test_concurrent_merges_lose_nothing(tmp_path):
    async with workers(tmp_path, 4) as monitors:
        for turn in range(5):
            for number, monitor in enumerate(monitors):
                show(monitor, users(50, first=1000 * number + 50 * turn))
            await asyncio.gather(*(monitor.merge() for monitor in monitors))
        assert (await one(monitors[0]))["visitors"] == pytest.approx(1000, rel=0.01)
        assert monitors[0].usage()["f"]["decisions"]["enabled"] == 1000


async def test_a_worker_that_is_killed_loses_only_what_it_had_not_merged(tmp_path):
    async with workers(tmp_path) as (killed, other):
        show(killed, users(300))
        await killed.merge()
        show(killed, users(100, first=300))  # it never merges these
        assert (await one(other))["sampled"] == pytest.approx(300, rel=0.01)


async def test_a_report_without_the_store_has_its_own_visitors_and_the_reason(tmp_path, monkeypatch):
    async with workers(tmp_path, 1) as (monitor,):
        show(monitor, users(100))
        assert (await monitor.report())["unreadable"] is None

        async def fail(*_):
            raise StoreError("no store")

        monkeypatch.setattr(monitor._state, "statistics_versions", fail)
        show(monitor, users(100, first=100))
        report = await monitor.report()
        assert report["unreadable"] == "no store"
        assert report["experiments"][0]["visitors"] == pytest.approx(200, rel=0.01)


async def test_a_wrong_share_is_reported_in_words(tmp_path):
    async with workers(tmp_path, 1) as (monitor,):
        for number in range(2000):
            shown = 1 + (number % 10 < 4)
            monitor.exposures.shown_by_sdk(event(visitor_uuid("1", str(number)), 20, shown))
        report = await one(monitor)
        assert (report["verdict"], report["sequential_p"] < 0.0005, report["p"] < 0.0005) == ("mismatch", True, True)
        (sentence,) = monitor.mismatches
        assert sentence.startswith("Experiment f_rule20 of feature f: the shares of the variations are 60.1 % / 39.9 %")
        assert " instead of 50.0 % / 50.0 % (" in sentence


async def test_whitelisted_visitors_are_in_no_sample(tmp_path):
    listed = variation(2, 50, {"or": [{"user": "guest-1"}]})
    settings = compile_settings(one_feature(ab(variations=[variation(1, 50), listed], isForcedVariationEnabled=True)))
    async with workers(tmp_path, 1, settings) as (monitor,):
        show(monitor, users(100), settings)
        assert (await one(monitor))["sampled"] == 99
        assert monitor.usage()["f"]["exposures"] == 100


@pytest.mark.parametrize(
    "data",
    [
        event(None, 20, 1),
        event("short", 20, 1),
        event("g" * 32, 20, 1),
        event("A" * 100, 20, 1),
        event(["A" * 32], 20, 1),
        event("A" * 32, 10**4000, 1),
        event("A" * 20 + " " * 12, 20, 1),
        event("A" * 16 + "é" * 16, 20, 1),
        event("A" * 30 + "_A", 20, 1),
        event("A" * 28 + " A A", 20, 1),
        event("A" * 32, {}, 1),
        event("A" * 32, 20, 3),
        event("A" * 32, 999, 1),
        {"event": {"props": None}},
        {"event": {}},
    ],
    ids=range(15),
)
async def test_unusable_impressions_of_sdks_are_ignored(tmp_path, data):
    async with workers(tmp_path, 1) as (monitor,):
        monitor.exposures.shown_by_sdk(data)
        assert (await one(monitor))["sampled"] == 0
        monitor.exposures.shown_by_sdk(data)
        monitor.exposures.shown_by_sdk(event("A" * 32, 20, 1))  # nor do they affect others
        assert (await one(monitor))["sampled"] == 1


async def test_uuids_of_all_forms_are_the_same_visitor(tmp_path):
    visitor = visitor_uuid("1", "user")
    dashed = f"{visitor[:8]}-{visitor[8:12]}-{visitor[12:16]}-{visitor[16:20]}-{visitor[20:]}".lower()
    async with workers(tmp_path, 1) as (monitor,):
        for each in (visitor, dashed):
            monitor.exposures.shown_by_sdk(event(each, 20, 1))
        assert (await one(monitor))["sampled"] == 1


@pytest.mark.parametrize("changed", [ab(traffic=50), ab(variations=[variation(1, 40), variation(2, 60)])])
async def test_an_experiment_starts_again_when_weights_or_traffic_change(tmp_path, changed):
    other = compile_settings(one_feature(rollout(), changed))
    async with workers(tmp_path, 1) as (monitor,):
        show(monitor, users(100))
        await monitor.merge()
        await monitor.follow(compile_settings(one_feature(rollout(weight=50), ab(key="renamed"))))
        assert (await one(monitor))["sampled"] == 100  # nothing of the experiment has changed
        await monitor.follow(other)
        assert (await one(monitor))["sampled"] == 0
        await monitor.follow(SETTINGS)
        assert (await one(monitor))["sampled"] == 100  # taken back in time


async def test_followed_settings_are_not_searched_for_garbage(tmp_path):
    async with workers(tmp_path, 1) as (monitor,):
        searched = {id(found) for found in gc.get_objects()}
        assert [id(audience) in searched for audience in monitor.exposures.audiences] == [False]


def test_the_tables_of_replaced_settings_are_freed_in_steps():
    count = 2 * FREED_AT_ONCE
    campaigns = [rollout(10 + number) for number in range(count)]
    features = [feature(number, rule(campaign)) for number, campaign in enumerate(campaigns)]
    exposures = Exposures(FeatureCounts(), 1)
    assert all(step is None for step in exposures.follow(compile_settings(document(features, campaigns))))
    former = exposures._shown
    left = [len(former)]
    for _ in exposures.follow(SETTINGS):
        left.append(len(former))
    assert (left[0], left[-1]) == (count, 0)
    assert max(before - after for before, after in pairwise(left)) <= FREED_AT_ONCE


async def test_no_visitor_is_lost_while_new_settings_are_followed(tmp_path):
    async with workers(tmp_path, 1) as (monitor,):
        show(monitor, users(10))
        features = [feature(number, key="f" if number == 60 else f"g{number}") for number in range(1, 121)]
        features[59]["rules"] = [rule(ab())]
        settings = compile_settings(document(features, [ab(name="renamed")]))
        monitor.settings_changed(settings)
        steps = 0
        while (await one(monitor))["campaign"]["name"] != "renamed":
            show(monitor, users(10, first=10 * steps))
            steps += 1
            await asyncio.sleep(0)
        show(monitor, users(10, first=90), settings)
        assert (await one(monitor))["sampled"] == 10 * max(steps, 1) + 10


async def test_samples_of_removed_experiments_are_deleted(tmp_path):
    async with workers(tmp_path, 1, forget_seconds=0.0) as (monitor,):
        show(monitor, users(100))
        await monitor.merge()
        await monitor.follow(compile_settings(one_feature(rollout())))
        assert (await monitor.report())["experiments"] == []
        await monitor.follow(SETTINGS)
        assert (await one(monitor))["sampled"] == 0


async def test_a_damaged_or_lost_record_is_replaced(tmp_path):
    async with workers(tmp_path, 1) as (monitor,), workers(tmp_path, 1) as (other,):
        show(monitor, users(100))
        await monitor.merge()
        state, name = monitor._state, monitor.exposures.audiences[0].experiment.sample
        assert await state.replace_statistics(name, b"damaged", 1)
        await monitor.merge()
        assert (await one(other))["sampled"] == 100
        await state.forget_statistics([name])
        await monitor.merge()
        assert (await one(other))["sampled"] == 100


async def test_only_tests_with_several_weighted_variations_are_experiments(tmp_path):
    alone = ab(21, variations=[variation(1, 100), variation(2, 0)])
    unequal = ab(22, variations=[variation(1, 30), variation(2, 10), variation(3, 0)])
    async with workers(tmp_path, 1, compile_settings(one_feature(alone, unequal, ab(23)))) as (monitor,):
        reports = (await monitor.report())["experiments"]
        assert [report["campaign"]["id"] for report in reports] == [22, 23]
        assert [each["weight"] for each in reports[0]["variations"]] == [75, 25, 0]
        assert {report["verdict"] for report in reports} == {"too few visitors"}


async def test_the_number_of_samples_is_bounded(tmp_path):
    settings = compile_settings(one_feature(*(ab(20 + number) for number in range(5))))
    async with workers(tmp_path, 1, settings, most_experiments=3) as (monitor,):
        reports = (await monitor.report())["experiments"]
        assert [report["campaign"]["id"] for report in reports] == [20, 21, 22]
        show(monitor, users(10), settings)
        assert (await monitor.report())["experiments"][0]["sampled"] == 10


class FailingState(SqliteState):
    """Fails as long as `is_failing`."""

    is_failing = True

    async def replace_statistics(self, name, body, version):
        if self.is_failing:
            raise StoreError("no")
        return await super().replace_statistics(name, body, version)


async def test_numbers_wait_for_a_store_that_fails(tmp_path):
    state = FailingState(tmp_path)
    await state.open()
    monitor = ExperimentMonitor(state)
    await monitor.follow(SETTINGS)
    for _ in range(2):
        show(monitor, users(100))
        monitor.features.decided(decide(SETTINGS, "unknown", Context("u", custom_variables={})))
        assert (await one(monitor))["sampled"] == 100  # its own are known without the store
        await monitor.stop()
    state.is_failing = False
    async with workers(tmp_path, 1) as (other,):
        await monitor.stop()
        assert (await one(other))["sampled"] == 100
        assert other.usage()["f"]["decisions"]["enabled"] == 200
        assert other.usage_report()["unknown_keys"][0]["requests"] == 2
    await state.close()


# --- Counts of features ---


async def test_outcomes_and_unknown_keys_are_counted(tmp_path):
    settings = compile_settings(one_feature(ab(traffic=0), holdouts=[holdout(percent=0)]))
    async with workers(tmp_path, 2, settings) as (first, second):
        show(first, users(3), settings)
        for monitor, count in ((first, 3), (second, 4)):
            for _ in range(count):
                monitor.features.decided(decide(settings, "no-such-feature", Context("u", custom_variables={})))
        monitor.features.decided(decide(settings, "x" * 1000, Context("u", custom_variables={})))
        monitor.features.decided(decide(settings, "f", Context("u", custom_variables=None)))
        await asyncio.gather(first.merge(), second.merge())
        await first.merge()
        report = first.usage_report()
        assert report["features"]["f"]["decisions"] == {"enabled": 0, "disabled": 3, "error": 1}
        assert {each["key"]: each["requests"] for each in report["unknown_keys"]} == {
            "no-such-feature": 7,
            "x" * LONGEST_KEY: 1,
        }


async def test_a_record_that_no_other_worker_has_changed_is_not_read(tmp_path, monkeypatch):
    read = []
    load = SqliteState.load_statistics
    monkeypatch.setattr(SqliteState, "load_statistics", lambda self, name: read.append(name) or load(self, name))
    async with workers(tmp_path, 1) as (monitor,):
        for number in range(3):
            show(monitor, users(5, first=5 * number))
            await monitor.merge()
        assert "features" not in read
        assert sum(monitor.usage()["f"]["decisions"].values()) == 15


def news(**tallies):
    return FeatureNews(tallies, {})


def merged(*arguments):
    return asyncio.run(in_turns(merge(*arguments)))


def test_counts_of_many_features_are_merged_in_steps():
    keys = [f"f{number}" for number in range(10 * STEP_FEATURES)]
    steps = merge({}, news(**{key: [1, 0, 0, 0] for key in keys}), keys, NOW)
    assert sum(1 for _ in steps) >= 10


def test_exposures_of_the_last_full_minute_are_shown():
    record = merged({}, news(f=[1, 0, 0, 10]), ["f"], NOW)
    record = merged(record, news(f=[1, 0, 0, 5]), ["f"], NOW)
    assert usage_of(record, "f", NOW)["exposures_per_minute"] == 0
    record = orjson.loads(orjson.dumps(merged(record, news(f=[1, 0, 0, 1]), ["f"], NOW + 60)))
    assert usage_of(record, "f", NOW + 60)["exposures_per_minute"] == 15
    assert usage_of(record, "f", NOW + 120)["exposures_per_minute"] == 1
    assert usage_of(record, "f", NOW + 180)["exposures_per_minute"] == 0
    assert usage_of(record, "f", NOW + 60)["exposures"] == 16


def test_a_feature_is_unused_30_days_after_its_last_evaluation_or_the_first_count():
    record = merged({}, news(f=[1, 0, 0, 0]), ["f", "g"], NOW)
    for key in ("f", "g"):
        assert not usage_of(record, key, NOW + STALE_SECONDS - 1)["is_unused"]
        assert usage_of(record, key, NOW + STALE_SECONDS + 1)["is_unused"]
    record = merged(record, news(f=[1, 0, 0, 0]), ["f", "g"], NOW + STALE_SECONDS)
    assert [usage_of(record, key, NOW + STALE_SECONDS + 1)["is_unused"] for key in ("f", "g")] == [False, True]


def test_removed_features_and_old_unknown_keys_are_forgotten():
    record = merged({}, news(f=[1, 0, 0, 0], g=[1, 0, 0, 0]), ["f", "g"], NOW)
    assert set(merged(record, news(), ["f"], NOW + 1)["features"]) == {"f", "g"}
    assert set(merged(record, news(), ["f"], NOW + FORGET_SECONDS)["features"]) == {"f"}
    for number in range(2 * MOST_UNKNOWN):
        record = merged(record, FeatureNews({}, {f"key-{number}": 2}), ["f"], NOW + number)
    keys = unknown_keys(record)
    assert len(keys) == MOST_UNKNOWN
    assert keys[0] == {
        "key": f"key-{2 * MOST_UNKNOWN - 1}",
        "requests": 2,
        "last_requested_at": NOW + 2 * MOST_UNKNOWN - 1,
    }
