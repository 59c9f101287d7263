"""Sticky records of earlier decisions, read and written by one decision (decision engine 3.9)."""

from typing import Any

from tornado_gateway.core.context import Abort
from tornado_gateway.core.types import Evaluation, RuleMatch, StickyRecord

_NO_DATA = ("Storage is undefined", "No data found", "Campaign paused", "Whitelisted variation")
_BAD_DATA = ("Incorrect data", "Variation not found")


def read_record(evaluation: Evaluation, key: str) -> StickyRecord | None:
    """Return the record under `key`, as this decision has written it or as it was stored; None if there is none."""
    record = _known_record(evaluation, key)
    if record and record.get("status") in _BAD_DATA:
        raise Abort(f"the stored record of {key} says: {record['status']}")
    return record


def has_record(evaluation: Evaluation, key: str) -> bool:
    """Return whether a record is stored under `key`. A record with a bad status counts."""
    return _known_record(evaluation, key) is not None


def _known_record(evaluation: Evaluation, key: str) -> StickyRecord | None:
    if evaluation.stored is None:
        return None
    record = _written_record(evaluation.writes, key) if evaluation.writes else None
    if record is None:
        record = evaluation.stored.get(key)
    if record is None:
        return None
    if not hasattr(record, "get"):
        raise Abort(f"the stored record of {key} is not an object")
    return None if not record or record.get("status") in _NO_DATA else record


def _written_record(writes: list[StickyRecord], key: str) -> StickyRecord | None:
    for record in reversed(writes):
        if record["featureKey"] == key:
            return record
    return None


def write_record(
    evaluation: Evaluation,
    key: str,
    rollout: RuleMatch | None = None,
    experiment: RuleMatch | None = None,
    is_in: list[Any] | None = None,
    not_in: list[Any] | None = None,
) -> None:
    """Replace the record under `key`. Nothing is written without a user id or for a rule without variation id."""
    if evaluation.stored is None or not evaluation.user_id:
        return
    if rollout and not experiment and not rollout.variation_id:
        return
    if experiment and not experiment.variation_id:
        return
    record: StickyRecord = {
        "featureKey": key,
        "userId": evaluation.user_id,
        "rolloutId": rollout and rollout.id,
        "rolloutKey": rollout and rollout.key,
        "rolloutVariationId": rollout and rollout.variation_id,
        "experimentId": experiment and experiment.id,
        "experimentKey": experiment and experiment.key,
        "experimentVariationId": experiment and experiment.variation_id,
        "isInHoldoutId": is_in,
        "notInHoldoutId": not_in,
    }
    evaluation.writes.append(record)
