"""The vendor's service, as an async client: settings, events, list checks.

Every method raises `UpstreamError` unless the response is 2xx.
"""

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlencode

from tornado_gateway.errors import UpstreamError
from tornado_gateway.store.interfaces import NO_IDENTITY, Identity
from tornado_gateway.upstream.curl import CurlError, CurlPool, CurlResponse

MAX_EVENT_REQUESTS = 16  # concurrent requests of one worker: as many as the flusher starts
MAX_SETTINGS_REQUESTS = 4
MAX_LOOKUPS = 32
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
JSON_HEADERS = {"Content-Type": "application/json"}


class Dialect(NamedTuple):
    """The kind of settings document, by the two query parameters with which clients select it (wire contract B.1)."""

    api_version: str = "1"
    platform: str = "server"


class Upstream:
    """One account at VWO.

    `url` serves settings and lookups, `collect_url` receives events. `timeout_seconds` bounds connecting and each whole
    request. `collection_prefix` is put in front of event paths. It follows the settings, and so does the account of a
    gateway that reads its settings from a file.
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
        self.on_response: Callable[[str, int], None] = lambda what, status: None  # status 0: there was none
        self._url = url.rstrip("/")
        self._collect_url = collect_url.rstrip("/")
        self.account_id = account_id
        self.sdk_key = sdk_key
        self._sdk = {"sn": sdk_name, "sv": sdk_version}
        agent = f"{sdk_name}/{sdk_version}"
        self._events = CurlPool(user_agent=agent, timeout_seconds=timeout_seconds, max_handles=MAX_EVENT_REQUESTS)
        self._settings, self._lookups = (
            CurlPool(
                user_agent=agent,
                timeout_seconds=timeout_seconds,
                max_handles=max_handles,
                max_response_bytes=MAX_DOCUMENT_BYTES,
                accepts_compression=True,
            )
            for max_handles in (MAX_SETTINGS_REQUESTS, MAX_LOOKUPS)
        )
        self._batch_target = ("", "", ""), ""

    def close(self) -> None:
        for pool in (self._events, self._settings, self._lookups):
            pool.close()

    async def fetch_settings(self, dialect: Dialect, *, pull: bool = False) -> bytes:
        """Return the settings document. `pull` forces a refresh, as the SDKs do after a webhook."""
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
        return await self._fetch("settings", self._settings, f"{self._url}/server-side/{path}?{urlencode(query)}")

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        """Post event documents, joined by newlines, as `{"ev":[...]}` (wire contract B.5)."""
        account_id, sdk_key = (self.account_id, self.sdk_key) if identity == NO_IDENTITY else identity
        account = self.collection_prefix, account_id, sdk_key
        if self._batch_target[0] != account:
            query = urlencode({"a": account_id, "env": sdk_key, **self._sdk})
            self._batch_target = account, f"{self._prefix()}/server-side/batch-events-v2?{query}"
        body = b"".join((b'{"ev":[', documents.replace(b"\n", b","), b"]}"))
        await self._post("events", self._batch_target[1], body, JSON_HEADERS | {"Authorization": sdk_key})

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event with its own query to `/events/t`."""
        await self._post("event", f"{self._prefix()}/events/t?{query}", document, JSON_HEADERS)

    async def check_attribute(self, list_id: str, value: str) -> bool:
        """Return True if the value is in the list (wire contract A.3)."""
        query = urlencode({"attribute": value, "listId": list_id, "accountId": self.account_id, "sdkKey": self.sdk_key})
        body = await self._fetch("list check", self._lookups, f"{self._url}{self._prefix()}/check-attribute?{query}")
        return body.strip() == b"true"

    async def evaluate_event_dsl(self, query: str, body: bytes) -> bytes:
        """Evaluate segments about past events, which only VWO knows."""
        url = f"{self._url}{self._prefix()}/evaluate-event-dsl?{query}"
        return await self._fetch("event segments", self._lookups, url, body)

    def _prefix(self) -> str:
        return f"/{self.collection_prefix}" if self.collection_prefix else ""

    async def _post(self, what: str, target: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post events. The head of the response decides: after a 200, sending them again would only duplicate them."""
        try:
            response = await self._events.request(self._collect_url + target, headers, body)
        except CurlError as error:
            if error.response is None:
                raise self._no_response(what, error) from error
            response = error.response
        self._check(what, response)

    async def _fetch(self, what: str, pool: CurlPool, url: str, body: bytes | None = None) -> bytes:
        try:
            response = await pool.request(url, JSON_HEADERS if body is not None else None, body)
        except CurlError as error:
            raise self._no_response(what, error) from error
        self._check(what, response)
        return response.body

    def _no_response(self, what: str, error: CurlError) -> UpstreamError:
        self.on_response(what, 0)
        return UpstreamError(f"{what}: no response from VWO ({error})", cause=str(error))

    def _check(self, what: str, response: CurlResponse) -> None:
        """Raise unless the request succeeded. The message never contains the URL, because the SDK key is part of it."""
        self.on_response(what, response.status)
        if 200 <= response.status < 300:
            return
        retry_after = response.headers.get("retry-after", "")
        seconds = float(retry_after) if retry_after.isdecimal() else 0.0
        raise UpstreamError(f"{what}: VWO returned {response.status} {response.reason}", response.status, seconds)


class DiscardingSink:
    """Discards the events of a gateway without an account and a collector, such as a trial with the sample settings."""

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        return None

    async def send_event(self, query: str, document: bytes) -> None:
        return None
