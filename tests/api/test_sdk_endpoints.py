"""What official SDKs rely on, rule by rule of the wire contract: exact statuses, content types and bytes."""

import gzip
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_network
from shutil import which
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import quote, quote_plus

import orjson
import pytest
from process import ROOT, Gateway, free_port, sample_document
from sdk.wire import ask, exchange, parse, request_bytes
from vendor import Fault, Vendor

from tornado_gateway.api.router import Api
from tornado_gateway.enrichment import lists
from tornado_gateway.errors import UpstreamError
from tornado_gateway.http.fields import MAX_HOPS, ClientAddress
from tornado_gateway.http.messages import Request

JSON = "application/json; charset=utf-8"
SCRIPT = "application/javascript; charset=utf-8"
KEY = sample_document()["sdkKey"]
ACCOUNT = f"accountId=123456&sdkKey={KEY}"
GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
AGENTS = orjson.loads((ROOT / "tests" / "data" / "user_agents.json").read_bytes())
MAC = next(agent for agent in AGENTS if agent["id"] == "chrome-mac")
LONDON = {"country": "United Kingdom", "region": "England", "city": "London"}
TRUE, FALSE = b"true", b"false"
EVENT = {"d": {"msgId": "D-1", "visId": "D", "event": {"name": "purchase", "time": 1, "props": {"sku": "A-1"}}}}
MEMBERS = {"a@b.io", "a+b@b.io", "two words", "käse", "x&y"}


def document(**changes: Any) -> dict[str, Any]:
    more = orjson.loads((ROOT / "tests" / "data" / "sdk" / "features.json").read_bytes())
    sample = sample_document()
    both = {name: sample[name] + more[name] for name in ("features", "campaigns")}
    return sample | both | {"collectionPrefix": "eu01"} | changes


@pytest.fixture(scope="module")
def vendor():
    with Vendor(document()) as vendor:
        vendor.lists = {"list-77": MEMBERS}
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    options = {
        "EVENTS_PER_REQUEST": 1,
        "MAX_EVENTS_PER_REQUEST": 3,
        "ALIASING_ENABLED": "true",
        "WEBHOOK_TOKEN": "let-me-in",
        "MAXMIND_DB_PATH": GEOIP,
        "SOCKET_TIMEOUT": 30,
    }
    with Gateway.of_vendor(tmp_path_factory.mktemp("endpoints") / "data", vendor, **options) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log()


@pytest.fixture
def get(gateway):
    def get(target: str, headers: Mapping[str, str] | None = None):
        return ask(gateway.port, "GET", target, headers=headers)

    return get


@pytest.fixture
def post(gateway):
    def post(target: str, body: Any, headers: Mapping[str, str] | None = None):
        return ask(gateway.port, "POST", target, body if isinstance(body, bytes) else orjson.dumps(body), headers)

    return post


def new_events(gateway, vendor, count, act):
    """What arrives upstream because of an action, and not more."""
    settled = lambda: gateway.status()["events"]["waiting"] == 0  # noqa: E731
    vendor.wait_until(settled)
    before = len(vendor.events)
    act()
    vendor.wait_for_events(before + count)
    vendor.wait_until(settled)
    events = vendor.events[before:]
    assert len(events) == count
    return events


def in_any_order(events):
    """Requests upstream run concurrently, so batches may arrive in another order than they were accepted in."""
    return sorted(events, key=orjson.dumps)


# Settings: A.1


def settings_calls(vendor):
    return len(vendor.settings_calls())


@pytest.mark.parametrize(
    "query",
    [
        "",
        f"?a=123456&i={KEY}",
        f"?i={KEY}&r=0.3083&a=123456&platform=server&sn=vwo-fme-node-sdk&sv=1.35.0&api-version=1&s=prod",
        f"?s=prod&api-version=1&i={KEY}&r=F3A1-00&a=123456&source=prod",
        "?api-version=7&platform=toaster",
    ],
    ids=["nothing", "thin Go", "Node", "another order", "an unknown dialect"],
)
def test_settings_are_the_mirrored_bytes(get, vendor, query):
    calls = settings_calls(vendor)
    answer = get(f"/server-side/v2-settings{query}")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, vendor.settings)
    assert settings_calls(vendor) == calls


def test_settings_have_a_tag_and_a_compressed_form(get, vendor):
    plain = get("/server-side/v2-settings")
    tag = plain.headers["etag"]
    assert get("/server-side/v2-settings?r=2").headers["etag"] == tag
    packed = get("/server-side/v2-settings", {"Accept-Encoding": "gzip, deflate"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == vendor.settings
    assert packed.body == get("/server-side/v2-settings", {"Accept-Encoding": "gzip"}).body
    two_lines = lines("If-None-Match", '"other"', tag)["If-None-Match"]  # row E1: lists may come in several lines
    assert get("/server-side/v2-settings", lines("Accept-Encoding", "br", "gzip")).body == packed.body
    for known, status in ((tag, 304), (f'"other", {tag}', 304), (two_lines, 304), ("*", 304), ('"other"', 200)):
        answer = get("/server-side/v2-settings", {"If-None-Match": known})
        assert (answer.status, answer.headers["etag"]) == (status, tag)
        assert answer.body == (b"" if status == 304 else plain.body)


def test_each_dialect_has_its_own_document(get, vendor):
    third, client = orjson.dumps(document(version=3)), orjson.dumps(document(version=4))
    vendor.dialects = {("3", "server"): third, ("1", "client"): client}
    try:
        for query, wanted in (
            ("api-version=3", third),
            ("api-version=3&platform=server", third),
            ("platform=client&api-version=1", client),
            ("platform=server&api-version=1", vendor.settings),
        ):
            calls = settings_calls(vendor)
            assert get(f"/server-side/v2-settings?{query}").body == wanted
            assert get(f"/server-side/v2-settings?{query}&r=1").body == wanted
            assert settings_calls(vendor) - calls <= 1
    finally:
        vendor.dialects = {}


@pytest.mark.parametrize("path", ["/server-side/v2-settings", "/server-side/v2-pull"])
@pytest.mark.parametrize("query", ["a=1", "i=other", f"a=1&i={KEY}", "accountId=1"])
def test_another_account_gets_no_settings(get, path, query):
    answer = get(f"{path}?{query}")
    assert (answer.status, answer.headers["content-type"]) == (400, JSON)
    assert answer.json() == {"status": 0, "error": "accountId or sdkKey does not match this gateway"}


def test_older_sdks_get_lists_where_upstream_writes_empty_objects(tmp_path):
    empty = sample_document() | {"features": {}, "campaigns": {}, "groups": {}, "campaignGroups": {}, "holdouts": {}}
    with Vendor(empty) as vendor, Gateway.of_vendor(tmp_path / "d", vendor) as gateway:
        answer = ask(gateway.port, "GET", "/server-side/v2-settings")
        assert answer.json() == empty | {"features": [], "campaigns": []}


def test_pulls_share_a_request_and_all_get_the_change(get, vendor):
    before = len(vendor.calls_to("/server-side/v2-pull"))
    started = time.monotonic()
    for round_, clients, delay in ((1, 1, 0), (2, 8, 2)):  # the delay gives all of them the time to ask
        vendor.settings = orjson.dumps(document(version=10 + round_))
        vendor.settings_faults.append(Fault(200, delay_seconds=delay))
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda _: get(f"/server-side/v2-pull?a=123456&i={KEY}&r=1"), range(clients)))
        assert {(answer.status, answer.body) for answer in answers} == {(200, vendor.settings)}
        assert len(vendor.calls_to("/server-side/v2-pull")) == before + round_
    assert time.monotonic() - started >= 1.0 + delay  # the second request waited for its turn


def test_a_pull_that_fails_answers_what_is_there(get, vendor):
    before = len(vendor.calls_to("/server-side/v2-pull"))
    vendor.settings_faults.append(Fault(500))
    answer = get("/server-side/v2-pull")
    assert (answer.status, answer.body) == (200, vendor.settings)
    assert len(vendor.calls_to("/server-side/v2-pull")) == before + 1


# User details: A.2, A.10


def details(location, agent):
    return orjson.dumps({"location": location, "userAgent": agent})


MAC_AGENT = MAC["user_agent"]
FACTS: dict[str, str] = MAC["facts"]


@pytest.mark.parametrize(
    ("query", "location", "agent"),
    [
        (f"userAgent={quote(MAC_AGENT)}&ipAddress=81.2.69.160&accountId=123456", LONDON, FACTS),
        (f"userAgent={quote_plus(MAC_AGENT)}&ipAddress=81.2.69.160", LONDON, FACTS),
        (f"userAgent={quote(quote(MAC_AGENT))}&ipAddress=81.2.69.160", LONDON, FACTS),
        (f"userAgent={quote_plus(quote_plus(MAC_AGENT))}", {}, FACTS),
        (f"userAgent={quote(MAC_AGENT, safe=';,()/@+')}", {}, FACTS),
        ("ipAddress=2001%3A220%3A%3A1", {"country": "South Korea"}, {}),
        ("ipAddress=2001:220::1", {"country": "South Korea"}, {}),
        ("accountId=123456", {}, {}),
        ("", {}, {}),
        ("userAgent=&ipAddress=", {}, {}),
        ("userAgent=undefined&ipAddress=undefined", {}, {}),
        ("userAgent=null&ipAddress=None", {}, {}),
        ("ipAddress=10.0.0.1", {}, {}),
        ("ipAddress=127.0.0.1", {}, {}),
        ("ipAddress=999.1.1.1", {}, {}),
        ("ipAddress=%00%ff%F0%28", {}, {}),
        ("ipAddress=" + "9" * 5000, {}, {}),
    ],
    ids=[
        *("percent", "form", "twice", "form twice", "hardly encoded", "IPv6", "IPv6 raw"),
        *("only the account", "nothing", "empty", "undefined", "null", "private", "loopback", "no address"),
        *("bytes", "long"),
    ],
)
@pytest.mark.parametrize("path", ["/get-user-details", "/getUserData"])
def test_user_details(get, path, query, location, agent):
    answer = get(f"{path}?{query}")
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert orjson.loads(answer.body) == {"location": location, "userAgent": agent}


def test_user_details_are_texts_and_versions_are_always_there(get):
    for agent in filter(None, [agent["user_agent"] for agent in AGENTS] + ["x", "Mozilla/5.0", "%"]):
        facts = get(f"/get-user-details?userAgent={quote(agent)}").json()["userAgent"]
        assert {type(value) for value in facts.values()} == {str}, agent
        assert facts.keys() >= {"os", "os_version", "browser_string", "browser_version", "device_type", "device"}


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/getLocation?ipAddress=81.2.69.160", orjson.dumps({"location": LONDON})),
        ("/getLocation?ipAddress=10.0.0.1", b'{"status":0}'),
        ("/getLocation", b'{"status":0}'),
        (f"/server-side/ua-parser?userAgent={quote(MAC_AGENT)}", orjson.dumps(FACTS)),
        ("/attributes/check?attribute=a@b.io&listId=list-77", TRUE),
    ],
    ids=["location", "no location", "no address", "user agent", "list"],
)
def test_the_ancestors_of_the_lookups_still_answer(get, target, body):
    answer = get(target)
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert answer.json() == orjson.loads(body)


ORIGIN = {"Origin": "https://shop.example"}
FORWARDED = {"X-Forwarded-For": "216.160.83.56, 81.2.69.160, 127.0.0.9"}  # forged, the visitor, a proxy of ours


def lines(name: str, *values: str) -> dict[str, str]:
    """A header in several lines, as `request_bytes` writes it."""
    return {name: f"\r\n{name}: ".join(values)}


# haproxy's `option forwardfor` appends a line below the client's.
TWO_LINES = lines("X-Forwarded-For", "2.125.160.216", "81.2.69.160")
THREE_LINES = lines("X-Forwarded-For", "2.125.160.216, 216.160.83.56", "81.2.69.160", "127.0.0.9,127.0.0.8")


@pytest.mark.parametrize(
    ("options", "headers", "location"),
    [
        ({}, ORIGIN | FORWARDED, {}),
        ({"TRUSTED_PROXIES": "127.0.0.0/8"}, ORIGIN | FORWARDED, LONDON),
        ({"TRUSTED_PROXIES": "127.0.0.0/8"}, ORIGIN | TWO_LINES, LONDON),
        ({"TRUSTED_PROXIES": "127.0.0.0/8"}, ORIGIN | THREE_LINES, LONDON),
        ({"TRUSTED_PROXIES": "127.0.0.0/8"}, FORWARDED, {}),
        ({"TRUSTED_PROXIES": "127.0.0.0/8"}, FORWARDED | {"User-Agent": MAC_AGENT}, {}),
        ({"TRUSTED_PROXIES": "127.0.0.0/8", "CORS_CONFIG_REQUIRED": "true"}, FORWARDED | {"User-Agent": "node"}, {}),
        (
            {"TRUSTED_PROXIES": "127.0.0.0/8", "CORS_CONFIG_REQUIRED": "true"},
            FORWARDED | {"User-Agent": MAC_AGENT},
            LONDON,
        ),
        ({"TRUSTED_PROXIES": "127.0.0.0/8", "CLIENT_IP_FALLBACK": "always"}, FORWARDED, LONDON),
        ({"TRUSTED_PROXIES": "127.0.0.0/8", "CLIENT_IP_FALLBACK": "never"}, ORIGIN | FORWARDED, {}),
    ],
    ids=[
        *("an untrusted proxy", "a browser", "E1 two lines", "E1 three lines"),
        *("a server SDK", "no browsers are served", "a server SDK beside browsers"),
        *("a browser without origin", "always", "never"),
    ],
)
def test_whose_address_stands_in(tmp_path, options, headers, location):
    settings = ROOT / "conf" / "sample-settings.json"
    with Gateway(tmp_path / "d", SETTINGS_FILE=settings, MAXMIND_DB_PATH=GEOIP, **options) as gateway:
        answer = ask(gateway.port, "GET", f"/get-user-details?userAgent={quote(MAC_AGENT)}", headers=headers)
        assert answer.json() == {"location": location, "userAgent": FACTS}
        given = ask(gateway.port, "GET", "/get-user-details?ipAddress=2.125.160.216", headers=headers).json()
        assert given["location"]["city"] == "Boxford"


HAPROXY = """
defaults
  mode http
  timeout connect 10s
  timeout client 30s
  timeout server 30s
  option forwardfor
listen proxy
  bind 127.0.0.1:{port}
  server gateway 127.0.0.1:{gateway}
"""


@contextmanager
def haproxy_before(gateway, tmp_path):
    port = free_port()
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(port=port, gateway=gateway.port))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")], stderr=subprocess.DEVNULL)
    try:
        gateway_answers(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def gateway_answers(port):
    deadline = time.monotonic() + 30
    while True:
        try:
            assert ask(port, "GET", "/health").status == 200
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.skipif(which("haproxy") is None, reason="there is no haproxy")
@pytest.mark.parametrize("sent", [{}, {"X-Forwarded-For": "2.125.160.216"}], ids=["honest", "forged"])
def test_e1_behind_a_real_haproxy_the_visitor_is_the_one_that_it_saw(tmp_path, sent):
    """haproxy leaves the client's line as it is and appends its own."""
    event = orjson.dumps({"d": EVENT["d"] | {"visitor_ip": ""}})
    with (
        Vendor(document()) as vendor,
        Gateway.of_vendor(tmp_path / "d", vendor, TRUSTED_PROXIES="127.0.0.1", EVENTS_PER_REQUEST=1) as gateway,
        haproxy_before(gateway, tmp_path) as port,
        socket.create_connection(("127.0.0.1", port), 30, source_address=("127.0.0.2", 0)) as client,
    ):
        client.sendall(request_bytes("POST", "/events/t", event, ORIGIN | sent))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        vendor.wait_for_events(1)
        assert vendor.events[0]["d"]["visitor_ip"] == "127.0.0.2"


def test_e1_no_more_than_so_many_hops_are_read():
    """Row E1: a client can send 16,000 of them."""
    client_address = ClientAddress([ip_network("127.0.0.0/8")])
    hops = ["81.2.69.160", *[f"127.0.0.{number}" for number in range(1, MAX_HOPS + 1)]]
    for skipped, expected in ((1, "81.2.69.160"), (0, "127.0.0.1")):
        sent = ",".join([hops[0], *hops[1 + skipped :]]).encode()
        request = Request(b"GET", b"/", b"", [(b"X-Forwarded-For", sent)], peer="127.0.0.1")
        assert client_address(request) == expected


# Lists: A.3


@pytest.mark.parametrize(
    ("attribute", "body"),
    [
        ("a@b.io", TRUE),
        ("nobody@b.io", FALSE),
        ("a%40b.io", TRUE),
        ("a+b@b.io", TRUE),
        ("a%2Bb%40b.io", TRUE),
        ("two+words", TRUE),
        ("two%20words", TRUE),
        ("k%C3%A4se", TRUE),
        ("x%26y", TRUE),
        ("x&y", FALSE),
        ("undefined", FALSE),
    ],
)
@pytest.mark.parametrize(
    ("agent", "content_type"),
    [("Java/17", JSON), ("Dalvik/2.1.0 (Linux; U; Android 14)", SCRIPT), ("okhttp/4.12", SCRIPT)],
    ids=["server", "Android", "okhttp"],
)
def test_a_list_check_is_four_or_five_bytes(get, attribute, body, agent, content_type):
    answer = get(f"/check-attribute?attribute={attribute}&listId=list-77", {"User-Agent": agent})
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, content_type, body)


@pytest.mark.parametrize("query", ["", "attribute=a@b.io", "listId=list-77", "attribute=&listId=list-77"])
def test_a_list_check_needs_both(get, query):
    answer = get(f"/check-attribute?{query}")
    assert (answer.status, answer.headers["content-type"]) == (400, JSON)
    assert answer.json() == {"status": 0, "error": "attribute and listId are required"}


def list_calls(vendor):
    return [call.query for call in vendor.calls if call.path == "/eu01/check-attribute"]


def test_an_answer_about_a_list_is_kept(get, vendor):
    before = len(list_calls(vendor))
    for _ in range(3):
        assert get("/check-attribute?attribute=kept@b.io&listId=list-77").body == FALSE
    assert list_calls(vendor)[before:] == [
        {"attribute": "kept@b.io", "listId": "list-77", "accountId": "123456", "sdkKey": KEY}
    ]


@pytest.mark.parametrize(
    "fault", [Fault(500, 99), Fault(404, 99), Fault(close=True, times=99)], ids=["500", "404", "no-answer"]
)
def test_a_list_that_cannot_be_asked_has_no_members(get, vendor, fault, request):
    value = request.node.callspec.id
    vendor.lists["list-78"] = {value}
    vendor.lookup_faults.append(fault)
    failed = get(f"/check-attribute?attribute={value}&listId=list-78")
    vendor.lookup_faults.clear()
    assert (failed.status, failed.body) == (200, FALSE)
    assert get(f"/check-attribute?attribute={value}&listId=list-78").body == TRUE  # the failure was not kept


async def test_an_old_answer_is_better_than_none(monkeypatch):
    answers: list[bool | UpstreamError] = [True, UpstreamError("down"), False, UpstreamError("down")]
    monkeypatch.setattr(lists, "FRESH_SECONDS", 0.0)

    async def ask_upstream(list_id: str, value: str) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, UpstreamError):
            raise answer
        return answer

    checks = lists.ListChecks(ask_upstream)
    assert [await checks.is_member("list-77", "a@b.io") for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("variables", "enabled"),
    [({"email": "a@b.io"}, True), ({"email": "no@b.io"}, False), ({"email": "x&y"}, True), ({}, False)],
    ids=["a member", "no member", "encoded", "without the variable"],
)
def test_the_gateways_own_decision_asks_the_list(post, vendor, variables, enabled):
    fields = {"featureKey": "by-list", "userId": "user-1", "customVariables": variables}
    assert post("/server-side/getFlag", fields).json()["isEnabled"] == enabled
    before = len(list_calls(vendor))
    assert post("/server-side/getFlag", fields).json()["isEnabled"] == enabled
    assert len(list_calls(vendor)) == before


def test_a_decision_without_the_list_is_off_and_not_kept(post, vendor):
    fields = {"featureKey": "by-list", "userId": "user-1", "customVariables": {"email": "early@b.io"}}
    vendor.lists["list-77"] = {*MEMBERS, "early@b.io"}
    vendor.lookup_faults.append(Fault(500))
    assert post("/server-side/getFlag", fields).json() == {"isEnabled": False, "variables": []}
    assert post("/server-side/getFlag", fields).json()["isEnabled"]


# Events: A.4, A.7


@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        (f"/events/t?en=purchase&a=123456&env={KEY}&visitor_ua=undefined", orjson.dumps(EVENT), {}),
        ("/events/t?a=123456", orjson.dumps(EVENT), {"Content-Type": "text/plain;charset=UTF-8"}),
        ("/events/t", orjson.dumps(EVENT, option=orjson.OPT_INDENT_2), {}),
        ("/events/t", orjson.dumps(EVENT, option=orjson.OPT_INDENT_2).replace(b"\n", b"\r\n"), {}),
        ("/eu01/events/t?env=", orjson.dumps(EVENT), {}),
        ("/events/t?visitor_ua=Mozilla/5.0%20(X11;%20Linux)&visitor_ip=None", orjson.dumps(EVENT), {}),
        ("/events/t?visitor_ua=Mozilla%252F5.0%2B%2528", orjson.dumps(EVENT), {"Expect": "100-continue"}),
    ],
    ids=["Node", "as text", "printed", "CR LF", "with prefix", "raw query", "encoded twice"],
)
def test_an_event_arrives_as_it_was_written(gateway, vendor, target, body, headers):
    def send():
        data = exchange(gateway.port, request_bytes("POST", target, body, headers))
        answer, rest = parse(data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"success":true}')
        assert not rest

    assert new_events(gateway, vendor, 1, send) == [EVENT]


def rejected(gateway, vendor, count, act):
    """Check that an action is acknowledged with 200 and that its `count` events are counted as rejected."""
    before = gateway.status()["events"]
    assert new_events(gateway, vendor, 0, act) == []
    after = gateway.status()["events"]
    assert after["rejected"] - before["rejected"] == count
    assert after["received"] - before["received"] == count
    assert after["received"] == sum(after[name] for name in ("delivered", "waiting", "dead", "rejected"))


@pytest.mark.parametrize("body", [b"", b"{", b"no JSON", b'"\xff"'], ids=repr)
@pytest.mark.parametrize("path", ["/events/t", "/server-side/batch-events-v2"])
def test_a7_only_invalid_json_is_a_400(post, path, body):
    answer = post(path, body)
    assert (answer.status, answer.headers["content-type"], answer.json()["status"]) == (400, JSON, 0)


@pytest.mark.parametrize(
    "body",
    [b"[]", b'"d"', {}, {"d": 1}, {"d": {}}, {"d": {"event": {}}}, {"d": {"event": {"name": ""}}}],
    ids=repr,
)
def test_a7_what_is_no_event_is_rejected_with_a_200(gateway, post, vendor, body):
    """.NET SDKs send an event again forever after any other status; PHP SDKs block for 14 s."""

    def send():
        answer = post("/events/t", body)
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"success":true}')

    rejected(gateway, vendor, 1, send)


OTHER_KEY = "f" * 32


def keyed(event_key=None, visitor_key=None):
    """An event with these keys in its properties and in those of its visitor."""
    props = {"sku": "A-1"} if event_key is None else {"vwo_envKey": event_key}
    data = {"event": {"name": "purchase", "props": props}}
    if visitor_key is not None:
        data["visitor"] = {"props": {"vwo_fs_environment": visitor_key}}
    return {"d": data}


OURS = {
    "session id in a (PHP 1.20)": ("?en=vwo_variationShown&a=1795456295", keyed(KEY)),
    "another account, our key": (f"?a=1&env={KEY}", keyed()),
    "no key at all": ("?a=1", keyed()),
    "no visitor either": ("", EVENT),
    "empty keys": ("?env=", keyed("", "null")),
    "keys of PHP and Java": ("?env=null", keyed(None, KEY)),
    "keys that are no texts": ("", keyed(7, ["x"])),
    "the query counts first": (f"?env={KEY}", keyed(OTHER_KEY, OTHER_KEY)),
    "then the event": ("?env=undefined", keyed(KEY, OTHER_KEY)),
}
FOREIGN = {
    "in the query": (f"?a=123456&env={OTHER_KEY}", keyed(KEY, KEY)),
    "in the event": ("?a=123456", keyed(OTHER_KEY, KEY)),
    "of the visitor": ("?env=", keyed(None, OTHER_KEY)),
    "in the query, encoded": ("?env=%6Fther", keyed()),
}


@pytest.mark.parametrize(("query", "event"), OURS.values(), ids=OURS)
def test_a6_the_key_decides_and_not_the_account(gateway, post, vendor, query, event):
    for path, body in (("/events/t", event), ("/server-side/batch-events-v2", {"ev": [event]})):
        send = lambda: post(path + query, body)  # noqa: B023, E731
        assert new_events(gateway, vendor, 1, send) == [event]


@pytest.mark.parametrize(("query", "event"), FOREIGN.values(), ids=FOREIGN)
def test_a6_events_of_another_environment_are_dropped_with_a_200(gateway, post, vendor, query, event):
    for path, body, count in (("/events/t", event, 1), ("/server-side/batch-events-v2", {"ev": [event] * 2}, 2)):

        def send():
            answer = post(path + query, body)  # noqa: B023
            assert (answer.status, answer.body) == (200, b'{"success":true}')

        rejected(gateway, vendor, count, send)


def test_a6_one_warning_per_hour_and_no_key_in_it(tmp_path):
    with Vendor(document()) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, EVENTS_PER_REQUEST=1) as gateway:
        for _ in range(5):
            assert ask(gateway.port, "POST", f"/events/t?env={OTHER_KEY}", orjson.dumps(EVENT)).status == 200
            assert ask(gateway.port, "POST", "/events/t", b"{}").status == 200
        assert gateway.status()["events"]["rejected"] == 10
        lines = [line for line in gateway.log().splitlines() if "rejected" in line]
        assert sum("SDK key" in line for line in lines) == 1
        assert sum("object" in line for line in lines) == 1
        assert OTHER_KEY not in gateway.log()


def test_a6_before_there_are_settings_the_configured_key_counts(tmp_path):
    with Vendor(document()) as vendor:
        vendor.settings_faults.append(Fault(500, times=1_000_000))
        with Gateway.of_vendor(tmp_path / "d", vendor, EVENTS_PER_REQUEST=1) as gateway:
            for key in (KEY, OTHER_KEY):
                assert ask(gateway.port, "POST", "/events/t?a=1", orjson.dumps(keyed(key))).status == 200
            assert vendor.wait_for_events(1) == [keyed(KEY)]
            assert gateway.get("/ready")[0] == 503
            assert gateway.status()["events"]["rejected"] == 1


def test_a6_offline_the_key_of_the_settings_counts(tmp_path):
    settings = ROOT / "conf" / "sample-settings.json"
    with Gateway(tmp_path / "d", SETTINGS_FILE=settings) as gateway:
        for key in (KEY, OTHER_KEY):
            assert ask(gateway.port, "POST", "/events/t", orjson.dumps(keyed(key))).status == 200
        events = gateway.status()["events"]
        assert (events["received"], events["rejected"]) == (2, 1)


BROKEN = rb'{"d":{"event":{"name":"purchase","props":{"t":"x\ud83d"}},"visitor_ua":"\ude00 Agent"}}'
REPAIRED = {"d": {"event": {"name": "purchase", "props": {"t": "x\ufffd"}}, "visitor_ua": "\ufffd Agent"}}


def test_a9_a_lone_surrogate_costs_no_event(gateway, post, vendor):
    good = orjson.dumps(EVENT)
    body = b'{"ev":[%b,%b,%b]}' % (good, BROKEN, good)
    send = lambda: post("/server-side/batch-events-v2", body)  # noqa: E731
    assert in_any_order(new_events(gateway, vendor, 3, send)) == in_any_order([EVENT, REPAIRED, EVENT])


@pytest.mark.parametrize(("target", "headers"), [("/events/t", {}), ("/events/t?dh=1", {"User-Agent": "Agent"})])
def test_a9_a_single_event_is_repaired(gateway, post, vendor, target, headers):
    (event,) = new_events(gateway, vendor, 1, lambda: post(target, BROKEN, headers))
    assert event["d"].items() >= REPAIRED["d"].items()


def test_a9_usage_statistics_are_repaired(gateway, post, vendor):
    body = rb'{"d":{"event":{"name":"vwo_sdkUsageStats","props":{"t":"\ud83d"}}}}'
    (event,) = new_events(gateway, vendor, 1, lambda: post("/events/t?a=888888", body))
    assert event["d"]["event"]["props"] == {"t": "\ufffd"}


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


def test_a9_event_segments_are_forwarded_repaired(post, vendor):
    answer = post("/evaluate-event-dsl", rb'{"dsl":{},"context":{"id":"\ud83d"}}')
    assert (answer.status, answer.body) == (200, b"true")
    call = vendor.calls_to("/eu01/evaluate-event-dsl")[-1]
    assert orjson.loads(call.body) == {"dsl": {}, "context": {"id": "\ufffd"}}


def test_usage_statistics_travel_alone_with_their_own_query(gateway, post, vendor):
    stats = {"d": {"event": {"name": "vwo_sdkUsageStats", "props": {"vwoMeta": {"gs": 1}}}}}
    query = "p=FS&a=888888&eTime=1&en=vwo_sdkUsageStats&visitor_ua=null&env=&visitor_ip=null"
    assert new_events(gateway, vendor, 1, lambda: post(f"/eu01/events/t?{query}", stats)) == [stats]
    call = vendor.calls[-1]
    assert (call.path, orjson.loads(call.body)) == ("/eu01/events/t", stats)
    assert (call.query["a"], call.query["en"], call.query["visitor_ua"]) == ("888888", "vwo_sdkUsageStats", "null")


@pytest.mark.parametrize(
    ("query", "headers", "given", "wanted"),
    [
        ("", {"User-Agent": "Agent"}, {}, {}),
        ("?dh=1", {"User-Agent": "Agent"}, {}, {"visitor_ua": "Agent", "visitor_ip": "127.0.0.1"}),
        ("", ORIGIN | {"User-Agent": "Agent"}, {}, {"visitor_ua": "Agent", "visitor_ip": "127.0.0.1"}),
        (
            "",
            ORIGIN | {"User-Agent": "Agent", "X-Device-User-Agent": "Device", "VWO-X-Forwarded-For": "192.0.2.7"},
            {"visitor_ua": "", "visitor_ip": None},
            {"visitor_ua": "Device", "visitor_ip": "192.0.2.7"},
        ),
        ("?dh=1", ORIGIN, {"visitor_ua": "own", "visitor_ip": "192.0.2.8"}, {}),
        ("", {"X-Device-User-Agent": "Device"}, {"visitor_ua": "", "visitor_ip": ""}, {}),
    ],
    ids=["server SDK", "dh=1", "browser", "headers of the SDK", "its own stay", "empty ones of a server stay"],
)
def test_a_browsers_agent_and_address_are_put_into_its_event(gateway, post, vendor, query, headers, given, wanted):
    event = {"d": EVENT["d"] | given}
    assert new_events(gateway, vendor, 1, lambda: post(f"/events/t{query}", event, headers)) == [
        {"d": event["d"] | wanted}
    ]


DEEP = b'{"d":{"event":{"name":"purchase","props":%b}}}' % (b"[" * 300 + b"]" * 300)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"ev": [EVENT]}, 0),
        ({"ev": [EVENT] * 3}, 0),
        ({"ev": [EVENT] * 4}, 0),
        ({"ev": [EVENT] * 100}, 0),
        ({"ev": []}, 0),
        ({}, 1),
        ([EVENT], 1),
        ({"ev": {}}, 1),
        ({"ev": [EVENT, {"d": 1}, 7, {}, EVENT]}, 3),
        ({"ev": [{"d": 1}]}, 1),
        ({"ev": [keyed(KEY), keyed(OTHER_KEY), keyed(), keyed(None, OTHER_KEY)]}, 2),
        (b'{"ev":[%b,%b]}' % (orjson.dumps(EVENT), DEEP), 1),
    ],
    ids=[
        *("one", "three", "more than MAX_EVENTS_PER_REQUEST", "many", "A8: empty", "nothing", "a list", "no list"),
        *("three are no events", "none is an event", "A6: two of another environment", "deep"),
    ],
)
def test_a7_of_a_batch_only_what_is_no_event_is_rejected(gateway, post, vendor, body, count):
    """Rows A6, A7, A8: each event of a batch is decided on its own."""
    events = body.get("ev", []) if isinstance(body, dict) else [EVENT] if isinstance(body, bytes) else []
    good = [event for event in events if event in (EVENT, keyed(KEY), keyed())] if isinstance(events, list) else []

    def send():
        answer = post("/server-side/batch-events-v2?a=123456", body, {"Authorization": KEY})
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"success":true}')

    before = gateway.status()["events"]["rejected"]
    assert in_any_order(new_events(gateway, vendor, len(good), send)) == in_any_order(good)
    assert gateway.status()["events"]["rejected"] == before + count


def test_a7_a_full_queue_is_a_503_and_nothing_of_the_batch_is_stored(tmp_path):
    """Row A7: a batch is stored as a whole, so that a client that repeats it causes no duplicates."""
    with Vendor(document()) as vendor:
        vendor.event_faults.append(Fault(503, times=1_000_000))
        limits = {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 3, "MAX_EVENTS_PER_REQUEST": 3}
        with Gateway.of_vendor(tmp_path / "d", vendor, **limits) as gateway:
            body = orjson.dumps({"ev": [EVENT] * 8 + [{}]})
            answers = [ask(gateway.port, "POST", "/server-side/batch-events-v2", body).status for _ in range(2)]
            assert answers == [200, 503]
            events = gateway.status()["events"]
            assert (events["waiting"], events["received"], events["rejected"]) == (8, 17, 9)


def test_stray_bytes_behind_an_event_change_nothing(gateway, vendor):
    """PHP writes them and closes; what it wrote before counts once, and gets one answer."""
    request = request_bytes("POST", "/events/t", orjson.dumps(EVENT), {"Connection": "keep-alive"})
    received = []
    events = new_events(
        gateway, vendor, 1, lambda: received.append(exchange(gateway.port, request + b"Connection: close\r\n\r\n"))
    )
    answer, rest = parse(received[0])
    assert (events, answer.status, rest) == ([EVENT], 200, b"")


def test_an_event_counts_when_its_client_did_not_wait(gateway, vendor):
    def send():
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
            connection.sendall(request_bytes("POST", "/events/t", orjson.dumps(EVENT), {}))

    assert new_events(gateway, vendor, 1, send) == [EVENT]


# Row D1: request lines of PHP SDKs

RAW_AGENT = b"Mozilla/5.0 (iPhone; CPU iPhone OS 17_2)\tK\xc3\xa4se"


@pytest.mark.parametrize("prefix", [b"", b"/eu01", b"/"])
def test_d1_events_with_an_unescaped_user_agent_arrive(gateway, vendor, prefix):
    target = b"%b/events/t?en=buy&a=123456&env=%b&visitor_ua=%b" % (prefix, KEY.encode(), RAW_AGENT)

    def send():
        request = request_bytes("POST", target, orjson.dumps(EVENT), {"Connection": "keep-alive"})
        data = exchange(gateway.port, request * 2 + request_bytes("POST", target, orjson.dumps(EVENT), {}))
        for _ in range(3):
            answer, data = parse(data)
            assert (answer.status, answer.body) == (200, b'{"success":true}')
        assert not data

    assert new_events(gateway, vendor, 3, send) == [EVENT] * 3


def test_d1_the_key_behind_an_unescaped_user_agent_counts(gateway, post, vendor):
    target = b"/events/t?visitor_ua=%b&env=%b" % (RAW_AGENT, OTHER_KEY.encode())
    rejected(gateway, vendor, 1, lambda: post(target, EVENT))


def test_d1_usage_statistics_keep_an_encoded_query(gateway, post, vendor):
    stats = {"d": {"event": {"name": "vwo_sdkUsageStats", "props": {}}}}
    target = b"/events/t?a=888888&visitor_ua=%b" % RAW_AGENT
    assert new_events(gateway, vendor, 1, lambda: post(target, stats)) == [stats]
    assert vendor.calls[-1].query["visitor_ua"] == RAW_AGENT.decode()


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


# Aliases: A.8


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


# Past events: A.10


def test_event_segments_are_asked_upstream(post, vendor):
    body = {"dsl": {"and": []}, "context": {"id": "u"}}
    answer = post("/evaluate-event-dsl?uuid=D&accountId=123456", body)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b"true")
    call = vendor.calls_to("/eu01/evaluate-event-dsl")[-1]
    assert (call.query, orjson.loads(call.body)) == ({"uuid": "D", "accountId": "123456"}, body)
    vendor.lookup_faults.append(Fault(500))
    answer = post("/evaluate-event-dsl", body)
    assert (answer.status, answer.body) == (200, FALSE)
    assert post("/evaluate-event-dsl", b"no JSON").status == 400


# All routes


def routes() -> list[tuple[str, str]]:
    parts = [MagicMock() for _ in range(4)]
    api = Api(*parts, decides=True, serves_browsers=False)
    return [(method.decode(), path.decode()) for method, path in api.routes]


@pytest.mark.parametrize(("method", "path"), routes(), ids=map(" ".join, routes()))
@pytest.mark.parametrize("prefix", ["/eu01", "/", "//eu01/", "http://gateway:8000", "http://gateway/eu01"])
def test_every_route_may_have_the_collection_prefix(gateway, method, path, prefix):
    body = b"" if method == "GET" else b"no JSON"
    plain, prefixed = (ask(gateway.port, method, target, body) for target in (path, prefix + path))
    assert prefixed == plain
    assert plain.status in (200, 400, 401)


@pytest.mark.parametrize(("method", "path"), routes(), ids=map(" ".join, routes()))
def test_wrong_methods_are_told_which_are_right(gateway, method, path):
    for wrong in ("PUT", "DELETE", "OPTIONS", "GET" if method == "POST" else "POST"):
        answer = ask(gateway.port, wrong, path)
        assert (answer.status, answer.headers["allow"], answer.headers["content-type"]) == (405, method, JSON)
        assert "access-control-allow-origin" not in answer.headers


def test_an_unknown_prefix_is_no_prefix(get):
    answer = get("/us01/get-user-details")
    assert (answer.status, answer.headers["content-type"], answer.json()["status"]) == (404, JSON, 0)


# Webhook


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Webhook-Token": "let-me-in"}, 200),
        ({"X-VWO-Auth": "let-me-in"}, 200),
        ({"Authorization": "Bearer let-me-in"}, 200),
        ({}, 401),
        ({"X-Webhook-Token": ""}, 401),
        ({"X-Webhook-Token": "let-me-i"}, 401),
        ({"X-Webhook-Token": "let-me-in2"}, 401),
        ({"X-Webhook-Token": "l\xe4t-me-in"}, 401),
    ],
)
def test_a_webhook_needs_the_token(post, vendor, headers, status):
    before = settings_calls(vendor)
    answer = post("/webhook", b"", headers)
    assert (answer.status, answer.headers["content-type"]) == (status, JSON)
    assert settings_calls(vendor) == before + (status == 200)


def test_a_webhook_brings_the_change_at_once_and_says_if_it_could_not(post, get, vendor):
    vendor.settings = orjson.dumps(document(version=10))
    answer = post("/webhook", b"{}", {"X-Webhook-Token": "let-me-in"})
    assert (answer.json(), get("/server-side/v2-settings").body) == ({"refreshed": True}, vendor.settings)
    vendor.settings_faults.append(Fault(500))
    assert post("/webhook", b"{}", {"X-Webhook-Token": "let-me-in"}).json() == {"refreshed": False}


def test_without_a_token_there_is_no_webhook(tmp_path):
    with Gateway(tmp_path / "d", SETTINGS_FILE=ROOT / "conf" / "sample-settings.json") as gateway:
        answer = ask(gateway.port, "POST", "/webhook", headers={"X-Webhook-Token": ""})
        assert (answer.status, answer.json()["status"]) == (403, 0)


# CORS: A.9

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
        ("OPTIONS", "/events/t?en=purchase", b"", 204),
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
    assert re.split(", ?", allowed) == ["Content-Type", "Authorization", "X-Device-User-Agent", "VWO-X-Forwarded-For"]
    assert answer.headers["access-control-max-age"] == "86400"
    assert answer.headers["access-control-allow-origin"] in ("*", "https://shop.example")


def test_without_the_option_nothing_is_granted(get, gateway):
    assert grants(get("/get-user-details", ORIGIN)) == {}
    answer = ask(gateway.port, "OPTIONS", "/events/t", headers=PREFLIGHT)
    assert (answer.status, grants(answer)) == (405, {})
    assert ask(gateway.port, "OPTIONS", "/no/such/path", headers=PREFLIGHT).status == 404
