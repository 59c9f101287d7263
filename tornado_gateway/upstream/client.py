"""The vendor's service, as an async client: settings, events, list checks.

The only module that knows curl, which does everything but sending events: there are too many of them for it, so that
they have a `Sender`. Every method raises `UpstreamError` unless the response is 2xx.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from tornado_gateway.errors import UpstreamError
from tornado_gateway.store.interfaces import NO_IDENTITY, Identity
from tornado_gateway.upstream.sender import Sender

MAX_CLIENTS = 32
NO_ANSWER = 599  # tornado's code
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
JSON_HEADERS = {"Content-Type": "application/json"}


class Dialect(NamedTuple):
    """Which settings document is wanted: clients ask for one by these two query parameters (wire contract B.1)."""

    api_version: str = "1"
    platform: str = "server"


class Upstream:
    """One account at the vendor.

    `url` serves settings and helpers, `collect_url` takes events; `timeout_seconds` bounds connecting and each whole
    request. `collection_prefix` is put in front of event paths; it follows the settings, and so does the account of a
    gateway that has its settings from a file.
    """

    def __init__(
        self,
        url: str,
        collect_url: str,
        account_id: str,
        sdk_key: str,
        *,
        sdk_name: str,
        sdk_version: str,
        timeout_seconds: float,
    ) -> None:
        self.collection_prefix = ""
        self.on_answer: Callable[[str, int], None] = lambda what, status: None  # status 0: there was none
        self._url = url.rstrip("/")
        self._collect_url = collect_url.rstrip("/")
        self.account_id = account_id
        self.sdk_key = sdk_key
        self._sdk = {"sn": sdk_name, "sv": sdk_version}
        self._timeout_seconds = timeout_seconds
        AsyncHTTPClient.configure("tornado.curl_httpclient.CurlAsyncHTTPClient")
        self._client = AsyncHTTPClient(force_instance=True, max_clients=MAX_CLIENTS)
        self._sender: Sender | None = None
        if not _is_behind_proxy(self._collect_url):
            user_agent = f"{sdk_name}/{sdk_version}"
            self._sender = Sender(self._collect_url, user_agent=user_agent, timeout_seconds=timeout_seconds)
        self._batch_target = ("", "", ""), ""

    def close(self) -> None:
        self._client.close()
        if self._sender is not None:
            self._sender.close()

    async def fetch_settings(self, dialect: Dialect, *, pull: bool = False) -> bytes:
        """The settings document as bytes. `pull` asks for a forced refresh, as the SDKs do after a webhook."""
        query = {
            "i": self.sdk_key,
            "r": random.random(),
            "a": self.account_id,
            "platform": dialect.platform,
            **self._sdk,
            "api-version": dialect.api_version,
            "s": "prod",
        }
        path = "v2-pull" if pull else "v2-settings"
        return await self._fetch("settings", f"{self._url}/server-side/{path}?{urlencode(query)}")

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        """Post event documents, joined by newlines, as `{"ev":[...]}` (wire contract B.5)."""
        account_id, sdk_key = (self.account_id, self.sdk_key) if identity == NO_IDENTITY else identity
        account = self.collection_prefix, account_id, sdk_key
        if self._batch_target[0] != account:
            query = urlencode({"a": account_id, "env": sdk_key, **self._sdk})
            self._batch_target = account, f"{self._prefix()}/server-side/batch-events-v2?{query}"
        body = (b'{"ev":[', documents.replace(b"\n", b","), b"]}")
        await self._post("events", self._batch_target[1], body, JSON_HEADERS | {"Authorization": sdk_key})

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event with its own query to `/events/t`."""
        await self._post("event", f"{self._prefix()}/events/t?{query}", (document,), JSON_HEADERS)

    async def check_attribute(self, list_id: str, value: str) -> bool:
        """Whether the value is in the list (wire contract A.3)."""
        query = urlencode({"attribute": value, "listId": list_id, "accountId": self.account_id, "sdkKey": self.sdk_key})
        answer = await self._fetch("list check", f"{self._url}{self._prefix()}/check-attribute?{query}")
        return answer.strip() == b"true"

    async def evaluate_event_dsl(self, query: str, body: bytes) -> bytes:
        """Segments about past events, which only the vendor knows."""
        return await self._fetch("event segments", f"{self._url}{self._prefix()}/evaluate-event-dsl?{query}", body)

    def _prefix(self) -> str:
        return f"/{self.collection_prefix}" if self.collection_prefix else ""

    async def _post(self, what: str, target: str, body: Sequence[bytes], headers: Mapping[str, str]) -> None:
        if self._sender is None:
            await self._fetch(what, self._collect_url + target, b"".join(body), headers)
            return
        try:
            answer = await self._sender.post(target, headers, body)
        except OSError as error:
            self.on_answer(what, 0)
            raise UpstreamError(f"{what}: {error}") from error
        self.on_answer(what, answer.status)
        _check(what, answer.status, answer.reason, answer.retry_after)

    async def _fetch(
        self, what: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        request = HTTPRequest(
            url,
            method="GET" if body is None else "POST",
            headers=dict(headers or JSON_HEADERS) if body is not None else None,
            body=body,
            connect_timeout=self._timeout_seconds,
            request_timeout=self._timeout_seconds,
            follow_redirects=body is None,
            decompress_response=True,
        )
        try:
            response = await self._client.fetch(request, raise_error=False)
        except (HTTPClientError, OSError) as error:
            self.on_answer(what, 0)
            cause = _cause(error)
            raise UpstreamError(f"{what}: {cause}", cause=cause) from error
        if response.code == NO_ANSWER:
            self.on_answer(what, 0)
            cause = _cause(response.error)
            raise UpstreamError(f"{what}: no answer from upstream ({cause})", cause=cause)
        self.on_answer(what, response.code)
        _check(what, response.code, response.reason, response.headers.get("Retry-After", ""))
        return response.body


class Nowhere:
    """Takes the events of a gateway that has neither an account nor a collector: a trial with the sample settings."""

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        return None

    async def send_event(self, query: str, document: bytes) -> None:
        return None


def _cause(error: BaseException | None) -> str:
    """The reason alone: "HTTP 599" in front of it is Tornado's own."""
    return str(error.message if isinstance(error, HTTPClientError) else error)


def _check(what: str, status: int, reason: str, retry_after: str) -> None:
    """Raise unless the request succeeded. The message never holds the URL: that has the SDK key in it."""
    if not 200 <= status < 300:
        seconds = float(retry_after) if retry_after.isdecimal() else 0.0
        raise UpstreamError(f"{what}: upstream answered {status} {reason}", status, seconds)


def _is_behind_proxy(url: str) -> bool:
    """Whether a proxy is between here and there, by the environment (https_proxy, all_proxy, no_proxy and the like).

    Curl knows how to talk to proxies. It decides by the same variables again, so that a needless yes only costs time.
    """
    parts, proxies = urlsplit(url), getproxies()
    is_meant = parts.scheme in proxies or "all" in proxies
    return is_meant and not proxy_bypass(parts.hostname or "")
