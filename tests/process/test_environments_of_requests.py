"""Every kind of request to a gateway with several environments reaches the right one, or is rejected."""

import contextlib
from typing import Any

import orjson
import pytest
from metrics import samples_of, scrape
from process import ROOT, Gateway, sample_document
from sdk.wire import HttpResponse, ask
from several import ACCOUNTS, KEYS, block, gateway_of
from vendor import Vendor

FORMER = "f" * 32  # of staging
LIST, OTHERS_LIST = "list-77", "list-of-other"
QUESTION = (
    b'{"status":0,"error":"which environment? name it by SDK key, X-FME-Environment or host",'
    b'"code":"environment_required"}'
)
WRONG = b'{"status":0,"error":"accountId or sdkKey does not match this gateway","code":"wrong_account"}'
SECONDS = 60
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148"
SHOP = "https://shop.example"


def document(name: str) -> bytes:
    text = (ROOT / "tests" / "data" / "sdk" / "features.json").read_bytes()
    more = orjson.loads(text.replace(LIST.encode(), (OTHERS_LIST if name == "other" else LIST).encode()))
    next(c for c in more["campaigns"] if c["id"] == 1002)["variations"][0]["variables"][0]["value"] = name
    sample = sample_document()
    own = {"accountId": ACCOUNTS[name], "sdkKey": KEYS[name]}
    both = {part: sample[part] + more[part] for part in ("features", "campaigns")}
    return orjson.dumps(sample | own | both)


def blocks(*, default: bool) -> list[str]:
    more: dict[str, Any] = {"hosts": ["staging.example"], "previous_sdk_keys": [FORMER]}
    tokens = {name: f"webhook-of-{name}-42" for name in KEYS}
    return [
        block("production", default=default, webhook_token=tokens["production"], cors_allowed_origins=[SHOP]),
        block("staging", webhook_token=tokens["staging"], cors_allowed_origins=["https://staging.example"], **more),
        block("other", webhook_token=tokens["other"], decision_required=False, cors_allowed_origins=[SHOP]),
    ]


class Setting:
    """A gateway with these environments. `kind` is "default", "none" (without a default one) or "one"."""

    def __init__(self, kind: str, gateway: Gateway, vendor: Vendor) -> None:
        self.kind = kind
        self.gateway = gateway
        self.vendor = vendor

    def ask(self, method: str, target: str, body: Any = b"", **headers: str) -> HttpResponse:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return ask(self.gateway.port, method, target, data, {n.replace("_", "-"): v for n, v in headers.items()})

    def expected(self, with_default: Any, without: Any, one: Any) -> Any:
        return {"default": with_default, "none": without, "one": one}[self.kind]


@contextlib.contextmanager
def running(folder, kind):
    chosen = blocks(default=kind == "default") if kind != "one" else blocks(default=False)[1:2]
    options = {"CORS_CONFIG_REQUIRED": "true", "ALIASING_ENABLED": "true", "EVENTS_PER_REQUEST": 1}
    with Vendor(sample_document()) as vendor:
        vendor.environments = {key: document(name) for name, key in KEYS.items()}
        vendor.lists = {LIST: {"a@b.io"}, OTHERS_LIST: {"o@b.io"}}
        with gateway_of(folder, vendor, *chosen, **options) as gateway:
            served = KEYS if kind != "one" else ["staging"]
            paths = [f"/ready?environment={name}" for name in served]
            vendor.wait_until(lambda: all(gateway.get(path)[0] == 200 for path in paths), SECONDS, gateway.log)
            yield Setting(kind, gateway, vendor)
            assert "Traceback" not in gateway.log()


@pytest.fixture(scope="module", params=["default", "none", "one"])
def setting(request, tmp_path_factory):
    with running(tmp_path_factory.mktemp(request.param), request.param) as setting:
        yield setting


def settings_of(response: HttpResponse) -> str | int:
    """The environment whose settings these are, or the status of the response."""
    if response.status != 200:
        return response.status
    return next(name for name, key in KEYS.items() if key == response.json()["sdkKey"])


def named(name: str, key: str | None = None) -> str:
    return f"a={ACCOUNTS[name]}&i={key or KEYS[name]}"


# --- Settings ---


@pytest.mark.parametrize("path", ["/server-side/v2-settings", "/server-side/v2-pull"])
@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        (named("staging"), {}, ["staging"] * 3),
        (f"{named('staging')}&platform=client&api-version=3&r=0.5", {}, ["staging"] * 3),
        (named("staging", FORMER), {}, ["staging"] * 3),
        (named("other"), {}, ["other", "other", 400]),
        (f"a={ACCOUNTS['production']}&i={KEYS['other']}", {}, [400] * 3),
        ("i=unknown", {}, [400] * 3),
        ("", {}, ["production", 400, "staging"]),
        ("", {"Host": "staging.example:8000"}, ["staging"] * 3),
        ("", {"X_FME_Environment": "staging"}, ["staging"] * 3),
        (named("staging"), {"X_FME_Environment": "production"}, [400] * 3),
        (named("staging"), {"X_API_Key": KEYS["production"]}, [400, 400, "staging"]),  # one: a text like any other
    ],
)
def test_settings(setting, path, query, headers, expected):
    response = setting.ask("GET", f"{path}?{query}", **headers)
    assert settings_of(response) == setting.expected(*expected)


def test_a_wrong_key_causes_no_request_to_the_vendor(setting):
    for target in ("/server-side/v2-settings?i={}", "/server-side/v2-pull?a=1&i={}", "/server-side/getFlag?sdkKey={}"):
        setting.ask("GET" if "v2" in target else "POST", target.format("wrong-key"))
    setting.ask("POST", "/events/t?env=wrong-key", event())
    texts = [f"{call.query} {call.headers}" for call in setting.vendor.calls]
    assert not [text for text in texts if "wrong-key" in text]


# --- Decisions ---


def who(response: HttpResponse) -> str | int:
    return response.json()["variables"][0]["value"] if response.status == 200 else response.status


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        (f"accountId={ACCOUNTS['staging']}&sdkKey={KEYS['staging']}", {}, ["staging"] * 3),
        ("", {}, ["production", 400, "staging"]),
        ("", {"X_FME_Environment": "staging"}, ["staging"] * 3),
        ("environment=staging", {}, ["staging"] * 3),
        ("environment=nothing", {}, [400] * 3),
        ("", {"Authorization": f"Bearer {FORMER}"}, ["staging"] * 3),
        ("", {"Host": "staging.example"}, ["staging"] * 3),
        (f"sdkKey={KEYS['other']}", {}, [403, 403, 400]),  # decision_required is false there
        (f"sdkKey={KEYS['staging']}&environment=other", {}, [400] * 3),
    ],
)
def test_decisions(setting, query, headers, expected):
    body = {"featureKey": "by-device", "userId": "u", "userAgent": PHONE}
    assert who(setting.ask("POST", f"/server-side/getFlag?{query}", body, **headers)) == setting.expected(*expected)
    statuses = [expected if isinstance(expected, int) else 200 for expected in expected]
    body = {"eventName": "purchase", "userId": "u"}
    tracked = setting.ask("POST", f"/server-side/trackEvent?{query}", body, **headers)
    assert tracked.status == setting.expected(*statuses)
    body = {"attributeKey": "tier", "attributeValue": "gold", "userId": "u"}
    response = setting.ask("POST", f"/server-side/setAttribute?{query}", body, **headers)
    assert response.status == (403 if setting.expected(*statuses) == 403 else 200)  # always 200, as documented
    assert ("warning" in response.headers) == (setting.expected(*statuses) == 400)


def test_disabled_decisions_name_the_environment_and_its_key_in_the_file(setting):
    if setting.kind == "one":
        return
    response = setting.ask("POST", f"/server-side/getFlag?sdkKey={KEYS['other']}", {"featureKey": "x", "userId": "u"})
    message = "Decision endpoints are disabled for environment other. Set its decision_required = true in"
    assert response.json()["error"] == f"{message} ENVIRONMENTS_FILE."


def test_the_error_names_both_environments_or_asks_for_one(setting):
    body = {"featureKey": "by-device", "userId": "u"}
    path = f"/server-side/getFlag?sdkKey={KEYS['staging']}"
    if setting.kind == "one":
        response = setting.ask("POST", path, body, X_FME_Environment="production")
        assert response.json()["error"] == "this gateway has no environment production"
        return
    response = setting.ask("POST", path, body, X_FME_Environment="production")
    assert response.json()["error"] == (
        "the request names two environments: staging (sdkKey) and production (X-FME-Environment)"
    )
    if setting.kind == "none":
        assert setting.ask("POST", "/server-side/getFlag", body).body == QUESTION


# --- Events ---


def event(key: str | None = None, name: str = "purchase", place: str = "event") -> dict[str, Any]:
    props = {"vwo_envKey": key} if key and place == "event" else {}
    visitor = {"props": {"vwo_fs_environment": key}} if key and place == "visitor" else {"props": {}}
    return {"d": {"msgId": "m", "visId": "D", "event": {"name": name, "time": 1, "props": props}, "visitor": visitor}}


def taken(vendor: Vendor) -> dict[tuple[str, str], int]:
    return {identity: len(events) for identity, events in vendor.taken.items()}


def new_events(setting: Setting, act: Any) -> tuple[HttpResponse, str | None]:
    """The response, and the environment under whose account and key the event was sent; None if it was rejected."""

    def total(name: str) -> int:
        return sum(one["events"][name] for one in setting.gateway.status()["environments"])

    def is_settled() -> bool:  # all events have arrived, and are counted
        return total("received") == total("delivered") + total("rejected") and total("delivered") == sum(
            taken(setting.vendor).values()
        )

    setting.vendor.wait_until(is_settled, SECONDS, setting.gateway.log)
    before, rejected = taken(setting.vendor), total("rejected")
    response = act()
    if response.status == 200:  # one event of a batch may be rejected before another one has arrived
        setting.vendor.wait_until(
            lambda: (taken(setting.vendor) != before or total("rejected") > rejected) and is_settled(),
            SECONDS,
            setting.gateway.log,
        )
    new = [identity for identity, count in taken(setting.vendor).items() if count > before.get(identity, 0)]
    names = {(str(ACCOUNTS[name]), key): name for name, key in KEYS.items()}
    return response, names[new[0]] if new else None


EVENTS = {
    "account and key": (f"a={ACCOUNTS['staging']}&env={KEYS['staging']}", {}, None, ["staging"] * 3),
    "only an account of two": (f"a={ACCOUNTS['staging']}", {}, None, ["production", 400, "staging"]),
    "only an account of one": (f"a={ACCOUNTS['other']}", {}, None, ["other", "other", "staging"]),
    "account of one, key in the event": (f"a={ACCOUNTS['staging']}", {}, KEYS["staging"], ["staging"] * 3),
    "a session id as account": ("a=1795456295", {}, FORMER, ["staging"] * 3),
    "nothing": ("", {}, None, ["production", 400, "staging"]),
    "host": ("", {"Host": "staging.example"}, None, ["staging"] * 3),
    "unknown key": ("env=unknown", {}, None, [None] * 3),
    "unknown key in the event": ("", {}, "unknown", [None] * 3),
    "two keys": (f"env={KEYS['staging']}", {}, KEYS["production"], [400, 400, "staging"]),
    "two names": ("environment=production", {}, KEYS["staging"], [400] * 3),
    "header": ("", {"Authorization": KEYS["staging"]}, None, ["staging"] * 3),
}


@pytest.mark.parametrize("path", ["/events/t", "/server-side/batch-events-v2"])
@pytest.mark.parametrize("case", EVENTS)
def test_events(setting, path, case):
    query, headers, key, expected = EVENTS[case]
    if case == "nothing":
        key = None
    one = event(key, place="visitor" if case == "a session id as account" else "event")
    body = {"ev": [one, one]} if "batch" in path else one
    response, sent = new_events(setting, lambda: setting.ask("POST", f"{path}?{query}", body, **headers))
    wanted = setting.expected(*expected)
    assert (response.status, sent) == ((400, None) if wanted == 400 else (200, wanted))


def test_a_batch_of_two_environments_is_rejected_as_a_whole(setting):
    body = {"ev": [event(KEYS["staging"]), event(KEYS["production"])]}
    response, sent = new_events(setting, lambda: setting.ask("POST", "/server-side/batch-events-v2", body))
    if setting.kind == "one":  # of the other one, nothing is known here
        assert (response.status, sent) == (200, "staging")
        return
    assert (response.status, sent) == (400, None)
    assert response.json()["error"] == "the events of the batch name two environments: staging and production"


def test_usage_statistics_of_another_account_are_accepted(setting):
    before = len(setting.vendor.events)
    target = "/events/t?en=vwo_sdkUsageStats&a=888888&env="
    assert setting.ask("POST", target, event(name="vwo_sdkUsageStats")).status == 200
    setting.vendor.wait_for_events(before + 1)
    (call,) = [call for call in setting.vendor.calls if call.query.get("en") == "vwo_sdkUsageStats"]
    assert call.query["a"] == "888888"


# --- Lists, aliases, visitors ---


@pytest.mark.parametrize(
    ("query", "headers", "asked", "member"),
    [
        (f"listId={LIST}", {}, ["production", "production", "staging"], True),
        (f"listId={LIST}", {"Host": "staging.example"}, ["staging"] * 3, True),
        (f"listId={LIST}&accountId={ACCOUNTS['staging']}&sdkKey={KEYS['staging']}", {}, ["staging"] * 3, True),
        (f"listId={OTHERS_LIST}&accountId={ACCOUNTS['other']}", {}, ["other", "other", None], False),
        (f"listId={OTHERS_LIST}", {}, ["other", "other", "staging"], False),
        ("listId=unknown", {}, ["production", None, "staging"], False),
    ],
)
def test_list_checks(setting, query, headers, asked, member):
    value = f"{setting.kind}-{len(setting.vendor.calls)}@b.io"
    setting.vendor.lists[LIST].add(value)
    before = len(setting.vendor.calls)
    response = setting.ask("GET", f"/check-attribute?attribute={value}&{query}", **headers)
    assert (response.status, response.body) == (200, b"true" if member else b"false")
    calls = [call.query["sdkKey"] for call in setting.vendor.calls[before:] if call.path == "/check-attribute"]
    wanted = setting.expected(*asked)
    assert calls == ([] if wanted is None else [KEYS[wanted]])


def test_segments_of_past_events(setting):
    target = f"/evaluate-event-dsl?uuid=D&accountId={ACCOUNTS['production']}"
    response = setting.ask("POST", target, {"dsl": {}, "context": {"id": "u"}})
    assert (response.status, response.body) == (200, setting.expected(b"true", b"false", b"true"))


def test_aliases(setting):
    both = f"accountId={ACCOUNTS['staging']}&sdkKey={KEYS['staging']}"
    body = {"userId": "first", "aliasId": "second"}
    ids = 'userId=["second"]'
    assert setting.ask("POST", f"/user-alias/setUserAlias?{both}", body).json() == {"isAliasSet": True}
    own = [{"aliasId": "second", "userId": "first"}]
    assert setting.ask("GET", f"/user-alias/getAliasUserId?{both}&{ids}").json() == own
    # Android names nothing; without a host the alias is that of the default environment, or unknown.
    host = {"Host": "staging.example"}
    assert setting.ask("GET", f"/user-alias/getAliasUserId?{ids}", **host).json() == own
    found = setting.ask("GET", f"/user-alias/getAliasUserId?{ids}")
    assert (found.status, found.json()) == (200, setting.expected([], [], own))
    body = {"userId": "third", "aliasId": "fourth"}
    response = setting.ask("POST", "/user-alias/setUserAlias", body)
    assert (response.status, response.json()["isAliasSet"]) == (200, setting.expected(True, False, True))
    wrong = setting.ask("POST", "/user-alias/setUserAlias?sdkKey=unknown", body)
    assert (wrong.status, wrong.body) == (400, WRONG)


def test_location_and_device_need_no_environment(setting):
    for query in ("ipAddress=10.0.0.1", "ipAddress=10.0.0.1&accountId=7"):
        assert setting.ask("GET", f"/get-user-details?{query}").status == 200


# --- Webhooks, pages ---


def test_a_webhook_refreshes_the_environment_of_its_token(setting):
    before = len(setting.vendor.calls)
    response = setting.ask("POST", "/webhook", X_Webhook_Token="webhook-of-staging-42")
    assert (response.status, response.json()) == (200, {"refreshed": True})
    pulled = {call.query["i"] for call in setting.vendor.calls[before:] if call.path == "/server-side/v2-pull"}
    assert pulled == {KEYS["staging"]}
    assert setting.ask("POST", "/webhook", X_Webhook_Token="webhook-of-nothing").status == 401


def test_pages_read_the_responses_of_their_environment(setting):
    def allowed(method, query, origin):
        response = setting.ask(method, f"/server-side/v2-settings?{query}", Origin=origin)
        return response.headers.get("access-control-allow-origin") == origin

    is_one = setting.kind == "one"
    assert allowed("GET", named("staging"), "https://staging.example")
    assert allowed("OPTIONS", named("staging"), SHOP) == (not is_one)
    assert not allowed("GET", named("staging"), SHOP)
    assert allowed("GET", named("production"), SHOP) == (not is_one)


def test_requests_without_an_environment_are_counted(setting):
    for method, path in (("POST", "/server-side/getFlag"), ("GET", "/user-alias/getAliasUserId?userId=a")):
        setting.ask(method, path, {"featureKey": "by-device", "userId": "u"} if method == "POST" else b"")
    samples = samples_of(scrape(setting.gateway)[0])
    for route in ("/server-side/getFlag", "/user-alias/getAliasUserId"):
        is_counted = samples.get(("fme_unidentified_total", (("route", route),)), 0) >= 1
        assert is_counted == (setting.kind == "none")
