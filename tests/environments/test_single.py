"""Which environment a request or an event belongs to."""

import asyncio
from types import SimpleNamespace

import pytest
from environment_parts import environments_of
from process import sample_document

from tornado_gateway.core import compile_settings
from tornado_gateway.environments.registry import KNOWN_REQUESTS, NO_KEY
from tornado_gateway.environments.single import SingleEnvironment
from tornado_gateway.errors import RequestError
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.messages import Request
from tornado_gateway.store.interfaces import Identity
from tornado_gateway.store.sqlite.events import open_sqlite

OWN, FOREIGN = "own-key", "foreign-key"
TEXT = "accountId or sdkKey does not match this gateway"


class Setting:
    """Environments with settings of account 1 and OWN, or with none."""

    def __init__(self, directory, *, sdk_key=OWN, loaded=True, needs_key=False, account_id=""):
        self.mirror = SimpleNamespace(current=None)
        store = open_sqlite(directory)
        queue = EventQueue(store.events, limit=10, chunk_events=10)
        queue.use_identity(Identity(account_id, sdk_key or ""))
        default = environments_of(self.mirror, queue, store, sdk_key=sdk_key).default
        self.environments = SingleEnvironment([default], needs_key=needs_key)
        if loaded:
            self.load("1", OWN)

    def load(self, account_id, sdk_key):
        settings = compile_settings({**sample_document(), "accountId": account_id, "sdkKey": sdk_key})
        self.mirror.current = SimpleNamespace(settings=settings)
        self.environments.settings_changed(self.mirror.current)

    def accepts(self, query):
        request = Request(b"GET", b"/", query, [], b"", "127.0.0.1")
        if (message := rejection_of(self.environments, request)) is None:
            return self.environments.of(request) is self.environments.default
        assert message == (400, TEXT)
        return False


def rejection_of(environments, request, **lookup):
    try:
        environments.of_lookup(request, **lookup) if lookup else environments.of(request)
    except RequestError as error:
        return error.status, str(error)
    return None


@pytest.fixture
def make(tmp_path):
    return lambda **options: asyncio.run(made(tmp_path, **options))


async def made(directory, **options):
    return Setting(directory, **options)


@pytest.mark.parametrize("query", [b"", b"x=1", b"accountId=1", b"a=1&i=own-key", b"sdkKey=undefined", b"i=&a=null"])
def test_a_request_that_names_no_other_account_is_served(make, query):
    assert make().accepts(query)


@pytest.mark.parametrize(
    "query",
    [b"accountId=2", b"a=2", b"sdkKey=foreign-key", b"i=foreign-key", b"accountId=1&a=2", b"a=1&i=other&i=own-key"],
)
def test_a_request_that_names_another_account_is_rejected_every_time(make, query):
    setting = make()
    assert not setting.accepts(query)
    assert not setting.accepts(query)


def test_without_settings_no_query_is_checked_and_none_is_remembered(make):
    setting = make(loaded=False)
    assert setting.accepts(b"a=2")
    setting.load("1", OWN)
    assert not setting.accepts(b"a=2")


def test_f5_before_there_are_settings_the_configured_account_and_key_count(make):
    setting = make(loaded=False, account_id="1")
    assert setting.accepts(b"a=1&i=own-key")
    for query in (b"a=2", b"accountId=2", b"i=foreign-key", b"sdkKey=foreign-key"):
        assert not setting.accepts(query)


@pytest.mark.parametrize(
    ("query", "is_enough", "is_enough_for_lookups"),
    [
        (b"", False, False),
        (b"a=1&accountId=1", False, False),
        (b"sdkKey=&i=null&env=undefined", False, False),
        (b"sdkKey=own-key", True, True),
        (b"i=own-key", True, False),  # part of an unescaped value
        (b"env=own-key", True, False),
    ],
)
def test_f5_a_required_key(make, query, is_enough, is_enough_for_lookups):
    environments = make(needs_key=True).environments
    request = Request(b"GET", b"/", query, [])
    for _ in range(2):
        assert rejection_of(environments, request) == (None if is_enough else (400, NO_KEY))
    wanted = None if is_enough_for_lookups else (400, NO_KEY)
    assert rejection_of(environments, request, without_key=False) == wanted
    assert rejection_of(environments, request, without_key=True) is None


@pytest.mark.parametrize(
    ("query", "header", "keys"),
    [
        (b"", None, (None, None)),
        (b"", b"", (None, None)),
        (b"", b"own-key", (None, OWN)),
        (b"", b"foreign-key", (FOREIGN, FOREIGN)),
        (b"", b"null", (None, None)),
        (b"", b"Basic foreign-key", (None, None)),
        (b"env=own-key", b"foreign-key", (FOREIGN, FOREIGN)),
        (b"env=foreign-key", b"own-key", (FOREIGN, OWN)),
        (b"env=own-key", b"own-key", (OWN, OWN)),
        (b"env=own-key", b"Bearer foreign-key", (OWN, None)),
    ],
)
def test_f5_the_keys_of_a_batch(make, query, header, keys):
    headers = [] if header is None else [(b"Authorization", header)]
    scope = make().environments.scope_of(Request(b"POST", b"/", query, headers), has_header=True)
    assert (scope.key, scope.fallback_key) == keys


def test_settings_of_another_account_check_known_queries_again(make):
    setting = make(sdk_key=None)
    assert setting.accepts(b"a=1")
    setting.load("2", FOREIGN)
    assert not setting.accepts(b"a=1")
    assert setting.accepts(b"a=2")


def test_queries_that_never_repeat_take_no_memory_and_no_place_of_others(make):
    """Requests for settings have a random parameter; queries of decisions are constant."""
    setting = make()
    for number in range(2 * KNOWN_REQUESTS):
        assert setting.accepts(b"a=1&r=%d" % number)
        assert len(setting.environments._known) <= KNOWN_REQUESTS + 1
    assert setting.accepts(b"accountId=1")
    assert b"accountId=1" in setting.environments._known


def test_long_queries_are_checked_and_take_no_memory(make):
    """A thousand queries of 60 KB would take 60 MB in each worker."""
    setting = make()
    assert setting.accepts(b"a=1&r=" + b"x" * 60_000)
    assert not setting.accepts(b"a=2&r=" + b"x" * 60_000)
    assert max(map(len, setting.environments._known)) < 2000


@pytest.mark.parametrize(
    ("sdk_key", "loaded", "key", "is_own"),
    [
        (OWN, True, None, True),
        (OWN, True, OWN, True),
        (OWN, True, FOREIGN, False),
        (OWN, False, OWN, True),
        (OWN, False, FOREIGN, False),
        (None, True, OWN, True),
        (None, True, FOREIGN, False),
        (None, False, FOREIGN, True),  # the settings will say which key it is
        (FOREIGN, True, OWN, True),  # both the configured key and that of the settings
        (FOREIGN, True, FOREIGN, True),
    ],
)
def test_the_key_of_an_event_decides(make, sdk_key, loaded, key, is_own):
    environments = make(sdk_key=sdk_key, loaded=loaded).environments
    scope = environments.scope_of(Request(b"POST", b"/events/t", b"", []))
    assert environments.of_event(scope, key) is (environments.default if is_own else None)


@pytest.mark.parametrize(
    ("query", "key"),
    [
        (b"", None),
        (b"a=1", None),
        (b"env=", None),
        (b"env=undefined", None),
        (b"a=1&env=own-key&x=1", OWN),
        (b"env=foreign-key", FOREIGN),
        (b"env=with%20escape", "with escape"),
    ],
)
def test_the_key_in_the_query_of_events(make, query, key):
    request = Request(b"POST", b"/events/t", query, [])
    assert make().environments.scope_of(request).key == key
    assert make(sdk_key=None).environments.scope_of(request).key == key


def test_values_of_visitors_in_lookups_are_no_keys(make):
    """Some SDKs do not escape them."""
    environments = make().environments
    request = Request(b"GET", b"/", b"accountId=1&sdkKey=own-key&userId=a&i=b&env=c", [], b"", "127.0.0.1")
    assert environments.has_key(request, is_lookup=True)
    with pytest.raises(RequestError, match=TEXT):
        environments.has_key(request)
