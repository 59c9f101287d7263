"""Holdouts: shares of the users that see none of a feature (decision engine 3.8)."""

from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

from tornado_gateway.core.bucketing import TRAFFIC_BUCKETS, bucket_of
from tornado_gateway.core.context import NULL, Abort
from tornado_gateway.core.types import Evaluation, Holdout, Id, Impression, StickyRecord

IN_HOLDOUT: Final = 1
NOT_IN_HOLDOUT: Final = 2


class Evaluated(NamedTuple):
    """The evaluated holdouts in order, split by their result."""

    matched: list[Id]
    not_matched: list[Id]
    impressions: list[Impression]


def evaluate_holdouts(
    evaluation: Evaluation, feature_id: Id | None, holdouts: Iterable[Holdout], known: Collection[Any] = ()
) -> Evaluated:
    """Evaluate the holdouts whose ids are not yet known; all of them, also after a match."""
    evaluated = Evaluated([], [], [])
    for holdout in holdouts:
        if holdout.id in known:
            continue
        is_in = _is_in(evaluation, holdout)
        (evaluated.matched if is_in else evaluated.not_matched).append(holdout.id)
        if feature_id is not None:
            evaluated.impressions.append(holdout_impression(holdout, feature_id, is_in))
    return evaluated


def holdout_impression(holdout: Holdout, feature_id: Id, is_in: bool) -> Impression:
    """Return the event that says whether the user is held out."""
    variation = IN_HOLDOUT if is_in else NOT_IN_HOLDOUT
    return Impression(holdout.id, variation, holdout.tails[variation - 1], feature_id)


def known_holdouts(record: StickyRecord | None) -> tuple[list[Any], list[Any]]:
    """Return the ids that a record says the user is in, and is not in."""
    if not record:
        return [], []
    return holdout_ids(record.get("isInHoldoutId")), holdout_ids(record.get("notInHoldoutId"))


def holdout_ids(value: object) -> list[Any]:
    """Return the ids of one field of a record; a record of another shape aborts."""
    if not value:
        return []
    if not isinstance(value, list):
        raise Abort(f"stored holdout ids must be a list, got {value!r}")
    return value


def _is_in(evaluation: Evaluation, holdout: Holdout) -> bool:
    """Evaluate the segment, then the bucket, which is that of the user id, never of the bucketing seed."""
    segment = holdout.segment
    properties = NULL if evaluation.properties is None else evaluation.properties
    trace = evaluation.trace
    if trace is not None:
        trace.open("holdout", holdout=holdout.id, name=holdout.name, limit=holdout.percent_traffic)
    bucket = None
    matched = False
    try:
        if (segment is None or segment(evaluation, properties, evaluation.vwo_user_id)) and evaluation.user_id:
            bucket = bucket_of(holdout.prefix + evaluation.user_id.encode(), TRAFFIC_BUCKETS)
            matched = bucket <= holdout.percent_traffic
    finally:
        if trace is not None:
            trace.close(bucket=bucket, matched=matched)
    return matched
