"""The HTTP front when clients are slow, vanish or do not read, when the server stops, and under TLS."""

import asyncio
import collections
import contextlib
import json
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import http_harness as harness
import pytest
from http_harness import PATIENCE_SECONDS, QUICK, Client, get, post
from process import Gateway, sample_document

from tornado_gateway.gate import Gate
from tornado_gateway.http.messages import Response
from tornado_gateway.http.server import SWEEP_SLICE

serve = harness.serve


def reset(client):
    """Close with a reset, as a crashed client or a cut line does."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


# ---- time


def test_idle_connection_is_closed(serve):
    live = serve(limits=QUICK._replace(keep_alive_seconds=1))
    fresh, used = live.connect(), live.connect().send(get("/const"))
    assert used.response().status == 200
    fresh.assert_closed()
    used.assert_closed()


def test_the_progress_of_many_connections_is_checked_in_slices(serve):
    """Each check takes microseconds: those of thousands of streams would hold up requests."""
    live = serve()
    count = len([live.connect() for _ in range(2 * SWEEP_SLICE + 50)])

    def checks():
        return collections.Counter(connection.since for connection in tuple(live.server.activity.clients))

    live.until(lambda: checks().total() == count and 0.0 not in checks())
    assert max(checks().values()) <= SWEEP_SLICE


@pytest.mark.parametrize("start", [b"G", b"GET /con", get("/const")[:-2]])
def test_slow_head(serve, start):
    live = serve(limits=QUICK._replace(header_seconds=0.1))
    client = live.connect().send(start)
    answer = client.response()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert answer.error
    client.assert_closed()


def test_dripping_head(serve):
    """A byte now and then does not help: the whole head has to be there in time."""
    live = serve(limits=QUICK._replace(header_seconds=0.1, linger_seconds=PATIENCE_SECONDS))
    client = live.connect().send(b"GET / HTTP/1.1\r\nX: ")
    client.sock.settimeout(0.01)
    while not client.buffer:
        client.send(b"x")
        with contextlib.suppress(TimeoutError):
            client.buffer = client.sock.recv(1000)
    assert client.buffer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_slow_body(serve, framing):
    live = serve(limits=QUICK._replace(body_seconds=0.1))
    client = live.connect().send(get("/echo", framing, method="POST"))
    client.send(b"1\r\nx\r\n")
    assert client.response().status == 408
    client.assert_closed()


def test_slow_handler_is_not_a_slow_client(serve):
    quick = QUICK._replace(keep_alive_seconds=1, header_seconds=1, body_seconds=1, write_seconds=1)
    client = serve(limits=quick).connect().send(get("/async?2.5"))
    assert client.response().body == b'"async"'
    client.assert_closed()


def test_slow_head_behind_an_unfinished_answer(serve):
    live = serve(limits=QUICK._replace(header_seconds=0.05))
    client = live.connect().send(get("/gated") + b"GET /")
    client.assert_silent(0.2)
    live.call(live.routes.gate.open)
    assert client.response().status == 200


def test_peer_that_keeps_its_side_open_is_closed(serve):
    live = serve(limits=QUICK._replace(linger_seconds=0.1))
    client = live.connect().send(get("/const", "Connection: close"))
    assert client.response().status == 200
    live.until(lambda: not live.server.connections)


# ---- peers that do not read


def buffered(live):
    return sum(client.output.buffered() - client.output.unsent_bytes for client in live.server.activity.clients)


def test_peer_that_does_not_read_is_dropped(serve):
    live = serve(limits=QUICK._replace(write_seconds=0.3))
    client = live.connect(SO_RCVBUF=4096)
    request = get("/big")
    client.sock.settimeout(0.2)
    with contextlib.suppress(OSError):  # a time-out because the server has stopped reading, then a reset
        for _ in range(1000):
            client.send(request * 100)
    assert live.call(lambda: buffered(live)) < 8_000_000
    live.until(lambda: not live.server.connections)


def test_peer_that_reads_late_gets_everything(serve):
    live = serve()
    client = live.connect(SO_RCVBUF=4096)
    sender = threading.Thread(target=client.send, args=(get("/big") * 200,))
    sender.start()
    time.sleep(0.1)
    assert live.call(lambda: buffered(live)) < 8_000_000
    for _ in range(200):
        assert len(client.response().body) == 200_000
    sender.join()
    assert client.send(get("/const")).response().body == b'"const"'


def test_peer_that_reads_slowly_is_kept(serve):
    """Reading takes longer than `write_seconds`, and never stands still for nearly as long."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that the server sees each step of the reader
    live = serve(listen={"sock": listener}, limits=QUICK._replace(write_seconds=2))
    client = live.connect(SO_RCVBUF=4096).send(get("/big") * 10)
    for _ in range(10):
        time.sleep(0.3)
        assert len(client.response().body) == 200_000


def test_unread_answer_is_not_kept_for_ever(serve):
    """The last answer is given, nothing more is to come, but the client does not read it."""
    answered = []
    live = serve(limits=QUICK._replace(write_seconds=0.2), on_response=lambda request, status: answered.append(status))
    live.connect(SO_RCVBUF=4096).send(get("/big") * 60 + get("/const", "Connection: close"))
    live.until(lambda: answered)
    live.until(lambda: not live.server.connections)


# ---- flow control by bytes (row D2)

LARGE = b"x" * 8_000_000  # more than the kernel's buffers take: 4 MB here, and SO_RCVBUF of the client
SMALL_BUFFERS = 400_000  # in the transport of a client that does not read: one slice, and what one may be above 64 KB


class Large:
    """Counts its calls. All responses have the same body, as those of a settings document have."""

    def __init__(self, body=LARGE):
        self.response = Response(200, body, b"text/plain")
        self.calls = 0

    def find(self, method, path):
        return {b"/large": self.handle, b"/async": self.handle_later}.get(path, lambda request: Response(200, b"1"))

    def handle(self, request):
        self.calls += 1
        return self.response

    async def handle_later(self, request):
        await asyncio.sleep(0)
        return self.handle(request)


def wait_for_data(client):
    assert client.sock.recv(1, socket.MSG_PEEK)


@pytest.mark.parametrize("headers", [[], ["Origin: https://shop.example"]], ids=["as it is", "with more headers"])
def test_d2_nothing_starts_behind_a_large_response_that_is_not_read(serve, headers):
    """Row D2: all pipelined requests were started, and their responses joined: 48 MB for 16 of 3 MB."""
    large = Large()
    live = serve(find=large.find, echo_headers=[b"origin"], extra_header_lines=lambda request: b"X-More: 1\r\n")
    clients = [live.connect(SO_RCVBUF=65536).send(get("/large", *headers) * 6) for _ in range(5)]
    for client in clients:
        wait_for_data(client)
    assert live.ask(get("/const")).status == 200
    assert large.calls == len(clients)
    assert live.call(lambda: buffered(live)) < SMALL_BUFFERS * len(clients)
    for _ in range(6):
        assert clients[0].response().body == LARGE
    assert large.calls == 6 + len(clients) - 1


def test_d2_large_responses_of_coroutines_leave_one_by_one(serve):
    large = Large()
    live = serve(find=large.find)
    client = live.connect(SO_RCVBUF=65536).send(get("/async") * 8)
    wait_for_data(client)
    assert live.call(lambda: buffered(live)) < SMALL_BUFFERS
    for _ in range(8):
        assert client.response().body == LARGE


def test_d2_responses_that_wait_for_their_turn_are_counted_by_bytes(serve):
    """A response of its own for each request, held back by a gate: two of 200 KB are enough, not 64."""
    gate, started = Gate(), []

    def handle(request):
        started.append(request.query)
        request.gate = gate
        return Response(200, request.query * 200_000)

    live = serve(find=lambda method, path: handle)
    client = live.connect().send(b"".join(get(f"/?{number % 10}") for number in range(64)))
    live.until(lambda: started)
    live.turn()
    assert len(started) == 2
    live.call(gate.open)
    for number in range(64):
        assert client.response().body == b"%d" % (number % 10) * 200_000


@pytest.mark.parametrize("size", [65_535, 65_536, 131_072, 131_073, 1_000_000])
def test_d2_large_and_small_responses_keep_their_order(serve, size):
    large = Large(b"x" * size)
    client = serve(find=large.find).connect()
    paths = ["/const", "/large", "/large", "/const", "/async", "/const", "/large"] * 20
    sender = threading.Thread(target=client.send, args=(b"".join(map(get, paths)),))
    sender.start()
    for path in paths:
        assert client.response().body == (b"1" if path == "/const" else large.response.body)
    sender.join()


def test_d2_large_response_to_a_half_closed_client(serve):
    client = serve(find=Large().find).connect(SO_RCVBUF=65536).send(get("/large") * 2 + get("/const")).half_close()
    assert [len(client.response().body) for _ in range(3)] == [len(LARGE)] * 2 + [1]
    client.assert_closed()


@pytest.mark.parametrize("request_", [get("/large", "Connection: close"), get("/large", version="1.0")])
def test_d2_large_last_response(serve, request_):
    client = serve(find=Large().find).connect(SO_RCVBUF=65536).send(request_ + get("/const"))
    wait_for_data(client)
    assert client.response().body == LARGE
    client.assert_closed()


def test_d2_client_leaves_in_the_middle_of_a_large_response(serve):
    seen = []
    large = Large()
    live = serve(find=large.find, on_response=lambda request, status: seen.append(status))
    client = live.connect(SO_RCVBUF=65536).send(get("/large") * 16 + get("/async"))
    client.take(1_000_000)
    reset(client)
    live.until(lambda: not live.server.connections and not live.server.in_flight and not live.server.activity.tasks)
    assert len(seen) == large.calls == 17  # what was received is done


def test_d2_stop_waits_until_a_large_response_is_read(serve):
    live = serve(find=Large().find)
    client = live.connect(SO_RCVBUF=65536).send(get("/large") * 2)
    wait_for_data(client)
    stopping = asyncio.run_coroutine_threadsafe(live.server.stop(30), live.loop)
    assert [client.response().body for _ in range(2)] == [LARGE] * 2
    client.assert_closed()
    assert stopping.result(PATIENCE_SECONDS) is True


def test_d2_a_slow_reader_is_kept_while_it_reads(serve):
    """The kernel takes more only when a third of its buffer is free. Before that, this reader ran into the time-out."""
    live = serve(find=Large().find, limits=QUICK._replace(write_seconds=3))
    client = live.connect().send(get("/large"))
    end = time.monotonic() + 7
    while time.monotonic() < end:
        client.take(5000)
        time.sleep(0.05)
    assert live.server.connections
    assert client.take(4_000_000)


def process_memory(gateway):
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def test_d2_memory_of_a_gateway_whose_clients_do_not_read(tmp_path):
    """Row D2 as it is: 4.6 GB for 100 clients."""
    (tmp_path / "settings.json").write_text(json.dumps(sample_document() | {"padding": "x" * 3_000_000}))
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(
            Gateway(tmp_path / "data", is_fresh=True, SETTINGS_FILE=tmp_path / "settings.json")
        )
        for number in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_SECONDS))
            client.sendall(get("/server-side/v2-settings", *[f"X-Request-Id: {number}"] * (number % 2)) * 16)
            if number % 10 == 9:
                assert client.recv(1)
                assert gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "u"})[0] == 200
        assert process_memory(gateway) < 200_000_000


# ---- peers that go away


@pytest.mark.parametrize("path", ["/const", "/async?0.05", "/gated"])
def test_half_closed_client_gets_its_answer(serve, path):
    live = serve()
    client = live.connect().send(get(path)).half_close()
    live.turn()
    live.call(live.routes.gate.open)
    assert client.response().status == 200
    client.assert_closed()


def test_half_closed_client_gets_all_pipelined_answers(serve):
    live = serve(limits=QUICK._replace(max_pipelined=4))
    client = live.connect().send(get("/async?0.001") * 50 + get("/const")).half_close()
    assert [client.response().status for _ in range(51)] == [200] * 51
    client.assert_closed()


def test_half_closed_in_the_middle_of_a_request(serve):
    live = serve()
    client = live.connect().send(get("/async?0.05") + b"GET /con").half_close()
    assert client.response().status == 200
    client.assert_closed()
    live.connect().send(b"GET /con").half_close().assert_closed()


@pytest.mark.parametrize("leave", [reset, lambda client: client.sock.close()], ids=["reset", "close"])
def test_accepted_work_is_finished_without_the_client(serve, leave):
    live = serve()
    client = live.connect().send(get("/async?0.1") + post("/echo", b"x") + get("/gated"))
    live.until(lambda: len(live.routes.started) == 3)
    leave(client)
    live.until(lambda: live.routes.finished)
    live.call(live.routes.gate.open)
    live.until(lambda: not live.server.in_flight and not live.server.connections)


def test_pipelined_requests_of_a_client_that_has_left_are_all_done(serve):
    live = serve(limits=QUICK._replace(max_pipelined=4))
    client = live.connect().send(b"".join(post(f"/async?0.00{n % 7}", b"{}") for n in range(100)))
    live.until(lambda: live.routes.started)
    client.sock.close()
    live.until(lambda: len(live.routes.finished) == 100)


def test_requests_of_many_clients_are_counted_by_the_sweep(serve, monkeypatch):
    """They were counted four times a second, for 3 ms with 5,000 clients."""
    monkeypatch.setattr("tornado_gateway.http.server.SWEEP_SLICE", 2)
    live = serve(limits=QUICK)
    clients = [live.connect().send(get("/gated")) for _ in range(5)]
    live.until(lambda: live.server.in_flight == 5)
    live.call(live.routes.gate.open)
    for client in clients:
        assert client.response().body == b'"gated"'
    live.until(lambda: live.server.in_flight == 0)


def test_gate_opens_for_a_client_that_has_left(serve):
    seen = []
    live = serve(on_response=lambda request, status: seen.append(status))
    client = live.connect().send(get("/gated"))
    live.until(lambda: live.routes.started)
    reset(client)
    live.until(lambda: not live.server.connections)
    assert live.server.in_flight == 1
    live.call(live.routes.gate.open)
    assert seen == [200]
    assert live.server.in_flight == 0


def test_client_leaves_in_the_middle_of_a_body(serve):
    live = serve()
    client = live.connect().send(get("/echo", "Content-Length: 100", method="POST") + b"x")
    live.turn()
    reset(client)
    live.until(lambda: not live.server.connections)
    assert live.routes.started == []


def test_client_leaves_in_the_middle_of_an_answer(serve):
    live = serve()
    client = live.connect(SO_RCVBUF=4096).send(get("/big") * 50)
    client.take(1000)
    reset(client)
    live.until(lambda: not live.server.connections)


# ---- stop


async def stop_when(live, condition):
    """Stop in the turn of the loop that meets the condition, however late the thread of the test is."""
    while not condition():
        await asyncio.sleep(0)
    return await live.server.stop(PATIENCE_SECONDS)


def test_stop_when_idle(serve):
    live = serve()
    clients = [live.connect(), live.connect().send(get("/const"))]
    assert clients[1].response().status == 200
    assert live.run(live.server.stop(PATIENCE_SECONDS)) is True
    for client in clients:
        client.assert_closed()
    with pytest.raises(ConnectionRefusedError):
        live.connect()


def test_stop_waits_for_requests_in_flight(serve):
    live = serve()
    clients = [live.connect().send(get(path)) for path in ("/async?0.2", "/gated", "/async-gated")]
    stopping = asyncio.run_coroutine_threadsafe(stop_when(live, lambda: len(live.routes.started) == 3), live.loop)
    live.until(lambda: live.server.stopping)
    live.call(live.routes.gate.open)
    assert stopping.result(PATIENCE_SECONDS) is True
    for client in clients:
        answer = client.response()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        client.assert_closed()


def test_stop_answers_pipelined_requests_and_closes_with_the_last(serve):
    live = serve()
    client = live.connect().send(get("/async?0.1") + get("/const") + get("/async?0.05"))
    assert live.run(stop_when(live, lambda: len(live.routes.started) == 2)) is True
    assert ["connection" in client.response().headers for _ in range(3)] == [False, False, True]
    client.assert_closed()


def test_stop_serves_what_the_kernel_has_accepted(serve):
    """Neither a connection in the backlog nor a request in a socket's buffer may be answered by a reset."""
    live = serve()
    known = [live.connect().send(get("/const")) for _ in range(5)]
    assert {client.response().status for client in known} == {200}
    is_blocked, may_continue = threading.Event(), threading.Event()

    async def stop_after_a_pause():
        is_blocked.set()
        may_continue.wait(PATIENCE_SECONDS)  # the loop must see nothing of what happens meanwhile
        return await live.server.stop(PATIENCE_SECONDS)

    stopping = asyncio.run_coroutine_threadsafe(stop_after_a_pause(), live.loop)
    is_blocked.wait(PATIENCE_SECONDS)
    for client in known:
        client.send(get("/const") * 3)
    new = [live.connect().send(get("/const")) for _ in range(20)]
    may_continue.set()
    for client in known:
        assert [client.response().status for _ in range(3)] == [200, 200, 200]
        client.assert_closed()
    for client in new:
        assert client.response().status == 200
        client.assert_closed()
    assert stopping.result(PATIENCE_SECONDS) is True


def test_stop_loses_no_new_connection(serve):
    """Wherever the loop is with a connection when the server stops: in the backlog, accepted, half set up."""
    for _ in range(15):
        live = serve()
        clients = [live.connect().send(get("/const")) for _ in range(5)]
        assert live.run(live.server.stop(PATIENCE_SECONDS)) is True
        assert [client.response().status for client in clients] == [200] * 5
        for client in clients:
            client.assert_closed()
            client.sock.close()


def test_stop_waits_for_the_rest_of_a_request(serve):
    live = serve()
    client = live.connect().send(post("/echo", b"{}")[:-1])
    live.turn()
    stopping = asyncio.run_coroutine_threadsafe(live.server.stop(PATIENCE_SECONDS), live.loop)
    time.sleep(0.1)
    assert client.send(b"}").response().headers["connection"] == "close"
    assert stopping.result(PATIENCE_SECONDS) is True


def test_stop_serves_a_request_that_comes_in_the_grace_time(serve):
    live = serve(limits=QUICK._replace(drain_seconds=5))
    client = live.connect().send(get("/const"))
    assert "connection" not in client.response().headers
    stopping = asyncio.run_coroutine_threadsafe(live.server.stop(PATIENCE_SECONDS), live.loop)
    live.until(lambda: live.server.stopping)
    assert client.send(get("/const")).response().headers["connection"] == "close"
    client.assert_closed()
    client.sock.close()
    assert stopping.result(PATIENCE_SECONDS) is True


def test_stop_waits_until_the_answer_is_read(serve):
    live = serve()
    client = live.connect(SO_RCVBUF=4096).send(get("/big") * 15)
    client.take(1)
    stopping = asyncio.run_coroutine_threadsafe(live.server.stop(PATIENCE_SECONDS), live.loop)
    time.sleep(0.2)
    assert not stopping.done()
    assert len(client.rest()) > 15 * 200_000
    client.sock.close()
    assert stopping.result(PATIENCE_SECONDS) is True


def test_stop_does_not_wait_for_handshakes(serve, certificate):
    live = serve_tls(serve, certificate)
    silent = live.connect()
    live.turn()
    assert live.run(live.server.stop(PATIENCE_SECONDS)) is True
    silent.sock.close()


def test_stop_at_the_deadline(serve):
    live = serve()
    client = live.connect().send(get("/async?60"))
    partial = live.connect().send(b"GET /")
    live.until(lambda: live.routes.started)
    assert live.run(live.server.stop(0.1)) is False
    for broken in (client, partial):
        try:
            broken.rest()
        except ConnectionResetError:
            pass
    live.until(lambda: not live.server.in_flight)


def test_stop_under_load(serve):
    """Clients that ask again and again: each gets an answer to everything it sends, until it is told to close."""
    live = serve()
    counts, failures = [0] * 8, []

    def ask(number):
        client = live.connect()
        try:
            while client.send(get("/const")).response().headers.get("connection") != "close":
                counts[number] += 1
        except (AssertionError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    live.until(lambda: min(counts) > 10 or failures)
    assert live.run(live.server.stop(PATIENCE_SECONDS)) is True
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert failures == []


def test_port_is_free_after_stop(serve):
    live = serve()
    port = live.server.port
    live.run(live.server.stop(1))
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_two_servers_share_a_port(serve):
    first = serve(listen={"host": "127.0.0.1", "reuse_port": True})
    second = serve(listen={"host": "127.0.0.1", "reuse_port": True, "port": first.server.port})
    assert second.server.port == first.server.port
    assert first.ask(get("/const")).status == 200


@pytest.mark.parametrize(
    ("host", "target", "peer"),
    [
        ("", "127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("", "::1", "::1"),
        ("::1", "::1", "::1"),
    ],
)
def test_listen_addresses(serve, host, target, peer):
    if ":" in target and not has_ipv6():
        pytest.skip("no IPv6 here")
    live = serve(listen={"host": host})
    client = Client(socket.create_connection((target, live.server.port)))
    live.clients.append(client)
    assert client.send(get("/echo")).response().json["peer"] == peer


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_listen_on_a_bound_socket(serve):
    live = serve(listen={"sock": socket.create_server(("127.0.0.1", 0))})
    assert live.ask(get("/const")).status == 200


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost: (certificate file, key file)."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(files[1])]
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-out", str(files[0]), "-days", "2", *subject],
        check=True,
        capture_output=True,
    )
    return files


def serve_tls(serve, certificate, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return serve(ssl_context=context, **options)


def connect_tls(live, certificate, **options):
    context = ssl.create_default_context(cafile=str(certificate[0]))
    plain = live.connect(**options)
    client = Client(context.wrap_socket(plain.sock, server_hostname="localhost"))
    live.clients.append(client)
    return client


def test_tls_requests(serve, certificate):
    live = serve_tls(serve, certificate)
    client = connect_tls(live, certificate)
    paths = ["/async?0.01", "/const", "/gated", "/const"]
    client.send(b"".join(map(get, paths)))
    live.until(lambda: b"" in live.routes.started)
    live.call(live.routes.gate.open)
    assert [client.response().status for _ in paths] == [200] * 4
    body = b"x" * 500_000
    assert len(client.send(post("/echo", body)).response().json["body"]) == 500_000
    assert client.send(get("/const", "Connection: close")).response().headers["connection"] == "close"
    client.assert_closed()


def test_d2_tls_client_that_does_not_read(serve, certificate):
    large = Large()
    live = serve_tls(serve, certificate, find=large.find)
    client = connect_tls(live, certificate, SO_RCVBUF=65536).send(get("/large") * 6)
    client.buffer = client.take(1) + client.buffer
    live.turn()
    assert large.calls == 1
    assert live.call(lambda: buffered(live)) < SMALL_BUFFERS
    for _ in range(6):
        assert client.response().body == LARGE


def test_tls_refuses_and_closes(serve, certificate):
    client = connect_tls(serve_tls(serve, certificate), certificate).send(b"garbage\r\n\r\n")
    assert client.response().status == 400
    client.assert_closed()


def test_tls_client_leaves_early(serve, certificate):
    live = serve_tls(serve, certificate)
    client = connect_tls(live, certificate).send(get("/async?0.1"))
    live.until(lambda: live.routes.started)
    client.sock.close()
    live.until(lambda: live.routes.finished)


def test_plain_text_on_a_tls_port(serve, certificate):
    live = serve_tls(serve, certificate)
    client = live.connect().send(get("/const"))
    with pytest.raises((AssertionError, OSError)):
        client.response()
    assert connect_tls(live, certificate).send(get("/const")).response().status == 200


def test_tls_stop(serve, certificate):
    live = serve_tls(serve, certificate)
    idle, busy = connect_tls(live, certificate), connect_tls(live, certificate).send(get("/async?0.1"))
    stopping = asyncio.run_coroutine_threadsafe(stop_when(live, lambda: live.routes.started), live.loop)
    assert busy.response().headers["connection"] == "close"
    idle.assert_closed()
    for client in (idle, busy):
        client.sock.close()
    assert stopping.result(PATIENCE_SECONDS) is True


def test_constant_answers_are_not_rendered_again(serve):
    """The point of `Response`: the very bytes object goes to the transport."""
    constant = Response(200, b'"same"')
    live = serve(find=lambda method, path: lambda request: constant)
    client = live.connect()
    constant.encoded = constant.encoded.replace(b"same", b"wire")
    assert client.send(get("/")).response().body == b'"wire"'
