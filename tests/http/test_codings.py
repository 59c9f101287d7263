"""A body that is large when decoded is decoded in steps, and one at a time.

Found by `scripts/hostile`: decoding 8 MB took 50 ms, in which nothing else was served, and small bodies that became
large were not limited together.
"""

import asyncio
import gc
import gzip
import weakref
import zlib

import pytest
from http_harness import QUICK, Routes, get, post, serve

from tornado_gateway.errors import RequestError
from tornado_gateway.http.codings import STEP_BYTES, unpacked
from tornado_gateway.http.messages import BAD_ENCODING, Packed, Request, Response, json_error, too_large
from tornado_gateway.http.request_ids import outcome

__all__ = ["serve"]

SMALL, LARGE = 1000, 1 << 20
TOO_LARGE = too_large(LARGE, "MAX_BYTES")
GZIP = "Content-Encoding: gzip"


async def turns_of(body, packed):
    """Decode a body; return the result and the number of turns of the loop."""
    task, turns = asyncio.ensure_future(unpacked(body, packed)), 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    return task.result(), turns


async def test_each_turn_decodes_a_step():
    plain = bytes(range(256)) * (LARGE // 256)
    result, turns = await turns_of(gzip.compress(plain), Packed(b"gzip", LARGE, TOO_LARGE))
    assert result == plain
    assert turns >= LARGE / STEP_BYTES


RAW = zlib.compress(b"x" * LARGE)[2:-4]
BODIES = {
    "gzip": (b"gzip", gzip.compress(b"x" * LARGE), b"x" * LARGE),
    "deflate": (b"deflate", zlib.compress(b"x" * LARGE), b"x" * LARGE),
    "raw deflate": (b"deflate", RAW, b"x" * LARGE),
    "not compressible": (b"gzip", zlib.compress(RAW * 300, 0, wbits=31), RAW * 300),
    "one byte too many": (b"gzip", gzip.compress(b"x" * (LARGE + 1)), TOO_LARGE),
    "bomb": (b"deflate", zlib.compress(bytes(50 * LARGE)), TOO_LARGE),
    "half": (b"gzip", gzip.compress(b"x" * LARGE)[:-9], BAD_ENCODING),
    "more behind it": (b"gzip", gzip.compress(b"x" * LARGE) + b"x", BAD_ENCODING),
    "much more behind it": (b"gzip", gzip.compress(b"x" * LARGE) + b"x" * LARGE, BAD_ENCODING),
    "damaged": (b"gzip", gzip.compress(b"x" * LARGE)[:500] + b"x" * 999, BAD_ENCODING),
}


@pytest.mark.parametrize(("coding", "body", "result"), BODIES.values(), ids=BODIES)
async def test_the_result_is_that_of_decoding_at_once(coding, body, result):
    assert await unpacked(body, Packed(coding, LARGE, TOO_LARGE)) == result


class CodedRoutes(Routes):
    """/coded counts the requests that are in progress at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.table[b"POST", b"/coded"] = self.coded

    async def coded(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        return Response(200, b"%d" % len(request.body))


@pytest.fixture
def routes():
    return CodedRoutes()


@pytest.fixture
def live(serve, routes):
    limits = QUICK._replace(max_body_bytes=SMALL)
    return serve(find=routes.find, limits=limits, body_limit=lambda path: (LARGE, TOO_LARGE))


def test_large_bodies_are_decoded_one_at_a_time_and_small_ones_beside_them(live, routes):
    clients = [live.connect().send(post("/coded", gzip.compress(b"x" * LARGE), GZIP)) for _ in range(5)]
    assert [client.response().body for client in clients] == [b"%d" % LARGE] * 5
    assert routes.most == 1
    assert live.ask(post("/coded", gzip.compress(b"x" * SMALL), GZIP)).body == b"%d" % SMALL


def test_responses_keep_their_order_and_the_connection_lasts(live):
    bomb, large = gzip.compress(bytes(2 * LARGE)), gzip.compress(b"x" * LARGE)
    client = live.connect().send(post("/coded", bomb, GZIP) + get("/const") + post("/coded", large, GZIP))
    assert [client.response().status for _ in range(3)] == [413, 200, 200]
    assert client.send(get("/const")).response().status == 200


async def test_a_request_that_failed_is_freed_at_once():
    """Its body was kept until the next garbage collection: a worker had 1.6 GB in pure Python."""

    class Kept:
        pass

    async def fail(request):
        raise RequestError(400, "the body is not JSON")

    request = Request(b"POST", b"/", b"", [], b"x")
    request.client = Kept()
    freed = weakref.ref(request.client)
    gc.disable()
    try:
        task = asyncio.ensure_future(fail(request))
        await asyncio.wait([task])
        assert outcome(request, task, lambda path, error: json_error(error.status, str(error))).status == 400
        del request, task
        assert freed() is None
    finally:
        gc.enable()
