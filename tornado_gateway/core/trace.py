"""The reasons of a decision: the steps that `decide(trace=...)` records, and their lines of text."""

import json
from collections.abc import Callable
from typing import Any

Step = dict[str, Any]


class Trace:
    """The steps of one decision in order, as plain data. A step is named by `step`; inner steps are under `steps`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._open = [self.steps]

    def add(self, step: str, **facts: Any) -> None:
        self._open[-1].append({"step": step, **facts})

    def open(self, step: str, **facts: Any) -> Step:
        """Begin a step that has inner steps; `close` ends it."""
        entry: Step = {"step": step, **facts, "steps": []}
        self._open[-1].append(entry)
        self._open.append(entry["steps"])
        return entry

    def close(self, **facts: Any) -> None:
        inner = self._open.pop()
        entry = self._open[-1][-1]
        entry.update(facts)
        entry["steps"] = inner


def explain_lines(trace: Trace) -> list[str]:
    """Return the trace as indented lines; a segment node reads `[x]` when it is true and `[ ]` when it is false."""
    lines: list[str] = []
    _explain(trace.steps, 0, lines)
    return lines


def _explain(steps: list[Step], depth: int, lines: list[str]) -> None:
    for step in steps:
        lines.append("  " * depth + _LINES.get(step["step"], _other_line)(step))
        _explain(step.get("steps", []), depth + 1, lines)


_MARKS = {True: "[x]", False: "[ ]", None: "[!]"}


def _segment_line(step: Step) -> str:
    mark = _MARKS[step["result"]]
    node = step["node"]
    if not isinstance(node, dict) or not node:
        return f"{mark} {_json(node)}"
    name, operand = next(iter(node.items()))
    if name in ("and", "or", "not"):
        return f"{mark} {name}"
    if name == "custom_variable" and isinstance(operand, dict) and operand:
        variable, wanted = next(iter(operand.items()))
        return f"{mark} {variable} is {_json(wanted)}: {_has(step)}"
    wanted = ", ".join(f"{key} is {_json(value)}" for key, value in node.items())
    return f"{mark} {wanted}: {_has(step)}" if "actual" in step else f"{mark} {wanted}"


def _skipped_line(step: Step) -> str:
    return f"[-] skipped, as a location beside other conditions: {_json(step['node'])}"


def _has(step: Step) -> str:
    return "the user has none" if step.get("missing") else f"the user has {_json(step['actual'])}"


def _rule_line(step: Step) -> str:
    verdict = "passed" if step.get("passed") else "not passed"
    return f"{step['kind']} rule {step['rule']} (campaign {step['campaign']} {step['name']}): {verdict}"


def _traffic_line(step: Step) -> str:
    verdict = "in" if step["passed"] else "out"
    if step["bucket"] is None:
        return f"traffic: {step['limit']}% of the users, but there is no user id: {verdict}"
    return f"traffic: bucket {step['bucket']} of 100, {step['limit']}% are let in: {verdict}"


def _variation_line(step: Step) -> str:
    chosen = f"variation {step['variation']} {step['name']}" if step["variation"] is not None else "no variation"
    ranges = ", ".join(f"{item['variation']}: {item['from']}-{item['to']}" for item in step["ranges"])
    return f"variation: bucket {step['bucket']} of 10000 gives {chosen} ({ranges})"


def _whitelist_line(step: Step) -> str:
    if step["variation"] is None:
        return "whitelisting: the user is not listed"
    return f"whitelisting: the user is listed for variation {step['variation']}"


def _holdout_line(step: Step) -> str:
    where = "in the holdout" if step["matched"] else "not in the holdout"
    bucket = f"bucket {step['bucket']} of 100, limit {step['limit']}" if step["bucket"] else "its segment is not met"
    return f"holdout {step['holdout']} {step['name']}: {bucket}: {where}"


def _group_line(step: Step) -> str:
    winner = f"campaign {step['winner']}" if step.get("winner") is not None else "none"
    bucket = f" at bucket {step['bucket']} of 10000" if step.get("bucket") else ""
    eligible = ", ".join(step.get("eligible", [])) or "none"
    return f"group {step['group']}: eligible are {eligible}; {winner} wins{bucket}"


def _end_line(step: Step) -> str:
    state = "enabled" if step["enabled"] else "disabled"
    error = f" ({step['error']})" if step.get("error") else ""
    return f"{step['feature']} is {state}: {step['reason']}{error}"


def _stored_line(step: Step) -> str:
    return f"stored decision for {step['key']}: {step['result']}"


def _slow_patterns_line(step: Step) -> str:
    return f"these patterns exceeded their time limit and counted as not matching: {_json(step['patterns'])}"


def _other_line(step: Step) -> str:
    facts = ", ".join(f"{key} {_json(value)}" for key, value in step.items() if key not in ("step", "steps"))
    return f"{step['step']}: {facts}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


_LINES: dict[str, Callable[[Step], str]] = {
    "segment": _segment_line,
    "check": _segment_line,
    "skipped": _skipped_line,
    "rule": _rule_line,
    "traffic": _traffic_line,
    "variation": _variation_line,
    "whitelisting": _whitelist_line,
    "holdout": _holdout_line,
    "group": _group_line,
    "stored": _stored_line,
    "slow": _slow_patterns_line,
    "end": _end_line,
}
