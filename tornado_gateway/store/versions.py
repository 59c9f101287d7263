"""The versions of a document that a store keeps, and the pin that holds one of them.

Both stores keep the same: each document that was saved, compressed, with the time and the reason of its arrival. The
bounds are a number and a size; the newest and the pinned version stay, whatever their size.
"""

import hashlib
import logging
import time
import zlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import orjson

from tornado_gateway.errors import StoreError
from tornado_gateway.logs import once

logger = logging.getLogger(__name__)

DIGEST_CHARACTERS = 16
MOST_VERSIONS = 50  # of a document
MOST_BYTES = 32 * 1024 * 1024  # of the compressed versions of a document
PIECE_BYTES, REST_SECONDS = 128 * 1024, 0.002  # compressed in 1 ms, and the pause after it
PACKED_PIECE_BYTES = 32 * 1024  # usually decompressed in about as long
PACKED_START = b"\x78"  # the first byte of each compressed document, and of no JSON text


def digest_of(body: bytes) -> str:
    """Return the name of a version, which is the same at all workers."""
    return hashlib.sha256(body).hexdigest()[:DIGEST_CHARACTERS]


def pack(body: bytes) -> tuple[str, bytes]:
    """Return the digest of a document and its compressed form.

    It rests after each piece, because a thread that computes without pauses takes the core from the loop.
    """
    digest, compressor, packed = hashlib.sha256(), zlib.compressobj(), []
    for at in range(0, len(body), PIECE_BYTES):
        piece = body[at : at + PIECE_BYTES]
        digest.update(piece)
        packed.append(compressor.compress(piece))
        if len(piece) == PIECE_BYTES:
            time.sleep(REST_SECONDS)
    return digest.hexdigest()[:DIGEST_CHARACTERS], b"".join([*packed, compressor.flush()])


def body_of(stored: bytes, place: object) -> bytes | None:
    """Return a document from a store at `place`. Former versions of the gateway have not compressed it.

    None, and a log line, if it is damaged: then the next document replaces it.
    """
    try:
        return unpacked(stored) if stored[:1] == PACKED_START else stored
    except StoreError as error:
        logger.error("%s: %s", place, error, extra=once(f"{place} is damaged"))
        return None


@dataclass(frozen=True, slots=True)
class Version:
    """A document that was saved. `number` is the version of the store when it was saved last.

    `at` is the time of that in unix seconds, `first_at` that of the first time: a document can return. `source` is the
    reason for its arrival, such as poll or webhook; `by` the process. `size` is that of the document, `packed_size`
    that of its compressed form.
    """

    digest: str
    number: int
    first_at: float
    at: float
    source: str
    by: str
    size: int
    packed_size: int


@dataclass(frozen=True, slots=True)
class Pin:
    """A version that stays in use. `at` and `until` are in unix seconds, for people; `until` is None without an end.

    `seconds` is its duration: the clock of the store decides when that is over. `latest` is the digest of the newest
    document from VWO at that time.
    """

    digest: str
    at: float
    by: str
    reason: str = ""
    until: float | None = None
    seconds: float | None = None
    latest: str = ""

    def __str__(self) -> str:
        """Return it in words, which follow "settings" and a verb."""
        until = "" if self.until is None else f" until {utc(self.until)}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"pinned to {self.digest} by {self.by} at {utc(self.at)}{until}{reason}"

    def encoded(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def decoded(cls, text: bytes | str) -> Self:
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**fields)


def utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def surplus(versions: Iterable[Version], keep: Collection[str], most: int, most_bytes: int) -> list[str]:
    """Return the digests of the oldest versions beyond the bounds. The newest one and those to `keep` stay."""
    found, total = [], 0
    for place, version in enumerate(sorted(versions, key=lambda one: one.number, reverse=True)):
        total += version.packed_size
        if place and version.digest not in keep and (place >= most or total > most_bytes):
            found.append(version.digest)
    return found


def unpacked(packed: bytes, rest_seconds: float = REST_SECONDS) -> bytes:
    """Return a compressed document, with rests as in `pack`. Raise StoreError if it is damaged."""
    decompressor, pieces = zlib.decompressobj(), []
    try:
        for at in range(0, len(packed), PACKED_PIECE_BYTES):
            if at:
                time.sleep(rest_seconds)
            pieces.append(decompressor.decompress(packed[at : at + PACKED_PIECE_BYTES]))
    except zlib.error as error:
        raise StoreError(f"a stored version of the settings is damaged: {error}") from error
    if not decompressor.eof:
        raise StoreError("a stored version of the settings is damaged: its end is missing")
    return b"".join(pieces)
