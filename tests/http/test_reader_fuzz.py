"""Arbitrary bytes on a live server: it may refuse them, but it neither fails nor stops serving."""

import socket

import http_harness as harness
import pytest
from http_harness import QUICK, Client, get
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_requests import GOOD, NOISE, pieces

serve = harness.serve


@st.composite
def mutated(draw):
    """Some good requests in a row, with pieces cut out, doubled or replaced by noise."""
    data = b"".join(draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 20)))
        data = data[:at] + draw(st.sampled_from([b"", data[at:to] * 2, *NOISE])) + data[to:]
    return data


def throw(live, parts, is_patient):
    sock = socket.create_connection(("127.0.0.1", live.server.port))
    client = Client(sock)
    try:
        for part in parts:
            client.send(part)
            if len(parts) > 1:
                live.turn()
        if is_patient:
            client.half_close()
            client.rest()
    except (BrokenPipeError, ConnectionResetError):
        assert not is_patient or len(parts) > 1, "a client that only reads after writing is never reset"
    finally:
        sock.close()


@pytest.mark.parametrize("lenient", [None, lambda path: path.endswith(b"/echo")], ids=["strict", "lenient"])
@pytest.mark.parametrize("kind", [st.binary(max_size=300), mutated()], ids=["bytes", "mutated"])
def test_fuzz(serve, kind, lenient):
    limits = QUICK._replace(max_header_bytes=4000, max_body_bytes=2000, max_pipelined=3)
    live = serve(limits=limits, lenient=lenient)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(kind, st.lists(st.integers(0, 1000), max_size=3), st.booleans())
    def run(data, cuts, is_patient):
        throw(live, pieces(data, cuts), is_patient)
        assert live.problems == []

    run()
    assert live.ask(get("/const")).body == b'"const"'
    live.until(lambda: live.server.connections <= 1 and not live.server.in_flight)
