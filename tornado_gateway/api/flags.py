"""Decisions for thin clients and REST callers: getFlag, trackEvent, setAttribute (wire contract A.5, A.6).

This runs for every request of every visitor: no IO unless a list or an alias has to be asked for, no logging, nothing
that settings alone decide.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import orjson

from tornado_gateway import core
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.fields import Fields, json_object, required_text, user_id
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.settings.mirror import Snapshot
from tornado_gateway.store.interfaces import StateStore

logger = logging.getLogger(__name__)

EMPTY = Response(200, b"", content_type=None)  # what setAttribute is documented to answer


class Decisions:
    """The three endpoints.

    `state` is asked only for what is switched on: `resolves_aliases` for the id that an alias stands for, and with
    `sticky_seconds` for the visitor's earlier decisions, which are kept for so long.
    """

    def __init__(
        self,
        environments: Environments,
        events: EventQueue,
        location: LocationReader,
        device: DeviceReader,
        lists: ListChecks,
        state: StateStore,
        *,
        resolves_aliases: bool = False,
        sticky_seconds: float | None = None,
    ) -> None:
        self._environments = environments
        self._events = events
        self._location = location
        self._device = device
        self._lists = lists
        self._state = state
        self._resolves_aliases = resolves_aliases
        self._sticky_seconds = sticky_seconds
        self._asks_the_store = resolves_aliases or sticky_seconds is not None
        self.on_decision: Callable[[core.Decision], None] = lambda decision: None
        self._answers: dict[bytes, Response] = {}

    def settings_changed(self, snapshot: Snapshot) -> None:
        self._answers = {}

    def get_flag(self, request: Request) -> Response | Awaitable[Response]:
        settings = self._settings(request)
        fields = json_object(request.body)
        feature_key = required_text(fields, "featureKey")
        context = core.context_from_json(fields, user_id(fields))
        feature = settings.features.get(feature_key)
        if self._asks_the_store or (feature is not None and feature.list_checks):
            return self._get_flag_later(request, settings, feature, feature_key, context)
        if feature is not None and (feature.needs_location or feature.needs_device):
            self._enrich(context, feature)
        return self._answer_flag(request, settings, context, core.decide(settings, feature_key, context))

    def track_event(self, request: Request) -> Response | Awaitable[Response]:
        settings = self._settings(request)
        fields = json_object(request.body)
        required_text(fields, "eventName")
        properties = fields.get("eventProperties")
        if properties is not None and not isinstance(properties, dict):  # thin Go sends null
            raise RequestError(400, "eventProperties: expected an object")
        context = core.context_from_json(fields, user_id(fields))
        if self._resolves_aliases:
            return self._track_later(request, settings, fields, context)
        return self._track(request, settings, fields, context)

    def set_attribute(self, request: Request) -> Response | Awaitable[Response]:
        """Documented to answer 200 and an empty body always; what is wrong with a request is told in a header."""
        settings = self._settings(request)
        fields = json_object(request.body)
        try:
            attributes = _attributes(fields)
            context = core.context_from_json(fields, user_id(fields))
        except RequestError as error:
            return Response(200, b"", None, [(b"Warning", f'199 - "{error}"'.encode("ascii", "replace"))])
        if self._resolves_aliases:
            return self._set_later(request, settings, attributes, context)
        return self._set(request, settings, attributes, context)

    def _settings(self, request: Request) -> core.Settings:
        snapshot = self._environments.of(request).mirror.current
        if snapshot is None:
            raise RequestError(503, "no settings have been loaded yet, see /ready")
        return snapshot.settings

    def _answer_flag(
        self, request: Request, settings: core.Settings, context: core.Context, decision: core.Decision
    ) -> Response:
        self.on_decision(decision)
        documents, count = core.event_documents(settings, context, decision, time.time_ns() // 1_000_000)
        if count:
            gate = self._events.append_impressions(documents, count)
            if self._events.durable:
                request.gate = gate
        answer = self._answers.get(decision.body)
        if answer is None:
            answer = self._answers[decision.body] = Response(200, decision.body)
        return answer

    def _track(self, request: Request, settings: core.Settings, fields: Fields, context: core.Context) -> Response:
        name = fields["eventName"]
        accepted = core.event_problem(settings, context, name) is None
        if accepted:
            properties = fields.get("eventProperties") or {}
            now_ms = time.time_ns() // 1_000_000
            self._append_one(request, core.track_event_document(settings, context, name, properties, now_ms))
        return Response(200, orjson.dumps({name: accepted}))

    def _set(self, request: Request, settings: core.Settings, attributes: Fields, context: core.Context) -> Response:
        now_ms = time.time_ns() // 1_000_000
        self._append_one(request, core.attribute_document(settings, context, attributes, now_ms))
        return EMPTY

    def _enrich(self, context: core.Context, feature: core.Feature) -> None:
        """Location and device, unless the client brought its own; from memory, and only if the feature asks."""
        if context.location is not None or context.device is not None:
            return
        if feature.needs_location and context.ip_address:
            context.location = self._location.lookup(context.ip_address)
        if feature.needs_device and context.user_agent:
            context.device = self._device.facts(context.user_agent)

    def _append_one(self, request: Request, document: bytes) -> None:
        if document:  # else the core says that nothing is to be sent for this visitor
            gate = self._events.append(document, 1)
            if self._events.durable:
                request.gate = gate

    # The same with what has to be asked for first

    async def _get_flag_later(
        self,
        request: Request,
        settings: core.Settings,
        feature: core.Feature | None,
        feature_key: str,
        context: core.Context,
    ) -> Response:
        await self._resolve_alias(context)
        if feature is not None:
            self._enrich(context, feature)
            if feature.list_checks:
                given = (context.custom_variables or {}, context.variation_targeting_variables or {})
                context.lists = await self._lists.gather(feature.list_checks, given)
        if self._sticky_seconds is None:
            decision = core.decide(settings, feature_key, context)
        else:
            keys = (feature_key,) if feature is None else feature.storage_keys
            decision = await self._decide_stickily(settings, feature_key, keys, context, self._sticky_seconds)
        return self._answer_flag(request, settings, context, decision)

    async def _decide_stickily(
        self, settings: core.Settings, feature_key: str, keys: Sequence[str], context: core.Context, seconds: float
    ) -> core.Decision:
        """Decide with the visitor's earlier decisions at hand; without the store as if there were none."""
        try:
            stored = await self._state.load_records(context.user_id, keys)
        except StoreError:
            return core.decide(settings, feature_key, context)
        decision = core.decide(settings, feature_key, context, stored=stored)
        records = {record["featureKey"]: record for record in decision.writes}
        changed = {key: record for key, record in records.items() if stored.get(key) != record}
        if changed:
            try:
                await self._state.save_records(context.user_id, changed, seconds)
            except StoreError as error:
                logger.info("a sticky decision could not be kept: %s", error)
        return decision

    async def _track_later(
        self, request: Request, settings: core.Settings, fields: Fields, context: core.Context
    ) -> Response:
        await self._resolve_alias(context)
        return self._track(request, settings, fields, context)

    async def _set_later(
        self, request: Request, settings: core.Settings, attributes: Fields, context: core.Context
    ) -> Response:
        await self._resolve_alias(context)
        return self._set(request, settings, attributes, context)

    async def _resolve_alias(self, context: core.Context) -> None:
        """Put the id that an alias stands for in its place; without the store the id stands for itself."""
        if not self._resolves_aliases:
            return
        try:
            found = await self._state.aliases([context.user_id])
        except StoreError:
            return
        context.user_id = found.get(context.user_id, context.user_id)


def _attributes(fields: Fields) -> Fields:
    """`attributeKey` with `attributeValue`, or `attributes` with several (decision-engine 5.2)."""
    attributes = fields.get("attributes")
    if attributes is None:
        key = required_text(fields, "attributeKey")
        if fields.get("attributeValue") in (None, ""):
            raise RequestError(400, "attributeValue is required")
        attributes = {key: fields["attributeValue"]}
    if (problem := core.attributes_problem(attributes)) is not None:
        raise RequestError(400, problem)
    result: Fields = attributes
    return result
