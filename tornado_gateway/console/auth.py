"""Access to the operators' endpoints, and the session of the console.

A request needs the admin token (`admin_token.py`) as a bearer token, or the cookie that `POST /admin/session` returns
for it. The cookie is signed with the token, so every worker accepts it, and a new token ends all sessions. Signing out
ends one session: the store keeps its name until it would have ended anyway (`EndedSessions`). The address of a client,
its Host and its other headers are no credentials: behind a proxy on this machine every client looks local.

Requests that change something must not come from another site's page. Browsers send the origin of the page, and a form
cannot send JSON.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import posixpath
import secrets
import time
from http.cookies import SimpleCookie
from urllib.parse import unquote, urlsplit

from tornado.httputil import HTTPServerRequest

from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.http.fields import ClientAddress
from tornado_gateway.http.messages import Request
from tornado_gateway.store.interfaces import StateStore
from tornado_gateway.telemetry.attempts import Attempts, TokenCheck

logger = logging.getLogger(__name__)

_RECORDS = "\0sessions"  # where the store keeps ended sessions; no visitor's id begins like this
COOKIE = "fme_gateway_session"
NO_PROXIES = ClientAddress()
SECURE_COOKIE = f"__Host-{COOKIE}"  # with TLS: browsers reject it from any other host and without Secure
SESSION_SECONDS = 12 * 3600
STEP_SECONDS = 7 * 86400  # by which the wall clock may be put back without making an ended session valid again
NO_TOKEN = "the admin token is required: sign in, or send it as Authorization: Bearer"  # noqa: S105 - a message


class EndedSessions:
    """The sessions that were ended by signing out, in the state that all workers share.

    A worker also remembers those that it has ended itself. While the store fails, it knows no others: operators need
    the console in particular when the store is down.
    """

    def __init__(self, state: StateStore | None, patience_seconds: float = 2.0, pause_seconds: float = 10.0) -> None:
        self._state = state
        self._patience_seconds = patience_seconds
        self._pause_seconds = pause_seconds
        self._until: dict[str, float] = {}  # by session, in unix seconds
        self._resume_at = 0.0  # monotonic: until then the store is not asked, after a failure

    def __len__(self) -> int:
        return len(self._until)

    async def add(self, session: str, until: float, now: float) -> None:
        self._until = {name: end for name, end in self._until.items() if end > now} | {session: until}
        if self._state is not None:
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await self._state.save_records(_RECORDS, {session: {"ended": now}}, until - now + STEP_SECONDS)
            except (StoreError, TimeoutError) as error:
                logger.error("a session was ended at one worker only, the others were not informed: %s", error)

    async def has(self, session: str, now: float) -> bool:
        if now < self._until.get(session, 0.0):
            return True
        if self._state is None or time.monotonic() < self._resume_at:
            return False
        try:
            async with asyncio.timeout(self._patience_seconds):
                return bool(await self._state.load_records(_RECORDS, [session]))
        except (StoreError, TimeoutError):
            self._resume_at = time.monotonic() + self._pause_seconds
            return False


class Auth:
    """Raise RequestError (401 or 403) if a request is not authorized. `now` is in unix seconds."""

    def __init__(
        self,
        token: str,
        client_address: ClientAddress = NO_PROXIES,
        attempts: Attempts | None = None,
        row: int = 0,
        ended: EndedSessions | None = None,
    ) -> None:
        self._ended = EndedSessions(None) if ended is None else ended
        self._token = TokenCheck(token, attempts, row)
        self._key = hashlib.sha256(b"session:" + token.encode()).digest()
        self._client_address = client_address

    async def check(self, request: HTTPServerRequest, now: float) -> None:
        """Raise AttemptsError (429) as well, for a token from an address with too many failures."""
        if not await self._has_session(request, now) and not self._has_token(request):
            raise RequestError(401, NO_TOKEN)

    def user(self, request: HTTPServerRequest) -> str:
        """Return the credential and the address of an authorized request, for records of changes."""
        credential = "a console session" if self._signed(request) is not None else "the admin token"
        return f"{credential} at {self._address(request)}"

    def check_change(self, request: HTTPServerRequest) -> None:
        """Reject a request that another site's page may have sent."""
        if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "expected Content-Type: application/json")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower():
            raise RequestError(403, "not from another site's page")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise RequestError(403, "not from another site's page")

    def is_token(self, request: HTTPServerRequest, given: str) -> bool:
        """Raise AttemptsError (429) if there were too many failures."""
        return self._token.is_right(given, self._address(request))

    def new_session(self, now: float) -> str:
        content = f"{int(now) + SESSION_SECONDS}.{secrets.token_urlsafe(12)}"
        return f"{content}.{self._signature(content)}"

    def cookie_name(self, request: HTTPServerRequest) -> str:
        return SECURE_COOKIE if self.is_encrypted(request) else COOKIE

    async def end_session(self, request: HTTPServerRequest, now: float) -> None:
        """End the session of a request, if it has a valid one."""
        content = self._signed(request)
        if content is not None and now < (until := _end_of(content)):
            await self._ended.add(content, until, now)

    def is_encrypted(self, request: HTTPServerRequest) -> bool:
        """True if TLS ends here or at a trusted proxy."""
        if request.protocol == "https":
            return True
        return self._client_address.reports_https(request.remote_ip or "", request.headers)

    def _has_token(self, request: HTTPServerRequest) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(request, given.strip())

    def _address(self, request: HTTPServerRequest) -> str:
        name = self._client_address.name
        hops = request.headers.get(name.decode(), "").encode("latin-1", "replace")
        return self._client_address(Request(b"", b"", b"", [(name, hops)], peer=request.remote_ip or ""))

    async def _has_session(self, request: HTTPServerRequest, now: float) -> bool:
        content = self._signed(request)
        return content is not None and now < _end_of(content) and not await self._ended.has(content, now)

    def _signed(self, request: HTTPServerRequest) -> str | None:
        """Return the content of the session's cookie, None if it was not signed here."""
        morsel = SimpleCookie(request.headers.get("Cookie", "")).get(self.cookie_name(request))
        content, _, signature = (morsel.value if morsel else "").rpartition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._signature(content).encode())
        return content if is_ours else None

    def _signature(self, content: str) -> str:
        digest = hmac.digest(self._key, content.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _end_of(content: str) -> float:
    until = content.partition(".")[0]
    return float(until) if until.isascii() and until.isdigit() else 0.0


def is_operators_path(path: str) -> bool:
    """Return whether a path is below /admin after decoding and normalizing, as proxies do."""
    normal = posixpath.normpath(unquote(path)).lower()
    return normal.strip("/").partition("/")[0] == "admin"
