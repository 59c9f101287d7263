"""Rules for all routes: prefixes, wrong methods, unescaped queries, lone surrogates (wire contract 0.8 to 0.10)."""

import pytest
from endpoints import FACTS, JSON, LONDON, MAC_AGENT, TRUE
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
