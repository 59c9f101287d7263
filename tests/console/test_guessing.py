"""Row F2: the tokens of operators and of the webhook cannot be guessed."""

import pytest
from exchanges import exchange
from process import Gateway, sample_document
from vendor import Vendor

TOKEN = "correct-horse-battery"
TRIES = 30


@pytest.fixture
def gateway(tmp_path):
    options = {"ADMIN_TOKEN": TOKEN, "WEBHOOK_TOKEN": TOKEN, "WORKERS": 2, "TRUSTED_PROXIES": "127.0.0.0/8"}
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        yield gateway


def guess_bearer(gateway, token, address):
    return exchange(gateway, "GET", "/admin/session", Authorization=f"Bearer {token}", X_Forwarded_For=address)


def guess_session(gateway, token, address):
    return exchange(gateway, "POST", "/admin/session", {"token": token}, X_Forwarded_For=address)


def guess_webhook(gateway, token, address):
    return exchange(gateway, "POST", "/webhook", {}, X_Webhook_Token=token, X_Forwarded_For=address)


@pytest.mark.parametrize("guess", [guess_bearer, guess_session, guess_webhook])
def test_f2_after_ten_failures_in_a_minute_even_the_right_token_is_not_checked(gateway, guess):
    """Each worker knows the failures at the other."""
    cookie = guess_session(gateway, TOKEN, "198.51.100.1")[1]["set-cookie"].split(";")[0]
    answers = [guess(gateway, f"wrong-{number}", "192.0.2.7") for number in range(12)]
    assert [status for status, _, _ in answers] == [401] * 10 + [429] * 2
    status, headers, body = guess(gateway, TOKEN, "192.0.2.7")
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 60
    assert "too many" in body["error"]
    assert guess(gateway, TOKEN, "192.0.2.8")[0] == 200
    assert exchange(gateway, "GET", "/admin/session", Cookie=cookie, X_Forwarded_For="192.0.2.7")[0] == 200
    assert gateway.log().count("192.0.2.7") == 1  # one line, not one for each attempt


def test_f2_a_hundred_failures_from_many_addresses_are_the_limit(gateway):
    statuses = [guess_bearer(gateway, "wrong", f"192.0.2.{number // 5}")[0] for number in range(105)]
    assert statuses == [401] * 100 + [429] * 5
    assert guess_webhook(gateway, TOKEN, "192.0.2.250")[0] == 200  # its failures are counted apart


def test_f2_requests_without_a_token_are_no_failures(gateway):
    for _ in range(TRIES):
        assert exchange(gateway, "GET", "/admin/session", X_Forwarded_For="192.0.2.9")[0] == 401
        assert exchange(gateway, "POST", "/webhook", {}, X_Forwarded_For="192.0.2.9")[0] == 401
    assert guess_bearer(gateway, TOKEN, "192.0.2.9")[0] == 200
