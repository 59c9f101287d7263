"""Notes which visitors were shown which variation: our own impressions, and those that SDKs report.

On the path of every decision, so it only appends. Visitors are added to the samples in groups.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from tornado_gateway import core
from tornado_gateway.core.event_templates import shown_tail
from tornado_gateway.core.types import Feature
from tornado_gateway.core.validation import emptied
from tornado_gateway.experiments.campaigns import Experiment, experiments_of
from tornado_gateway.experiments.features import EXPOSURES, STEP_FEATURES, FeatureCounts
from tornado_gateway.experiments.sample import DIGITS, VisitorSample, hashes_of

# Visitors that are not yet in a sample. Adding so few takes 0.1 ms, and they are still in the processor's cache: texts
# that live longer spread later ones over memory that is not, which slows down the whole request.
MOST_NOTED: Final = 256
FREED_AT_ONCE: Final = 500  # entries of the former tables: 0.2 ms
_HASH: Final = re.compile(f"[0-9A-Fa-f]{{{DIGITS}}}")
LONGEST_ID: Final = 64  # characters of a visitor in an event of an SDK


class Audience:
    """The visitors of one experiment. `sample` is None until there are any."""

    __slots__ = ("experiment", "sample")

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.sample: VisitorSample | None = None

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
        self._visitors: list[str] = []  # not yet in a sample: their uuids, and what they were shown
        self._noted: list[_Shown] = []
        self._shown: dict[str, _Shown] = {}  # by the tail of the impression
        self._named: dict[tuple[str, str], _Shown] = {}  # by ids as texts, unless both are numbers

    def follow(self, settings: core.Settings) -> Iterator[None]:
        """Follow new settings, in steps. Experiments that have not changed keep their samples.

        Impressions are noted as before at first: those of variations that have not changed are the same. The last steps
        free the former tables.
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
        yield
        by_tail: dict[str, _Shown] = {}
        named: dict[tuple[str, str], _Shown] = {}
        for number, feature in enumerate(settings.features.values(), 1):
            self._add_feature(feature, codes, by_tail, named)
            if number % STEP_FEATURES == 0:
                yield
        replaced: tuple[dict[Any, _Shown], ...] = (self._shown, self._named)
        self.audiences, self._shown, self._named = audiences, by_tail, named
        for table in replaced:
            yield from emptied(table, FREED_AT_ONCE)

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
                names = str(impression.campaign_id), str(impression.variation_id)
                if impression.tail != shown_tail(*names):
                    named.setdefault(names, shown)

    def shown(self, decision: core.Decision) -> None:
        """Note the impressions of a decision. Whitelisted visitors are counted, but they are in no sample."""
        for impression in decision.impressions:
            shown = self._shown.get(impression.tail)
            if shown is not None:
                shown.tally[EXPOSURES] += 1
                if shown.audience is not None and decision.uuid and decision.reason != "whitelisted":
                    self._note(decision.uuid, shown)

    def shown_by_sdk(self, data: dict[str, Any]) -> None:
        """Note the impression of an event `vwo_variationShown`, if the settings have its variation."""
        props, visitor = data["event"].get("props"), data.get("visId")
        if not isinstance(props, dict):
            return
        names = _text(props.get("id")), _text(props.get("variation"))
        shown = self._shown.get(shown_tail(*names)) or self._named.get(names)
        if shown is None:
            return
        shown.tally[EXPOSURES] += 1
        if shown.audience is None or not isinstance(visitor, str) or len(visitor) > LONGEST_ID:
            return
        digits = visitor.replace("-", "")[-DIGITS:]
        if _HASH.fullmatch(digits):
            self._note(digits, shown)

    def _note(self, visitor: str, shown: _Shown) -> None:
        self._visitors.append(visitor)
        self._noted.append(shown)
        if len(self._noted) >= MOST_NOTED:
            self.fold()

    def fold(self) -> None:
        """Add the noted visitors to their samples."""
        noted, self._noted = self._noted, []
        visitors, self._visitors = self._visitors, []
        places, rests = hashes_of(visitors)
        for number, shown in enumerate(noted):
            audience = shown.audience
            if audience is not None:
                (audience.sample or audience.opened()).add(places[number], rests[number], shown.code)


def _text(value: object) -> str:
    """Return an id as text, empty for anything that is none: SDKs send numbers or texts."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else ""
