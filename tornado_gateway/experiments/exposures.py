"""Notes which visitors were shown which variation: our own impressions, and those that SDKs report.

On the path of every decision, so it only appends. Visitors are added to the samples in groups.
"""

import re
from typing import Any

from tornado_gateway import core
from tornado_gateway.experiments.campaigns import Experiment, experiments_of
from tornado_gateway.experiments.features import EXPOSURES, FeatureCounts
from tornado_gateway.experiments.sample import DIGITS, VisitorSample

MOST_NOTED = 256  # visitors that are not yet in the sample; adding so many takes 0.1 ms
LONGEST_ID = 64  # characters of a visitor, campaign or variation in an event of an SDK

_VISITOR = re.compile(r"[0-9A-Fa-f]{16,64}")


class Audience:
    """The visitors of one experiment. `sample` is None until there are any."""

    __slots__ = ("codes", "experiment", "sample", "visitors")

    def __init__(self, experiment: Experiment, sample: VisitorSample | None = None) -> None:
        self.experiment = experiment
        self.sample = sample
        self.visitors: list[str] = []
        self.codes = bytearray()

    def note(self, visitor: str, code: int) -> None:
        self.visitors.append(visitor)
        self.codes.append(code)
        if len(self.codes) >= MOST_NOTED:
            self.fold()

    def fold(self) -> None:
        """Add the noted visitors to the sample."""
        if self.codes:
            self.opened().add([visitor[-DIGITS:] for visitor in self.visitors], self.codes)
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
        self._named: dict[tuple[str, str], _Shown] = {}  # by campaign and variation, as texts

    def use(self, settings: core.Settings) -> None:
        """Follow new settings. Experiments that have not changed keep their samples."""
        for audience in self.audiences:
            audience.fold()
        samples = {audience.experiment.sample: audience.sample for audience in self.audiences}
        self.audiences = [Audience(one, samples.get(one.sample)) for one in experiments_of(settings, self._most)]
        codes = {
            variation.tail: (audience, code)
            for audience in self.audiences
            for code, variation in enumerate(audience.experiment.variations, 1)
        }
        self._shown, self._named = {}, {}
        for feature in settings.features.values():
            tally = self._features.tally(feature.key)
            for rule in (*feature.rollouts, *feature.experiments):
                for variation in rule.variations:
                    impression = variation.impression
                    shown = _Shown(tally, *codes.get(impression.tail, (None, 0)))
                    self._shown.setdefault(impression.tail, shown)
                    self._named.setdefault((str(impression.campaign_id), str(impression.variation_id)), shown)

    def shown(self, decision: core.Decision) -> None:
        """Note the impressions of a decision. Whitelisted visitors are counted, but they are in no sample."""
        visitor = decision.uuid
        is_drawn = visitor is not None and decision.reason != "whitelisted"
        for impression in decision.impressions:
            shown = self._shown.get(impression.tail)
            if shown is None:
                continue
            shown.tally[EXPOSURES] += 1
            audience = shown.audience
            if audience is not None and is_drawn and visitor is not None:
                audience.note(visitor, shown.code)

    def shown_by_sdk(self, data: dict[str, Any]) -> None:
        """Note the impression of an event `vwo_variationShown`, if the settings have its variation."""
        props = data["event"].get("props")
        if not isinstance(props, dict):
            return
        campaign, variation = _text(props.get("id")), _text(props.get("variation"))
        shown = self._named.get((campaign, variation))
        if shown is None:
            return
        shown.tally[EXPOSURES] += 1
        visitor = _text(data.get("visId")).replace("-", "")
        if shown.audience is not None and _VISITOR.fullmatch(visitor[-DIGITS:]):
            shown.audience.note(visitor, shown.code)


def _text(value: object) -> str:
    """Return an id as text, empty for anything that is none."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_ID else ""
    return str(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else ""
