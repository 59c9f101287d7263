"""A `tornado.web.Application` behind the HTTP front: everything a RequestHandler does must work."""

import asyncio
import contextlib
import gc

import http_harness as harness
import pytest
from http_harness import QUICK, get, post
from tornado import web
from tornado.iostream import StreamClosedError

from tornado_gateway.http.messages import Request

serve = harness.serve
events: list[str] = []
LARGE = b"x" * 8_000_000  # more than the kernel's buffers take


class Echo(web.RequestHandler):
    def get(self):
        self.set_header("X-Seen", f"{self.request.remote_ip} {self.request.protocol} {self.request.version}")
        self.write(f"{self.request.uri} {self.get_argument('a', '')}")

    def post(self):
        self.write(self.request.body)

    def head(self):
        self.set_header("Content-Length", "1234")


class Parts(web.RequestHandler):
    async def get(self):
        with contextlib.suppress(StreamClosedError):  # a client that has left
            for part in ("one", "two", "three"):
                self.write(part)
                await self.flush()
                await asyncio.sleep(0.01)


class Long(web.RequestHandler):
    """Waits until the client goes away."""

    async def get(self):
        self.gone = asyncio.Event()
        events.append("waiting")
        await self.gone.wait()

    def on_connection_close(self):
        events.append("closed")
        self.gone.set()


class Endless(web.RequestHandler):
    async def get(self):
        try:
            while True:
                self.write("x" * 100_000)
                await self.flush()
                events.append("part")
        except StreamClosedError:
            events.append("stream closed")


class Large(web.RequestHandler):
    """Does not wait until it is read."""

    def get(self):
        events.append("large")
        self.write(LARGE)


class Broken(web.RequestHandler):
    async def get(self):
        if self.get_argument("late", ""):
            self.write("half")
            await self.flush()
        raise LookupError("on purpose")


class Empty(web.RequestHandler):
    def get(self):
        self.set_status(204)


class Close(web.RequestHandler):
    def get(self):
        self.set_header("Connection", "close")
        self.write("bye")


class Liar(web.RequestHandler):
    """Says one length and writes another."""

    def get(self):
        self.set_header("Content-Length", "5")
        self.write("x" * int(self.get_argument("size")))


@web.stream_request_body
class Upload(web.RequestHandler):
    async def prepare(self):
        self.size = 0
        await asyncio.sleep(0)

    async def data_received(self, chunk):
        await asyncio.sleep(0)
        self.size += len(chunk)

    def post(self):
        self.write(str(self.size))


@pytest.fixture
def pages(serve):
    events.clear()
    routes = [
        ("/page", Echo),
        ("/parts", Parts),
        ("/long", Long),
        ("/endless", Endless),
        ("/large", Large),
        ("/error", Broken),
        ("/empty", Empty),
        ("/close", Close),
        ("/liar", Liar),
        ("/upload", Upload),
    ]
    return lambda **options: serve(fallback=web.Application(routes), **options)


def test_get(pages):
    client = pages().connect()
    for _ in range(2):
        answer = client.send(get("/page?a=b%20c")).response()
        assert (answer.status, answer.body) == (200, b"/page?a=b%20c b c")
        assert answer.headers["x-seen"] == "127.0.0.1 http HTTP/1.1"


def test_post(pages):
    assert pages().ask(post("/page", b"body")).body == b"body"


def test_head(pages):
    client = pages().connect().send(get("/page", method="HEAD") + get("/page"))
    assert client.response(is_head=True).headers["content-length"] == "1234"
    assert client.response().body == b"/page "


def test_etag(pages):
    live = pages()
    etag = live.ask(get("/page")).headers["etag"]
    client = live.connect().send(get("/page", f"If-None-Match: {etag}") + get("/page"))
    assert [client.response().status for _ in range(2)] == [304, 200]


def test_no_content(pages):
    client = pages().connect().send(get("/empty") + get("/page"))
    answer = client.response()
    assert answer.status == 204
    assert "transfer-encoding" not in answer.headers
    assert client.response().status == 200


def test_streamed_answer_is_chunked(pages):
    client = pages().connect()
    for _ in range(2):
        answer = client.send(get("/parts")).response()
        assert (answer.body, answer.headers["transfer-encoding"]) == (b"onetwothree", "chunked")


@pytest.mark.parametrize("headers", [[], ["Connection: keep-alive"]])
def test_streamed_answer_to_http10_ends_with_the_connection(pages, headers):
    answer = pages().ask(get("/parts", *headers, version="1.0"))
    assert (answer.body, answer.headers["connection"]) == (b"onetwothree", "close")


def test_http10_keeps_alive_if_asked(pages):
    client = pages().connect()
    for _ in range(2):
        answer = client.send(get("/page", "Connection: keep-alive", version="1.0")).response()
        assert (answer.body, answer.headers["connection"]) == (b"/page ", "keep-alive")


def test_connection_close(pages):
    live = pages()
    for request in (get("/page", "Connection: close"), get("/close")):
        client = live.connect().send(request + get("/page"))
        assert client.response().headers["connection"] == "close"
        client.assert_closed()


def test_not_found_is_the_applications(pages):
    answer = pages().ask(get("/nowhere"))
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/html")


def test_absolute_target(pages):
    assert pages().ask(get("http://host/page?a=1")).body == b"/page?a=1 1"


def test_missing_host(pages):
    client = pages().connect().send(b"GET /page HTTP/1.1\r\n\r\n" + get("/page"))
    answer = client.response()
    assert (answer.status, answer.error) == (400, "expected one valid Host header")
    client.assert_closed()


def test_order_among_data_routes(pages):
    live = pages()
    paths = ["/async?0.03", "/parts", "/const", "/page", "/gated", "/parts", "/const"]
    client = live.connect().send(b"".join(map(get, paths)))
    live.until(lambda: b"" in live.routes.started)
    live.call(live.routes.gate.open)
    bodies = [client.response().body for _ in paths]
    assert bodies == [b'"async"', b"onetwothree", b'"const"', b"/page ", b'"gated"', b"onetwothree", b'"const"']


def test_byte_by_byte(pages):
    live = pages()
    client = live.connect()
    data = post("/page", b"body") + get("/parts")
    for at in range(len(data)):
        client.send(data[at : at + 1])
        live.turn()
    assert [client.response().body for _ in range(2)] == [b"body", b"onetwothree"]


def test_error_page(pages, caplog):
    client = pages().connect().send(get("/error") + get("/page"))
    assert [client.response().status for _ in range(2)] == [500, 200]
    assert {record.name for record in caplog.records} == {"tornado.application", "tornado.access"}
    caplog.clear()


def test_error_in_the_middle_of_an_answer(pages, caplog):
    """Tornado ends such an answer and logs; the connection goes on."""
    client = pages().connect().send(get("/error?late=1") + get("/page"))
    assert [client.response().body for _ in range(2)] == [b"half", b"/page "]
    assert {record.name for record in caplog.records} == {"tornado.application", "tornado.general"}
    caplog.clear()


@pytest.mark.parametrize("size", [1, 10])
def test_wrong_content_length_breaks_the_connection(pages, caplog, size):
    client = pages().connect().send(get(f"/liar?size={size}"))
    with pytest.raises((AssertionError, OSError)):
        client.response()
    caplog.clear()


def test_streamed_request_body(pages):
    client = pages().connect().send(post("/upload", b"x" * 300_000) + get("/page"))
    assert [client.response().body for _ in range(2)] == [b"300000", b"/page "]


@pytest.mark.parametrize("is_half", [True, False])
def test_handler_hears_of_a_closed_client(pages, is_half):
    live = pages()
    client = live.connect().send(get("/long"))
    live.until(lambda: events == ["waiting"])
    if is_half:
        client.half_close()
        assert client.response().status == 200
        client.assert_closed()
    else:
        client.sock.close()
    live.until(lambda: events == ["waiting", "closed"])


def test_half_closed_client_gets_a_streamed_answer(pages):
    client = pages().connect().send(get("/parts") + get("/page")).half_close()
    assert [client.response().body for _ in range(2)] == [b"onetwothree", b"/page "]
    client.assert_closed()


def test_page_of_a_client_that_has_left(pages):
    live = pages()
    client = live.connect().send(get("/async?0.05") + get("/parts") + get("/page"))
    live.until(lambda: live.routes.started)
    client.sock.close()
    live.until(lambda: not live.server.in_flight and not live.server.activity.tasks)


def test_streaming_waits_for_the_peer_and_ends_with_it(pages):
    live = pages()
    client = live.connect(SO_RCVBUF=4096).send(get("/endless"))
    client.take(1_000_000)
    count = len(events)
    live.turn()
    assert len(events) < 200 + count
    client.sock.close()
    live.until(lambda: events[-1] == "stream closed")


def test_d2_no_page_starts_behind_one_that_is_not_read(pages):
    """Row D2: a page was complete once it was written, and the next began, whatever the client had read."""
    live = pages()
    clients = [live.connect(SO_RCVBUF=65536).send(get("/large") * 8) for _ in range(5)]
    for client in clients:
        client.buffer = client.take(1) + client.buffer
    assert live.ask(get("/page")).status == 200
    assert events == ["large"] * len(clients)
    assert [clients[0].response().body for _ in range(8)] == [LARGE] * 8


def test_page_of_a_client_that_has_gone_is_not_started(pages):
    """It took its turn from those of others, and its task was left over after a stop."""
    live = pages()

    def ask_and_leave():
        (connection,) = live.server.activity.clients
        connection.data_received(get("/large"))
        connection.output.abort()

    live.connect()
    live.until(lambda: live.server.activity.clients)
    live.call(ask_and_leave)
    live.until(lambda: not live.server.activity.clients)
    assert live.ask(get("/page")).status == 200
    assert events == []


def test_stop_finishes_a_streamed_answer(pages):
    live = pages()
    client = live.connect().send(get("/parts"))
    live.until(lambda: live.server.in_flight)
    assert live.run(live.server.stop(5)) is True
    answer = client.response()
    assert answer.body == b"onetwothree"
    client.assert_closed()


def test_on_response(pages):
    seen = []
    live = pages(on_response=lambda request, status: seen.append((request.path, status)))
    client = live.connect().send(get("/page") + get("/empty") + get("/nowhere"))
    assert [client.response().status for _ in range(3)] == [200, 204, 404]
    live.turn()
    assert seen == [(b"/page", 200), (b"/empty", 204), (b"/nowhere", 404)]


def test_application_that_fails_to_start_a_request(serve, caplog):
    class Failing:
        def start_request(self, server_conn, request_conn):
            raise LookupError("on purpose")

    client = serve(fallback=Failing(), limits=QUICK).connect().send(get("/page") + get("/const"))
    assert client.response().error == "internal error"
    assert client.response().status == 200
    assert caplog.records[0].message == "Unhandled error in GET /page"
    caplog.clear()


def test_a_finished_page_needs_no_garbage_collection(pages):
    """Collections are rare in a worker, and a query can have 64 KB: 4,000 of them were 250 MB."""
    client = pages().connect()
    gc.collect()
    gc.disable()
    try:
        for number in range(50):
            assert client.send(get(f"/page?a={number}")).response().status == 200
        requests = [thing for thing in gc.get_objects() if isinstance(thing, Request)]
    finally:
        gc.enable()
    assert len(requests) < 10
