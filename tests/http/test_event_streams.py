"""Streams of events on the HTTP front: how they begin and end on a connection."""

import http_harness as harness
import pytest
from http_harness import get

from tornado_gateway.http.messages import Response
from tornado_gateway.http.streamed import EventStream

serve = harness.serve
HEAD_AND_EVENT = b"\r\n\r\ndata: first\n\n"


class Streams:
    """The route /stream beside the usual ones. `closed` counts the streams whose client has gone."""

    def __init__(self):
        self.opened = []
        self.closed = 0

    def first(self, stream):
        self.opened.append(stream)
        return b"data: first\n\n"

    def gone(self, stream):
        self.closed += 1


@pytest.fixture
def streams():
    return Streams()


@pytest.fixture
def live(serve, streams):
    routes = harness.Routes()

    def stream(request):
        return EventStream(streams.first, streams.gone)

    routes.table |= {(b"GET", b"/stream"): stream, (b"HEAD", b"/stream"): stream}
    routes.table[b"POST", b"/count"] = lambda request: Response(200, routes.started.append(b"count") or b"{}")
    live = serve(find=routes.find)
    live.routes = routes
    return live


def opened(client):
    """Read the first event."""
    data = b""
    while HEAD_AND_EVENT not in data:
        data += client.take(1)
    return client


@pytest.mark.parametrize("is_half", [True, False])
def test_closing_an_open_stream_is_no_error(live, streams, is_half):
    """The queue of the connection changed while it was walked, so each closed stream logged a traceback."""
    client = opened(live.connect().send(get("/stream")))
    if is_half:
        client.half_close().assert_closed()
    else:
        client.sock.close()
    live.until(lambda: streams.closed == 1 and not live.server.in_flight)
    live.turn()
    assert live.problems == []


def test_only_a_stream_that_is_not_open_yet_is_in_flight(live):
    opened(live.connect().send(get("/stream")))
    assert live.server.in_flight == 0
    client = live.connect().send(get("/gated") + get("/stream"))
    live.until(lambda: live.server.in_flight == 2)
    live.call(live.routes.gate.open)
    assert client.response().body == b'"gated"'
    opened(client)
    assert live.server.in_flight == 0


def test_stream_whose_client_has_left_before_its_turn_ends(live, streams):
    """It stayed at the head of the queue, so the connection never ended and a shutdown waited for it."""
    client = live.connect().send(get("/gated") + get("/stream"))
    live.until(lambda: live.routes.started)
    client.half_close()
    live.turn()
    live.call(live.routes.gate.open)
    assert client.response().body == b'"gated"'
    client.assert_closed()
    live.until(lambda: not live.server.in_flight)
    assert streams.opened == []


def test_head_of_a_stream_has_no_body_and_ends(live, streams):
    client = live.connect().send(get("/stream", method="HEAD"))
    response = client.response(is_head=True)
    assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
    client.assert_closed()
    assert streams.opened == []


@pytest.mark.parametrize("is_at_once", [True, False])
def test_requests_behind_a_stream_are_not_served(live, is_at_once):
    """They can get no response, so a client sends them again: their events would count twice."""
    behind = harness.post("/count", b"{}") * 3
    client = live.connect().send(get("/stream") + (behind if is_at_once else b""))
    opened(client)
    client.send(behind)
    live.turn()
    other = live.connect()
    for _ in range(10):
        assert other.send(get("/const")).response().status == 200
    assert live.routes.started == []
    client.sock.close()
    live.until(lambda: live.server.connections == 1)
