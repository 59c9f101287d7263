"""A settings document in every form that a client may want, made once per change and off the loop."""

import gzip
import hashlib
import time
from typing import NamedTuple

import orjson

from .http1 import Response


class Published(NamedTuple):
    """The answers of v2-settings; `made_at` by the monotonic clock."""

    etag: bytes
    plain: Response
    compressed: Response
    not_modified: Response
    made_at: float


def publish(document: bytes) -> Published:
    """Prepare all answers for a settings document. Older SDKs want lists where upstream writes `{}` for "none"."""
    fields = orjson.loads(document)
    empty: dict[str, list[object]] = {key: [] for key in ("features", "campaigns") if fields.get(key) == {}}
    body = orjson.dumps(fields | empty) if empty else document
    etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    headers = [(b"ETag", etag), (b"Vary", b"Accept-Encoding")]
    return Published(
        etag,
        Response(200, body, headers=headers),
        Response(200, gzip.compress(body, mtime=0), headers=[*headers, (b"Content-Encoding", b"gzip")]),
        Response(304, headers=headers),
        time.monotonic(),
    )
