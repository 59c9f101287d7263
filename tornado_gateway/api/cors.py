"""Cross-origin access for browser SDKs (wire contract A.9)."""

from collections.abc import Sequence

from tornado_gateway.http.messages import Request, Response

ANY = "*"
PREFLIGHT = Response(
    204,
    headers=[
        (b"Access-Control-Allow-Methods", b"GET, POST, OPTIONS"),
        (b"Access-Control-Allow-Headers", b"Content-Type, Authorization, X-Device-User-Agent, VWO-X-Forwarded-For"),
        (b"Access-Control-Max-Age", b"86400"),
    ],
)


class Cors:
    """Allows pages to read the responses of data routes: those of `allowed_origins`, or all with `*`."""

    def __init__(self, allowed_origins: Sequence[str]) -> None:
        self._any = ANY in allowed_origins
        self._allowed = frozenset(origin.encode() for origin in allowed_origins)

    def header_lines(self, request: Request) -> bytes:
        """Return the header lines that a response gets in addition to its own."""
        if self._any:
            return b"Access-Control-Allow-Origin: *\r\n"
        origin = request.header(b"origin")
        if origin in self._allowed:
            return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % origin
        return b"Vary: Origin\r\n"


def respond_to_preflight(request: Request) -> Response:
    return PREFLIGHT
