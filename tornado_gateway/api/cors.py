"""Cross-origin access for browser SDKs (wire contract A.9), and the check of requests that change something.

Browsers send the origin of the page with each POST, and server SDKs send none.
"""

import re
from collections.abc import Callable, Sequence

from tornado_gateway.environments.origins import Origins
from tornado_gateway.environments.registry import Environments
from tornado_gateway.http.messages import Handler, Request, Response, Result, json_error

ALLOWED_HEADERS = b"Content-Type, Authorization, X-API-Key, X-Device-User-Agent, VWO-X-Forwarded-For"
EXPOSED = b"Access-Control-Expose-Headers: Warning, ETag, X-Request-Id, Retry-After\r\n"
SHARED_PAGES = frozenset({b"/health", b"/ready", b"/status", b"/openapi.json"})
OPERATORS_PATHS = b"/admin"  # other sites' pages may neither request nor read them
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
MAX_HEADER_NAMES_BYTES = 2048
MAX_AGE_SECONDS = 86_400  # how long browsers keep a response to OPTIONS
# Pages of all sites can send these without asking first (a preflight). An absent type counts as one of them.
SIMPLE_TYPES = frozenset({b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"})
NOT_ALLOWED = json_error(
    403,
    "pages of this origin must not send requests to the gateway (CORS_ALLOWED_ORIGINS)",
    code="origin_not_allowed",
)
NO_CORS = json_error(
    403,
    "pages of other sites may send only events to this gateway. Set CORS_CONFIG_REQUIRED=true to allow more.",
    code="origin_not_allowed",
)


class Cors:
    """Allows pages to read the responses of data routes: those of `allowed_origins`, or all with `*`."""

    def __init__(self, allowed_origins: Sequence[str]) -> None:
        self.origins = Origins(allowed_origins)

    def allows(self, request: Request, origin: bytes) -> bool:
        """Return whether pages of this origin may send the request."""
        return origin in self.origins

    def header_lines(self, request: Request) -> bytes:
        """Return the header lines that a response gets in addition to its own."""
        if self.origins.has_any:
            return b"Access-Control-Allow-Origin: *\r\n" + EXPOSED
        origin = request.header(b"origin")
        if origin is not None and origin in self.origins:
            return b"Access-Control-Allow-Origin: %b\r\n%bVary: Origin\r\n" % (origin, EXPOSED)
        return b"Vary: Origin\r\n"

    def page_lines(self, request: Request, status: int) -> bytes:
        """Return these header lines for a page: SHARED_PAGES and errors may be read, the pages of operators never."""
        if request.path.startswith(OPERATORS_PATHS) or (status < 400 and request.path not in SHARED_PAGES):
            return b""
        return self.header_lines(request)


class EnvironmentsCors:
    """Allows pages to read the responses of the environment that a request names, or else those of any environment.

    Preflights have no headers that could name one. Which pages may read is not a question of security here: a key is.
    """

    def __init__(self, environments: Environments) -> None:
        self._environments = environments
        self._version = 0  # of the environments in `_union` and `_by_origins`
        self._union = Cors(())
        self._by_origins: dict[tuple[str, ...], Cors] = {}

    def allows(self, request: Request, origin: bytes) -> bool:
        """Return whether pages of this origin may send the request."""
        return self._of(request).allows(request, origin)

    def header_lines(self, request: Request) -> bytes:
        """Return the header lines that a response gets in addition to its own."""
        return self._of(request).header_lines(request)

    def page_lines(self, request: Request, status: int) -> bytes:
        """Return these header lines for a page: see `Cors`."""
        self._follow()
        return self._union.page_lines(request, status)

    def _of(self, request: Request) -> Cors:
        self._follow()
        if len(self._by_origins) == 1 or request.method == b"OPTIONS":
            return self._union
        environment = self._environments.named_by(request)
        return self._union if environment is None else self._by_origins[environment.access.allowed_origins]

    def _follow(self) -> None:
        """Read the origins of the environments if these were replaced."""
        if self._version != self._environments.version:
            self._version = self._environments.version
            origins_of_all = {one.access.allowed_origins for one in self._environments.all}
            self._by_origins = {origins: Cors(origins) for origins in origins_of_all}
            self._union = Cors([origin for origins in self._by_origins for origin in origins])


class OriginCheck:
    """Rejects a POST that a page of another site sends, unless CORS allows its origin.

    Without CORS, a proxy may allow origins and handle preflights. Requests that need none are rejected then, except for
    events, which browser SDKs send in this form. `carries_events` returns whether a path is for events, `shaped`
    an error in the shape of a path.
    """

    def __init__(
        self,
        cors: Cors | EnvironmentsCors | None,
        carries_events: Callable[[bytes], bool],
        shaped: Callable[[bytes, Response], Response],
    ) -> None:
        self._cors = cors
        self._carries_events = carries_events
        self._shaped = shaped

    def __call__(self, handler: Handler, request: Request) -> Result:
        """Respond with the handler, or with 403."""
        origin = request.header(b"origin") if request.method == b"POST" else None
        if origin is None or _is_of_same_host(request, origin):
            return handler(request)
        if self._cors is not None:
            is_allowed = self._cors.allows(request, origin)
            return handler(request) if is_allowed else self._shaped(request.path, NOT_ALLOWED)
        is_simple = _media_type(request) in SIMPLE_TYPES
        if is_simple and not self._carries_events(request.path):
            return self._shaped(request.path, NO_CORS)
        return handler(request)


def _is_of_same_host(request: Request, origin: bytes) -> bool:
    """Return whether the gateway has served the page. The browser knows it even if a proxy has replaced the host."""
    if request.header(b"sec-fetch-site") == b"same-origin":
        return True
    return origin.partition(b"://")[2].lower() == (request.header(b"host") or b"").lower() != b""


def _media_type(request: Request) -> bytes:
    return (request.header(b"content-type") or b"").partition(b";")[0].strip().lower()


def respond_to_preflight(request: Request) -> Response:
    """Allow the requested headers, because tracing libraries add their own; the usual ones if none are requested."""
    requested = request.header(b"access-control-request-headers") or b""
    is_valid = len(requested) <= MAX_HEADER_NAMES_BYTES and _HEADER_NAMES.fullmatch(requested)
    return Response(
        204,
        headers=[
            (b"Access-Control-Allow-Methods", b"GET, POST, OPTIONS"),
            (b"Access-Control-Allow-Headers", requested if is_valid else ALLOWED_HEADERS),
            (b"Access-Control-Max-Age", b"%d" % MAX_AGE_SECONDS),
            (b"Vary", b"Access-Control-Request-Headers"),
        ],
    )
