"""A stand-in for the vendor, and for the Unleash API: serves settings, takes events and counts them.

    python benchmarks/vendor.py PORT [--settings FILE] [--changing] [--unleash FILE]

With --changing every request for settings gets another version of the document. The document has the SDK key of
the request. /count tells what has arrived, also for each key.
"""

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import uvloop
from accounts import SDK_KEY

from tornado_gateway.http.fields import query_text
from tornado_gateway.http.limits import Limits, ServerOptions
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.http.server import Server

TAKEN = Response(200, b'{"success":true}')


class Vendor:
    """All times are of the monotonic clock, which all processes of a machine share."""

    def __init__(self, settings: bytes, unleash: bytes, *, is_changing: bool) -> None:
        self._settings = settings
        self._unleash = unleash
        self._is_changing = is_changing
        self._events: Counter[str] = Counter()  # by SDK key
        self._requests = 0
        self._last_at = 0.0
        self._settings_at: list[float] = []

    def find(self, method: bytes, path: bytes) -> Callable[[Request], Response]:
        if path.startswith(b"/server-side/v2-"):
            return self.settings
        if path.endswith(b"/client/features"):
            return lambda request: Response(200, self._unleash)
        return self.count if path == b"/count" else self.take

    def settings(self, request: Request) -> Response:
        self._settings_at.append(time.monotonic())
        if self._is_changing:
            version = b'"version":%d' % len(self._settings_at)
            return Response(200, self._settings.replace(b'"version":1', version, 1))
        key = (query_text(request.query, b"i") or SDK_KEY).encode()
        return Response(200, self._settings.replace(SDK_KEY.encode(), key))

    def take(self, request: Request) -> Response:
        """Every event has one message id, whoever wrote it."""
        key = query_text(request.query, b"env") or ""
        self._events[key] += request.body.count(b'"msgId"')
        self._requests += 1
        self._last_at = time.monotonic()
        return TAKEN

    def count(self, request: Request) -> Response:
        counts = {"events": self._events.total(), "by_key": self._events}
        counts |= {"requests": self._requests, "last_at": self._last_at}
        return Response(200, orjson.dumps(counts | {"now": time.monotonic(), "settings_at": self._settings_at}))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--changing", action="store_true")
    parser.add_argument("--unleash", type=Path)
    options = parser.parse_args()
    settings, unleash = (file.read_bytes() if file else b"{}" for file in (options.settings, options.unleash))
    vendor = Vendor(settings, unleash, is_changing=options.changing)
    server = Server(ServerOptions(vendor.find, limits=Limits(max_body_bytes=1 << 26)))
    await server.listen("127.0.0.1", options.port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
