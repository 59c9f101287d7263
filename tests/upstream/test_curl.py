"""Posts over real connections to a server that does as it is told, on both event loops."""

import asyncio
import contextlib
import gc
import gzip
import shutil
import socket
import ssl
import struct
import threading
import time
from functools import partial

import orjson
import pycurl
import pytest
import uvloop
from certificates import make_certificate
from process import free_port

from tornado_gateway.errors import UpstreamError
from tornado_gateway.store.interfaces import Identity
from tornado_gateway.upstream import client
from tornado_gateway.upstream.client import LONGEST_PATIENCE_SECONDS, Dialect, Patience, Upstream
from tornado_gateway.upstream.curl import MAX_RESPONSE_BYTES, CurlError, CurlPool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TARGET = "/batch?env=SECRET"
HEADERS = {"Authorization": "key", "Content-Type": "application/json"}
PATIENCE_SECONDS = 60  # for anything that is bound to happen
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


class Peer:
    """One connection as the server sees it."""

    def __init__(self, server, sock):
        self._server = server
        self.sock = sock
        self.buffer = b""

    def more(self):
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the client has closed")
        self.buffer += data
        return self

    def head(self):
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    def request(self):
        head = self.head()
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self.buffer) < size:
            self.more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        self._server.requests.append((head, body))
        return self

    def send(self, *parts):
        for part in parts:
            self.sock.sendall(part)
        return self

    def pause(self):
        """Until the client has read what it was sent: an end that comes sooner might overtake it."""
        assert self._server.may_end.wait(PATIENCE_SECONDS)
        return self

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def until_closed(self):
        while True:
            self.more()

    def serve(self):
        while True:
            self.request().send(OK)


class Server:
    """Plays the n-th of `plays` with its n-th connection, and the last one with all others."""

    def __init__(self, *plays, tls=None, host="127.0.0.1"):
        self._plays = plays
        self._tls = tls
        self._threads = []
        self._open = set()
        self.requests = []
        self.connections = 0
        self.may_end = threading.Event()
        self.ended = threading.Semaphore(0)  # counts connections that have ended
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64
        )
        self.port = self._listener.getsockname()[1]
        self._threads.append(threading.Thread(target=self._accept, daemon=True))

    @property
    def url(self):
        return f"http{'s' if self._tls else ''}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}"

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            play = self._plays[min(self.connections, len(self._plays) - 1)]
            self.connections += 1
            self._threads.append(threading.Thread(target=self._play, args=(play, sock), daemon=True))
            self._threads[-1].start()

    def _play(self, play, sock):
        sock.settimeout(PATIENCE_SECONDS)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._open.add(sock)
            play(Peer(self, sock))
        except OSError:
            pass
        finally:
            self._open.discard(sock)
            sock.close()
            self.ended.release()


def answers(*parts):
    """A play: each request is answered with these bytes."""

    def play(peer):
        while True:
            peer.request().send(*parts)

    return play


def answers_once(*parts):
    def play(peer):
        peer.request().send(*parts)

    return play


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run
    gc.collect()  # a connection that was not closed would complain now


async def post(url, *, times=1, timeout_seconds=PATIENCE_SECONDS, body=b"{}", between=None, pool_class=CurlPool):
    """Post some times, one after the other. Return status, reason and Retry-After of each response."""
    pool = pool_class(user_agent="gateway/1", timeout_seconds=timeout_seconds)
    try:
        got = []
        for number in range(times):
            if number and between is not None:
                await between()
            got.append(await head_of(pool.request(url + TARGET, HEADERS, body)))
        return got
    finally:
        pool.close()


async def head_of(request):
    """The head of a response is enough, as it is for events."""
    try:
        response = await request
    except CurlError as error:
        if error.response is None:
            raise
        response = error.response
    return response.status, response.reason, response.headers.get("retry-after", "")


# What is sent


def test_a_request_as_it_arrives(run):
    with Server(Peer.serve) as server:
        run(post(f"{server.url}/prefix", body=b'{"ev":[1,2]}'))
        ((head, body),) = server.requests
    assert head.split(b"\r\n") == [
        b"POST /prefix/batch?env=SECRET HTTP/1.1",
        b"Host: 127.0.0.1:%d" % server.port,
        b"User-Agent: gateway/1",
        b"Accept: */*",
        b"Authorization: key",
        b"Content-Type: application/json",
        b"Content-Length: 12",
    ]
    assert body == b'{"ev":[1,2]}'


@pytest.mark.parametrize("name", ["localhost", "user:word@127.0.0.1"])
def test_names_and_users_in_the_url(run, name):
    with Server(Peer.serve) as server:
        run(post(f"http://{name}:{server.port}"))
        ((head, _),) = server.requests
    assert b"\r\nHost: %b:%d\r\n" % (name.rpartition("@")[2].encode(), server.port) in head
    assert b"word" not in head


def test_an_address_of_ipv6(run):
    try:
        server = Server(Peer.serve, host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        run(post(f"http://[::1]:{server.port}"))
        ((head, _),) = server.requests
    assert b"\r\nHost: [::1]:%d\r\n" % server.port in head


def test_a_large_body_to_a_slow_reader(run):
    body = b"a" * 3_000_000 + b"b" * 3_000_000

    def slow(peer):
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        Peer.serve(peer)

    with Server(slow) as server:
        run(post(server.url, body=body, times=2))
        assert [body for _, body in server.requests] == [body] * 2
        assert server.connections == 1


@pytest.mark.parametrize(("size", "joins"), [(1000, 0), (3_000_000, 1)])
def test_a_large_response_is_put_together_beside_the_loop(run, monkeypatch, size, joins):
    calls = []
    in_thread = asyncio.to_thread
    monkeypatch.setattr(asyncio, "to_thread", lambda *args: calls.append(args) or in_thread(*args))
    expected = bytes(range(250)) * (size // 250)

    async def get():
        pool = CurlPool(timeout_seconds=PATIENCE_SECONDS, max_response_bytes=size)
        try:
            return [(await pool.request(server.url, body=b"{}")).body for _ in range(2)]
        finally:
            pool.close()

    with Server(answers(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, expected)) as server:
        assert run(get()) == [expected] * 2
    assert len(calls) == 2 * joins


@pytest.mark.parametrize(("target", "key"), [("/a\r\nb: c", "key"), ("/a b", "key"), ("/ä", "key"), ("/a", "k\nb: c")])
def test_no_request_is_made_of_what_would_be_another(run, target, key):
    async def ask():
        pool = CurlPool(timeout_seconds=1)
        with pytest.raises(CurlError, match=r"characters|not valid|URL rejected") as failure:
            await pool.request("http://127.0.0.1:1" + target, {"Authorization": key}, b"{}")
        assert "b: c" not in str(failure.value)
        pool.close()

    run(ask())


# Answers

ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b"x" * (2 * MAX_RESPONSE_BYTES)
ANSWERS = {  # parts that are sent; status, reason and Retry-After; whether the connection is used again
    "with a length": ([OK], (200, "OK", ""), True),
    "byte by byte": ([bytes([byte]) for byte in OK], (200, "OK", ""), True),
    "chunked": ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"], (200, "OK", ""), True),
    "chunked, with a trailer": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nRetry-After: 9\r\n\r\n"],
        (200, "OK", ""),
        True,
    ),
    "nothing in it": ([b"HTTP/1.1 204 No Content\r\n\r\n"], (204, "No Content", ""), True),
    "without a reason": ([b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n"], (503, "Service Unavailable", ""), True),
    "of an unknown status": ([b"HTTP/1.1 799 \r\nContent-Length: 0\r\n\r\n"], (799, "Unknown", ""), True),
    "later": (
        [b"HTTP/1.1 429 Slow Down\r\nretry-AFTER: 120\r\nContent-Length: 0\r\n\r\n"],
        (429, "Slow Down", "120"),
        True,
    ),
    "after informational ones": (
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nRetry-After: 1\r\nLink: <a>\r\n\r\n" + OK],
        (200, "OK", ""),
        True,
    ),
    "a redirection": ([b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"], (302, "Found", ""), True),
    "the last one": ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"], (200, "OK", ""), False),
    "of HTTP/1.0": ([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], (200, "OK", ""), False),
    "of HTTP/1.0, kept": (
        [b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"],
        (200, "OK", ""),
        True,
    ),
    "with bytes behind it": ([OK + b"HTTP/1.1 500"], (200, "OK", ""), False),
    "too much to read": ([ENDLESS], (200, "OK", ""), False),
    "a body that is garbage": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnope\r\n"],
        (200, "OK", ""),
        False,
    ),
}


@pytest.mark.parametrize(("parts", "wanted", "is_kept"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_its_head(run, parts, wanted, is_kept):
    with Server(answers(*parts)) as server:
        assert run(post(server.url, times=2)) == [wanted, wanted]
        assert len(server.requests) == 2
        assert server.connections == (1 if is_kept else 2)


CUT = {
    "until the end": [b"HTTP/1.1 200 OK\r\n\r\nok"],
    "cut off": [b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nok"],
    "cut off in a chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200\r\nok"],
}


@pytest.mark.parametrize("parts", CUT.values(), ids=CUT.keys())
def test_an_answer_that_ends_with_its_connection(run, parts):
    with Server(answers_once(*parts)) as server:
        assert run(post(server.url, times=2)) == [(200, "OK", "")] * 2
        assert (len(server.requests), server.connections) == (2, 2)


def test_an_answer_whose_body_does_not_come_stands_at_the_deadline(run):
    with Server(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")) as server:
        assert run(post(server.url, timeout_seconds=2)) == [(200, "OK", "")]
        assert len(server.requests) == 1


def test_another_protocol_is_no_success(run):
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    with Server(answers(switching)) as server:
        assert run(post(server.url, timeout_seconds=2)) == [(101, "Switching Protocols", "")]


@pytest.mark.parametrize("is_rude", [False, True], ids=["reads the rest", "closes"])
def test_an_answer_to_the_head_alone(run, is_rude):
    def play(peer):
        peer.head()
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        if not is_rude:
            peer.until_closed()

    with Server(play) as server:
        assert run(post(server.url, body=b"x" * 30_000_000)) == [(413, "Too Large", "")]


# No answers


def closes(peer):
    peer.request()


def resets(peer):
    peer.request()
    peer.reset()


def is_silent(peer):
    peer.request()
    peer.until_closed()


FAILURES = {
    "closes at once": (lambda peer: None, "closed without a response|lost"),
    "resets at once": (Peer.reset, "closed without a response|lost|connect"),
    "closes": (closes, "closed without a response|lost"),
    "resets": (resets, "lost: .*reset"),
    "is silent": (is_silent, "in time"),
    "closes in the head": (answers_once(b"HTTP/1.1 200 OK\r\nContent-"), "closed without a response|lost"),
    "stops in the head": (answers(b"HTTP/1.1 200 OK\r\nContent-"), "in time"),
    "says wait and closes": (answers_once(b"HTTP/1.1 100 Continue\r\n\r\n"), "closed without a response|lost"),
    "greets as a mail server": (answers(b"220 mail.example ESMTP\r\n"), "not HTTP"),
    "greets before it is asked": (lambda peer: peer.send(b"220 mail.example ESMTP\r\n").until_closed(), "not HTTP"),
    "speaks HTTP/0.9": (answers_once(b"<html>"), "not HTTP"),
    "has two lengths": (answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"), "not HTTP"),
    "has an endless head": (answers(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_RESPONSE_BYTES), "too large"),
}


@pytest.mark.parametrize(("play", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_no_answer_on_a_new_connection_is_an_error_at_once(run, play, message):
    with Server(play) as server:
        with pytest.raises(OSError, match=message) as failure:
            run(post(server.url, timeout_seconds=0.4 if message == "in time" else PATIENCE_SECONDS))
        assert len(server.requests) <= 1
    assert "SECRET" not in str(failure.value)


def test_a_connection_that_ends_before_it_is_used(run):
    with Server(Peer.reset) as server:
        for _ in range(50):
            with pytest.raises(OSError, match=r"closed|lost|connect"):
                run(post(server.url))


def test_nobody_listens(run):
    port = free_port()
    with pytest.raises(OSError, match=rf"connect to 127.0.0.1( port |:){port}\b.*: Connection refused$"):
        run(post(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize("name", ["vendor.invalid", "a..b", "x" * 64])
def test_a_name_without_an_address(run, name):
    with pytest.raises(OSError, match=r"resolve|URL|host"):
        run(post(f"http://{name}"))


class DeadEnd:
    """A listener whose queue is full, so that connecting to it takes for ever."""

    def __init__(self, host, port=0):
        self._listener = socket.create_server((host, port), backlog=0)
        self.port = self._listener.getsockname()[1]
        self._waiting = []

    def __enter__(self):
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self._listener.getsockname())
            self._waiting.append(sock)
        return self

    def __exit__(self, *_):
        for sock in (*self._waiting, self._listener):
            sock.close()


def test_a_server_that_never_accepts(run):
    with DeadEnd("127.0.0.1") as end, pytest.raises(OSError, match="in time"):
        run(post(f"http://127.0.0.1:{end.port}", timeout_seconds=0.3))


@pytest.mark.parametrize("first", ["refuses", "never accepts"])
def test_the_next_address_is_tried(run, first):
    """Names with several addresses are rare on a test machine, so these are put under one name here."""

    class TwoAddresses(CurlPool):
        def new_curl(self):
            handle = super().new_curl()
            handle.setopt(pycurl.RESOLVE, [f"vendor.invalid:{server.port}:127.0.0.2,127.0.0.1"])
            return handle

    async def scenario(port):
        return await post(f"http://vendor.invalid:{port}", timeout_seconds=4, times=3, pool_class=TwoAddresses)

    with Server(answers_once(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")) as server:
        if first == "refuses":
            assert len(run(scenario(server.port))) == 3
        else:
            with DeadEnd("127.0.0.2", server.port):
                assert len(run(scenario(server.port))) == 3
        assert len(server.requests) == 3


# Connections that are kept

CHECKED_AFTER_SECONDS = 1.5  # curl looks at idle connections once a second


def ended(server, seconds=0.02):
    """Let the server end connections, wait until one has ended, and then for `seconds`."""

    async def wait():
        server.may_end.set()
        assert await asyncio.to_thread(server.ended.acquire, timeout=PATIENCE_SECONDS)
        await asyncio.sleep(seconds)

    return wait


@pytest.mark.parametrize("end", [lambda peer: None, Peer.reset, lambda peer: peer.send(b"HTTP/1.1 408 Late\r\n\r\n")])
def test_a_connection_that_ended_while_idle_is_not_used(run, end):
    def play(peer):
        peer.request().send(OK).pause()
        end(peer)

    with Server(play, Peer.serve) as server:
        assert len(run(post(server.url, times=2, between=ended(server, CHECKED_AFTER_SECONDS)))) == 2
        assert (len(server.requests), server.connections) == (2, 2)


def test_a_connection_with_an_answer_to_nothing_is_not_used(run):
    is_sent = threading.Event()

    def play(peer):
        peer.request().send(OK).pause()
        peer.send(b"HTTP/1.1 408 Late\r\nContent-Length: 0\r\n\r\n")
        is_sent.set()
        peer.until_closed()

    async def late_response():
        server.may_end.set()
        assert await asyncio.to_thread(is_sent.wait, PATIENCE_SECONDS)
        await asyncio.sleep(CHECKED_AFTER_SECONDS)

    with Server(play, Peer.serve) as server:
        assert run(post(server.url, times=2, between=late_response)) == [(200, "OK", "")] * 2
        assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_not_used(run):
    pool_class = partial(CurlPool, connection_seconds=1)
    with Server(Peer.serve) as server:
        run(post(server.url, times=2, between=lambda: asyncio.sleep(2.5), pool_class=pool_class))
        assert server.connections == 2


def test_a13_a_connection_in_use_has_a_maximum_age(run):
    """Row A13: otherwise the address of a server that has moved would be used as long as there are requests."""

    async def post_until_reconnected():
        pool = CurlPool(timeout_seconds=PATIENCE_SECONDS, connection_seconds=2)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while server.connections < 3:
                await head_of(pool.request(server.url + TARGET, HEADERS, b"{}"))
                await asyncio.sleep(0.05)
        pool.close()

    with Server(Peer.serve) as server:
        run(post_until_reconnected())
        assert len(server.requests) > 20, "a connection is used many times"


def trickling(peer):
    """Receive slowly: 900 KB take 4.5 s, in pieces."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    head = peer.head()
    left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(peer.buffer)
    while left > 0:
        left -= len(peer.sock.recv(min(left, 16384)))
        time.sleep(0.08)
    peer.send(OK)


def silent(peer):
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    peer.head()
    peer.pause()


def test_a3_a_slow_upload_succeeds_as_long_as_it_makes_progress(run):
    async def upload():
        pool = CurlPool(timeout_seconds=2)
        try:
            return await pool.request(server.url + TARGET, HEADERS, b"x" * 900_000, patience_seconds=2)
        finally:
            pool.close()

    with Server(trickling) as server:
        began = time.monotonic()
        assert run(upload()).status == 200
        assert time.monotonic() - began > 2, "the server was not slow, so that the test shows nothing"


@pytest.mark.parametrize("play", [silent, lambda peer: peer.request().pause()], ids=["upload", "response"])
def test_a3_a_request_without_progress_fails(run, play):
    async def upload():
        pool = CurlPool(timeout_seconds=60)
        try:
            with pytest.raises(CurlError, match="no response in time") as failure:
                await pool.request(server.url + TARGET, HEADERS, b"x" * 9_000_000, patience_seconds=0.5)
            return failure.value.is_timeout
        finally:
            pool.close()
            server.may_end.set()

    with Server(play) as server:
        assert run(upload())


@pytest.mark.parametrize("end", [closes, resets])
def test_a_request_on_a_kept_connection_that_ends_without_an_answer_is_sent_oncemore(run, end):
    def play(peer):
        peer.request().send(OK)
        end(peer)

    with Server(play, Peer.serve) as server:
        assert run(post(server.url, times=2)) == [(200, "OK", "")] * 2
        assert (len(server.requests), server.connections) == (3, 2)


def test_but_only_once(run):
    def play(peer):
        peer.request().send(OK)
        closes(peer)

    with Server(play, closes) as server:
        with pytest.raises(OSError, match=r"closed without a response|lost"):
            run(post(server.url, times=2))
        assert (len(server.requests), server.connections) == (3, 2)


ONCE = {
    "an answer had begun": lambda peer: peer.request().send(b"HTTP/1.1 200 OK\r\n"),
    "the server was told to wait": lambda peer: peer.request().send(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "it took too long": is_silent,
    "it was no answer": lambda peer: peer.request().send(b"220 mail.example ESMTP\r\n"),
}


@pytest.mark.parametrize("second", ONCE.values(), ids=ONCE.keys())
def test_and_not_if(run, second):
    def play(peer):
        peer.request().send(OK)
        second(peer)

    with Server(play, Peer.serve) as server:
        with pytest.raises(OSError, match=r"closed|lost|in time|not HTTP"):
            run(post(server.url, times=2, timeout_seconds=2 if second is is_silent else PATIENCE_SECONDS))
        assert (len(server.requests), server.connections) == (2, 1)


def test_requests_at_the_same_time_have_connections_of_their_own(run):
    clients = 20
    together = threading.Barrier(clients)

    def play(peer):
        peer.request()
        together.wait(PATIENCE_SECONDS)
        peer.send(OK)
        peer.serve()

    async def scenario(server):
        pool = CurlPool(timeout_seconds=PATIENCE_SECONDS, max_handles=clients)
        await asyncio.gather(*(pool.request(server.url, {}, b"%d" % number) for number in range(clients)))
        await pool.request(server.url, {}, b"%d" % clients)
        pool.close()

    with Server(play) as server:
        run(scenario(server))
        assert server.connections == clients
        assert sorted(int(body) for _, body in server.requests) == list(range(clients + 1))


def test_requests_above_the_limit_wait_for_a_handle(run):
    async def scenario(url, timeout_seconds):
        pool = CurlPool(timeout_seconds=timeout_seconds, max_handles=2)
        try:
            return await asyncio.gather(*(pool.request(url, {}, b"{}") for _ in range(9)), return_exceptions=True)
        finally:
            pool.close()

    with Server(Peer.serve) as server:
        assert [got.status for got in run(scenario(server.url, PATIENCE_SECONDS))] == [200] * 9
        assert server.connections == 2
    with Server(is_silent) as server:
        assert {"in time" in str(error) for error in run(scenario(server.url, 1))} == {True}


@pytest.mark.parametrize("where", ["answering", "connecting"])
def test_a_request_that_is_given_up_takes_its_connection_with_it(run, where):
    async def scenario(url, server=None):
        pool = CurlPool(timeout_seconds=PATIENCE_SECONDS)
        asking = asyncio.create_task(pool.request(url, {}, b"{}"))
        while server is not None and not server.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        if server is not None:
            await ended(server)()
        pool.close()

    if where == "answering":
        with Server(is_silent) as server:
            run(scenario(server.url, server))
    else:
        with DeadEnd("127.0.0.1") as end:
            run(scenario(f"http://127.0.0.1:{end.port}"))


def test_close_closes_idle_and_busy_connections(run):
    async def scenario(server):
        pool = CurlPool(timeout_seconds=PATIENCE_SECONDS)
        await pool.request(server.url, {}, b"{}")
        first = asyncio.create_task(pool.request(server.url, {}, b"{}"))
        second = asyncio.create_task(pool.request(server.url, {}, b"{}"))
        while len(server.requests) < 3:
            await asyncio.sleep(0.01)
        pool.close()
        for asking in (first, second):
            with pytest.raises(OSError, match=r"."):
                await asking
        await ended(server)()
        await ended(server)()

    def play(peer):
        peer.request().send(OK)
        is_silent(peer)

    with Server(play, is_silent) as server:
        run(scenario(server))


# TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"), "vendor")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return cert, context


@needs_openssl
def test_tls(run, tls, monkeypatch):
    cert, context = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    protocols = []

    def play(peer):
        protocols.append(peer.sock.selected_alpn_protocol())
        peer.serve()

    body = b"x" * 3_000_000
    with Server(play, tls=context) as server:
        assert run(post(server.url, times=3, body=b"{" + body + b"}")) == [(200, "OK", "")] * 3
        assert [body for _, body in server.requests] == [b"{" + body + b"}"] * 3
    assert protocols == ["http/1.1"]


@needs_openssl
@pytest.mark.parametrize("end", ["says good-bye", "closes", "resets", "closes after the request"])
def test_a_kept_tls_connection_that_ends(run, tls, monkeypatch, end):
    cert, context = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))

    def play(peer):
        peer.request().send(OK)
        if end == "closes after the request":
            peer.request()
            return
        peer.pause()
        if end == "says good-bye":
            peer.sock.settimeout(1)  # curl does not reply, because it does not read from idle connections
            peer.sock.unwrap()
        elif end == "resets":
            peer.reset()

    between = None if end == "closes after the request" else ended
    with Server(play, Peer.serve, tls=context) as server:
        run(post(server.url, times=2, between=between and between(server)))
        assert server.connections == 2
        assert len(server.requests) == (2 if between else 3)


@needs_openssl
@pytest.mark.parametrize("fault", ["unknown issuer", "another name", "no TLS"])
def test_tls_that_does_not_check(run, tls, monkeypatch, fault):
    cert, context = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(cert) if fault != "unknown issuer" else "/dev/null")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    host = "127.0.0.2" if fault == "another name" else "localhost"
    plain = lambda peer: peer.more().send(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # noqa: E731
    play, context = (plain, None) if fault == "no TLS" else (Peer.serve, context)
    with Server(play, tls=context, host="0.0.0.0") as server:
        with pytest.raises(OSError, match=r"TLS (handshake failed|certificate is not valid): "):
            run(post(f"https://{host}:{server.port}"))
        assert not server.requests


@pytest.mark.parametrize("ending", ["late", "given up"])
def test_a_handshake_that_takes_too_long(run, ending):
    async def scenario(url):
        if ending == "late":
            with pytest.raises(OSError, match="in time"):
                await post(url, timeout_seconds=0.2)
            return
        asking = asyncio.create_task(post(url))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    with Server(Peer.until_closed) as server:
        run(scenario(f"https://127.0.0.1:{server.port}"))


# The vendor, through all this


@pytest.fixture
def upstream_of(io_loop):
    made = []

    def make(url):
        asked = []
        sdk = {"sdk_name": "gateway", "sdk_version": "1"}
        upstream = Upstream(
            url, url, "12", "KEY", **sdk, timeout_seconds=60, on_response=lambda *response: asked.append(response)
        )
        upstream.asked = asked
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        upstream.close()
    io_loop.run_sync(lambda: asyncio.sleep(0.01))


async def test_a_batch_and_an_event_as_they_arrive(upstream_of):
    with Server(Peer.serve) as server:
        upstream = upstream_of(server.url)
        await upstream.send_batch(b'{"d":1}\n{"d":2}')
        upstream.use_collection_prefix("eu01")
        upstream.use_account(Identity("12", "NEW"))
        await upstream.send_batch(b'{"d":3}')
        await upstream.send_event("en=x&a=8", b'{"d":4}')
    heads, bodies = zip(*server.requests, strict=True)
    assert [head.partition(b" HTTP")[0] for head in heads] == [
        b"POST /server-side/batch-events-v2?a=12&env=KEY&sn=gateway&sv=1",
        b"POST /eu01/server-side/batch-events-v2?a=12&env=NEW&sn=gateway&sv=1",
        b"POST /eu01/events/t?en=x&a=8",
    ]
    keys = [head.partition(b"\r\nAuthorization: ")[2].partition(b"\r\n")[0] for head in heads]
    assert keys == [b"KEY", b"NEW", b""]
    assert all(b"\r\nContent-Type: application/json\r\n" in head for head in heads)
    assert list(map(orjson.loads, bodies)) == [{"ev": [{"d": 1}, {"d": 2}]}, {"ev": [{"d": 3}]}, {"d": 4}]
    assert upstream.asked == [("events", 200), ("events", 200), ("event", 200)]


REFUSALS = {
    "an error": (b"HTTP/1.1 503 Sorry\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n", 503, 30.0, "503 Sorry"),
    "no date": (
        b"HTTP/1.1 429 \r\nRetry-After: Mon\r\nContent-Length: 0\r\n\r\n",
        429,
        0.0,
        "events: VWO limited the request rate .429.",
    ),
    "A27: a date to wait for": (
        b"HTTP/1.1 503 \r\nRetry-After: Thu, 26 Nov 2026 10:01:30 GMT\r\nDate: Thu, 26 Nov 2026 10:00:00 GMT\r\n"
        b"Content-Length: 0\r\n\r\n",
        503,
        90.0,
        "503 Service",
    ),
    "A27: a date that has passed": (
        b"HTTP/1.1 503 \r\nRetry-After: Thu, 26 Nov 2020 10:01:30 GMT\r\nContent-Length: 0\r\n\r\n",
        503,
        0.0,
        "503 Service",
    ),
    "a redirection": (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, 0.0, "302 Found"),
    "no answer": (b"nonsense", 0, 0.0, "events: VWO could not be reached .*not HTTP"),
}


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted", "204 No Content"])
async def test_a4_any_success_is_one(upstream_of, status):
    """Row A4."""
    with Server(answers_once(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())) as server:
        await upstream_of(server.url).send_batch(b'{"d":1}')


BODIES = {
    "nothing": b"",
    "JSON": b' {"success":true}',
    "JSON that is no object": b"[]",
    "a word": b"ok",
    "blanks": b" \r\n",
}
PAGES = [b"<!DOCTYPE html><html>Sign in</html>", b" \r\n<html>blocked</html>", b"\xef\xbb\xbf<HTML>"]


def success_with(body):
    return answers_once(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a27_any_other_body_of_a_2xx_is_a_success(upstream_of, body):
    with Server(success_with(body)) as server:
        await upstream_of(server.url).send_batch(b'{"d":1}')


@pytest.mark.parametrize("page", PAGES, ids=repr)
async def test_a27_a_web_page_is_a_failure_of_the_route(upstream_of, page):
    with Server(success_with(page)) as server:
        upstream = upstream_of(server.url)
        with pytest.raises(UpstreamError, match="web page") as failure:
            await upstream.send_batch(b'{"d":1}')
    assert failure.value.status == 200


def test_a26_the_patience_grows_with_timeouts_and_remains_while_responses_are_slow():
    patience = Patience(5.0)
    patience.timed_out(5.0)
    patience.timed_out(5.0)
    assert patience.seconds == 10.0, "requests in flight together time out together"
    patience.succeeded(8.0)
    assert patience.seconds == 10.0
    for _ in range(9):
        patience.timed_out(patience.seconds)
    assert patience.seconds == LONGEST_PATIENCE_SECONDS
    patience.succeeded(4.0)
    assert patience.seconds == 12.0
    patience.succeeded(0.1)
    assert patience.seconds == 5.0


@pytest.mark.parametrize(("answer", "status", "wait", "message"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_anything_but_success_is_an_error(upstream_of, answer, status, wait, message):
    with Server(answers_once(answer)) as server:
        upstream = upstream_of(server.url)
        with pytest.raises(UpstreamError, match=message) as failure:
            await upstream.send_batch(b'{"d":1}')
    assert (failure.value.status, failure.value.retry_after_seconds) == (status, wait)
    assert upstream.asked == [("events", status)]
    assert "KEY" not in str(failure.value)


async def test_another_success(upstream_of):
    with Server(answers_once(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        upstream = upstream_of(server.url)
        await upstream.send_batch(b'{"d":1}')
    assert upstream.asked == [("events", 204)]


@pytest.mark.parametrize("status", [200, 407])
async def test_the_head_of_a_proxy_is_not_a_response(upstream_of, monkeypatch, status):
    """Otherwise events would count as delivered that VWO has never seen."""
    with Server(lambda peer: (peer.head(), peer.send(b"HTTP/1.1 %d Proxy\r\n\r\n" % status))) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        upstream = upstream_of("https://vendor.invalid")
        with pytest.raises(UpstreamError, match="VWO could not be reached") as failure:
            await upstream.send_batch(b'{"d":1}')
    assert failure.value.status == 0
    assert failure.value.cause
    assert "KEY" not in str(failure.value)


async def test_a_request_with_the_key_does_not_follow_redirects(upstream_of):
    with Server(Peer.serve) as other:
        moved = b"HTTP/1.1 302 Found\r\nLocation: %b/x\r\nContent-Length: 0\r\n\r\n" % other.url.encode()
        with (
            Server(lambda peer: (peer.head(), peer.send(moved))) as server,
            pytest.raises(UpstreamError, match="302 Found"),
        ):
            await upstream_of(server.url).fetch_settings(Dialect())
        assert not other.connections


async def test_a_settings_document_is_decompressed_and_its_size_is_limited(upstream_of, monkeypatch):
    monkeypatch.setattr(client, "MAX_DOCUMENT_BYTES", 200_000)
    for size in (150_000, 250_000):
        body = gzip.compress(b"x" * size)
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        with Server(lambda peer, reply=head + body: (peer.head(), peer.send(reply))) as server:
            fetching = upstream_of(server.url).fetch_settings(Dialect())
            if size < 200_000:
                assert await fetching == b"x" * size
            else:
                with pytest.raises(UpstreamError, match=r"the response is too large") as failure:
                    await fetching
                assert failure.value.cause == "the response is too large"


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy", "ALL_PROXY"])
async def test_events_take_the_proxy_of_the_environment(upstream_of, monkeypatch, variable):
    with Server(Peer.serve) as proxy, Server(Peer.serve) as server:
        monkeypatch.setenv(variable, proxy.url)
        upstream = upstream_of("http://vendor.invalid")
        await upstream.send_batch(b'{"d":1}\n{"d":2}')
        await upstream.send_event("en=x", b'{"d":3}')
        monkeypatch.setenv("no_proxy", "vendor.invalid,127.0.0.1")
        direct = upstream_of(server.url)
        await direct.send_batch(b'{"d":4}')
    (batch, event), (not_proxied,) = proxy.requests, server.requests
    assert batch[0].startswith(b"POST http://vendor.invalid/server-side/batch-events-v2?a=12&env=KEY")
    assert b"\r\nAuthorization: KEY\r\n" in batch[0]
    assert batch[1] == b'{"ev":[{"d":1},{"d":2}]}'
    assert event[0].startswith(b"POST http://vendor.invalid/events/t?en=x HTTP")
    assert not_proxied[0].startswith(b"POST /server-side")
