"""No client delays the lone request of another: neither by pipelining, nor by large bodies, nor with pages.

Found by `scripts/hostile`: a loop turn served all that had arrived from each client, which took seconds.
"""

import asyncio
import socket
import threading
import time

from http_harness import PATIENCE_SECONDS, QUICK, Routes, get, post, serve

from tornado_gateway.http.limits import DENSE_SLICE_BYTES, RunQueue
from tornado_gateway.http.messages import Response, too_large
from tornado_gateway.http.server import ACCEPTED_AT_ONCE, RECEIVE_BYTES

__all__ = ["serve"]

COUNT = 200


class SlowRoutes(Routes):
    """/slow keeps the loop busy, like a costly decision; `served` is the order of all requests."""

    def __init__(self) -> None:
        super().__init__()
        self.served: list[bytes] = []
        self.table[b"GET", b"/slow"] = self.busy
        self.table[b"GET", b"/lone"] = self.lone

    def busy(self, request):
        self.served.append(request.path)
        time.sleep(0.005)
        return Response(200, b'"slow"')

    def lone(self, request):
        self.served.append(request.path)
        return Response(200, b'"lone"')


def position_of_lone_request(serve, *headers):
    routes = SlowRoutes()
    live = serve(find=routes.find)
    lone = live.connect()
    greedy = live.connect().send(get("/slow", *headers) * COUNT)
    live.until(lambda: routes.served)
    assert lone.send(get("/lone")).response().body == b'"lone"'
    assert [greedy.response().status for _ in range(COUNT)] == [200] * COUNT
    return routes.served.index(b"/lone")


def test_a_lone_request_does_not_wait_for_pipelined_ones(serve):
    """They arrive in one piece; without turns all of them are served first."""
    assert position_of_lone_request(serve) < COUNT


def test_a_client_that_keeps_its_connection_does_not_wait_for_new_ones(serve):
    """A turn of the loop served the first requests of hundreds of new connections."""
    routes, may_continue = SlowRoutes(), threading.Event()
    live = serve(find=routes.find)
    lone = live.connect()
    assert lone.send(get("/lone")).response().status == 200
    others = [live.connect() for _ in range(COUNT)]
    live.until(lambda: live.server.connections == COUNT + 1)
    blocked = threading.Thread(target=live.call, args=[lambda: may_continue.wait(PATIENCE_SECONDS)])
    blocked.start()
    for client in (*others, lone):  # all of them have arrived when the loop looks for them
        client.send(get("/slow" if client is not lone else "/lone"))
    may_continue.set()
    blocked.join()
    assert lone.response().status == 200
    assert [client.response().status for client in others] == [200] * COUNT
    assert routes.served[1:].index(b"/lone") < COUNT / 2


def test_few_connections_are_accepted_in_one_turn(serve):
    """asyncio accepted 1,400 of them in one turn, for 20 ms."""
    live = serve()
    is_blocked, may_continue = threading.Event(), threading.Event()

    async def accept_all() -> list[int]:
        is_blocked.set()
        may_continue.wait(PATIENCE_SECONDS)
        accepted = []
        while sum(accepted) < COUNT:
            before = live.server.connections
            await asyncio.sleep(0)
            accepted.append(live.server.connections - before)
        return accepted

    accepting = asyncio.run_coroutine_threadsafe(accept_all(), live.loop)
    is_blocked.wait(PATIENCE_SECONDS)
    clients = [live.connect() for _ in range(COUNT)]  # the kernel accepts them
    may_continue.set()
    assert max(accepting.result(PATIENCE_SECONDS)) <= ACCEPTED_AT_ONCE
    assert [client.send(get("/const")).response().status for client in clients] == [200] * COUNT


def test_a_lone_request_does_not_wait_for_many_slices(serve):
    assert position_of_lone_request(serve, "X: " + "y" * 300) < COUNT


def test_pipelined_requests_that_wait_do_not_continue_together(serve):
    """512 requests to /webhook waited for the same refresh: a lone request waited until all had their responses."""
    routes = Routes()
    waiting, most = [], []

    async def wait(request):
        waiting.append(request)
        most.append(len(waiting))
        await asyncio.sleep(0.001)
        waiting.remove(request)
        return Response(200, b'"waited"')

    routes.table[b"GET", b"/wait"] = wait
    live = serve(find=routes.find, limits=QUICK._replace(max_tasks=10))
    clients = [live.connect().send(get("/wait") * 40) for _ in range(8)]
    assert [client.response().status for client in clients for _ in range(40)] == [200] * 320
    assert 8 <= max(most) <= 10 + len(clients)


def test_few_requests_of_a_client_are_in_memory_until_their_turn(serve):
    """16 KB of short requests became 500 objects of 600 bytes, of each of thousands of connections."""
    routes = Routes()
    opened = asyncio.Event()

    async def wait(request):
        await opened.wait()
        return Response(200, b'"waited"')

    routes.table[b"GET", b"/wait"] = wait
    live = serve(find=routes.find)
    short = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"
    client = live.connect().send(short * 450)  # less than a slice
    live.until(lambda: live.server.in_flight >= 16)
    assert live.server.in_flight <= 2 * DENSE_SLICE_BYTES // len(short)
    live.call(opened.set)
    assert [client.response().status for _ in range(450)] == [200] * 450


def test_the_limit_of_a_body_is_asked_for_once(serve):
    """A body of 1-byte chunks had it looked up for each of them: 10 ms of CPU time for each slice of 16 KB."""
    asked = []
    live = serve(
        limits=QUICK._replace(max_body_bytes=100),
        body_limit=lambda path: (asked.append(path) or 10_000, too_large(10_000)),
    )
    chunked = get("/echo", "Transfer-Encoding: chunked", method="POST") + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"
    assert live.ask(chunked).json["body"] == "x" * 5000
    assert asked == [b"/echo"]
    client = live.connect().send(chunked + post("/echo", b"x" * 10_001))
    assert [client.response().status for _ in range(2)] == [200, 413]


def test_the_steps_of_a_turn_end_when_one_was_costly_or_the_time_is_over():
    order = []

    def step(name, seconds, is_costly):
        def run():
            order.append(name)
            time.sleep(seconds)
            return is_costly

        return run

    async def run() -> None:
        steps = RunQueue(turn_seconds=0.5)
        for name, seconds, is_costly in [("a", 0, False), ("b", 0, True), ("c", 0.6, False), ("d", 0, False)]:
            steps.add(step(name, seconds, is_costly))
        while "d" not in order:
            order.append("turn")
            await asyncio.sleep(0)

    asyncio.run(run())
    assert order == ["turn", "a", "b", "turn", "c", "turn", "d"]


def test_pages_leave_turns_to_other_requests():
    """Each turn had a page of 5 to 10 ms, and a lone request waited for one in each of its turns."""
    done = []

    async def run() -> None:
        steps = RunQueue(every=3)
        for _ in range(3):
            steps.add(lambda: bool(done.append("page")) or True)
        while done.count("page") < 3:
            done.append("turn")
            await asyncio.sleep(0)

    asyncio.run(run())
    assert done == ["turn", "turn", "turn", "page"] * 3


def test_a_client_that_waits_for_its_turn_is_not_idle(serve):
    """Its connection was half-closed after KEEP_ALIVE_SECONDS; writing the responses failed with a traceback."""
    live = serve(limits=QUICK._replace(keep_alive_seconds=0.2))
    add, client = live.server.activity.run_queue.add, live.connect()
    live.call(lambda: [add(lambda: time.sleep(0.15) is None) for _ in range(8)])
    client.send(get("/const") * 5)
    assert [client.response().status for _ in range(5)] == [200] * 5


def test_a_step_that_fails_does_not_end_the_others():
    done = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: done.append(context["exception"]))
        steps = RunQueue()
        steps.add(lambda: bool(1 / 0))
        steps.add(lambda: bool(done.append("second")))
        while "second" not in done:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert isinstance(done[0], ZeroDivisionError)


def test_the_kernel_keeps_little_for_a_client_that_must_wait(serve):
    """A worker had 279 MB: 250 KB of each of many connections were read at once and then had to wait.

    The kernel lets the buffer of a busy connection grow to 6 MB.
    """
    live = serve()
    client = live.connect()
    for _ in range(40):
        assert client.send(post("/async?0", b"x" * 1_000_000)).response().status == 200
    (connection,) = live.server.activity.clients
    sock = connection.output.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * RECEIVE_BYTES  # the kernel doubles it


def test_a_head_with_too_many_lines_is_rejected_before_it_ends(serve):
    """64 KB of short lines cost as much CPU time as 8,000 headers."""
    live = serve(limits=QUICK._replace(max_headers=100, max_header_bytes=65536))
    client = live.connect().send(get("/const")[:-2] + b"X: y\r\n" * 150)
    assert client.response().status == 431
