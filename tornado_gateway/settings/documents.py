"""A settings document in every form that a client may want, made once per change and off the loop."""

import hashlib
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from tornado_gateway.http.messages import Response
from tornado_gateway.settings.pacing import PIECE_BYTES, Breathe

GZIP = 16 + zlib.MAX_WBITS  # zlib's name for this format


class Published(NamedTuple):
    """The answers of v2-settings; `made_at` by the monotonic clock."""

    etag: bytes
    plain: Response
    compressed: Response
    not_modified: Response
    made_at: float


def publish(document: bytes, fields: Mapping[str, Any], breathe: Breathe) -> Published:
    """Prepare all answers for a settings document, which has these fields.

    Older SDKs want lists where upstream writes `{}` for "none".
    """
    empty: dict[str, list[object]] = {key: [] for key in ("features", "campaigns") if fields.get(key) == {}}
    body = orjson.dumps({**fields, **empty}) if empty else document
    etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    headers = [(b"ETag", etag), (b"Vary", b"Accept-Encoding")]
    return Published(
        etag,
        Response(200, body, headers=headers),
        Response(200, _gzip(body, breathe), headers=[*headers, (b"Content-Encoding", b"gzip")]),
        Response(304, headers=headers),
        time.monotonic(),
    )


def _gzip(body: bytes, breathe: Breathe) -> bytes:
    """The same bytes for the same body, as the format has no time stamp here."""
    compressor = zlib.compressobj(wbits=GZIP)
    pieces = []
    for at in range(0, len(body), PIECE_BYTES):
        pieces.append(compressor.compress(body[at : at + PIECE_BYTES]))
        breathe()
    return b"".join([*pieces, compressor.flush()])
