"""Client tokens with several environments: a token names one of them, or restricts those that a request can name."""

import http.client

import pytest
from exchanges import exchange
from several import KEYS, KeyedVendor, gateway_of

from tornado_gateway.environments.client_tokens import digest_of, new_token

ONE, TWO, ALL, REMOVED = (new_token("server") for _ in range(4))
PAGE = "https://shop.example"
FLAG = {"userId": "u", "featureKey": "new-checkout"}
SETTINGS = "/server-side/v2-settings"


def block(name, token, environments):
    listed = ", ".join(f'"{environment}"' for environment in environments)
    digest = digest_of(token.encode()).hex()
    restriction = f"environments = [{listed}]\n" if environments else ""
    return f'[[token]]\nid = "{name}"\nhash = "sha256:{digest}"\n{restriction}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    file = directory / "tokens.toml"
    blocks = [block("one", ONE, ["staging"]), block("two", TWO, ["staging", "other"]), block("all", ALL, [])]
    file.write_text("".join([*blocks, block("old", REMOVED, ["removed"])]))
    options = {"CLIENT_AUTH": "all", "TOKENS_FILE": file, "CORS_CONFIG_REQUIRED": "true"}
    with KeyedVendor() as vendor, gateway_of(directory, vendor, **options) as gateway:
        vendor.wait_until(lambda: exchange(gateway, "GET", "/ready?environment=other", None)[0] == 200)
        yield gateway


def served(gateway, token, target=SETTINGS, **headers):
    """The environment whose settings a request gets, or the status and the error."""
    status, _, body = exchange(gateway, "GET", target, None, X_API_Key=token, **headers)
    if status != 200:
        return status, body["error"]
    return next(name for name, key in KEYS.items() if key == body["sdkKey"])


def test_a_token_of_one_environment_names_it(gateway):
    assert served(gateway, ONE) == "staging"
    assert served(gateway, ONE, X_FME_Environment="staging") == "staging"


def test_a_token_of_one_environment_and_another_name_contradict_each_other(gateway):
    status, error = served(gateway, ONE, X_FME_Environment="production")
    assert (status, "two environments" in error) == (400, True)
    assert served(gateway, ONE, f"{SETTINGS}?i={KEYS['other']}")[0] == 400


def test_a_token_of_a_removed_environment_is_logged_and_rejected(gateway):
    assert served(gateway, REMOVED) == (403, "the environments of this token are not served")
    assert "TOKENS_FILE, token old: environments: expected names of environments" in gateway.log()


def test_a_token_of_several_restricts_the_environments_of_a_request(gateway):
    assert served(gateway, TWO, X_FME_Environment="other") == "other"
    assert served(gateway, TWO, f"{SETTINGS}?i={KEYS['staging']}") == "staging"
    assert served(gateway, TWO, X_FME_Environment="production")[0] == 403


def test_a_token_of_several_names_the_first_if_the_request_names_none(gateway):
    assert served(gateway, TWO) == "staging"


def test_a_token_of_all_leaves_the_choice_to_the_request(gateway):
    assert served(gateway, ALL) == "production"
    assert served(gateway, ALL, X_FME_Environment="other") == "other"


def test_decisions_and_events_belong_to_the_environment_of_the_token(gateway):
    for path, body in (
        ("/server-side/getFlag", FLAG),
        ("/ofrep/v1/evaluate/flags/new-checkout", {"context": {"targetingKey": "u"}}),
        ("/events/t", {"d": {"event": {"name": "purchase"}, "visId": "v"}}),
    ):
        assert exchange(gateway, "POST", path, body, X_API_Key=ONE)[0] == 200
        assert exchange(gateway, "POST", path, body, X_API_Key=ONE, X_FME_Environment="production")[0] == 400


def test_a_page_is_sent_to_the_stream_of_its_environment(gateway):
    body = {"context": {"targetingKey": "u"}}
    headers = {"X_API_Key": ONE, "Origin": PAGE}
    _, _, answer = exchange(gateway, "POST", "/ofrep/v1/evaluate/flags", body, **headers)
    target = answer["eventStreams"][0]["endpoint"]["requestUri"]
    assert "environment=staging" in target
    foreign = target.replace("environment=staging", "environment=production")
    assert exchange(gateway, "GET", foreign, None)[0] == 401


def test_a_token_in_a_header_opens_the_stream_of_its_environment_only(gateway):
    def opened(target, token):
        """The status, and the version of the flags that the stream begins with."""
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        try:
            connection.request("GET", target, headers={"X-API-Key": token})
            response = connection.getresponse()
            return response.status, response.readline() + response.readline() if response.status == 200 else b""
        finally:
            connection.close()

    assert opened("/stream?environment=production", ONE)[0] == 400
    assert opened("/stream?environment=production", TWO)[0] == 403
    assert opened(f"/stream?sdkKey={KEYS['production']}", TWO)[0] == 403
    staging = opened("/stream?environment=staging", ONE)
    assert staging[0] == 200
    assert version_of(opened("/stream", ONE)) == version_of(staging)
    assert version_of(opened("/stream?environment=production", ALL)) != version_of(staging)


def version_of(opened):
    return next(line for line in opened[1].splitlines() if line.startswith(b"id:"))


@pytest.mark.parametrize(
    "path", ["/user-alias/getAliasUserId", "/check-attribute", "/get-user-details", "/attributes/check", "/getUserData"]
)
def test_an_unescaped_value_of_a_visitor_is_no_wrong_key(gateway, path):
    """The credential is the SDK key; `i` and `env` are parts of the user id `a&i=b&env=c`."""
    key = f"{path}?sdkKey={KEYS['production']}&listId=1&attribute=a&userId=a"
    plain, unescaped = (exchange(gateway, "GET", target, None) for target in (key, f"{key}&i=b&env=c"))
    assert unescaped[0] == plain[0] != 401
    assert exchange(gateway, "GET", key.replace("sdkKey", "i"), None)[0] == 401, "as an `i` the key is no credential"
