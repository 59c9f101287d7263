"""Every error that the gateway raises on purpose.

GatewayError
├── ConfigError        the configuration cannot be used; lists every problem
├── RequestError       the client's request cannot be served; carries the HTTP status
│   └── QueueFullError the event queue accepts no events at the moment (503)
├── StoreError         the store cannot be read or written at the moment (503)
├── LocationError      a location database cannot be used, or cannot be fetched
└── UpstreamError      the vendor's service did not answer as promised; carries its status

`core.SettingsError` stands apart: the core imports nothing of the gateway.
"""

from collections.abc import Sequence


class GatewayError(Exception):
    """Base of all errors below."""


class ConfigError(GatewayError):
    """The configuration cannot be used. `problems` has one line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class RequestError(GatewayError):
    """A request that is answered with `status` and `{"status":0,"error":message}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class QueueFullError(RequestError):
    """The event queue accepts no events at the moment: it is full, or the store does not respond."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message)


class StoreError(GatewayError):
    """The store could not do what it was asked. Nothing of it has been kept, unless only the response got lost.

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

    `status` is its HTTP status, 0 when there was none (network, time-out); `retry_after_seconds` is what it asked for.
    `cause` is the reason alone if there was no response, such as "Could not resolve host".
    """

    def __init__(self, message: str, status: int = 0, retry_after_seconds: float = 0.0, cause: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.cause = cause
