"""Segments that record their results: each node adds a step to the trace of the decision."""

from collections.abc import Callable

from tornado_gateway.core.context import Properties
from tornado_gateway.core.trace import Step
from tornado_gateway.core.types import UNSET, VWO_USER_ID, Evaluation, Predicate


def record_node(node: object, predicate: Predicate, step: str) -> Predicate:
    """Wrap the predicate of a segment node so that its result is recorded in the trace of the evaluation."""

    def recorded(evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> bool:
        trace = evaluation.trace
        if trace is None:
            return predicate(evaluation, properties, vwo_user_id)
        trace.open(step, node=node, **_actual(step, node, evaluation, properties, vwo_user_id))
        result: bool | None = None
        try:
            result = predicate(evaluation, properties, vwo_user_id)
            return result
        finally:
            trace.close(result=result)

    return recorded


def _actual(step: str, node: object, evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> Step:
    """Return the visitor's value that the node compares, if it compares one."""
    if not isinstance(node, dict) or not node:
        return {}
    if step == "check":
        facts = {**(evaluation.context.location or {}), **(evaluation.context.device or {})}
        return {"actual": {name: facts.get(name) for name in node}} if "featureId" not in node else {}
    name, operand = next(iter(node.items()))
    read = _ACTUAL.get(name)
    return read(operand, evaluation, properties, vwo_user_id) if read else {}


def _actual_variable(operand: object, evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> Step:
    name = str(next(iter(operand), "")) if isinstance(operand, dict) else ""
    return {"actual": properties[name]} if properties and name in properties else {"actual": None, "missing": True}


def _actual_user(operand: object, evaluation: Evaluation, properties: Properties, vwo_user_id: object) -> Step:
    return {"actual": vwo_user_id if vwo_user_id is not UNSET else (properties or {}).get(VWO_USER_ID)}


def _actual_of(read: Callable[[Evaluation], object]) -> Callable[[object, Evaluation, Properties, object], Step]:
    return lambda operand, evaluation, properties, vwo_user_id: {"actual": read(evaluation)}


def _device_fact(name: str) -> Callable[[object, Evaluation, Properties, object], Step]:
    return _actual_of(lambda evaluation: evaluation.context.device.get(name) if evaluation.context.device else None)


_ACTUAL: dict[str, Callable[[object, Evaluation, Properties, object], Step]] = {
    "custom_variable": _actual_variable,
    "user": _actual_user,
    "ua": _actual_of(lambda evaluation: evaluation.context.user_agent),
    "ip_address": _actual_of(lambda evaluation: evaluation.context.ip_address),
    "campaignVariation": _actual_of(lambda evaluation: evaluation.web_campaigns()),
    "os_version": _device_fact("os_version"),
    "browser_version": _device_fact("browser_version"),
}
