"""Every error that the gateway raises on purpose.

GatewayError
├── ConfigError        the configuration cannot be used; lists every problem
├── StartError         a worker cannot start; names cause and remedy
├── RequestError       the client's request cannot be served; has the HTTP status
│   ├── DisabledError  an option disables the endpoint (403)
│   ├── AttemptsError  too many wrong tokens were sent (429); has the time until the next attempt
│   ├── QueueFullError the event queue accepts no events at the moment (503)
│   └── NotLoadedError no settings have been loaded yet (503)
├── StoreError         the store cannot be read or written at the moment (503)
├── LocationError      a location database cannot be used, or cannot be fetched
└── UpstreamError      the vendor's service failed; has its HTTP status

`core.SettingsError` stands apart: the core imports nothing of the gateway.
"""

import math
from collections.abc import Sequence
from http import HTTPStatus


class GatewayError(Exception):
    """Base of all errors below."""


class ConfigError(GatewayError):
    """The configuration cannot be used. `problems` has one line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StartError(GatewayError):
    """A worker cannot start. The message names the cause and the remedy."""


class RequestError(GatewayError):
    """A request that gets the response `{"status":0,"error":message}` with `status` and `headers`."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class DisabledError(RequestError):
    """DECISION_REQUIRED is off, or off for this environment."""

    def __init__(self) -> None:
        super().__init__(
            403, "Decision endpoints are disabled on this gateway. Set DECISION_REQUIRED=true to enable them."
        )


class AttemptsError(RequestError):
    """Too many wrong tokens were sent, so the one of this request was not checked."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = max(1, math.ceil(retry_after_seconds))
        headers = [(b"Retry-After", b"%d" % self.retry_after_seconds)]
        super().__init__(429, "too many wrong tokens were sent, try again later", headers)


class QueueFullError(RequestError):
    """The event queue accepts no events at the moment: it is full, or the store does not respond."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message)


class NotLoadedError(RequestError):
    """No settings have been loaded yet."""

    def __init__(self) -> None:
        super().__init__(503, "no settings have been loaded yet, see /ready")


class StoreError(GatewayError):
    """A failed operation of the store. It has stored nothing, unless only the reply was lost.

    `status` is that of the response to a request that needed the store.
    """

    status = 503


class LocationError(GatewayError):
    """A location database cannot be used, or cannot be fetched. `status` is MaxMind's HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class UpstreamError(GatewayError):
    """The vendor's service failed.

    `status` is its HTTP status, 0 if there was none (network error, time-out); `retry_after_seconds` is the pause that
    it requested. `cause` is the reason alone if there was no response, such as "Could not resolve host"; `is_timeout`
    if there was no progress for too long. `response` is the beginning of the body.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        retry_after_seconds: float = 0.0,
        cause: str = "",
        is_timeout: bool = False,
        response: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.response = response
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.cause = cause
        self.is_timeout = is_timeout


def reason_phrase(status: int, default: str = "Unknown") -> str:
    """Return the standard phrase of an HTTP status, `default` if it has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return default
