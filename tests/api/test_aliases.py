"""Aliases of visitors (wire contract A.8)."""

import orjson
import pytest
from endpoints import ACCOUNT, JSON, document, new_events
from process import Gateway
from sdk.wire import ask
from vendor import Vendor


@pytest.fixture(scope="module")
def aliases(gateway):
    """member-9 is guest-1, member-10 is guest-2."""
    for target, body in (
        (
            f"/user-alias/setUserAlias?{ACCOUNT}&userId=guest-1&aliasId=member-9",
            b'{"userId":"guest-1","aliasId":"member-9"}',
        ),
        ("/user-alias/setUserAlias", b'{"userId":"guest-2","aliasId":"member-10"}'),
        ("/user-alias/setUserAlias?userId=guest-3&aliasId=member+11", b""),
    ):
        answer = ask(gateway.port, "POST", target, body)
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"isAliasSet":true}')


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"userId":"a"}', b'{"aliasId":"a"}', b'{"userId":"a","aliasId":"a"}', b'{"userId":"a","aliasId":" "}'],
    ids=bytes.decode,
)
def test_an_alias_needs_two_different_ids(post, body):
    answer = post("/user-alias/setUserAlias", body)
    assert (answer.status, answer.json()["status"]) == (400, 0)


@pytest.mark.usefixtures("aliases")
@pytest.mark.parametrize(
    ("query", "rows"),
    [
        (f'{ACCOUNT}&userId=["member-9"]', [("member-9", "guest-1")]),
        (f"{ACCOUNT}&userId=%5B%22member-9%22%5D", [("member-9", "guest-1")]),
        (f"{ACCOUNT}&userId=member-9", [("member-9", "guest-1")]),
        (f'{ACCOUNT}&userId=["member 11"]'.replace(" ", "%20"), [("member 11", "guest-3")]),
        (f'{ACCOUNT}&userId=["mem"ber-9","x"]', [("member-9", "guest-1"), ("x", "x")]),
        (f'{ACCOUNT}&userId=["x"]', [("x", "x")]),
        (
            f'{ACCOUNT}&userId=["member-10","x","member-9"]',
            [("member-10", "guest-2"), ("x", "x"), ("member-9", "guest-1")],
        ),
        (
            "userId=%5B%22member-10%22%2C%22x%22%2C%22member-9%22%5D",
            [("member-10", "guest-2"), ("member-9", "guest-1")],
        ),
        ("userId=%5B%22x%22%5D", []),
        (f"{ACCOUNT}&userId=[7]", [("7", "7")]),
    ],
    ids=[
        *(
            "raw array",
            "encoded array",
            "bare id",
            "blank",
            ".NET",
            "unknown id",
            "several",
            "mobile",
            "mobile unknown",
        ),
        "number",
    ],
)
def test_aliases_are_rows_in_the_order_asked(get, query, rows):
    answer = get(f"/user-alias/getAliasUserId?{query}")
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert answer.json() == [{"aliasId": alias, "userId": user} for alias, user in rows]


@pytest.mark.parametrize("query", ["", "userId=", "userId=[]", "userId=undefined", 'userId=[""]'])
def test_asking_for_no_alias_is_a_400(get, query):
    answer = get(f"/user-alias/getAliasUserId?{query}")
    assert (answer.status, answer.json()["status"]) == (400, 0)


@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 400)])
def test_a_request_may_ask_for_a_hundred_aliases(get, count, status):
    """Each is a lookup in the store, for which decisions of others wait."""
    ids = ",".join(f'"id-{number}"' for number in range(count))
    answer = get(f"/user-alias/getAliasUserId?userId=[{ids}]")
    assert answer.status == status
    assert status == 200 or "at most 100 ids" in answer.json()["error"]


@pytest.mark.usefixtures("aliases")
@pytest.mark.parametrize(
    ("path", "fields", "events"),
    [
        ("getFlag", {"featureKey": "new-checkout", "customVariables": {"plan": "gold"}}, 2),
        ("trackEvent", {"eventName": "purchase"}, 1),
        ("setAttribute", {"attributeKey": "tier", "attributeValue": "gold"}, 1),
    ],
)
def test_aliases_count_for_the_gateways_own_decisions(gateway, post, vendor, path, fields, events):
    answers, visitors = [], set()
    for user in ("guest-1", "member-9"):
        body = fields | {"userId": user}
        sent = new_events(gateway, vendor, events, lambda: answers.append(post(f"/server-side/{path}", body).body))  # noqa: B023
        visitors |= {event["d"]["visId"] for event in sent}
    assert answers[0] == answers[1]
    assert len(visitors) == 1


def test_without_the_option_an_alias_is_only_kept(tmp_path):
    with Vendor(document()) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, EVENTS_PER_REQUEST=1) as gateway:
        ask(gateway.port, "POST", "/user-alias/setUserAlias", b'{"userId":"guest-1","aliasId":"member-9"}')
        rows = ask(gateway.port, "GET", f"/user-alias/getAliasUserId?{ACCOUNT}&userId=member-9").json()
        assert rows == [{"aliasId": "member-9", "userId": "guest-1"}]
        visitors = []
        for user in ("guest-1", "member-9"):
            fields = {"eventName": "purchase", "userId": user}
            (event,) = new_events(gateway, vendor, 1, lambda: gateway.post("/server-side/trackEvent", fields))  # noqa: B023
            visitors.append(event["d"]["visId"])
        assert visitors[0] != visitors[1]


@pytest.mark.parametrize("path", ["/user-alias/setUserAlias", "/server-side/getFlag"])
def test_b5_ids_have_at_most_1_kb(post, path):
    """Row B5: ids are keys in the store."""
    fields = {"aliasId": "short", "featureKey": "new-checkout"}
    assert post(path, orjson.dumps({"userId": "x" * 1024, **fields})).status == 200
    for long in ("x" * 1025, "ä" * 513):
        answer = post(path, orjson.dumps({"userId": long, **fields}))
        assert (answer.status, "1024 bytes" in answer.json()["error"]) == (400, True)


def test_b4_a_cycle_is_not_set(post):
    ids = ("b4-guest", "b4-member", "b4-device")
    for user, alias, is_set in ((0, 1, True), (1, 2, True), (2, 0, False)):
        answer = post("/user-alias/setUserAlias", orjson.dumps({"userId": ids[user], "aliasId": ids[alias]}))
        assert answer.json() == {"isAliasSet": is_set}
