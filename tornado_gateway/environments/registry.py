"""The environment that a request, or an event, belongs to. Nothing else compares accounts or keys with those served."""

from tornado_gateway import core
from tornado_gateway.environments.environment import Environment
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


class Environments:
    """The environments of this process. At present there is one, `default`.

    The account in a query is optional, but must not be another one (wire contract A.1, E.7).
    """

    def __init__(self, default: Environment) -> None:
        self.default = default
        self._known: set[bytes] = {b""}  # queries that name no other account

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Check every query again, because the settings may be of another account."""
        self._known = {b""}

    def of(self, request: Request) -> Environment:
        """Return the environment of a request. Raise RequestError 400 if its query names another one.

        Before the first settings are loaded, no query is checked.
        """
        if request.query not in self._known:
            self._check(request.query)
        return self.default

    def query_key(self, query: bytes) -> str | None:
        """Return the SDK key in the query of a request with events, None if there is none."""
        raw = raw_query_value(query, b"env")
        if raw is None:
            return None
        default = self.default
        return default.sdk_key if raw == default.raw_key else parameter_text(raw)

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

    def _check(self, query: bytes) -> None:
        snapshot = self.default.mirror.current
        if snapshot is None:
            return
        settings = snapshot.settings
        for names, own in ((ACCOUNT_PARAMETERS, settings.account_id), (KEY_PARAMETERS, settings.sdk_key)):
            for name in names:
                given = query_text(query, name)
                if given is not None and given != own:
                    raise RequestError(400, "accountId or sdkKey does not match this gateway")
        if len(self._known) >= KNOWN_QUERIES:  # some clients add a random parameter; others are known again soon
            self._known = {b""}
        self._known.add(query)
