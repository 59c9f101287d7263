"""Other traffic or weights: a changed copy of a settings document, for simulations."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tornado_gateway import core
from tornado_gateway.core.types import AB, Rule
from tornado_gateway.core.validation import each_of, items_of
from tornado_gateway.errors import GatewayError
from tornado_gateway.insight.suggestions import suggested

Document = dict[str, Any]
Change = Callable[[Document], Document]  # of a campaign of the document

ALL = 100  # percent
SHOWN = 200  # characters of a name in a message
ROUNDING = 0.01  # by which the weights of thirds miss 100


class ChangeError(GatewayError):
    """Changes that cannot be made. `problems` has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def changed_settings(
    settings: core.Settings,
    keys: Sequence[str],
    traffic: Mapping[str, float],
    weights: Mapping[str, Sequence[float]],
    yield_point: core.YieldPoint = core.never_yield,
) -> core.Settings:
    """Return the settings with other traffic and weights, by rule. Raise ChangeError for invalid changes.

    A rule of one of the features is named by its rule key, its campaign's key or its campaign's ID.
    """
    changes: dict[Any, list[Change]] = {}
    problems: list[str] = []
    rules = [rule for key in keys for rule in _rules(settings.features[key])]
    for name, share in traffic.items():
        _note(rules, name, _with_traffic(share), changes, problems)
    for name, shares in weights.items():
        _note(rules, name, _with_weights(shares), changes, problems)
    if problems:
        raise ChangeError(problems)
    document = settings.document
    campaigns = [_applied(campaign, changes.get(campaign["id"], ())) for campaign in each_of(document["campaigns"])]
    return core.compile_settings({**document, "campaigns": campaigns}, sdk=settings.sdk, yield_point=yield_point)


def _rules(feature: core.Feature) -> tuple[Rule, ...]:
    return (*feature.rollouts, *feature.experiments)


def _note(
    rules: Sequence[Rule],
    name: str,
    change_of: Callable[[Rule], Change],
    changes: dict[Any, list[Change]],
    problems: list[str],
) -> None:
    try:
        rule = _found(rules, name)
        changes.setdefault(rule.campaign.id, []).append(change_of(rule))
    except ValueError as error:
        problems.append(str(error))


def _found(rules: Sequence[Rule], name: str) -> Rule:
    found = [rule for rule in rules if name in (rule.rule_key, rule.campaign.key, str(rule.campaign.id))]
    if not found:
        names = [text for rule in rules for text in (rule.rule_key, rule.campaign.key)]
        raise ValueError(f"unknown rule {name[:SHOWN]}{suggested(name, names)}")
    if len({rule.campaign.id for rule in found}) > 1:
        keys = ", ".join(rule.campaign.key for rule in found[:5])
        raise ValueError(f"several rules are named {name[:SHOWN]}: use the key of the campaign ({keys}, ...)")
    return found[0]


def _with_traffic(share: float) -> Callable[[Rule], Change]:
    def change_of(rule: Rule) -> Change:
        if not 0 <= share <= ALL:
            raise ValueError(f"traffic of {rule.rule_key}: expected 0 to 100 percent, got {share:g}")
        if rule.kind is AB:
            return lambda campaign: {**campaign, "percentTraffic": share}
        return lambda campaign: {**campaign, "variations": _reweighted(campaign, {rule.first.id: share})}

    return change_of


def _with_weights(shares: Sequence[float]) -> Callable[[Rule], Change]:
    def change_of(rule: Rule) -> Change:
        if rule.kind is not AB:
            raise ValueError(f"weights of {rule.rule_key}: only experiments have weights; change its traffic instead")
        if len(shares) != len(rule.variations):
            names = "/".join(variation.name for variation in rule.variations)
            raise ValueError(f"weights of {rule.rule_key}: expected {len(rule.variations)} of them, for {names}")
        if min(shares) < 0 or not math.isclose(sum(shares), ALL, abs_tol=ROUNDING):
            raise ValueError(f"weights of {rule.rule_key}: expected a sum of 100 percent, got {sum(shares):g}")
        weights = {variation.id: share for variation, share in zip(rule.variations, shares, strict=True)}
        return lambda campaign: {**campaign, "variations": _reweighted(campaign, weights)}

    return change_of


def _reweighted(campaign: Document, weights: Mapping[Any, float]) -> list[Document]:
    return [{**item, "weight": weights.get(item["id"], item["weight"])} for item in items_of(campaign["variations"])]


def _applied(campaign: Document, changes: Sequence[Change]) -> Document:
    for change in changes:
        campaign = change(campaign)
    return campaign
