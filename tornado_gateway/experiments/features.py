"""Counts of each feature: decisions by outcome, exposures, the last evaluation; and requested keys without a feature.

Workers count for themselves, and add their counts to a record in the store.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from tornado_gateway import core
from tornado_gateway.tasks import Steps

# In a tally, the exposures are behind the decisions with each outcome but the last one, which no feature has.
NOT_FOUND: Final = len(core.OUTCOMES) - 1
EXPOSURES: Final = NOT_FOUND
MOST_FEATURES = 2_000
STEP_FEATURES: Final = 50  # half a millisecond: merged, or added to the tables of exposures
MOST_UNKNOWN = 100
LONGEST_KEY = 100  # characters of an unknown key
STALE_SECONDS = 30 * 86_400.0
FORGET_SECONDS = 86_400.0  # after its last evaluation, for a feature that is no longer in the settings

Tally = list[int]
Json = dict[str, Any]


class FeatureNews(NamedTuple):
    """The counts since the last merge."""

    tallies: dict[str, Tally]
    unknown: dict[str, int]


class FeatureCounts:
    """The counts of one worker that are not yet in the record.

    `decisions` has the numbers of all decisions since the start, by outcome.
    """

    def __init__(self) -> None:
        self.decisions = [0] * len(core.OUTCOMES)
        self._tallies: dict[str, Tally] = {}
        self._unknown: dict[str, int] = {}

    def use(self, settings: core.Settings) -> None:
        """Count the features of these settings."""
        for key in list(settings.features)[:MOST_FEATURES]:
            self._tallies.setdefault(key, [0] * (EXPOSURES + 1))
        for key in [key for key, tally in self._tallies.items() if key not in settings.features and not any(tally)]:
            del self._tallies[key]

    def tally(self, key: str) -> Tally:
        """Return the counts of a feature; those of one too many are not kept."""
        return self._tallies.get(key) or [0] * (EXPOSURES + 1)

    def decided(self, decision: core.Decision) -> None:
        """Count a decision."""
        outcome = decision.outcome
        self.decisions[outcome] += 1
        tally = self._tallies.get(decision.feature_key)
        if outcome == NOT_FOUND:
            self._count_unknown(decision.feature_key[:LONGEST_KEY])
        elif tally is not None:
            tally[outcome] += 1

    def _count_unknown(self, key: str) -> None:
        """Count a key that no feature has. The keys that were requested last remain."""
        unknown = self._unknown
        unknown[key] = unknown.pop(key, 0) + 1
        if len(unknown) > MOST_UNKNOWN:
            del unknown[next(iter(unknown))]

    def take(self) -> FeatureNews | None:
        """Return the counts since the last call, None if there are none."""
        tallies = {key: list(tally) for key, tally in self._tallies.items() if any(tally)}
        unknown, self._unknown = self._unknown, {}
        for key in tallies:
            self._tallies[key][:] = [0] * (EXPOSURES + 1)
        return FeatureNews(tallies, unknown) if tallies or unknown else None

    def put_back(self, news: FeatureNews) -> None:
        """Keep counts that could not be merged for the next time."""
        for key, counts in news.tallies.items():
            tally = self._tallies.setdefault(key, [0] * (EXPOSURES + 1))
            tally[:] = map(sum, zip(tally, counts, strict=True))
        merged = {
            key: news.unknown.get(key, 0) + self._unknown.get(key, 0) for key in {**news.unknown, **self._unknown}
        }
        self._unknown = dict(list(merged.items())[-MOST_UNKNOWN:])


# --- The record of all workers ---


def merge(record: Json, news: FeatureNews, known: Iterable[str], now: float) -> Steps[Json]:
    """Return the record with further counts. `known` are the features of the settings; others are forgotten.

    It is made in steps of half a millisecond, because requests wait for each.
    """
    features = dict(record.get("features") or {})
    minute = int(now // 60)
    for number, (key, tally) in enumerate(news.tallies.items(), 1):
        features[key] = _added(features.get(key) or {}, tally, minute, now)
        if number % STEP_FEATURES == 0:
            yield
    kept = set(known)
    yield
    features = {
        key: feature for key, feature in features.items() if key in kept or now - feature["last"] < FORGET_SECONDS
    }
    unknown = dict(record.get("unknown") or {})
    for key, count in news.unknown.items():
        before = unknown.pop(key, {"count": 0})
        unknown[key] = {"count": before["count"] + count, "last": now}
    newest = sorted(unknown.items(), key=lambda item: item[1]["last"])[-MOST_UNKNOWN:]
    return {"since": record.get("since", now), "features": features, "unknown": dict(newest)}


def _added(feature: Json, tally: Tally, minute: int, now: float) -> Json:
    counts = [before + new for before, new in zip(feature.get("counts") or [0] * len(tally), tally, strict=True)]
    recent = {at: count for at, count in (feature.get("recent") or {}).items() if int(at) >= minute - 1}
    recent[str(minute)] = recent.get(str(minute), 0) + tally[EXPOSURES]
    return {"counts": counts, "last": now, "recent": recent}


def usage_of(record: Mapping[str, Any], key: str, now: float) -> Json:
    """Return the use of a feature: decisions by outcome, exposures in the last full minute, the last evaluation."""
    feature = (record.get("features") or {}).get(key) or {}
    counts = feature.get("counts") or [0] * (EXPOSURES + 1)
    last, since = feature.get("last"), record.get("since", now)
    return {
        "decisions": dict(zip(core.OUTCOMES[:NOT_FOUND], counts, strict=False)),
        "exposures": counts[EXPOSURES],
        "exposures_per_minute": (feature.get("recent") or {}).get(str(int(now // 60) - 1), 0),
        "last_evaluated_at": last,
        "is_unused": now - (since if last is None else last) > STALE_SECONDS,
    }


def unknown_keys(record: Mapping[str, Any]) -> list[Json]:
    """Return the requested keys that no feature has, the newest first."""
    found = (record.get("unknown") or {}).items()
    return [{"key": key, "requests": one["count"], "last_requested_at": one["last"]} for key, one in reversed(found)]
