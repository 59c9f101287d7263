"""The environments of a worker, and the one that a request or an event belongs to.

Only this room compares accounts or keys with those served. Without ENVIRONMENTS_FILE there is one environment, and a
query must not name another one. With a file, requests are assigned by `identification`.
"""

import hmac
from collections.abc import Callable, Sequence

from tornado_gateway import core
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.identification import (
    ACCOUNT_PARAMETERS,
    KEY_HEADERS,
    KEY_PARAMETERS,
    LONGEST_KNOWN,
    LOOKUP_ACCOUNT_PARAMETERS,
    LOOKUP_KEY_PARAMETERS,
    WRONG_ACCOUNT,
    Identification,
    Scope,
    bare,
)
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import parameter_text, query_text, raw_query_value
from tornado_gateway.http.messages import Request
from tornado_gateway.settings.mirror import Snapshot

KNOWN_QUERIES = 1000  # checked query strings that are remembered
NO_KEY = "the SDK key is required in the query, as sdkKey, i or env (CLIENT_KEY_REQUIRED)"


def check_account(account_id: int | None, settings: core.Settings) -> None:
    """Raise SettingsError for settings of another account than the configured one: events would be sent under it."""
    if account_id is not None and settings.account_id != str(account_id):
        raise core.SettingsError((f"they are of account {settings.account_id:.50}, not of ACCOUNT_ID {account_id}",))


def ignore(request: Request) -> None:
    """Do nothing about a request that names no environment."""


class Environments:
    """The environments of this process: those of ENVIRONMENTS_FILE if `is_from_file`, otherwise one.

    `on_unidentified` is called with each request that names no environment while there is no default one.

    An account or an SDK key in a query must not be another one (wire contract A.1, E.7). Both are optional, but with
    `needs_key` (CLIENT_KEY_REQUIRED) requests without the key are rejected wherever all SDKs, or all but those of
    mobile apps, send it.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        *,
        is_from_file: bool = False,
        needs_key: bool = False,
        on_unidentified: Callable[[Request], None] = ignore,
    ) -> None:
        self.is_from_file = is_from_file
        self.needs_key = needs_key
        self._on_unidentified = on_unidentified
        self.version = 0  # of the environments and their access
        self.replace(environments)

    def replace(self, environments: Sequence[Environment]) -> None:
        """Serve these environments from now on, as their `access` names them. There is at least one."""
        self.version += 1
        self.all = tuple(environments)
        self.default = next((one for one in environments if one.access.is_default), None)
        self.first = self.default or self.all[0]  # for purposes that need any environment
        self._by_name = {one.access.name: one for one in environments}
        self._known: set[bytes] = set()  # queries that name no other account
        self._forget_queries()
        self._identification = Identification(self.all, self._on_unidentified) if self.is_from_file else None

    def named(self, name: str) -> Environment | None:
        return self._by_name.get(name)

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Check every query again, because the settings may be of another account."""
        self._forget_queries()

    def _remember(self, query: bytes) -> None:
        """Remember a query that names no other account, unless it is so long that a thousand of them take memory."""
        if len(query) <= LONGEST_KNOWN:
            if len(self._known) >= KNOWN_QUERIES:  # some clients add a random parameter; others are known again soon
                self._forget_queries()
            self._known.add(query)

    def _forget_queries(self) -> None:
        self._known = set() if self.needs_key else {b""}

    # --- Requests ---

    def of(self, request: Request) -> Environment:
        """Return the environment of a request. Raise RequestError 400 if it names another one, or several, or none.

        Without a file and before the first settings are loaded, only the configured account and key are known.
        """
        if self._identification is not None:
            if self.needs_key:
                _check_has_key(self._identification, request, KEY_PARAMETERS)
            return self._identification.of(request)
        if request.query not in self._known:
            self._check(request.query, ACCOUNT_PARAMETERS, KEY_PARAMETERS, self.needs_key)
            self._remember(request.query)
        return self.first

    def of_lookup(
        self, request: Request, list_id: str | None = None, *, without_key: bool = False
    ) -> Environment | None:
        """Return the environment of a request for an alias, a list or facts about a visitor, None if it names none.

        Their clients retry a 400, so only a wrong key or name raises one. `without_key`: SDKs send no key with this
        request, so it is never required.
        """
        query, needs_key = request.query, self.needs_key and not without_key
        if self._identification is not None:
            if needs_key:
                _check_has_key(self._identification, request, LOOKUP_KEY_PARAMETERS)
            return self._identification.of_lookup(request, list_id)
        if needs_key or query.find(b"accountId=") >= 0 or query.find(b"sdkKey=") >= 0:
            self._check(query, LOOKUP_ACCOUNT_PARAMETERS, LOOKUP_KEY_PARAMETERS, needs_key)
        return self.first

    def of_webhook(self, token: str) -> Environment | None:
        """Return the environment whose webhook token this is, None if it is no token."""
        given, found = token.encode(), None
        for environment in self.all:  # all of them, so that the time says nothing about the right one
            own = environment.access.webhook_token
            if own is not None and hmac.compare_digest(given, own.encode()):
                found = environment
        return found

    def named_by(self, request: Request) -> Environment | None:
        """Return the environment that a key or a name in a request means, None without exactly one."""
        return self.first if self._identification is None else self._identification.named_by(request)

    @property
    def accept_webhooks(self) -> bool:
        """Return whether any environment has a token for webhooks."""
        return any(environment.access.webhook_token for environment in self.all)

    def has_key(self, request: Request, is_lookup: bool = False) -> bool:
        """Return whether a request has an SDK key, in its query or a header. Raise RequestError 400 for a wrong one.

        With `is_lookup`, values of visitors may be in the query: see LOOKUP_KEY_PARAMETERS.
        """
        parameters = LOOKUP_KEY_PARAMETERS if is_lookup else KEY_PARAMETERS
        if self._identification is not None:
            return self._identification.has_key(request, parameters)
        self._check(request.query, (), parameters, False)
        if any(query_text(request.query, parameter) is not None for parameter in parameters):
            return True
        headers = [request.header(header) for header in KEY_HEADERS]
        return any(self._is_own(bare(value).decode("latin-1")) for value in headers if value)

    # --- Events ---

    def scope_of(self, request: Request, *, has_header: bool = False) -> Scope:
        """Return what a request with events says about their environment, besides its body.

        `has_header`: SDKs repeat the key in the Authorization header of this request. If it is of another environment,
        it counts for all events, otherwise for those that name none. A header with a scheme, such as Basic, is for a
        proxy.
        """
        if self._identification is not None:
            return self._identification.scope_of(request)
        key = self._query_key(request.query)
        header = request.header(b"authorization") if has_header else None
        given = parameter_text(header) if header and b" " not in header else None
        return Scope(self.first, key if given is None or self._is_own(given) else given, fallback_key=given)

    def of_event(self, scope: Scope, key: str | None) -> Environment | None:
        """Return the environment of an event whose document names this SDK key, None if it is not served here.

        Without a file, only a key decides, that of the query first, because the account in the query is a session id in
        PHP 1.20 and 1.21. With a file, both must agree, otherwise RequestError 400 is raised.
        """
        if self._identification is not None:
            return self._identification.of_event(scope, key)
        key = scope.key or key
        return self.first if key is None or self._is_own(key) else None

    def of_usage_statistics(self, scope: Scope, key: str | None) -> Environment:
        """Return the environment that counts an event with usage statistics, which is of the vendor's account."""
        return self.first if self._identification is None else self._identification.of_usage_statistics(scope, key)

    # --- Without a file ---

    def _query_key(self, query: bytes) -> str | None:
        """Return the SDK key in the query of a request with events, None if there is none."""
        raw = raw_query_value(query, b"env")
        if raw is None:
            return None
        return parameter_text(raw)

    def _check(self, query: bytes, account_names: Sequence[bytes], key_names: Sequence[bytes], needs_key: bool) -> None:
        account_id = self._account_id()
        accounts = [given for name in account_names if (given := query_text(query, name)) is not None]
        keys = [given for name in key_names if (given := query_text(query, name)) is not None]
        if account_id and any(given != account_id for given in accounts):
            raise RequestError(400, WRONG_ACCOUNT, code="wrong_account")
        if not all(map(self._is_own, keys)):
            raise RequestError(400, WRONG_ACCOUNT, code="wrong_account")
        if needs_key and not keys:
            raise RequestError(400, NO_KEY, code="key_required")

    def _is_own(self, key: str) -> bool:
        """Return whether a key is that of the only environment. Before its settings are loaded, a file can have any."""
        only = self.first
        if key == only.access.sdk_key:
            return True
        snapshot = only.mirror.current
        return only.access.sdk_key is None if snapshot is None else key == snapshot.settings.sdk_key

    def _account_id(self) -> str:
        """Return the account of the settings, before they are loaded the configured one; "" if there is none."""
        snapshot = self.first.mirror.current
        return self.first.events.identity.account_id if snapshot is None else snapshot.settings.account_id


def _check_has_key(identification: Identification, request: Request, parameters: Sequence[bytes]) -> None:
    if not identification.has_key(request, parameters):
        raise RequestError(400, NO_KEY, code="key_required")
