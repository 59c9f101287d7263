"""Rules for all routes: prefixes, methods, unescaped queries, lone surrogates (wire contract 0.8 to 0.10), and keys."""

import orjson
import pytest
from endpoints import ACCOUNT, EVENT, FACTS, JSON, KEY, LONDON, MAC_AGENT, TRUE
from process import Gateway
from sdk.wire import ask

from tornado_gateway.api.routes import ROUTES


def test_a9_lone_surrogates_in_decisions(post):
    answers = []
    for path, body in (
        ("getFlag", rb'{"featureKey":"new-checkout","userId":"u\ud83d","customVariables":{"t":"abc\ud83d"}}'),
        ("trackEvent", rb'{"eventName":"purchase","userId":"u\ud83d","eventProperties":{"t":"\ude00"}}'),
        ("setAttribute", rb'{"attributeKey":"t","attributeValue":"\ud83d","userId":"u\ud83d"}'),
    ):
        answers.append(post(f"/server-side/{path}", body))
        assert "warning" not in answers[-1].headers
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[1].json() == {"purchase": True}
    alias = post("/user-alias/setUserAlias", rb'{"userId":"u\ud83d","aliasId":"m\ud83d"}')
    assert alias.json() == {"isAliasSet": True}


def test_d1_lookups_with_unescaped_values(get, post, vendor):
    details = get(b"/get-user-details?ipAddress=81.2.69.160&userAgent=" + MAC_AGENT.encode())
    assert details.json() == {"location": LONDON, "userAgent": FACTS}
    for value in ("two words", "k\u00e4se"):
        answer = get(b"/check-attribute?listId=list-77&attribute=" + value.encode())
        assert (answer.status, answer.body) == (200, TRUE)
    answer = post(b"/user-alias/setUserAlias?userId=raw guest&aliasId=raw member", b"")
    assert answer.json() == {"isAliasSet": True}
    rows = get(b'/user-alias/getAliasUserId?userId=["raw member"]').json()
    assert rows == [{"aliasId": "raw member", "userId": "raw guest"}]


@pytest.mark.parametrize(
    "target", ["/admin/events", "/status", "/health", "/webhook", "/metrics", "/", "/us01/admin", "/no/such/path"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_d1_other_paths_stay_strict(gateway, method, target):
    answer = ask(gateway.port, method, f"{target}?a=b c")
    assert (answer.status, answer.json()["error"]) == (400, "malformed HTTP request")


PATHS = [(route.method, route.path) for route in ROUTES]


@pytest.mark.parametrize(("method", "path"), PATHS, ids=map(" ".join, PATHS))
@pytest.mark.parametrize("prefix", ["/eu01", "/", "//eu01/", "http://gateway:8000", "http://gateway/eu01"])
def test_every_route_may_have_the_collection_prefix(gateway, method, path, prefix):
    body = b"" if method == "GET" else b"no JSON"
    plain, prefixed = (ask(gateway.port, method, target, body) for target in (path, prefix + path))
    assert prefixed.status == plain.status
    if path != "/stream":  # the time of the next attempt is random
        assert prefixed == plain
    assert plain.status in (200, 400, 401)


@pytest.mark.parametrize(("method", "path"), PATHS, ids=map(" ".join, PATHS))
def test_wrong_methods_are_told_which_are_right(gateway, method, path):
    for wrong in ("PUT", "DELETE", "OPTIONS", "GET" if method == "POST" else "POST"):
        answer = ask(gateway.port, wrong, path)
        assert (answer.status, answer.headers["allow"], answer.headers["content-type"]) == (405, method, JSON)
        assert "access-control-allow-origin" not in answer.headers


def test_d15_one_unknown_prefix_is_skipped(get):
    assert get("/us01/get-user-details").status == 200
    for path in ("/us01/us01/get-user-details", "/ninechars/get-user-details", "/US01/get-user-details"):
        answer = get(path)
        assert (answer.status, answer.headers["content-type"], answer.json()["status"]) == (404, JSON, 0)


ANOTHER = "accountId or sdkKey does not match this gateway"
# Events are dropped and counted instead (rows A6, A7); a webhook has a token of its own.
CHECKED = [(method, path) for method, path in PATHS if not path.endswith(("/t", "/batch-events-v2", "/webhook"))]
BODY = (
    b'{"featureKey":"new-checkout","userId":"u","aliasId":"m","eventName":"purchase","attributeKey":"k",'
    b'"attributeValue":"v","dsl":{}}'
)


@pytest.mark.parametrize(("method", "path"), CHECKED, ids=map(" ".join, CHECKED))
@pytest.mark.parametrize("query", ["accountId=1", "sdkKey=other", f"accountId=1&sdkKey={KEY}"])
def test_f5_another_account_or_key_is_rejected_on_every_route(gateway, method, path, query):
    target = f"{path}?{query}&userId=u&attribute=a&listId=list-77&ipAddress=81.2.69.160"
    answer = ask(gateway.port, method, target, BODY if method == "POST" else b"")
    if path.endswith("setAttribute"):  # always 200, as documented
        assert (answer.status, answer.headers["warning"]) == (200, f'199 - "{ANOTHER}"')
    else:
        assert answer.status == 400
        assert ANOTHER in answer.json().values()  # OFREP has an error format of its own


@pytest.mark.parametrize("path", ["/check-attribute", "/get-user-details", "/user-alias/getAliasUserId"])
def test_f5_parts_of_an_unescaped_value_are_no_account(get, path):
    """Some SDKs do not escape the values of visitors, so `a` and `i` may be a part of one."""
    answer = get(f"{path}?{ACCOUNT}&attribute=x&a=1&i=2&env=3&listId=list-77&userId=x")
    assert answer.status == 200


# Routes that some SDK requests without a key (wire contract A.2, A.3, A.10), so that the option does not concern them.
WITHOUT_KEY = {"/get-user-details", "/getUserData", "/check-attribute", "/attributes/check", "/evaluate-event-dsl"} | {
    "/getLocation",
    "/server-side/ua-parser",
}


@pytest.fixture(scope="module")
def strict(vendor, tmp_path_factory):
    """A gateway whose clients have to send the SDK key."""
    options = {"CLIENT_KEY_REQUIRED": "true", "EVENTS_PER_REQUEST": 1, "WEBHOOK_TOKEN": "let-me-in-987654321"}
    with Gateway.of_vendor(tmp_path_factory.mktemp("strict") / "data", vendor, **options) as gateway:
        yield gateway


# Requests that no SDK sends have bodies of their own.
OTHERS = ("/ofrep", "/stream", "/server-side/getFlags", "/server-side/trackExposure")
SDK_ROUTES = [(method, path) for method, path in CHECKED if not path.startswith(OTHERS)]


@pytest.mark.parametrize(("method", "path"), SDK_ROUTES, ids=map(" ".join, SDK_ROUTES))
def test_f5_client_key_required(strict, method, path):
    parameters = "userId=u&attribute=a&listId=list-77&ipAddress=81.2.69.160"
    body = BODY if method == "POST" else b""
    with_key = ask(strict.port, method, f"{path}?i={KEY}&sdkKey={KEY}&{parameters}", body)
    assert with_key.status == 200
    assert "warning" not in with_key.headers
    for query in ("accountId=123456", "sdkKey=undefined"):
        answer = ask(strict.port, method, f"{path}?{query}&{parameters}", body)
        if path in WITHOUT_KEY:
            assert answer.status == 200
        elif path.endswith("setAttribute"):
            assert "CLIENT_KEY_REQUIRED" in answer.headers["warning"]
        else:
            assert answer.status == 400
            assert "CLIENT_KEY_REQUIRED" in answer.json()["error"]
    assert ask(strict.port, method, f"{path}?i={KEY}&sdkKey=other&{parameters}", body).status == (
        200 if path.endswith("setAttribute") else 400
    )


def rejected_events(gateway):
    return gateway.status()["events"]["rejected"]


@pytest.mark.parametrize(
    ("target", "headers", "rejected"),
    [
        ("/events/t", {}, 1),
        (f"/events/t?env={KEY}", {}, 0),
        ("/server-side/batch-events-v2", {}, 1),
        ("/server-side/batch-events-v2", {"Authorization": KEY}, 0),
        ("/server-side/batch-events-v2", {"Authorization": "Basic abc"}, 1),
        (f"/server-side/batch-events-v2?env={KEY}", {"Authorization": "Basic abc"}, 0),
    ],
)
def test_f5_events_without_a_key_are_dropped_and_counted(strict, target, headers, rejected):
    """Rows F5 and A7: a response other than 200 would make .NET SDKs send them again forever."""
    body = {"ev": [EVENT]} if "batch" in target else EVENT
    before = rejected_events(strict)
    answer = ask(strict.port, "POST", target, orjson.dumps(body), headers)
    assert (answer.status, answer.json()) == (200, {"success": True})
    assert rejected_events(strict) == before + rejected


def test_f5_usage_statistics_need_no_key(strict):
    """Node, PHP and Java send none with them (wire contract A.4)."""
    before = rejected_events(strict)
    stats = {"d": {"event": {"name": "vwo_sdkUsageStats", "props": {}}}}
    assert ask(strict.port, "POST", "/events/t?a=888888", orjson.dumps(stats)).status == 200
    assert rejected_events(strict) == before
