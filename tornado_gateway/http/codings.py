"""Bodies in a content coding: small ones are decoded at once, others in steps.

Decoding 8 MB takes 50 ms, in which the loop would serve no other request.
"""

import asyncio
import zlib
from collections.abc import Callable
from typing import Final, cast, final

from tornado_gateway.http.messages import (
    BAD_ENCODING,
    UNKNOWN_ENCODING,
    Handler,
    Packed,
    Request,
    Response,
    Result,
)

STEP_BYTES: Final = 65536  # of the body or of its decoded form, in one step
RAW_DEFLATE: Final = -15  # as some clients send it, against RFC 9110
ZLIB: Final = {b"gzip": (31,), b"x-gzip": (31,), b"deflate": (15, RAW_DEFLATE)}  # zlib's parameters for these formats


def decompressed(
    body: bytes | bytearray, coding: bytes, at_once: int, limit: tuple[int, Response]
) -> bytes | bytearray | Packed | Response:
    """Return a body without its content coding, or the response that rejects it.

    `limit` is the largest decoded size, if that is more than `at_once`, and the response to larger ones. A body that
    has more than `at_once` bytes, encoded or decoded, is only described.
    """
    most, too_large = limit
    if coding in (b"", b"identity"):
        return body
    if coding not in ZLIB:
        return UNKNOWN_ENCODING
    if len(body) > at_once:
        return Packed(coding, max(at_once, most), too_large)
    for parameter in ZLIB[coding]:
        decoder = zlib.decompressobj(parameter)
        try:
            decoded = decoder.decompress(body, at_once + 1)
        except zlib.error:
            continue
        if len(decoded) > at_once:
            return Packed(coding, most, too_large) if most > at_once else too_large
        return decoded if decoder.eof and not decoder.unused_data else BAD_ENCODING
    return BAD_ENCODING


@final
class Unpacking:
    """Calls the handlers of requests with packed bodies, one after the other, once a body has been decoded.

    So at most one large decoded body is in memory, however small they are when they arrive.
    """

    def __init__(self, guard: Callable[[Handler, Request], Result]) -> None:
        self._guard = guard
        self._turn = asyncio.Lock()

    def call(self, handler: Handler, request: Request) -> Result:
        if request.packed is None:
            return self._guard(handler, request)
        return self._call_later(handler, request, request.packed)

    async def _call_later(self, handler: Handler, request: Request, packed: Packed) -> Response:
        async with self._turn:
            body = await unpacked(request.body, packed)
            if isinstance(body, Response):
                return body
            request.body = body
            result = self._guard(handler, request)
            return result if isinstance(result, Response) else await cast("asyncio.Future[Response]", result)


async def unpacked(body: bytes, packed: Packed) -> bytes | Response:
    """Decode a body in steps. Return it, or the response that rejects it."""
    for parameter in ZLIB[packed.coding]:
        try:
            return await _in_steps(body, parameter, packed)
        except zlib.error:
            continue
    return BAD_ENCODING


async def _in_steps(body: bytes, parameter: int, packed: Packed) -> bytes | Response:
    decoder = zlib.decompressobj(parameter)
    pieces: list[bytes] = []
    size, at, data = 0, 0, b""
    while not decoder.eof:
        if not data:
            data = body[at : at + STEP_BYTES]
            at += len(data)
        piece = decoder.decompress(data, STEP_BYTES)
        if not piece and not data:
            return BAD_ENCODING  # it ends too early
        data = decoder.unconsumed_tail
        size += len(piece)
        if size > packed.most:
            return packed.too_large
        pieces.append(piece)
        await asyncio.sleep(0)
    return BAD_ENCODING if decoder.unused_data or at < len(body) else b"".join(pieces)
