"""The settings document for SDKs: v2-settings, v2-pull, and the webhook after a change (wire contract A.1).

SDKs compare whole documents, so an unchanged document has the same bytes every time.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import NamedTuple

import orjson

from tornado_gateway.environments.environment import Environment, FetchDialect
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import AttemptsError, NotLoadedError, UpstreamError
from tornado_gateway.http.fields import ClientAddress, accepts_gzip, query_text
from tornado_gateway.http.messages import Request, Response, error_response, json_error
from tornado_gateway.settings.documents import SettingsDocument, prepare_document
from tornado_gateway.settings.incremental_json import parse_outline
from tornado_gateway.settings.pacing import empty_gradually, throttled
from tornado_gateway.tasks import SharedResult
from tornado_gateway.telemetry.attempts import TokenCheck
from tornado_gateway.telemetry.turns import TURN_SECONDS, Turns
from tornado_gateway.upstream.client import Dialect

MAIN = Dialect()
API_VERSIONS = frozenset({"1", "3"})
PLATFORMS = frozenset({"server", "client"})
PULL_PAUSE_SECONDS = TURN_SECONDS  # between two refreshes that clients cause, at all workers and in all dialects
TOKEN_HEADERS = (b"x-webhook-token", b"x-vwo-auth")


class _Responses(NamedTuple):
    """The responses for one document. `made_at` is by the monotonic clock, 0.0 if they are stale."""

    etag: bytes
    plain: Response
    compressed: Response
    not_modified: Response
    made_at: float


class _Served:
    """The documents of one environment, as responses."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.others: dict[Dialect, _Responses] = {}
        self.fetching: dict[Dialect, SharedResult[_Responses | None]] = {}
        self.pulling: SharedResult[None] | None = None
        self._snapshot: object = None  # for which `_main` is
        self._main: _Responses | None = None

    def main(self) -> _Responses | None:
        """Return the responses with the current document, None if there is none yet."""
        snapshot = self.environment.mirror.current
        if snapshot is not self._snapshot and snapshot is not None:
            self._main, self._snapshot = _responses(snapshot.served), snapshot
            self.make_stale()
        return self._main

    def make_stale(self) -> None:
        self.others = {dialect: other._replace(made_at=0.0) for dialect, other in self.others.items()}


class SettingsApi:
    """The endpoints for settings, over the mirrors of the environments."""

    def __init__(
        self,
        environments: Environments,
        *,
        poll_seconds: float,
        wait_seconds: float,
        webhook_tokens: TokenCheck,
        client_address: ClientAddress,
        turns: Turns | None = None,
    ) -> None:
        self._environments = environments
        self._poll_seconds = poll_seconds
        self._wait_seconds = wait_seconds
        self._webhook_tokens = webhook_tokens
        self._client_address = client_address
        self._served: dict[str, _Served] = {}  # by the name of the environment
        self._turns = turns or Turns()

    def settings(self, request: Request) -> Response | Awaitable[Response]:
        return self._respond(request, self._served_of(self._environments.of(request)))

    async def pull(self, request: Request) -> Response:
        """Refresh, then respond. If the refresh fails, respond with the current document.

        Requests during a refresh share it, because the current document may be older than the change that these
        clients were notified of.
        """
        environment = self._environments.of(request)
        await self.refresh(environment)
        served = self._served_of(environment)
        response = self._respond(request, served)
        return response if isinstance(response, Response) else await response

    async def refresh(self, environment: Environment) -> None:
        """Refresh the settings for a client. Callers during a refresh share it."""
        served = self._served_of(environment)
        if served.pulling is None:
            served.pulling = SharedResult(self._refresh_after_pause(served))
        await served.pulling.outcome()

    def webhook(self, request: Request) -> Response | Awaitable[Response]:
        """Refresh the environment whose WEBHOOK_TOKEN is in a header, without a turn: for the vendor or a pipeline."""
        if not self._environments.accept_webhooks:
            is_from_file = self._environments.first.access.is_from_file
            option = "webhook_token of an environment in ENVIRONMENTS_FILE" if is_from_file else "WEBHOOK_TOKEN"
            message = f"Webhooks are disabled on this gateway. Set {option} to enable them."
            return json_error(403, message, code="webhooks_disabled")
        token, address = _token(request).decode("latin-1"), self._client_address(request)
        try:
            environment = self._webhook_tokens.owner(token, address, self._environments.of_webhook)
        except AttemptsError as error:
            return error_response(error)
        if environment is None:
            return json_error(401, "The token does not match WEBHOOK_TOKEN.")
        return _refreshed(self._served_of(environment))

    def _served_of(self, environment: Environment) -> _Served:
        served = self._served.get(environment.access.name)
        if served is None or served.environment is not environment:
            known = self._environments.all
            self._served = {name: one for name, one in self._served.items() if one.environment in known}
            served = self._served[environment.access.name] = _Served(environment)
        return served

    def _respond(self, request: Request, served: _Served) -> Response | Awaitable[Response]:
        main = served.main()
        if main is None:
            return self._settings_when_loaded(request, served)
        if request.query:
            dialect, fetch = _dialect(request.query), served.environment.documents.fetch_dialect
            is_pinned = served.environment.mirror.pinning.pin is not None  # of which there is no other dialect
            if dialect != MAIN and fetch is not None and not is_pinned:
                return self._settings_in(dialect, fetch, request, served)
        return _choose(request, main)

    async def _refresh_after_pause(self, served: _Served) -> None:
        try:
            wait_seconds = self._turns.take(name=served.environment.access.name)
            if wait_seconds is not None:  # otherwise many workers wait, and the current document has to do
                await asyncio.sleep(wait_seconds)
                await _refresh(served, "pull")
        finally:
            served.pulling = None

    async def _settings_when_loaded(self, request: Request, served: _Served) -> Response:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await served.environment.mirror.loaded.wait()
        except TimeoutError:
            raise NotLoadedError from None
        response = self._respond(request, served)
        return response if isinstance(response, Response) else await response

    async def _settings_in(self, dialect: Dialect, fetch: FetchDialect, request: Request, served: _Served) -> Response:
        known = served.others.get(dialect)
        if known is None or time.monotonic() - known.made_at > self._poll_seconds:
            if dialect not in served.fetching:
                served.fetching[dialect] = SharedResult(self._fetch(dialect, fetch, served))
            known = await served.fetching[dialect].outcome()
        responses = known or served.main()
        if responses is None:
            raise NotLoadedError
        return _choose(request, responses)

    async def _fetch(self, dialect: Dialect, fetch: FetchDialect, served: _Served) -> _Responses | None:
        """Return the document in another dialect. If upstream fails, return the last one, or None."""
        try:
            is_known = dialect in served.others
            wait_seconds = self._turns.take(name=served.environment.access.name) if is_known else 0.0
            if wait_seconds is not None:
                await asyncio.sleep(wait_seconds)
                document = await fetch(dialect)
                if prepared := await asyncio.to_thread(_prepare_unchecked, document):
                    served.others[dialect] = _responses(prepared)
        except UpstreamError:
            pass
        finally:
            del served.fetching[dialect]
        return served.others.get(dialect)


async def _refreshed(served: _Served) -> Response:
    refreshed = await _refresh(served, "webhook")
    return Response(200, b'{"refreshed":true}' if refreshed else b'{"refreshed":false}')


async def _refresh(served: _Served, cause: str) -> bool:
    served.make_stale()
    return await served.environment.mirror.pull(served.environment.documents.pull, cause)


def _responses(document: SettingsDocument) -> _Responses:
    headers = [(b"ETag", document.etag), (b"Vary", b"Accept-Encoding")]
    return _Responses(
        document.etag,
        Response(200, document.body, headers=headers),
        Response(200, document.gzip, headers=[*headers, (b"Content-Encoding", b"gzip")]),
        Response(304, headers=headers),
        time.monotonic(),
    )


def _choose(request: Request, responses: _Responses) -> Response:
    known = request.list_header(b"if-none-match")
    if known == b"*" or responses.etag in known:
        return responses.not_modified
    if accepts_gzip(request.list_header(b"accept-encoding").decode("latin-1")):
        return responses.compressed
    return responses.plain


def _dialect(query: bytes) -> Dialect:
    version = query_text(query, b"api-version")
    platform = query_text(query, b"platform")
    return Dialect(
        version if version in API_VERSIONS else MAIN.api_version, platform if platform in PLATFORMS else MAIN.platform
    )


def _prepare_unchecked(document: bytes) -> SettingsDocument | None:
    """Prepare a document at a slow pace, without compiling it. Return None if it is not a settings document."""
    yield_point = throttled()
    try:
        fields = parse_outline(document, yield_point)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict) or not fields.keys() >= {"version", "accountId", "features", "campaigns"}:
        return None
    prepared = prepare_document(document, fields, yield_point)
    empty_gradually(fields, yield_point)
    return prepared


def _token(request: Request) -> bytes:
    for name in TOKEN_HEADERS:
        if (token := request.header(name)) is not None:
            return token
    return (request.header(b"authorization") or b"").removeprefix(b"Bearer ")
