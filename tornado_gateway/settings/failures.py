"""Failed refreshes of settings: their reasons for people, their log lines, and the time until the next attempt."""

import asyncio
import logging
import re

from tornado_gateway import core
from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import ACCOUNT_OPTIONS, UpstreamError, describe_vwo
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.quantities import duration

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # after the first failed poll; later ones back off up to the polling interval
LONGEST_REASON = 1000  # characters; parts of the text come from VWO and the operating system

UNUSABLE = "The settings cannot be used"
_ADVICE = {  # at a start; later, the causes are elsewhere
    0: "Check the network and the proxy of this machine, and UPSTREAM_URL.",
    401: "Check {account_options}.",
    403: "Check {account_options}.",
}


class Failures:
    """The failures since the last success. `tried` is set once the first attempt has ended.

    `account_options` are the names of the options with the account and its key.
    """

    def __init__(self, poll_seconds: float, account_options: str = ACCOUNT_OPTIONS) -> None:
        self.tried = asyncio.Event()
        self.retry_seconds = 0.0
        self._account_options = account_options
        self._backoff = Backoff(RETRY_SECONDS, max(RETRY_SECONDS, poll_seconds))
        self._throttled = ThrottledLog(logger, condition="settings")

    def reset(self) -> None:
        self._backoff.reset()

    def add(
        self, error: Exception, current: core.Settings | None, age_seconds: float | None, *, is_logged: bool = True
    ) -> str:
        """Log a failure and return its reason. A new reason is logged at once, repetitions once a minute."""
        reason = describe_failure(error)
        self.retry_seconds = self._backoff.next()
        if is_logged:
            advice = _ADVICE.get(error.status, "") if isinstance(error, UpstreamError) else ""
            self._log(reason, advice.format(account_options=self._account_options), current, age_seconds)
        self.tried.set()
        return reason

    def _log(self, reason: str, advice: str, current: core.Settings | None, age_seconds: float | None) -> None:
        log = self._throttled
        if current is None:
            advised = f"{reason} {advice}".rstrip()  # the advice names the environment, the reason is that of all
            log.error(f"none: {reason}", "No settings loaded yet: %s Retrying in %.0f s.", advised, self.retry_seconds)
        else:
            age = duration(age_seconds or 0.0)
            log.error(
                f"old: {reason}",
                "Settings refresh failed: %s Continuing with version %s, %s old.",
                reason,
                current.version,
                age,
            )


def describe_failure(error: Exception) -> str:
    """Return why settings could not be refreshed, as one or more sentences. Equal failures have the same text."""
    if isinstance(error, UpstreamError):
        # The duration of a timeout varies.
        cause = re.sub(r" after \d+ (ms|milliseconds)\b.*", "", error.cause or str(error)) if not error.status else ""
        reason = f"{describe_vwo(error.status, cause)}."
    elif isinstance(error, core.SettingsError):
        reason = f"{UNUSABLE}: {error}."
    else:
        reason = f"The settings could not be read: {error}."
    return reason[:LONGEST_REASON]
