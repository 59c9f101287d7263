"""The endpoints of OFREP: one flag, and all flags of a context (docs/openfeature.md)."""

from collections.abc import Awaitable, Callable
from functools import partial

from tornado_gateway import core
from tornado_gateway.api.ofrep.bulk import Recorder, etag_of, is_known, not_modified, respond
from tornado_gateway.api.ofrep.context import Browsers, Options, read
from tornado_gateway.api.ofrep.derived import Derived
from tornado_gateway.api.ofrep.errors import FLAG_NOT_FOUND, GENERAL, INVALID_CONTEXT, EvaluationError
from tornado_gateway.api.ofrep.exposures import RecentExposures
from tornado_gateway.api.ofrep.flags import Flag, Flags, entry
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.impressions import append_impressions
from tornado_gateway.environments.registry import Environments
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.tasks import wait_at_most

NOT_FOUND = b'"errorCode":"FLAG_NOT_FOUND","errorDetails":"there is no feature with this key"'


class EvaluationApi:
    """The two endpoints. A bulk evaluation waits up to `wait_seconds` for the first settings.

    `announce` returns the part of a bulk response that names the stream of changes. `catch_up` waits for the settings
    that a client knows of; None: these are not newer.
    """

    def __init__(
        self,
        environments: Environments,
        browsers: Browsers,
        announce: Callable[[Request, Environment], bytes],
        catch_up: Callable[[Request, Environment], Awaitable[None] | None],
        *,
        wait_seconds: float,
    ) -> None:
        self._environments = environments
        self._browsers = browsers
        self._announce = announce
        self._catch_up = catch_up
        self._wait_seconds = wait_seconds
        self._recent = RecentExposures()
        self._flags = Derived(environments, Flags)

    # --- One flag ---

    def evaluate(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        settings = environment.decision_settings()
        browser = self._browsers.of(request) if request.wants_echo else None  # all with Origin want it
        visitor, variable, options = read(request.body, browser)
        flags = self._flags.known(settings) or self._flags.of(settings)
        flag = flags.by_path.get(request.path) if variable is None else None
        if flag is None:
            flag = flags.at(request.path, variable)
            if flag is None:
                raise EvaluationError(404, FLAG_NOT_FOUND, "there is no feature or variable with this key")
        if visitor.use_id_for_web:
            _check_id(settings, visitor)
        is_recorded = options.impressions is not False
        decision = environment.evaluator.decide(settings, flag.feature, visitor)
        if decision is None:
            respond = partial(self._response, request, environment, flags, flag, visitor, is_recorded)
            evaluator = environment.evaluator
            return evaluator.respond_with_io(request, settings, flag.feature, visitor, respond, keeps=is_recorded)
        return self._response(request, environment, flags, flag, visitor, is_recorded, decision)

    def _response(
        self,
        request: Request,
        environment: Environment,
        flags: Flags,
        flag: Flag,
        visitor: core.Context,
        is_recorded: bool,
        decision: core.Decision,
    ) -> Response:
        environment.counts.decided(visitor.user_id, decision)
        if decision.error is not None:
            raise EvaluationError(400, GENERAL, decision.error)
        answer = flags.answer(flag, decision)
        noted = self._recent.keep_new(environment.access.name, decision, answer.shown) if is_recorded else None
        if noted is None:
            return answer.response
        documents, count = environment.evaluator.event_documents(flags.settings, visitor, decision)
        if count:
            gate = append_impressions(environment, request, documents, count)
            if answer.shown:
                self._recent.note_once_stored(gate, noted)
        return answer.response

    # --- All flags ---

    def evaluate_all(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        newer = self._catch_up(request, environment) if request.query else None
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
        browser = self._browsers.of(request) if request.wants_echo else None
        announcement = b"" if browser is None else self._announce(request, environment)
        more = () if browser is None else (announcement.decode(), *map(str, browser))
        etag = etag_of(request, environment, settings, "OFREP", more)
        if etag and is_known(request, etag):
            return not_modified(etag)
        visitor, _, options = read(request.body, browser)
        _check_id(settings, visitor)
        given = None if options.impressions is True else etag
        return self._decide_all(request, environment, settings, visitor, options, announcement, given)

    async def _decide_all(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        visitor: core.Context,
        options: Options,
        announcement: bytes,
        etag: bytes | None,
    ) -> Response:
        entries = await self._entries(request, environment, settings, visitor, options)
        return await respond(request, b'{"flags":[%b]%b}' % (b",".join(entries), announcement), etag)

    async def _entries(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        visitor: core.Context,
        options: Options,
    ) -> list[bytes]:
        """Return the entries of all flags in the order of the document, or of the requested features."""
        flags, recorder = self._flags.of(settings), Recorder(environment, settings, visitor)
        names = list(settings.features) if options.features is None else options.features
        entries = [entry(name, NOT_FOUND) for name in names if name not in settings.features]

        def add(decision: core.Decision) -> None:
            environment.counts.decided(visitor.user_id, decision)
            ready = flags.ready(decision)
            entries.append(ready.bulk if options.has_variables else entry(decision.feature_key, ready.entries[None]))
            if options.impressions:
                recorder.add(decision)

        known = [name for name in names if name in settings.features]
        record, keeps = partial(recorder.append, request), bool(options.impressions)
        await environment.evaluator.decide_many(settings, known, visitor, add, record, keeps=keeps)
        return entries


def _check_id(settings: core.Settings, visitor: core.Context) -> None:
    problem = core.context_problem(settings, visitor)
    if problem is not None:
        raise EvaluationError(400, INVALID_CONTEXT, problem)
