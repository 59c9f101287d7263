"""The environment that a request means, among those of ENVIRONMENTS_FILE: one row for each kind of request."""

import asyncio
from types import SimpleNamespace

import pytest
from environment_parts import environment_of
from process import sample_document

from tornado_gateway.api.cors import EnvironmentsCors
from tornado_gateway.core import compile_settings
from tornado_gateway.environments.access import Access
from tornado_gateway.environments.client_tokens import ClientToken
from tornado_gateway.environments.registry import KNOWN_REQUESTS, LONGEST_KNOWN, NO_KEY
from tornado_gateway.environments.several import SeveralEnvironments
from tornado_gateway.errors import RequestError
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.messages import Head, Request
from tornado_gateway.store.sqlite.events import open_sqlite

PRODUCTION, STAGING, BRAND = "p" * 32, "s" * 32, "b" * 32
FORMER = "f" * 32  # of staging
WRONG = "accountId or sdkKey does not match this gateway"
QUESTION = "which environment? name it by SDK key, X-FME-Environment or host"
THREE = (
    Access("production", "1", (PRODUCTION,), ()),
    Access("staging", "1", (STAGING, FORMER), ("staging.example", "other.example"), is_default=False),
    Access("brand", "2", (BRAND,), ("brand.example",), is_default=False, webhook_token="token-of-the-brand"),
)
NO_DEFAULT = tuple(access._replace(is_default=False) for access in THREE)
ONE = (THREE[1]._replace(is_default=True),)


def settings_of(access, lists=()):
    document = {**sample_document(), "accountId": access.account_id, "sdkKey": access.sdk_keys[0]}
    segments = {"or": [{"custom_variable": {"plan": f"inlist({name})"}} for name in lists]}
    if lists:
        document["campaigns"][0]["segments"] = segments
        document["campaigns"][0]["variations"][0]["segments"] = segments
    return compile_settings(document)


class Setting:
    def __init__(self, directory, accesses, lists):
        self.unidentified = []
        store = open_sqlite(directory)
        environments = []
        for access in accesses:
            settings = settings_of(access, lists.get(access.name, ()))
            queue = EventQueue(store.events, limit=10, chunk_events=10)
            mirror = SimpleNamespace(current=SimpleNamespace(settings=settings))
            environments.append(environment_of(mirror, queue, store, access=access))
        self.environments = SeveralEnvironments(environments, on_unidentified=self.unidentified.append)

    def of(self, query="", headers=(), path="/server-side/getFlag", token=None):
        """Return the environment of a request, and check that others with the same head get the same result."""
        request = request_of(query, headers, path, token)
        request.known_head = head_of(request)
        found, seen = self.result(self.environments.of, request), len(self.unidentified)
        assert self.result(self.environments.of, request) == found
        del self.unidentified[seen:]
        return found

    def of_lookup(self, query="", headers=(), list_id=None, token=None):
        return self.result(self.environments.of_lookup, request_of(query, headers, token=token), list_id)

    def of_event(self, query="", headers=(), key=None, token=None):
        request = request_of(query, headers, "/events/t", token)
        return self.result(lambda: self.environments.of_event(self.environments.scope_of(request), key))

    @staticmethod
    def result(function, *arguments):
        async def run():  # the log needs a loop
            return function(*arguments)

        try:
            environment = asyncio.run(run())
        except RequestError as error:
            return error.status, str(error)
        return None if environment is None else environment.access.name


def head_of(request):
    return Head(request.method, request.path + b"?" + request.query, request.headers, 0)


def request_of(query="", headers=(), path="/", token=None):
    request = Request(b"POST", path.encode(), query.encode(), [(n.encode(), v.encode()) for n, v in headers])
    request.client = token
    return request


async def made(directory, accesses, lists):
    return Setting(directory, accesses, lists)


@pytest.fixture
def make(tmp_path):
    return lambda accesses=THREE, **lists: asyncio.run(made(tmp_path, accesses, lists))


def two(one, first, other, second):
    return 400, f"the request names two environments: {one} ({first}) and {other} ({second})"


# Query, headers, and the environment of three with a default one, of three without one, and of the only one.
REQUESTS = {
    "nothing: REST": ("", [], "production", (400, QUESTION), "staging"),
    "settings": (f"a=2&i={BRAND}&r=0.1&platform=server", [], "brand", "brand", (400, WRONG)),
    "settings, key alone": (f"i={STAGING}", [], "staging", "staging", "staging"),
    "settings with a previous key": (f"a=1&i={FORMER}", [], "staging", "staging", "staging"),
    "thin decision": (f"accountId=1&sdkKey={STAGING}", [], "staging", "staging", "staging"),
    "an unknown key": ("sdkKey=unknown", [], *[(400, WRONG)] * 3),
    "an unknown key and the right account": ("a=1&i=unknown", [], *[(400, WRONG)] * 3),
    "a key of another account": (f"a=2&i={STAGING}", [], *[(400, WRONG)] * 3),
    "two accounts": (f"a=1&accountId=2&i={STAGING}", [], *[(400, WRONG)] * 3),
    "absent texts": ("sdkKey=undefined&accountId=null", [], "production", (400, QUESTION), "staging"),
    "an account of one": ("a=2", [], "brand", "brand", (400, WRONG)),
    "an account of two": ("accountId=1", [], "production", (400, QUESTION), "staging"),
    "an unknown account": ("accountId=3", [], *[(400, WRONG)] * 3),
    "bare key": ("", [("Authorization", STAGING)], "staging", "staging", "staging"),
    "bearer": ("", [("authorization", f"bearer  {STAGING}")], "staging", "staging", "staging"),
    "X-API-Key": ("", [("X-API-Key", STAGING)], "staging", "staging", "staging"),
    "another authorization": ("", [("Authorization", "Basic abc")], "production", (400, QUESTION), "staging"),
    "a name in a header": ("", [("X-FME-Environment", "staging")], "staging", "staging", "staging"),
    "a name in the query": ("environment=staging", [], "staging", "staging", "staging"),
    "an unknown name": ("environment=st%0Aging", [], *[(400, "this gateway has no environment st?ging")] * 3),
    "host": ("", [("Host", "staging.example")], "staging", "staging", "staging"),
    "host with port": ("", [("Host", "Other.Example.:8000")], "staging", "staging", "staging"),
    "another host": ("", [("Host", "10.0.0.1:8000")], "production", (400, QUESTION), "staging"),
    "host and the account of two": ("a=1", [("Host", "staging.example")], "staging", "staging", "staging"),
    "host of another account": ("a=1", [("Host", "brand.example")], (400, QUESTION), (400, QUESTION), "staging"),
    "host and a key": (f"i={STAGING}", [("Host", "brand.example")], "staging", "staging", "staging"),
    "the same three times": (
        f"accountId=1&sdkKey={FORMER}&environment=staging",
        [("Authorization", STAGING), ("X-FME-Environment", "staging"), ("X-API-Key", FORMER)],
        *["staging"] * 3,
    ),
}
CONTRADICTIONS = {
    "key and name": (
        f"sdkKey={STAGING}",
        [("X-FME-Environment", "production")],
        two("staging", "sdkKey", "production", "X-FME-Environment"),
    ),
    "header key and query key": (
        f"i={PRODUCTION}",
        [("Authorization", f"Bearer {STAGING}")],
        two("staging", "Authorization", "production", "i"),
    ),
    "two header keys": (
        "",
        [("X-API-Key", PRODUCTION), ("Authorization", STAGING)],
        two("staging", "Authorization", "production", "X-API-Key"),
    ),
    "two query keys": (f"env={BRAND}&i={STAGING}", [], two("staging", "i", "brand", "env")),
    "two names": (
        "environment=brand",
        [("x-fme-environment", "staging")],
        two("brand", "environment", "staging", "X-FME-Environment"),
    ),
    "header key and name": (
        "environment=brand",
        [("X-API-Key", STAGING)],
        two("staging", "X-API-Key", "brand", "environment"),
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_matrix_of_requests(make, case):
    query, headers, *expected = REQUESTS[case]
    found = []
    for accesses in (THREE, NO_DEFAULT, ONE):
        setting = make(accesses)
        found.append(setting.of(query, headers))
        assert setting.of(query, headers) == found[-1]  # the second one is a remembered one
    assert found == expected


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_rejected(make, case):
    query, headers, expected = CONTRADICTIONS[case]
    setting = make()
    assert setting.of(query, headers) == expected
    assert setting.of(query, headers) == expected
    assert setting.of_event(query, headers) == expected


@pytest.mark.parametrize("case", [case for case, (query, *_) in CONTRADICTIONS.items() if "i=" not in query])
def test_contradictions_of_lookups_are_rejected(make, case):
    query, headers, expected = CONTRADICTIONS[case]
    assert make().of_lookup(query, headers) == expected


def test_requests_without_an_environment_are_counted_and_logged_once_an_hour(make, caplog):
    async def ask(setting):
        for _ in range(3):
            with pytest.raises(RequestError):
                setting.environments.of(request_of(path="/server-side/getFlag"))

    setting = make(NO_DEFAULT)
    asyncio.run(ask(setting))
    assert len(setting.unidentified) == 3
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "/server-side/getFlag got no result: it named no environment, and none is the default"
    ]


# --- Events ---

EVENTS = {
    "fat SDK": (f"en=x&a=1&env={STAGING}", [], STAGING, "staging", "staging"),
    "account and document": ("a=1", [], STAGING, "staging", "staging"),
    "the document alone": ("", [], FORMER, "staging", "staging"),
    "a session id as account": ("a=1795456295", [], BRAND, "brand", "brand"),
    "an account of one": ("a=2", [], None, "brand", "brand"),
    "batch with a bare key": (f"a=2&env={BRAND}", [("Authorization", BRAND)], BRAND, "brand", "brand"),
    "the header alone": ("", [("Authorization", BRAND)], None, "brand", "brand"),
    "nothing": ("a=1", [], None, "production", (400, QUESTION)),
    "host": ("", [("Host", "staging.example")], None, "staging", "staging"),
    "a document has precedence over the host": ("", [("Host", "staging.example")], BRAND, "brand", "brand"),
    "an unknown key in the query": ("a=1&env=unknown", [], STAGING, None, None),
    "an unknown key in the document": ("a=1", [], "unknown", None, None),
    "an account of one and an unknown key in the document": ("a=2", [], "unknown", None, None),
    "a name and an unknown key in the document": ("environment=staging", [], "unknown", None, None),
    "a key in a header and an unknown key in the document": ("", [("Authorization", BRAND)], "unknown", None, None),
    "a known key in the query": (f"env={BRAND}", [], "unknown", "brand", "brand"),
    "query and document differ": (f"env={BRAND}", [], STAGING, *[two("brand", "env", "staging", "the event")] * 2),
    "account and document differ": ("a=2", [], STAGING, *[two("brand", "account", "staging", "the event")] * 2),
    "name and document differ": (
        "environment=production",
        [],
        STAGING,
        *[two("production", "environment", "staging", "the event")] * 2,
    ),
}


@pytest.mark.parametrize("case", EVENTS)
def test_matrix_of_events(make, case):
    query, headers, key, *expected = EVENTS[case]
    assert [make(accesses).of_event(query, headers, key) for accesses in (THREE, NO_DEFAULT)] == expected


@pytest.mark.parametrize(
    ("query", "key", "name"),
    [
        ("a=999", None, "production"),
        ("a=999&env=unknown", None, "production"),
        (f"a=999&env={BRAND}", None, "brand"),
        ("a=999&env=", STAGING, "staging"),
    ],
)
def test_usage_statistics_of_the_vendors_account_are_always_accepted(make, query, key, name):
    for accesses in (THREE, NO_DEFAULT):
        environments = make(accesses).environments
        scope = environments.scope_of(request_of(query, path="/events/t"))
        assert environments.of_usage_statistics(scope, key).access.name == name


def test_a_key_in_a_header_is_the_key_of_events_without_one(make):
    """CLIENT_KEY_REQUIRED accepts them, as it accepts other requests with such a header."""
    setting = make()
    for headers, key in (([("Authorization", BRAND)], BRAND), ([("X-API-Key", "of a proxy")], None), ([], None)):
        scope = setting.environments.scope_of(request_of("", headers, "/events/t"))
        assert scope.fallback_key == key


# --- Tokens of several environments ---

TOKEN = ClientToken("two", b"", environments=["staging", "production"])
OTHERS = ClientToken("others", b"", environments=["brand", "staging"])
NOT_ALLOWED = 403, "this token may not be used in environment brand"


@pytest.mark.parametrize(
    ("query", "token", "expected"),
    [
        ("accountId=2", TOKEN, NOT_ALLOWED),
        (f"sdkKey={BRAND}", TOKEN, NOT_ALLOWED),
        ("accountId=1", TOKEN, "production"),  # of both, the default one
        ("accountId=1", OTHERS, "staging"),
        ("", OTHERS, "brand"),
    ],
)
def test_a_token_of_several_restricts_what_an_account_names(make, query, token, expected):
    setting = make()
    assert setting.of(query, token=token) == expected
    assert setting.of_lookup(query, token=token) == expected
    assert setting.of_event(query, token=token) == expected


def test_a_token_of_several_restricts_what_an_event_names(make):
    setting = make()
    assert setting.of_event("", key=BRAND, token=TOKEN) == NOT_ALLOWED
    assert setting.of_event("", key=STAGING, token=TOKEN) == "staging"


def test_a_token_of_several_restricts_what_a_list_names(make):
    setting = make(**LISTS)
    assert setting.of_lookup("", list_id="gold", token=TOKEN) == "production"  # as for an unknown list
    assert setting.of_lookup("", list_id="beta", token=TOKEN) == "staging"


# --- Lists and aliases ---

LOOKUPS = {
    "server SDK": (f"accountId=1&sdkKey={STAGING}", [], "staging", "staging"),
    "Android": ("", [], "production", None),
    "host": ("", [("Host", "staging.example")], "staging", "staging"),
    "account of one": ("accountId=2", [], "brand", "brand"),
    "account of two": ("accountId=1", [], "production", None),
    "unknown account": ("accountId=7", [], None, None),
    "unknown key": ("sdkKey=unknown", [], (400, WRONG), (400, WRONG)),
    "values of a visitor that are not escaped": ("attribute=x&i=1&env=2&a=3", [], "production", None),
    "such values beside a key": (f"sdkKey={STAGING}&attribute=x&i=1&env=2&a=3", [], "staging", "staging"),
}


@pytest.mark.parametrize("case", LOOKUPS)
def test_matrix_of_lookups(make, case):
    query, headers, *expected = LOOKUPS[case]
    assert [make(accesses).of_lookup(query, headers) for accesses in (THREE, NO_DEFAULT)] == expected


LISTS = {"production": ["vip", "both"], "staging": ["vip", "beta"], "brand": ["gold", "both"]}


@pytest.mark.parametrize(
    ("query", "headers", "list_id", "name"),
    [
        ("", [], "gold", "brand"),
        ("", [], "beta", "staging"),
        ("", [], "vip", "production"),
        ("", [("Host", "staging.example")], "vip", "staging"),
        ("accountId=2", [], "both", "brand"),
        ("accountId=1", [], "both", "production"),
        ("", [], "both", "production"),
        ("", [("Host", "brand.example")], "both", "brand"),
        ("", [], "unknown", "production"),
        (f"sdkKey={STAGING}", [], "gold", "staging"),
    ],
)
def test_a_list_belongs_to_the_environment_that_mentions_it(make, query, headers, list_id, name):
    setting = make(**LISTS)
    assert setting.of_lookup(query, headers, list_id) == name


def test_lists_follow_the_settings_and_need_none(make):
    setting = make(NO_DEFAULT, **LISTS)
    brand = setting.environments.named("brand")
    assert setting.of_lookup(list_id="gold") == "brand"
    brand.mirror.current = SimpleNamespace(settings=settings_of(THREE[2], ["silver"]))
    assert setting.of_lookup(list_id="gold") is None
    assert setting.of_lookup(list_id="silver") == "brand"
    brand.mirror.current = None
    assert setting.of_lookup(list_id="silver") is None


# --- Webhooks, and changes of the file ---


def test_a_webhook_refreshes_the_environment_of_its_token(make):
    environments = make().environments
    assert environments.accept_webhooks
    assert environments.of_webhook("token-of-the-brand") is environments.named("brand")
    assert environments.of_webhook("another") is None
    assert not make(THREE[:2]).environments.accept_webhooks


def test_a_replacement_counts_for_the_next_request(make):
    setting = make()
    assert setting.of(f"i={FORMER}") == "staging"
    production, staging, brand = setting.environments.all
    staging.use_access(staging.access._replace(sdk_keys=(STAGING,), hosts=()))
    setting.environments.replace([production, staging])
    assert setting.of(f"i={FORMER}") == (400, WRONG)
    assert setting.of(f"i={STAGING}") == "staging"
    assert setting.of(f"i={BRAND}") == (400, WRONG)
    assert setting.of(headers=[("Host", "staging.example")]) == "production"
    assert setting.environments.first is production
    assert setting.environments.named("brand") is None
    assert brand not in setting.environments.all


def test_a_known_head_is_found_again_after_a_change_of_the_file(make):
    setting = make()
    request = request_of(f"i={STAGING}")
    request.known_head = head_of(request)
    production, staging, _ = setting.environments.all
    assert [setting.result(setting.environments.of, request) for _ in range(2)] == ["staging"] * 2
    setting.environments.replace([production])
    assert setting.result(setting.environments.of, request) == (400, WRONG)
    staging.use_access(staging.access._replace(name="renamed"))
    setting.environments.replace([production, staging])
    assert setting.result(setting.environments.of, request) == "renamed"


def test_a_change_of_the_file_warns_again_of_requests_without_an_environment(make, caplog):
    setting = make(NO_DEFAULT)
    for _ in range(2):
        assert setting.of() == (400, QUESTION)
    assert len(caplog.messages) == 1
    setting.environments.replace(setting.environments.all)
    assert setting.of() == (400, QUESTION)
    assert len(caplog.messages) == 2


def test_a_token_is_checked_although_the_head_is_known(make):
    setting = make()
    request = request_of(f"i={BRAND}")
    request.known_head = head_of(request)
    assert setting.result(setting.environments.of, request) == "brand"
    request.client = TOKEN
    assert setting.result(setting.environments.of, request) == NOT_ALLOWED


def test_a_key_can_be_required(make):
    setting = make()
    setting.environments.needs_key = True
    assert setting.of() == setting.of("environment=staging") == setting.of_lookup() == (400, NO_KEY)
    assert setting.of(headers=[("Authorization", "Basic abc")], token=TOKEN) == (400, NO_KEY)
    assert setting.of(f"env={STAGING}") == setting.of(headers=[("X-API-Key", STAGING)]) == "staging"
    assert setting.of_lookup(f"i={STAGING}") == (400, NO_KEY)  # `i` can be a part of a visitor's value
    assert setting.of_lookup(f"sdkKey={STAGING}") == "staging"
    assert setting.result(lambda: setting.environments.of_lookup(request_of(), without_key=True)) == "production"


def test_requests_that_never_repeat_take_no_memory(make):
    setting = make()
    known = setting.environments._known
    setting.of(f"i={BRAND}&x={'x' * LONGEST_KNOWN}")
    assert known == {}
    for number in range(2 * KNOWN_REQUESTS):
        assert setting.of(f"a=1&r={number}") == "production"
        assert len(setting.environments._known) <= KNOWN_REQUESTS
        assert len(setting.environments._by_number) <= KNOWN_REQUESTS
    for number in range(10):  # values that name nothing are not remembered
        setting.of("a=1", [("Authorization", f"Bearer {number}")])
    assert len(setting.environments._known) <= KNOWN_REQUESTS


# --- Pages of other origins ---

SHOP, OTHER = "https://shop.example", "https://other.example"


@pytest.mark.parametrize(
    ("method", "query", "origin", "is_allowed"),
    [
        ("POST", f"sdkKey={PRODUCTION}", SHOP, True),
        ("POST", f"sdkKey={PRODUCTION}", OTHER, False),
        ("POST", f"sdkKey={STAGING}", OTHER, True),
        ("POST", f"sdkKey={STAGING}", SHOP, False),
        ("POST", f"sdkKey={STAGING}&i={PRODUCTION}", SHOP, True),  # the response is an error that the page may read
        ("POST", "", SHOP, True),
        ("POST", "", OTHER, True),
        ("POST", "", "https://evil.example", False),
        ("OPTIONS", f"sdkKey={PRODUCTION}", OTHER, True),
    ],
)
def test_pages_may_read_the_responses_of_their_environment(make, method, query, origin, is_allowed):
    accesses = [THREE[0]._replace(allowed_origins=(SHOP,)), THREE[1]._replace(allowed_origins=(OTHER,))]
    request = Request(method.encode(), b"/server-side/getFlag", query.encode(), [(b"Origin", origin.encode())])
    lines = EnvironmentsCors(make(accesses).environments).header_lines(request)
    assert (f"Access-Control-Allow-Origin: {origin}\r\n".encode() in lines) == is_allowed
    assert b"Vary: Origin\r\n" in lines


def test_origins_follow_the_file(make):
    environments = make([THREE[0]._replace(allowed_origins=(SHOP,))]).environments
    cors = EnvironmentsCors(environments)
    request = Request(b"GET", b"/server-side/v2-settings", b"", [(b"Origin", OTHER.encode())])
    assert b"Allow-Origin" not in cors.header_lines(request)
    environments.first.use_access(environments.first.access._replace(allowed_origins=(SHOP, OTHER)))
    environments.replace(environments.all)
    assert b"Access-Control-Allow-Origin: https://other.example\r\n" in cors.header_lines(request)
