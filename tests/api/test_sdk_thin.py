"""Thin clients, which have no decisions of their own: what they wrote to the wire, sent again byte by byte.

A transcript holds the requests of one client in a row, as they went over its connection.
"""

import gzip
import re
import socket

import orjson
import pytest
from process import ROOT, Gateway, sample_document
from sdk.wire import parse
from vendor import Vendor

from tornado_gateway import core

TRANSCRIPTS = ROOT / "tests" / "data" / "sdk"
VISITOR = {"id": "user-1", "customVariables": {"plan": "gold"}}
EMPTY = object()  # not even a content type


def document():
    """The account of the transcripts: theirs is the key, and `plain` is the feature."""
    text = orjson.dumps(sample_document() | {"sdkKey": "0123456789abcdef0123456789abcdef"})
    return orjson.loads(text.replace(b'"key":"new-checkout"', b'"key":"plain"'))


def requests(transcript):
    data = (TRANSCRIPTS / f"{transcript}.http").read_bytes()
    while data:
        head = data.partition(b"\r\n\r\n")[0]
        length = re.search(rb"Content-Length: (\d+)", head)
        size = len(head) + 4 + (int(length[1]) if length else 0)
        yield data[:size]
        data = data[size:]


def decision():
    settings = core.compile_settings(document())
    return orjson.loads(core.decide(settings, "plain", core.context_from_json(VISITOR, "user-1")).body)


CALLS = [decision(), {"purchase": True}, {"purchase": True}, EMPTY, EMPTY]
EVENTS = [
    *("vwo_variationShown", "vwo_variationShown", "purchase", "purchase"),
    *("vwo_syncVisitorProp", "vwo_syncVisitorProp"),
]


@pytest.mark.parametrize(
    ("transcript", "answers", "events"),
    [
        ("thin-go-1.0", [document(), *CALLS], EVENTS),
        ("thin-go-1.2", [document(), *CALLS], EVENTS),
        ("thin-ruby", [*CALLS, decision()], EVENTS + EVENTS[:2]),
    ],
)
@pytest.mark.parametrize("slash", [b"", b"/"], ids=["", "trailing slash in the URL"])
def test_a_transcript_gets_the_answers_that_its_client_wants(tmp_path, transcript, answers, events, slash):
    with (
        Vendor(document()) as vendor,
        Gateway.of_vendor(tmp_path / "d", vendor, SDK_KEY=document()["sdkKey"], EVENTS_PER_REQUEST=1) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection,
    ):
        assert decision()["isEnabled"]
        for request, wanted in zip(requests(transcript), answers, strict=True):
            connection.sendall(request.replace(b" /server-side", b" " + slash + b"/server-side", 1))
            answer, rest = parse(receive(connection))
            assert (answer.status, rest) == (200, b"")
            if wanted is EMPTY:
                assert (answer.body, answer.headers) == (b"", {"content-length": "0"})
                continue
            assert answer.headers["content-type"].startswith("application/json")
            packed = answer.headers.get("content-encoding") == "gzip"
            assert orjson.loads(gzip.decompress(answer.body) if packed else answer.body) == wanted
        arrived = [event["d"]["event"] for event in vendor.wait_for_events(len(events))]
        assert sorted(event["name"] for event in arrived) == sorted(events)
        amounts = {event["props"].get("amount") for event in arrived if event["name"] == "purchase"}
        assert amounts == {49.5, None}


def receive(connection):
    """One answer: the head, and as much as it announces."""
    data = b""
    while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + announced(data):
        part = connection.recv(65536)
        assert part, data
        data += part
    return data


def announced(data):
    return int(re.search(rb"Content-Length: (\d+)", data)[1])
