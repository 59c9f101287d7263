"""Pages whose content stays the same while the gateway runs: the files of console and docs, and the API description.

They are compressed once, for clients that accept gzip. They need no session, because they hold no secret: the console
requests its data itself.
"""

import gzip
import hashlib
from collections.abc import Callable, Mapping
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
HEAD = b"  <!-- head.html -->\n"
SMALLEST_BYTES = 1024  # of a body that is compressed: a smaller one fits into one packet anyway


class Form(NamedTuple):
    """A body as it is sent. `headers` are those that depend on it."""

    body: bytes
    etag: str
    headers: Mapping[str, str]


def web_file(name: str) -> bytes:
    """Read a file of the package. All pages have the lines of `head.html` in their heads."""
    body = _read(name)
    return body.replace(HEAD, _read("head.html")) if name.endswith(".html") else body


def _read(name: str) -> bytes:
    return resources.files(__package__).joinpath("web", name).read_bytes()


def api_description() -> bytes:
    return orjson.dumps(DOCUMENT)


@cache
def forms_of(read: Callable[[], bytes]) -> tuple[Form, ...]:
    """Return a body as it is and, if it is not too small, compressed."""
    body = read()
    if len(body) < SMALLEST_BYTES:
        return (_form(body),)
    vary = {"Vary": "Accept-Encoding"}
    return _form(body, **vary), _form(gzip.compress(body, mtime=0), **vary, **{"Content-Encoding": "gzip"})


def _form(body: bytes, **headers: str) -> Form:
    return Form(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', headers)


class StaticPage(Page):
    """A body that `read` returns when it is requested for the first time, and its content type."""

    def initialize(self, read: Callable[[], bytes], kind: str) -> None:
        forms = forms_of(read)
        self._form = forms[-1] if accepts_gzip(self.request.headers.get("Accept-Encoding", "")) else forms[0]
        self._kind = kind

    def compute_etag(self) -> str:
        return self._form.etag

    def get(self) -> None:
        self.set_header("Content-Type", self._kind)
        self.set_header("Cache-Control", "no-cache")  # browsers revalidate each time; the response is a 304
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        for name, value in self._form.headers.items():
            self.set_header(name, value)
        self.write(self._form.body)
