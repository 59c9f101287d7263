"""Gathering the inputs of decisions, in memory and with IO, on a real store, location database and device reader."""

import asyncio
from pathlib import Path

import orjson
import pytest
from core.documents import ab, document, feature, rollout, rule, variation

from tornado_gateway import core
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.evaluation import Evaluator, Inputs, StickyDecisions
from tornado_gateway.errors import StoreError, UpstreamError
from tornado_gateway.events.group_commit import Group
from tornado_gateway.store.sqlite.events import open_sqlite

DATABASE = Path(__file__).parents[1] / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
LONDON = "81.2.69.142"
PHONE = (
    "Mozilla/5.0 (Linux; Android 13; Pixel 7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Mobile Safari/537.36"
)
SEGMENTS = {
    "plain": {},
    "located": {"or": [{"and": [{"country": "United Kingdom"}]}]},
    "mobile": {"or": [{"device_type": "mobile"}]},
    "listed": {"custom_variable": {"email": "inlist(customers)"}},
    "listed-elsewhere": {"custom_variable": {"email": "inlist(partners)"}},
}
KEYS = list(SEGMENTS)


def account():
    """One feature for each segment, with one rollout rule."""
    campaigns = [rollout(number, segment) for number, segment in enumerate(SEGMENTS.values(), 10)]
    features = [
        feature(number, rule(campaign), key=key)
        for number, (key, campaign) in enumerate(zip(SEGMENTS, campaigns, strict=True), 1)
    ]
    return core.compile_settings(document(features, campaigns))


def split_account(first_weight):
    """A feature "f" with a rollout for all users and a test of two variations."""
    campaigns = [rollout(10), ab(20, variations=[variation(1, first_weight), variation(2, 100 - first_weight)])]
    return core.compile_settings(document([feature(1, *map(rule, campaigns), key="f")], campaigns))


class CountingState:
    """The store's state, with the calls made to it; the methods in `failing` raise StoreError."""

    def __init__(self, state):
        self._state = state
        self.calls = []
        self.failing = set()

    def __getattr__(self, name):
        async def call(*arguments):
            self.calls.append(name)
            if name in self.failing:
                raise StoreError("the disk is gone")
            return await getattr(self._state, name)(*arguments)

        return call


class Vendor:
    """The vendor's list checks: `members` of the list "customers", or no response at all."""

    def __init__(self, *members):
        self.members = members
        self.asked = []
        self.fails = False

    async def ask(self, list_id, value):
        self.asked.append((list_id, value))
        if self.fails:
            raise UpstreamError("no response")
        return list_id == "customers" and value in self.members


SETTINGS = account()


@pytest.fixture
def location():
    reader = LocationReader(DATABASE)
    reader.open()
    yield reader
    reader.close()


@pytest.fixture
def device():
    return DeviceReader()


@pytest.fixture
def vendor():
    return Vendor("a@example.com")


@pytest.fixture
def evaluator(location, device, vendor):
    return Evaluator(location, device, ListChecks(vendor.ask))


@pytest.fixture
def state(tmp_path, io_loop):
    store = open_sqlite(tmp_path)
    io_loop.run_sync(store.open)
    yield CountingState(store.state)
    io_loop.run_sync(store.close)


@pytest.fixture
def sticky(location, device, state):
    return Evaluator(location, device, sticky=StickyDecisions(state, 3600))


def visitor(**fields):
    return core.Context("user", ip_address=LONDON, user_agent=PHONE, **fields)


# Inputs in memory


@pytest.mark.parametrize(("key", "looked_up"), [("plain", (0, 0)), ("located", (1, 0)), ("mobile", (0, 1))])
def test_location_and_device_are_looked_up_only_for_rules_that_need_them(evaluator, location, device, key, looked_up):
    context = visitor()
    decision = evaluator.decide(SETTINGS, key, context)
    assert decision is not None
    assert decision.enabled
    assert (location.misses, device.misses) == looked_up
    assert (context.location is not None, context.device is not None) == tuple(map(bool, looked_up))


@pytest.mark.parametrize("own", [{"location": {"country": "Sweden"}}, {"device": {"device_type": "desktop"}}])
def test_facts_of_the_client_replace_both_look_ups(evaluator, location, device, own):
    for key in ("located", "mobile"):
        context = visitor(**own)
        decision = evaluator.decide(SETTINGS, key, context)
        assert decision is not None
        assert not decision.enabled
        assert evaluator.facts(Inputs(context)) == (own.get("location"), own.get("device"))
    assert (location.misses, device.misses) == (0, 0)


def test_a_visitor_without_address_and_user_agent_has_no_facts(evaluator):
    for key in ("located", "mobile"):
        decision = evaluator.decide(SETTINGS, key, core.Context("user"))
        assert decision is not None
        assert not decision.enabled
    assert evaluator.facts(Inputs(core.Context("user"))) == (None, None)


def test_an_unknown_feature_is_decided_in_memory(evaluator):
    decision = evaluator.decide(SETTINGS, "unknown", visitor())
    assert decision is not None
    assert decision.reason == "feature not found"


def test_inputs_that_require_io_are_left_to_the_coroutine(location, device, state, evaluator, sticky):
    assert evaluator.decide(SETTINGS, "listed", visitor()) is None
    for with_store in (sticky, Evaluator(location, device, aliases=state)):
        assert with_store.decide(SETTINGS, "plain", visitor()) is None
        assert with_store.decide(SETTINGS, "unknown", visitor()) is None
    assert state.calls == []


# Inputs that require IO: lists


@pytest.mark.parametrize(("email", "enabled"), [("a@example.com", True), ("b@example.com", False)])
async def test_a_list_is_asked_for(evaluator, vendor, email, enabled):
    decision = await evaluator.decide_with_io(SETTINGS, "listed", visitor(custom_variables={"email": email}))
    assert decision.enabled is enabled
    assert vendor.asked == [("customers", email)]


@pytest.mark.parametrize("variables", [{}, None])
async def test_a_list_is_not_asked_for_without_the_variable(evaluator, vendor, variables):
    assert not (await evaluator.decide_with_io(SETTINGS, "listed", visitor(custom_variables=variables))).enabled
    assert vendor.asked == []


async def test_a_visitor_is_in_no_list_if_the_vendor_fails(evaluator, vendor):
    vendor.fails = True
    context = visitor(custom_variables={"email": "a@example.com"})
    assert not (await evaluator.decide_with_io(SETTINGS, "listed", context)).enabled


async def test_the_coroutine_adds_location_and_device_too(evaluator, vendor):
    for key in ("located", "mobile"):
        assert (await evaluator.decide_with_io(SETTINGS, key, visitor())).enabled
    assert vendor.asked == []


# Inputs that require IO: aliases


async def test_an_alias_is_replaced_by_its_user(location, device, state):
    await state.set_alias("user", "known")
    evaluator = Evaluator(location, device, aliases=state)
    assert evaluator.resolves_aliases
    context = visitor()
    decision = await evaluator.decide_with_io(SETTINGS, "plain", context)
    assert context.user_id == "known"
    assert decision.uuid == core.visitor_uuid("12345", "known")


@pytest.mark.parametrize("fails", [True, False])
async def test_an_id_that_is_no_alias_stays_also_if_the_store_fails(location, device, state, fails):
    state.failing = {"aliases"} if fails else set()
    context = visitor()
    decision = await Evaluator(location, device, aliases=state).decide_with_io(SETTINGS, "plain", context)
    assert decision.enabled
    assert context.user_id == "user"
    assert state.calls == ["aliases"]


async def test_without_aliases_the_store_is_not_asked(evaluator):
    context = visitor()
    await evaluator.resolve_alias(context)
    assert not evaluator.resolves_aliases
    assert context.user_id == "user"


# Inputs that require IO: stored decisions


async def test_a_decision_is_stored_once_and_survives_other_weights(sticky, state):
    first = await sticky.decide_with_io(split_account(100), "f", visitor())
    assert state.calls == ["load_records", "save_records"]
    assert first.impressions
    second = await sticky.decide_with_io(split_account(0), "f", visitor())
    assert state.calls == ["load_records", "save_records", "load_records"]  # nothing has changed
    assert second.variables == first.variables
    assert second.reason == "stored"
    assert not second.impressions


async def test_records_that_cannot_be_loaded_do_not_stop_decisions_and_are_not_replaced(sticky, state):
    await sticky.decide_with_io(split_account(100), "f", visitor())
    state.calls.clear()
    state.failing = {"load_records"}
    decision = await sticky.decide_with_io(split_account(0), "f", visitor())
    assert [item["value"] for item in decision.variables] == ["v2"]
    assert state.calls == ["load_records"]
    state.failing = set()
    assert (await sticky.decide_with_io(split_account(0), "f", visitor())).reason == "stored"


async def test_a_record_that_cannot_be_stored_does_not_stop_the_decision(sticky, state, caplog):
    caplog.set_level("INFO")
    state.failing = {"save_records"}
    assert (await sticky.decide_with_io(split_account(100), "f", visitor())).enabled
    assert "was not stored" in caplog.text
    state.failing = set()
    assert (await sticky.decide_with_io(split_account(0), "f", visitor())).reason != "stored"


@pytest.mark.parametrize("ending", ["stored", "failed", "lost"])
async def test_a_decision_is_kept_once_its_impressions_are_stored(sticky, state, ending):
    """It was kept before the commit, which could fail: the repetition of a request with a 503 lost the exposure."""
    group = Group(one_gate=ending == "failed")
    deciding = asyncio.ensure_future(
        sticky.decide_with_io(split_account(100), "f", visitor(), lambda decision: group.decisions)
    )
    while not state.calls:
        await asyncio.sleep(0)
    assert state.calls == ["load_records"]
    if ending == "stored":
        group.open()
    else:
        group.release("the disk is full")
    assert (await deciding).enabled
    again = await sticky.decide_with_io(split_account(100), "f", visitor())
    assert bool(again.impressions) == (ending != "stored")


async def test_the_record_of_a_feature_that_is_gone_is_asked_for(sticky, state):
    await sticky.decide_with_io(split_account(100), "gone", visitor())
    assert state.calls == ["load_records"]


# Many decisions from one gathering


async def test_many_features_are_gathered_for_once(location, device, state, vendor):
    await state.set_alias("user", "known")
    state.calls.clear()
    evaluator = Evaluator(location, device, ListChecks(vendor.ask), aliases=state, sticky=StickyDecisions(state, 3600))
    context = visitor(custom_variables={"email": "a@example.com"})
    inputs = await evaluator.gather(SETTINGS, [*KEYS, "unknown"], context)
    assert state.calls == ["aliases", "load_records"]
    assert sorted(vendor.asked) == [("customers", "a@example.com"), ("partners", "a@example.com")]
    decisions = [evaluator.decide_from(SETTINGS, key, inputs) for key in KEYS]
    assert [decision.enabled for decision in decisions] == [True, True, True, True, False]
    assert state.calls == ["aliases", "load_records"]
    await evaluator.keep(inputs, decisions)
    await evaluator.keep(inputs, [])
    assert state.calls == ["aliases", "load_records", "save_records"]


async def test_each_of_many_decisions_sees_only_the_facts_that_its_feature_needs(evaluator):
    context = visitor()
    inputs = await evaluator.gather(SETTINGS, KEYS, context)
    for key, has_location, has_device in (
        ("located", True, False),
        ("mobile", False, True),
        ("plain", False, False),
        ("located", True, False),
    ):
        assert evaluator.decide_from(SETTINGS, key, inputs).enabled
        assert (context.location is not None, context.device is not None) == (has_location, has_device)
    place, phone = evaluator.facts(inputs)
    assert place is not None
    assert phone is not None
    assert (place["country"], phone["device_type"]) == ("United Kingdom", "mobile")


def test_gathered_inputs_need_neither_lists_nor_store(location, device):
    evaluator = Evaluator(location, device)
    trace = core.Trace()
    inputs = Inputs(visitor(custom_variables={"email": "a@example.com"}))
    assert evaluator.decide_from(SETTINGS, "located", inputs, trace).enabled
    assert trace.steps
    assert not evaluator.decide_from(SETTINGS, "listed", inputs).enabled


async def test_lists_that_are_off_are_not_asked_for(location, device):
    context = visitor(custom_variables={"email": "a@example.com"})
    assert not (await Evaluator(location, device).decide_with_io(SETTINGS, "listed", context)).enabled


# Events


def test_the_documents_of_a_decision_are_counted(evaluator):
    context = visitor()
    decision = evaluator.decide(SETTINGS, "plain", context)
    assert decision is not None
    documents, count = evaluator.event_documents(SETTINGS, context, decision)
    assert count == len(decision.impressions) == len(documents.splitlines()) == 1
    assert b'"name":"vwo_variationShown"' in documents


def test_a10_message_ids_of_all_calls_and_processes_differ():
    """Row A10: the numbers alone differ, because calls of one visitor may share a millisecond."""
    settings, context = split_account(100), core.Context("u")
    decision = core.decide(settings, "f", context)
    numbers = []
    for evaluator in [Evaluator(LocationReader(None), DeviceReader()) for _ in range(3)]:  # as in three workers
        for _ in range(2):
            body = evaluator.event_documents(settings, context, decision)[0]
            body += b"\n" + evaluator.attribute_document(settings, context, {"a": 1})
            numbers += [orjson.loads(line)["d"]["msgId"].rpartition("-")[2] for line in body.splitlines()]
    assert len(set(numbers)) == len(numbers) == 3 * 2 * 3
