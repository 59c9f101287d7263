"""Simulated visitors: how features are distributed over them, and which of them other settings would move.

The decisions are those of getFlag, without events and without storing them. Used by the command `simulate` and the
console.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tornado_gateway import core
from tornado_gateway.core.types import AB, PERSONALIZE, ROLLOUT, Rule, Variation

BAND = "95 % Wilson score interval"
MOST_MOVED_IDS = 20  # visitors named for each feature
_QUANTILE = 1.959964  # of the normal distribution, for 95 %

Json = dict[str, Any]
Decide = Callable[[core.Settings, str], core.Decision]  # for one visitor: settings, feature key
Seen = tuple[Any, Any] | None  # ids of campaign and variation, None for a disabled feature
Outcome = tuple[str, Seen]  # with the reason of the decision
Places = Mapping[Seen, "Place"]

_KINDS = {ROLLOUT: "rollout", AB: "experiment", PERSONALIZE: "personalization"}
_WAYS_OFF = {"no rule matched": "not in segment", "out of traffic": "traffic excluded", "lost group": "group lost"}


class Place(NamedTuple):
    """The rule and the variation of a row."""

    rule: Rule
    variation: Variation


def generated_ids(number: int) -> Iterator[str]:
    """Return ids that are the same at each call, so that two simulations can be compared."""
    return (f"visitor-{index}" for index in range(1, number + 1))


def interval(hits: int, of: int) -> tuple[float, float]:
    """Return the bounds of the 95 % Wilson score interval of a share, in percent."""
    if not of:
        return 0.0, 100.0
    share, spread = hits / of, _QUANTILE**2 / of
    centre = (share + spread / 2) / (1 + spread)
    half = _QUANTILE * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, centre - half) * 100, min(1.0, centre + half) * 100


class Simulation:
    """Counts the decisions about any number of visitors, with settings and, if there are some, with changed settings.

    Call `add` or `steps` for each visitor. `report` can be called at any time.
    """

    def __init__(self, settings: core.Settings, keys: Sequence[str], changed: core.Settings | None = None) -> None:
        self.settings = settings
        self.changed = changed
        self.keys = tuple(keys)
        self.visitors = 0
        self._tallies = [Tally(settings, changed, key) for key in keys]

    def add(self, user_id: str, decide: Decide) -> None:
        for _ in self.steps(user_id, decide):
            pass

    def steps(self, user_id: str, decide: Decide) -> Iterator[None]:
        """Add a visitor, one feature in each step, so that a caller can give way to other work."""
        self.visitors += 1
        for tally in self._tallies:
            tally.add(user_id, decide)
            yield

    def report(self) -> Json:
        return {**self.head(), "features": list(self.features())}

    def head(self) -> Json:
        """Return the report without the features."""
        return {"visitors": self.visitors, "band": BAND, "settings": {"version": self.settings.version}}

    def features(self) -> Iterator[Json]:
        """Return the reports of the features, which a caller with other work makes one by one."""
        return (tally.report() for tally in self._tallies)


class Tally:
    """The counts of one feature."""

    def __init__(self, settings: core.Settings, changed: core.Settings | None, key: str) -> None:
        self._settings = settings
        self._changed = changed
        self._key = key
        self._now: Counter[Outcome] = Counter()
        self._then: Counter[Outcome] = Counter()
        self._moves: Counter[tuple[Seen, Seen]] = Counter()
        self._moved: list[tuple[str, Seen, Seen]] = []

    def add(self, user_id: str, decide: Decide) -> None:
        decision = decide(self._settings, self._key)
        now = _seen(decision)
        self._now[decision.reason, now] += 1
        if self._changed is not None:
            decision = decide(self._changed, self._key)
            then = _seen(decision)
            self._then[decision.reason, then] += 1
            self._compare(user_id, now, then)

    def _compare(self, user_id: str, now: Seen, then: Seen) -> None:
        if now == then:
            return
        self._moves[now, then] += 1
        if len(self._moved) < MOST_MOVED_IDS:
            self._moved.append((user_id, now, then))

    def report(self) -> Json:
        feature = self._settings.features.get(self._key)
        described: Json = {"feature": self._key, "name": feature.name if feature else None}
        described |= _distribution(feature, self._now)
        if self._changed is not None:
            then = self._changed.features.get(self._key)
            described["what_if"] = {**_distribution(then, self._then), **self._movement(feature, then)}
        return described

    def _movement(self, now: core.Feature | None, then: core.Feature | None) -> Json:
        before, after = _names(now), _names(then)
        moves = [
            {"from": before.get(old), "to": after.get(new), "visitors": count}
            for (old, new), count in self._moves.most_common()
        ]
        moved = [{"user": user, "from": before.get(old), "to": after.get(new)} for user, old, new in self._moved]
        return {"moved": self._moves.total(), "moves": moves, "moved_visitors": moved}


def _seen(decision: core.Decision) -> Seen:
    variation = decision.variation
    return None if variation is None else (variation.impression.campaign_id, variation.id)


def _places(feature: core.Feature | None) -> Places:
    """Return the variations that a feature can have, in the order of its rules."""
    places: dict[Seen, Place] = {}
    for rule in () if feature is None else (*feature.rollouts, *feature.experiments):
        for variation in rule.variations if rule.kind is AB else rule.variations[:1]:
            places.setdefault((rule.campaign.id, variation.id), Place(rule, variation))
    return places


def _names(feature: core.Feature | None) -> dict[Seen, str]:
    names = {seen: f"{place.variation.name} ({place.rule.rule_key})" for seen, place in _places(feature).items()}
    return {None: "off", **names}


def _distribution(feature: core.Feature | None, counts: Mapping[Outcome, int]) -> Json:
    """Return the rows of all variations, those that no visitor sees included, and how visitors were decided."""
    places = _places(feature)
    total = sum(counts.values())
    enabled = sum(count for (_, seen), count in counts.items() if seen is not None)
    low, high = interval(enabled, total)
    return {
        "enabled": enabled,
        "share": _percent(enabled, total),
        "low": low,
        "high": high,
        "variations": [_row(seen, place, counts, total) for seen, place in places.items()],
        "decided": _ways(places, counts),
    }


def _row(seen: Seen, place: Place, counts: Mapping[Outcome, int], total: int) -> Json:
    """Return one variation. The share of a variation of an experiment is that of the visitors bucketed in it.

    Visitors on its whitelist or with a stored decision are not bucketed. Other rules have one variation, so their share
    is that of all visitors.
    """
    rule, variation = place
    hits = visitors = sum(count for (_, other), count in counts.items() if other == seen)
    of = total
    if rule.kind is AB:
        hits, of = counts.get(("experiment", seen), 0), _bucketed(rule, counts)
    low, high = interval(hits, of)
    return {
        "kind": _KINDS[rule.kind],
        "rule": rule.rule_key,
        "campaign": rule.campaign.id,
        "variation": {"id": variation.id, "name": variation.name},
        "traffic": rule.limit,
        "weight": variation.weight if rule.kind is AB else None,
        "visitors": visitors,
        "bucketed": hits,
        "of": of,
        "share": _percent(hits, of),
        "low": low,
        "high": high,
    }


def _bucketed(rule: Rule, counts: Mapping[Outcome, int]) -> int:
    """Return the number of visitors with a variation of an experiment by their bucket."""
    return sum(counts.get(("experiment", (rule.campaign.id, variation.id)), 0) for variation in rule.variations)


def _ways(places: Places, counts: Mapping[Outcome, int]) -> dict[str, int]:
    """Return how visitors were decided, the most frequent way first."""
    ways: Counter[str] = Counter()
    for (reason, seen), count in counts.items():
        is_rule = reason in ("experiment", "rollout") and seen in places
        ways[_KINDS[places[seen].rule.kind] if is_rule else _WAYS_OFF.get(reason, reason)] += count
    return dict(ways.most_common())


def _percent(hits: int, of: int) -> float | None:
    return hits * 100 / of if of else None
