"""The core against the reference SDK: thousands of generated calls, every outcome and every event alike.

`test_every_kind_is_reached` holds the generator to its purpose: each kind of rule, group, operator and operand occurs,
each condition with both outcomes.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from core.generator import OPERANDS, Generator
from core.sdk_reference import NOW_S, Reference
from tornado_gateway.core import (
    Decision,
    Settings,
    SettingsError,
    Trace,
    attribute_document,
    compile_settings,
    context_from_json,
    decide,
    event_documents,
    event_problem,
    track_event_document,
)

NOW_MS = NOW_S * 1000
DOCUMENTS = 900
CALLS = 10
IDS = ("experimentId", "experimentKey", "experimentVariationId")


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    process = Reference()
    yield process
    process.close()


@pytest.fixture(scope="module")
def kinds() -> Counter[tuple[Any, ...]]:
    """What the generated calls have reached, counted."""
    return Counter()


@pytest.mark.parametrize("batch", range(9))
def test_get_flag(batch: int, reference: Reference, kinds: Counter[tuple[Any, ...]]) -> None:
    share = DOCUMENTS // 9
    for seed in range(batch * share, (batch + 1) * share):
        compare_calls(seed, reference, kinds)


def test_every_kind_is_reached(kinds: Counter[tuple[Any, ...]]) -> None:
    if not kinds:
        pytest.skip("needs the generated calls of this module")
    assert kinds["calls"] >= 3_000
    expected = {("reason", reason) for reason in REASONS}
    expected |= {("rule", kind, passed) for kind in ("rollout", "ab", "personalize") for passed in (True, False)}
    expected |= {(step, passed) for step in ("traffic", "holdout", "whitelisting") for passed in (True, False)}
    expected |= {("group", algorithm, True) for algorithm in ("random", "priority", "weights", "single")}
    expected |= {("group", algorithm, False) for algorithm in ("weights", "none")}
    expected |= {("condition", name, result) for name in CONDITIONS for result in (True, False)}
    expected |= {("operand", form, result) for form in OPERANDS for result in (True, False)}
    expected |= {("meaningless", name, False) for name in ("country", "os", "featureId", "unheard_of")}
    expected |= {("storage", kind) for kind in ("none", "empty", "records", "sequence")}
    expected |= {("check", name, result) for name in ("location", "device", "featureId") for result in (True, False)}
    expected.add(("skipped",))
    assert expected - set(kinds) == set()


def test_events_and_attributes(reference: Reference) -> None:
    for seed in range(60):
        generator = Generator(seed)
        document = generator.settings()
        try:
            settings = compile_settings(document)
        except SettingsError:
            continue
        for number in range(5):
            context = generator.context(document)
            name = f"event{generator.random.randint(1, 5)}"
            properties = generator.pick([{}, {"price": 9.5, "ok": True}, {"id": 7, "variation": "x", "text": 'ü"\n'}])
            case = {"op": "trackEvent", "context": context, "eventName": name, "properties": properties}
            expected = reference.run({**case, "name": f"t{seed}", "settings": None if number else document})
            ours = context_from_json(context, context["id"])
            assert expected["result"] == {name: event_problem(settings, ours, name) is None}
            body = track_event_document(settings, ours, name, properties, NOW_MS)
            assert comparable(documents_of(body)) == comparable(expected["events"])
            attributes = generator.pick([{"tier": "gold"}, {"a": 1, "b": 1.5, "c": True}, {"": ""}, {}, {"a": None}])
            case = {"op": "setAttribute", "context": context, "attributes": attributes, "name": f"t{seed}"}
            expected = reference.run(case)
            assert comparable(documents_of(attribute_document(settings, ours, attributes, NOW_MS))) == comparable(
                expected["events"]
            )


# --- one document ------------------------------------------------------------


def compare_calls(seed: int, reference: Reference, kinds: Counter[tuple[Any, ...]]) -> None:
    generator = Generator(seed)
    document = generator.settings()
    try:
        settings = compile_settings(document)
    except SettingsError:
        assert not reference.run({"op": "init", "name": str(seed), "settings": document})["usable"]
        return
    first: Any = document
    records: dict[str, Any] | None = None
    user = "u1"
    for _ in range(CALLS):
        context, feature_key = generator.context(document), generator.feature_key(document)
        kind, records = next_storage(generator, document, records)
        if kind == "sequence":
            context["id"] = user  # the records are this user's
        user = context["id"]
        if records and is_new_holdout(settings, feature_key, records.get(feature_key)):
            records = None
            continue
        case = {"op": "getFlag", "context": context, "featureKey": feature_key, "storage": records}
        expected = reference.run({**case, "name": str(seed), "settings": first})
        first = None
        decision, trace = compare_call(settings, case, expected, seed)
        kinds["calls"] += 1  # type: ignore[index]
        kinds["storage", kind] += 1
        kinds["reason", decision.reason] += 1
        count_kinds(trace.steps, settings, kinds)
        if records is not None:
            records = {**records, **{write["featureKey"]: dict(write) for write in decision.writes}}


def next_storage(generator: Generator, document: Any, records: Any) -> tuple[str, Any]:
    kind = generator.pick(["none", "none", "empty", "records", "sequence", "sequence"])
    if kind == "sequence" and records is None:
        kind = "empty"
    return kind, {"none": None, "empty": {}, "records": generator.records(document), "sequence": records}[kind]


def is_new_holdout(settings: Settings, feature_key: str, record: Any) -> bool:
    """Is a holdout new to a stored decision? The product and the reference differ then (D1, D2)."""
    feature = settings.features.get(feature_key)
    if feature is None or not isinstance(record, dict):
        return False
    is_in = record.get("isInHoldoutId") or record.get("holdoutGroupId") or []
    known = [*(is_in if isinstance(is_in, list) else [is_in]), *(record.get("notInHoldoutId") or [])]
    is_new = any(holdout.id not in known for holdout in feature.holdouts)
    return is_new and bool(is_in or record.get("experimentVariationId"))


def compare_call(settings: Settings, case: Any, expected: Any, seed: int) -> tuple[Decision, Trace]:
    context = context_from_json(case["context"], case["context"]["id"])
    decision = decide(settings, case["featureKey"], context, stored=case["storage"])
    body, count = event_documents(settings, context, decision, NOW_MS)
    events = documents_of(body)
    assert len(events) == count
    theirs = {name: expected[name] for name in ("enabled", "variables", "uuid", "writes")}
    theirs["failed"] = expected["failure"] is not None
    assert {**outcome(decision), "seed": seed, "case": case} == {**theirs, "seed": seed, "case": case}
    assert comparable(events) == comparable(expected["events"]), (seed, case)
    assert json.loads(decision.body) == {"isEnabled": decision.enabled, "variables": decision.variables}
    if expected["passed"] and decision.reason not in ("stored", "holdout"):
        assert list(decision.experiment or (None, None, None)) == [expected["passed"].get(name) for name in IDS]
    trace = Trace()
    traced = decide(settings, case["featureKey"], context, stored=case["storage"], trace=trace)
    assert outcome(traced) == outcome(decision)
    assert event_documents(settings, context, traced, NOW_MS)[0] == body
    return decision, trace


def outcome(decision: Decision) -> dict[str, Any]:
    return {
        "enabled": decision.enabled,
        "variables": decision.variables,
        "uuid": decision.uuid,
        "writes": json.loads(json.dumps(decision.writes)),
        "failed": decision.reason == "error",
    }


# --- events, without what differs by nature ----------------------------------


def documents_of(body: bytes) -> list[Any]:
    """Our events. Row A10: their message ids have one more part, which the SDK's do not have."""
    events = [json.loads(line)["d"] for line in body.splitlines()]
    return [event | {"msgId": event["msgId"].rpartition("-")[0]} for event in events]


def comparable(events: list[Any]) -> list[Any]:
    """Events key by key, without names and versions, usage statistics and the SDK's reports about its own errors.

    Debug events leave the SDK at once and our documents last; versions of the device are only ours.
    """
    return sorted(
        (kept(event) for event in events if is_comparable(event)), key=lambda event: ORDER[event["event"]["name"]]
    )


class Order(dict[str, int]):
    """Impressions and custom events keep their order, then usage, then debug."""

    def __missing__(self, name: str) -> int:
        return 0


ORDER = Order(vwo_feTrackUsage=1, vwo_sdkDebug=2)


def is_comparable(event: Any) -> bool:
    meta = event["event"]["props"].get("vwoMeta", {})
    return event["event"]["name"] != "vwo_sdkDebug" or meta["msg_t"] == "FLAG_DECISION_GIVEN"


def kept(event: Any) -> Any:
    name, props = event["event"]["name"], dict(event["event"]["props"])
    props = {key: value for key, value in props.items() if key not in ("vwo_sdkName", "vwo_sdkVersion")}
    visitor = {key: value for key, value in event["visitor"]["props"].items() if key not in ("vwo_osv", "vwo_bv")}
    if name == "vwo_sdkDebug":
        meta = {key: value for key, value in props["vwoMeta"].items() if key not in ("sn", "sv", "eventId")}
        # The SDK leaves these two empty in debug events; they are the visitor's in ours.
        return {"visId": event["visId"], "event": {"name": name, "meta": meta}}
    props.pop("vwoMeta", None)
    if name == "vwo_variationShown":
        props["variation"] = as_number(props["variation"])
    return {**event, "event": {**event["event"], "props": props}, "visitor": {"props": visitor}}


def as_number(variation: Any) -> Any:
    try:
        return float(variation)
    except ValueError:
        return variation


# --- what has been reached ---------------------------------------------------

REASONS = (
    *("rollout", "experiment", "whitelisted", "stored", "holdout"),
    *("no rule matched", "out of traffic", "lost group", "feature not found", "error"),
)
CONDITIONS = (
    *("and", "or", "not", "custom_variable", "user", "ua", "ip_address", "browser_version", "os_version"),
    "campaignVariation",
)


def count_kinds(steps: list[Any], settings: Settings, kinds: Counter[tuple[Any, ...]]) -> None:
    for step in steps:
        kinds[COUNTED.get(step["step"], lambda step: (step["step"],))(step)] += 1
        if step["step"] == "segment" and isinstance(step["node"], dict) and "custom_variable" in step["node"]:
            operand = next(iter((step["node"]["custom_variable"] or {}).values()), None)
            form = FORMS.get(operand) if isinstance(operand, str) else None
            kinds["operand", form, step["result"]] += 1
        count_kinds(step.get("steps", []), settings, kinds)


FORMS = {operand: form for form, operands in OPERANDS.items() for operand in operands}


def segment_kind(step: Any) -> tuple[Any, ...]:
    node = step["node"]
    name = next(iter(node)) if isinstance(node, dict) and node else "malformed"
    return ("condition" if name in CONDITIONS else "meaningless", name, step["result"])


def check_kind(step: Any) -> tuple[Any, ...]:
    keys = set(step["node"])
    name = "featureId" if "featureId" in keys else "location" if keys & {"country", "region", "city"} else "device"
    return ("check", name, step["result"])


COUNTED = {
    "segment": segment_kind,
    "check": check_kind,
    "rule": lambda step: ("rule", step["kind"], step["passed"]),
    "traffic": lambda step: ("traffic", step["passed"]),
    "holdout": lambda step: ("holdout", step["matched"]),
    "whitelisting": lambda step: ("whitelisting", step["variation"] is not None),
    "group": lambda step: ("group", step.get("algorithm"), step["winner"] is not None),
}
