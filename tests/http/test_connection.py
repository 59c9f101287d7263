"""The HTTP front on a real socket: requests, answers, order, limits, odd clients."""

import asyncio
import logging

import http_harness as harness
import pytest
from http_harness import QUICK, get, post
from raw_requests import MALFORMED

from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.gate import Gate
from tornado_gateway.http.limits import ServerOptions
from tornado_gateway.http.messages import Request, Response, json_error, too_large
from tornado_gateway.http.server import Server

serve = harness.serve


# ---- values


def test_response_is_rendered_once():
    response = Response(200, b"{}", headers=[(b"Vary", b"Origin")])
    assert response.encoded == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n"
        b"Vary: Origin\r\n\r\n{}"
    )
    assert response.render(b"Connection: close\r\n", True).endswith(b"Vary: Origin\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
def test_response_without_content_says_nothing_about_content(status):
    assert b"Content-" not in Response(status, b"ignored").encoded


def test_response_without_content_type():
    assert Response(200, b"", None).encoded == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_response_with_unknown_status():
    assert Response(299).encoded.startswith(b"HTTP/1.1 299 Unknown\r\n")


@pytest.mark.parametrize("header", [(b"A", b"b\r\nC: d"), (b"A\n", b"b"), (b"A", b"b\0")])
def test_response_refuses_header_injection(header):
    with pytest.raises(ValueError, match="line breaks"):
        Response(headers=[header])


def test_json_error():
    response = json_error(400, 'no "x"', [(b"Retry-After", b"1")])
    assert (response.status, response.body) == (400, b'{"status":0,"error":"no \\"x\\"","code":"invalid_request"}')
    assert b"Retry-After: 1\r\n" in response.encoded


def test_header_lookup_ignores_case_and_takes_the_first():
    request = Request(b"GET", b"/", b"", [(b"X-A", b"1"), (b"x-a", b"2"), (b"X-AB", b"3")])
    assert request.header(b"x-a") == b"1"
    assert request.header(b"x-b") is None


def test_e1_lines_of_a_list_header_are_joined_in_their_order():
    request = Request(b"GET", b"/", b"", [(b"X-A", b"1"), (b"x-a", b"2, 3"), (b"X-AB", b"4"), (b"X-A", b"")])
    assert request.list_header(b"x-a") == b"1, 2, 3, "
    assert request.list_header(b"x-ab") == b"4"
    assert request.list_header(b"x-b") == b""


def test_gate_opens_once():
    gate = Gate()
    gate.open()
    gate.fail(StoreError("too late"))
    assert gate.is_open
    assert gate.failure is None


# ---- requests and answers


def test_request_fields(serve):
    answer = serve().ask(post("/a/echo?b=c&d", b"{}", "X-Y: z"))
    assert answer.json == {
        "method": "POST",
        "path": "/a/echo",
        "query": "b=c&d",
        "headers": [["Host", "example"], ["Content-Length", "2"], ["X-Y", "z"]],
        "body": "{}",
        "peer": "127.0.0.1",
        "keep_alive": True,
        "version": "1.1",
    }


def test_keep_alive(serve):
    live = serve()
    client = live.connect()
    for _ in range(5):
        answer = client.send(get("/const")).response()
        assert (answer.status, answer.body) == (200, b'"const"')
        assert "connection" not in answer.headers
    assert live.server.connections == 1
    assert live.server.in_flight == 0


def said(request):
    return b"X-Said: %b\r\n" % (request.header(b"x-say") or b"nothing")


def test_more_headers_for_marked_requests_only(serve):
    client = serve(extra_header_lines=said, echo_headers={b"x-say"}).connect()
    for headers, expected in ([], None), (["X-Say: one"], "one"), (["x-sayings: a"], None), (["x-SAY: two"], "two"):
        assert client.send(get("/const", *headers)).response().headers.get("x-said") == expected
    pipelined = get("/async-gated-not", "X-Say: three") + get("/const") + get("/const", "X-Say: four")
    client.send(pipelined)
    assert [client.response().headers.get("x-said") for _ in range(3)] == ["three", None, "four"]
    assert client.send(get("/const", "X-Say: five", "Content-Length: 1e9")).response().headers["x-said"] == "five"


def test_more_headers_for_all(serve):
    client = serve(extra_header_lines=said).connect()
    for headers, expected in ([], "nothing"), (["X-Say: one"], "one"), ([], "nothing"):
        assert client.send(get("/const", *headers)).response().headers["x-said"] == expected


def test_a_trailer_marks_nothing(serve):
    client = serve(extra_header_lines=said, echo_headers={b"x-say"}).connect()
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Say: me\r\n\r\n"
    assert "x-said" not in client.send(chunked).response().headers
    assert "x-said" not in client.send(get("/const")).response().headers


def test_connection_close(serve):
    client = serve().connect().send(get("/const", "Connection: close"))
    assert client.response().headers["connection"] == "close"
    client.assert_closed()


def test_http10_closes(serve):
    client = serve().connect().send(get("/echo", version="1.0"))
    answer = client.response()
    assert (answer.json["version"], answer.headers["connection"]) == ("1.0", "close")
    client.assert_closed()


def test_http10_keeps_alive_if_asked(serve):
    client = serve().connect()
    for _ in range(2):
        answer = client.send(get("/echo", "Connection: keep-alive", version="1.0")).response()
        assert (answer.json["version"], answer.headers["connection"]) == ("1.0", "keep-alive")


def test_head_is_served_by_get(serve):
    client = serve().connect().send(get("/const", method="HEAD"))
    assert client.response(is_head=True).headers["content-length"] == "7"
    assert client.send(get("/const")).response().body == b'"const"'


def test_no_content(serve):
    client = serve().connect().send(get("/empty") + get("/const"))
    assert client.response().status == 204
    assert client.response().status == 200


def test_unknown_path_without_application(serve):
    answer = serve().ask(get("/nowhere"))
    assert (answer.status, answer.error) == (404, "not found")


@pytest.mark.parametrize(("path", "status"), [("/refused", 400), ("/async-refused", 409)])
def test_request_error_is_an_answer(serve, path, status):
    client = serve().connect().send(get(path))
    answer = client.response()
    assert answer.status == status
    assert answer.error
    assert client.send(get("/const")).response().status == 200


@pytest.mark.parametrize("path", ["/broken", "/async-broken", "/none", "/text", "/async-none"])
def test_broken_handler_is_logged_once(serve, path, caplog):
    client = serve().connect().send(get(path))
    answer = client.response()
    assert (answer.status, answer.error) == (500, "internal error")
    assert [record.name for record in caplog.records] == ["tornado_gateway.http.request_ids"]
    caplog.clear()
    assert client.send(get("/const")).response().status == 200


def test_broken_find(serve, caplog):
    live = serve(find=lambda method, path: {}[path])
    client = live.connect().send(get("/a") + get("/b"))
    assert [client.response().status for _ in range(2)] == [500, 500]
    caplog.clear()


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ('/echo?userId=["member-9"]', "/echo", 'userId=["member-9"]'),
        ("/echo?ua=Mozilla/5.0+(X11;+Linux),@{}|\\^`<>", "/echo", "ua=Mozilla/5.0+(X11;+Linux),@{}|\\^`<>"),
        ("/echo?a=%2541%20b", "/echo", "a=%2541%20b"),
        ("/echo?a?b", "/echo", "a?b"),
        ("/echo?", "/echo", ""),
        ("//server-side/echo", "//server-side/echo", ""),
        ("http://host:8080/echo?a=b", "/echo", "a=b"),
        ("http://host/x/echo", "/x/echo", ""),
    ],
)
def test_request_targets(serve, target, path, query):
    document = serve().ask(get(target)).json
    assert (document["path"], document["query"]) == (path, query)


@pytest.mark.parametrize("target", ["http://host", "http://host?a"])
def test_absolute_target_without_path_is_the_root(serve, target):
    live = serve(find=lambda method, path: lambda request: Response(200, request.path + request.query))
    assert live.ask(get(target)).body in (b"/", b"/a")


def test_options_asterisk(serve):
    document = serve().ask(get("*", method="OPTIONS")).json
    assert (document["method"], document["path"]) == ("OPTIONS", "*")


@pytest.mark.parametrize("target", ["/a b", "/\x01", "/\x7f", "/caf\xc3\xa9", "no-slash"])
def test_targets_that_the_parser_refuses(serve, target):
    client = serve().connect().send(get(target))
    assert client.response().status == 400
    client.assert_closed()


def test_leading_empty_lines(serve):
    client = serve().connect().send(b"\r\n\r\n" + get("/const") + b"\r\n" + get("/const"))
    assert [client.response().status for _ in range(2)] == [200, 200]


# ---- bodies


def test_chunked_body_with_extensions_and_trailers(serve):
    body = b'3;a=b\r\nabc\r\n2;c="d"\r\nde\r\n0\r\nX-Trailer: secret\r\nHost: other\r\nExpect: no\r\n\r\n'
    head = get("/echo", "Transfer-Encoding: chunked", method="POST")
    client = serve().connect().send(head + body + get("/echo?next"))
    document = client.response().json
    assert document["body"] == "abcde"
    assert [name for name, _ in document["headers"]] == ["Host", "Transfer-Encoding"]
    assert client.response().json["headers"] == [["Host", "example"]]


def test_body_in_many_reads(serve):
    live = serve()
    body = bytes(range(256)) * 2000
    assert live.ask(post("/echo", body)).json["body"].encode("latin1") == body


def test_body_up_to_the_limit(serve):
    live = serve(limits=QUICK._replace(max_body_bytes=100))
    assert live.ask(post("/echo", b"x" * 100)).status == 200
    client = live.connect().send(post("/echo", b"x" * 101))
    answer = client.response()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert answer.error
    client.assert_closed()


def test_announced_body_is_refused_before_it_comes(serve):
    live = serve(limits=QUICK._replace(max_body_bytes=100))
    client = live.connect().send(get("/echo", "Content-Length: 101", method="POST"))
    assert client.response().status == 413
    client.assert_closed()


def test_refused_upload_is_read_to_its_end(serve):
    """Closing with unread bytes would reset the connection, and the client would never see why."""
    client = serve().connect().send(get("/echo", "Content-Length: 30000000", method="POST"))
    for _ in range(300):
        client.send(b"x" * 100_000)
    assert client.response().status == 413
    client.half_close().assert_closed()


def test_chunked_body_over_the_limit(serve):
    live = serve(limits=QUICK._replace(max_body_bytes=100))
    client = live.connect().send(get("/echo", "Transfer-Encoding: chunked", method="POST"))
    client.send(b"32\r\n" + b"x" * 50 + b"\r\n")
    client.assert_silent(0.02)
    client.send(b"33\r\n" + b"x" * 51 + b"\r\n")
    assert client.response().status == 413
    client.assert_closed()


@pytest.mark.parametrize("noise", [b"1;" + b"e" * 1000, b"0\r\nTrailer: " + b"t" * 1000])
def test_chunk_extensions_and_trailers_are_bounded(serve, noise):
    live = serve(limits=QUICK._replace(max_header_bytes=2000))
    client = live.connect().send(get("/echo", "Transfer-Encoding: chunked", method="POST") + noise)
    for _ in range(20):
        client.send(b"n" * 1000)
        live.turn()
    assert client.response().status == 413
    client.assert_closed()


def test_tiny_chunks_are_no_attack(serve):
    live = serve(limits=QUICK._replace(max_header_bytes=500))
    head = get("/echo", "Transfer-Encoding: chunked", method="POST")
    assert len(live.ask(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n").json["body"]) == 20_000


def test_body_limit_of_a_path(serve):
    limits = QUICK._replace(max_body_bytes=10)
    limit_of = {b"/large/echo": (1000, too_large(1000, "MAX_BYTES"))}
    live = serve(limits=limits, body_limit=lambda path: limit_of.get(path, (10, too_large(10))))
    assert live.ask(post("/large/echo?a", b"x" * 1000)).status == 200
    large, small = live.ask(post("/large/echo", b"x" * 1001)), live.ask(post("/small/echo", b"x" * 11))
    assert (large.status, large.error) == (413, "the request body is larger than 1000 bytes (MAX_BYTES)")
    assert (small.status, small.error) == (413, "the request body is larger than 10 bytes")


# ---- Expect


def test_continue_is_sent_when_the_body_is_wanted(serve):
    client = serve().connect().send(get("/echo", "Content-Length: 2", "Expect: 100-Continue", method="POST"))
    assert client.response().status == 100
    assert client.send(b"{}").response().json["body"] == "{}"
    assert client.send(post("/echo", b"1")).response().json["body"] == "1"


def test_continue_is_not_sent_when_the_body_is_there(serve):
    assert serve().ask(post("/echo", b"{}", "Expect: 100-continue")).status == 200


def test_continue_is_not_sent_to_http10(serve):
    head = get("/echo", "Content-Length: 2", "Expect: 100-continue", method="POST", version="1.0")
    client = serve().connect().send(head)
    client.assert_silent()
    assert client.send(b"{}").response().status == 200


def test_continue_is_not_sent_when_the_body_is_too_large(serve):
    live = serve(limits=QUICK._replace(max_body_bytes=1))
    client = live.connect().send(get("/echo", "Content-Length: 2", "Expect: 100-continue", method="POST"))
    assert client.response().status == 413
    client.assert_closed()


def test_continue_waits_for_earlier_answers(serve):
    live = serve()
    client = live.connect().send(get("/gated"))
    client.send(get("/echo", "Content-Length: 2", "Expect: 100-continue", method="POST"))
    client.assert_silent()
    live.call(live.routes.gate.open)
    assert [client.response().status for _ in range(2)] == [200, 100]
    assert client.send(b"{}").response().status == 200


def test_continue_is_not_sent_for_a_later_request(serve):
    """The client has sent its body unasked, while the answer before it was held back."""
    live = serve()
    client = live.connect().send(get("/gated"))
    for data in (get("/echo", "Content-Length: 2", "Expect: 100-continue", method="POST"), b"{}", post("/echo", b"{}")):
        client.send(data[:-1] if data.endswith(b"\n{}") else data)
        live.turn()
    live.call(live.routes.gate.open)
    client.send(b"}")
    assert [client.response().status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_unknown_expectation(serve, body):
    client = serve().connect()
    client.send(get("/echo", "Content-Length: 2", "Expect: miracles", method="POST") + body)
    assert client.response().status == 417
    client.assert_closed()


# ---- order


def test_pipelined_answers_keep_their_order(serve):
    live = serve()
    paths = ["/async?0.05", "/const", "/gated", "/echo?1", "/async?0", "/refused", "/async-gated", "/const"]
    client = live.connect().send(b"".join(map(get, paths)))
    live.until(lambda: len(live.routes.finished) == 2)
    live.call(live.routes.gate.open)
    bodies = [client.response().body for _ in paths]
    assert [body[:9] for body in bodies] == [
        b'"async"',
        b'"const"',
        b'"gated"',
        b'{"method"',
        b'"async"',
        b'{"status"',
        b'"gated"',
        b'"const"',
    ]


def test_pipelined_requests_start_at_once(serve):
    live = serve()
    client = live.connect().send(get("/async?0.2") + get("/async?0"))
    live.until(lambda: b"0" in live.routes.finished)
    assert live.routes.finished == [b"0"]
    assert live.server.in_flight == 2
    assert [client.response().status for _ in range(2)] == [200, 200]


def test_many_pipelined_requests(serve):
    live = serve(limits=QUICK._replace(max_pipelined=8))
    client = live.connect()
    client.send(b"".join(get(f"/echo?{n}") for n in range(3000)))
    assert [client.response().json["query"] for _ in range(3000)] == [str(n) for n in range(3000)]


def test_only_so_many_pipelined_requests_start(serve):
    live = serve(limits=QUICK._replace(max_pipelined=8))
    client = live.connect().send(b"".join(get(f"/gated?{n}") for n in range(1000)))
    live.until(lambda: len(live.routes.started) >= 8)
    live.turn()
    assert len(live.routes.started) == 8
    live.call(live.routes.gate.open)
    assert [client.response().body for _ in range(1000)] == [b'"gated"'] * 1000
    assert live.routes.started == [str(n).encode() for n in range(1000)]


def test_close_after_pipelined_answers(serve):
    live = serve()
    client = live.connect().send(get("/gated") + get("/const", "Connection: close") + get("/const"))
    live.turn()
    live.call(live.routes.gate.open)
    assert "connection" not in client.response().headers
    assert client.response().headers["connection"] == "close"
    client.assert_closed()


# ---- gates


def test_gate_holds_answers_of_many_connections(serve):
    live = serve()
    clients = [live.connect().send(get("/gated") * 3) for _ in range(10)]
    live.until(lambda: len(live.routes.started) == 30)
    clients[0].assert_silent()
    assert live.server.in_flight == 30
    live.call(live.routes.gate.open)
    assert [client.response().body for client in clients for _ in range(3)] == [b'"gated"'] * 30
    assert clients[0].send(get("/gated")).response().status == 200  # an open gate lets pass


def test_failed_gate_replaces_the_answers(serve):
    live = serve()
    client = live.connect().send(get("/gated") + get("/const") + get("/async-gated"))
    live.until(lambda: len(live.routes.started) == 2)
    live.call(lambda: live.routes.gate.fail(StoreError("the store is full")))
    assert [client.response().status for _ in range(3)] == [503, 200, 503]
    assert client.send(get("/gated")).response().error == "the store is full"


def test_gates_open_in_any_order(serve):
    gates = [Gate(), Gate()]

    def handler(request):
        request.gate = gates[int(request.query)]
        return Response(200, request.query)

    live = serve(find=lambda method, path: handler)
    client = live.connect().send(get("/?0") + get("/?1") + get("/?0"))
    live.turn()
    live.call(gates[1].open)
    client.assert_silent()
    live.call(gates[0].open)
    assert [client.response().body for _ in range(3)] == [b"0", b"1", b"0"]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_does_not_wait_for_the_gate(serve, is_async):
    def handler(request):
        request.gate = Gate()
        raise RequestError(400, "no")

    async def async_handler(request):
        handler(request)

    live = serve(find=lambda method, path: async_handler if is_async else handler)
    assert live.ask(get("/")).error == "no"


def test_gate_opened_by_a_later_request_of_the_same_connection(serve):
    gate = Gate()

    def handler(request):
        if request.query == b"open":
            gate.open()
        else:
            request.gate = gate
        return Response(200, request.query)

    client = serve(find=lambda method, path: handler).connect().send(get("/?held") + get("/?open"))
    assert [client.response().body for _ in range(2)] == [b"held", b"open"]


# ---- metrics hook


def test_on_response_sees_every_response_once(serve):
    seen = []
    live = serve(on_response=lambda request, status: seen.append((request.method, request.path, status)))
    client = live.connect().send(get("/const") + get("/gated") + get("/async") + get("/no") + b"garbage\r\n\r\n")
    live.until(lambda: live.routes.started)
    live.call(live.routes.gate.open)
    assert [client.response().status for _ in range(4)] == [200, 200, 200, 404]
    client.assert_closed()
    live.ask(b"garbage\r\n\r\n")
    assert seen == [
        (b"GET", b"/const", 200),
        (b"GET", b"/gated", 200),
        (b"GET", b"/async", 200),
        (b"GET", b"/no", 404),
        (b"", b"", 400),
    ]


def test_failing_hook_does_not_stop_the_answer(serve, caplog):
    client = serve(on_response=lambda request, status: 1 / 0).connect().send(get("/const"))
    assert client.response().status == 200
    assert caplog.records[0].message == "the on_response hook failed"
    caplog.clear()


# ---- garbage


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests(serve, data):
    live = serve()
    client = live.connect().send(data)
    answer = client.response()
    assert (answer.status, answer.error) == (400, "malformed HTTP request")
    assert answer.headers["connection"] == "close"
    client.assert_closed()
    assert live.routes.started == []
    assert live.ask(get("/const")).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /const HTTP/2.0\r\n\r\n", 505),
        (b"GET /const HTTP/0.9\r\n\r\n", 505),
        (b"GET /const\r\n\r\n", 505),
        (b"CONNECT example:443 HTTP/1.1\r\nHost: example\r\n\r\n\x16\x03", 405),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ],
)
def test_what_is_not_served(serve, data, status):
    client = serve().connect().send(data)
    answer = client.response()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.error
    client.assert_closed()


def test_malformed_request_after_good_ones(serve):
    client = serve().connect().send(get("/async") + get("/const") + b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n")
    assert [client.response().status for _ in range(3)] == [200, 200, 400]
    client.assert_closed()


STRAY = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize("headers", [[], ["Connection: close"]])
@pytest.mark.parametrize("path", ["/echo", "/async?0.05"])
def test_stray_bytes_after_the_body_are_dropped(serve, path, headers):
    live = serve()
    client = live.connect().send(post(path, b"{}", *headers) + STRAY)
    assert client.response().status == 200
    client.assert_closed()


def test_late_stray_bytes_are_dropped(serve):
    live = serve()
    client = live.connect().send(post("/echo", b"{}", "Connection: close"))
    live.turn()
    client.send(STRAY)
    live.turn()
    client.send(STRAY)
    assert client.response().status == 200
    client.assert_closed()


def test_stray_bytes_and_a_closed_peer_do_not_stop_the_work(serve):
    live = serve()
    client = live.connect().send(post("/async?0.05", b"{}") + STRAY)
    client.sock.close()
    live.until(lambda: live.routes.finished == [b"0.05"])


# ---- upgrades


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_upgrade_is_ignored(serve, version):
    headers = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"]
    client = serve().connect().send(post("/echo", b"{}", *headers, version=version) + get("/echo?next"))
    document = client.response().json
    assert document["body"] == "{}"
    assert "Upgrade" not in dict(document["headers"])
    if version == "1.1":
        assert client.response().json["query"] == "next"


def test_upgrade_with_a_chunked_body_in_two_reads(serve):
    live = serve()
    head = get("/echo", "Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked", method="POST")
    client = live.connect().send(head + b"3\r\nab")
    live.turn()
    assert client.send(b"c\r\n0\r\n\r\n").response().json["body"] == "abc"


def test_many_pipelined_upgrades(serve):
    live = serve()
    client = live.connect().send(get("/echo", "Connection: Upgrade", "Upgrade: h2c") * 600)
    assert [client.response().status for _ in range(600)] == [200] * 600


# ---- heads


def test_head_up_to_the_limit(serve):
    live = serve(limits=QUICK._replace(max_header_bytes=50_000))
    assert live.ask(get("/const", "X: " + "y" * 49_000)).status == 200
    client = live.connect().send(get("/const", "X: " + "y" * 51_000))
    answer = client.response()
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert answer.error
    client.assert_closed()


@pytest.mark.parametrize("start", ["GET /", "GET /const HTTP/1.1\r\nX: ", "GET /const HTTP/1.1\r\nX"])
def test_endless_head(serve, start):
    live = serve(limits=QUICK._replace(max_header_bytes=5000))
    client = live.connect().send(start.encode())
    for _ in range(20):
        client.send(b"x" * 1000)
        live.turn()
    assert client.response().status == 431
    client.assert_closed()


def test_large_head_after_other_requests(serve):
    live = serve(limits=QUICK._replace(max_header_bytes=50_000))
    client = live.connect().send(get("/const") * 430 + get("/const", "X: " + "y" * 49_900))
    assert {client.response().status for _ in range(431)} == {200}


@pytest.mark.parametrize(("count", "status"), [(99, 200), (100, 431)])
def test_number_of_headers(serve, count, status):
    live = serve(limits=QUICK._replace(max_headers=100))
    assert live.ask(get("/const", *["X: y"] * count)).status == status


def test_max_connections(serve):
    live = serve(limits=QUICK._replace(max_connections=1))
    first = live.connect().send(get("/const"))
    assert first.response().status == 200
    second = live.connect()
    assert second.response().status == 503
    second.assert_closed()
    assert first.send(get("/const")).response().status == 200


# ---- splits

WHOLE = {
    "get": get('/echo?userId=["x"]&a=%20', "X-Y: z"),
    "post": post("/a/echo?b", b'{"featureKey":"plain"}', "Content-Type: application/json"),
    "chunked": get("/echo", "Transfer-Encoding: chunked", method="POST")
    + b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nT: u\r\n\r\n",
    "upgrade": post("/echo", b"{}", "Connection: upgrade", "Upgrade: h2c"),
    "pipelined": get("/echo?1") + post("/echo?2", b"{}") + get("/echo?3", "Connection: close"),
    "http10": post("/echo", b"{}", version="1.0"),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_every_split_gives_the_same_answer(serve, data):
    live = serve()
    count = data.count(b"HTTP/1.")
    whole = live.connect().send(data)
    expected = [whole.response().body for _ in range(count)]
    clients = []
    for at in range(1, len(data)):
        client = live.connect().send(data[:at])
        clients.append((client, data[at:]))
    live.turn()
    for client, rest in clients:
        client.send(rest)
    for client, _ in clients:
        assert [client.response().body for _ in range(count)] == expected


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_byte_by_byte(serve, data):
    live = serve()
    count = data.count(b"HTTP/1.")
    whole = live.connect().send(data)
    client = live.connect()
    for at in range(len(data)):
        client.send(data[at : at + 1])
        live.turn()
    assert [client.response().body for _ in range(count)] == [whole.response().body for _ in range(count)]


# ---- the loop of the caller


async def test_runs_on_the_loop_of_tornado(caplog):
    """The server needs nothing but a running loop; here it is the IOLoop of the test runner."""
    caplog.set_level(logging.WARNING)
    server = Server(ServerOptions(harness.Routes().find, limits=QUICK))
    await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(get("/const", "Connection: close"))
    assert (await reader.read()).endswith(b'"const"')
    writer.close()
    assert await server.stop(1)
    assert caplog.records == []
