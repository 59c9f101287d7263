"""The rules of `ofrep_rules`, for responses to many contexts and for errors of every kind."""

import copy
import json
import random
from urllib.parse import quote

import flags
import ofrep_rules
import orjson
import pytest
from process import Gateway
from sdk.wire import ask
from vendor import Fault, Vendor

from tornado_gateway.environments.client_tokens import digest_of, new_token

BULK = "/ofrep/v1/evaluate/flags"
PAGE, OTHER_PAGE = "https://shop.example", "https://other.example"
ODD = "odd.ä ö/?#%"  # a feature's key
DEEP = 300  # levels; the library that writes JSON has a limit of 254
DEEP_JSON = '{"a":' * DEEP + "1" + "}" * DEEP
VALUES = {  # of ODD: type, value, type in the response
    "whole": ("double", 2, "double"),
    "huge": ("double", 10**30, "double"),
    "small": ("double", 1e-9, "double"),
    "text": ("double", "2.0", "any"),
    "fraction": ("integer", 5.0, "integer"),
    "beyond": ("integer", 1e300, "any"),
    "number": ("integer", "7", "any"),
    "largest": ("integer", 2**63, "integer"),
    "parsed": ("json", '{"a":1}', "json"),
    "list": ("json", "[1,2.0]", "json"),
    "broken": ("json", "{", "any"),
    "nested": ("json", json.loads(DEEP_JSON), "any"),
    "deep": ("json", DEEP_JSON, "any"),
    "yes": ("boolean", "true", "any"),
    "*": ("string", "", "any"),
}
NUMBER_ID = 3_000_000_000  # beyond 32 bits


def odd_document():
    """The sample account with a feature of odd values and ids, one whose rule is malformed, and a holdout."""
    document = copy.deepcopy(flags.SAMPLE)
    campaign = copy.deepcopy(document["campaigns"][0])
    variables = [{"id": 1, "key": key, "type": kind, "value": value} for key, (kind, value, _) in VALUES.items()]
    variation = {"id": 1, "name": " ", "weight": 100, "segments": {}, "variables": variables}
    odd = campaign | {"id": NUMBER_ID, "key": "odd", "variations": [variation]}
    malformed = copy.deepcopy(document["campaigns"][1]) | {"id": 801, "key": "malformed", "segments": {}}
    del malformed["percentTraffic"]
    document["campaigns"] += [odd, malformed]
    for number, (key, rule) in enumerate({ODD: odd, "malformed": malformed}.items(), 800):
        rules = [{"type": rule["type"], "ruleKey": "rule", "campaignId": rule["id"]}]
        document["features"].append(document["features"][0] | {"id": number, "key": key, "rules": rules})
    held_out = [document["features"][1]["id"]]
    holdout = {"id": 900, "name": "h", "segments": {}, "featureIds": held_out, "isGlobal": False, "percentTraffic": 50}
    return document | {"holdouts": [holdout | {"metrics": []}]}


TYPES = {f"{feature}.{name}": kind for feature in flags.FEATURES for name, kind in flags.types_of(feature).items()}
TYPES |= {f"{ODD}.{name}": kind for name, (_, _, kind) in VALUES.items()} | {f"{ODD}.*": "json"}
FEATURES = [*flags.FEATURES, ODD, "malformed"]
KEYS = [*FEATURES, *TYPES, *(f"{feature}.*" for feature in flags.FEATURES)]
TYPES |= {f"{feature}.*": "json" for feature in flags.FEATURES}


@pytest.fixture(scope="module")
def vendor():
    with Vendor() as vendor:
        vendor.settings = json.dumps(odd_document()).encode()  # orjson cannot write all of it
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    options = {"CORS_ALLOWED_ORIGINS": PAGE, "CORS_CONFIG_REQUIRED": "true"}
    with Gateway.of_vendor(tmp_path_factory.mktemp("rules") / "data", vendor, **options) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log()


def evaluate(gateway, key, body, query="", **headers):
    """Status and checked JSON of an evaluation; `key` None: of all flags."""
    path = BULK if key is None else f"{BULK}/{quote(key, safe='')}"
    encoded = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = ask(gateway.port, "POST", path + query, encoded, sent)
    return answer.status, ofrep_rules.check(answer.status, answer.headers, answer.body, key, TYPES)


def context_of(source):
    """A random context, with attributes of all types."""
    anything = [None, True, 1, 2.5, "text", [1], {"a": None}, "192.0.2.7", ["new-checkout"]]
    names = ["plan", "country", "age", "key", "ipAddress", "userAgent", "user_agent", "sessionId", "bucketingSeed"]
    names += ["customVariables", "variationTargetingVariables", "platformVariables", "fme", "_vwo", "useIdForWeb"]
    context = flags.context(source.randrange(1000))
    for name in source.sample(names, source.randrange(4)):
        context[name] = source.choice(anything)
    return context


@pytest.mark.parametrize("seed", range(3))
def test_responses_to_many_contexts(gateway, seed):
    source = random.Random(seed)
    statuses = set()
    for number in range(150):
        key = None if number % 5 == 0 else source.choice(KEYS)
        page = {"Origin": PAGE} if source.random() < 0.5 else {}
        status, _ = evaluate(gateway, key, {"context": context_of(source)}, **page)
        statuses.add(status)
    assert statuses <= {200, 400}
    assert 200 in statuses


@pytest.mark.parametrize("key", KEYS)
def test_every_flag(gateway, key):
    """Row for row: an odd value is sent as it is, and never an error."""
    status, found = evaluate(gateway, key, {"context": flags.context(1)})
    assert (status, found.get("errorCode")) == ((400, "GENERAL") if key == "malformed" else (200, None))


def test_a_malformed_feature_is_one_entry_of_many(gateway):
    _, found = evaluate(gateway, None, {"context": flags.context(1)})
    entries = {flag["key"]: flag for flag in found["flags"]}
    assert entries["malformed"]["errorCode"] == "GENERAL"
    assert entries[ODD]["variant"] == "1"
    assert entries[ODD]["metadata"]["campaignId"] == str(NUMBER_ID)
    assert set(FEATURES) < entries.keys()


USER = {"targetingKey": "u"}
INVALID = [
    (b"{", "PARSE_ERROR"),
    (b"", "PARSE_ERROR"),
    (b"[]", "INVALID_CONTEXT"),
    (b"null", "INVALID_CONTEXT"),
    ({}, "INVALID_CONTEXT"),
    ({"context": []}, "INVALID_CONTEXT"),
    ({"context": {**USER, "fme": 1}}, "INVALID_CONTEXT"),
    ({"context": {**USER, "fme": {"features": "x"}}}, "INVALID_CONTEXT"),
    ({"context": {**USER, "fme": {"impressions": 1}}}, "INVALID_CONTEXT"),
    ({"context": {"targetingKey": "u" * 2000}}, "INVALID_CONTEXT"),
    ({"context": {}}, "TARGETING_KEY_MISSING"),
    ({"context": {"targetingKey": " "}}, "TARGETING_KEY_MISSING"),
]


@pytest.mark.parametrize("key", ["new-checkout", None])
@pytest.mark.parametrize(("body", "code"), INVALID, ids=lambda value: str(value)[:60])
def test_400(gateway, key, body, code):
    status, found = evaluate(gateway, key, body)
    assert (status, found["errorCode"]) == (400, code)


@pytest.mark.parametrize("key", ["new-checkout", None])
def test_400_for_another_account(gateway, key):
    assert evaluate(gateway, key, {"context": USER}, "?accountId=999")[0] == 400


@pytest.mark.parametrize("key", ["unknown", "new-checkout.unknown", "a/b", "ü.*", "%41", "."])
def test_404(gateway, key):
    status, found = evaluate(gateway, key, {"context": USER})
    assert (status, found["errorCode"]) == (404, "FLAG_NOT_FOUND")


@pytest.mark.parametrize("key", ["new-checkout", None])
def test_413(gateway, key):
    status, found = evaluate(gateway, key, {"context": {**USER, "a": ["x" * 1000] * 100}})
    assert (status, found["errorCode"]) == (413, "GENERAL")


@pytest.mark.parametrize("key", ["new-checkout", None])
def test_403_for_a_page_of_another_origin(gateway, key):
    assert evaluate(gateway, key, {"context": USER}, Origin=OTHER_PAGE)[0] == 403


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A gateway without settings that wants credentials, and its tokens: one for servers, one for pages of PAGE."""
    server, browser = new_token("server"), new_token("browser")
    folder = tmp_path_factory.mktemp("locked")
    blocks = [
        f'[[token]]\nid = "{kind}"\nkind = "{kind}"\nhash = "sha256:{digest_of(token.encode()).hex()}"\n{more}\n'
        for kind, token, more in (
            ("server", server, ""),
            ("browser", browser, f'environments = ["default"]\norigins = ["{PAGE}"]'),
        )
    ]
    file = folder / "tokens.toml"
    file.write_text("".join(blocks))
    options = {"CLIENT_AUTH": "decisions", "TOKENS_FILE": file, "SOCKET_TIMEOUT": 0.2}
    with Vendor(flags.SAMPLE) as vendor:
        vendor.settings_faults.append(Fault(status=500, times=10**6))
        with Gateway.of_vendor(folder / "data", vendor, **options) as gateway:
            yield gateway, server, browser


@pytest.mark.parametrize("key", ["new-checkout", None])
def test_401_403_and_503(locked, key):
    gateway, server, browser = locked

    def status(**headers):
        return evaluate(gateway, key, {"context": USER}, **headers)[0]

    assert status() == 401
    assert status(X_API_Key="wrong") == 401
    assert status(Authorization=f"Bearer {browser}", Origin=OTHER_PAGE) == 403
    assert status(Content_Type="text/plain", Origin=PAGE) == 403
    assert status(X_API_Key=server) == 503
    assert status(X_API_Key=browser, Origin=PAGE) == 503


@pytest.mark.parametrize("key", ["new-checkout", None])
def test_403_without_decisions(tmp_path, key):
    options = {"SETTINGS_FILE": "conf/sample-settings.json", "DECISION_REQUIRED": "false"}
    with Gateway(tmp_path / "data", **options) as gateway:
        assert evaluate(gateway, key, {"context": USER})[0] == 403
