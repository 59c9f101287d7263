"""The parts of evaluating one rule: whitelisting, segment, traffic, variation (decision engine 3.3 to 3.6)."""

from collections.abc import Iterable

from tornado_gateway.core.bucketing import TRAFFIC_BUCKETS, VARIATION_BUCKETS, bucket_of, ranges_of
from tornado_gateway.core.context import Abort
from tornado_gateway.core.types import Evaluation, Rule, Variation


def vwo_user_id_of(evaluation: Evaluation, rule: Rule) -> str | None:
    """Return `_vwoUserId` for a rule: the plain id, or its uuid by formula for campaigns with user lists."""
    if not rule.is_user_list:
        return evaluation.user_id
    return evaluation.settings.identify(evaluation.user_id) if evaluation.user_id else None


def in_segment(evaluation: Evaluation, rule: Rule) -> bool:
    """Return whether the user matches the rule's segment, if it has one."""
    properties = evaluation.properties
    if properties is None:
        raise Abort("the custom variables are null")
    return rule.segment is None or rule.segment(evaluation, properties, evaluation.vwo_user_id)


def in_traffic(evaluation: Evaluation, rule: Rule) -> bool:
    """Return whether the user's bucket of 100 is in the rule's share. A user without an id is not in it."""
    limit = rule.limit
    if limit is None:
        raise Abort(f"campaign {rule.campaign.id} has no traffic as a number")
    if limit >= TRAFFIC_BUCKETS and evaluation.user_id and evaluation.trace is None:
        return True
    bucket = bucket_of(rule.traffic_prefix + evaluation.bucketing_id, TRAFFIC_BUCKETS) if evaluation.user_id else None
    passed = bucket is not None and bucket <= limit
    if evaluation.trace is not None:
        evaluation.trace.add("traffic", bucket=bucket, limit=limit, passed=passed)
    return passed


def choose_variation(evaluation: Evaluation, rule: Rule) -> Variation | None:
    """Return the variation whose range holds the user's bucket of 10,000."""
    bucket = bucket_of(rule.variation_prefix + evaluation.bucketing_id, VARIATION_BUCKETS)
    chosen = None
    for variation in rule.variations:
        if variation.start <= bucket <= variation.end:
            chosen = variation
            break
    if evaluation.trace is not None:
        _trace_variation(evaluation, bucket, chosen, rule.variations)
    return chosen


def forced_variation(evaluation: Evaluation, rule: Rule) -> Variation | None:
    """Return the variation that the user is whitelisted for. Among several, their weights and the bucket decide."""
    properties = evaluation.context.variation_targeting_variables
    if properties is None:
        raise Abort("the variation targeting variables are null")
    if not rule.is_forced:
        return None
    vwo_user_id = vwo_user_id_of(evaluation, rule)
    listed = [
        variation
        for variation in rule.variations
        if variation.segment is not None and variation.segment(evaluation, properties, vwo_user_id)
    ]
    chosen = _choose_listed(evaluation, rule, listed) if len(listed) > 1 else next(iter(listed), None)
    if evaluation.trace is not None:
        evaluation.trace.add("whitelisting", variation=chosen and chosen.id)
    return chosen


def _choose_listed(evaluation: Evaluation, rule: Rule, listed: list[Variation]) -> Variation | None:
    weights = [float(variation.weight) for variation in listed]
    total = sum(weights)
    shares = [weight / total * 100 for weight in weights] if total else [100 / len(listed)] * len(listed)
    bucket = bucket_of(rule.traffic_prefix + evaluation.bucketing_id, VARIATION_BUCKETS)
    for variation, (start, end) in zip(listed, ranges_of(shares), strict=True):
        if start <= bucket <= end:
            return variation
    return None


def _trace_variation(
    evaluation: Evaluation, bucket: int, chosen: Variation | None, variations: Iterable[Variation]
) -> None:
    assert evaluation.trace is not None  # noqa: S101 - for the type checker
    evaluation.trace.add(
        "variation",
        bucket=bucket,
        variation=chosen and chosen.id,
        name=chosen and chosen.name,
        ranges=[{"variation": item.id, "from": item.start, "to": item.end} for item in variations],
    )
