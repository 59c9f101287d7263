"""The environments of a worker, and the one that a request or an event belongs to.

Only this room compares accounts or keys with those served. Without ENVIRONMENTS_FILE there is one environment, and a
query must not name another one. With a file, requests are assigned by `identification`.
"""

import hmac
from collections.abc import Callable, Sequence

from tornado_gateway import core
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.identification import KEY_HEADERS, WRONG_ACCOUNT, Identification, Scope, bare
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import parameter_text, query_text, raw_query_value
from tornado_gateway.http.messages import Request
from tornado_gateway.settings.mirror import Snapshot

ACCOUNT_PARAMETERS = (b"accountId", b"a")
KEY_PARAMETERS = (b"sdkKey", b"i")
KNOWN_QUERIES = 1000  # checked query strings that are remembered


def check_account(account_id: int | None, settings: core.Settings) -> None:
    """Raise SettingsError for settings of another account than the configured one: events would be sent under it."""
    if account_id is not None and settings.account_id != str(account_id):
        raise core.SettingsError((f"they are of account {settings.account_id:.50}, not of ACCOUNT_ID {account_id}",))


def ignore(request: Request) -> None:
    """Do nothing about a request that names no environment."""


class Environments:
    """The environments of this process: those of ENVIRONMENTS_FILE if `is_from_file`, otherwise one.

    `on_unidentified` is called with each request that names no environment while there is no default one.
    The account in a query is optional, but must not be another one (wire contract A.1, E.7).
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        *,
        is_from_file: bool = False,
        on_unidentified: Callable[[Request], None] = ignore,
    ) -> None:
        self.is_from_file = is_from_file
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
        self._known: set[bytes] = {b""}  # queries that name no other account
        self._identification = Identification(self.all, self._on_unidentified) if self.is_from_file else None

    def named(self, name: str) -> Environment | None:
        return self._by_name.get(name)

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Check every query again, because the settings may be of another account."""
        self._known = {b""}

    # --- Requests ---

    def of(self, request: Request) -> Environment:
        """Return the environment of a request. Raise RequestError 400 if it names another one, or several, or none.

        Without a file and before the first settings are loaded, no query is checked.
        """
        if self._identification is not None:
            return self._identification.of(request)
        if request.query not in self._known:
            self._check(request.query)
        return self.first

    def of_lookup(self, request: Request, list_id: str | None = None) -> Environment | None:
        """Return the environment of a request for an alias or a list, None if it names none.

        Their clients retry a 400, so only a wrong key or name raises one. Without a file nothing is checked.
        """
        return self.first if self._identification is None else self._identification.of_lookup(request, list_id)

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

    def has_key(self, request: Request) -> bool:
        """Return whether a request has an SDK key, in its query or a header. Raise RequestError 400 for a wrong one."""
        if self._identification is not None:
            return self._identification.has_key(request)
        only = self.first
        snapshot = only.mirror.current
        own = only.access.sdk_key if snapshot is None else snapshot.settings.sdk_key
        given = [query_text(request.query, parameter) for parameter in (*KEY_PARAMETERS, b"env")]
        if any(key is not None and key != own for key in given):
            raise RequestError(400, WRONG_ACCOUNT)
        headers = [request.header(header) for header in KEY_HEADERS]
        return own is not None and (own in given or own.encode() in map(bare, filter(None, headers)))

    # --- Events ---

    def scope_of(self, request: Request) -> Scope:
        """Return what a request with events says about their environment, besides its body."""
        if self._identification is not None:
            return self._identification.scope_of(request)
        return Scope(self.first, self._query_key(request.query))

    def of_event(self, scope: Scope, key: str | None) -> Environment | None:
        """Return the environment of an event whose document names this SDK key, None if it is not served here.

        Without a file, only a key decides, that of the query first, because the account in the query is a session id in
        PHP 1.20 and 1.21. With a file, both must agree, otherwise RequestError 400 is raised.
        """
        if self._identification is not None:
            return self._identification.of_event(scope, key)
        only = self.first
        key = scope.key or key
        if key is None or key == only.access.sdk_key:
            return only
        snapshot = only.mirror.current
        is_own = only.access.sdk_key is None if snapshot is None else key == snapshot.settings.sdk_key
        return only if is_own else None

    def of_usage_statistics(self, scope: Scope, key: str | None) -> Environment:
        """Return the environment that counts an event with usage statistics, which is of the vendor's account."""
        return self.first if self._identification is None else self._identification.of_usage_statistics(scope, key)

    # --- Without a file ---

    def _query_key(self, query: bytes) -> str | None:
        """Return the SDK key in the query of a request with events, None if there is none."""
        raw = raw_query_value(query, b"env")
        if raw is None:
            return None
        only = self.first
        return only.access.sdk_key if raw == only.raw_key else parameter_text(raw)

    def _check(self, query: bytes) -> None:
        snapshot = self.first.mirror.current
        if snapshot is None:
            return
        settings = snapshot.settings
        for names, own in ((ACCOUNT_PARAMETERS, settings.account_id), (KEY_PARAMETERS, settings.sdk_key)):
            for name in names:
                given = query_text(query, name)
                if given is not None and given != own:
                    raise RequestError(400, WRONG_ACCOUNT)
        if len(self._known) >= KNOWN_QUERIES:  # some clients add a random parameter; others are known again soon
            self._known = {b""}
        self._known.add(query)
