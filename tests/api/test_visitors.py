"""Location and device of a visitor, and whose address counts (wire contract A.2, A.10)."""

import socket
import subprocess
import time
from contextlib import contextmanager
from ipaddress import ip_network
from shutil import which
from urllib.parse import quote, quote_plus

import orjson
import pytest
from endpoints import AGENTS, EVENT, FACTS, GEOIP, JSON, LONDON, MAC_AGENT, ORIGIN, TRUE, document, lines
from process import ROOT, Gateway, free_port
from sdk.wire import ask, request_bytes
from vendor import Vendor

from tornado_gateway.http.fields import MAX_HOPS, ClientAddress
from tornado_gateway.http.messages import Request


def details(location, agent):
    return orjson.dumps({"location": location, "userAgent": agent})


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


FORWARDED = {"X-Forwarded-For": "216.160.83.56, 81.2.69.160, 127.0.0.9"}  # forged, the visitor, a proxy of ours
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
