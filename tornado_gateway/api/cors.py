"""Cross-origin access for browser SDKs (wire contract A.9), and the check of requests that change something.

Browsers send the origin of the page with each POST, and server SDKs send none.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

from tornado_gateway.http.messages import Handler, Request, Response, json_error

ANY = "*"
WILDCARD = "://*."  # stands for one label
ALLOWED_HEADERS = b"Content-Type, Authorization, X-Device-User-Agent, VWO-X-Forwarded-For"
EXPOSED = b"Access-Control-Expose-Headers: Warning, ETag, X-Request-Id, Retry-After\r\n"
SHARED_PAGES = frozenset({b"/health", b"/ready", b"/status"})
OPERATORS_PATHS = b"/admin"  # other sites' pages may neither request nor read them
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
MAX_AGE_SECONDS = 86_400  # how long browsers keep a response to OPTIONS
MAX_HEADER_NAMES_BYTES = 2048
# Pages of all sites can send these without asking first (a preflight). An absent type counts as one of them.
SIMPLE_TYPES = frozenset({b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"})
NOT_ALLOWED = json_error(403, "pages of this origin must not send requests to the gateway (CORS_ALLOWED_ORIGINS)")
NO_CORS = json_error(
    403, "pages of other sites may send only events to this gateway. Set CORS_CONFIG_REQUIRED=true to allow more."
)


class Cors:
    """Allows pages to read the responses of data routes: those of `allowed_origins`, or all with `*`."""

    def __init__(self, allowed_origins: Sequence[str]) -> None:
        self._any = ANY in allowed_origins
        self._allowed = frozenset(origin.encode() for origin in allowed_origins if WILDCARD not in origin)
        wildcards = [
            re.escape(origin).replace(r"://\*\.", "://[a-z0-9_-]+[.]")
            for origin in allowed_origins
            if WILDCARD in origin
        ]
        self._wildcards = re.compile("|".join(wildcards).encode()) if wildcards else None

    def allows(self, origin: bytes) -> bool:
        """Whether pages of this origin may use the data routes."""
        if self._any or origin in self._allowed:
            return True
        return self._wildcards is not None and self._wildcards.fullmatch(origin) is not None

    def header_lines(self, request: Request) -> bytes:
        """Return the header lines that a response gets in addition to its own."""
        if self._any:
            return b"Access-Control-Allow-Origin: *\r\n" + EXPOSED
        origin = request.header(b"origin")
        if origin is not None and self.allows(origin):
            return b"Access-Control-Allow-Origin: %b\r\n%bVary: Origin\r\n" % (origin, EXPOSED)
        return b"Vary: Origin\r\n"

    def page_lines(self, request: Request, status: int) -> bytes:
        """Return these header lines for a page: probes and errors may be read, the pages of operators never."""
        if request.path.startswith(OPERATORS_PATHS) or (status < 400 and request.path not in SHARED_PAGES):
            return b""
        return self.header_lines(request)


class OriginCheck:
    """Rejects a POST that a page of another site sends, unless CORS allows its origin.

    Without CORS, a proxy may allow origins and handle preflights. Requests that need none are rejected then, except for
    events, which browser SDKs send in this form. `carries_events` returns whether a path is for events.
    """

    def __init__(self, cors: Cors | None, carries_events: Callable[[bytes], bool]) -> None:
        self._cors = cors
        self._carries_events = carries_events

    def __call__(self, handler: Handler, request: Request) -> Response | Awaitable[Response]:
        """Respond with the handler, or with 403."""
        origin = request.header(b"origin") if request.method == b"POST" else None
        if origin is None or _is_of_same_host(request, origin):
            return handler(request)
        if self._cors is not None:
            return handler(request) if self._cors.allows(origin) else NOT_ALLOWED
        is_simple = _media_type(request) in SIMPLE_TYPES
        return NO_CORS if is_simple and not self._carries_events(request.path) else handler(request)


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
