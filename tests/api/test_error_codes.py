"""Errors have a stable code: one table, which the documents repeat, and which holds for every layer of a gateway."""

import ast
import contextlib
import gzip
import re
import socket

import orjson
import pytest
from endpoints import EVENT
from ports import free_port
from process import ROOT, Gateway, sample_document
from sdk.wire import exchange, parse, request_bytes

from tornado_gateway.console.openapi import DOCUMENT
from tornado_gateway.errors import CODES, RequestError

SOURCES = [ast.parse(path.read_text()) for path in (ROOT / "tornado_gateway").rglob("*.py")]
DEFAULT = "of the status"
PAGE = "https://shop.example"
MOST_CLIENTS = 6


def test_the_table_the_documents_and_the_description_have_the_same_codes():
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| (.+) \|$", (ROOT / "docs" / "endpoints.md").read_text(), re.M)
    assert [(int(status), code, meaning) for status, code, meaning in rows] == [
        (status, code, meaning) for code, (status, meaning) in CODES.items()
    ]
    described = DOCUMENT["components"]["schemas"]["Error"]["properties"]["code"]["x-codes"]
    assert described == {code: meaning for code, (_, meaning) in CODES.items()}


def test_examples_have_the_code_of_their_status():
    shared = DOCUMENT["components"]["responses"]
    found = 0
    for operation in (one for item in DOCUMENT["paths"].values() for one in item.values()):
        for status, response in operation["responses"].items():
            response = shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
            for content in response.get("content", {}).values():
                if "error" in (example := content.get("example") or {}):
                    found += 1
                    assert CODES[example["code"]].status == int(status), example
    assert found > 100


def calls_with_status():
    """The status and the code of each call in the sources that makes an error."""
    for call in (node for tree in SOURCES for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if name in ("json_error", "RequestError", "super().__init__") and call.args:
            code = [word.value for word in call.keywords if word.arg == "code"]
            if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, int):
                yield call.args[0].value, code[0].value if code else DEFAULT


def test_each_error_in_the_sources_has_a_code_of_its_status():
    calls = list(calls_with_status())
    assert len(calls) > 90
    default = {RequestError(status, "").code for status, code in calls if code == DEFAULT}
    own = {code for _, code in calls if code != DEFAULT}
    for status, code in calls:
        assert CODES[RequestError(status, "").code if code == DEFAULT else code].status == status, (status, code)
    of_classes = {"store_unavailable", "method_not_allowed"}  # StoreError, and pages of Tornado
    assert own | default | of_classes >= set(CODES), "a code that no error has"


def test_a_status_without_a_code_has_a_general_one():
    assert [RequestError(status, "").code for status in (418, 502)] == ["invalid_request", "internal_error"]


# --- Every layer of a gateway that has no settings, for one page and a few clients ---


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    sample = sample_document()
    options = {
        "ACCOUNT_ID": sample["accountId"],
        "SDK_KEY": sample["sdkKey"],
        "UPSTREAM_URL": f"http://127.0.0.1:{free_port()}",
        "CORS_CONFIG_REQUIRED": "true",
        "CORS_ALLOWED_ORIGINS": PAGE,
        "EVENTS_PER_REQUEST": 1,
        "EVENT_QUEUE_LIMIT": 1,
        "MAX_CONNECTIONS": MOST_CLIENTS,
        "ADMIN_TOKEN": "correct-horse-battery",
        "SOCKET_TIMEOUT": 1,  # a start waits so long for settings
    }
    with Gateway(tmp_path_factory.mktemp("errors") / "d", **options) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log()


def send(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes(method, target, body, {"Origin": PAGE, **given})


LARGE = b"x" * 65_537
CHUNKED = b"POST /events/t HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\nTransfer-Encoding: %b\r\n\r\n"
EVENT_BODY, BATCH = "/events/t", "/server-side/batch-events-v2"
FLAG = "/server-side/getFlag"
CASES = {
    "malformed": (b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: %b\r\nA: b\r\nX\r\n\r\n" % PAGE.encode(), "malformed_request"),
    "no host": (b"GET / HTTP/1.1\r\nOrigin: %b\r\n\r\n" % PAGE.encode(), "malformed_request"),
    "damaged gzip": (send("POST", EVENT_BODY, b"x", Content_Encoding="gzip"), "malformed_request"),
    "no JSON": (send("POST", EVENT_BODY, b"x"), "invalid_json"),
    "another account": (send("POST", f"{FLAG}?accountId=7", b"{}"), "wrong_account"),
    "a missing value": (send("GET", "/check-attribute"), "invalid_request"),
    "no webhook": (send("POST", "/webhook"), "webhooks_disabled"),
    "no data route": (send("POST", "/no/such/path"), "not_found"),
    "no page": (send("GET", "/no/such/path"), "not_found"),
    "no environment": (send("GET", "/ready?environment=x"), "not_found"),
    "method of a data route": (send("GET", FLAG), "method_not_allowed"),
    "method of a page": (send("POST", "/health"), "method_not_allowed"),
    "tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nOrigin: %b\r\n\r\n" % PAGE.encode(), "method_not_allowed"),
    "body": (send("POST", FLAG, LARGE), "body_too_large"),
    "announced body": (send("POST", FLAG, b"", Content_Length="65537"), "body_too_large"),
    "body for a page": (send("POST", "/health", LARGE), "body_too_large"),
    "packed body": (send("POST", FLAG, gzip.compress(LARGE), Content_Encoding="gzip"), "body_too_large"),
    "packed batch": (send("POST", BATCH, gzip.compress(LARGE * 129), Content_Encoding="gzip"), "body_too_large"),
    "event": (send("POST", EVENT_BODY, LARGE * 16), "body_too_large"),
    "encoding": (send("POST", FLAG, b"x", Content_Encoding="br"), "unsupported_encoding"),
    "expectation": (send("POST", FLAG, b"{}", Expect="x"), "unsupported_expectation"),
    "head": (send("GET", "/", X_Large="x" * 70_000), "headers_too_large"),
    "coding": (CHUNKED % b"gzip, chunked" + b"0\r\n\r\n", "unsupported_coding"),
    "chunk headers": (CHUNKED % b"chunked" + b"1;" + b"x" * 150_000 + b"\r\nx\r\n0\r\n\r\n", "body_too_large"),
    "version": (b"GET / HTTP/0.9\r\nHost: a\r\nOrigin: %b\r\n\r\n" % PAGE.encode(), "unsupported_version"),
    "decision": (send("POST", FLAG, b'{"featureKey":"f","userId":"u"}'), "settings_not_loaded"),
    "settings": (send("GET", "/server-side/v2-settings"), "settings_not_loaded"),
}
CHUNK_HEADERS = 65_536 + 16_384
LIMITS = {"event": 1 << 20, "packed batch": 8 << 20, "chunk headers": CHUNK_HEADERS}


@pytest.mark.parametrize(("data", "code"), CASES.values(), ids=CASES)
def test_an_error_of_any_layer_can_be_read_by_pages_and_programs(gateway, request, data, code):
    check(parse(exchange(gateway.port, data))[0], code, LIMITS.get(request.node.callspec.id, 65_536))


def check(response, code, limit=0):
    error = response.json()
    assert (response.status, error["status"], error["code"]) == (CODES[code].status, 0, code), error
    assert response.headers["access-control-allow-origin"] == PAGE
    assert ("retry-after" in response.headers) == (response.status == 503)
    if response.status == 413:
        assert f"larger than {limit} bytes" in error["error"]
        assert ("(MAX_BODY_BYTES)" in error["error"]) == (limit != CHUNK_HEADERS)


def test_a_full_queue(gateway):
    event = send("POST", EVENT_BODY, orjson.dumps(EVENT))
    assert parse(exchange(gateway.port, event))[0].status == 200
    check(parse(exchange(gateway.port, event))[0], "queue_full")


def test_one_client_too_many_is_told_when_to_return(gateway):
    """It gets the response before it has sent its origin."""
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_CLIENTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        response = parse(exchange(gateway.port, b""))[0]
    assert (response.status, response.json()["code"]) == (503, "overloaded")
    assert (response.headers["retry-after"], response.headers["vary"]) == ("5", "Origin")


def test_openfeature_keeps_its_own_form(gateway):
    path = "/ofrep/v1/evaluate/flags/f"
    for data, status in ((send("POST", path, LARGE), 413), (send("POST", path, b'{"context":{}}'), 503)):
        response = parse(exchange(gateway.port, data))[0]
        assert (response.status, set(response.json())) == (status, {"key", "errorCode", "errorDetails"})
        assert response.headers["access-control-allow-origin"] == PAGE


ADMIN = {
    "no token": (send("GET", "/admin/overview"), "unauthorized"),
    "wrong type": (send("POST", "/admin/session", b"{}"), "unsupported_media_type"),
    "another site": (send("POST", "/admin/session", b"{}", Content_Type="application/json"), "forbidden"),
}


@pytest.mark.parametrize(("data", "code"), ADMIN.values(), ids=ADMIN)
def test_pages_of_other_sites_cannot_read_errors_for_operators(gateway, data, code):
    response = parse(exchange(gateway.port, data))[0]
    assert (response.status, response.json()["code"]) == (CODES[code].status, code)
    assert "access-control-allow-origin" not in response.headers


def test_pages_of_other_sites_can_read_the_description(gateway):
    answers = [parse(exchange(gateway.port, send("GET", path)))[0] for path in ("/openapi.json", "/docs")]
    assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [PAGE, None]


def test_operators_get_a_503_with_the_time_of_the_next_attempt(gateway):
    headers = {"Authorization": "Bearer correct-horse-battery", "Content-Type": "application/json"}
    data = request_bytes("POST", "/admin/explain", b'{"featureKey":"f","userId":"u"}', headers)
    response = parse(exchange(gateway.port, data))[0]
    assert (response.status, response.json()["code"]) == (503, "settings_not_loaded")
    assert response.headers["retry-after"] == "5"
