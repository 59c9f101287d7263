"""How requests name an environment, and what they may do there."""

from typing import NamedTuple

from tornado_gateway.errors import DisabledError


class Access(NamedTuple):
    """The names of an environment in requests. `sdk_keys` has the current key first, then the previous ones.

    Without a configured key, which is None, the settings come from a file and name the account and the key. `hosts` are
    in lower case and without port. `decides` is whether getFlag, trackEvent and setAttribute are served.
    `internal_events` is the value of INTERNAL_EVENTS. `is_from_file` is whether ENVIRONMENTS_FILE names it.
    """

    name: str = "default"
    account_id: str | None = None
    sdk_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    is_default: bool = True
    decides: bool = True
    webhook_token: str | None = None
    allowed_origins: tuple[str, ...] = ("*",)
    internal_events: str = "forward"
    is_from_file: bool = False

    @property
    def sdk_key(self) -> str | None:
        return self.sdk_keys[0] if self.sdk_keys else None

    def disabled(self) -> DisabledError:
        """Return the error of a request for a decision while `decides` is off."""
        return DisabledError(self.name if self.is_from_file else None)
