"""The endpoints of OFREP: one flag, and all flags of a context (docs/openfeature.md)."""

from collections.abc import Awaitable, Callable

from tornado_gateway import core
from tornado_gateway.api.bulk import OnDecision, Recorder, Validator, not_modified, respond, validate
from tornado_gateway.api.ofrep import context
from tornado_gateway.api.ofrep.context import EvaluationRequest
from tornado_gateway.api.ofrep.errors import (
    FLAG_NOT_FOUND,
    GENERAL,
    INVALID_CONTEXT,
    PARSE_ERROR,
    EvaluationError,
    flag_key,
)
from tornado_gateway.api.ofrep.exposures import RecentExposures
from tornado_gateway.api.ofrep.flags import Flag, Flags, entry
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import NotLoadedError, RequestError
from tornado_gateway.gate import Gate
from tornado_gateway.http.fields import Fields, is_from_browser, json_object, json_value
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.tasks import wait_at_most

NOT_FOUND = b'"errorCode":"FLAG_NOT_FOUND","errorDetails":"there is no feature with this key"'
MAX_RESPONSES = 10_000  # that are remembered


class StandIn:
    """The address and the user agent of a browser, for a context without them: a page does not know its address."""

    def __init__(self, client_address: Callable[[Request], str]) -> None:
        self._client_address = client_address

    def __call__(self, request: Request) -> tuple[str | None, str | None]:
        """Return both, or None for a server, whose visitors are elsewhere."""
        if not is_from_browser(request):
            return None, None
        agent = request.header(b"user-agent")
        return self._client_address(request) or None, None if agent is None else agent.decode("latin-1")


class EvaluationApi:
    """The two endpoints.

    `stand_in` returns the address and the user agent of a browser, which its context may lack. `on_decision` and
    `on_bulk_decision` are called with each decision of the endpoints.
    """

    def __init__(
        self,
        environments: Environments,
        stand_in: StandIn,
        on_decision: OnDecision,
        on_bulk_decision: OnDecision,
        *,
        wait_seconds: float,
    ) -> None:
        self._environments = environments
        self._stand_in = stand_in
        self._on_decision = on_decision
        self._on_bulk_decision = on_bulk_decision
        self._wait_seconds = wait_seconds
        self._recent = RecentExposures()
        self._flags: dict[Environment, Flags] = {}
        self._responses: dict[bytes, Response] = {}

    # --- One flag ---

    def evaluate(self, request: Request) -> Response | Awaitable[Response]:
        key = flag_key(request.path)
        if not key:  # clients send an empty key as the path of all flags with a slash
            return self.evaluate_all(request)
        environment = self._environments.of(request)
        settings = environment.settings()
        asked = context.parse(_fields(request.body), *self._stand_in(request))
        flag = self._flags_of(environment, settings).find(key, asked.variable)
        if flag is None:
            raise EvaluationError(404, FLAG_NOT_FOUND, "there is no feature or variable with this key")
        _check_id(settings, asked.context)
        decision = environment.evaluator.decide(settings, flag.feature, asked.context)
        if decision is None:
            return self._evaluate_with_io(request, environment, settings, key, flag, asked)
        return self._response(request, environment, settings, key, flag, asked, decision)

    async def _evaluate_with_io(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        key: str,
        flag: Flag,
        asked: EvaluationRequest,
    ) -> Response:
        decision = await environment.evaluator.decide_with_io(settings, flag.feature, asked.context)
        return self._response(request, environment, settings, key, flag, asked, decision)

    def _response(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        key: str,
        flag: Flag,
        asked: EvaluationRequest,
        decision: core.Decision,
    ) -> Response:
        self._on_decision(decision)
        if decision.error is not None:
            raise EvaluationError(400, GENERAL, decision.error)
        ready = self._flags_of(environment, settings).ready(decision)
        if asked.impressions is not False:
            self._record(request, environment, settings, asked.context, decision)
        body = entry(key, ready.entries[flag.variable])
        response = self._responses.get(body)
        if response is None:
            if len(self._responses) >= MAX_RESPONSES:
                self._responses.clear()
            response = self._responses[body] = Response(200, body)
        return response

    def _record(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        visitor: core.Context,
        decision: core.Decision,
    ) -> None:
        """Append the impressions that this visitor had not a moment ago; they are known once they are stored."""
        if decision.impressions:
            self._recent.keep_new(decision)
            if not decision.impressions:
                return
        documents, count = environment.evaluator.event_documents(settings, visitor, decision)
        if count:
            gate = environment.events.append_impressions(documents, count)
            if gate is None:
                self._recent.note(decision.uuid, decision.impressions)
                return
            if environment.events.durable:
                request.gate = gate
            gate.hold(_Stored(gate, self._recent, decision))

    # --- All flags ---

    async def evaluate_all(self, request: Request) -> Response:
        environment = self._environments.of(request)
        settings = await self._settings_when_loaded(environment)
        asked = context.parse(_fields(request.body), *(stand_in := self._stand_in(request)))
        _check_id(settings, asked.context)
        has_impressions = asked.impressions is True
        more = [text or "" for text in stand_in]
        validator = Validator(None, False) if has_impressions else validate(request, environment, settings, *more)
        if validator.is_known:
            return not_modified(validator.etag)
        entries = [
            entry(key, b'"errorCode":FLAG_NOT_FOUND,"errorDetails":"there is no feature with this key"')
            for key in asked.features or ()
            if key not in settings.features
        ]
        recorder = Recorder(environment, settings, asked.context)
        flags = self._flags_of(environment, settings)

        def add(decision: core.Decision) -> None:
            self._on_bulk_decision(decision)
            ready = flags.ready(decision)
            entries.append(ready.bulk if asked.has_variables else entry(decision.feature_key, ready.entries[None]))
            if has_impressions:
                recorder.add(decision)

        names = settings.features if asked.features is None else asked.features
        keys = [key for key in names if key in settings.features]
        await environment.evaluator.decide_many(settings, keys, asked.context, add)
        recorder.append(request)
        body = b'{"flags":[%b]}' % b",".join(entries)
        return await respond(request, body, None if has_impressions else validator)

    async def _settings_when_loaded(self, environment: Environment) -> core.Settings:
        """Wait for the first settings: a web provider whose first request fails stays in error."""
        if environment.mirror.current is None and not await wait_at_most(environment.mirror.loaded, self._wait_seconds):
            raise NotLoadedError
        return environment.settings()

    def _flags_of(self, environment: Environment, settings: core.Settings) -> Flags:
        flags = self._flags.get(environment)
        if flags is None or flags.settings is not settings:
            flags = self._flags[environment] = Flags(settings)
        return flags


class _Stored:
    """Notes exposures as recorded once they are stored."""

    def __init__(self, gate: Gate, recent: RecentExposures, decision: core.Decision) -> None:
        self._gate = gate
        self._recent = recent
        self._decision = decision

    def flush(self) -> None:
        if self._gate.failure is None:
            self._recent.note(self._decision.uuid, self._decision.impressions)


def _fields(body: bytes) -> Fields:
    try:
        return json_object(body)
    except RequestError as problem:
        code = INVALID_CONTEXT
        try:
            json_value(body)
        except RequestError:
            code = PARSE_ERROR
        raise EvaluationError(problem.status, code, str(problem)) from None


def _check_id(settings: core.Settings, visitor: core.Context) -> None:
    problem = core.context_problem(settings, visitor)
    if problem is not None:
        raise EvaluationError(400, INVALID_CONTEXT, problem)
