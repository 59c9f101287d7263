"""The environment that a request, or an event, belongs to. Nothing else compares accounts or keys with those served."""

from collections.abc import Sequence

from tornado_gateway import core
from tornado_gateway.environments.environment import Environment
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import parameter_text, query_text, raw_query_value
from tornado_gateway.http.messages import Request
from tornado_gateway.settings.mirror import Snapshot

ACCOUNT_PARAMETERS = (b"accountId", b"a")
KEY_PARAMETERS = (b"sdkKey", b"i", b"env")
# Values of visitors are in queries of lookups, and some SDKs do not escape them, so that `a` can be a part of one.
LOOKUP_PARAMETERS = (b"accountId",), (b"sdkKey",)
Keys = tuple[str | None, str | None]  # of a request: that of all its events, and that of events that name none
KNOWN_QUERIES = 1000  # checked query strings that are remembered
MISMATCH = "accountId or sdkKey does not match this gateway"
NO_KEY = "the SDK key is required in the query, as sdkKey, i or env (CLIENT_KEY_REQUIRED)"


def check_account(account_id: int | None, settings: core.Settings) -> None:
    """Raise SettingsError for settings of another account than the configured one: events would be sent under it."""
    if account_id is not None and settings.account_id != str(account_id):
        raise core.SettingsError((f"they are of account {settings.account_id:.50}, not of ACCOUNT_ID {account_id}",))


class Environments:
    """The environments of this process. At present there is one, `default`.

    An account or an SDK key in a query must not be another one (wire contract A.1, E.7). Both are optional, but with
    `needs_key` (CLIENT_KEY_REQUIRED) requests without the key are rejected wherever all SDKs, or all but those of
    mobile apps, send it.
    """

    def __init__(self, default: Environment, *, needs_key: bool = False) -> None:
        self.default = default
        self.needs_key = needs_key
        self._known: set[bytes] = set()  # queries that name no other account
        self._forget_queries()

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Check every query again, because the settings may be of another account."""
        self._forget_queries()

    def _forget_queries(self) -> None:
        self._known = set() if self.needs_key else {b""}

    def of(self, request: Request) -> Environment:
        """Return the environment of a request. Raise RequestError 400 if its query names another one.

        Before the first settings are loaded, only the configured account and key are known.
        """
        if request.query not in self._known:
            self._check(request.query, ACCOUNT_PARAMETERS, KEY_PARAMETERS, self.needs_key)
            if len(self._known) >= KNOWN_QUERIES:  # some clients add a random parameter; others are known again soon
                self._forget_queries()
            self._known.add(request.query)
        return self.default

    def of_lookup(self, request: Request, *, without_key: bool = False) -> Environment:
        """Return the environment of a request about a visitor, as `of` does.

        `without_key`: SDKs send no key with this request, so it is never required.
        """
        query, needs_key = request.query, self.needs_key and not without_key
        if needs_key or query.find(b"accountId=") >= 0 or query.find(b"sdkKey=") >= 0:
            self._check(query, *LOOKUP_PARAMETERS, needs_key)
        return self.default

    def query_key(self, query: bytes) -> str | None:
        """Return the SDK key in the query of a request with events, None if there is none."""
        raw = raw_query_value(query, b"env")
        if raw is None:
            return None
        default = self.default
        return default.sdk_key if raw == default.raw_key else parameter_text(raw)

    def batch_keys(self, request: Request) -> Keys:
        """Return the SDK keys in the query and in the Authorization header of a batch.

        If one of them is of another environment, it counts for all events. A header with a scheme, such as Basic, is
        for a proxy.
        """
        key = self.query_key(request.query)
        header = request.header(b"authorization")
        given = parameter_text(header) if header and b" " not in header else None
        return (key, given) if given is None or self.of_event(given) is not None else (given, given)

    def of_event(self, key: str | None) -> Environment | None:
        """Return the environment of an event that names this SDK key, None if it is not served here.

        Only the key decides, because the account in the query is a session id in PHP 1.20 and 1.21.
        """
        default = self.default
        if key is None or key == default.sdk_key:
            return default
        snapshot = default.mirror.current
        is_own = default.sdk_key is None if snapshot is None else key == snapshot.settings.sdk_key
        return default if is_own else None

    def _check(self, query: bytes, account_names: Sequence[bytes], key_names: Sequence[bytes], needs_key: bool) -> None:
        account_id = self._account_id()
        accounts = [given for name in account_names if (given := query_text(query, name)) is not None]
        keys = [given for name in key_names if (given := query_text(query, name)) is not None]
        if account_id and any(given != account_id for given in accounts):
            raise RequestError(400, MISMATCH)
        if any(self.of_event(given) is None for given in keys):
            raise RequestError(400, MISMATCH)
        if needs_key and not keys:
            raise RequestError(400, NO_KEY)

    def _account_id(self) -> str:
        """Return the account of the settings, before they are loaded the configured one; "" if there is none."""
        snapshot = self.default.mirror.current
        return self.default.events.identity.account_id if snapshot is None else snapshot.settings.account_id
