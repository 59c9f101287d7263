"""Cross-origin access for browser SDKs (wire contract A.9)."""

import re
from collections.abc import Sequence

from tornado_gateway.http.messages import Request, Response

ANY = "*"
WILDCARD = "://*."  # stands for one label
ALLOWED_HEADERS = b"Content-Type, Authorization, X-Device-User-Agent, VWO-X-Forwarded-For"
EXPOSED = b"Access-Control-Expose-Headers: Warning, ETag, X-Request-Id, Retry-After\r\n"
SHARED_PAGES = frozenset({b"/health", b"/ready", b"/status"})
OPERATORS_PATHS = b"/admin"  # other sites' pages may neither request nor read them
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
MAX_AGE_SECONDS = 86_400  # how long browsers keep a response to OPTIONS
MAX_HEADER_NAMES_BYTES = 2048


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
