"""Row D3: the bytes of unfinished bodies, and of large requests in flight, have one budget for all clients."""

import pytest
from http_harness import QUICK, get, post, serve

from tornado_gateway.http.limits import PARSED_FACTOR

__all__ = ["serve"]

KIB = 1024
LIMITS = QUICK._replace(max_bodies_bytes=512 * KIB, starved_seconds=0.2)


def unfinished(live, size):
    """A client that sends a body without its last byte."""
    client = live.connect()
    client.send(post("/echo", b"x" * size)[:-1])
    return client


def used(live):
    return live.call(lambda: live.server.options.budget.used)


def test_d3_bodies_without_their_last_bytes_stay_within_the_budget(serve):
    live = serve(limits=LIMITS._replace(body_seconds=5))
    clients = [live.connect() for _ in range(40)]
    for client in clients:
        client.sock.setblocking(False)
        try:
            client.sock.send(post("/echo", b"x" * 300 * KIB)[:-1])
        except BlockingIOError:
            pass
    live.until(lambda: used(live) > 512 * KIB)
    assert used(live) < 2048 * KIB  # and a slice or two of each client, but not the 12 MB that they send
    assert live.ask(post("/echo", b"small")).json["body"] == "small"  # others are served meanwhile
    answers = []
    for client in clients:
        client.sock.settimeout(60)
        answers.append(client.response())
    rejected = [answer for answer in answers if answer.status == 503]
    assert len(rejected) > 30  # the others had room, and then they were too slow
    assert {(answer.error, answer.headers["retry-after"]) for answer in rejected} == {
        ("too many large requests are in progress", "5")
    }


def test_d3_a_body_waits_until_there_is_room(serve):
    live = serve(limits=LIMITS._replace(starved_seconds=60))
    first = unfinished(live, 300 * KIB)
    live.until(lambda: used(live) > 290 * KIB)
    unfinished(live, 300 * KIB)
    live.until(lambda: used(live) > 512 * KIB)
    late = live.connect().send(post("/echo", b"y" * 100 * KIB))
    late.assert_silent()
    first.sock.close()
    assert late.response().status == 200
    live.until(lambda: used(live) <= 300 * KIB)


@pytest.mark.parametrize("end", ["finish", "close", "half-close"])
def test_d3_a_share_ends_with_its_request(serve, end):
    live = serve(limits=LIMITS)
    client = unfinished(live, 100 * KIB)
    live.until(lambda: used(live) > 90 * KIB)
    if end == "finish":
        assert client.send(b"x").response().status == 200
    elif end == "close":
        client.sock.close()
    else:
        client.half_close().assert_closed()
    live.until(lambda: used(live) == 0)


def test_d3_a_request_in_flight_counts_with_its_parsed_form(serve):
    live = serve(limits=LIMITS._replace(max_bodies_bytes=1 << 20))
    client = live.connect().send(post("/async?1", b"x" * 100 * KIB))
    live.until(lambda: used(live) == PARSED_FACTOR * 100 * KIB)
    assert client.response().status == 200
    live.until(lambda: used(live) == 0)


def test_d3_pipelined_requests_behind_a_starved_body_are_not_lost(serve):
    live = serve(limits=LIMITS._replace(starved_seconds=60))
    holder = unfinished(live, 300 * KIB)
    live.until(lambda: used(live) > 290 * KIB)
    unfinished(live, 300 * KIB)
    live.until(lambda: used(live) > 512 * KIB)
    client = live.connect().send(get("/const") + post("/echo", b"z" * 50 * KIB) + get("/const"))
    assert client.response().body == b'"const"'
    holder.sock.close()
    assert client.response().json["body"] == "z" * 50 * KIB
    assert client.response().body == b'"const"'
    live.until(lambda: used(live) <= 300 * KIB)
