"""Sticky records: what earlier decisions stored, read and written by one decision (decision engine 3.9)."""

from typing import Any

from tornado_gateway.core.context import Abort
from tornado_gateway.core.evaluation import Record, Visit
from tornado_gateway.core.model import Passed

_NO_DATA = ("Storage is undefined", "No data found", "Campaign paused", "Whitelisted variation")
_BAD_DATA = ("Incorrect data", "Variation not found")


def read_record(visit: Visit, key: str) -> Record | None:
    """Return the record under `key`, as this decision has written it or as it was stored; None when there is none."""
    record = _known_record(visit, key)
    if record and record.get("status") in _BAD_DATA:
        raise Abort(f"the stored record of {key} says: {record['status']}")
    return record


def has_record(visit: Visit, key: str) -> bool:
    """Is anything stored under `key`? Also a record that says that it is bad is something."""
    return _known_record(visit, key) is not None


def _known_record(visit: Visit, key: str) -> Record | None:
    if visit.stored is None:
        return None
    record = visit.written.get(key) if visit.written else None
    if record is None:
        record = visit.stored.get(key)
    if record is None:
        return None
    if not hasattr(record, "get"):
        raise Abort(f"the stored record of {key} is not an object")
    return None if not record or record.get("status") in _NO_DATA else record


def write_record(
    visit: Visit,
    key: str,
    rollout: Passed | None = None,
    experiment: Passed | None = None,
    is_in: list[Any] | None = None,
    not_in: list[Any] | None = None,
) -> None:
    """Replace the record under `key`. Nothing is written without a user id or for a rule without variation id."""
    if visit.stored is None or not visit.user_id:
        return
    if rollout and not experiment and not rollout.variation_id:
        return
    if experiment and not experiment.variation_id:
        return
    record: Record = {
        "featureKey": key,
        "userId": visit.user_id,
        "rolloutId": rollout and rollout.id,
        "rolloutKey": rollout and rollout.key,
        "rolloutVariationId": rollout and rollout.variation_id,
        "experimentId": experiment and experiment.id,
        "experimentKey": experiment and experiment.key,
        "experimentVariationId": experiment and experiment.variation_id,
        "isInHoldoutId": is_in,
        "notInHoldoutId": not_in,
    }
    if visit.written is None:
        visit.written = {}
    visit.written[key] = record
    visit.writes.append(record)
