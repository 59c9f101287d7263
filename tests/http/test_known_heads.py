"""Heads that are read without the parser: the requests are the same as with it, whatever was read before."""

import hypothesis
import pytest
from http_harness import get, post, serve
from hypothesis import strategies as st

from tornado_gateway.http import limits
from tornado_gateway.http.limits import SAMPLED_QUERIES, KnownHeads, ServerOptions
from tornado_gateway.http.reader import CYCLE_SLICES, ENDED, SEARCHED_SLICES, Reader

__all__ = ["serve"]

HOST = b"Host: example\r\n"
PLAIN = post("/echo", b"12345")
CHUNKED = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
# Its body is also the end of its bytes, as if a head with a larger size announced it.
LIKE_A_PLAIN_BODY = CHUNKED + b"e\r\n" + b"\r\n0\r\n\r\n" * 2 + b"\r\n0\r\n\r\n"
FIRST = b"GET /first HTTP/1.1\r\n" + HOST + b"\r\n"
SLICES = [
    PLAIN,
    PLAIN[:-5] + b"abcde",
    PLAIN[:-5] + b"\r\n\r\n\n",
    PLAIN[:-5],
    PLAIN[:-3],
    b"345",
    PLAIN + PLAIN,
    PLAIN + b"GET /after HTTP/1.1\r\n" + HOST + b"\r\n",
    PLAIN + b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n" + PLAIN,
    PLAIN.replace(b"/echo", b"/echo?a=1"),
    PLAIN.replace(b"/echo", b"http://other/echo"),
    PLAIN.replace(b"/echo", b"/echo?" + b"a" * 200),
    PLAIN.replace(b"/echo", b"/echo?a=2"),
    PLAIN.replace(b"/echo", b"/echo?"),
    PLAIN.replace(b"/echo", b"/echo?a=1#b?c"),
    PLAIN.replace(b"/echo", b"/echo?a=1 HTTP/1.1?b=2"),
    PLAIN.replace(b"/echo HTTP/1.1", b"/echo?"),
    PLAIN.replace(b"/echo", b"/other?a=1"),
    PLAIN.replace(b"/echo", b"http://other/echo?a=1"),
    PLAIN.replace(b"/echo", b"http://other?a=1"),
    PLAIN.replace(b"/echo", b"/echo?a=1")[:-1],
    PLAIN.replace(b"/echo", b"/echo?a=1") + b"6",
    PLAIN.replace(b"/echo HTTP/1.1", b"/echo?a=1 HTTP/1.0"),
    PLAIN.replace(b"/echo HTTP/1.1", b"/echo"),
    PLAIN.replace(b"/echo HTTP/1.1\r\n", b"/echo\r\n\r\n"),
    *(b"GET /first\nX: a%b HTTP/1.1\r\n%bConnection: keep-alive\r\n\r\n" % (end, HOST) for end in (b"", b"?b", b"?c")),
    PLAIN.replace(b"POST", b"PUT"),
    PLAIN.replace(b"\r\n\r\n", b"\r\nX-Large: " + b"x" * 3000 + b"\r\n\r\n"),
    PLAIN.replace(HOST, b"Host:  example \r\n"),
    PLAIN.replace(HOST, b"X-Folded: a\r\n b\r\n" + HOST),
    PLAIN.replace(HOST, b"X-Say: a\r\n" + HOST),
    PLAIN.replace(HOST, b"Expect: 100-continue\r\n" + HOST),
    PLAIN.replace(HOST, b"Content-Encoding: identity\r\n" + HOST),
    PLAIN.replace(HOST, b"Connection: close\r\n" + HOST),
    PLAIN.replace(HOST, b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + HOST),
    PLAIN.replace(HOST, b""),
    PLAIN.replace(HOST, HOST + HOST),
    PLAIN.replace(HOST, b"Host: a b\r\n"),
    PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    PLAIN.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nX-Version: HTTP/1.1\r\nConnection: keep-alive\r\n"),
    PLAIN.replace(b"\r\n", b"\n"),
    b"GET /first HTTP/1.1\nHost: example\n\nGET /second HTTP/1.1\r\n" + HOST + b"\r\n",
    FIRST,
    b"HEAD /first HTTP/1.1\r\n" + HOST + b"\r\n",
    FIRST[:-4],
    FIRST[:-2],
    b"\r\nX-More: 1\r\n\r\n",
    LIKE_A_PLAIN_BODY,
    LIKE_A_PLAIN_BODY[:-14] + b"GET / HTTP/1.1",
    CHUNKED + b"0\r\n\r\n",
    CHUNKED + b"0\r\nHost: b\r\n\r\n",
    CHUNKED,
    b"0\r\n\r\n",
    b"Connection: close",
    b"\0",
]


def with_query(query):
    return PLAIN.replace(b"/echo", b"/echo?" + query)


def head_of(data):
    return data.partition(b"\r\n\r\n")[0]


def is_known(known, data):
    """Whether a slice is read without the parser."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head in known.by_bytes and known.by_bytes[head].body_size == len(body)


def requests_in(slices, heads):
    """The requests in the slices of one connection, and its last state; `heads()` are those known at each slice."""
    options = ServerOptions(lambda method, path: None, extra_header_lines=lambda request: b"", echo_headers={b"x-say"})
    found = []
    reader = Reader(options, found.append)
    for data in slices:
        if reader.phase < ENDED:
            options.heads = heads()
            reader.read(data)
    names = ("method", "path", "query", "headers", "body", "peer", "keep_alive", "wants_echo")
    requests = [[getattr(request, name) for name in names] for request in found]
    return requests, reader.phase, reader.rejection and reader.rejection.status


@hypothesis.given(st.lists(st.lists(st.sampled_from(SLICES), max_size=6), min_size=1, max_size=3))
@hypothesis.example([[PLAIN, PLAIN, PLAIN[:-5] + b"abcde"]])
@hypothesis.example([[LIKE_A_PLAIN_BODY, LIKE_A_PLAIN_BODY[:-14] + b"GET / HTTP/1.1"]])
@hypothesis.example([[FIRST, FIRST[:-4], b"\r\nX-More: 1\r\n\r\n"]])
@hypothesis.settings(max_examples=400, deadline=None)
def test_known_heads_change_no_request(connections):
    known = KnownHeads()
    for slices in connections:
        assert requests_in(slices, lambda: known) == requests_in(slices, KnownHeads)


@pytest.mark.parametrize("first", SLICES)
@pytest.mark.parametrize("second", SLICES)
def test_each_slice_twice_and_with_another_one(first, second):
    known = KnownHeads()
    for slices in ([first, first, second], [FIRST, second, first], [second, first]):
        assert requests_in(slices, lambda: known) == requests_in(slices, KnownHeads)


def test_a_known_head_is_used():
    known = KnownHeads()
    assert not is_known(known, PLAIN)
    requests_in([PLAIN], lambda: known)
    assert is_known(known, PLAIN[:-5] + b"other")
    assert not is_known(known, PLAIN[:-1])
    assert not is_known(known, PLAIN + b"6")


def test_a_head_with_another_query_is_read_without_the_parser():
    """SDKs send each event with its time and a random number in the query."""
    options, found = ServerOptions(lambda method, path: None), []
    reader = Reader(options, found.append)
    reader.read(with_query(b"random=0"))
    reader.parser = None
    for number in range(1, 2 * CYCLE_SLICES):
        reader.read(with_query(b"random=%d" % number))
    assert [request.query for request in found] == [b"random=%d" % number for number in range(2 * CYCLE_SLICES)]
    assert {(request.method, request.path, request.body) for request in found} == {(b"POST", b"/echo", b"12345")}
    assert len(options.heads.by_bytes) <= 3 + 2 * CYCLE_SLICES // SAMPLED_QUERIES
    assert found[-1].known_head is None


def test_heads_with_other_queries_do_not_count_as_unknown():
    """Otherwise a few unknown heads would have the next ones read by the parser, for 152 slices."""
    options, found = ServerOptions(lambda method, path: None), []
    reader = Reader(options, found.append)
    reader.read(with_query(b"first"))
    for number in range(SEARCHED_SLICES):
        reader.read(get(f"/{number}"))
        reader.read(with_query(b"%d" % number))
    reader.parser = None
    reader.read(with_query(b"last"))
    assert found[-1].query == b"last"


def test_of_few_queries_each_is_known():
    """An environment can be named by the query, and what is known about it is kept with the head."""
    options, found = ServerOptions(lambda method, path: None), []
    reader = Reader(options, found.append)
    queries = [b"sdkKey=%d" % number for number in range(50)]
    for query in queries * 400:
        reader.read(with_query(query))
    named = [request.known_head for request in found[-len(queries) :]]
    assert [head and head.query for head in named] == queries


@pytest.mark.parametrize("before", [b"a=1", b"", b"?"])
def test_each_byte_of_a_query_is_read_as_by_the_parser(before):
    known = KnownHeads()
    requests_in([with_query(b"a=1")], lambda: known)
    for byte in range(256):
        slices = [with_query(b"%b%c" % (before, byte))]
        assert requests_in(slices, lambda: known) == requests_in(slices, KnownHeads), byte


def test_only_heads_of_http_1_1_are_known():
    known = KnownHeads()
    old = [data for data in SLICES if b"HTTP/1.0" in data]
    assert len(old) == 3
    for data in old:
        requests_in([data], lambda: known)
    assert not any(is_known(known, data) for data in old)


@pytest.mark.parametrize("lines", [0, 100], ids=["short", "many headers"])
def test_known_heads_are_bounded_in_bytes(lines):
    """A thousand heads with a hundred headers each took 20 MB."""

    def head(number):
        return get(f"/{number}", *[f"A{line}: {number}" for line in range(lines)])

    known = KnownHeads()
    largest = limits.MAX_HEADS_BYTES // (limits.HEADER_BYTES * (lines + 2))
    for number in range(largest + 2):
        requests_in([head(number)], lambda: known)
    assert not is_known(known, head(0))
    assert is_known(known, head(largest + 1))


def test_heads_have_equal_headers_in_common():
    """A client asks for many paths with the same headers. With copies of its own for each head, 1,600 took 2 MB."""
    known = KnownHeads()
    for number in range(2000):
        requests_in([get(f"/{number}", "A: b", "C: d", "E: f")], lambda: known)
    assert is_known(known, get("/0", "A: b", "C: d", "E: f"))
    first, last = (known.by_bytes[get(f"/{number}", "A: b", "C: d", "E: f")[:-4]] for number in (0, 1999))
    assert first.headers is last.headers
    assert first.method is last.method
    requests_in([get("/2000", "A: b", "C: d", "G: h")], lambda: known)
    other = known.by_bytes[get("/2000", "A: b", "C: d", "G: h")[:-4]]
    assert all(one is shared for one, shared in zip(other.headers[:-1], first.headers[:-1], strict=True))


def test_heads_that_differ_are_searched_and_remembered_rarely():
    known = KnownHeads()
    slices = [get(f"/{number}") for number in range(2 * CYCLE_SLICES)] + [PLAIN] * CYCLE_SLICES
    assert requests_in(slices, lambda: known) == requests_in(slices, KnownHeads)
    remembered = [number for number in range(2 * CYCLE_SLICES) if is_known(known, get(f"/{number}"))]
    assert len(remembered) < 3 * SEARCHED_SLICES
    assert is_known(known, PLAIN)


def test_a_head_that_was_not_searched_is_counted_once():
    """Nothing is searched in the rest of a cycle, and what was known by then stays so."""
    known = KnownHeads()
    requests_in([PLAIN], lambda: known)
    head = known.by_bytes[head_of(PLAIN)]
    for _ in range(3):
        requests_in([get(f"/{number}") for number in range(SEARCHED_SLICES)] + [PLAIN] * CYCLE_SLICES, lambda: known)
    assert known.by_bytes[head_of(PLAIN)] is head


def test_a_connection_in_steady_use_is_not_idle(serve):
    live = serve(limits=limits.Limits(keep_alive_seconds=0.4, drain_seconds=0.02, linger_seconds=0.5))
    client = live.connect()
    for _ in range(20):
        assert client.send(PLAIN).response().json["body"] == "12345"
        client.assert_silent(0.1)


def test_all_responses_get_the_lines_that_are_for_all_requests(serve):
    client = serve(extra_header_lines=lambda request: b"X-More: 1\r\n").connect()
    for _ in range(3):
        assert client.send(PLAIN).response().headers["x-more"] == "1"


def test_requests_from_a_known_head_name_it():
    """What is remembered about requests with a head must not be found for another one."""
    options, found = ServerOptions(lambda method, path: None), []
    reader = Reader(options, found.append)
    others = [PLAIN.replace(b"/echo", b"/echo?a=1"), PLAIN.replace(HOST, HOST + b"X-Key: 1\r\n")]
    for data in (PLAIN, PLAIN[:-5] + b"abcde", PLAIN, *others, *others):
        reader.read(data)
    heads = [request.known_head for request in found]
    assert heads[0] is heads[3] is heads[4] is None
    assert heads[1] is heads[2] is options.heads.by_bytes[head_of(PLAIN)]
    assert len({id(head) for head in (heads[1], heads[5], heads[6])}) == 3
    assert heads[5].query == b"a=1"
    assert (b"X-Key", b"1") in heads[6].headers
