"""Row D1: request lines that only a lenient reading accepts, and that nothing else changes by it."""

import re
from urllib.parse import unquote_to_bytes

import http_harness as harness
import pytest
from http_harness import QUICK, Client, get, post
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_requests import GOOD, MALFORMED, NOISE, pieces

serve = harness.serve

AGENT = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) Mobile/15E148"
CLOSE = "Connection: close"


@pytest.fixture
def lenient(serve):
    """A server whose data paths end with /echo."""

    def start(**options):
        return serve(lenient=lambda path: path.endswith(b"/echo"), **options)

    return start


def encoded(target):
    return re.sub(rb"[ \t\x80-\xff]", lambda found: b"%%%02X" % found[0][0], target.encode("latin-1")).decode()


TARGETS = {
    "user agent": f"/echo?en=buy&a=123456&visitor_ua={AGENT}",
    "other parameters behind it": f"/eu01/echo?visitor_ua={AGENT}&visitor_ip=192.0.2.1",
    "tab": "/echo?a=b\tc",
    "UTF-8": "/echo?a=k\xc3\xa4se",
    "Latin-1": "/echo?a=k\xe4se",
    "blank at the beginning": "/echo? a",
    "blank at the end": "/echo?a \xe4",
    "blanks only": "/echo?\t \t",
    "escapes stay": "/echo?a=%20 %C3%A4%",
    "a version inside": "/echo?a=b HTTP/1.1 c",
    "a version inside, with a header": "/echo?a=b HTTP/1.1 Content-Length: 5",
    "a whole line inside": "/echo?a=b HTTP/1.1 POST /echo HTTP/1.1",
    "escaped line ends": "/echo?a=b HTTP/1.1%0d%0aX: y",
    "question mark and number sign": "/echo?a ?#b",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_d1_the_query_is_percent_encoded(lenient, target, method):
    client = lenient().connect()
    for _ in range(3):
        client.send(get(target, "X-Y: z", "Content-Length: 2", method=method) + b"{}")
        answer = client.response()
        assert answer.status == 200
        document = answer.json
        path, _, query = encoded(target).partition("?")
        assert (document["method"], document["path"], document["query"]) == (method, path, query)
        assert document["headers"] == [["Host", "example"], ["X-Y", "z"], ["Content-Length", "2"]]
        assert document["body"] == "{}"
        assert client.send(get("/const")).response().body == b'"const"'


def test_d1_only_on_data_paths(lenient, serve):
    for target in (
        f"/other?{AGENT}",
        f"/const?{AGENT}",
        "/echo b?c",
        "/echo\xe4?b",
        "/\xe4/echo?b",
        "/echo/ ?b c/echo",
    ):
        client = lenient().connect().send(get(target))
        assert client.response().status == 400
        client.assert_closed()
    client = serve().connect().send(get(f"/echo?{AGENT}"))
    assert client.response().status == 400
    client.assert_closed()


def test_d1_http10(lenient):
    client = lenient().connect().send(get("/echo?a b", version="1.0"))
    answer = client.response()
    assert (answer.json["query"], answer.json["version"], answer.headers["connection"]) == ("a%20b", "1.0", "close")
    client.assert_closed()


LINE = b"POST /echo?a b HTTP/1.1\r\nHost: a\r\n"

REJECTED = {
    "another method": b"PUT /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD": b"HEAD /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no method": b" /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"FOO /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"post /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "two blanks before the target": b"POST  /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab before the target": b"POST\t/echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form": b"POST http://a/echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form": b"CONNECT a:443 b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no slash": b"POST echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no query": b"POST /echo a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"POST /echo?a b\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /echo?a b HTTP/0.9\r\n\r\n",
    "HTTP/2": b"POST /echo?a b HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"POST /echo?a b HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/1.10": b"POST /echo?a b HTTP/1.10\r\nHost: a\r\n\r\n",
    "HTTP/11": b"POST /echo?a b HTTP/11\r\nHost: a\r\n\r\n",
    "lower-case version": b"POST /echo?a b http/1.1\r\nHost: a\r\n\r\n",
    "a blank behind the version": b"POST /echo?a b HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a tab behind the version": b"POST /echo?a b HTTP/1.1\t\r\nHost: a\r\n\r\n",
    "a tab before the version": b"POST /echo?a b\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "LF alone": b"POST /echo?a b HTTP/1.1\nHost: a\r\n\r\n",
    "LF inside": b"POST /echo?a b\nc HTTP/1.1\r\nHost: a\r\n\r\n",
    "LF inside, with a version": b"POST /echo?a b HTTP/1.1\nX: y HTTP/1.1\r\nHost: a\r\n\r\n",
    "CR inside": b"POST /echo?a b\rc HTTP/1.1\r\nHost: a\r\n\r\n",
    "CR inside, with a header": b"POST /echo?a b HTTP/1.1\rX: y HTTP/1.1\r\nHost: a\r\n\r\n",
    "two CR": b"POST /echo?a b HTTP/1.1\r\r\nHost: a\r\n\r\n",
    "CR LF inside": b"POST /echo?a b\r\nX: y HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL": b"POST /echo?a b\0c HTTP/1.1\r\nHost: a\r\n\r\n",
    "another control character": b"POST /echo?a b\x1fc HTTP/1.1\r\nHost: a\r\n\r\n",
    "DEL": b"POST /echo?a b\x7fc HTTP/1.1\r\nHost: a\r\n\r\n",
    "folded first header": b"POST /echo?a b HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n",
    "folded header": b"POST /echo?a b HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "two request lines": b"POST /echo?a b HTTP/1.1\r\nHost: a\r\nPOST /echo?c d HTTP/1.1\r\nHost: a\r\n\r\n",
    "length and chunked": LINE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    "chunked and length": LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n",
    "two lengths": LINE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "a blank in a header's name": b"POST /echo?a b HTTP/1.1\r\nHost: a\r\nHo st: a\r\n\r\n",
    "LF in a header": b"POST /echo?a b HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "NUL in a header": b"POST /echo?a b HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "a line in a header": b"GET /const HTTP/1.1\r\nPOST /echo?a b HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("data", [*REJECTED.values(), *MALFORMED.values()], ids=[*REJECTED, *MALFORMED])
@pytest.mark.parametrize("size", [0, 1, 7])
def test_d1_smuggling_stays_rejected(serve, data, size):
    """Nothing of it is served, whatever paths are lenient, and however it is cut into pieces."""
    live = serve(lenient=lambda path: True)
    client = live.connect()
    for part in pieces(data, range(size, len(data), size)) if size else [data]:
        try:
            client.send(part)
        except (BrokenPipeError, ConnectionResetError):
            break
        if size:
            live.turn()
    answer = client.response()
    assert (answer.status, answer.error) == (400, "malformed HTTP request")
    assert live.routes.started == []
    assert live.ask(get("/const")).status == 200


def test_d1_a_line_in_a_body_is_no_line(lenient):
    """The bytes of a body are never read as a request, also if a request behind it has to be read again."""
    live = lenient()
    inner = get("/echo?inner a")
    for first in (post("/echo", inner), post("/echo?x y", inner)):
        client = live.connect().send(first + get("/echo?b c") + inner.replace(b"/echo", b"/const"))
        assert client.response().json["body"].encode() == inner
        assert client.response().json["query"] == "b%20c"
        assert client.response().status == 400
        client.assert_closed()
    chunked = b"POST /echo?c d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(inner),
        inner,
    )
    client = live.connect().send(chunked + get("/echo?e f", CLOSE))
    assert client.response().json["body"].encode() == inner
    assert client.response().json["query"] == "e%20f"
    client.assert_closed()


def test_d1_stray_bytes_are_still_dropped(lenient):
    live = lenient()
    for stray in (b"Connection: close\r\n\r\n", b"X: a b HTTP/1.1\r\n\r\n", b"\xff\r\n"):
        client = live.connect().send(post(f"/echo?{AGENT}", b"{}") + stray)
        assert client.response().status == 200
        client.assert_closed()


def test_d1_order_of_pipelined_requests(lenient):
    live = lenient(limits=QUICK._replace(max_pipelined=3))
    data = b"".join(
        get(f"/async?0.0{9 - number}") + post(f"/echo?a {number}", b"{}") + get("/const") for number in range(9)
    )
    client = live.connect().send(data)
    for number in range(9):
        assert client.response().body == b'"async"'
        assert client.response().json["query"] == f"a%20{number}"
        assert client.response().body == b'"const"'


def test_d1_gated_answers_keep_their_order(lenient):
    live = lenient()
    client = live.connect().send(get("/gated?1") + get("/echo?a b") + get("/gated?2") + get("/echo?c d"))
    live.until(lambda: live.routes.started.count(b"") == 2)
    client.assert_silent()
    live.call(live.routes.gate.open)
    assert [client.response().body[:8] for _ in range(4)] == [b'"gated"', b'{"method', b'"gated"', b'{"method']


def test_d1_upgrade_and_expect(lenient):
    live = lenient()
    for target, query in (("/echo?a b", "a%20b"), ("/echo?ab", "ab")):
        first = post(target, b"{}", "Connection: Upgrade", "Upgrade: h2c")
        client = live.connect().send(first + get("/echo?c d"))
        assert [client.response().json["query"] for _ in range(2)] == [query, "c%20d"]
    client = live.connect().send(get("/echo?a b", "Expect: 100-continue", "Content-Length: 2", method="POST"))
    assert client.response().status == 100
    assert client.send(b"{}").response().json["body"] == "{}"


def test_d1_half_closed_and_many(lenient):
    client = lenient().connect().send(post(f"/echo?{AGENT}", b"{}") * 500).half_close()
    assert [client.response().status for _ in range(500)] == [200] * 500
    client.assert_closed()


# ---- limits


@pytest.mark.parametrize("cut", [0, 100])
def test_d1_a_head_up_to_the_limit(lenient, cut):
    live = lenient(limits=QUICK._replace(max_header_bytes=5000))

    def status(*request):
        client = live.connect()
        data = get(*request)
        if cut:
            client.send(data[:cut])
            live.turn()
        return client.send(data[cut:]).response().status

    assert status("/echo?a b" + "x" * 4500) == 200
    assert status("/echo?a b" + "x" * 5100) == 431
    assert status("/echo?a" + " " * 1600 + "b") == 200
    assert status("/echo?a" + " " * 1700 + "b") == 431  # three bytes each
    assert status("/echo?a b" + "x" * 2500, "X: " + "y" * 2000) == 200
    assert status("/echo?a b" + "x" * 2500, "X: " + "y" * 3000) == 431


def test_d1_an_endless_line(lenient):
    live = lenient(limits=QUICK._replace(max_header_bytes=5000))
    client = live.connect().send(get("/const") + b"POST /echo?a b")
    assert client.response().status == 200
    for _ in range(20):
        client.send(b"x y" * 300)
        live.turn()
    assert client.response().status == 431
    client.assert_closed()


def test_d1_a_slow_line(lenient):
    client = lenient(limits=QUICK._replace(header_seconds=0.3)).connect().send(b"POST /echo?a b")
    assert client.response().status == 408
    client.assert_closed()


def test_d1_a_line_that_never_ends(lenient):
    client = lenient().connect().send(get("/const") + b"POST /echo?a b").half_close()
    assert client.response().status == 200
    client.assert_closed()


# ---- splits

SPLIT = {
    "alone": get(f"/echo?u={AGENT}\t\xc3\xa4", CLOSE),
    "bodies before and behind": post("/echo?1", b"GET /echo?no a HTTP/1.1\r\n\r\n")
    + post("/echo?2 a", b"POST /echo?no b")
    + post("/echo?3", b"{}")
    + get("/echo?4 b", CLOSE),
    "heads before and behind": get("/echo?1", "X: y") + get("/echo?2 a", "X: y") * 2 + get("/echo?3", CLOSE),
    "chunked": get("/echo?1 a", "Transfer-Encoding: chunked", method="POST")
    + b"3\r\nabc\r\n0\r\nT: u\r\n\r\n"
    + get("/echo?2", CLOSE),
}


def answers(client):
    found = []
    while not found or found[-1].headers.get("connection") != "close":
        found.append(client.response())
    client.assert_closed()
    return [answer.json for answer in found]


@pytest.mark.parametrize("data", SPLIT.values(), ids=SPLIT)
def test_d1_every_split_gives_the_same_answers(lenient, data):
    live = lenient()
    expected = answers(live.connect().send(data))
    assert len(expected) == data.count(b" HTTP/1.1\r\nHost")
    clients = [(live.connect().send(data[:at]), data[at:]) for at in range(1, len(data))]
    live.turn()
    for client, rest in clients:
        client.send(rest)
        assert answers(client) == expected


@pytest.mark.parametrize("data", SPLIT.values(), ids=SPLIT)
@pytest.mark.parametrize("size", [1, 2, 17, 60])
def test_d1_small_pieces_give_the_same_answers(lenient, data, size):
    live = lenient()
    client = live.connect()
    for part in pieces(data, range(size, len(data), size)):
        client.send(part)
        live.turn()
    assert answers(client) == answers(live.connect().send(data))


# ---- arbitrary bytes

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
LINES = [
    get("/echo?a b"),
    post("/echo?\xe4\t", b"{}"),
    get("/echo?a HTTP/1.1 X: y"),
    post("/echo?a b", b"a b HTTP/1.1\r\n"),
]


@st.composite
def mutated(draw):
    data = b"".join(draw(st.lists(st.sampled_from(GOOD + LINES), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 20)))
        data = data[:at] + draw(st.sampled_from([b"", data[at:to] * 2, *NOISE])) + data[to:]
    return data


def everything(live, data, cuts):
    client = Client(harness.socket.create_connection(("127.0.0.1", live.server.port)))
    try:
        for part in pieces(data, cuts):
            client.send(part)
            live.turn()
        return client.half_close().rest()
    except (BrokenPipeError, ConnectionResetError):
        return None
    finally:
        client.sock.close()


MALFORMED_ANSWER = re.compile(rb"HTTP/1\.1 400 Bad Request\r\n[^{]*\{[^}]*malformed HTTP request\"[^}]*\}\Z")


def test_d1_what_the_strict_parser_accepts_is_unchanged(serve):
    """Everything that a strict server answers is answered alike; only its last word, 400 or silence, may differ."""
    strict, loose = serve(), serve(lenient=lambda path: path.endswith(b"/echo"))

    @FUZZ
    @given(mutated(), st.lists(st.integers(0, 1000), max_size=3))
    def run(data, cuts):
        received = everything(strict, data, cuts), everything(loose, data, cuts)
        if None not in received:
            before = MALFORMED_ANSWER.sub(b"", received[0])
            assert received[1].startswith(before)
            if before == received[0] and b"\r\n\r\n" in data and not strict_may_have_stopped(data):
                assert received[1] == received[0]
        assert strict.problems == loose.problems == []

    run()


def strict_may_have_stopped(data):
    """A strict server drops what follows a complete request, without a word, if it is not even a method."""
    return re.search(rb"[\t \x80-\xff].* HTTP/1\.[01]\r\n", data) is not None


def test_d1_any_query_arrives(lenient):
    live = lenient()
    client = live.connect()

    @FUZZ
    @given(st.binary(max_size=60).filter(lambda query: not re.search(rb"[\0-\x08\n-\x1f\x7f]", query)))
    def run(query):
        answer = client.send(b"POST /echo?%b HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" % query).response()
        assert answer.status == 200
        given_query = answer.json["query"]
        # The strict parser accepts spaces before the version, and drops them.
        assert unquote_to_bytes(given_query).rstrip(b" ") == unquote_to_bytes(query).rstrip(b" ")
        assert given_query.isascii()
        assert not re.search(r"[\0-\x20\x7f]", given_query)

    run()
