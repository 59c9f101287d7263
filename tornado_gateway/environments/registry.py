"""The environments of a worker, and the one that a request or an event belongs to.

Only this room compares accounts or keys with those served. Without ENVIRONMENTS_FILE there is one environment, and a
query must not name another one: see `single`. With a file, requests are assigned by `several`.
"""

import hmac
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

from tornado_gateway import core
from tornado_gateway.environments.environment import Environment
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Request
from tornado_gateway.settings.mirror import Snapshot

ACCOUNT_PARAMETERS = (b"accountId", b"a")
KEY_PARAMETERS = (b"sdkKey", b"i", b"env")
# Values of visitors are in queries of lookups, and some SDKs do not escape them, so that `a` can be a part of one.
LOOKUP_ACCOUNT_PARAMETERS, LOOKUP_KEY_PARAMETERS = ACCOUNT_PARAMETERS[:1], KEY_PARAMETERS[:1]
KEY_HEADERS = (b"authorization", b"x-api-key")
BEARER = b"bearer "
KNOWN_REQUESTS = 1000  # that are remembered
LONGEST_KNOWN = 1024  # bytes of one
NO_KEY = "the SDK key is required in the query, as sdkKey, i or env (CLIENT_KEY_REQUIRED)"


def check_account(account_id: int | None, settings: core.Settings) -> None:
    """Raise SettingsError for settings of another account than the configured one: events would be sent under it."""
    if account_id is not None and settings.account_id != str(account_id):
        raise core.SettingsError((f"they are of account {settings.account_id:.50}, not of ACCOUNT_ID {account_id}",))


def wrong_account() -> RequestError:
    return RequestError(400, "accountId or sdkKey does not match this gateway", code="wrong_account")


def no_key() -> RequestError:
    return RequestError(400, NO_KEY, code="key_required")


def bare(value: bytes) -> bytes:
    """Return the value of a header without the word Bearer."""
    return value[len(BEARER) :].strip() if value[: len(BEARER)].lower() == BEARER else value


class Claim(NamedTuple):
    """An environment, and the place in a request that names it."""

    environment: Environment
    place: str


@final
class Scope:
    """What a request with events says about their environment, besides its body.

    `named` is the environment that it names; `key` its SDK key, served here or not. Events that name none belong to
    `otherwise`, None if there is no such environment. `counting` counts the events that are rejected.
    """

    __slots__ = ("counting", "fallback_key", "is_final", "key", "named", "otherwise", "request")

    def __init__(
        self,
        counting: Environment,
        key: str | None = None,
        named: Claim | None = None,
        otherwise: Environment | None = None,
        request: Request | None = None,
        fallback_key: str | None = None,
    ) -> None:
        self.counting = counting
        self.fallback_key = fallback_key  # of events that name none
        self.key = key
        self.named = named
        self.otherwise = otherwise
        self.request = request  # None without a file
        self.is_final = request is None and key is not None  # documents are not asked


class Environments(ABC):
    """The environments of this process.

    An account or an SDK key in a query must be one that is served (wire contract A.1, E.7). Both are optional, but with
    `needs_key` (CLIENT_KEY_REQUIRED) requests without the key are rejected wherever all SDKs, or all but those of
    mobile apps, send it.
    """

    def __init__(self, environments: Sequence[Environment], *, needs_key: bool = False) -> None:
        self.needs_key = needs_key
        self.version = 0  # of the environments and their access
        self.replace(environments)

    def replace(self, environments: Sequence[Environment]) -> None:
        """Serve these environments from now on, as their `access` names them. There is at least one."""
        self.version += 1
        self.all = tuple(environments)
        self.default = next((one for one in environments if one.access.is_default), None)
        self.first = self.default or self.all[0]  # for purposes that need any environment
        self._by_name = {one.access.name: one for one in environments}

    def named(self, name: str) -> Environment | None:
        return self._by_name.get(name)

    @abstractmethod
    def settings_changed(self, snapshot: Snapshot) -> None:
        """Follow a change of an environment's settings."""

    @abstractmethod
    def of(self, request: Request) -> Environment:
        """Return the environment of a request. Raise RequestError 400 if it names another one, or several, or none."""

    @abstractmethod
    def of_lookup(
        self, request: Request, list_id: str | None = None, *, without_key: bool = False
    ) -> Environment | None:
        """Return the environment of a request for an alias, a list or facts about a visitor, None if it names none.

        Their clients retry a 400, so only a wrong key or name raises one. `without_key`: SDKs send no key with this
        request, so it is never required.
        """

    def of_webhook(self, token: str) -> Environment | None:
        """Return the environment whose webhook token this is, None if it is no token."""
        given, found = token.encode(), None
        for environment in self.all:  # all of them, so that the time says nothing about the right one
            own = environment.access.webhook_token
            if own is not None and hmac.compare_digest(given, own.encode()):
                found = environment
        return found

    @abstractmethod
    def named_by(self, request: Request) -> Environment | None:
        """Return the environment that a key or a name in a request means, None without exactly one."""

    @property
    def accept_webhooks(self) -> bool:
        """Return whether any environment has a token for webhooks."""
        return any(environment.access.webhook_token for environment in self.all)

    @abstractmethod
    def has_key(self, request: Request, is_lookup: bool = False) -> bool:
        """Return whether a request has an SDK key, in its query or a header. Raise RequestError 400 for a wrong one.

        With `is_lookup`, values of visitors may be in the query: see LOOKUP_KEY_PARAMETERS.
        """

    # --- Events ---

    @abstractmethod
    def scope_of(self, request: Request, *, has_header: bool = False) -> Scope:
        """Return what a request with events says about their environment, besides its body.

        `has_header`: SDKs repeat the key in the Authorization header of this request. If it is of another environment,
        it counts for all events, otherwise for those that name none. A header with a scheme, such as Basic, is for a
        proxy.
        """

    @abstractmethod
    def of_event(self, scope: Scope, key: str | None) -> Environment | None:
        """Return the environment of an event whose document names this SDK key, None if it is not served here.

        Raise RequestError 400 if the event and its request name different ones.
        """

    @abstractmethod
    def of_usage_statistics(self, scope: Scope, key: str | None) -> Environment:
        """Return the environment that counts an event with usage statistics, which is of the vendor's account."""
