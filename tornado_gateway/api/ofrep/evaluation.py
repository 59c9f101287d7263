"""The endpoints of OFREP: one flag, and all flags of a context (docs/openfeature.md)."""

from collections.abc import Awaitable, Callable
from functools import partial

from tornado_gateway import core
from tornado_gateway.api.ofrep import context
from tornado_gateway.api.ofrep.bulk import Recorder, Validator, not_modified, respond, validate
from tornado_gateway.api.ofrep.context import EvaluationRequest, StandIn
from tornado_gateway.api.ofrep.derived import Derived
from tornado_gateway.api.ofrep.errors import (
    FLAG_NOT_FOUND,
    GENERAL,
    INVALID_CONTEXT,
    EvaluationError,
    flag_key,
)
from tornado_gateway.api.ofrep.exposures import RecentExposures
from tornado_gateway.api.ofrep.flags import Flag, Flags, entry
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments
from tornado_gateway.gate import Gate
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.tasks import wait_at_most

NOT_FOUND = b'"errorCode":"FLAG_NOT_FOUND","errorDetails":"there is no feature with this key"'


class Call:
    """An evaluation of one flag."""

    __slots__ = ("asked", "environment", "flag", "flags", "settings")

    def __init__(
        self, environment: Environment, settings: core.Settings, flags: Flags, flag: Flag, asked: EvaluationRequest
    ) -> None:
        self.environment = environment
        self.settings = settings
        self.flags = flags
        self.flag = flag
        self.asked = asked


class EvaluationApi:
    """The two endpoints. A bulk evaluation waits up to `wait_seconds` for the first settings.

    `announce` returns the part of a bulk response that names the stream of changes. `catch_up` waits for the settings
    that a client knows of; None: these are not newer.
    """

    def __init__(
        self,
        environments: Environments,
        stand_in: StandIn,
        announce: Callable[[Request, Environment], bytes],
        catch_up: Callable[[Request, Environment], Awaitable[None] | None],
        *,
        wait_seconds: float,
    ) -> None:
        self._environments = environments
        self._stand_in = stand_in
        self._announce = announce
        self._catch_up = catch_up
        self._wait_seconds = wait_seconds
        self._recent = RecentExposures()
        self._flags = Derived(environments, Flags)

    # --- One flag ---

    def evaluate(self, request: Request) -> Response | Awaitable[Response]:
        key = flag_key(request.path)
        if not key:  # clients send an empty key as the path of all flags with a slash
            return self.evaluate_all(request)
        environment = self._environments.of(request)
        settings = environment.decision_settings()
        asked = context.read(request.body, *self._stand_in(request))
        flags = self._flags.of(environment, settings)
        flag = flags.find(key, asked.variable)
        if flag is None:
            raise EvaluationError(404, FLAG_NOT_FOUND, "there is no feature or variable with this key")
        _check_id(settings, asked.context)
        call = Call(environment, settings, flags, flag, asked)
        decision = environment.evaluator.decide(settings, flag.feature, asked.context)
        return self._evaluate_with_io(request, call) if decision is None else self._response(request, call, decision)

    async def _evaluate_with_io(self, request: Request, call: Call) -> Response:
        evaluator, asked = call.environment.evaluator, call.asked
        keeps = asked.impressions is not False
        responses: list[Response] = []

        def respond(decision: core.Decision) -> Gate | None:
            responses.append(self._response(request, call, decision))
            return request.gate

        await evaluator.decide_with_io(call.settings, call.flag.feature, asked.context, respond, keeps=keeps)
        return responses[0]

    def _response(self, request: Request, call: Call, decision: core.Decision) -> Response:
        counts = call.environment.counts
        counts.decided(decision)
        if counts.watch is not None:
            counts.watch(call.asked.context.user_id, decision)
        if decision.error is not None:
            raise EvaluationError(400, GENERAL, decision.error)
        response = call.flags.response(call.flag, decision)
        if call.asked.impressions is not False:
            self._record(request, call, decision)
        return response

    def _record(self, request: Request, call: Call, decision: core.Decision) -> None:
        """Append the impressions that this visitor had not a moment ago."""
        environment = call.environment
        hashes: list[int] = []
        if decision.impressions:
            hashes = self._recent.keep_new(environment.access.name, decision)
            if not hashes:
                return
        documents, count = environment.evaluator.event_documents(call.settings, call.asked.context, decision)
        if count:
            gate = environment.events.append_impressions(documents, count)
            if environment.events.durable:
                request.gate = gate
            self._recent.note_once_stored(gate, hashes)

    # --- All flags ---

    def evaluate_all(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        newer = self._catch_up(request, environment)
        if newer is None and environment.mirror.current is not None:
            return self._evaluate_all(request, environment)
        return self._evaluate_all_later(request, environment, newer)

    async def _evaluate_all_later(
        self, request: Request, environment: Environment, newer: Awaitable[None] | None
    ) -> Response:
        """Wait for newer settings, and for the first ones: a web provider whose first request fails stays in error."""
        if newer is not None:
            await newer
        if environment.mirror.current is None:
            await wait_at_most(environment.mirror.loaded, self._wait_seconds)
        response = self._evaluate_all(request, environment)
        return response if isinstance(response, Response) else await response

    def _evaluate_all(self, request: Request, environment: Environment) -> Response | Awaitable[Response]:
        settings = environment.decision_settings()
        announcement = self._announce(request, environment)
        fallbacks = self._stand_in(request)
        validator = validate(request, environment, settings, announcement.decode(), *map(str, fallbacks))
        if validator.is_known:
            return not_modified(validator.etag)
        asked = context.read(request.body, *fallbacks)
        _check_id(settings, asked.context)
        given = None if asked.impressions is True else validator
        return self._decide_all(request, environment, settings, asked, announcement, given)

    async def _decide_all(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        asked: EvaluationRequest,
        announcement: bytes,
        validator: Validator | None,
    ) -> Response:
        entries = await self._entries(request, environment, settings, asked)
        return await respond(request, b'{"flags":[%b]%b}' % (b",".join(entries), announcement), validator)

    async def _entries(
        self, request: Request, environment: Environment, settings: core.Settings, asked: EvaluationRequest
    ) -> list[bytes]:
        """Return the entries of all flags in the order of the document, or of the requested features."""
        flags, recorder = self._flags.of(environment, settings), Recorder(environment, settings, asked.context)
        names = list(settings.features) if asked.features is None else asked.features
        entries = [entry(name, NOT_FOUND) for name in names if name not in settings.features]

        def add(decision: core.Decision) -> None:
            environment.counts.decided(decision)
            if environment.counts.watch is not None:
                environment.counts.watch(asked.context.user_id, decision)
            ready = flags.ready(decision)
            entries.append(ready.bulk if asked.has_variables else entry(decision.feature_key, ready.entries[None]))
            if asked.impressions:
                recorder.add(decision)

        known = [name for name in names if name in settings.features]
        record, keeps = partial(recorder.append, request), bool(asked.impressions)
        await environment.evaluator.decide_many(settings, known, asked.context, add, record, keeps=keeps)
        return entries


def _check_id(settings: core.Settings, visitor: core.Context) -> None:
    problem = core.context_problem(settings, visitor)
    if problem is not None:
        raise EvaluationError(400, INVALID_CONTEXT, problem)
