"""Cross-origin access of browser SDKs (wire contract A.9)."""

import orjson
import pytest
from endpoints import EVENT, ORIGIN
from process import ROOT, Gateway
from sdk.wire import ask

PREFLIGHT = ORIGIN | {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "x-device-user-agent",
}


@pytest.fixture(scope="module", params=["*", "https://shop.example,https://admin.example:8443"], ids=["any", "listed"])
def cors(request, tmp_path_factory):
    """A gateway that serves browsers, and the headers that it owes to each origin."""
    options = {"SETTINGS_FILE": ROOT / "conf" / "sample-settings.json", "CORS_CONFIG_REQUIRED": "true"}
    options["CORS_ALLOWED_ORIGINS"] = request.param

    def owed(origin: str) -> dict[str, str]:
        if request.param == "*":
            return {"access-control-allow-origin": "*"}
        allowed = {"access-control-allow-origin": origin} if origin in request.param.split(",") else {}
        return allowed | {"vary": "Origin"}

    with Gateway(tmp_path_factory.mktemp("cors") / "d", **options) as gateway:
        yield gateway, owed


def grants(answer):
    named = ("access-control-allow-origin", "vary")
    return {name: answer.headers[name] for name in named if name in answer.headers}


@pytest.mark.parametrize("origin", ["https://shop.example", "https://admin.example:8443", "https://evil.example"])
@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/get-user-details", b"", 200),
        ("GET", "/check-attribute", b"", 400),
        ("POST", "/events/t", orjson.dumps(EVENT), 200),
        ("POST", "/events/t", b"no JSON", 400),
        ("POST", "/server-side/setAttribute", b"{}", 200),
        ("PUT", "/events/t", b"", 405),
        ("POST", "/events/t", b" " * (1 << 20) + b"{}", 413),
    ],
)
def test_every_answer_tells_the_browser_who_may_read_it(cors, origin, method, target, body, status):
    gateway, owed = cors
    answer = ask(gateway.port, method, target, body, PREFLIGHT | {"Origin": origin})
    assert (answer.status, grants(answer)) == (status, owed(origin))


@pytest.mark.parametrize("path", ["/events/t?a=1", "/get-user-details", "/eu01/events/t", "/no/such/path", "/"])
def test_a_preflight_is_answered_on_any_path(cors, path):
    answer = ask(cors[0].port, "OPTIONS", path, headers=PREFLIGHT)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
    allowed = answer.headers["access-control-allow-headers"]
    assert allowed == PREFLIGHT["Access-Control-Request-Headers"]
    assert answer.headers["access-control-max-age"] == "86400"
    assert answer.headers["access-control-allow-origin"] in ("*", "https://shop.example")


def test_without_the_option_nothing_is_granted(get, gateway):
    assert grants(get("/get-user-details", ORIGIN)) == {}
    answer = ask(gateway.port, "OPTIONS", "/events/t", headers=PREFLIGHT)
    assert (answer.status, grants(answer)) == (405, {})
    assert ask(gateway.port, "OPTIONS", "/no/such/path", headers=PREFLIGHT).status == 404
