"""Decisions with their inputs, for getFlag, explanations and the command line.

This is on the path of every getFlag: it does IO only if a list, an alias or a stored decision has to be looked up.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tornado_gateway import core
from tornado_gateway.core.types import StoredRecords
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.slow_patterns import SlowPatterns
from tornado_gateway.errors import StoreError
from tornado_gateway.gate import Gate, has_happened
from tornado_gateway.http.fields import address_in
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.store.interfaces import StateStore

logger = logging.getLogger(__name__)

SERIAL_STEP = 1024  # more than the events of one call
SLICE_FEATURES = 100  # decided in less than a millisecond, before other requests get their turn

Facts = Mapping[str, Any]


class StickyDecisions:
    """The decisions that visitors keep, each for `seconds`. Best effort: if the store fails, all decisions are new."""

    def __init__(self, state: StateStore, seconds: float) -> None:
        self._state = state
        self._seconds = seconds

    async def load(self, user_id: str, keys: Sequence[str]) -> StoredRecords | None:
        """Return the visitor's records under these keys; None if the store fails."""
        try:
            return await self._state.load_records(user_id, keys)
        except StoreError:
            return None

    async def save(self, user_id: str, stored: StoredRecords, decisions: Sequence[core.Decision]) -> None:
        """Store the records of the decisions that differ from the stored ones."""
        records = {record["featureKey"]: record for decision in decisions for record in decision.writes}
        changed = {key: record for key, record in records.items() if stored.get(key) != record}
        if not changed:
            return
        try:
            await self._state.save_records(user_id, changed, self._seconds)
        except StoreError as error:
            logger.info("a sticky decision was not stored, the next request decides again: %s", error)


class Inputs:
    """The gathered inputs of any number of decisions about one visitor.

    `stored` are the visitor's records, None without sticky decisions.
    """

    __slots__ = ("context", "has_own_facts", "stored")

    def __init__(self, context: core.Context, stored: StoredRecords | None = None) -> None:
        self.context = context
        self.stored = stored
        self.has_own_facts = _has_own_facts(context)


class Evaluator:
    """Gathers the inputs of decisions, decides, and builds the documents of their events.

    Location and device are in memory; `lists`, `aliases` and `sticky` require IO. Each of these is None if it is off.
    `slow_patterns` counts the patterns that exceeded their time, if it is given. `on_shown` is called with each
    decision whose impressions are recorded. `discards_debug` gets the document of each debug event and returns whether
    it is not to be recorded.
    """

    def __init__(
        self,
        location: LocationReader,
        device: DeviceReader,
        lists: ListChecks | None = None,
        *,
        aliases: StateStore | None = None,
        sticky: StickyDecisions | None = None,
        slow_patterns: SlowPatterns | None = None,
        on_shown: Callable[[core.Decision], None] | None = None,
        discards_debug: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.resolves_aliases = aliases is not None
        # Numbers of events, which make their ids unique. They start at random, because other processes count as well.
        self._serials = itertools.count(random.getrandbits(32), SERIAL_STEP)
        self._location = location
        self._device = device
        self.lists = lists
        self._aliases = aliases
        self._sticky = sticky
        self.slow_patterns = slow_patterns
        self._on_shown = on_shown
        self._discards_debug = discards_debug
        self._uses_store = aliases is not None or sticky is not None

    # --- One decision ---

    def decide(self, settings: core.Settings, feature_key: str, context: core.Context) -> core.Decision | None:
        """Decide from inputs in memory. Return None if an input requires IO: `decide_with_io` is for these."""
        if self._uses_store:
            return None
        feature = settings.features.get(feature_key)
        if feature is not None:
            if feature.list_checks:
                return None
            if (feature.needs_location or feature.needs_device) and not _has_own_facts(context):
                self._set_facts(context, feature)
        decision = core.decide(settings, feature_key, context)
        return self._noted(decision) if decision.slow_patterns else decision

    async def decide_with_io(
        self,
        settings: core.Settings,
        feature_key: str,
        context: core.Context,
        record: Callable[[core.Decision], Gate | None] = lambda decision: None,
        *,
        keeps: bool = True,
    ) -> core.Decision:
        """Decide from all inputs, and keep the decision if decisions are sticky: see `decide_many`.

        `record` is called before that. If it raises, or the gate that it returns fails, the decision is not kept.
        """
        inputs = await self.gather(settings, [feature_key], context)
        decision = self.decide_from(settings, feature_key, inputs)
        gate = record(decision)
        if keeps:
            await self._keep_once_recorded(gate, inputs, [decision])
        return decision

    async def respond_with_io(
        self,
        request: Request,
        settings: core.Settings,
        feature_key: str,
        context: core.Context,
        respond: Callable[[core.Decision], Response],
        *,
        keeps: bool = True,
    ) -> Response:
        """Return the response that `respond` makes of a decision: see `decide_with_io`. Its gate is the request's."""
        responses: list[Response] = []

        def record(decision: core.Decision) -> Gate | None:
            responses.append(respond(decision))
            return request.gate

        await self.decide_with_io(settings, feature_key, context, record, keeps=keeps)
        return responses[0]

    def event_documents(
        self, settings: core.Settings, context: core.Context, decision: core.Decision
    ) -> tuple[bytes, int]:
        """Return the documents of a decision's events, joined by newlines, and their number."""
        now_ms, serial = time.time_ns() // 1_000_000, next(self._serials)
        documents, count = core.event_documents(settings, context, decision, now_ms, serial)
        if count and self._on_shown is not None:
            self._on_shown(decision)
        if decision.debug is not None and count and self._discards_debug is not None:
            others, _, debug = documents.rpartition(b"\n")  # the debug event is the last one
            if self._discards_debug(debug):
                return others, count - 1
        return documents, count

    def exposure_documents(
        self,
        settings: core.Settings,
        context: core.Context,
        impressions: Sequence[core.Impression],
        *,
        needs_device: bool,
    ) -> tuple[bytes, int]:
        """Return the documents of impressions that a client names, joined by newlines, and their number.

        `needs_device`: the decisions have seen the visitor's device, so the events name it.
        """
        if needs_device and not _has_own_facts(context):
            context.device = self._device_of(context)
        return self.event_documents(settings, context, core.exposure(settings, context, impressions))

    def track_event_document(
        self, settings: core.Settings, context: core.Context, name: str, properties: Mapping[str, Any]
    ) -> bytes:
        """Return the document of a conversion; empty if nothing is to be sent for this visitor."""
        now_ms = time.time_ns() // 1_000_000
        return core.track_event_document(settings, context, name, properties, now_ms, next(self._serials))

    def attribute_document(
        self, settings: core.Settings, context: core.Context, attributes: Mapping[str, Any]
    ) -> bytes:
        """Return the document of a visitor's attributes; empty if nothing is to be sent for this visitor."""
        return core.attribute_document(settings, context, attributes, time.time_ns() // 1_000_000, next(self._serials))

    # --- Any number of decisions: gather once, decide for each feature, keep once ---

    async def gather(self, settings: core.Settings, feature_keys: Sequence[str], context: core.Context) -> Inputs:
        """Gather the inputs that require IO, as far as one of the features needs them."""
        await self.resolve_alias(context)
        features = [settings.features.get(key) for key in feature_keys]
        checks = {check: None for feature in features if feature is not None for check in feature.list_checks}
        if checks and self.lists is not None:
            variables = (context.custom_variables or {}, context.variation_targeting_variables or {})
            context.lists = await self.lists.gather(list(checks), variables)
        if self._sticky is None:
            return Inputs(context)
        return Inputs(context, await self._sticky.load(context.user_id, _storage_keys(feature_keys, features)))

    def decide_from(
        self, settings: core.Settings, feature_key: str, inputs: Inputs, trace: core.Trace | None = None
    ) -> core.Decision:
        """Decide from gathered inputs, without side effects."""
        feature = settings.features.get(feature_key)
        if feature is not None and not inputs.has_own_facts:
            self._set_facts(inputs.context, feature)
        return self._noted(core.decide(settings, feature_key, inputs.context, stored=inputs.stored, trace=trace))

    def _noted(self, decision: core.Decision) -> core.Decision:
        if decision.slow_patterns and self.slow_patterns is not None:
            self.slow_patterns.note(decision.feature_key, decision.slow_patterns)
        return decision

    async def decide_many(
        self,
        settings: core.Settings,
        feature_keys: Sequence[str],
        context: core.Context,
        each: Callable[[core.Decision], None],
        record: Callable[[], Gate | None],
        *,
        keeps: bool,
    ) -> None:
        """Decide about each feature, and call `each` at once, because the context has the facts for one feature only.

        `record` is called when all are decided. If it raises, or the gate that it returns fails, no decision is kept.
        `keeps`: the decisions are exposures, so they are kept if decisions are sticky. A kept decision has no exposure
        any more, so a decision that was not recorded must not be kept. Other requests get their turn after every
        SLICE_FEATURES decisions.
        """
        inputs = await self.gather(settings, feature_keys, context)
        decisions = []
        for number, feature_key in enumerate(feature_keys, 1):
            decision = self.decide_from(settings, feature_key, inputs)
            each(decision)
            decisions.append(decision)
            if number % SLICE_FEATURES == 0:
                await asyncio.sleep(0)
        gate = record()
        if keeps:
            await self._keep_once_recorded(gate, inputs, decisions)

    def is_pure(self, settings: core.Settings) -> bool:
        """Return whether equal contexts always get equal decisions: nothing is looked up outside this process."""
        return not self._uses_store and not settings.has_list_checks

    @property
    def facts_versions(self) -> tuple[str, str]:
        """Texts that change with the location database and the device rules."""
        return self._location.version, self._device.version

    async def _keep_once_recorded(self, gate: Gate | None, inputs: Inputs, decisions: Sequence[core.Decision]) -> None:
        if self._sticky is not None and await has_happened(gate):
            await self.keep(inputs, decisions)

    async def keep(self, inputs: Inputs, decisions: Sequence[core.Decision]) -> None:
        """Store the decisions if they are sticky and the earlier ones could be loaded."""
        if self._sticky is not None and inputs.stored is not None:
            await self._sticky.save(inputs.context.user_id, inputs.stored, decisions)

    # --- Single inputs ---

    async def resolve_alias(self, context: core.Context) -> None:
        """Replace an alias by the id that it stands for. If the store fails, the alias is the id."""
        if self._aliases is None:
            return
        try:
            found = await self._aliases.aliases([context.user_id])
        except StoreError:
            return
        context.user_id = found.get(context.user_id, context.user_id)

    async def after_alias(self, context: core.Context, respond: Callable[[], Response]) -> Response:
        """Return the response for the visitor for whom an alias stands."""
        await self.resolve_alias(context)
        return respond()

    def facts(self, inputs: Inputs) -> tuple[Facts | None, Facts | None]:
        """Return location and device of the visitor, whether a rule needs them or not."""
        context = inputs.context
        if inputs.has_own_facts:
            return context.location, context.device
        return self._location_of(context), self._device_of(context)

    def _set_facts(self, context: core.Context, feature: core.Feature) -> None:
        """Look up only the facts that the feature needs, because events name the device that a decision has seen."""
        context.location = self._location_of(context) if feature.needs_location else None
        context.device = self._device_of(context) if feature.needs_device else None

    def _location_of(self, context: core.Context) -> Facts | None:
        return self._location.lookup(context.ip_address) if context.ip_address else None

    def _device_of(self, context: core.Context) -> Facts | None:
        return self._device.facts(context.user_agent) if context.user_agent else None


def with_address(context: core.Context) -> core.Context:
    """Return a client's context with the address in its `ipAddress`; a text without one counts as absent."""
    if context.ip_address is not None:
        context.ip_address = address_in(context.ip_address)
    return context


def has_address(text: str) -> bool:
    """Return whether decisions find an address in this `ipAddress`."""
    return address_in(text) is not None


def _has_own_facts(context: core.Context) -> bool:
    """Return whether the client has sent a location or a device, which replaces both look-ups."""
    return context.location is not None or context.device is not None


def _storage_keys(feature_keys: Sequence[str], features: Sequence[core.Feature | None]) -> list[str]:
    """Return the keys of all records that decisions about the features can read, each once."""
    keys: dict[str, None] = {}
    for feature_key, feature in zip(feature_keys, features, strict=True):
        keys.update(dict.fromkeys((feature_key,) if feature is None else feature.storage_keys))
    return list(keys)
