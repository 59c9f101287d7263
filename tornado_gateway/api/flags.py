"""Flags for thin clients and REST callers: getFlag, trackEvent, setAttribute (wire contract A.5, A.6).

This runs for every request of every visitor: no IO unless a decision needs it, no logging, and nothing that depends on
the settings alone.
"""

from collections.abc import Awaitable
from functools import partial

import orjson

from tornado_gateway import core
from tornado_gateway.api.ofrep.outcomes import with_details
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.evaluation import with_address
from tornado_gateway.environments.impressions import append_impressions
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import DisabledError, NotLoadedError, RequestError
from tornado_gateway.http.fields import Fields, boolean, json_object, printable, required_text, user_id
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.settings.mirror import Snapshot

EMPTY = Response(200, b"", content_type=None)  # the documented response of setAttribute


class FlagsApi:
    """The three endpoints."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments
        self._responses: dict[bytes, Response] = {}  # by body

    def settings_changed(self, snapshot: Snapshot) -> None:
        self._responses = {}

    def get_flag(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        settings = environment.decision_settings()
        fields = json_object(request.body)
        feature_key = required_text(fields, "featureKey")
        is_detailed = "details" in fields and has_details(fields)
        context = with_address(core.context_from_json(fields, user_id(fields)))
        evaluator = environment.evaluator
        decision = evaluator.decide(settings, feature_key, context)
        if decision is None:
            respond = partial(self._flag_response, request, environment, settings, context, is_detailed)
            return evaluator.respond_with_io(request, settings, feature_key, context, respond)
        return self._flag_response(request, environment, settings, context, is_detailed, decision)

    def track_event(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        settings = environment.decision_settings()
        fields = json_object(request.body)
        required_text(fields, "eventName")
        properties = fields.get("eventProperties")
        if properties is not None and not isinstance(properties, dict):  # thin Go sends null
            raise RequestError(400, "eventProperties: expected an object")
        context = with_address(core.context_from_json(fields, user_id(fields)))
        track = partial(_track, request, environment, settings, fields, context)
        evaluator = environment.evaluator
        return evaluator.after_alias(context, track) if evaluator.resolves_aliases else track()

    def set_attribute(self, request: Request) -> Response | Awaitable[Response]:
        """Return 200 and an empty body always, as documented, once settings are loaded. A header names the fault."""
        try:
            environment = self._environments.of(request)
            settings = environment.decision_settings()
            fields = json_object(request.body)
            attributes = _attributes(fields)
            context = with_address(core.context_from_json(fields, user_id(fields)))
        except (NotLoadedError, DisabledError):
            raise
        except RequestError as error:
            return Response(200, b"", None, [(b"Warning", f'199 - "{printable(str(error))}"'.encode())])
        store = partial(_set, request, environment, settings, attributes, context)
        evaluator = environment.evaluator
        return evaluator.after_alias(context, store) if evaluator.resolves_aliases else store()

    def _flag_response(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        context: core.Context,
        is_detailed: bool,
        decision: core.Decision,
    ) -> Response:
        environment.counts.decided(context.user_id, decision)
        documents, count = environment.evaluator.event_documents(settings, context, decision)
        if count:
            append_impressions(environment, request, documents, count)
        if is_detailed:
            return Response(200, with_details(settings, decision))
        response = self._responses.get(decision.body)
        if response is None:
            response = self._responses[decision.body] = Response(200, decision.body)
        return response


def has_details(fields: Fields) -> bool:
    """Return whether a body asks for the reason of the decision. Raise RequestError for another type of value."""
    return boolean(fields, "details")


def _track(
    request: Request, environment: Environment, settings: core.Settings, fields: Fields, context: core.Context
) -> Response:
    name = fields["eventName"]
    accepted = core.event_problem(settings, context, name) is None
    if accepted:
        properties = fields.get("eventProperties") or {}
        document = environment.evaluator.track_event_document(settings, context, name, properties)
        _append_one(request, environment, document)
    return Response(200, orjson.dumps({name: accepted}))


def _set(
    request: Request, environment: Environment, settings: core.Settings, attributes: Fields, context: core.Context
) -> Response:
    _append_one(request, environment, environment.evaluator.attribute_document(settings, context, attributes))
    return EMPTY


def _append_one(request: Request, environment: Environment, document: bytes) -> None:
    if document:  # the core returns none if nothing is to be sent for this visitor
        environment.append(request, document, 1)


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
