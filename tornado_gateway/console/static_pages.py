"""Pages whose content stays the same while the gateway runs: the files of console and docs, and the API description.

They are compressed once, for clients that accept gzip. They need no session, because they hold no secret: the console
requests its data itself.
"""

import gzip
import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

import orjson

from tornado_gateway.console.base import Page
from tornado_gateway.console.openapi import DOCUMENT
from tornado_gateway.http.fields import accepts_gzip

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SMALLEST_BYTES = 1024  # of a body that is compressed: a smaller one fits into one packet anyway


class Content(NamedTuple):
    """A body with its ETag, and the same compressed; without one if it is too small."""

    body: bytes
    etag: str
    packed: "Content | None" = None


@cache
def content_of(file: str) -> Content:
    """Read a file of the package, or make the API description, which has no file of its own."""
    directory = resources.files(__package__).joinpath("web")
    body = directory.joinpath(file).read_bytes() if file else orjson.dumps(DOCUMENT)
    plain = _content(body)
    return plain if len(body) < SMALLEST_BYTES else plain._replace(packed=_content(gzip.compress(body, mtime=0)))


def _content(body: bytes) -> Content:
    return Content(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


class StaticPage(Page):
    """A file of the package, or the API description."""

    def initialize(self, file: str, kind: str) -> None:
        content = content_of(file)
        wants_gzip = accepts_gzip(self.request.headers.get("Accept-Encoding", ""))
        self._has_forms = content.packed is not None
        self._is_packed = wants_gzip and self._has_forms
        self._content = content.packed if content.packed is not None and wants_gzip else content
        self._kind = kind

    def compute_etag(self) -> str:
        return self._content.etag

    def get(self) -> None:
        self.set_header("Content-Type", self._kind)
        self.set_header("Cache-Control", "no-cache")  # browsers revalidate each time; the response is a 304
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        if self._has_forms:
            self.set_header("Vary", "Accept-Encoding")
        if self._is_packed:
            self.set_header("Content-Encoding", "gzip")
        self.write(self._content.body)
