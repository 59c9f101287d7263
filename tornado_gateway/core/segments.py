"""Segments compiled to closures: `(evaluation, properties, _vwoUserId) -> is the user in it?` (decision engine 4).

Everything that depends on the segment alone is resolved here, once: operands, regexes, the special cases of `and` and
`or`. With a `recorder`, every node is wrapped to leave its result in the trace of the evaluation.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tornado_gateway.core.conditions import (
    CONDITIONS,
    DEVICE_KEYS,
    LOCATION_KEYS,
    Compilation,
    Incomparable,
    aborts,
    all_of,
    always,
    feature_switch,
    is_at_location,
    is_on_device,
    merge_locations,
    never_true,
    with_web_campaigns,
)
from tornado_gateway.core.context import Properties
from tornado_gateway.core.types import Evaluation, Needs, Predicate, Recorder

# Deeper nodes abort when they are reached: closures nest as deeply as the document does.
DEEPEST_NODE = 200

# An SDK with a gateway fetches location and device facts if one of these words is anywhere in a segment.
_LOOKUP_WORDS = re.compile(
    r"\b(country|region|city|os|device_type|browser_string|ua|browser_version|os_version)\b", re.IGNORECASE
)
_LOOKUP_LIST = re.compile(r"inlist\([^)]*\)")


def compile_segment(
    segment: Mapping[str, Any], feature_keys: Mapping[Any, str], recorder: Recorder | None = None
) -> tuple[Predicate, Needs]:
    """Compile a segment that is not empty. `feature_keys` has the key of each feature by id, for `featureId`."""
    compilation = Compilation(feature_keys, recorder)
    predicate = _node(segment, compilation, 0)
    if _has_key(segment, "campaignVariation"):
        predicate = with_web_campaigns(predicate)
    needs = compilation.needs
    return predicate, needs._replace(wants_lookups=True) if _wants_lookups(segment) else needs


def _wants_lookups(segment: Mapping[str, Any]) -> bool:
    """Return whether an SDK requests location and device facts from a gateway because of this segment."""
    try:
        text = json.dumps(segment)
    except RecursionError:
        return False
    if _LOOKUP_WORDS.search(text):
        return True
    return '"custom_variable"' in text and _LOOKUP_LIST.search(text) is not None


def _node(node: object, compilation: Compilation, depth: int) -> Predicate:
    predicate = _bare_node(node, compilation, depth)
    return compilation.recorder(node, predicate, "segment") if compilation.recorder else predicate


def _bare_node(node: object, compilation: Compilation, depth: int) -> Predicate:
    if depth > DEEPEST_NODE:
        return aborts(f"a segment is nested more than {DEEPEST_NODE} levels deep")
    if not isinstance(node, dict) or not node:
        return aborts(f"a segment node must be an object with an operator, got {node!r}")
    name, operand = next(iter(node.items()))
    return _OPERATORS.get(name, _never)(operand, compilation, depth)


# --- Logic ---


def _and(operand: object, compilation: Compilation, depth: int) -> Predicate:
    """Require all nodes. Location nodes are gathered, and checked together once they are as many as the nodes."""
    if not isinstance(operand, list):
        return _whole_operand(operand, True)
    steps: list[tuple[object, Predicate | None]] = []
    expected: dict[str, object] = {}
    check = None
    for node in operand:
        wanted = {key: node[key] for key in LOCATION_KEYS if key in node} if isinstance(node, dict) else {}
        expected.update(wanted)
        if wanted and len(expected) == len(operand):
            check = _recorded(expected, is_at_location(expected, compilation), compilation)
            break
        steps.append((node, None if wanted else _node(node, compilation, depth + 1)))
    compilation.location = compilation.location or bool(expected)
    predicates = [predicate for _, predicate in steps if predicate]
    if check:
        return all_of([*predicates, check])
    if compilation.recorder:
        record = compilation.recorder
        predicates = [predicate or record(node, always, "skipped") for node, predicate in steps]
    return all_of(predicates)


def _or(operand: object, compilation: Compilation, depth: int) -> Predicate:
    """Require one node. Device nodes are gathered and checked together, as in `_and`; a `featureId` is decisive."""
    if not isinstance(operand, list):
        return _whole_operand(operand, False)
    steps: list[tuple[Predicate, bool]] = []
    expected: dict[str, list[object]] = {}
    seen = 0
    for node in operand:
        switch = None
        for key in node if isinstance(node, dict) else ():
            if key in DEVICE_KEYS:
                seen += 1
                expected.setdefault(key, []).extend(node[key] if isinstance(node[key], list) else [node[key]])
            elif key == "featureId":
                switch = feature_switch(node[key], compilation)
                if switch:
                    break
        compilation.device = compilation.device or bool(expected)
        if switch:
            steps.append((_recorded(node, switch, compilation), True))
            break
        if expected and seen == len(operand):
            wanted = {key: list(values) for key, values in expected.items()}
            steps.append((_recorded(wanted, is_on_device(wanted), compilation), True))
        predicate = _node(node, compilation, depth + 1)
        if predicate is not never_true:
            steps.append((predicate, False))
    if not any(is_decisive for _, is_decisive in steps):
        return _any(merge_locations([predicate for predicate, _ in steps], compilation))
    return _any_until_decisive(steps)


def _not(operand: object, compilation: Compilation, depth: int) -> Predicate:
    predicate = _node(operand, compilation, depth + 1)
    return lambda evaluation, properties, vwo_user_id: not predicate(evaluation, properties, vwo_user_id)


def _any(predicates: list[Predicate]) -> Predicate:
    if not predicates:
        return never_true
    if len(predicates) == 1:
        return predicates[0]
    return _either(*predicates) if len(predicates) == 2 else _any_of(predicates)


def _either(first: Predicate, second: Predicate) -> Predicate:
    return lambda evaluation, properties, vwo_user_id: (
        first(evaluation, properties, vwo_user_id) or second(evaluation, properties, vwo_user_id)
    )


def _any_of(predicates: list[Predicate]) -> Predicate:
    def any_of(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        for predicate in predicates:  # noqa: SIM110 - a generator costs more than the loop
            if predicate(evaluation, properties, vwo_user_id):
                return True
        return False

    return any_of


def _any_until_decisive(steps: list[tuple[Predicate, bool]]) -> Predicate:
    """Do as `_any`, but end with the result of a decisive step, unless its data cannot be compared."""

    def any_of(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        for predicate, is_decisive in steps:
            try:
                result = predicate(evaluation, properties, vwo_user_id)
            except Incomparable:
                continue
            if result or is_decisive:
                return result
        return False

    return any_of


def _whole_operand(operand: object, empty_result: bool) -> Predicate:
    """Compile `and`/`or` over something other than a list: an empty operand has a result, others abort."""
    if isinstance(operand, dict | str) and not operand:
        return always if empty_result else never_true
    return aborts(f"and/or need a list of nodes, got {operand!r}")


def _never(operand: object, compilation: Compilation, depth: int) -> Predicate:
    """Compile operators that are unknown, or have a meaning only inside `and`/`or`: never true."""
    return never_true


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
    **CONDITIONS,
}
