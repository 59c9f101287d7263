"""The API description agrees with the routes, limits and texts of the code, with its standard, and with a gateway."""

import ast
import http.client
import re
from typing import Any
from urllib.parse import urlencode

import jsonschema
import orjson
import pytest
from openapi_spec_validator import validate
from process import ROOT, Gateway, sample_document
from vendor import Vendor

from tornado_gateway import __version__
from tornado_gateway.api.routes import ROUTES
from tornado_gateway.api.settings import PULL_PAUSE_SECONDS
from tornado_gateway.config import OPTIONS, Config
from tornado_gateway.console.admin_pages import SHOWN_LETTERS
from tornado_gateway.console.auth import COOKIE, SESSION_SECONDS
from tornado_gateway.console.openapi import DOCUMENT
from tornado_gateway.console.overview import SAMPLE_SECONDS
from tornado_gateway.console.pages import ROUTES as PAGES
from tornado_gateway.console.recent_events import SHOWN_BYTES
from tornado_gateway.enrichment.lists import FRESH_SECONDS
from tornado_gateway.environments.client_tokens import TRACK
from tornado_gateway.telemetry.attempts import FAILURES, FAILURES_OF_ADDRESS
from tornado_gateway.telemetry.series import RINGS

OPERATIONS = [
    (path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]
IDS = [f"{method} {path}" for path, method, _ in OPERATIONS]
TOKEN = "correct-horse-battery"  # of operators and of the webhook


def page_routes() -> set[tuple[str, str]]:
    """The routes of pages, without their scripts and styles."""
    shown = [route for route in PAGES if route.label != "/web"]
    return {(route.path, method.lower()) for route in shown for method in route.page.METHODS}


def test_it_describes_every_route_and_nothing_else():
    described = {(path, method) for path, method, _ in OPERATIONS}
    assert described == {(route.path, route.method.lower()) for route in ROUTES} | page_routes()


def test_bodies_have_the_limit_of_their_route():
    """Every request with a body can be too large; the table says which may be as large as a batch."""
    batches = {route.path for route in ROUTES if route.is_batch}
    for path, method, operation in OPERATIONS:
        if "requestBody" in operation:
            limit = "BatchTooLarge" if path in batches else "TooLarge"
            assert operation["responses"].get("413") == {"$ref": f"#/components/responses/{limit}"}, (path, method)
    text = DOCUMENT["components"]["responses"]["BatchTooLarge"]["description"]
    assert f"{Config().max_batch_bytes >> 20} MiB" in text


def test_decisions_can_be_off():
    guarded = {route.path for route in ROUTES if route.is_decision}
    off = {"$ref": "#/components/responses/DecisionsDisabled"}
    assert guarded == {path for path, _, operation in OPERATIONS if operation["responses"].get("403") == off}


def test_operations_that_send_events_and_unstable_ones_are_marked():
    sending = {path for path, _, operation in OPERATIONS if "x-events" in operation}
    decisions = {"/server-side/getFlag", "/server-side/getFlags", "/ofrep/v1/evaluate/flags/{key}"}
    requeuing = {"/admin/events/requeue", "/admin/events/edit"}
    assert sending == {route.path for route in ROUTES if route.scope == TRACK} | decisions | requeuing
    unstable = {path for path, _, operation in OPERATIONS if operation.get("x-stability") == "unstable"}
    assert unstable == {path for path, _, _ in OPERATIONS if path.startswith("/admin")}


def test_it_is_a_valid_openapi_document():
    validate(DOCUMENT)


def test_names_are_unique_and_tags_are_explained():
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))
    assert {tag for _, _, operation in OPERATIONS for tag in operation["tags"]} == {
        tag["name"] for tag in DOCUMENT["tags"]
    }


@pytest.mark.parametrize("kind", ["schemas", "responses"])
def test_every_component_is_used(kind):
    text = orjson.dumps(DOCUMENT).decode()
    for name in DOCUMENT["components"][kind]:
        assert f'"#/components/{kind}/{name}"' in text, name


def test_names_are_good_names_in_generated_clients():
    """Generators derive modules from tags and functions from operation ids: both are words in snake case already."""
    names = [tag["name"] for tag in DOCUMENT["tags"]]
    names += [operation["operationId"] for _, _, operation in OPERATIONS]
    assert {"sdks", "get_flag", "track_event"} <= set(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert all(tag["x-displayName"] for tag in DOCUMENT["tags"])


def resolved(operation):
    """The operation with the responses that it shares with others."""
    shared = DOCUMENT["components"]["responses"]
    responses = {
        status: shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
        for status, response in operation["responses"].items()
    }
    return operation | {"responses": responses}


# --- Texts and limits of the code ---


def error_patterns():
    """A pattern for each string in the package; the fields of an f-string match anything."""
    for path in (ROOT / "tornado_gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                if any(text and re.search(r"\w{4}", text) for text in texts):
                    yield "".join(".*" if text is None else re.escape(text) for text in texts)


def described_errors():
    responses = [response for _, _, operation in OPERATIONS for response in resolved(operation)["responses"].values()]
    examples = [content.get("example") for response in responses for content in response.get("content", {}).values()]
    return sorted({example["error"] for example in examples if isinstance(example, dict) and "error" in example})


PATTERNS = set(error_patterns())


@pytest.mark.parametrize("text", described_errors())
def test_error_texts_are_those_of_the_code(text):
    assert any(re.fullmatch(pattern, text) for pattern in PATTERNS)


def test_limits_and_names_are_those_of_the_code():
    assert DOCUMENT["info"]["version"] == __version__
    assert DOCUMENT["components"]["securitySchemes"]["session"]["name"] == COOKIE
    limit = DOCUMENT["paths"]["/admin/events"]["get"]["parameters"][0]
    assert f"first {SHOWN_BYTES} bytes" in orjson.dumps(DOCUMENT["components"]["schemas"]["DeadLetter"]).decode()
    assert limit["example"] == SHOWN_LETTERS
    (queue_limit,) = (option.default for option in OPTIONS if option.name == "EVENT_QUEUE_LIMIT")
    attempts = DOCUMENT["components"]["responses"]["TooManyAttempts"]["description"]
    assert f"{FAILURES_OF_ADDRESS} from this address, or {FAILURES} in total" in attempts
    assert f"{queue_limit} events wait" in orjson.dumps(DOCUMENT["components"]["responses"]["NotAccepted"]).decode()


DURATIONS = {1: "once a second", 300: "five minutes", 3600: "one hour", 12 * 3600: "twelve hours", 86400: "24 hours"}


@pytest.mark.parametrize(
    ("method", "path", "seconds"),
    [
        ("get", "/server-side/v2-pull", PULL_PAUSE_SECONDS),
        ("get", "/check-attribute", FRESH_SECONDS),
        ("post", "/admin/session", SESSION_SECONDS),
        *(("get", "/admin/overview", every * rows * SAMPLE_SECONDS) for every, rows in RINGS.values()),
    ],
)
def test_durations_are_those_of_the_code(method, path, seconds):
    assert DURATIONS[seconds] in orjson.dumps(DOCUMENT["paths"][path][method]).decode()


# --- Examples ---


def check(schema: dict[str, Any], value: object) -> None:
    """Validate a value against a schema of the document."""
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def contents(operation):
    """All places with a schema and an example: bodies and responses."""
    parts = [operation.get("requestBody", {}), *resolved(operation)["responses"].values()]
    return [content for part in parts for content in part.get("content", {}).values()]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_examples_fulfil_their_schemas(path, method, operation):
    for content in contents(operation):
        if "example" in content:
            check(content["schema"], content["example"])


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_every_operation_says_how_it_goes_wrong(path, method, operation):
    refusals = [status for status in operation["responses"] if status >= "400"]
    if "requestBody" in operation or operation.get("security"):
        assert refusals
    for status in refusals:
        content = resolved(operation)["responses"][status]["content"]["application/json"]
        assert content["example"], (path, status)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    options = {"ADMIN_TOKEN": TOKEN, "WEBHOOK_TOKEN": TOKEN, "STREAM_MAX_CONNECTIONS": 0}  # a stream ends at once
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(data_dir, vendor, **options) as gateway:
        yield gateway


def send(gateway, method, path, query=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Authorization": f"Bearer {TOKEN}"} | (
            {"Content-Type": "application/json"} if body is not None else {}
        )
        connection.request(method.upper(), target, None if body is None else orjson.dumps(body), headers)
        response = connection.getresponse()
        kind = response.getheader("Content-Type") or ""
        is_stream = kind.startswith("text/event-stream")  # which does not end by itself
        return response.status, kind, response.readline() if is_stream else response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_the_gateway_takes_the_example_and_answers_as_described(gateway, path, method, operation):
    query = {p["name"]: p["example"] for p in operation.get("parameters", ()) if "example" in p}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    if path == "/admin/session" and method != "get":
        body = {"token": TOKEN}
    for name, example in query.items():
        path = path.replace(f"{{{name}}}", str(example))
    status, kind, data = send(gateway, method, path, query, body)
    if path == "/admin/events/edit":  # there is no dead letter
        assert status == 404, data
        return
    assert status == 200, data
    content = operation["responses"]["200"].get("content", {})
    if "application/json" in content:
        assert kind.startswith("application/json")
        check(content["application/json"]["schema"], orjson.loads(data))
    elif content:
        assert kind.startswith(next(iter(content)))
    else:
        assert data == b""


def test_the_document_is_served(gateway):
    status, kind, data = send(gateway, "get", "/openapi.json")
    assert (status, orjson.loads(data)) == (200, DOCUMENT)
    assert kind == "application/json; charset=utf-8"
