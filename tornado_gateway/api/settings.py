"""The settings document for SDKs: v2-settings, v2-pull, and the webhook after a change (wire contract A.1).

SDKs compare whole documents, so an unchanged document has the same bytes every time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import orjson

from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import AttemptsError, NotLoadedError, UpstreamError
from tornado_gateway.http.fields import ClientAddress, accepts_gzip, query_text
from tornado_gateway.http.messages import Request, Response, json_error
from tornado_gateway.settings.documents import SettingsDocument, prepare_document
from tornado_gateway.settings.incremental_json import parse
from tornado_gateway.settings.mirror import Fetch, Snapshot
from tornado_gateway.settings.pacing import empty_gradually, throttled
from tornado_gateway.telemetry.attempts import TokenCheck
from tornado_gateway.telemetry.turns import TURN_SECONDS, Turns
from tornado_gateway.upstream.client import Dialect

FetchDialect = Callable[[Dialect], Awaitable[bytes]]

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


class SettingsApi:
    """The endpoints for settings, over the mirror of the environment.

    `fetch_dialect` requests another dialect than the mirror's from upstream, `pull` forces a refresh there. A gateway
    without upstream has one document for all dialects.
    """

    def __init__(
        self,
        environments: Environments,
        pull: Fetch,
        fetch_dialect: FetchDialect | None,
        *,
        poll_seconds: float,
        wait_seconds: float,
        webhook_token: TokenCheck | None,
        client_address: ClientAddress,
        turns: Turns | None = None,
    ) -> None:
        self._environments = environments
        self._pull = pull
        self._fetch_dialect = fetch_dialect
        self._poll_seconds = poll_seconds
        self._wait_seconds = wait_seconds
        self._webhook_token = webhook_token
        self._client_address = client_address
        self._main: _Responses | None = None
        self._others: dict[Dialect, _Responses] = {}
        self._fetching: dict[Dialect, asyncio.Task[_Responses | None]] = {}
        self._pulling: asyncio.Task[None] | None = None
        self._turns = turns or Turns()

    def settings_changed(self, snapshot: Snapshot) -> None:
        self._main = _responses(snapshot.served)
        self._make_stale()

    def settings(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        if environment.mirror.current is None or self._main is None:
            return self._settings_when_loaded(request)
        if request.query:
            dialect = _dialect(request.query)
            if dialect != MAIN and self._fetch_dialect is not None:
                return self._settings_in(dialect, self._fetch_dialect, request)
        return _choose(request, self._main)

    async def pull(self, request: Request) -> Response:
        """Refresh, then respond. If the refresh fails, respond with the current document.

        Requests during a refresh share it, because the current document may be older than the change that these
        clients were notified of.
        """
        self._environments.of(request)
        if self._pulling is None:
            self._pulling = asyncio.create_task(self._refresh_after_pause())
        await asyncio.shield(self._pulling)
        response = self.settings(request)
        return response if isinstance(response, Response) else await response

    async def webhook(self, request: Request) -> Response:
        """Refresh after a change, without a turn, for the vendor or a pipeline. Requires WEBHOOK_TOKEN in a header."""
        if self._webhook_token is None:
            return json_error(403, "Webhooks are disabled on this gateway. Set WEBHOOK_TOKEN to enable them.")
        try:
            is_right = self._webhook_token.is_right(_token(request).decode("latin-1"), self._client_address(request))
        except AttemptsError as error:
            return json_error(error.status, str(error), [(b"Retry-After", b"%d" % error.retry_after_seconds)])
        if not is_right:
            return json_error(401, "The token does not match WEBHOOK_TOKEN.")
        refreshed = await self._refresh()
        return Response(200, orjson.dumps({"refreshed": refreshed}))

    async def _refresh_after_pause(self) -> None:
        try:
            wait_seconds = self._turns.take()
            if wait_seconds is not None:  # otherwise many workers wait, and the current document has to do
                await asyncio.sleep(wait_seconds)
                await self._refresh()
        finally:
            self._pulling = None

    async def _refresh(self) -> bool:
        self._make_stale()
        return await self._environments.default.mirror.pull(self._pull)

    def _make_stale(self) -> None:
        self._others = {dialect: other._replace(made_at=0.0) for dialect, other in self._others.items()}

    async def _settings_when_loaded(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._environments.default.mirror.loaded.wait()
        except TimeoutError:
            raise NotLoadedError from None
        response = self.settings(request)
        return response if isinstance(response, Response) else await response

    async def _settings_in(self, dialect: Dialect, fetch: FetchDialect, request: Request) -> Response:
        known = self._others.get(dialect)
        if known is None or time.monotonic() - known.made_at > self._poll_seconds:
            if dialect not in self._fetching:
                self._fetching[dialect] = asyncio.create_task(self._fetch(dialect, fetch))
            known = await asyncio.shield(self._fetching[dialect])
        responses = known or self._main
        if responses is None:
            raise NotLoadedError
        return _choose(request, responses)

    async def _fetch(self, dialect: Dialect, fetch: FetchDialect) -> _Responses | None:
        """Return the document in another dialect. If upstream fails, return the last one, or None."""
        try:
            wait_seconds = self._turns.take() if dialect in self._others else 0.0
            if wait_seconds is not None:
                await asyncio.sleep(wait_seconds)
                document = await fetch(dialect)
                if prepared := await asyncio.to_thread(_prepare_unchecked, document):
                    self._others[dialect] = _responses(prepared)
        except UpstreamError:
            pass
        finally:
            del self._fetching[dialect]
        return self._others.get(dialect)


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
        fields = parse(document, yield_point)
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
