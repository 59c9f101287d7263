"""The vendor's service, as an async client: settings, events, list checks.

All environments of a worker share its connections (`Connections`).

Every method raises `UpstreamError` unless the response is 2xx.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from tornado_gateway.errors import UpstreamError, describe_vwo
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.store.interfaces import NO_IDENTITY, Identity
from tornado_gateway.tasks import SharedLimit
from tornado_gateway.upstream.curl import CurlError, CurlPool, CurlResponse
from tornado_gateway.upstream.keys import KEY_STATUSES, Keys

logger = logging.getLogger(__name__)

# Concurrent requests of one worker: as many as the flushers start together, and one with usage statistics.
MAX_EVENT_REQUESTS = 17
MAX_SETTINGS_REQUESTS = 8
MAX_LOOKUPS = 32
LONGEST_PATIENCE_SECONDS = 60.0
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
KEPT_BYTES = 1000  # of the response to a failed request, for dead letters
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


class Connections:
    """The connections of one worker to VWO. Each purpose has its own, with a limit that environments share fairly."""

    def __init__(self, sdk_name: str, sdk_version: str, timeout_seconds: float, ca_path: Path | None = None) -> None:
        self.timeout_seconds = timeout_seconds
        agent = f"{sdk_name}/{sdk_version}"
        pool = partial(CurlPool, user_agent=agent, timeout_seconds=timeout_seconds, ca_path=ca_path)
        documents = partial(pool, max_response_bytes=MAX_DOCUMENT_BYTES, accepts_compression=True)
        self.events = pool(max_handles=MAX_EVENT_REQUESTS)
        self.settings = documents(max_handles=MAX_SETTINGS_REQUESTS)
        self.lookups = documents(max_handles=MAX_LOOKUPS)
        self.settings_limit = SharedLimit(MAX_SETTINGS_REQUESTS)
        self.lookups_limit = SharedLimit(MAX_LOOKUPS)

    def close(self) -> None:
        for pool in (self.events, self.settings, self.lookups):
            pool.close()


class Upstream:
    """One account at VWO.

    `url` serves settings and list checks, `collect_url` receives events and evaluates segments about them.
    `timeout_seconds` bounds connecting and each whole request; a request with events is bounded by its progress (see
    `Patience`). `on_response` is called after each request with its purpose and its status, 0 if there was no response.
    Without `connections` it has its own, which verify certificates as `ca_path` says (see `CurlPool`).
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
        connections: Connections | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._collect_url = collect_url.rstrip("/")
        self._account = Identity(account_id, sdk_key)
        self._prefix = ""
        self._lists_prefix = ""
        self._sdk = {"sn": sdk_name, "sv": sdk_version}
        self._on_response = on_response
        self.keys = Keys([sdk_key])
        self._owns_connections = connections is None
        self._connections = connections or Connections(sdk_name, sdk_version, timeout_seconds, ca_path)
        self._settings_share = self._connections.settings_limit.share()
        self._lookups_share = self._connections.lookups_limit.share()
        self._log = ThrottledLog(logger, 3600)
        self._patience = Patience(timeout_seconds)
        self._batch_target = ("", NO_IDENTITY), ""

    def use_account(self, account: Identity) -> None:
        """Send requests for this account and key from now on. The key may be one of `keys`, which stay then."""
        self._account = account
        if account.sdk_key not in self.keys.all:
            self.keys.replace([account.sdk_key])

    def use_urls(self, url: str, collect_url: str) -> None:
        """Send requests to these from now on."""
        self._url = url.rstrip("/")
        self._collect_url = collect_url.rstrip("/")

    def use_collection_prefix(self, prefix: str | None) -> None:
        """Put this in front of the paths of events and event segments from now on. It follows the settings."""
        self._prefix = f"/{prefix}" if prefix else ""
        self._lists_prefix = self._lists_prefix and self._prefix

    def close(self) -> None:
        self._settings_share.close()
        self._lookups_share.close()
        if self._owns_connections:
            self._connections.close()

    async def fetch_settings(self, dialect: Dialect, *, pull: bool = False) -> bytes:
        """Return the settings document. `pull` forces a refresh, as the SDKs do after a webhook.

        While VWO rejects the current key, the previous ones are tried in order.
        """
        async with self._settings_share:
            return await self._fetch_with_keys(self.keys.to_try(rejected_ones=pull), dialect, pull)

    async def _fetch_with_keys(self, keys: Sequence[str], dialect: Dialect, pull: bool) -> bytes:
        failure: UpstreamError | None = None
        for key in keys:
            try:
                document = await self._fetch_document(key, dialect, pull)
            except UpstreamError as error:
                if error.status not in KEY_STATUSES:
                    raise
                self.keys.reject(key, error)
                failure = failure or error
                continue
            self.keys.accept(key)
            if failure is not None:
                self._log.warning("key", "%s. Settings were fetched with a previous SDK key", failure)
            return document
        raise failure or UpstreamError("settings: there is no SDK key")

    async def _fetch_document(self, key: str, dialect: Dialect, pull: bool) -> bytes:
        query = {
            "i": key,
            "r": random.random(),
            "a": self._account.account_id,
            "platform": dialect.platform,
            **self._sdk,
            "api-version": dialect.api_version,
            "s": "prod",
        }
        path = "v2-pull" if pull else "v2-settings"
        url = f"{self._url}/server-side/{path}?{urlencode(query)}"
        return await self._fetch("settings", self._connections.settings, url)

    async def send_batch(self, documents: bytes, identity: Identity = NO_IDENTITY) -> None:
        """Post event documents, joined by newlines, as `{"ev":[...]}` (wire contract B.5).

        If the key is a previous one that VWO has withdrawn, the one in use replaces it: the environment is the same.
        """
        account = self._account if identity == NO_IDENTITY else identity
        body = b"".join((b'{"ev":[', documents.replace(b"\n", b","), b"]}"))
        try:
            await self._post_batch(account, body)
        except UpstreamError as error:
            if error.status not in KEY_STATUSES or not self._is_replaced(account):
                raise
            await self._post_batch(self._account, body)

    def _is_replaced(self, account: Identity) -> bool:
        own = self._account
        return account != own and account.account_id == own.account_id and account.sdk_key in self.keys.all

    async def _post_batch(self, account: Identity, body: bytes) -> None:
        if self._batch_target[0] != (self._prefix, account):
            query = urlencode({"a": account.account_id, "env": account.sdk_key, **self._sdk})
            self._batch_target = (self._prefix, account), f"{self._prefix}/server-side/batch-events-v2?{query}"
        headers = JSON_HEADERS | {"Authorization": account.sdk_key}
        await self._post("events", self._batch_target[1], body, headers, self._patience)

    async def send_event(self, query: str, document: bytes) -> None:
        """Post one event with its own query to `/events/t`. Its time-outs change nothing for batches."""
        patience = Patience(self._connections.timeout_seconds)
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
        return (await self._look_up("list check", f"{self._url}{prefix}/check-attribute?{query}")).strip() == b"true"

    async def evaluate_event_dsl(self, query: str, body: bytes) -> bytes:
        """Evaluate segments about past events, which only VWO knows (wire contract B.2)."""
        url = f"{self._collect_url}{self._prefix}/evaluate-event-dsl?{query}"
        return await self._look_up("event segments", url, body)

    async def _look_up(self, purpose: str, url: str, body: bytes | None = None) -> bytes:
        """Send a request on the path of a decision, which does not wait for long."""
        try:
            async with asyncio.timeout(self._connections.timeout_seconds) as patience, self._lookups_share:
                patience.reschedule(None)  # the request has its own time-out
                return await self._fetch(purpose, self._connections.lookups, url, body)
        except TimeoutError:
            error = CurlError("no response in time to earlier requests", is_timeout=True)
            raise self._no_response(purpose, error) from None

    async def _post(
        self, purpose: str, target: str, body: bytes, headers: Mapping[str, str], patience: Patience
    ) -> None:
        """Post events. Any 2xx is a success, even without a complete body: sending again would only cause duplicates.

        A web page is none: a block page or a sign-in portal between the gateway and VWO.
        """
        seconds, began = patience.seconds, time.monotonic()
        try:
            response = await self._connections.events.request(
                self._collect_url + target, headers, body, patience_seconds=seconds
            )
        except CurlError as error:
            if error.is_timeout:
                patience.timed_out(seconds)
            if error.response is None:
                raise self._no_response(purpose, error) from error
            response = error.response
        self._check(purpose, response)
        if _is_web_page(response):
            message = f"{purpose}: VWO returned a web page ({response.status})"
            raise UpstreamError(message, response.status, response=response.body[:KEPT_BYTES])
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
        return UpstreamError(f"{purpose}: {describe_vwo(0, str(error))}", cause=str(error), is_timeout=error.is_timeout)

    def _check(self, purpose: str, response: CurlResponse) -> None:
        """Raise unless the request succeeded. The message never contains the URL, because the SDK key is part of it."""
        self._on_response(purpose, response.status)
        if 200 <= response.status < 300:
            return
        message = f"{purpose}: {describe_vwo(response.status, response.reason)}"
        pause = _retry_after_seconds(response.headers)
        raise UpstreamError(message, response.status, pause, response=response.body[:KEPT_BYTES])


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
