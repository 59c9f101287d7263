"""Credentials of clients: which requests a token or an SDK key allows, and for which environments.

Tokens are random, so a plain SHA-256 digest is enough at rest. How long a look-up takes says nothing about the stored
digests, because the digest of a guess is random.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Sequence

from tornado_gateway.environments.origins import Origins
from tornado_gateway.errors import AttemptsError, RequestError
from tornado_gateway.http.fields import query_text
from tornado_gateway.http.messages import Handler, Request, Result
from tornado_gateway.telemetry.attempts import Attempts

DECIDE, TRACK, SDK = "decide", "track", "sdk"  # scopes
SERVER, BROWSER = "server", "browser"  # kinds
PREFIXES = {SERVER: "fmes_", BROWSER: "fmeb_"}  # recognizable for secret scanners
RANDOM_BYTES = 32
HINT_CHARACTERS = 4  # of a wrong token in the log, after its prefix
MAX_TOKEN_BYTES = 512

# Missing, unknown and expired tokens do not differ.
CHALLENGE = [(b"WWW-Authenticate", b'Bearer realm="fme-gateway"')]


class ClientToken:
    """One token. `environments` are names, none for all; `expires` is in unix seconds."""

    __slots__ = ("digest", "environments", "expires", "id", "origins", "scopes")

    def __init__(
        self,
        id: str,  # noqa: A002  as in the file
        digest: bytes,
        kind: str = SERVER,
        environments: Sequence[str] = (),
        scopes: Iterable[str] = (DECIDE, TRACK, SDK),
        origins: Sequence[str] = (),
        expires: float | None = None,
    ) -> None:
        self.id = id
        self.digest = digest
        self.environments = tuple(environments)
        self.scopes = frozenset(scopes)
        self.origins = Origins(origins) if kind == BROWSER else None
        self.expires = expires

    def has_expired(self) -> bool:
        return self.expires is not None and time.time() >= self.expires


class ClientTokens:
    """All tokens by digest. `replace` changes them while requests are served."""

    def __init__(self, tokens: Iterable[ClientToken] = ()) -> None:
        self._by_digest = {token.digest: token for token in tokens}

    def replace(self, tokens: Iterable[ClientToken]) -> None:
        self._by_digest = {token.digest: token for token in tokens}

    def named(self, name: str) -> list[ClientToken]:
        """Return the tokens with this id that have not expired."""
        return [token for token in self._by_digest.values() if token.id == name and not token.has_expired()]

    def find(self, given: bytes) -> ClientToken | None:
        """Return the token, None if there is none like it or if it has expired."""
        digest = digest_of(given)
        token = self._by_digest.get(digest)
        if token is None or not hmac.compare_digest(token.digest, digest):
            return None
        return None if token.has_expired() else token


class Tickets:
    """Credentials in the URL of a stream, because an EventSource sends no headers and URLs are logged.

    A ticket opens the stream of one environment and nothing else, is always the same and ends with its token. A client
    with an SDK key sends that.
    """

    def __init__(self, tokens: ClientTokens, auth: "ClientAuth") -> None:
        self._tokens = tokens
        self._auth = auth

    def credential(self, request: Request, environment: str) -> dict[str, str]:
        """Return the parameters for the stream of a client that has sent this request."""
        token = request.client
        if isinstance(token, ClientToken):
            return {"ticket": f"{token.id}.{_signature(token, environment)}"}
        key = query_text(request.query, b"sdkKey")
        return {} if key is None else {"sdkKey": key}

    def check_client(self, request: Request) -> None:
        """Raise RequestError for a request without a ticket or another credential. Note the token, as for others."""
        if query_text(request.query, b"ticket") is None:
            self._auth.check(request, DECIDE)

    def check_ticket(self, request: Request, environment: str) -> None:
        """Raise RequestError for a request with a ticket that is not for this environment."""
        ticket = query_text(request.query, b"ticket")
        if ticket is None:
            return
        name, _, given = ticket.rpartition(".")
        if not any(
            hmac.compare_digest(_signature(token, environment).encode(), given.encode())
            for token in self._tokens.named(name)
        ):
            raise RequestError(401, "the ticket is not valid", CHALLENGE)


def _signature(token: ClientToken, environment: str) -> str:
    return hmac.digest(token.digest, f"stream:{environment}".encode(), "sha256").hex()[:32]


class ClientAuth:
    """Checks the credentials of requests before their handlers run.

    `has_sdk_key` says whether a request contains an SDK key; a wrong one is rejected by the environments. Its second
    argument is whether the request is a lookup. It is None if SDK keys are no credentials. `address` returns the
    client's address.
    """

    def __init__(
        self,
        tokens: ClientTokens,
        has_sdk_key: Callable[[Request, bool], bool] | None,
        address: Callable[[Request], str],
        attempts: Attempts,
        row: int = 0,
    ) -> None:
        self._tokens = tokens
        self._has_sdk_key = has_sdk_key
        self._address = address
        self._attempts = attempts
        self._row = row

    def guarded(self, handler: Handler, scope: str, is_lookup: bool = False) -> Handler:
        """Return a handler for requests with a credential of this scope. It raises RequestError for all others."""

        def respond(request: Request) -> Result:
            self.check(request, scope, is_lookup)
            return handler(request)

        return respond

    def check(self, request: Request, scope: str, is_lookup: bool = False) -> None:
        """Raise RequestError for a request without a suitable credential. Note the token of a suitable one."""
        given = presented_tokens(request)
        token = next(filter(None, map(self._tokens.find, given)), None)
        if token is None:
            if self._has_sdk_key is not None and self._has_sdk_key(request, is_lookup):
                return  # with all scopes
            if given:
                self._count_failure(request, next(filter(None, map(hint_of, given)), ""))
            raise RequestError(401, "a client token is required", CHALLENGE)
        if scope not in token.scopes:
            raise RequestError(403, f"this token may not: {scope}")
        if token.origins is not None:
            origin = request.header(b"origin")
            if origin is None or origin not in token.origins:
                shown = "without Origin" if origin is None else f"from origin {origin.decode('latin-1'):.100}"
                raise RequestError(403, f"this token may not be used {shown}")
        request.client = token

    def _count_failure(self, request: Request, hint: str) -> None:
        """Raise AttemptsError in a flood of failures; other clients of that address with a valid token pass."""
        address, now = self._address(request), time.monotonic()
        if wait_seconds := self._attempts.wait_seconds(address, now):
            raise AttemptsError(wait_seconds)
        self._attempts.failed(self._row, address, now, hint)


def presented_tokens(request: Request) -> list[bytes]:
    """Return the values of `X-API-Key` and `Authorization: Bearer`. One of them may be for a proxy."""
    scheme, _, rest = (request.header(b"authorization") or b"").partition(b" ")
    bearer = rest.strip() if scheme.lower() == b"bearer" else None
    return [given[: MAX_TOKEN_BYTES + 1] for given in (request.header(b"x-api-key"), bearer) if given]


def digest_of(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def new_token(kind: str) -> str:
    return PREFIXES[kind] + secrets.token_urlsafe(RANDOM_BYTES)


def hint_of(given: bytes) -> str:
    """Return the start of a wrong token for the log; nothing of a text that may be another secret."""
    text = given.decode("latin-1")
    prefix = next((prefix for prefix in PREFIXES.values() if text.startswith(prefix)), None)
    return "" if prefix is None else text[: len(prefix) + HINT_CHARACTERS]
