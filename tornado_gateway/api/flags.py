"""Flags for thin clients and REST callers: getFlag, trackEvent, setAttribute (wire contract A.5, A.6).

This runs for every request of every visitor: no IO unless a decision needs it, no logging, and nothing that depends on
the settings alone.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial

import orjson

from tornado_gateway import core
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import NotLoadedError, RequestError
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.fields import Fields, json_object, required_text, user_id
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.settings.mirror import Snapshot

EMPTY = Response(200, b"", content_type=None)  # the documented response of setAttribute


class FlagsApi:
    """The three endpoints. `on_decision` is called with each decision of getFlag."""

    def __init__(
        self,
        environments: Environments,
        events: EventQueue,
        evaluator: Evaluator,
        on_decision: Callable[[core.Decision], None],
    ) -> None:
        self._environments = environments
        self._events = events
        self._evaluator = evaluator
        self._on_decision = on_decision
        self._responses: dict[bytes, Response] = {}  # by body

    def settings_changed(self, snapshot: Snapshot) -> None:
        self._responses = {}

    def get_flag(self, request: Request) -> Response | Awaitable[Response]:
        settings = self._settings(request)
        fields = json_object(request.body)
        feature_key = required_text(fields, "featureKey")
        context = core.context_from_json(fields, user_id(fields))
        decision = self._evaluator.decide(settings, feature_key, context)
        if decision is None:
            return self._get_flag_with_io(request, settings, feature_key, context)
        return self._flag_response(request, settings, context, decision)

    def track_event(self, request: Request) -> Response | Awaitable[Response]:
        settings = self._settings(request)
        fields = json_object(request.body)
        required_text(fields, "eventName")
        properties = fields.get("eventProperties")
        if properties is not None and not isinstance(properties, dict):  # thin Go sends null
            raise RequestError(400, "eventProperties: expected an object")
        context = core.context_from_json(fields, user_id(fields))
        if self._evaluator.resolves_aliases:
            return self._after_alias(context, partial(self._track, request, settings, fields, context))
        return self._track(request, settings, fields, context)

    def set_attribute(self, request: Request) -> Response | Awaitable[Response]:
        """Return 200 and an empty body always, as documented. A header names the fault of a request."""
        settings = self._settings(request)
        fields = json_object(request.body)
        try:
            attributes = _attributes(fields)
            context = core.context_from_json(fields, user_id(fields))
        except RequestError as error:
            return Response(200, b"", None, [(b"Warning", f'199 - "{error}"'.encode("ascii", "replace"))])
        if self._evaluator.resolves_aliases:
            return self._after_alias(context, partial(self._set, request, settings, attributes, context))
        return self._set(request, settings, attributes, context)

    def _settings(self, request: Request) -> core.Settings:
        snapshot = self._environments.of(request).mirror.current
        if snapshot is None:
            raise NotLoadedError
        return snapshot.settings

    async def _get_flag_with_io(
        self, request: Request, settings: core.Settings, feature_key: str, context: core.Context
    ) -> Response:
        decision = await self._evaluator.decide_with_io(settings, feature_key, context)
        return self._flag_response(request, settings, context, decision)

    async def _after_alias(self, context: core.Context, respond: Callable[[], Response]) -> Response:
        await self._evaluator.resolve_alias(context)
        return respond()

    def _flag_response(
        self, request: Request, settings: core.Settings, context: core.Context, decision: core.Decision
    ) -> Response:
        self._on_decision(decision)
        documents, count = self._evaluator.event_documents(settings, context, decision)
        if count:
            gate = self._events.append_impressions(documents, count)
            if self._events.durable:
                request.gate = gate
        response = self._responses.get(decision.body)
        if response is None:
            response = self._responses[decision.body] = Response(200, decision.body)
        return response

    def _track(self, request: Request, settings: core.Settings, fields: Fields, context: core.Context) -> Response:
        name = fields["eventName"]
        accepted = core.event_problem(settings, context, name) is None
        if accepted:
            properties = fields.get("eventProperties") or {}
            serial = next(self._evaluator.serials)
            document = core.track_event_document(settings, context, name, properties, _now_ms(), serial)
            self._append_one(request, document)
        return Response(200, orjson.dumps({name: accepted}))

    def _set(self, request: Request, settings: core.Settings, attributes: Fields, context: core.Context) -> Response:
        serial = next(self._evaluator.serials)
        self._append_one(request, core.attribute_document(settings, context, attributes, _now_ms(), serial))
        return EMPTY

    def _append_one(self, request: Request, document: bytes) -> None:
        if document:  # the core returns none if nothing is to be sent for this visitor
            gate = self._events.append(document, 1)
            if self._events.durable:
                request.gate = gate


def _attributes(fields: Fields) -> Fields:
    """Return the attributes: `attributes`, or one as `attributeKey` and `attributeValue` (decision engine 5.2)."""
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
