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
    if method == "POST" and status < 413 and "access-control-allow-origin" not in owed(origin):
        status = 403  # row F5
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


ALIAS = orjson.dumps({"userId": "guest-1", "aliasId": "member-9"})
PAGE = "https://evil.example"


@pytest.mark.parametrize(
    ("origin", "listed"),
    [
        (PAGE, 403),
        ("null", 403),  # a page in a sandbox, or a file
        ("https://shop.example", 200),
        ("https://SHOP.example:8443", 403),
        ("http://gateway.example", 200),  # the host of the request
        ("http://gateway.example:8001", 403),
    ],
)
@pytest.mark.parametrize("target", ["/user-alias/setUserAlias", "/eu01/events/t", "/server-side/batch-events-v2"])
def test_f5_no_post_of_an_origin_that_cors_does_not_allow(cors, origin, listed, target):
    gateway, owed = cors
    headers = {"Origin": origin, "Host": "gateway.example", "Content-Type": "application/json"}
    answer = ask(gateway.port, "POST", target, ALIAS, headers)
    assert answer.status == (listed if owed(PAGE).get("vary") else 200)
    if answer.status == 403:
        assert "CORS_ALLOWED_ORIGINS" in answer.json()["error"]
    assert ask(gateway.port, "GET", "/get-user-details", headers=headers).status == 200


SIMPLE = [
    None,
    "",
    "text/plain;charset=UTF-8",
    "Text/Plain",
    " application/x-www-form-urlencoded ; charset=UTF-8",
    "multipart/form-data; boundary=x",
]


@pytest.mark.parametrize("content_type", [*SIMPLE, "application/json"])
@pytest.mark.parametrize("prefix", ["", "/eu01", "/"])
def test_f5_without_cors_no_post_that_any_page_can_send(gateway, content_type, prefix):
    """Browser SDKs send events so through proxies that add CORS headers; other requests have a preflight there."""
    headers = {"Origin": PAGE} | ({} if content_type is None else {"Content-Type": content_type})
    wanted = 200 if content_type == "application/json" else 403
    post = lambda target, body, more=None: ask(gateway.port, "POST", prefix + target, body, headers | (more or {}))  # noqa: E731
    answer = post("/user-alias/setUserAlias", ALIAS)
    assert answer.status == wanted
    if wanted == 403:
        assert "CORS_CONFIG_REQUIRED" in answer.json()["error"]
        assert post("/server-side/getFlag", b'{"featureKey":"f","userId":"u"}').status == 403
    for target in ("/events/t", "/server-side/batch-events-v2"):
        assert post(target, b"{}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://gateway.example", "Host": "gateway.example"},
        {"Origin": "http://GATEWAY.example:8000", "Host": "gateway.example:8000"},
        {"Origin": "https://gateway.example", "Host": "10.0.0.7:8000", "Sec-Fetch-Site": "same-origin"},
        {},
    ],
    ids=["same host", "same port", "a proxy has replaced the host", "no page"],
)
def test_f5_a_page_of_the_same_host_may_post(gateway, headers):
    answer = ask(gateway.port, "POST", "/user-alias/setUserAlias", ALIAS, headers | {"Content-Type": "text/plain"})
    assert (answer.status, answer.body) == (200, b'{"isAliasSet":true}')


@pytest.mark.parametrize(
    "path", ["/user-alias/setUserAlias", "/server-side/getFlag", "/webhook", "/evaluate-event-dsl"]
)
def test_f5_a_page_of_another_site_changes_nothing(gateway, path):
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "X-Request-Id": "7"}
    answer = ask(gateway.port, "POST", path, ALIAS, headers)
    assert (answer.status, answer.headers["x-request-id"]) == (403, "7")
    assert grants(answer) == {}
