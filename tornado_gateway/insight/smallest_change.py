"""The changes that could turn a feature on for a visitor, each of one condition or one share of traffic.

They are read from the trace of a decision. Only the engine knows whether one of them suffices: the caller tries them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

Json = dict[str, Any]

MOST_CHANGES = 12  # that are tried, in the order of the trace
LOCATION = ("country", "region", "city")
DEVICE = ("device_type", "device", "os", "browser_string")
VARIABLES, TARGETING = "customVariables", "variationTargetingVariables"
RESERVED = "_vwoUserId"  # stands for the id of the visitor
_WORDS = {VARIABLES: "", TARGETING: "the targeting variable "}


@dataclass(frozen=True, slots=True)
class Change:
    """One change: in words, and either `fields` of the visitor or the `traffic` of a campaign in percent.

    `fields` are those of getFlag; a value of None removes a variable.
    """

    text: str
    fields: Mapping[str, Mapping[str, Any]] | None = None
    traffic: Mapping[str, float] | None = None


def possible_changes(steps: Sequence[Json]) -> list[Change]:
    """Return the changes that concern failed conditions first, then those of conditions that hold."""
    leaves = list(_leaves(steps, is_listing=True))  # a segment beside the rules is that of a list
    failed = [change for step, name in leaves if step.get("result") is False for change in _satisfying(step, name)]
    held = [change for step, name in leaves if step.get("result") is True for change in _removing(step, name)]
    return list({change.text: change for change in (*failed, *_of_traffic(steps), *held)}.values())[:MOST_CHANGES]


def _leaves(steps: Sequence[Json], *, is_listing: bool) -> Iterator[tuple[Json, str]]:
    """Return the conditions of rules that did not pass, and of lists, with the name of the variables they read."""
    for step in steps:
        node = step.get("node")
        if step["step"] == "rule":
            if not step.get("passed"):
                yield from _leaves(step["steps"], is_listing=False)
            continue
        if isinstance(node, dict) and node and not {"and", "or", "not"} & set(node):
            yield step, TARGETING if is_listing else VARIABLES
        yield from _leaves(step.get("steps") or (), is_listing=is_listing)


def _satisfying(step: Json, variables: str) -> Iterator[Change]:
    node = step["node"]
    name, operand = next(iter(node.items()))
    if name == "custom_variable" and isinstance(operand, dict) and operand:
        variable, wanted = next(iter(operand.items()))
        value = _value_for(wanted)
        if value is not None and variable != RESERVED:
            yield Change(f"set {_WORDS[variables]}{variable} to {_shown(value)}", {variables: {variable: value}})
    for kind, names, words in (("location", LOCATION, "visit from"), ("userAgent", DEVICE, "use a device with")):
        facts = {key: _value_for(_first(value)) for key, value in node.items() if key in names}
        if facts and len(facts) == len(node) and None not in facts.values():
            shown = ", ".join(f"{key} {_shown(value)}" for key, value in facts.items())
            yield Change(f"{words} {shown}", {kind: facts})


def _removing(step: Json, variables: str) -> Iterator[Change]:
    operand = step["node"].get("custom_variable")
    if isinstance(operand, dict) and operand:
        variable = next(iter(operand))
        yield Change(f"remove {_WORDS[variables]}{variable}", {variables: {variable: None}})


def _of_traffic(steps: Sequence[Json]) -> Iterator[Change]:
    """Return the changes of the traffic of rules that passed, which is the step after the rule."""
    rule: Json = {}
    for step in steps:
        if step["step"] == "rule":
            rule = step
        elif step["step"] == "traffic" and not step["passed"] and step["bucket"] and rule:
            raised = f"raise the traffic of {rule['rule']} from {step['limit']:g} % to {step['bucket']} %"
            text = f"{raised}: this visitor's bucket is {step['bucket']}"
            yield Change(text, traffic={str(rule["campaign"]): step["bucket"]})
        yield from _of_traffic(step.get("steps") or ())


# --- Values ---

_OPERAND = re.compile(r"(lower|wildcard|gte|gt|lte|lt|regex|inlist)\((.*)\)", re.DOTALL)
_ABOVE = {"gt": 1, "gte": 0, "lte": 0, "lt": -1}


def _value_for(wanted: object) -> Any:
    """Return a value that satisfies an operand, None if there is no obvious one."""
    found = _OPERAND.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return wanted
    form, text = found[1], found[2]
    if form in _ABOVE:
        return _number(text, _ABOVE[form])
    return {"lower": text, "wildcard": text.strip("*")}.get(form)


def _number(text: str, more: int) -> float | int | None:
    try:
        value = float(text) + more
    except ValueError:
        return None
    return int(value) if value.is_integer() else value


def _first(value: object) -> object:
    return next(iter(value), None) if isinstance(value, list) else value


def _shown(value: object) -> str:
    return orjson.dumps(value, default=str).decode()
