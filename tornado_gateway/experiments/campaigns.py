"""The experiments of a settings document: campaigns with variations that visitors get in configured shares."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from tornado_gateway import core
from tornado_gateway.core.bucketing import VARIATION_BUCKETS
from tornado_gateway.core.types import AB, Feature, Id, Rule, Variation
from tornado_gateway.experiments.sample import MOST_CODES

MOST_EXPERIMENTS = 256  # of an environment: their samples take 16 MB in each worker


class ExperimentVariation(NamedTuple):
    """A variation. `share` is its part of the visitors, 0 if none is assigned to it. `tail` ends its impressions."""

    id: Id
    name: str
    share: float
    tail: str


class Experiment(NamedTuple):
    """An experiment. `sample` names its record in the store: other weights or traffic are another sample."""

    campaign_id: Id
    key: str
    name: str
    feature_key: str
    traffic: int | float | None
    variations: tuple[ExperimentVariation, ...]
    sample: str


def experiments_of(settings: core.Settings, most: int) -> list[Experiment]:
    """Return the experiments in the order of the features, each campaign once, at most so many."""
    found: dict[Id, Experiment] = {}
    for feature, rule in _rules(settings):
        if len(found) >= most:
            break
        found.setdefault(rule.campaign.id, _experiment(feature, rule))
    return list(found.values())


def _rules(settings: core.Settings) -> Iterator[tuple[Feature, Rule]]:
    for feature in settings.features.values():
        for rule in feature.experiments:
            weighted = [variation for variation in rule.variations if _width(variation)]
            if rule.kind == AB and len(weighted) > 1 and len(rule.variations) <= MOST_CODES:
                yield feature, rule


def _experiment(feature: Feature, rule: Rule) -> Experiment:
    total = sum([_width(variation) for variation in rule.variations])
    variations = tuple(
        ExperimentVariation(variation.id, variation.name, _width(variation) / total, variation.impression.tail)
        for variation in rule.variations
    )
    drawn = core.to_json([rule.campaign.id, rule.limit, [[one.id, one.share] for one in variations]])
    sample = f"sample:{hashlib.blake2b(drawn.encode(), digest_size=12).hexdigest()}"
    return Experiment(
        rule.campaign.id, rule.campaign.key, rule.campaign.name, feature.key, rule.limit, variations, sample
    )


def _width(variation: Variation) -> int:
    """Return the number of buckets of a variation: it gets so many of 10,000 visitors."""
    return max(0, min(variation.end, VARIATION_BUCKETS) - variation.start + 1) if variation.start > 0 else 0
