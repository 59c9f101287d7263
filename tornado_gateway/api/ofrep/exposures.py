"""Exposures: which impressions an `exposure` text names, and which were recorded a moment ago."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.api.ofrep.derived import Derived
from tornado_gateway.core.holdouts import IN_HOLDOUT, NOT_IN_HOLDOUT, holdout_impression
from tornado_gateway.core.types import Feature
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.evaluation import with_address
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError
from tornado_gateway.gate import Gate
from tornado_gateway.http.fields import json_object, user_id
from tornado_gateway.http.messages import Request, Response

MAX_EXPOSURES = 100  # texts of one request
MAX_PAIRS = 1000  # of one request
REPEAT_SECONDS: Final = 60.0
GENERATION_ENTRIES: Final = 20_000  # a dictionary with 22,000 would be twice as large, too much for a processor's cache

Named = tuple[Any, ...]  # (campaign id, variation id), with the feature id for holdouts
Shown = tuple[Named, ...]  # the impressions of a decision
Noted = tuple[object, Shown]  # the hash of a visitor and a feature, and the impressions


class Exposed(NamedTuple):
    """The impressions that a request names. `needs_device`: a decision depends on it. `unknown` counts the others."""

    impressions: list[core.Impression]
    needs_device: bool
    unknown: int


class ExposureIndex:
    """The impressions of one settings document, by the ids that `exposure` has."""

    def __init__(self, settings: core.Settings) -> None:
        self._known: dict[Named, tuple[core.Impression, bool]] = {}
        for feature in settings.features.values():
            for impression in _impressions(feature):
                self._known.setdefault(name_of(impression), (impression, feature.needs_device))

    def find(self, texts: object) -> "Exposed":
        """Return the impressions that the texts name, each once.

        Raise RequestError for anything but a list of such texts.
        """
        names = _names(texts)
        found = [self._known[name] for name in names if name in self._known]
        needs_device = any(needs for _, needs in found)
        return Exposed([impression for impression, _ in found], needs_device, len(names) - len(found))


class RecentExposures:
    """Remembers which impressions of a feature a visitor had, for `seconds` at least and twice as long at most.

    There are two generations. A new one begins after these seconds, and earlier if it has so many `entries`; then the
    older one is dropped.

    An entry is the impressions by a hash of 64 bits of an environment, a feature and a visitor: texts of visitors would
    fill the memory with objects that live for a minute, and slow down all other requests. Environments of one account
    have the same visitors, and may have the same campaigns.

    One worker's own: a repeat at another worker is recorded again, which reports count once. So is one of another
    feature with the same campaign.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS, entries: int = GENERATION_ENTRIES) -> None:
        self._seconds = seconds  # of a generation
        self._entries = entries
        self._new: dict[object, Shown] = {}
        self._old: dict[object, Shown] = {}
        self._began = time.monotonic()
        self._group = _Stored(self, Gate())  # the last one

    def keep_new(self, environment: str, decision: core.Decision, shown: Shown) -> Noted | None:
        """Remove the impressions from a decision that its visitor had in the last seconds in this environment.

        `shown` are its impressions. Return the entry to note when the others are stored. None: there are none.
        """
        visitor = hash((environment, decision.feature_key, decision.uuid))
        if visitor in self._new or visitor in self._old:
            return self._without_recent(decision, visitor, shown)
        return visitor, shown

    def _without_recent(self, decision: core.Decision, visitor: object, shown: Shown) -> Noted | None:
        self._begin_generations()
        new, old = self._new.get(visitor, ()), self._old.get(visitor, ())
        places = [at for at, one in enumerate(shown) if one not in new and one not in old]
        decision.impressions = [decision.impressions[place] for place in places]
        if (ids := decision.vwo_user_ids) is not None:
            decision.vwo_user_ids = {at: ids[place] for at, place in enumerate(places) if place in ids}
        others = tuple(shown[place] for place in places)
        return (visitor, others) if others or not shown else None

    def _begin_generations(self) -> None:
        """Begin the generations that are due."""
        now = time.monotonic()
        due = int((now - self._began) / self._seconds)
        if due:
            self._began += due * self._seconds
        elif len(self._new) >= self._entries:
            due, self._began = 1, now
        if due:
            self._old = self._new if due == 1 else {}
            self._new = {}

    def note(self, noted: list[Noted]) -> None:
        """Remember impressions, which have been stored."""
        self._begin_generations()
        new = self._new
        for visitor, shown in noted:
            known = new.setdefault(visitor, shown)
            if known is not shown:  # the visitor had others, or several requests at the same time
                new[visitor] = _both(known, shown)

    def note_once_stored(self, gate: Gate | None, noted: Noted) -> None:
        """Remember impressions when the gate of their events opens. None: they were rejected."""
        if gate is None:
            return
        group = self._group
        if group.gate is not gate:
            group = self._group = _Stored(self, gate)
            gate.hold(group)
        group.noted.append(noted)


class _Stored:
    """The impressions of the requests that wait for a gate."""

    __slots__ = ("_recent", "gate", "noted")

    def __init__(self, recent: RecentExposures, gate: Gate) -> None:
        self._recent = recent
        self.gate = gate
        self.noted: list[Noted] = []

    def flush(self) -> None:
        if not self.gate.is_lost:
            self._recent.note(self.noted)


def _both(known: Shown, shown: Shown) -> Shown:
    """Return the impressions of both, each once. They differ if the visitor got another variation."""
    return known + tuple(one for one in shown if one not in known)


def name_of(impression: core.Impression) -> Named:
    if impression.feature_id is None:
        return impression.campaign_id, impression.variation_id
    return impression.campaign_id, impression.variation_id, impression.feature_id


def _impressions(feature: Feature) -> list[core.Impression]:
    """Return every impression that a decision about the feature can have."""
    rules = (*feature.rollouts, *feature.experiments)
    shown = [variation.impression for rule in rules for variation in rule.variations]
    held_out = [
        holdout_impression(holdout, feature.id, result == IN_HOLDOUT)
        for holdout in feature.holdouts
        for result in (IN_HOLDOUT, NOT_IN_HOLDOUT)
    ]
    return [*shown, *held_out, *(feature.impact or ())]


def _names(texts: object) -> list[Named]:
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_EXPOSURES:
        raise _invalid()
    names: dict[Named, None] = {}
    for text in texts:
        names.update(dict.fromkeys(_names_in(text)))
    if len(names) > MAX_PAIRS:
        raise _invalid()
    return list(names)


def _names_in(text: object) -> list[Named]:
    try:
        pairs = orjson.loads(text) if isinstance(text, str) else None
    except orjson.JSONDecodeError:
        pairs = None
    if not isinstance(pairs, list) or not all(_is_name(pair) for pair in pairs):
        raise _invalid()
    return [tuple(pair) for pair in pairs]


def _is_name(pair: object) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) in (2, 3)
        and all(isinstance(item, int | float | str) and not isinstance(item, bool) for item in pair)
    )


def _invalid() -> RequestError:
    return RequestError(
        400, f"exposures must be a list of 1 to {MAX_EXPOSURES} texts from `exposure`, of at most {MAX_PAIRS} pairs"
    )


class ExposuresApi:
    """The endpoint trackExposure, for clients that got their flags in bulk and call it when one is used."""

    def __init__(self, environments: Environments, on_exposures: Callable[[str, int], None]) -> None:
        self._environments = environments
        self._on_exposures = on_exposures
        self._indexes = Derived(environments, ExposureIndex)

    def track_exposure(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        settings = environment.decision_settings()
        fields = json_object(request.body)
        exposed = self._indexes.of(settings).find(fields.get("exposures"))
        context = with_address(core.context_from_json(fields, user_id(fields)))
        if (problem := core.context_problem(settings, context)) is not None:
            raise RequestError(400, problem)
        track = partial(self._track, request, environment, settings, context, exposed)
        if environment.evaluator.resolves_aliases:
            return environment.evaluator.after_alias(context, track)
        return track()

    def _track(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        context: core.Context,
        exposed: Exposed,
    ) -> Response:
        documents, count = environment.evaluator.exposure_documents(
            settings, context, exposed.impressions, needs_device=exposed.needs_device
        )
        if count:
            environment.append(request, documents, count)  # the request is for nothing else, so it may get a 503
        self._on_exposures("unknown", exposed.unknown)
        self._on_exposures("recorded", count)
        return Response(200, b'{"tracked":%d}' % count)
