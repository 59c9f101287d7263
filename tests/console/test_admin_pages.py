"""The operators' endpoints: who may use them, and that what they say is what the gateway does."""

import itertools
import re
import time
from ipaddress import ip_network
from urllib.parse import quote

import orjson
import pytest
from exchanges import exchange
from process import ROOT, SAMPLE_SETTINGS, Gateway, sample_document
from sdk import wire
from vendor import Fault, Vendor

from tornado_gateway.console.auth import SESSION_SECONDS, Auth
from tornado_gateway.console.pages import ASSETS
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import ClientAddress

TOKEN = "correct-horse-battery"
PATHS = ["/admin/overview", "/admin/features", "/admin/events"]
VISITOR = {"id": "user-1", "customVariables": {"plan": "gold"}}


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    with Gateway.of_vendor(tmp_path_factory.mktemp("open") / "data", vendor, EVENTS_PER_REQUEST=1) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def guarded(vendor, tmp_path_factory):
    options = {"ADMIN_TOKEN": TOKEN, "TRUSTED_PROXIES": "127.0.0.0/8"}
    with Gateway.of_vendor(tmp_path_factory.mktemp("guarded") / "data", vendor, **options) as gateway:
        yield gateway


def ask(gateway, method, path, body=None, **headers):
    """The same as an operator."""
    return exchange(gateway, method, path, body, **gateway.admin_headers, **headers)


# Who may


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]:8000", "192.0.2.7", "gateway.localhost"])
def test_f1_this_machine_needs_the_generated_token_too(gateway, path, host):
    """Row F1: without ADMIN_TOKEN there is a generated one, and no client goes without it."""
    status, headers, body = exchange(gateway, "GET", path, Host=host)
    assert status == 401
    assert headers["www-authenticate"].startswith("Bearer")
    assert "admin token" in body["error"]
    assert gateway.admin_token not in str(body)
    assert exchange(gateway, "GET", path, Host=host, **gateway.admin_headers)[0] == 200


@pytest.mark.parametrize(
    "path", ["/admin", "/admin/", "/admin/nothing", "//admin/events", "/./admin", "/%61dmin/x", "/x/../ADMIN/events"]
)
def test_f1_unknown_paths_of_operators_are_known_to_operators_only(gateway, path):
    for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
        assert exchange(gateway, method, path)[0] == 401, method
        assert ask(gateway, method, path)[0] == 404, method


@pytest.mark.parametrize("path", ["/nothing", "/administration", "/web/admin", "//"])
def test_other_unknown_paths_are_unknown_to_everyone(gateway, path):
    assert exchange(gateway, "GET", path)[0] == 404


@pytest.mark.parametrize("path", [*PATHS, "/admin/explain", "/admin/events/requeue", "/admin/session"])
def test_f1_a_method_that_does_not_exist_needs_the_token_first(gateway, path):
    for method in ("OPTIONS", "PUT", "PATCH"):
        assert exchange(gateway, method, path)[0] == 401
        assert ask(gateway, method, path)[0] == 405


class Asking:
    """As much of a request as `Auth` looks at."""

    protocol = "http"

    def __init__(self, remote_ip, **headers):
        self.remote_ip = remote_ip
        self.headers = {"Host": "127.0.0.1", **headers}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "192.0.2.7", "", "unix", None])
async def test_f1_no_address_replaces_the_token(address):
    with pytest.raises(RequestError, match="admin token") as raised:
        await Auth(TOKEN).check(Asking(address), 0)
    assert raised.value.status == 401


@pytest.mark.parametrize("path", PATHS)
def test_with_a_token_nobody_else_may(guarded, path):
    status, headers, body = exchange(guarded, "GET", path)
    assert status == 401
    assert headers["www-authenticate"].startswith("Bearer")
    assert body["status"] == 0
    for wrong in ("Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", TOKEN, "Bearer £"):
        known = {"Authorization": wrong.encode("latin-1"), "X_Forwarded_For": f"192.0.2.{len(path)}"}
        assert exchange(guarded, "GET", path, **known)[0] == 401


@pytest.mark.parametrize("path", PATHS)
def test_the_bearer_of_the_token_may_from_anywhere(guarded, path):
    assert exchange(guarded, "GET", path, Authorization=f"Bearer {TOKEN}", Host="gateway.example")[0] == 200
    assert exchange(guarded, "GET", path, Authorization=f"bearer {TOKEN}", X_Forwarded_For="192.0.2.7")[0] == 200


def test_a_token_in_the_address_is_not_looked_at(guarded):
    for query in (f"token={TOKEN}", f"access_token={TOKEN}", f"ADMIN_TOKEN={TOKEN}"):
        assert exchange(guarded, "GET", f"/admin/overview?{query}")[0] == 401


def sign_in(gateway, **headers):
    return exchange(gateway, "POST", "/admin/session", {"token": TOKEN}, **headers)


def test_a_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(guarded):
    status, headers, body = sign_in(guarded)
    assert (status, body) == (200, {"signed_in": True})
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "Path=/", "SameSite=Strict", f"Max-Age={SESSION_SECONDS}"} <= set(attributes)
    assert "Secure" not in attributes  # the connection is not encrypted
    assert TOKEN not in cookie
    assert exchange(guarded, "GET", "/admin/overview", Cookie=cookie)[0] == 200
    assert exchange(guarded, "GET", "/admin/overview", Cookie=f"a=b; {cookie}")[0] == 200


@pytest.mark.parametrize(
    ("sent", "is_encrypted"),
    [("https", True), ("HTTPS", True), ("http, https", True), ("https,http", False), ("https, ", False), ("", False)],
)
def test_e1_the_nearest_proxy_says_whether_the_client_came_with_tls(sent, is_encrypted):
    """Row E1: the lines of X-Forwarded-Proto, which Tornado joins with commas, are read from the right."""
    auth = Auth("one", ClientAddress([ip_network("10.0.0.0/8")]))
    assert auth.is_encrypted(Asking("10.0.0.1", **{"X-Forwarded-Proto": sent})) is is_encrypted
    assert not auth.is_encrypted(Asking("192.0.2.7", **{"X-Forwarded-Proto": sent}))


@pytest.mark.parametrize(("values", "is_secure"), [(["http", "https"], True), (["https", "http"], False)])
def test_e1_the_cookie_behind_a_proxy_that_appends_a_line(tmp_path, values, is_secure):
    body = b'{"token":"%b"}' % TOKEN.encode()
    lines = b"".join(b"X-Forwarded-Proto: %b\r\n" % value.encode() for value in values)
    head = b"POST /admin/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    options = {"SETTINGS_FILE": SAMPLE_SETTINGS, "ADMIN_TOKEN": TOKEN, "TRUSTED_PROXIES": "127.0.0.0/8"}
    with Gateway(tmp_path / "data", **options) as gateway:
        data = wire.exchange(gateway.port, b"%b%bContent-Length: %d\r\n\r\n%b" % (head, lines, len(body), body))
    assert data.startswith(b"HTTP/1.1 200 ")
    assert (b"; Secure" in data) == is_secure


def test_a_session_that_was_tampered_with_is_none(guarded):
    cookie = sign_in(guarded)[1]["set-cookie"].split(";")[0]
    name, _, value = cookie.partition("=")
    until, nonce, signature = value.split(".")
    later = str(int(until) + 10_000)
    for wrong in (f"{later}.{nonce}.{signature}", f"{until}.x{nonce}.{signature}", f"{until}.{nonce}.", "", "..", "x"):
        assert exchange(guarded, "GET", "/admin/overview", Cookie=f"{name}={wrong}")[0] == 401


async def test_a_session_ends_and_is_not_of_another_token():
    auth, other = Auth("one"), Auth("two")
    cookie = {"Cookie": f"fme_gateway_session={auth.new_session(1000)}"}
    await auth.check(Asking("192.0.2.7", **cookie), 1000 + SESSION_SECONDS - 1)
    for wrong, now in ((auth, 1000 + SESSION_SECONDS), (other, 1001)):
        with pytest.raises(RequestError, match="sign in"):
            await wrong.check(Asking("192.0.2.7", **cookie), now)


def test_a_wrong_token_gives_no_session_and_costs_time(guarded):
    before = time.monotonic()
    status, headers, _ = exchange(guarded, "POST", "/admin/session", {"token": "wrong"})
    assert status == 401
    assert "set-cookie" not in headers
    assert time.monotonic() - before > 0.4
    assert exchange(guarded, "POST", "/admin/session", {"token": 7})[0] == 401


def test_signing_out_takes_the_cookie_back(guarded):
    status, headers, _ = exchange(guarded, "DELETE", "/admin/session", b"{}")
    assert status == 200
    assert 'fme_gateway_session="";' in headers["set-cookie"]


def test_the_session_can_be_checked(guarded):
    assert exchange(guarded, "GET", "/admin/session")[0] == 401
    assert ask(guarded, "GET", "/admin/session")[2] == {"signed_in": True}
    cookie = sign_in(guarded)[1]["set-cookie"].split(";")[0]
    assert exchange(guarded, "GET", "/admin/session", Cookie=cookie)[2] == {"signed_in": True}


CHANGES = [
    ("/admin/explain", VISITOR),
    ("/admin/events/requeue", {"ids": []}),
]


@pytest.mark.parametrize(("path", "body"), CHANGES)
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": ""}, 415),
    ],
    ids=str,
)
def test_another_sites_page_changes_nothing(gateway, path, body, headers, expected):
    assert ask(gateway, "POST", path, body, **headers)[0] == expected


@pytest.mark.parametrize(("path", "body"), CHANGES)
def test_our_own_page_may(gateway, path, body):
    own = {"Origin": f"http://127.0.0.1:{gateway.port}", "Sec_Fetch_Site": "same-origin"}
    assert ask(gateway, "POST", path, body, **own)[0] == 200
    assert ask(gateway, "POST", path, body, Content_Type="application/json; charset=utf-8")[0] == 200


def test_other_sites_get_no_cors_answer(gateway):
    _, headers, _ = ask(gateway, "GET", "/admin/overview", Origin="http://attacker.example")
    assert not [name for name in headers if name.startswith("access-control")]
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/admin/overview", "GET, HEAD"),
        ("GET", "/admin/explain", "POST"),
        ("GET", "/admin/events/requeue", "POST"),
        ("PUT", "/admin/session", "GET, HEAD, POST, DELETE"),
    ],
)
def test_a_wrong_method_names_the_right_ones(gateway, method, path, allowed):
    status, headers, _ = ask(gateway, method, path, b"{}" if method != "GET" else None)
    assert (status, headers["allow"]) == (405, allowed)


def test_the_token_is_in_no_log(vendor, tmp_path):
    options = {"ADMIN_TOKEN": TOKEN, "LOG_LEVEL": "DEBUG"}
    with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        sign_in(gateway)
        exchange(gateway, "GET", f"/admin/overview?token={TOKEN}", Authorization=f"Bearer {TOKEN}")
        exchange(gateway, "GET", "/admin/overview", Authorization=f"Bearer {TOKEN}x")
        gateway.terminate()
        assert TOKEN not in gateway.log()


# Console and assets


def test_each_file_of_the_console_is_served_and_scripts_are_short():
    directory = ROOT / "tornado_gateway" / "console" / "web"
    assert {file for file, _ in ASSETS.values()} | {"head.html"} == {path.name for path in directory.iterdir()}
    assert max(len(path.read_text().splitlines()) for path in directory.glob("*.js")) <= 220


@pytest.mark.parametrize("path", ["/console", "/docs", "/web/main.js", "/web/console.css"])
def test_pages_are_strict_and_cacheable(guarded, path):
    status, headers, body = exchange(guarded, "GET", path)
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    again = exchange(guarded, "GET", path, If_None_Match=headers["etag"])
    assert (again[0], again[2]) == (304, b"")
    head = exchange(guarded, "HEAD", path)
    assert (head[0], head[1]["content-length"]) == (200, str(len(body)))


@pytest.mark.parametrize("path", ["/console", "/docs"])
def test_pages_have_no_inline_code_and_no_foreign_address(gateway, path):
    page = ask(gateway, "GET", path)[2].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son\w+=|<style|\sstyle=", page)
    assert re.findall(r"""(?:src|href)=["'](https?:)?//""", page) == []


# Explain


FEATURES = [feature["key"] for feature in sample_document()["features"]]
VISITORS = [
    {"id": "user-1"},
    {"id": "user-2", "customVariables": {"plan": "gold", "customer": "VIP", "points": 6000}},
    {"id": "qa-ben"},
    {"id": "u", "variationTargetingVariables": {"team": "console"}},
    {"id": "u", "platformVariables": {"webTestingCampaigns": {"7": "2"}}},
    {"id": "u", "userAgent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) Mobile/15E148 Safari/604.1"},
    {"userId": "u", "customVariables": None},
    {"id": 12, "bucketingSeed": "company-7"},
]


@pytest.mark.parametrize(("visitor", "key"), itertools.product(VISITORS, [*FEATURES, "no-such"]))
def test_explain_decides_as_getflag(gateway, vendor, visitor, key):
    status, _, explained = ask(gateway, "POST", "/admin/explain", visitor | {"featureKey": key})
    assert status == 200
    [decision] = explained["decisions"]
    _, flag = gateway.post("/server-side/getFlag", visitor | {"featureKey": key})
    assert {"isEnabled": decision["enabled"], "variables": decision["variables"]} == flag
    assert decision["steps"][-1]["step"] == "end"
    assert decision["lines"]


def test_explain_tells_the_way_to_the_decision(gateway):
    _, _, explained = ask(gateway, "POST", "/admin/explain", VISITOR | {"featureKey": "new-checkout"})
    [decision] = explained["decisions"]
    assert decision["rule"] == {
        "kind": "ab",
        "rule_key": "testingRule1",
        "campaign_id": 102,
        "name": "One step or two for members",
    }
    assert decision["variation"] == {"id": 1, "name": "Two steps"}
    rule = next(step for step in decision["steps"] if step.get("campaign") == 102)
    assert rule["passed"] is True
    [segment] = rule["steps"]
    assert (segment["words"], segment["result"]) == ("any of", True)
    assert (segment["steps"][0]["words"], segment["steps"][0]["actual"]) == ("plan is gold", "gold")
    bucket = next(step for step in decision["steps"] if step["step"] == "variation")
    assert bucket["bucket"] == 4108
    assert decision["impressions"] == [{"campaign": 101, "variation": 1}, {"campaign": 102, "variation": 1}]


def test_explain_without_a_feature_explains_all_in_order(gateway):
    _, _, explained = ask(gateway, "POST", "/admin/explain", VISITOR)
    assert [decision["feature_key"] for decision in explained["decisions"]] == FEATURES


def calls_but_polls(vendor):
    """Other gateways of this file poll the same vendor."""
    return [call for call in vendor.calls if call not in vendor.settings_calls()]


def test_explain_sends_nothing_and_stores_nothing(vendor, tmp_path):
    with Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=1, STICKY_DECISIONS="true") as gateway:
        before = len(calls_but_polls(vendor))
        for visitor in VISITORS:
            assert ask(gateway, "POST", "/admin/explain", visitor)[0] == 200
        assert gateway.status()["events"]["received"] == 0
        assert len(calls_but_polls(vendor)) == before
        # A decision that had been stored would say so now.
        _, _, explained = ask(gateway, "POST", "/admin/explain", VISITORS[1])
        assert "stored" not in {decision["reason"] for decision in explained["decisions"]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "userId is required"),
        ({"id": " "}, "userId is required"),
        ({"id": "u", "featureKey": 7}, "featureKey must be a string"),
    ],
    ids=str,
)
def test_explain_says_what_is_wrong_with_a_visitor(gateway, body, message):
    status, _, answer = ask(gateway, "POST", "/admin/explain", body)
    assert status == 400
    assert message in answer["error"]


def test_a_segment_that_is_nested_deeply_can_be_explained(tmp_path):
    document = sample_document()
    node = {"custom_variable": {"plan": "gold"}}
    for _ in range(110):  # as deep as the stand-in can write
        node = {"or": [node]}
    document["campaigns"][1]["segments"] = node
    with Vendor(document) as vendor, Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
        status, _, explained = ask(gateway, "POST", "/admin/explain", VISITOR | {"featureKey": "new-checkout"})
        assert status == 200
        assert explained["decisions"][0]["variation"]["name"] == "Two steps"
        assert ask(gateway, "GET", "/admin/features")[0] == 200


def test_before_there_are_settings_the_answer_is_a_503(tmp_path):
    with Vendor() as vendor, Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
        assert ask(gateway, "POST", "/admin/explain", VISITOR)[0] == 503
        assert ask(gateway, "GET", "/admin/features")[0] == 503
        status, _, overview = ask(gateway, "GET", "/admin/overview")
        assert (status, overview["account"]["id"]) == (200, None)


# Events


def refused(event):
    return "refused" in orjson.dumps(event).decode()


def purchase(note):
    return {"d": {"visId": "X", "event": {"name": "purchase", "props": {"note": note}}}}


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return found


def test_a_dead_letter_can_be_seen_and_sent_again(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(400, times=10_000, refuses=refused))
        with Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=1) as gateway:
            for note in ("refused 1", "refused 2"):
                assert gateway.post("/events/t", purchase(note))[0] == 200
            recent = ask(gateway, "GET", "/admin/events")[2]["recent"]
            assert [event["name"] for event in recent] == ["purchase"] * 2
            good = gateway.wait_for_dead_letters(2)
            _, _, events = ask(gateway, "GET", "/admin/events")
            assert events["depth"]["dead"] == 2
            assert sorted(orjson.loads(letter["body"])["d"]["event"]["props"]["note"] for letter in events["dead"]) == [
                "refused 1",
                "refused 2",
            ]
            assert all("400" in letter["reason"] and letter["count"] == 1 for letter in events["dead"])
            assert len(ask(gateway, "GET", "/admin/events?limit=1")[2]["dead"]) == 1

            vendor.event_faults.clear()
            first, second = (letter["id"] for letter in events["dead"])
            assert ask(gateway, "POST", "/admin/events/requeue", {"ids": [first]})[2] == {"requeued": 1}
            vendor.wait_for_events(good + 1)
            [left] = ask(gateway, "GET", "/admin/events")[2]["dead"]
            assert left["id"] == second
            assert ask(gateway, "POST", "/admin/events/requeue", {"ids": None})[2] == {"requeued": 1}
            vendor.wait_for_events(good + 2)
            counts = wait_for(lambda: (c := gateway.status()["events"])["delivered"] == good + 2 and c)
            expected = {"received": good + 2, "delivered": good + 2, "oldest_at": None, "oldest_unknown_since": None}
            expected |= {"unknown": 0, "elsewhere": 0, "last_known": None}
            zeros = ("waiting", "dead", "rejected", "discarded", "discarded_internal", "lost")
            assert counts == expected | dict.fromkeys(zeros, 0)


@pytest.mark.parametrize("ids", ["1", 1, {}, [1.5], [None], [[1]], [True]], ids=str)
def test_requeue_takes_a_list_of_ids(gateway, ids):
    assert ask(gateway, "POST", "/admin/events/requeue", {"ids": ids})[0] == 400


@pytest.mark.parametrize("path", ["requeue", "discard"])
def test_a_misspelt_name_does_not_mean_all_dead_letters(gateway, path):
    for fields in ({}, {"id": 1}, {"all": True}):
        status, _, body = ask(gateway, "POST", f"/admin/events/{path}", fields)
        assert (status, body["error"].startswith("ids: expected a list")) == (400, True)


def test_requeue_of_nothing_is_nothing(gateway):
    for ids in ([], [999], ["no-such"], None):
        assert ask(gateway, "POST", "/admin/events/requeue", {"ids": ids})[2] == {"requeued": 0}


@pytest.mark.parametrize("limit", ["0", "x", "-1", "1.5", "99999999", "²"])
def test_the_limit_is_a_number(gateway, limit):
    assert ask(gateway, "GET", f"/admin/events?limit={quote(limit)}")[0] == 400
