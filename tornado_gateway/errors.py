"""Every error that the gateway raises on purpose.

GatewayError
├── ConfigError        the configuration cannot be used; lists every problem
│   └── SettingsFileError  SETTINGS_FILE cannot be read, which is the only problem
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
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple


class ErrorCode(NamedTuple):
    """A code of error responses: its HTTP status, and the meaning for clients."""

    status: int
    meaning: str


# The codes of error responses. Clients compare them, so a code is never changed or removed. The first code of a status
# is the default of this status.
CODES: Mapping[str, ErrorCode] = {
    "invalid_request": ErrorCode(400, "A value is missing or wrong: `error` names it and the expected value"),
    "malformed_request": ErrorCode(400, "The bytes are no valid HTTP request, or the body has another coding"),
    "invalid_json": ErrorCode(400, "The body is not JSON, or not the expected kind of JSON"),
    "wrong_account": ErrorCode(400, "The account ID or SDK key belongs to another environment"),
    "key_required": ErrorCode(400, "The request needs the SDK key (`CLIENT_KEY_REQUIRED`)"),
    "environment_required": ErrorCode(400, "The request names no environment, and there is no default one"),
    "unknown_environment": ErrorCode(400, "The request names an environment that the gateway does not have"),
    "ambiguous_environment": ErrorCode(400, "The request names two environments"),
    "unauthorized": ErrorCode(401, "A token is required, or the token is wrong (`WWW-Authenticate`)"),
    "forbidden": ErrorCode(403, "The token, or the page that sends the request, does not allow this"),
    "decisions_disabled": ErrorCode(403, "`DECISION_REQUIRED` is off"),
    "webhooks_disabled": ErrorCode(403, "`WEBHOOK_TOKEN` is not set"),
    "origin_not_allowed": ErrorCode(403, "Pages of this origin must not send the request"),
    "not_found": ErrorCode(404, "The path, or the thing that the request names, does not exist"),
    "method_not_allowed": ErrorCode(405, "The path does not support this method (`Allow` lists the supported ones)"),
    "request_timeout": ErrorCode(408, "The request took too long to arrive"),
    "conflict": ErrorCode(409, "The thing exists, but not in the state that the request needs"),
    "body_too_large": ErrorCode(413, "The body exceeds a limit: `error` names the limit"),
    "unsupported_media_type": ErrorCode(415, "The body is not sent as JSON (`/admin` only)"),
    "unsupported_encoding": ErrorCode(415, "The body has another content encoding than gzip and deflate"),
    "unsupported_expectation": ErrorCode(417, "`Expect` has another value than `100-continue`"),
    "too_many_requests": ErrorCode(429, "Too many operators use this page at the same time"),
    "too_many_attempts": ErrorCode(429, "Too many wrong tokens were sent (`Retry-After`)"),
    "headers_too_large": ErrorCode(431, "The request line and headers are too large"),
    "internal_error": ErrorCode(500, "A fault of the gateway: its log has a traceback"),
    "unsupported_coding": ErrorCode(501, "The body has another transfer coding than chunked"),
    "unavailable": ErrorCode(503, "The gateway cannot serve the request now (`Retry-After`)"),
    "settings_not_loaded": ErrorCode(503, "No settings are loaded yet (`Retry-After`)"),
    "queue_full": ErrorCode(503, "The event queue accepts no events now (`Retry-After`)"),
    "store_unavailable": ErrorCode(503, "The store cannot be read or written now (`Retry-After`)"),
    "overloaded": ErrorCode(503, "There are too many connections or large bodies (`Retry-After`)"),
    "unsupported_version": ErrorCode(505, "The request has another version than HTTP/1.1 and HTTP/1.0"),
}
_DEFAULT_CODES = {code.status: name for name, code in reversed(list(CODES.items()))}


def default_code(status: int) -> str:
    """Return the code of an error that has no code of its own."""
    return _DEFAULT_CODES.get(status) or ("internal_error" if status >= 500 else "invalid_request")


class GatewayError(Exception):
    """Base of all errors below."""


class ConfigError(GatewayError):
    """The configuration cannot be used. `problems` has one line for each problem."""

    exit_code = 2  # of commands

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class SettingsFileError(ConfigError):
    """SETTINGS_FILE cannot be read. This is like a file that cannot be used, so it is no problem of an option."""

    exit_code = 1


class StartError(GatewayError):
    """A worker cannot start. The message names the cause and the remedy."""


class RequestError(GatewayError):
    """A request that gets the response `{"status":0,"error":message,"code":code}` with `status` and `headers`.

    `code` is one of CODES; without it, that of the status.
    """

    def __init__(
        self, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = (), *, code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.code = code or default_code(status)


class DisabledError(RequestError):
    """DECISION_REQUIRED is off, or decision_required of an `environment` in ENVIRONMENTS_FILE, which replaces it."""

    def __init__(self, environment: str | None = None) -> None:
        place, remedy = "on this gateway", "Set DECISION_REQUIRED=true to enable them."
        if environment is not None:
            place, remedy = f"for environment {environment}", "Set its decision_required = true in ENVIRONMENTS_FILE."
        super().__init__(403, f"Decision endpoints are disabled {place}. {remedy}", code="decisions_disabled")


class AttemptsError(RequestError):
    """Too many wrong tokens were sent, so the one of this request was not checked."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = max(1, math.ceil(retry_after_seconds))
        headers = [(b"Retry-After", b"%d" % self.retry_after_seconds)]
        super().__init__(429, "too many wrong tokens were sent, try again later", headers, code="too_many_attempts")


class QueueFullError(RequestError):
    """The event queue accepts no events at the moment: it is full, or the store does not respond."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, code="queue_full")


class NotLoadedError(RequestError):
    """No settings have been loaded yet."""

    def __init__(self) -> None:
        super().__init__(503, "no settings have been loaded yet, see /ready", code="settings_not_loaded")


class StoreError(GatewayError):
    """A failed operation of the store. It has stored nothing, unless only the reply was lost.

    `status` and `code` are those of the response to a request that needed the store.
    """

    status = 503
    code = "store_unavailable"


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


ACCOUNT_OPTIONS = "ACCOUNT_ID and SDK_KEY"


def account_options(file: object = None, environment: str | None = None) -> str:
    """Return the names of the account and its key, for advice. `file` is ENVIRONMENTS_FILE, None if it is not set."""
    if file is None:
        return ACCOUNT_OPTIONS
    owner = "" if environment is None else f" of environment {environment}"
    return f"account_id and sdk_key{owner} in {file}"


def reason_phrase(status: int, default: str = "Unknown") -> str:
    """Return the standard phrase of an HTTP status, `default` if it has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return default


_OF_VWO = {
    401: "VWO rejected the SDK key (401)",
    403: "VWO rejected the SDK key (403)",
    429: "VWO limited the request rate (429)",
}


def describe_vwo(status: int, cause: str = "") -> str:
    """Return why a request to VWO failed, in the words of all logs and of the doctor. `status` is 0 if none came.

    `cause` is the reason in the status line, or the reason why there is no response.
    """
    if not status:
        return f"VWO could not be reached ({cause})"
    return _OF_VWO.get(status) or f"VWO returned {status} {cause or reason_phrase(status, '')}".rstrip()
