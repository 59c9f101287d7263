"""The outcome of a decision in the terms of OpenFeature: reason, variant and metadata (docs/openfeature.md)."""

from typing import Any, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.core.types import AB, Feature, Rule, RuleMatch

STATIC, TARGETING_MATCH, SPLIT, DEFAULT = "STATIC", "TARGETING_MATCH", "SPLIT", "DEFAULT"
NOT_FOUND, ERROR = "NOT_FOUND", "ERROR"  # in details of getFlag and getFlags only
OFF = "off"  # the variant of a feature that is not enabled
ALL_TRAFFIC = 100
LARGEST_INTEGER = 2**31 - 1  # some clients reject a larger one in metadata

_REASONS_WHEN_OFF = {
    "no rule matched": DEFAULT,
    "out of traffic": SPLIT,
    "lost group": SPLIT,
    "holdout": SPLIT,
    "feature not found": NOT_FOUND,
    "error": ERROR,
}


class Outcome(NamedTuple):
    """Why a visitor sees a variation. The ids are None if no rule was passed.

    `exposure` is the JSON of the impressions: a list of [campaign id, variation id], or [holdout id, 1 or 2, feature
    id]; None if there are none.
    """

    reason: str
    variant: str
    campaign_id: Any = None
    variation_id: Any = None
    rule_key: str | None = None
    exposure: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the facts beyond reason and variant: texts and 32-bit integers, without those that are None."""
        known = {
            "campaignId": _id(self.campaign_id),
            "variationId": _id(self.variation_id),
            "ruleKey": self.rule_key,
            "exposure": self.exposure,
        }
        return {name: value for name, value in known.items() if value is not None}

    def details(self, decision: core.Decision) -> dict[str, Any]:
        """Return the `details` of getFlag and getFlags."""
        variant = {"variation": self.variant} if decision.enabled else {}
        error = {"error": decision.error} if decision.error is not None else {}
        return {"reason": self.reason, **variant, **self.metadata(), **error}


def outcome_of(settings: core.Settings, decision: core.Decision) -> Outcome:
    feature = settings.features.get(decision.feature_key)
    variation = decision.variation
    exposure = _exposure(decision)
    if variation is None or feature is None:
        return Outcome(_REASONS_WHEN_OFF.get(decision.reason, DEFAULT), OFF, exposure=exposure)
    passed = decision.experiment or decision.rollout
    name = variation.name if isinstance(variation.name, str) and variation.name.strip() else str(variation.id)
    reason = _reason_when_on(feature, decision)
    if passed is None:
        return Outcome(reason, name, exposure=exposure)
    rule = _rule_of(feature, passed)
    rule_key = None if rule is None else rule.rule_key
    return Outcome(reason, name, passed.id, passed.variation_id, rule_key, exposure)


def with_details(settings: core.Settings, decision: core.Decision) -> bytes:
    """Return the body of getFlag, with `details`."""
    details = outcome_of(settings, decision).details(decision)
    return b'%b,"details":%b}' % (decision.body[:-1], encoded(details))


def encoded(value: object) -> bytes:
    """Return JSON; also for values of settings that orjson rejects: huge integers, lone surrogates."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return core.to_json(value).encode()


def _reason_when_on(feature: Feature, decision: core.Decision) -> str:
    """Return SPLIT if chance has decided for one of the passed rules, as it has for a stored decision."""
    matches = [match for match in (decision.rollout, decision.experiment) if match is not None]
    if decision.reason == "whitelisted":
        matches.remove(matches[-1])  # the list has decided, not the rule
    if decision.reason == "stored" or any(_is_split(_rule_of(feature, match)) for match in matches):
        return SPLIT
    return STATIC if is_static(feature) else TARGETING_MATCH


def is_static(feature: Feature) -> bool:
    """Return whether every visitor sees the same."""
    rules = (*feature.rollouts, *feature.experiments)
    return not feature.holdouts and not any(
        rule.segment is not None or rule.is_forced or _is_split(rule) for rule in rules
    )


def _is_split(rule: Rule | None) -> bool:
    if rule is None or rule.group is not None or rule.limit is None or rule.limit < ALL_TRAFFIC:
        return True
    return rule.kind is AB and sum(variation.start > 0 for variation in rule.variations) > 1


def _rule_of(feature: Feature, passed: RuleMatch) -> Rule | None:
    """Return the rule that was passed: the one that made the match, or the campaign's, for a stored decision."""
    rules = [*feature.rollouts, *feature.experiments]
    for rule in rules:
        if rule.match is passed or any(variation.match is passed for variation in rule.variations):
            return rule
    return next((rule for rule in rules if rule.campaign.id == passed.id), None)


def _exposure(decision: core.Decision) -> str | None:
    if not decision.impressions:
        return None
    return encoded([exposure_of(impression) for impression in decision.impressions]).decode()


def exposure_of(impression: core.Impression) -> list[Any]:
    """Return an impression as it is named in `exposure`."""
    named = [impression.campaign_id, impression.variation_id]
    return named if impression.feature_id is None else [*named, impression.feature_id]


def _id(value: Any) -> Any:
    is_small = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER
    return value if is_small or value is None else str(value)
