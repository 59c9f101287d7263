"""Ids of requests: read from headers, in the log lines of failures in both builds, and given back to clients."""

import asyncio
import http.client
import io
import json
import re
import subprocess
import sys
import time

import captured_logs
import pytest
from builds import BUILDS, both_builds
from process import SAMPLE_SETTINGS, Gateway

from tornado_gateway import logs
from tornado_gateway.http import request_ids
from tornado_gateway.http.limits import ServerOptions
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.http.server import Server

SECRET = "s3cr/t+w ith\"quotes'"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE_PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

restored = captured_logs.restored
written = captured_logs.written


def fail(request):
    raise RuntimeError(f"no such thing: {SECRET}")


def request_with(*headers):
    return Request(b"GET", b"/", b"", [(b"Host", b"x"), *headers])


IDS = {
    "x-request-id": ([(b"X-Request-Id", b"abc-123")], b"abc-123"),
    "lower case": ([(b"x-request-id", b"abc")], b"abc"),
    "traceparent": ([(b"traceparent", TRACE_PARENT.encode())], TRACE.encode()),
    "both": ([(b"traceparent", TRACE_PARENT.encode()), (b"X-Request-ID", b"abc")], b"abc"),
    "none": ([], None),
    "too long": ([(b"X-Request-Id", b"a" * 129)], None),
    "with blanks": ([(b"X-Request-Id", b"a b")], None),
    "not ASCII": ([(b"X-Request-Id", "ä".encode())], None),
    "broken traceparent": ([(b"traceparent", b"00-xyz-01")], None),
}


@pytest.mark.parametrize(("headers", "expected"), IDS.values(), ids=IDS.keys())
def test_the_id_of_a_request(headers, expected):
    assert request_ids.request_id(request_with(*headers)) == expected


@pytest.mark.parametrize("is_async", [False, True], ids=["in the handler", "in its task"])
@pytest.mark.parametrize("log_format", ["json", "human"])
def test_the_line_of_a_failed_request_has_its_id(written, log_format, is_async):
    text = written(log_format, secrets=[SECRET])
    request_ids.FAILURES.logged.clear()  # the case before this one failed in the same way

    async def fail_later(request):
        fail(request)

    async def ask():
        server = Server(ServerOptions(lambda method, path: fail_later if is_async else fail))
        await server.listen("127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-123\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await server.stop(1)
        return head

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 500")
    if log_format == "json":
        assert json.loads(text())["request_id"] == "abc-123"
    else:
        assert "Unhandled error in GET / [request abc-123]" in text().splitlines()[0]
    assert "s3cr" not in text()


# A server whose handlers, hook and page fail, and a client that asks each of them once.
FAILING = """
import asyncio, sys
from tornado.web import Application
from tornado_gateway import logs
from tornado_gateway.console.pages import Page
from tornado_gateway.http.limits import ServerOptions
from tornado_gateway.http.messages import Response
from tornado_gateway.http.request_ids import FAILURES
from tornado_gateway.http.server import Server

def fail(asked):
    raise RuntimeError("on purpose")

async def fail_later(asked):
    fail(asked)

class FailingPage(Page):
    def get(self):
        fail(None)

class FailingApplication:
    def start_request(self, *_):
        fail(None)

def hook(request, status):
    if status == 204:
        fail(request)

def find(method, path):
    if path == b"/find":
        fail(None)
    found = {b"/handler": fail, b"/task": fail_later, b"/nothing": lambda request: None}
    found[b"/hook"] = lambda request: Response(204)
    return found.get(path)

async def main():
    logs.set_up("INFO", "json")
    pages = Application([("/.*", FailingPage)], log_function=lambda handler: None)
    for number, application in enumerate([pages, FailingApplication()]):
        server = Server(ServerOptions(find, application, on_response=hook))
        await server.listen("127.0.0.1")
        for path in sys.argv[1:] if not number else ["/application"]:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = f"GET {path}?i=key HTTP/1.1\\r\\nHost: x\\r\\nX-Request-Id: id-of-{path[:12]}\\r\\n\\r\\n"
            FAILURES.logged.clear()
            writer.write(head.encode())
            assert b"HTTP/1.1 204" in await reader.read(4096) or path != "/hook"
            writer.close()
        await server.stop(1)

asyncio.run(main())
"""


@both_builds
def test_h3_the_line_of_a_failed_request_has_its_id_in_each_build(build):
    """Row H3: the id was looked for in the frames of the traceback, and compiled code has none."""
    long = "/page" + "x" * 5000
    paths = ["/handler", "/task", "/nothing", "/find", "/hook", "/page", long]
    environment = {"PYTHONPATH": str(BUILDS[build]), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", FAILING, *paths]
    written = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["request_id"] for line in lines] == [f"id-of-{path[:12]}" for path in [*paths, "/application"]]
    expected = [f"Unhandled error in GET {path}" for path in ("/handler", "/task", "/nothing", "/find")]
    expected += ["the on_response hook failed", "Unhandled error in GET /page", f"Unhandled error in GET {long[:200]}"]
    assert [line["message"] for line in lines] == [*expected, "Unhandled error in GET /application"]
    assert all("Traceback" in line["exception"] or "TypeError" in line["exception"] for line in lines)


def ask(gateway, headers, method="POST", path="/server-side/getFlag"):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request(method, path, b'{"featureKey":"f","userId":"u"}', headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.headers


WHERE = {
    "LOG_LEVEL=DEBUG": {"LOG_LEVEL": "DEBUG"},
    "CORS": {"CORS_CONFIG_REQUIRED": "true", "CORS_ALLOWED_ORIGINS": "*"},
    "elsewhere": {},
}


@pytest.mark.parametrize("options", WHERE.values(), ids=WHERE.keys())
def test_the_id_is_given_back_to_who_sent_one(tmp_path, options):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, **options) as gateway:
        assert ask(gateway, {"X-Request-Id": "abc-123"})["X-Request-Id"] == "abc-123"
        assert ask(gateway, {"traceparent": TRACE_PARENT})["X-Request-Id"] == TRACE
        assert ask(gateway, {})["X-Request-Id"] is None
        headers = ask(gateway, {"Origin": "https://shop.example"})
        assert headers["Access-Control-Allow-Origin"] == ("*" if "CORS_CONFIG_REQUIRED" in options else None)
        assert gateway.terminate() == 0
        assert ("[request abc-123]" in gateway.log()) == (options.get("LOG_LEVEL") == "DEBUG")


def test_without_need_the_front_is_left_alone(restored):
    logs.set_up("INFO", stream=io.StringIO())
    tracing = request_ids.Tracing(None)
    hook = Response.render
    assert tracing.with_log(hook) is hook


def test_d4_identical_failures_are_logged_once_per_interval(caplog):
    """Row D4: the first one with its traceback, the next line with the number of those between them."""
    log = request_ids.FailureLog(3600)
    asked = Request(b"GET", b"/x", b"", [])

    def fail_in_another_way():
        raise RuntimeError("on purpose")

    for function in (lambda: fail(asked), fail_in_another_way):
        for _ in range(50):
            try:
                function()
            except RuntimeError as error:
                log.log(asked, error)
    assert len(caplog.records) == 2
    assert all(record.exc_info for record in caplog.records)


def test_d4_the_next_line_has_the_number_of_those_left_out(caplog):
    log = request_ids.FailureLog(0.05)
    asked = Request(b"GET", b"/x", b"", [])
    deadline = time.monotonic() + 60
    while len(caplog.records) < 2:
        assert time.monotonic() < deadline
        log.log(asked, None)
    assert re.search(r"Unhandled error in GET /x \([0-9]+ more like the last one\)", caplog.messages[1])


def test_d4_the_places_of_failures_are_bounded():
    log = request_ids.FailureLog()
    for number in range(3 * request_ids.MAX_PLACES):
        log.log(Request(b"GET", b"/x", b"", []), type(f"Error{number}", (Exception,), {})())
    assert len(log.logged) <= request_ids.MAX_PLACES
