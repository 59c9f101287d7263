"""Row E4: the PROXY protocol, by hand and with a real haproxy."""

import ipaddress
import socket

import pytest
from http_harness import get, serve
from process import ROOT, Gateway, free_port
from proxies import haproxy
from sdk.wire import exchange, parse, request_bytes

from tornado_gateway.http.server import PROXY_2

__all__ = ["serve"]


def version_2(source, command=1, more=b"", version=2):
    packed = ipaddress.ip_address(source).packed
    body = packed * 2 + b"\0\1\0\2" + more
    family = 0x11 if len(packed) == 4 else 0x21
    return PROXY_2 + bytes([version << 4 | command, family]) + len(body).to_bytes(2, "big") + body


HEADERS = {
    "version 1": (b"PROXY TCP4 81.2.69.160 10.0.0.1 5000 80\r\n", "81.2.69.160"),
    "version 1, IPv6": (b"PROXY TCP6 2001:218::1 ::1 5000 80\r\n", "2001:218::1"),
    "version 1, unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "version 2": (version_2("81.2.69.160"), "81.2.69.160"),
    "version 2, IPv6": (version_2("2001:218::1", more=b"\4\0\1x" * 9), "2001:218::1"),
    "version 2, local": (version_2("81.2.69.160", command=0), "127.0.0.1"),
    "none": (b"", "127.0.0.1"),
}


@pytest.mark.parametrize(("header", "peer"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("size", [1, 1000])
def test_e4_the_header_names_the_client(serve, header, peer, size):
    live = serve(proxy_trusts=lambda address: address == "127.0.0.1")
    client = live.connect()
    data = header + get("/echo")
    for start in range(0, len(data), size):
        client.send(data[start : start + size])
    assert client.response().json["peer"] == peer
    assert client.send(get("/echo")).response().json["peer"] == peer


def test_e4_the_header_of_an_untrusted_peer_is_not_read(serve):
    live = serve(proxy_trusts=lambda address: False)
    assert live.ask(get("/echo")).json["peer"] == "127.0.0.1"
    assert live.ask(HEADERS["version 1"][0] + get("/echo")).status == 400


@pytest.mark.parametrize(
    "header",
    [
        *(b"PROXY TCP4 x y 1 2\r\n", b"PROXY TCP9 1.2.3.4 1.2.3.4 1 2\r\n", PROXY_2 + b"\x21\x11\0\0"),
        *(version_2("81.2.69.160", version=3), version_2("81.2.69.160", command=2)),
    ],
    ids=["address", "family", "short", "version", "command"],
)
def test_e4_a_malformed_header_closes_the_connection(serve, header, caplog):
    live = serve(proxy_trusts=lambda address: True)
    client = live.connect().send(header)
    client.assert_closed()
    live.until(lambda: "no valid PROXY header" in caplog.text)
    caplog.clear()


@pytest.mark.parametrize("line", ["send-proxy", "send-proxy-v2"])
def test_e4_a_real_haproxy(tmp_path, line):
    geoip = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
    options = {"SETTINGS_FILE": ROOT / "conf" / "sample-settings.json", "MAXMIND_DB_PATH": geoip}
    with (
        Gateway(tmp_path / "d", TRUSTED_PROXIES="127.0.0.0/8", PROXY_PROTOCOL="true", **options) as gateway,
        haproxy(tmp_path / "h", free_port(), gateway.port, [f"default-server {line}"]) as port,
        socket.create_connection(("127.0.0.1", port), 60) as client,
    ):
        for sent, city in (("81.2.69.160", "London"), ("1.1.1.1, 2.125.160.216", "Boxford")):
            headers = {"Origin": "https://shop.example", "X-Forwarded-For": sent, "Connection": "keep-alive"}
            client.sendall(request_bytes("GET", "/get-user-details", b"", headers))
            assert city.encode() in client.recv(65536)
        header = b"PROXY TCP4 81.2.69.160 10.0.0.1 5000 80\r\n"
        request = request_bytes("GET", "/get-user-details", b"", {"Origin": "https://shop.example"})
        assert b"London" in exchange(gateway.port, header + request)
        assert parse(exchange(gateway.port, request))[0].status == 200
