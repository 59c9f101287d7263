"""The conditions in a segment: each becomes a predicate when settings are compiled (decision engine 4.2 to 4.8).

`CONDITIONS` has one row for each operator that compares something. A malformed condition becomes a predicate that
aborts when it is reached, because evaluation is lazy: a node that a short circuit skips must have no effect.
"""

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final

from tornado_gateway.core.context import Abort, Properties
from tornado_gateway.core.operators import list_value, value_matcher, version_matcher
from tornado_gateway.core.patterns import compile_pattern
from tornado_gateway.core.records import has_record
from tornado_gateway.core.types import UNSET, VWO_USER_ID, Evaluation, Needs, Predicate, Recorder
from tornado_gateway.core.webtests import campaign_condition

LOCATION_KEYS: Final = ("country", "region", "city")
DEVICE_KEYS: Final = ("os", "browser_string", "device_type", "device")
_LIST = re.compile(r"inlist\(([^)]+)\)")
_DEVICE_WILDCARD = re.compile(r"^wildcard\((.*)\)$")
_MISSING: Final = object()


class Compilation:
    """One segment being compiled: the features it may refer to, and the inputs that it needs."""

    def __init__(self, feature_keys: Mapping[Any, str], recorder: Recorder | None) -> None:
        self.feature_keys = feature_keys
        self.recorder = recorder
        self.location = False
        self.device = False
        self.lists: list[tuple[str, str]] = []
        self.features: list[str] = []
        # Predicates that read one fact of the location: the fact and its values.
        self.places: dict[Predicate, tuple[str, frozenset[str | None]]] = {}

    @property
    def needs(self) -> Needs:
        return Needs(self.location, self.device, tuple(self.lists), tuple(self.features))


# --- Constants ---


def aborts(message: str) -> Predicate:
    return lambda evaluation, properties, vwo_user_id: _abort(message)


def _abort(message: str) -> bool:
    raise Abort(message)


def always(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
    return True


def never_true(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
    return False


def all_of(predicates: list[Predicate]) -> Predicate:
    if not predicates:
        return always
    if len(predicates) == 1:
        return predicates[0]
    return _both(*predicates) if len(predicates) == 2 else _every(predicates)


def _both(first: Predicate, second: Predicate) -> Predicate:
    return lambda evaluation, properties, vwo_user_id: (
        first(evaluation, properties, vwo_user_id) and second(evaluation, properties, vwo_user_id)
    )


def _every(predicates: list[Predicate]) -> Predicate:
    def every(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        for predicate in predicates:  # noqa: SIM110 - a generator costs more than the loop
            if not predicate(evaluation, properties, vwo_user_id):
                return False
        return True

    return every


# --- Conditions on properties and the visitor ---


def _custom_variable(operand: object, compilation: Compilation, depth: int) -> Predicate:
    if not isinstance(operand, dict) or not operand:
        return aborts(f"custom_variable needs an object, got {operand!r}")
    name, wanted = next(iter(operand.items()))
    if name == VWO_USER_ID:
        return _vwo_user_id_variable(wanted)
    if not isinstance(wanted, str):
        message = f"the operand of custom_variable {name} must be text, got {wanted!r}"
        return lambda evaluation, properties, vwo_user_id: name in properties and _abort(message)
    if "inlist" in wanted:
        return _list_member(name, wanted, compilation)
    matches = value_matcher(wanted)

    def matches_variable(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        value = properties.get(name, _MISSING)
        return value is not _MISSING and matches(value)

    return matches_variable


def _vwo_user_id_variable(wanted: object) -> Predicate:
    """Compile a condition on `_vwoUserId` that is written like one on a custom variable."""
    if not isinstance(wanted, str):
        return aborts(f"the operand of custom_variable {VWO_USER_ID} must be text, got {wanted!r}")
    if "inlist" in wanted:
        return never_true
    matches = value_matcher(wanted)

    def matches_vwo_user_id(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        if vwo_user_id is not UNSET:
            return matches(vwo_user_id)
        return VWO_USER_ID in properties and matches(properties[VWO_USER_ID])

    return matches_vwo_user_id


def _list_member(name: str, wanted: str, compilation: Compilation) -> Predicate:
    found = _LIST.search(wanted)
    if not found:
        return never_true
    list_id = found[1]
    compilation.lists.append((name, list_id))

    def is_member(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        value = properties.get(name, _MISSING)
        text = None if value is _MISSING else list_value(value)
        return text is not None and bool(evaluation.context.lists.get((list_id, text)))

    return is_member


def _user(operand: object, compilation: Compilation, depth: int) -> Predicate:
    if not isinstance(operand, str):
        return aborts(f"user needs a text of ids, got {operand!r}")
    ids = tuple(item.strip() for item in operand.split(","))
    if len(ids) > 8:
        return _user_among(frozenset(ids))
    return lambda evaluation, properties, vwo_user_id: (
        (vwo_user_id if vwo_user_id is not UNSET else _passed_user(properties)) in ids
    )


def _user_among(ids: frozenset[str]) -> Predicate:
    def is_among(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        user = vwo_user_id if vwo_user_id is not UNSET else _passed_user(properties)
        return isinstance(user, str) and user in ids

    return is_among


def _passed_user(properties: Properties) -> object:
    return properties.get(VWO_USER_ID)


def _user_agent(operand: object, compilation: Compilation, depth: int) -> Predicate:
    if not isinstance(operand, str):
        message = f"ua needs a text, got {operand!r}"
        return lambda evaluation, properties, vwo_user_id: bool(evaluation.context.user_agent) and _abort(message)
    matches = value_matcher(operand)
    return lambda evaluation, properties, vwo_user_id: (
        bool(evaluation.context.user_agent) and matches(evaluation.context.user_agent)
    )


def _ip_address(operand: object, compilation: Compilation, depth: int) -> Predicate:
    matches = version_matcher(operand)

    def matches_address(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        address = evaluation.context.ip_address
        return address is not None and matches(address)

    return matches_address


def _device_version(fact: str) -> Callable[[object, Compilation, int], Predicate]:
    return lambda operand, compilation, depth: _version(fact, operand, compilation)


def _version(fact: str, operand: object, compilation: Compilation) -> Predicate:
    compilation.device = True
    matches = version_matcher(operand)

    def matches_version(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        device = evaluation.context.device
        version = device.get(fact) if device else None
        return version is not None and matches(version)

    return matches_version


def _campaign_variation(operand: object, compilation: Compilation, depth: int) -> Predicate:
    is_true = campaign_condition(operand)
    return lambda evaluation, properties, vwo_user_id: is_true(evaluation.web_campaigns())


def with_web_campaigns(predicate: Predicate) -> Predicate:
    """Make a segment that names web testing campaigns false as a whole if the context has none."""
    return lambda evaluation, properties, vwo_user_id: (
        evaluation.context.web_testing_campaigns is not None and predicate(evaluation, properties, vwo_user_id)
    )


# --- Location, device, other features ---


def is_at_location(expected: Mapping[str, object], compilation: Compilation) -> Predicate:
    checks = [_located(key, frozenset((_plain(value),)), compilation) for key, value in expected.items()]
    return all_of(checks)


def _located(key: str, values: frozenset[str | None], compilation: Compilation) -> Predicate:
    def is_there(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        context = evaluation.context
        if context.location is None or context.ip_address is None:
            return False
        value = context.location.get(key, _MISSING)
        return value is not _MISSING and _plain(value) in values

    compilation.places[is_there] = key, values
    return is_there


def merge_locations(predicates: list[Predicate], compilation: Compilation) -> list[Predicate]:
    """Merge neighbours that read the same fact of the location: a list of countries costs as much as one country."""
    places = compilation.places
    merged: list[Predicate] = []
    for key, same in groupby(predicates, key=lambda predicate: places[predicate][0] if predicate in places else None):
        if key is None:
            merged += same
        else:
            merged.append(_located(key, frozenset().union(*(places[predicate][1] for predicate in same)), compilation))
    return merged


def _plain(value: object) -> str | None:
    return None if value is None else str(value).replace('"', "").strip()


def is_on_device(expected: Mapping[str, list[object]]) -> Predicate:
    """Match if one fact matches: the keys are alternatives, and so are the texts of a key."""
    matchers = {key: _device_fact(values) for key, values in expected.items()}

    def is_device(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        context = evaluation.context
        if not context.user_agent or context.device is None:
            return False
        # The order of the facts decides whether one that cannot be compared comes first.
        for key, value in context.device.items():  # noqa: SIM110 - a generator costs more than the loop
            if key in matchers and matchers[key](value):
                return True
        return False

    return is_device


def _device_fact(values: list[object]) -> Callable[[object], bool]:
    """Compare one fact with its texts: wildcards first, then words. Only texts can match."""
    texts = [value.lower() for value in values if isinstance(value, str)]
    words = frozenset(texts)
    patterns = [pattern for pattern in map(_device_pattern, texts) if pattern]

    def matches(actual: object) -> bool:
        if not isinstance(actual, str):
            raise Incomparable
        if patterns and any(pattern(actual[:_LONGEST_FACT]) for pattern in patterns):
            return True
        return actual.lower() in words

    return matches


# Device facts are short words; the cap keeps a pattern with many stars cheap.
_LONGEST_FACT: Final = 256


def _device_pattern(text: str) -> Callable[[str], bool] | None:
    """Compile `wildcard(p)`: stars match anything, the rest is a regex as in the SDK, anchored at the start only."""
    found = _DEVICE_WILDCARD.match(text)
    if not found:
        return None
    return compile_pattern(found[1].replace("*", ".*"), re.IGNORECASE, at_start=True) or _incomparable


def _incomparable(value: object) -> bool:
    raise Incomparable


class Incomparable(Exception):  # noqa: N818 - it steers `_any_until_decisive` in segments
    """A device fact that cannot be compared: the check counts as not made."""


def feature_switch(operand: object, compilation: Compilation) -> Predicate | None:
    """Compile `featureId`: is a record stored for that feature and user? Return None if the flag is not on or off."""
    if not isinstance(operand, dict) or not operand:
        return aborts(f"featureId needs an object, got {operand!r}")
    feature_id, flag = next(iter(operand.items()))
    if flag not in ("on", "off"):
        return None
    if not compilation.feature_keys:
        return never_true
    try:
        key = compilation.feature_keys.get(int(feature_id))
    except ValueError:
        return aborts(f"featureId needs a number, got {feature_id!r}")
    if key is None:
        return never_true
    compilation.features.append(key)
    wanted = flag == "on"
    return lambda evaluation, properties, vwo_user_id: has_record(evaluation, key) == wanted


CONDITIONS: dict[str, Callable[[object, Compilation, int], Predicate]] = {
    "custom_variable": _custom_variable,
    "user": _user,
    "ua": _user_agent,
    "ip_address": _ip_address,
    "browser_version": _device_version("browser_version"),
    "os_version": _device_version("os_version"),
    "campaignVariation": _campaign_variation,
}
