"""The only environment, without ENVIRONMENTS_FILE. A query must not name another account or key."""

from collections.abc import Sequence
from typing import final

from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import (
    ACCOUNT_PARAMETERS,
    KEY_HEADERS,
    KEY_PARAMETERS,
    KNOWN_REQUESTS,
    LONGEST_KNOWN,
    LOOKUP_ACCOUNT_PARAMETERS,
    LOOKUP_KEY_PARAMETERS,
    Environments,
    Scope,
    bare,
    no_key,
    wrong_account,
)
from tornado_gateway.http.fields import parameter_text, query_text, raw_query_value
from tornado_gateway.http.messages import Request
from tornado_gateway.settings.mirror import Snapshot


@final
class SingleEnvironment(Environments):
    """One environment. Before its first settings are loaded, only the configured account and key are known."""

    def replace(self, environments: Sequence[Environment]) -> None:
        super().replace(environments)
        self._forget_queries()

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Check every query again, because the settings may be of another account."""
        self._forget_queries()

    def _remember(self, query: bytes) -> None:
        """Remember a query that names no other account, unless it is so long that a thousand of them take memory."""
        if len(query) <= LONGEST_KNOWN:
            if len(self._known) >= KNOWN_REQUESTS:  # some clients add a random parameter; others are known again soon
                self._forget_queries()
            self._known.add(query)

    def _forget_queries(self) -> None:
        self._known: set[bytes] = set() if self.needs_key else {b""}

    # --- Requests ---

    def of(self, request: Request) -> Environment:
        if request.query not in self._known:
            self._check(request.query, ACCOUNT_PARAMETERS, KEY_PARAMETERS, self.needs_key)
            self._remember(request.query)
        return self.first

    def of_lookup(
        self, request: Request, list_id: str | None = None, *, without_key: bool = False
    ) -> Environment | None:
        query, needs_key = request.query, self.needs_key and not without_key
        if needs_key or query.find(b"accountId=") >= 0 or query.find(b"sdkKey=") >= 0:
            self._check(query, LOOKUP_ACCOUNT_PARAMETERS, LOOKUP_KEY_PARAMETERS, needs_key)
        return self.first

    def named_by(self, request: Request) -> Environment | None:
        return self.first

    def has_key(self, request: Request, is_lookup: bool = False) -> bool:
        parameters = LOOKUP_KEY_PARAMETERS if is_lookup else KEY_PARAMETERS
        self._check(request.query, (), parameters, False)
        if any(query_text(request.query, parameter) is not None for parameter in parameters):
            return True
        headers = [request.header(header) for header in KEY_HEADERS]
        return any(self._is_own(bare(value).decode("latin-1")) for value in headers if value)

    # --- Events ---

    def scope_of(self, request: Request, *, has_header: bool = False) -> Scope:
        key = self._query_key(request.query)
        header = request.header(b"authorization") if has_header else None
        given = parameter_text(header) if header and b" " not in header else None
        return Scope(self.first, key if given is None or self._is_own(given) else given, fallback_key=given)

    def of_event(self, scope: Scope, key: str | None) -> Environment | None:
        """Return the environment if an event is of its key.

        Only a key decides, that of the query first, because the account in the query is a session id in PHP 1.20 and
        1.21.
        """
        key = scope.key or key
        return self.first if key is None or self._is_own(key) else None

    def of_usage_statistics(self, scope: Scope, key: str | None) -> Environment:
        return self.first

    # --- The account and the key ---

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
            raise wrong_account()
        if not all(map(self._is_own, keys)):
            raise wrong_account()
        if needs_key and not keys:
            raise no_key()

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
