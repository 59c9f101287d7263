"""Access to the operators' endpoints, and the session of the console.

A request needs the admin token (`admin_token.py`) as a bearer token, or the cookie that `POST /admin/session` returns
for it. The cookie is signed with the token, so every worker accepts it without shared state, and a new token ends all
sessions. The address of a client, its Host and its other headers are no credentials: behind a proxy on this machine
every client looks local.

Requests that change something must not come from another site's page. Browsers send the origin of the page, and a form
cannot send JSON.
"""

import base64
import hashlib
import hmac
import posixpath
import secrets
from http.cookies import SimpleCookie
from urllib.parse import unquote, urlsplit

from tornado.httputil import HTTPHeaders, HTTPServerRequest

from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import ClientAddress
from tornado_gateway.http.messages import Request
from tornado_gateway.telemetry.attempts import Attempts, TokenCheck

COOKIE = "fme_gateway_session"
NO_PROXIES = ClientAddress()
SESSION_SECONDS = 12 * 3600
NO_TOKEN = "the admin token is required: sign in, or send it as Authorization: Bearer"  # noqa: S105 - a message


class Auth:
    """Raise RequestError (401 or 403) if a request is not authorized. `now` is in unix seconds."""

    def __init__(
        self,
        token: str,
        client_address: ClientAddress = NO_PROXIES,
        attempts: Attempts | None = None,
        row: int = 0,
    ) -> None:
        self._token = TokenCheck(token, attempts, row)
        self._key = hashlib.sha256(b"session:" + token.encode()).digest()
        self._client_address = client_address

    def check(self, request: HTTPServerRequest, now: float) -> None:
        """Raise AttemptsError (429) as well, for a token from an address with too many failures."""
        if not self._has_session(request.headers, now) and not self._has_token(request):
            raise RequestError(401, NO_TOKEN)

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

    def _has_session(self, headers: HTTPHeaders, now: float) -> bool:
        morsel = SimpleCookie(headers.get("Cookie", "")).get(COOKIE)
        if morsel is None:
            return False
        content, _, signature = morsel.value.rpartition(".")
        until = content.partition(".")[0]
        return (
            hmac.compare_digest(signature.encode(), self._signature(content).encode())
            and until.isascii()
            and until.isdigit()
            and now < int(until)
        )

    def _signature(self, content: str) -> str:
        digest = hmac.digest(self._key, content.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_operators_path(path: str) -> bool:
    """Return whether a path is below /admin after decoding and normalizing, as proxies do."""
    normal = posixpath.normpath(unquote(path)).lower()
    return normal.strip("/").partition("/")[0] == "admin"
