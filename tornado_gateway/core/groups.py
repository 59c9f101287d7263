"""The check whether a user passes a rule: its segment and its mutually exclusive group (decision engine 3.3 and 3.7).

A group lets each user see only one of its campaigns. Which one is found by evaluating all of them, so a decision about
one feature evaluates rules of others here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tornado_gateway.core.bucketing import VARIATION_BUCKETS, bucket_of, ranges_of
from tornado_gateway.core.context import Abort
from tornado_gateway.core.holdouts import evaluate_holdouts, known_holdouts
from tornado_gateway.core.records import read_record, write_record
from tornado_gateway.core.rules import in_segment, in_traffic, vwo_user_id_of
from tornado_gateway.core.types import (
    AB,
    MEG_KEY_PREFIX,
    PERSONALIZE,
    ROLLOUT,
    Evaluation,
    Feature,
    FeatureDraft,
    Group,
    GroupFeature,
    Holdout,
    Rule,
    RuleMatch,
)
from tornado_gateway.core.validation import YieldPoint

# Group id -> its winner in this decision: a campaign id, "campaignId_variationId", or NO_WINNER.
Winners = dict[str, Any]

NO_WINNER: Final = -1
_WHOLE_CAMPAIGN: Final = -1


def passes(evaluation: Evaluation, feature: Feature, rule: Rule, winners: Winners) -> bool:
    """Return whether the user passes this rule before traffic. `winners` is shared by the rules of one stage."""
    trace = evaluation.trace
    if trace is None:
        return _passes(evaluation, feature, rule, winners)
    trace.open("rule", kind=rule.kind, rule=rule.rule_key, campaign=rule.campaign.id, name=rule.campaign.name)
    passed = False
    try:
        passed = _passes(evaluation, feature, rule, winners)
    finally:
        trace.close(passed=passed)
    return passed


def _passes(evaluation: Evaluation, feature: Feature, rule: Rule, winners: Winners) -> bool:
    evaluation.vwo_user_id = evaluation.user_id if not rule.is_user_list else vwo_user_id_of(evaluation, rule)
    properties, group = evaluation.properties, rule.group
    if properties is None:
        raise Abort("the custom variables are null")
    if group is None:
        return rule.segment is None or rule.segment(evaluation, properties, evaluation.vwo_user_id)
    if group.problem:
        raise Abort(group.problem)
    if winners.get(group.id):
        return _has_won(rule, winners[group.id])
    record = read_record(evaluation, group.storage_key)
    if record and record.get("experimentKey") and record.get("experimentId"):
        return _has_won_before(
            evaluation, rule, group, record["experimentId"], record.get("experimentVariationId"), winners
        )
    if not in_segment(evaluation, rule):
        return False
    winner = _run(evaluation, feature, group)
    if winner and winner.campaign.id == rule.campaign.id and (winner.kind is AB or winner.first.id == rule.first.id):
        return True
    winners[group.id] = _claim(winner) if winner else NO_WINNER
    return False


def _has_won(rule: Rule, winner: object) -> bool:
    if rule.kind is AB:
        return winner == rule.campaign.id
    return rule.kind is PERSONALIZE and winner == f"{rule.campaign.id}_{rule.first.id}"


def _has_won_before(
    evaluation: Evaluation, rule: Rule, group: Group, experiment_id: Any, variation_id: Any, winners: Winners
) -> bool:
    """Decide by the stored winner of the group, and keep it for the following rules of this stage."""
    if evaluation.trace is not None:
        evaluation.trace.add("stored", key=group.storage_key, result=f"campaign {experiment_id}")
    if experiment_id == rule.campaign.id and (rule.kind is not PERSONALIZE or variation_id == rule.first.id):
        return True
    is_whole = experiment_id != rule.campaign.id and variation_id == _WHOLE_CAMPAIGN
    winners[group.id] = experiment_id if is_whole else f"{experiment_id}_{variation_id}"
    return False


def _claim(winner: Rule) -> Any:
    return winner.campaign.id if winner.kind is AB else f"{winner.campaign.id}_{winner.first.id}"


# --- Choosing the winner ---


def _run(evaluation: Evaluation, feature: Feature, group: Group) -> Rule | None:
    """Return the rule that wins the group for this user, None also if it is a campaign of another feature."""
    if group.run_problem:
        raise Abort(group.run_problem)
    if group.id in evaluation.running_groups:
        # A rollout in a group: whether it passes depends on the group, and the group on the rollout.
        raise Abort(f"group {group.id} depends on itself: it has a rollout campaign")
    trace = evaluation.trace
    step = trace.open("group", group=group.id) if trace is not None else {}
    evaluation.running_groups += (group.id,)
    winner = None
    try:
        winner = _winner(evaluation, group, _eligible(evaluation, feature, group, step), step)
    finally:
        evaluation.running_groups = evaluation.running_groups[:-1]
        if trace is not None:
            trace.close(winner=winner and winner.campaign.id)
    return winner if winner and winner.campaign.id in feature.campaign_ids else None


def _eligible(evaluation: Evaluation, feature: Feature, group: Group, step: dict[str, Any]) -> list[Rule]:
    """Return the candidates that this user could see; only those of earlier decisions if there are any."""
    seen = [
        member for member in evaluation.settings.group_features[group.id] if _is_reachable(evaluation, feature, member)
    ]
    eligible = []
    from_storage: dict[Any, Rule] = {}
    for member in seen:
        for rule in member.candidates:
            if _is_stored(evaluation, member, rule):
                from_storage.setdefault(rule.experiment_key, rule)
            elif in_segment(evaluation, rule) and in_traffic(evaluation, rule):
                eligible.append(rule)
    chosen = list(from_storage.values()) or eligible
    step["eligible"] = [rule.members.listed for rule in chosen]
    return chosen


def _is_reachable(evaluation: Evaluation, feature: Feature, member: GroupFeature) -> bool:
    """Return whether the user is out of the feature's holdouts and in one of its rollouts."""
    record = read_record(evaluation, member.key)
    if record and (record.get("isInHoldoutId") or record.get("holdoutGroupId")):
        return False
    is_in, not_in = known_holdouts(record)
    matched = evaluate_holdouts(evaluation, None, member.holdouts, is_in + not_in).matched
    if matched:
        write_record(evaluation, member.key, is_in=list(matched))
        return False
    if not member.rollouts or member.key in evaluation.rollouts_passed:
        return True
    for rule in member.rollouts:
        if passes(evaluation, feature, rule, {}) and in_traffic(evaluation, rule):
            evaluation.rollouts_passed += (member.key,)
            return True
    return False


def _is_stored(evaluation: Evaluation, member: GroupFeature, rule: Rule) -> bool:
    record = read_record(evaluation, member.key)
    if not record or not record.get("experimentVariationId") or record.get("experimentKey") != rule.experiment_key:
        return False
    return evaluation.settings.find_variation(rule.experiment_key, record["experimentVariationId"]) is not None


def _winner(evaluation: Evaluation, group: Group, eligible: list[Rule], step: dict[str, Any]) -> Rule | None:
    """Return the winner among the eligible, and store it if there was a choice."""
    if len(eligible) < 2:
        step["algorithm"] = "single" if eligible else "none"
        return eligible[0] if eligible else None
    winner = None if group.is_random else _first_by_priority(group, eligible)
    step["algorithm"] = "random" if group.is_random else "priority" if winner else "weights"
    if winner is None:
        bucket = bucket_of(group.prefix + evaluation.bucketing_id, VARIATION_BUCKETS)
        step["bucket"] = bucket
        winner = _at_bucket(bucket, *(_even_weights(eligible) if group.is_random else _own_weights(group, eligible)))
    if winner is not None:
        variation_id = winner.first.id if winner.kind is PERSONALIZE else _WHOLE_CAMPAIGN
        passed = RuleMatch(winner.campaign.id, _group_experiment_key(winner), variation_id)
        write_record(evaluation, group.storage_key, experiment=passed)
    return winner


def _first_by_priority(group: Group, eligible: list[Rule]) -> Rule | None:
    for name in group.priority:
        for rule in eligible:
            if name in (str(rule.campaign.id), rule.members.personal):
                return rule
    return None


def _even_weights(eligible: list[Rule]) -> tuple[list[Rule], list[float]]:
    weight = round(100 / len(eligible) * 10_000) / 10_000
    return eligible, [weight] * len(eligible)


def _own_weights(group: Group, eligible: list[Rule]) -> tuple[list[Rule], list[float]]:
    weights = [group.weights.get(str(rule.campaign.id), group.weights.get(rule.members.personal)) for rule in eligible]
    taking_part = [(rule, weight) for rule, weight in zip(eligible, weights, strict=True) if weight is not None]
    return [rule for rule, _ in taking_part], [weight for _, weight in taking_part]


def _at_bucket(bucket: int, rules: list[Rule], weights: list[float]) -> Rule | None:
    for rule, (start, end) in zip(rules, ranges_of(weights), strict=True):
        if start <= bucket <= end:
            return rule
    return None


def _group_experiment_key(winner: Rule) -> str:
    """Return the key for the group's record, which has no feature: the campaign key up to its last "_" replaces it."""
    if winner.kind is not PERSONALIZE:
        return winner.campaign.key
    return f"{winner.campaign.key.rsplit('_', 1)[0]}_{winner.rule_key}"


# --- The groups of a document ---


def compiled_group(group_id: str, document: Mapping[str, Any] | None) -> Group:
    group = Group(group_id, MEG_KEY_PREFIX + group_id, f"{group_id}_".encode())
    if document is None or "name" not in document:
        group.problem = f"group {group_id} does not exist or has no name"
        return group
    group.is_random = document.get("et", 1) == 1
    group.priority = tuple(document.get("p") or ())
    group.weights = document.get("wt") or {}
    return group


def features_of_groups(
    groups: Iterable[Group],
    document: Mapping[str, Any],
    drafts: Sequence[FeatureDraft],
    linked: Sequence[tuple[Rule, ...]],
    applicable: Sequence[tuple[Holdout, ...]],
    yield_point: YieldPoint,
) -> dict[str, tuple[GroupFeature, ...]]:
    """Return the features of each group by its id. Each feature has its linked rules and applicable holdouts."""
    usable = [group for group in groups if not group.problem]
    if not usable:
        return {}
    found: dict[str, tuple[GroupFeature, ...]] = {}
    by_campaign, by_key = _indexes(drafts, yield_point)
    for group in usable:
        members = document["groups"][group.id].get("campaigns") or []
        try:
            indexes = _features_of(members, drafts, by_campaign)
        except ValueError:
            group.run_problem = f"group {group.id} lists a campaign that is not a number: {members}"
            continue
        found[group.id] = tuple(
            _group_feature(key, by_key[key], frozenset(members), linked, applicable)
            for key in dict.fromkeys(drafts[index].key for index in indexes)
        )
    return found


def _indexes(
    drafts: Sequence[FeatureDraft], yield_point: YieldPoint
) -> tuple[dict[Any, list[int]], dict[str, list[int]]]:
    """Return the positions of the features by the ids of their campaigns, and by their keys."""
    by_campaign: dict[Any, list[int]] = {}
    by_key: dict[str, list[int]] = {}
    for index, draft in enumerate(drafts):
        yield_point()
        by_key.setdefault(draft.key, []).append(index)
        for rule in draft.rules:
            by_campaign.setdefault(rule.campaign_id, []).append(index)
    return by_campaign, by_key


def _features_of(
    members: Sequence[str], drafts: Sequence[FeatureDraft], by_campaign: Mapping[Any, list[int]]
) -> list[int]:
    """Return the features that have a rule for a member, in order of the members, then of the document."""
    found: dict[int, None] = {}
    for member in members:
        campaign, _, variation = member.partition("_")
        campaign_id, variation_id = int(campaign), int(variation) if variation else None
        for index in by_campaign.get(campaign_id, ()):
            for rule in drafts[index].rules:
                if rule.campaign_id == campaign_id and variation_id in (None, rule.variation_id):
                    found.setdefault(index)
    return list(found)


def _group_feature(
    key: str,
    indexes: list[int],
    members: frozenset[str],
    linked: Sequence[tuple[Rule, ...]],
    applicable: Sequence[tuple[Holdout, ...]],
) -> GroupFeature:
    """If a key is repeated, the first feature wins, but the rules of all can be candidates."""
    rollouts = tuple(rule for rule in linked[indexes[0]] if rule.kind is ROLLOUT)
    candidates = _candidates([rule for index in indexes for rule in linked[index]], members)
    return GroupFeature(key, applicable[indexes[0]], rollouts, candidates)


def _candidates(rules: Iterable[Rule], members: frozenset[str]) -> tuple[Rule, ...]:
    found: dict[str, Rule] = {}
    for rule in rules:
        if str(rule.campaign.id) in members or rule.members.personal in members:
            found.setdefault(rule.rule_key, rule)
    return tuple(found.values())
