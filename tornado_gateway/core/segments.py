"""Segments compiled to closures: `(visit, properties, hidden user id) -> is the user in it?` (decision engine 4).

Everything that depends on the segment alone is resolved here, once: operands, regexes, the special cases of `and` and
`or`. A malformed node becomes a predicate that aborts when it is reached, because evaluation is lazy: a node behind a
short circuit must not harm. With a `recorder`, every node is wrapped to leave its result in the visit's trace.
"""

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from tornado_gateway.core.context import Abort, Properties
from tornado_gateway.core.evaluation import UNSET, Visit
from tornado_gateway.core.model import Facts
from tornado_gateway.core.operators import list_value, value_matcher, version_matcher
from tornado_gateway.core.records import has_record
from tornado_gateway.core.webtests import campaign_condition

Predicate = Callable[[Visit, Properties, object], bool]
# (node, its predicate, "segment" for a node, "check" for what several nodes amount to, "skipped") -> predicate
Recorder = Callable[[object, Predicate, str], Predicate]

# Deeper nodes abort when they are reached: closures nest as deeply as the document does.
DEEPEST_NODE = 200

HIDDEN_USER = "_vwoUserId"

_LOCATION_KEYS = ("country", "region", "city")
_DEVICE_KEYS = ("os", "browser_string", "device_type", "device")
_LIST = re.compile(r"inlist\(([^)]+)\)")
_DEVICE_WILDCARD = re.compile(r"^wildcard\((.*)\)$")
_MISSING = object()


class Compilation:
    """One segment being compiled: what it may refer to, and what it turns out to look at."""

    def __init__(self, feature_keys: Mapping[Any, str], recorder: Recorder | None) -> None:
        self.feature_keys = feature_keys
        self.recorder = recorder
        self.location = False
        self.device = False
        self.lists: list[tuple[str, str]] = []
        self.features: list[str] = []
        self.places: dict[Predicate, tuple[str, frozenset[str | None]]] = {}  # what looks at one fact of the location

    @property
    def facts(self) -> Facts:
        return Facts(self.location, self.device, tuple(self.lists), tuple(self.features))


def compile_segment(
    segment: Mapping[str, Any], feature_keys: Mapping[Any, str], recorder: Recorder | None = None
) -> tuple[Predicate, Facts]:
    """Compile a segment that is not empty. `feature_keys` has the key of each feature by id, for `featureId`."""
    compilation = Compilation(feature_keys, recorder)
    predicate = _node(segment, compilation, 0)
    if _has_key(segment, "campaignVariation"):
        predicate = _with_web_campaigns(predicate)
    return predicate, compilation.facts


def _node(node: object, compilation: Compilation, depth: int) -> Predicate:
    predicate = _bare_node(node, compilation, depth)
    return compilation.recorder(node, predicate, "segment") if compilation.recorder else predicate


def _bare_node(node: object, compilation: Compilation, depth: int) -> Predicate:
    if depth > DEEPEST_NODE:
        return _aborts(f"a segment is nested more than {DEEPEST_NODE} levels deep")
    if not isinstance(node, dict) or not node:
        return _aborts(f"a segment node must be an object with an operator, got {node!r}")
    name, operand = next(iter(node.items()))
    return _OPERATORS.get(name, _never)(operand, compilation, depth)


# --- logic -------------------------------------------------------------------


def _and(operand: object, compilation: Compilation, depth: int) -> Predicate:
    """All nodes; location nodes are gathered, checked once they are as many as the nodes, and skipped until then."""
    if not isinstance(operand, list):
        return _whole_operand(operand, True)
    steps: list[tuple[object, Predicate | None]] = []
    expected: dict[str, object] = {}
    check = None
    for node in operand:
        wanted = {key: node[key] for key in _LOCATION_KEYS if key in node} if isinstance(node, dict) else {}
        expected.update(wanted)
        if wanted and len(expected) == len(operand):
            check = _recorded(expected, _location(expected, compilation), compilation)
            break
        steps.append((node, None if wanted else _node(node, compilation, depth + 1)))
    compilation.location = compilation.location or bool(expected)
    predicates = [predicate for _, predicate in steps if predicate]
    if check:
        return _all([*predicates, check])
    if compilation.recorder:
        record = compilation.recorder
        predicates = [predicate or record(node, _always, "skipped") for node, predicate in steps]
    return _all(predicates)


def _or(operand: object, compilation: Compilation, depth: int) -> Predicate:
    """Any node; device nodes are gathered, checked together once they are as many as the nodes; `featureId` decides."""
    if not isinstance(operand, list):
        return _whole_operand(operand, False)
    steps: list[tuple[Predicate, bool]] = []
    expected: dict[str, list[object]] = {}
    seen = 0
    for node in operand:
        switch = None
        for key in node if isinstance(node, dict) else ():
            if key in _DEVICE_KEYS:
                seen += 1
                expected.setdefault(key, []).extend(node[key] if isinstance(node[key], list) else [node[key]])
            elif key == "featureId":
                switch = _feature_switch(node[key], compilation)
                if switch:
                    break
        compilation.device = compilation.device or bool(expected)
        if switch:
            steps.append((_recorded(node, switch, compilation), True))
            break
        if expected and seen == len(operand):
            wanted = {key: list(values) for key, values in expected.items()}
            steps.append((_recorded(wanted, _device(wanted), compilation), True))
        predicate = _node(node, compilation, depth + 1)
        if predicate is not _never_true:
            steps.append((predicate, False))
    if not any(is_decisive for _, is_decisive in steps):
        return _any(_merged([predicate for predicate, _ in steps], compilation))
    return _any_until_decisive(steps)


def _not(operand: object, compilation: Compilation, depth: int) -> Predicate:
    predicate = _node(operand, compilation, depth + 1)
    return lambda visit, properties, hidden: not predicate(visit, properties, hidden)


def _all(predicates: list[Predicate]) -> Predicate:
    if not predicates:
        return _always
    if len(predicates) == 1:
        return predicates[0]
    if len(predicates) == 2:
        first, second = predicates
        return lambda visit, properties, hidden: first(visit, properties, hidden) and second(visit, properties, hidden)

    def all_of(visit: Visit, properties: Properties, hidden: object) -> bool:
        for predicate in predicates:  # noqa: SIM110 - a generator costs more than the loop
            if not predicate(visit, properties, hidden):
                return False
        return True

    return all_of


def _any(predicates: list[Predicate]) -> Predicate:
    if not predicates:
        return _never_true
    if len(predicates) == 1:
        return predicates[0]
    if len(predicates) == 2:
        first, second = predicates
        return lambda visit, properties, hidden: first(visit, properties, hidden) or second(visit, properties, hidden)

    def any_of(visit: Visit, properties: Properties, hidden: object) -> bool:
        for predicate in predicates:  # noqa: SIM110 - a generator costs more than the loop
            if predicate(visit, properties, hidden):
                return True
        return False

    return any_of


def _any_until_decisive(steps: list[tuple[Predicate, bool]]) -> Predicate:
    """Like `_any`, but a decisive step ends it with its result, unless its data cannot be compared."""

    def any_of(visit: Visit, properties: Properties, hidden: object) -> bool:
        for predicate, is_decisive in steps:
            try:
                result = predicate(visit, properties, hidden)
            except _Incomparable:
                continue
            if result or is_decisive:
                return result
        return False

    return any_of


def _whole_operand(operand: object, empty_result: bool) -> Predicate:
    """`and`/`or` over something else than a list: over nothing it has a result, otherwise it aborts."""
    if isinstance(operand, dict | str) and not operand:
        return _always if empty_result else _never_true
    return _aborts(f"and/or need a list of nodes, got {operand!r}")


# --- conditions on properties and the visitor --------------------------------


def _custom_variable(operand: object, compilation: Compilation, depth: int) -> Predicate:
    if not isinstance(operand, dict) or not operand:
        return _aborts(f"custom_variable needs an object, got {operand!r}")
    name, wanted = next(iter(operand.items()))
    if name == HIDDEN_USER:
        return _hidden_variable(wanted)
    if not isinstance(wanted, str):
        message = f"the operand of custom_variable {name} must be text, got {wanted!r}"
        return lambda visit, properties, hidden: name in properties and _abort(message)
    if "inlist" in wanted:
        return _list_member(name, wanted, compilation)
    matches = value_matcher(wanted)

    def matches_variable(visit: Visit, properties: Properties, hidden: object) -> bool:
        value = properties.get(name, _MISSING)
        return value is not _MISSING and matches(value)

    return matches_variable


def _hidden_variable(wanted: object) -> Predicate:
    """A condition on `_vwoUserId` as if it were a variable of the caller."""
    if not isinstance(wanted, str):
        return _aborts(f"the operand of custom_variable {HIDDEN_USER} must be text, got {wanted!r}")
    if "inlist" in wanted:
        return _never_true
    matches = value_matcher(wanted)

    def matches_hidden(visit: Visit, properties: Properties, hidden: object) -> bool:
        if hidden is not UNSET:
            return matches(hidden)
        return HIDDEN_USER in properties and matches(properties[HIDDEN_USER])

    return matches_hidden


def _list_member(name: str, wanted: str, compilation: Compilation) -> Predicate:
    found = _LIST.search(wanted)
    if not found:
        return _never_true
    list_id = found[1]
    compilation.lists.append((name, list_id))

    def is_member(visit: Visit, properties: Properties, hidden: object) -> bool:
        value = properties.get(name, _MISSING)
        return value is not _MISSING and bool(visit.context.lists.get((list_id, list_value(value))))

    return is_member


def _user(operand: object, compilation: Compilation, depth: int) -> Predicate:
    if not isinstance(operand, str):
        return _aborts(f"user needs a text of ids, got {operand!r}")
    ids = tuple(item.strip() for item in operand.split(","))
    if len(ids) > 8:
        return _user_among(frozenset(ids))
    return lambda visit, properties, hidden: (hidden if hidden is not UNSET else _passed_user(properties)) in ids


def _user_among(ids: frozenset[str]) -> Predicate:
    def is_among(visit: Visit, properties: Properties, hidden: object) -> bool:
        user = hidden if hidden is not UNSET else _passed_user(properties)
        return isinstance(user, str) and user in ids

    return is_among


def _passed_user(properties: Properties) -> object:
    return properties.get(HIDDEN_USER)


def _user_agent(operand: object, compilation: Compilation, depth: int) -> Predicate:
    if not isinstance(operand, str):
        message = f"ua needs a text, got {operand!r}"
        return lambda visit, properties, hidden: bool(visit.context.user_agent) and _abort(message)
    matches = value_matcher(operand)
    return lambda visit, properties, hidden: bool(visit.context.user_agent) and matches(visit.context.user_agent)


def _ip_address(operand: object, compilation: Compilation, depth: int) -> Predicate:
    matches = version_matcher(operand)

    def matches_address(visit: Visit, properties: Properties, hidden: object) -> bool:
        address = visit.context.ip_address
        return address is not None and matches(address)

    return matches_address


def _device_version(fact: str) -> Callable[[object, Compilation, int], Predicate]:
    return lambda operand, compilation, depth: _version(fact, operand, compilation)


def _version(fact: str, operand: object, compilation: Compilation) -> Predicate:
    compilation.device = True
    matches = version_matcher(operand)

    def matches_version(visit: Visit, properties: Properties, hidden: object) -> bool:
        device = visit.context.device
        version = device.get(fact) if device else None
        return version is not None and matches(version)

    return matches_version


def _campaign_variation(operand: object, compilation: Compilation, depth: int) -> Predicate:
    is_true = campaign_condition(operand)
    return lambda visit, properties, hidden: is_true(visit.web_campaigns())


def _with_web_campaigns(predicate: Predicate) -> Predicate:
    """Without any web testing campaigns in the context, a segment that names one is false as a whole."""
    return lambda visit, properties, hidden: (
        visit.context.web_testing_campaigns is not None and predicate(visit, properties, hidden)
    )


# --- location, device, other features ----------------------------------------


def _location(expected: Mapping[str, object], compilation: Compilation) -> Predicate:
    checks = [_located(key, frozenset((_plain(value),)), compilation) for key, value in expected.items()]
    return _all(checks)


def _located(key: str, values: frozenset[str | None], compilation: Compilation) -> Predicate:
    def is_there(visit: Visit, properties: Properties, hidden: object) -> bool:
        context = visit.context
        if context.location is None or context.ip_address is None:
            return False
        value = context.location.get(key, _MISSING)
        return value is not _MISSING and _plain(value) in values

    compilation.places[is_there] = key, values
    return is_there


def _merged(predicates: list[Predicate], compilation: Compilation) -> list[Predicate]:
    """Neighbours that look at the same fact of the location become one: a list of countries costs as much as one."""
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


def _device(expected: Mapping[str, list[object]]) -> Predicate:
    """One matching fact is enough: the keys are alternatives, and so are the texts of a key."""
    matchers = {key: _device_fact(values) for key, values in expected.items()}

    def is_device(visit: Visit, properties: Properties, hidden: object) -> bool:
        context = visit.context
        if not context.user_agent or context.device is None:
            return False
        # The order of the facts decides whether one that cannot be compared comes first.
        for key, value in context.device.items():  # noqa: SIM110 - a generator costs more than the loop
            if key in matchers and matchers[key](value):
                return True
        return False

    return is_device


def _device_fact(values: list[object]) -> Callable[[object], bool]:
    """Compare one fact with its texts: the wildcards first, then the words. What is no text matches nothing."""
    texts = [value.lower() for value in values if isinstance(value, str)]
    words = frozenset(texts)
    patterns = [pattern for pattern in map(_device_pattern, texts) if pattern]

    def matches(actual: object) -> bool:
        if not isinstance(actual, str):
            raise _Incomparable
        if patterns and any(pattern(actual[:_LONGEST_FACT]) for pattern in patterns):
            return True
        return actual.lower() in words

    return matches


# Device facts are short words; the cap keeps a pattern with many stars cheap.
_LONGEST_FACT = 256


def _device_pattern(text: str) -> Callable[[str], object] | None:
    """`wildcard(p)`: stars match anything, the rest is a regex by accident of the SDK; anchored at the start only."""
    found = _DEVICE_WILDCARD.match(text)
    if not found:
        return None
    try:
        return re.compile(found[1].replace("*", ".*"), re.IGNORECASE).match
    except (re.error, OverflowError, RecursionError):
        return _incomparable


def _incomparable(value: object) -> bool:
    raise _Incomparable


class _Incomparable(Exception):  # noqa: N818 - it steers `_any_until_decisive`, nobody else sees it
    """A device fact that cannot be compared: the check counts as not made."""


def _feature_switch(operand: object, compilation: Compilation) -> Predicate | None:
    """`featureId`: is anything stored for that feature and this user? None when the flag is neither on nor off."""
    if not isinstance(operand, dict) or not operand:
        return _aborts(f"featureId needs an object, got {operand!r}")
    feature_id, flag = next(iter(operand.items()))
    if flag not in ("on", "off"):
        return None
    if not compilation.feature_keys:
        return _never_true
    try:
        key = compilation.feature_keys.get(int(feature_id))
    except ValueError:
        return _aborts(f"featureId needs a number, got {feature_id!r}")
    if key is None:
        return _never_true
    compilation.features.append(key)
    wanted = flag == "on"
    return lambda visit, properties, hidden: has_record(visit, key) == wanted


# --- constants ---------------------------------------------------------------


def _aborts(message: str) -> Predicate:
    return lambda visit, properties, hidden: _abort(message)


def _abort(message: str) -> bool:
    raise Abort(message)


def _always(visit: Visit, properties: Properties, hidden: object) -> bool:
    return True


def _never_true(visit: Visit, properties: Properties, hidden: object) -> bool:
    return False


def _never(operand: object, compilation: Compilation, depth: int) -> Predicate:
    """Operators that mean something only inside `and`/`or`, and unknown ones."""
    return _never_true


def _recorded(node: object, predicate: Predicate, compilation: Compilation) -> Predicate:
    return compilation.recorder(node, predicate, "check") if compilation.recorder else predicate


def _has_key(tree: object, key: str) -> bool:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if key in node:
                return True
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return False


_OPERATORS: dict[str, Callable[[object, Compilation, int], Predicate]] = {
    "and": _and,
    "or": _or,
    "not": _not,
    "custom_variable": _custom_variable,
    "user": _user,
    "ua": _user_agent,
    "ip_address": _ip_address,
    "browser_version": _device_version("browser_version"),
    "os_version": _device_version("os_version"),
    "campaignVariation": _campaign_variation,
}
