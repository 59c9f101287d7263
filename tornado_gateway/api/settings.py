"""The settings document for SDKs: v2-settings, v2-pull, and the webhook that says that it changed (wire contract A.1).

SDKs compare whole documents, so an unchanged document is the same bytes every time.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable

import orjson

from tornado_gateway.errors import UpstreamError
from tornado_gateway.http.fields import AccountCheck, query_text
from tornado_gateway.http.messages import Request, Response, json_error
from tornado_gateway.settings.documents import Published, publish
from tornado_gateway.settings.mirror import Fetch, SettingsMirror, Snapshot
from tornado_gateway.settings.pacing import parse, pauses, take_apart
from tornado_gateway.upstream.client import Dialect

FetchDialect = Callable[[Dialect], Awaitable[bytes]]

MAIN = Dialect()
API_VERSIONS = frozenset({"1", "3"})
PLATFORMS = frozenset({"server", "client"})
PULL_PAUSE_SECONDS = 1.0  # clients cannot make upstream be asked more often than this
TOKEN_HEADERS = (b"x-webhook-token", b"x-vwo-auth")

NOT_LOADED = json_error(503, "no settings have been loaded yet, see /ready")


class Publisher:
    """`fetch_dialect` asks upstream for another dialect than the one that decisions are made from, `pull` forces a
    refresh there. A gateway without upstream has only one document for all.
    """

    def __init__(
        self,
        mirror: SettingsMirror,
        pull: Fetch,
        fetch_dialect: FetchDialect | None,
        *,
        poll_seconds: float,
        wait_seconds: float,
        webhook_token: str | None,
    ) -> None:
        self._mirror = mirror
        self._pull = pull
        self._fetch_dialect = fetch_dialect
        self._poll_seconds = poll_seconds
        self._wait_seconds = wait_seconds
        self._webhook_token = webhook_token
        self._check_account = AccountCheck([(b"a", b"i"), (b"accountId", b"sdkKey")])
        self._main: Published | None = None
        self._others: dict[Dialect, Published] = {}
        self._fetching: dict[Dialect, asyncio.Task[Published | None]] = {}
        self._pulling: asyncio.Task[None] | None = None
        self._pulled_at = -PULL_PAUSE_SECONDS

    def settings_changed(self, snapshot: Snapshot) -> None:
        self._main = snapshot.published
        self._check_account.forget()
        self._make_stale()

    def settings(self, request: Request) -> Response | Awaitable[Response]:
        snapshot = self._mirror.current
        if snapshot is None or self._main is None:
            return self._settings_when_loaded(request)
        if request.query:
            self._check_account_in(request, snapshot)
            dialect = _dialect(request.query)
            if dialect != MAIN and self._fetch_dialect is not None:
                return self._settings_in(dialect, self._fetch_dialect, request)
        return _answer(request, self._main)

    async def pull(self, request: Request) -> Response:
        """Refresh, then answer; a refresh that fails leaves the document that is there.

        Who asks while a refresh is due or under way shares it: an answer without it could be the document from before
        the change that all these clients were told of.
        """
        if self._mirror.current is not None:
            self._check_account_in(request, self._mirror.current)
        if self._pulling is None:
            self._pulling = asyncio.create_task(self._refresh_after_pause())
        await asyncio.shield(self._pulling)
        answer = self.settings(request)
        return answer if isinstance(answer, Response) else await answer

    async def webhook(self, request: Request) -> Response:
        """The vendor, or a pipeline, says that settings have changed. Takes WEBHOOK_TOKEN in a header."""
        if self._webhook_token is None:
            return json_error(403, "webhooks are off at this gateway: set WEBHOOK_TOKEN")
        if not hmac.compare_digest(_token(request), self._webhook_token.encode()):
            return json_error(401, "the token is not the one in WEBHOOK_TOKEN")
        refreshed = await self._refresh()
        return Response(200, orjson.dumps({"refreshed": refreshed}))

    async def _refresh_after_pause(self) -> None:
        try:
            await asyncio.sleep(self._pulled_at + PULL_PAUSE_SECONDS - time.monotonic())
            await self._refresh()
        finally:
            self._pulling = None

    async def _refresh(self) -> bool:
        self._pulled_at = time.monotonic()
        self._make_stale()
        return await self._mirror.refresh(self._pull)

    def _make_stale(self) -> None:
        self._others = {dialect: other._replace(made_at=0.0) for dialect, other in self._others.items()}

    def _check_account_in(self, request: Request, snapshot: Snapshot) -> None:
        self._check_account(request.query, snapshot.settings.account_id, snapshot.settings.sdk_key)

    async def _settings_when_loaded(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._mirror.loaded.wait()
        except TimeoutError:
            return NOT_LOADED
        answer = self.settings(request)
        return answer if isinstance(answer, Response) else await answer

    async def _settings_in(self, dialect: Dialect, fetch: FetchDialect, request: Request) -> Response:
        known = self._others.get(dialect)
        if known is None or time.monotonic() - known.made_at > self._poll_seconds:
            if dialect not in self._fetching:
                self._fetching[dialect] = asyncio.create_task(self._fetch(dialect, fetch))
            known = await asyncio.shield(self._fetching[dialect])
        published = known or self._main
        return _answer(request, published) if published is not None else NOT_LOADED

    async def _fetch(self, dialect: Dialect, fetch: FetchDialect) -> Published | None:
        """The document in another dialect. When upstream fails: the last one, or None."""
        try:
            document = await fetch(dialect)
            if published := await asyncio.to_thread(_publish_settings, document):
                self._others[dialect] = published
        except UpstreamError:
            pass
        finally:
            del self._fetching[dialect]
        return self._others.get(dialect)


def _answer(request: Request, published: Published) -> Response:
    known = request.list_header(b"if-none-match")
    if known == b"*" or published.etag in known:
        return published.not_modified
    if b"gzip" in request.list_header(b"accept-encoding"):
        return published.compressed
    return published.plain


def _dialect(query: bytes) -> Dialect:
    version = query_text(query, b"api-version")
    platform = query_text(query, b"platform")
    return Dialect(
        version if version in API_VERSIONS else MAIN.api_version, platform if platform in PLATFORMS else MAIN.platform
    )


def _publish_settings(document: bytes) -> Published | None:
    """In turns with the loop; None for what is not a settings document."""
    breathe = pauses()
    try:
        fields = parse(document, breathe)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict) or not fields.keys() >= {"version", "accountId", "features", "campaigns"}:
        return None
    published = publish(document, fields, breathe)
    take_apart(fields, breathe)
    return published


def _token(request: Request) -> bytes:
    for name in TOKEN_HEADERS:
        if (token := request.header(name)) is not None:
            return token
    return (request.header(b"authorization") or b"").removeprefix(b"Bearer ")
