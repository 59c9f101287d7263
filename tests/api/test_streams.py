"""GET /stream on a running gateway: events for changed settings, resumption, limits and the end."""

import contextlib
import http.client
import os
import re
import signal
import socket
import time

import orjson
import pytest
from exchanges import exchange
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway.environments.client_tokens import digest_of, new_token

SAMPLE = sample_document()
SECONDS = 60


STREAMS = []  # of the current test


@pytest.fixture(autouse=True)
def close_streams():
    yield
    while STREAMS:
        STREAMS.pop().close()


class Stream:
    """An open stream: its blocks of events, read as they come."""

    def __init__(self, port, path="/stream", **headers):
        STREAMS.append(self)
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        self.connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        self.response = self.connection.getresponse()
        self.kind = self.response.getheader("Content-Type")

    def block(self):
        """The next block as a dictionary; None at the end. A comment has the name ""."""
        fields = {}
        while (line := self.response.readline()) not in (b"\n", b""):
            name, _, value = line.decode().rstrip("\n").partition(": ")
            fields[name.rstrip(":")] = value
        return fields or None

    def event(self):
        """The next block with data."""
        while (block := self.block()) is not None:
            if "data" in block:
                return block
        raise AssertionError("the stream has ended")

    def close(self):
        self.response.close()
        self.connection.close()


@pytest.fixture
def vendor():
    with Vendor(SAMPLE) as vendor:
        yield vendor


@pytest.fixture
def serve(vendor, tmp_path):
    with contextlib.ExitStack() as stack:

        def serve(name="data", **options):
            given = {"POLLING_TIME": 200} | options
            gateways.append(stack.enter_context(Gateway.of_vendor(tmp_path / name, vendor, **given)))
            return gateways[-1]

        gateways = []
        yield serve
        for gateway in gateways:
            assert "Traceback" not in gateway.log()


def change(vendor, version):
    vendor.settings = orjson.dumps(SAMPLE | {"version": version})


def test_a_change_reaches_the_stream(serve, vendor):
    stream = Stream(serve().port)
    assert stream.kind == "text/event-stream"
    first = stream.block()
    assert 2000 <= int(first["retry"]) <= 4000
    change(vendor, 70)
    event = stream.event()
    data = orjson.loads(event["data"])
    assert (data["type"], data["etag"]) == ("refetchEvaluation", event["id"])
    assert event["id"] != first["id"]
    change(vendor, 71)
    assert stream.event()["id"] not in (first["id"], event["id"])


def test_a_client_that_missed_a_change_gets_an_event_at_once(serve, vendor):
    gateway = serve()
    first = Stream(gateway.port).block()["id"]
    resumed = Stream(gateway.port, Last_Event_ID=first)
    assert resumed.block()["id"] == first
    late = Stream(gateway.port, Last_Event_ID="0123456789abcdef")
    assert late.block()["id"] == first
    assert late.event()["id"] == first


def test_the_id_is_the_same_at_every_gateway(serve):
    assert Stream(serve("one").port).block()["id"] == Stream(serve("other").port).block()["id"]


def test_silent_streams_get_comments(serve):
    stream = Stream(serve(STREAM_KEEPALIVE_SECONDS=1).port)
    stream.block()
    assert stream.block() == {"": "k"}
    assert stream.block() == {"": "k"}


def test_a_stream_ends_with_its_age(serve):
    gateway = serve(STREAM_KEEPALIVE_SECONDS=1, STREAM_MAX_SECONDS=1)
    stream = Stream(gateway.port)
    while stream.block() is not None:
        pass
    assert closed(gateway, "age") == 1


def closed(gateway, reason):
    _, _, metrics = exchange(gateway, "GET", "/metrics")
    return int(float(re.search(rf'fme_streams_closed_total{{reason="{reason}"}} (\S+)', metrics.decode())[1]))


def open_streams(gateway):
    return int(float(re.search(r"^fme_streams (\S+)$", exchange(gateway, "GET", "/metrics")[2].decode(), re.M)[1]))


def test_beyond_the_limit_a_stream_is_short_and_bulk_responses_announce_none(serve, vendor):
    gateway = serve(STREAM_MAX_CONNECTIONS=3)
    streams = [Stream(gateway.port) for _ in range(3)]
    for stream in streams:
        stream.block()
    assert open_streams(gateway) == 3
    full = Stream(gateway.port)
    assert full.response.status == 200
    assert int(full.block()["retry"]) >= 30_000
    assert full.block() is None
    assert "eventStreams" not in bulk(gateway)[2]
    streams[0].close()
    vendor.wait_until(lambda: "eventStreams" in bulk(gateway)[2])
    assert closed(gateway, "client") == 1


def bulk(gateway, path="/ofrep/v1/evaluate/flags", **headers):
    return exchange(gateway, "POST", path, {"context": {"targetingKey": "u"}}, Origin="https://shop.example", **headers)


def test_pages_are_told_of_the_stream_and_servers_are_not(serve):
    gateway = serve()
    target = f"/stream?since={Stream(gateway.port).block()['id']}"
    announced = {"type": "sse", "endpoint": {"requestUri": target}, "inactivityDelaySec": 30}
    assert bulk(gateway)[2]["eventStreams"] == [announced]
    _, headers, body = exchange(gateway, "POST", "/ofrep/v1/evaluate/flags", {"context": {"targetingKey": "u"}})
    assert "eventStreams" not in body
    assert headers["etag"] != bulk(gateway)[1]["etag"]


def test_a_change_between_the_evaluation_and_the_stream_is_not_missed(serve, vendor):
    gateway = serve(STREAM_KEEPALIVE_SECONDS=1)
    _, headers, body = bulk(gateway)
    change(vendor, 72)
    vendor.wait_until(lambda: bulk(gateway)[1]["etag"] != headers["etag"])
    stream = Stream(gateway.port, body["eventStreams"][0]["endpoint"]["requestUri"])
    current = stream.block()["id"]
    assert stream.block().get("id") == current
    unchanged = Stream(gateway.port, bulk(gateway)[2]["eventStreams"][0]["endpoint"]["requestUri"])
    assert unchanged.block()["id"] == current
    assert unchanged.block() == {"": "k"}
    resumed = Stream(gateway.port, body["eventStreams"][0]["endpoint"]["requestUri"], Last_Event_ID=current)
    assert resumed.block()["id"] == current
    assert resumed.block() == {"": "k"}


def test_another_host_can_have_the_streams(serve):
    gateway = serve(STREAM_URL="https://streams.example")
    assert bulk(gateway)[2]["eventStreams"][0]["url"].startswith("https://streams.example/stream?since=")


def test_without_streams_none_is_announced(serve):
    assert "eventStreams" not in bulk(serve(STREAM_MAX_CONNECTIONS=0))[2]


def test_a_stream_needs_a_credential_and_a_ticket_is_one(serve, tmp_path):
    token = new_token("browser")
    file = tmp_path / "tokens.toml"
    file.write_text(
        f'[[token]]\nid = "shop.web"\nhash = "sha256:{digest_of(token.encode()).hex()}"\nkind = "browser"\n'
        'environments = ["default"]\norigins = ["https://shop.example"]\n'
    )
    gateway = serve(CLIENT_AUTH="decisions", TOKENS_FILE=file)
    assert Stream(gateway.port).response.status == 401
    assert Stream(gateway.port, "/stream?ticket=shop.web.00").response.status == 401
    target = bulk(gateway, X_API_Key=token)[2]["eventStreams"][0]["endpoint"]["requestUri"]
    assert token not in target
    assert "id" in Stream(gateway.port, target).block()
    key = f"/ofrep/v1/evaluate/flags?sdkKey={SAMPLE['sdkKey']}"
    target = bulk(gateway, key)[2]["eventStreams"][0]["endpoint"]["requestUri"]
    assert "id" in Stream(gateway.port, target).block()


def test_a_client_that_was_told_of_newer_settings_gets_them(serve, vendor):
    gateway = serve(POLLING_TIME=3_600_000)
    before = bulk(gateway)[1]["etag"]
    change(vendor, 90)
    assert bulk(gateway)[1]["etag"] == before
    told = bulk(gateway, "/ofrep/v1/evaluate/flags?flagConfigEtag=0123456789abcdef&flagConfigLastModified=1")
    assert told[1]["etag"] != before


def test_a_client_that_does_not_read_loses_its_stream_and_others_do_not(serve, vendor):
    gateway = serve(STREAM_KEEPALIVE_SECONDS=1)
    with socket.create_connection(("127.0.0.1", gateway.port)) as deaf:
        deaf.sendall(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n\r\n")
        stream = Stream(gateway.port)
        stream.block()
        vendor.wait_until(lambda: open_streams(gateway) == 2)
    vendor.wait_until(lambda: open_streams(gateway) == 1)
    change(vendor, 91)
    stream.event()


def test_a_client_that_closes_its_half_ends_its_stream(serve, vendor):
    """As browsers do; the requests behind the stream get no response."""
    gateway = serve()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as half:
        half.sendall(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n\r\n" * 2)
        vendor.wait_until(lambda: open_streams(gateway) == 1)
        half.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: half.recv(4096), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 1
    vendor.wait_until(lambda: open_streams(gateway) == 0)
    assert closed(gateway, "client") == 1


def test_a_stop_ends_streams_first_with_the_time_of_the_next_connection(serve):
    gateway = serve()
    streams = [Stream(gateway.port) for _ in range(20)]
    for stream in streams:
        stream.block()
    assert gateway.terminate() == 0
    for stream in streams:
        assert 500 <= int(stream.block()["retry"]) <= 5000
        assert stream.block() is None


def test_all_streams_are_back_after_a_restart_of_the_workers(serve, vendor):
    gateway = serve(WORKERS=2)
    streams = [Stream(gateway.port) for _ in range(100)]
    for stream in streams:
        stream.block()
    for pid in gateway.worker_pids():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS
    back = 0
    for stream in streams:
        last = stream.block()
        while last is not None and "retry" not in last:
            last = stream.block()
        while "id" not in (block := Stream(gateway.port).block()):  # the old worker accepts for a moment
            assert int(block["retry"]) <= 5000
            assert time.monotonic() < deadline
        back += 1
    assert back == 100
