"""CLIENT_AUTH on a running gateway: which requests need a credential, and which credentials there are."""

import time

import orjson
import pytest
from exchanges import exchange
from process import Gateway, sample_document

from tornado_gateway.environments.client_tokens import digest_of, new_token

SAMPLE = sample_document()
ACCOUNT, KEY = SAMPLE["accountId"], SAMPLE["sdkKey"]
OPTION_TOKEN, FILE_TOKEN, NEXT_TOKEN, WEB_TOKEN = (new_token("server") for _ in range(4))
FLAG = {"userId": "u", "featureKey": "new-checkout"}
PAGE = "https://shop.example"
READ_AGAIN = "TOKENS_FILE was read again"


def block(token, more=""):
    return f'[[token]]\nid = "shop"\nhash = "sha256:{digest_of(token.encode()).hex()}"\n{more}\n'


WEB = block(WEB_TOKEN, f'kind = "browser"\nenvironments = ["default"]\norigins = ["{PAGE}"]')


@pytest.fixture
def serve(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(block(FILE_TOKEN) + WEB)

    def serve(**options):
        given = {"SETTINGS_FILE": "conf/sample-settings.json", "TOKENS_FILE": file, "CLIENT_TOKENS": OPTION_TOKEN}
        return Gateway(tmp_path / "data", **(given | options))

    serve.file = file
    yield serve
    log = (tmp_path / "data.log").read_text()
    secrets = (OPTION_TOKEN, FILE_TOKEN, NEXT_TOKEN, WEB_TOKEN, KEY)
    assert [secret for secret in secrets if secret in log or digest_of(secret.encode()).hex() in log] == []


def status(gateway, method, path, body=None, **headers):
    return exchange(gateway, method, path, body, **headers)[0]


def flag(gateway, path="/server-side/getFlag", **headers):
    return status(gateway, "POST", path, FLAG, **headers)


def test_without_client_auth_no_credential_is_needed(serve):
    with serve() as gateway:
        assert flag(gateway) == 200
        assert flag(gateway, X_API_Key="wrong") == 200


def test_decisions_need_a_credential_and_the_rest_does_not(serve):
    with serve(CLIENT_AUTH="decisions") as gateway:
        code, headers, body = exchange(gateway, "POST", "/server-side/getFlag", FLAG)
        assert (code, body) == (401, {"status": 0, "error": "a client token is required", "code": "unauthorized"})
        assert headers["www-authenticate"] == 'Bearer realm="fme-gateway"'
        for token in (OPTION_TOKEN, FILE_TOKEN):
            assert flag(gateway, Authorization=f"Bearer {token}") == 200
            assert flag(gateway, X_API_Key=token) == 200
        assert flag(gateway, f"/server-side/getFlag?accountId={ACCOUNT}&sdkKey={KEY}") == 200
        assert flag(gateway, "/server-side/getFlag?sdkKey=wrong") == 400
        assert flag(gateway, Authorization=KEY) == 200
        for path in ("/server-side/trackEvent", "/server-side/setAttribute", "/server-side/getFlags"):
            assert status(gateway, "POST", path, FLAG) == 401
        code, _, body = exchange(gateway, "POST", "/ofrep/v1/evaluate/flags/new-checkout", {"context": {}})
        assert (code, body["errorCode"], body["key"]) == (401, "GENERAL", "new-checkout")
        assert status(gateway, "GET", "/server-side/v2-settings") == 200
        assert status(gateway, "GET", "/get-user-details") == 200
        assert status(gateway, "GET", "/health") == 200


def test_all_data_routes_can_need_a_credential_and_pages_never_do(serve):
    with serve(CLIENT_AUTH="all", SDK_KEY_AUTH="false") as gateway:
        assert status(gateway, "GET", f"/server-side/v2-settings?a={ACCOUNT}&i={KEY}") == 401
        assert status(gateway, "GET", "/server-side/v2-settings", X_API_Key=FILE_TOKEN) == 200
        assert status(gateway, "GET", "/get-user-details") == 401
        assert status(gateway, "GET", "/get-user-details", X_API_Key=FILE_TOKEN) == 200
        assert status(gateway, "GET", "/health") == status(gateway, "GET", "/ready") == 200


def test_a_browser_token_works_on_its_pages_and_never_for_settings(serve):
    with serve(CLIENT_AUTH="all", CORS_CONFIG_REQUIRED="true") as gateway:
        assert flag(gateway, X_API_Key=WEB_TOKEN, Origin=PAGE) == 200
        assert flag(gateway, X_API_Key=WEB_TOKEN, Origin="https://other.example") == 403
        assert flag(gateway, X_API_Key=WEB_TOKEN) == 403
        code, _, body = exchange(gateway, "GET", "/server-side/v2-settings", None, X_API_Key=WEB_TOKEN, Origin=PAGE)
        assert (code, body["error"]) == (403, "this token may not: sdk")
        preflight = {"Access_Control_Request_Headers": "x-api-key", "Origin": PAGE}
        assert status(gateway, "OPTIONS", "/server-side/getFlag", None, **preflight) == 204


def test_tokens_are_replaced_without_a_restart_and_a_mistake_changes_nothing(serve):
    with serve(CLIENT_AUTH="decisions") as gateway:
        assert flag(gateway, X_API_Key=NEXT_TOKEN) == 401
        serve.file.write_text(block(FILE_TOKEN) + block(NEXT_TOKEN))  # a rotation: both are valid
        until(lambda: gateway.log().count(READ_AGAIN) == 1)  # attempts in the meantime would count as guesses
        assert flag(gateway, X_API_Key=NEXT_TOKEN) == 200
        assert flag(gateway, X_API_Key=FILE_TOKEN) == 200
        serve.file.write_text("[[token]]\nid = 5\n")
        until(lambda: "TOKENS_FILE was rejected" in gateway.log())
        assert flag(gateway, X_API_Key=NEXT_TOKEN) == 200
        serve.file.write_text(block(NEXT_TOKEN))
        until(lambda: gateway.log().count(READ_AGAIN) == 2)
        assert flag(gateway, X_API_Key=FILE_TOKEN) == 401
        assert flag(gateway, X_API_Key=NEXT_TOKEN) == 200


def test_a_token_of_another_gateways_environment_is_a_mistake_also_when_the_file_is_read_again(serve):
    """It would be served, because there is one environment only, and the next start would reject the file."""
    with serve(CLIENT_AUTH="all") as gateway:
        serve.file.write_text(block(NEXT_TOKEN, 'environments = ["staging"]'))
        until(lambda: "got 'staging'" in gateway.log() or READ_AGAIN in gateway.log())
        assert flag(gateway, X_API_Key=NEXT_TOKEN) == 401
        assert flag(gateway, X_API_Key=FILE_TOKEN) == 200


def test_an_expired_token_is_like_an_unknown_one(serve):
    serve.file.write_text(block(FILE_TOKEN, "expires = 2020-01-01T00:00:00Z"))
    with serve(CLIENT_AUTH="decisions") as gateway:
        assert flag(gateway, X_API_Key=FILE_TOKEN) == 401


def test_failures_are_counted_for_all_workers(serve):
    with serve(CLIENT_AUTH="decisions", WORKERS=2) as gateway:
        statuses = [flag(gateway, X_API_Key="fmes_wrong") for _ in range(30)]
        assert set(statuses[:20]) == {401}
        assert statuses[-1] == 429
        assert flag(gateway, X_API_Key=FILE_TOKEN) == 200


def test_tokens_are_not_shown_by_status_and_metrics(serve):
    with serve(CLIENT_AUTH="decisions") as gateway:
        flag(gateway, X_API_Key=FILE_TOKEN)
        pages = [exchange(gateway, "GET", path)[2] for path in ("/status", "/ready", "/metrics")]
        text = b"".join(page if isinstance(page, bytes) else orjson.dumps(page) for page in pages).decode()
        assert [token for token in (OPTION_TOKEN, FILE_TOKEN, "fmes_") if token in text] == []


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
