"""The vendor's service, as an async client: settings, events, list checks.

Every method raises `UpstreamError` unless the response is 2xx.
"""

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from tornado_gateway.errors import UpstreamError
from tornado_gateway.store.interfaces import NO_IDENTITY, Identity
from tornado_gateway.upstream.curl import CurlError, CurlPool, CurlResponse

MAX_EVENT_REQUESTS = 17  # concurrent requests of one worker: those of the flusher, and one with usage statistics
MAX_SETTINGS_REQUESTS = 4
MAX_LOOKUPS = 32
LONGEST_PATIENCE_SECONDS = 60.0
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
JSON_HEADERS = {"Content-Type": "application/json"}


class Dialect(NamedTuple):
    """The kind of settings document, by the two query parameters with which clients select it (wire contract B.1)."""

    api_version: str = "1"
    platform: str = "server"


class Patience:
    """How long a request with events may make no progress: a request that is given up may arrive twice.

    The time doubles with each time-out, up to LONGEST_PATIENCE_SECONDS. It remains while responses are slow.
    """

    def __init__(self, first_seconds: float) -> None:
        self.seconds = first_seconds
        self._first_seconds = first_seconds

    def timed_out(self, waited_seconds: float) -> None:
        """Note a time-out. Requests that were in flight together count once."""
        longest = max(LONGEST_PATIENCE_SECONDS, self._first_seconds)
        self.seconds = max(self.seconds, min(longest, 2 * waited_seconds))

    def succeeded(self, duration_seconds: float) -> None:
        self.seconds = max(self._first_seconds, min(self.seconds, 3 * duration_seconds))


class Upstream:
    """One account at VWO.

    `url` serves settings and list checks, `collect_url` receives events and evaluates segments about them.
    `timeout_seconds` bounds connecting and each whole request; a request with events is bounded by its progress (see
    `Patience`). `ca_path` as in `CurlPool`. `on_response` is called after each request with its purpose and its status,
    0 if there was no response.
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
        ca_path: Path | None = None,
        on_response: Callable[[str, int], None] = lambda purpose, status: None,
    ) -> None:
        self._url = url.rstrip("/")
        self._collect_url = collect_url.rstrip("/")
        self._account = Identity(account_id, sdk_key)
        self._prefix = ""
        self._lists_prefix = ""
        self._sdk = {"sn": sdk_name, "sv": sdk_version}
        self._on_response = on_response
        agent = f"{sdk_name}/{sdk_version}"
        pool = partial(CurlPool, user_agent=agent, timeout_seconds=timeout_seconds, ca_path=ca_path)
        documents = partial(pool, max_response_bytes=MAX_DOCUMENT_BYTES, accepts_compression=True)
        self._events = pool(max_handles=MAX_EVENT_REQUESTS)
        self._settings = documents(max_handles=MAX_SETTINGS_REQUESTS)
        self._lookups = documents(max_handles=MAX_LOOKUPS)
        self._timeout_seconds = timeout_seconds
        self._patience = Patience(timeout_seconds)
        self._batch_target = ("", NO_IDENTITY), ""

    def use_account(self, account: Identity) -> None:
        """Send requests for this account and key from now on."""
        self._account = account

    def use_collection_prefix(self, prefix: str | None) -> None:
        """Put this in front of the paths of events and event segments from now on. It follows the settings."""
        self._prefix = f"/{prefix}" if prefix else ""
        self._lists_prefix = self._lists_prefix and self._prefix

    def close(self) -> None:
        for pool in (self._events, self._settings, self._lookups):
            pool.close()

    async def fetch_settings(self, dialect: Dialect, *, pull: bool = False) -> bytes:
        """Return the settings document. `pull` forces a refresh, as the SDKs do after a webhook."""
        query = {
            "i": self._account.sdk_key,
            "r": random.random(),
            "a": self._account.account_id,
            "platform": dialect.platform,
            **self._sdk,
            "api-version": dialect.api_version,
            "s": "prod",
        }
        path = "v2-pull" if pull else "v2-settings"
        return await self._fetch("settings", self._settings, f"{self._url}/server-side/{path}?{urlencode(query)}")

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        """Post event documents, joined by newlines, as `{"ev":[...]}` (wire contract B.5)."""
        account = self._account if identity == NO_IDENTITY else identity
        if self._batch_target[0] != (self._prefix, account):
            query = urlencode({"a": account.account_id, "env": account.sdk_key, **self._sdk})
            self._batch_target = (self._prefix, account), f"{self._prefix}/server-side/batch-events-v2?{query}"
        body = b"".join((b'{"ev":[', documents.replace(b"\n", b","), b"]}"))
        headers = JSON_HEADERS | {"Authorization": account.sdk_key}
        await self._post("events", self._batch_target[1], body, headers, self._patience)

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event with its own query to `/events/t`. Its time-outs change nothing for batches."""
        patience = Patience(self._timeout_seconds)
        await self._post("event", f"{self._prefix}/events/t?{query}", document, JSON_HEADERS, patience)

    async def check_attribute(self, list_id: str, value: str) -> bool:
        """Return True if the value is in the list (wire contract A.3).

        SDKs ask without the collection prefix (wire contract B.2). If that is not found, it is tried with it, and the
        form that was found is used from then on.
        """
        account_id, sdk_key = self._account
        query = urlencode({"attribute": value, "listId": list_id, "accountId": account_id, "sdkKey": sdk_key})
        try:
            return await self._check_list(self._lists_prefix, query)
        except UpstreamError as error:
            if error.status != 404 or not self._prefix:
                raise
        other = "" if self._lists_prefix else self._prefix
        is_member = await self._check_list(other, query)
        self._lists_prefix = other
        return is_member

    async def _check_list(self, prefix: str, query: str) -> bool:
        body = await self._fetch("list check", self._lookups, f"{self._url}{prefix}/check-attribute?{query}")
        return body.strip() == b"true"

    async def evaluate_event_dsl(self, query: str, body: bytes) -> bytes:
        """Evaluate segments about past events, which only VWO knows (wire contract B.2)."""
        url = f"{self._collect_url}{self._prefix}/evaluate-event-dsl?{query}"
        return await self._fetch("event segments", self._lookups, url, body)

    async def _post(
        self, purpose: str, target: str, body: bytes, headers: Mapping[str, str], patience: Patience
    ) -> None:
        """Post events. Any 2xx is a success, even without a complete body: sending again would only cause duplicates.

        A web page is none: a block page or a sign-in portal between the gateway and VWO.
        """
        seconds, began = patience.seconds, time.monotonic()
        try:
            response = await self._events.request(self._collect_url + target, headers, body, patience_seconds=seconds)
        except CurlError as error:
            if error.is_timeout:
                patience.timed_out(seconds)
            if error.response is None:
                raise self._no_response(purpose, error) from error
            response = error.response
        self._check(purpose, response)
        if _is_web_page(response):
            raise UpstreamError(f"{purpose}: VWO returned a web page ({response.status})", response.status)
        patience.succeeded(time.monotonic() - began)

    async def _fetch(self, purpose: str, pool: CurlPool, url: str, body: bytes | None = None) -> bytes:
        try:
            response = await pool.request(url, JSON_HEADERS if body is not None else None, body)
        except CurlError as error:
            raise self._no_response(purpose, error) from error
        self._check(purpose, response)
        return response.body

    def _no_response(self, purpose: str, error: CurlError) -> UpstreamError:
        self._on_response(purpose, 0)
        return UpstreamError(
            f"{purpose}: no response from VWO ({error})", cause=str(error), is_timeout=error.is_timeout
        )

    def _check(self, purpose: str, response: CurlResponse) -> None:
        """Raise unless the request succeeded. The message never contains the URL, because the SDK key is part of it."""
        self._on_response(purpose, response.status)
        if 200 <= response.status < 300:
            return
        message = f"{purpose}: VWO returned {response.status} {response.reason}"
        raise UpstreamError(message, response.status, _retry_after_seconds(response.headers))


def _retry_after_seconds(headers: Mapping[str, str]) -> float:
    """Return the pause that a response requests, as seconds or as a date by the server's clock (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    until = _timestamp(value)
    now = _timestamp(headers.get("date", "")) or time.time()
    return max(0.0, until - now) if until else 0.0


def _timestamp(date: str) -> float:
    """Return an HTTP date in unix seconds, 0 if it is not valid."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _is_web_page(response: CurlResponse) -> bool:
    """Return whether the body is HTML. No body and any JSON are none."""
    return response.body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


class DiscardingSink:
    """Discards the events of a gateway without an account and COLLECT_URL, such as a trial with the sample settings."""

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        return None

    async def send_event(self, query: str, document: bytes) -> None:
        return None
