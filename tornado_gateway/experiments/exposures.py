"""Notes which visitors were shown which variation: our own impressions, and those that SDKs report.

On the path of every decision, so it only appends. Visitors are added to the samples in groups.
"""

import re
from collections.abc import Iterator
from typing import Any

from tornado_gateway import core
from tornado_gateway.core.types import Feature
from tornado_gateway.experiments.campaigns import Experiment, experiments_of
from tornado_gateway.experiments.features import EXPOSURES, FeatureCounts
from tornado_gateway.experiments.sample import DIGITS, VisitorSample

MOST_NOTED = 256  # visitors that are not yet in the sample; adding so many takes 0.1 ms
STEP_FEATURES = 50  # added to the tables in half a millisecond
LONGEST_ID = 64  # characters of a visitor in an event of an SDK

_DIGITS = re.compile(r"[0-9A-Fa-f]{16}")


class Audience:
    """The visitors of one experiment. `sample` is None until there are any."""

    __slots__ = ("codes", "experiment", "sample", "visitors")

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.sample: VisitorSample | None = None
        self.visitors: list[str] = []  # noted, but not yet in the sample
        self.codes: list[int] = []

    def note(self, visitor: str, code: int) -> None:
        self.visitors.append(visitor)
        self.codes.append(code)
        if len(self.codes) >= MOST_NOTED:
            self.fold()

    def fold(self) -> None:
        """Add the noted visitors to the sample."""
        if not self.codes:
            return
        digits = [visitor[-DIGITS:] for visitor in self.visitors]
        sample = self.opened()
        try:
            sample.add(digits, self.codes)
        except ValueError:  # an SDK has sent something else
            valid = [place for place, text in enumerate(digits) if _DIGITS.fullmatch(text)]
            sample.add([digits[place] for place in valid], [self.codes[place] for place in valid])
        self.visitors.clear()
        self.codes.clear()

    def opened(self) -> VisitorSample:
        """Return the sample, a new one if there is none."""
        if self.sample is None:
            self.sample = VisitorSample()
        return self.sample


class _Shown:
    """A variation: the counts of its feature, and the experiment that it belongs to, if any."""

    __slots__ = ("audience", "code", "tally")

    def __init__(self, tally: list[int], audience: Audience | None, code: int) -> None:
        self.tally = tally
        self.audience = audience
        self.code = code


class Exposures:
    """The audiences of the experiments in the current settings, at most so many."""

    def __init__(self, features: FeatureCounts, most: int) -> None:
        self.audiences: list[Audience] = []
        self._features = features
        self._most = most
        self._shown: dict[str, _Shown] = {}  # by the tail of the impression
        self._named: dict[tuple[str, str], _Shown] = {}  # by the ids of campaign and variation, as texts

    def follow(self, settings: core.Settings) -> Iterator[None]:
        """Follow new settings, in steps. Experiments that have not changed keep their samples.

        Until the last step, impressions are noted as before: those of variations that have not changed are the same.
        """
        kept = {audience.experiment.sample: audience for audience in self.audiences}
        audiences = []
        for experiment in experiments_of(settings, self._most):
            audience = kept.get(experiment.sample) or Audience(experiment)
            audience.experiment = experiment  # its names may have changed
            audiences.append(audience)
        codes = {
            variation.tail: (audience, code)
            for audience in audiences
            for code, variation in enumerate(audience.experiment.variations, 1)
        }
        by_tail: dict[str, _Shown] = {}
        named: dict[tuple[str, str], _Shown] = {}
        for number, feature in enumerate(settings.features.values(), 1):
            self._add_feature(feature, codes, by_tail, named)
            if number % STEP_FEATURES == 0:
                yield
        self.audiences, self._shown, self._named = audiences, by_tail, named

    def _add_feature(
        self,
        feature: Feature,
        codes: dict[str, tuple[Audience, int]],
        by_tail: dict[str, _Shown],
        named: dict[tuple[str, str], _Shown],
    ) -> None:
        tally = self._features.tally(feature.key)
        for rule in (*feature.rollouts, *feature.experiments):
            for variation in rule.variations:
                impression = variation.impression
                audience, code = codes.get(impression.tail, (None, 0))
                shown = _Shown(tally, audience, code)
                by_tail.setdefault(impression.tail, shown)
                named.setdefault((str(impression.campaign_id), str(impression.variation_id)), shown)

    def shown(self, decision: core.Decision) -> None:
        """Note the impressions of a decision. Whitelisted visitors are counted, but they are in no sample."""
        visitor = None if decision.reason == "whitelisted" else decision.uuid
        for impression in decision.impressions:
            shown = self._shown.get(impression.tail)
            if shown is None:
                continue
            shown.tally[EXPOSURES] += 1
            audience = shown.audience
            if audience is not None and visitor is not None:
                audience.note(visitor, shown.code)

    def shown_by_sdk(self, data: dict[str, Any]) -> None:
        """Note the impression of an event `vwo_variationShown`, if the settings have its variation."""
        props, visitor = data["event"].get("props"), data.get("visId")
        if not isinstance(props, dict):
            return
        shown = self._named.get((_text(props.get("id")), _text(props.get("variation"))))
        if shown is None:
            return
        shown.tally[EXPOSURES] += 1
        if shown.audience is not None and isinstance(visitor, str) and DIGITS <= len(visitor) <= LONGEST_ID:
            shown.audience.note(visitor.replace("-", ""), shown.code)


def _text(value: object) -> str:
    """Return an id as text, empty for anything that is none: SDKs send numbers or texts."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else ""
