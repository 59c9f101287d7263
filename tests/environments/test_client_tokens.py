"""Credentials of clients: tokens, their scopes, origins and expiry, and failed attempts."""

import hashlib
import time

import pytest

from tornado_gateway.environments.client_tokens import (
    ClientAuth,
    ClientToken,
    ClientTokens,
    digest_of,
    hint_of,
    new_token,
)
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.telemetry.attempts import Attempts

OK = Response(200, b"{}")
SERVER, WEB, OLD = new_token("server"), new_token("browser"), new_token("server")
TOKENS = ClientTokens(
    [
        ClientToken("backend", digest_of(SERVER.encode())),
        ClientToken(
            "web",
            digest_of(WEB.encode()),
            kind="browser",
            environments=["production"],
            scopes=["decide"],
            origins=["https://shop.example", "https://*.shop.example"],
        ),
        ClientToken("old", digest_of(OLD.encode()), expires=time.time() - 1),
    ]
)


def auth(has_sdk_key=None):
    return ClientAuth(TOKENS, has_sdk_key, lambda request: request.peer, Attempts(of_address=20))


def request(*headers, peer="192.0.2.1"):
    return Request(b"POST", b"/server-side/getFlag", b"", list(headers), peer=peer)


def bearer(token):
    return b"Authorization", b"Bearer " + token.encode()


def rejection(checked, scope, *headers, **more):
    """The error of a request, None if it is served."""
    try:
        assert checked.guarded(lambda request: OK, scope)(request(*headers, **more)) is OK
    except RequestError as error:
        return error
    return None


def status(checked, scope, *headers, **more):
    error = rejection(checked, scope, *headers, **more)
    return 200 if error is None else error.status


def test_a_token_is_recognizable_and_random():
    assert SERVER.startswith("fmes_")
    assert WEB.startswith("fmeb_")
    assert len(SERVER) == 5 + 43
    assert digest_of(SERVER.encode()) == hashlib.sha256(SERVER.encode()).digest()


@pytest.mark.parametrize(
    "header", [bearer(SERVER), (b"authorization", b"bearer  " + SERVER.encode()), (b"X-API-Key", SERVER.encode())]
)
def test_a_token_is_accepted_in_either_header_and_noted(header):
    seen = []
    handler = auth().guarded(lambda r: seen.append(r.client.id) or OK, "sdk")
    assert handler(request(header)) is OK
    assert seen == ["backend"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("fmes_unknown")],
        [bearer(OLD)],
        [(b"Authorization", b"Basic " + SERVER.encode())],
        [(b"Authorization", b"Bearer")],
        [(b"X-API-Key", b"")],
        [(b"X-API-Key", b"\xff\xfe")],
        [(b"X-API-Key", SERVER.encode() + b"x" * 10000)],
    ],
    ids=["none", "unknown", "expired", "other scheme", "no value", "empty", "not ASCII", "too long"],
)
def test_missing_unknown_and_expired_tokens_get_the_same_response(headers):
    error = rejection(auth(), "decide", *headers)
    assert (error.status, str(error)) == (401, "a client token is required")
    assert error.headers == [(b"WWW-Authenticate", b'Bearer realm="fme-gateway"')]


def test_a_token_allows_its_scopes_only():
    origin = (b"Origin", b"https://shop.example")
    assert status(auth(), "decide", bearer(WEB), origin) == 200
    assert status(auth(), "track", bearer(WEB), origin) == 403
    assert status(auth(), "sdk", bearer(WEB), origin) == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, 403),
        (b"https://shop.example", 200),
        (b"https://m.shop.example", 200),
        (b"https://a.b.shop.example", 403),
        (b"http://shop.example", 403),
        (b"https://shop.example.evil.example", 403),
        (b"null", 403),
    ],
)
def test_a_browser_token_works_on_its_pages_only(origin, expected):
    headers = [bearer(WEB)] + ([] if origin is None else [(b"Origin", origin)])
    assert status(auth(), "decide", *headers) == expected


def test_a_server_token_needs_no_origin():
    assert status(auth(), "decide", bearer(SERVER), (b"Origin", b"https://anything.example")) == 200


def test_an_sdk_key_is_a_credential_if_it_is_allowed():
    assert status(auth(has_sdk_key=lambda request, is_lookup: True), "sdk") == 200
    assert status(auth(has_sdk_key=lambda request, is_lookup: False), "sdk") == 401
    assert status(auth(has_sdk_key=None), "sdk") == 401


def test_two_tokens_of_one_client_are_valid_at_once():
    one, other = new_token("server"), new_token("server")
    tokens = ClientTokens([ClientToken("a", digest_of(t.encode())) for t in (one, other)])
    assert tokens.find(one.encode()).id == tokens.find(other.encode()).id == "a"
    tokens.replace([ClientToken("a", digest_of(other.encode()))])
    assert tokens.find(one.encode()) is None
    assert tokens.find(other.encode()).id == "a"


def test_a_flood_of_wrong_tokens_gets_429_and_valid_tokens_of_that_address_pass():
    checked = auth()
    statuses = [status(checked, "decide", bearer("fmes_wrong")) for _ in range(25)]
    assert statuses == [401] * 20 + [429] * 5
    ((name, retry_after),) = rejection(checked, "decide", bearer("fmes_wrong")).headers
    assert name == b"Retry-After"
    assert 1 <= int(retry_after) <= 60
    assert status(checked, "decide", bearer(SERVER)) == 200
    assert status(checked, "decide", bearer("fmes_wrong"), peer="192.0.2.2") == 401


def test_requests_without_a_token_are_no_attempts():
    checked = auth()
    assert {status(checked, "decide") for _ in range(50)} == {401}


def test_a_log_shows_the_start_of_a_token_and_nothing_of_other_secrets(caplog):
    assert hint_of(b"fmes_abcdefgh") == "fmes_abcd"
    assert hint_of(b"0123456789abcdef0123456789abcdef") == ""
    checked = auth()
    for _ in range(30):
        status(checked, "decide", bearer("fmes_abcdefgh"))
    assert [record.getMessage() for record in caplog.records] == [
        "too many wrong tokens, the last one (fmes_abcd...) from '192.0.2.1'; further attempts get 429 for a while"
    ]


PROXY = b"X-API-Key", b"a-key-of-the-proxy"


def test_a_key_or_a_token_of_a_proxy_does_not_hide_the_token_of_the_client():
    """Proxies have their own credentials in one header, so the client has to use the other one."""
    checked = auth()
    for _ in range(30):
        assert status(checked, "decide", PROXY, bearer(SERVER)) == 200
        assert status(checked, "decide", (b"X-API-Key", SERVER.encode()), bearer("a-token-of-the-proxy")) == 200
        assert status(checked, "decide", PROXY, (b"Authorization", b"Basic abc")) in (401, 429)
    assert status(checked, "decide", PROXY, bearer(OLD)) == 429


def test_x_api_key_wins_over_authorization():
    checked = auth()
    both = request((b"X-API-Key", WEB.encode()), bearer(SERVER), (b"Origin", b"https://shop.example"))
    checked.check(both, "decide")
    assert both.client.id == "web"
    assert status(checked, "sdk", (b"X-API-Key", WEB.encode()), bearer(SERVER)) == 403
