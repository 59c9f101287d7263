"""A settings document as SDKs get it: body, ETag and compressed body, made once per change and off the loop."""

import hashlib
import zlib
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tornado_gateway.core import YieldPoint
from tornado_gateway.settings.pacing import PIECE_BYTES

_GZIP = 16 + zlib.MAX_WBITS  # zlib's parameter for this format


class SettingsDocument(NamedTuple):
    """The bytes of a document for SDKs. `gzip` is the compressed body."""

    body: bytes
    etag: bytes
    gzip: bytes


def read_document(path: Path) -> bytes:
    """Return the document in a file, without the byte order mark that some editors write."""
    return path.read_bytes().removeprefix(BOM_UTF8)


def prepare_document(document: bytes, fields: Mapping[str, Any], yield_point: YieldPoint) -> SettingsDocument:
    """Prepare a document, which has these fields, for SDKs.

    Older SDKs require lists where upstream writes `{}` for "none".
    """
    empty: dict[str, list[object]] = {key: [] for key in ("features", "campaigns") if fields.get(key) == {}}
    body = orjson.dumps({**fields, **empty}, default=list) if empty else document
    etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    return SettingsDocument(body, etag, _compress(body, yield_point))


def _compress(body: bytes, yield_point: YieldPoint) -> bytes:
    """Return the compressed body, which is the same for the same body, because zlib writes no time stamp."""
    compressor = zlib.compressobj(wbits=_GZIP)
    pieces = []
    for at in range(0, len(body), PIECE_BYTES):
        pieces.append(compressor.compress(body[at : at + PIECE_BYTES]))
        yield_point()
    return b"".join([*pieces, compressor.flush()])
