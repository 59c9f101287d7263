"""Row F1: a reverse proxy on the same machine makes every client look local, so no client is trusted for its address.

Real nginx and haproxy stand in front of a real gateway. Clients connect from 127.0.0.2, and only 127.0.0.1 is a trusted
proxy, so that a client is as foreign to the gateway as one on the internet.
"""

import re
import socket
from contextlib import ExitStack

import orjson
import pytest
from process import ROOT, Gateway, free_port, sample_document
from proxies import haproxy, nginx
from vendor import Vendor

CLIENT = "127.0.0.2"
BOXFORD = "2.125.160.216"
HAPROXY_LINES = {
    "haproxy": (),
    "haproxy-forwardfor": ("option forwardfor",),
    "haproxy-localhost": ("http-request set-header Host localhost",),
    "haproxy-forwardfor-localhost": ("option forwardfor", "http-request set-header Host localhost"),
}
PROXIES = ["nginx", *HAPROXY_LINES]

PATHS = [
    "/admin/session",
    "/admin/overview",
    "/admin/features",
    "/admin/explain",
    "/admin/events",
    "/admin/events/requeue",
    "/admin",
    "/admin/",
    "/admin/nothing",
]
DISGUISED = [
    "//admin/events",
    "/admin//events",
    "/admin/../admin/events",
    "/./admin/events",
    "/admin/./events",
    "/health/../admin/events",
    "/%61dmin/events",
    "/%2fadmin/events",
    "/admin%2fevents",
    "/admin/%2e%2e/admin/events",
    "/ADMIN/events",
    "/Admin/Events",
    "/admin/events/",
    "/admin/events//",
    "/admin/events?limit=1",
    "/admin/events;a=b",
]
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "DELETE"]
DISGUISES = {
    "plain": {},
    "localhost": {"Host": "localhost"},
    "loopback": {"Host": "127.0.0.1:8000"},
    "forwarded-for": {"X-Forwarded-For": "127.0.0.1"},
    "forwarded": {"Forwarded": "for=127.0.0.1;host=localhost;proto=https"},
    "real-ip": {"X-Real-IP": "127.0.0.1", "X-Forwarded-Host": "localhost"},
    "same-site": {"Origin": "http://localhost", "Host": "localhost", "Sec-Fetch-Site": "same-origin"},
}
WRONG = {
    "token": {"Authorization": "Bearer wrong-token-0123456789"},
    "empty token": {"Authorization": "Bearer "},
    "scheme": {"Authorization": "Basic b3BlcmF0b3I6"},
    "session": {"Cookie": "fme_gateway_session=9999999999.x.y"},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """Without ADMIN_TOKEN, and with the narrowest trust that the proxies need."""
    data_dir = tmp_path_factory.mktemp("proxied") / "data"
    options = {
        "TRUSTED_PROXIES": "127.0.0.1/32",
        "MAXMIND_DB_PATH": ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb",
    }
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(data_dir, vendor, **options) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def proxy(gateway, tmp_path_factory):
    """The port of a proxy by its name; each is started once."""
    directory = tmp_path_factory.mktemp("proxies")
    ports = {}
    with ExitStack() as running:

        def port(name):
            if name not in ports:
                where = (directory / name, free_port(), gateway.port)
                context = nginx(*where) if name == "nginx" else haproxy(*where, HAPROXY_LINES[name])
                ports[name] = running.enter_context(context)
            return ports[name]

        yield port


def send(port, method, path, headers=(), body=b"{}"):
    """Status and body. The path goes out as it is, which http.client does not promise."""
    given = {"Host": "gateway.example", "Connection": "close", **dict(headers)}
    if method in ("POST", "DELETE"):
        given |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    request = "\r\n".join(lines).encode() + (body if "Content-Length" in given else b"")
    with socket.create_connection(("127.0.0.1", port), 60, source_address=(CLIENT, 0)) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), content


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", PROXIES)
def test_f1_nothing_under_admin_is_served_through_a_proxy_without_the_token(proxy, name, disguise):
    """Row F1."""
    port = proxy(name)
    for method in METHODS:
        for path in PATHS:
            if path == "/admin/session" and method in ("POST", "DELETE"):
                continue  # signing in, see below, and signing out, which needs no session
            assert send(port, method, path, DISGUISES[disguise])[0] == 401, (method, path)


@pytest.mark.parametrize("name", PROXIES)
def test_f1_no_spelling_of_the_path_leads_past_the_token(proxy, name):
    """Row F1. A proxy may reject a spelling by itself."""
    for method in METHODS:
        for path in DISGUISED:
            status, content = send(proxy(name), method, path, {"Host": "localhost"})
            assert status in (400, 401), (method, path, status)
            assert b"visitor" not in content


@pytest.mark.parametrize("name", PROXIES)
def test_f1_the_token_opens_the_same_paths(proxy, gateway, name):
    """Row F1. From everywhere and under every name."""
    for path in ("/admin/session", "/admin/overview", "/admin/features", "/admin/events"):
        for disguise in ({}, {"Host": "localhost"}, {"X-Forwarded-For": "127.0.0.1"}):
            headers = {**disguise, **gateway.admin_headers}
            assert send(proxy(name), "GET", path, headers)[0] == 200
            assert send(proxy(name), "HEAD", path, headers)[0] == 200
    assert send(proxy(name), "POST", "/admin/events/requeue", gateway.admin_headers, b'{"ids":[]}')[0] == 200


@pytest.mark.parametrize("path", [*PATHS, *DISGUISED])
def test_f1_nothing_under_admin_is_served_to_loopback_without_the_token(gateway, path):
    """Row F1. Also without any proxy."""
    for host in ("localhost", "127.0.0.1", f"127.0.0.1:{gateway.port}", "[::1]"):
        for method in ("GET", "HEAD", "OPTIONS"):
            assert send(gateway.port, method, path, {"Host": host})[0] == 401, (host, method)


@pytest.mark.parametrize("path", ["/health", "/ready", "/status", "/metrics", "/console", "/docs", "/openapi.json"])
@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_f1_probes_and_pages_need_no_token(proxy, name, path):
    assert send(proxy(name), "GET", path)[0] == 200


def located(port, headers):
    status, content = send(port, "GET", "/get-user-details", {"Origin": "https://shop.example", **headers})
    assert status == 200
    return orjson.loads(content)["location"].get("city")


def test_a_trusted_proxy_is_believed(gateway):
    """The counterpart: from the proxy's own address the header counts."""
    with socket.create_connection(("127.0.0.1", gateway.port), 60, source_address=("127.0.0.1", 0)) as connection:
        connection.sendall(
            b"GET /get-user-details HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\nConnection: close\r\n"
            b"X-Forwarded-For: %b\r\n\r\n" % BOXFORD.encode()
        )
        assert b"Boxford" in b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_documented_nginx_signs_in_and_passes_addresses_on(gateway, tmp_path):
    """As in docs/operating.md: the console is used from a page of the public name, and the visitor is located."""
    text = (ROOT / "docs" / "operating.md").read_text()
    lines = re.findall(r"proxy_set_header .*;", text.partition("```nginx\n")[2].partition("```")[0])
    assert len(lines) == 3
    with nginx(tmp_path / "documented", free_port(), gateway.port, lines) as port:
        page = {"Host": "gateway.example:8443", "Origin": "https://gateway.example:8443"}
        body = orjson.dumps({"token": gateway.admin_token})
        assert send(port, "POST", "/admin/session", page, body)[0] == 200
        assert send(port, "POST", "/admin/session", page | {"Origin": "https://other.example"}, body)[0] == 403
        assert located(port, {"X-Forwarded-For": BOXFORD}) is None


@pytest.mark.parametrize("name", ["haproxy-forwardfor", "haproxy-forwardfor-localhost"])
@pytest.mark.parametrize("forged", [BOXFORD, f"{BOXFORD}, 127.0.0.1", f"127.0.0.1, {BOXFORD}"])
def test_f1_an_address_that_the_client_forges_is_not_believed(proxy, name, forged):
    """Rows F1 and E1: `option forwardfor` appends a second line, and only that one is true."""
    assert located(proxy(name), {"X-Forwarded-For": forged}) is None


def test_f1_an_address_from_a_client_that_is_no_proxy_is_not_believed(gateway):
    assert located(gateway.port, {"X-Forwarded-For": BOXFORD}) is None


@pytest.mark.parametrize("name", PROXIES)
def test_f1_wrong_credentials_open_nothing(proxy, name):
    """Row F1. Repeated attempts may be limited (429)."""
    for wrong, headers in WRONG.items():
        assert send(proxy(name), "GET", "/admin/events", headers)[0] in (401, 429), wrong
    assert send(proxy(name), "POST", "/admin/session", body=b'{"token":"wrong-token-0123456789"}')[0] in (401, 429)
