"""The rest of the table of options: clients, operators and logs."""

# ruff: noqa: RUF009  The table of options consists of the defaults of a frozen dataclass.

from dataclasses import dataclass, replace
from pathlib import Path

from tornado_gateway.config import kinds
from tornado_gateway.config.kinds import option
from tornado_gateway.config.table import OptionValues

_CLIENTS = "Browsers and operators"
_LOGS = "Logs"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AllOptionValues(OptionValues):
    """The value of every option, in our units."""

    cors_config_required: bool = option(
        _CLIENTS,
        kinds.boolean,
        "false",
        "Allow requests from pages of other origins (CORS). When off, such pages may"
        " send only events and requests that need a preflight, for a proxy that handles CORS.",
    )
    cors_allowed_origins: tuple[str, ...] = option(
        _CLIENTS,
        kinds.origins,
        "*",
        "Origins allowed by CORS. * allows every origin, https://*.shop.example those with one more label. A POST from"
        " a page of another origin gets a 403.",
    )
    client_key_required: bool = option(
        _CLIENTS,
        kinds.boolean,
        "false",
        "Reject requests without the SDK key (400), and events that name none. A wrong key is always rejected. Lookups"
        " need no key, because most SDKs send none with them: user details, lists and event segments. Aliases do:"
        " Android apps cannot set or read them then, and iOS apps cannot read them. REST callers add sdkKey.",
    )
    client_auth: str = option(
        _CLIENTS,
        kinds.one_of("off", "decisions", "all"),
        "off",
        "Which requests need a credential: none, those of getFlag, trackEvent and setAttribute, or those of all data"
        " routes. Credentials are client tokens and, with SDK_KEY_AUTH, SDK keys. `all` rejects requests with neither,"
        " such as list checks and user details of most server SDKs, and Android aliases.",
    )
    sdk_key_auth: bool = option(
        _CLIENTS,
        kinds.boolean,
        "true",
        "Accept an SDK key in the query or in a header as a credential. When off, only tokens are accepted, which thin"
        " SDKs cannot send.",
    )
    client_tokens: tuple[str, ...] = option(
        _CLIENTS,
        kinds.tokens,
        "",
        "Client tokens with all scopes for all environments, separated by commas, at least 20 characters each. Two of"
        " them are a rotation.",
        secret=True,
    )
    tokens_file: Path | None = option(
        _CLIENTS,
        kinds.file,
        None,
        "TOML file with the digests of client tokens, their scopes, environments, origins and expiry. It is read again"
        " when it changes.",
    )
    stream_max_connections: int = option(
        _CLIENTS,
        kinds.whole(0),
        "5000",
        "Streams of changes (GET /stream) of each worker. One address has at most a tenth of them. 0 disables streams.",
    )
    stream_keepalive_seconds: float = option(
        _CLIENTS,
        kinds.decimal(1, 3600),
        "15",
        "How often a stream of changes sends a comment, because proxies close silent connections.",
        unit="s",
    )
    stream_max_seconds: float = option(
        _CLIENTS,
        kinds.decimal(1, 864000),
        "3600",
        "After this time, plus or minus a fifth, a stream of changes ends and the client connects again.",
        unit="s",
    )
    stream_notify_per_second: int = option(
        _CLIENTS,
        kinds.whole(1),
        "500",
        "Notifications of a change that each worker sends in a second, because each one causes a request.",
    )
    stream_url: str = option(
        _CLIENTS,
        replace(kinds.url, parse=lambda text: kinds.parse_url(text) if text else ""),
        "",
        "Base URL of streams of changes for browsers, if it is not that of the gateway: a stream takes one of the six"
        " connections that a browser opens to a host over HTTP/1.1.",
    )
    webhook_token: str | None = option(
        _CLIENTS,
        kinds.token,
        None,
        "Token that webhook calls must send to refresh the settings, at least 16 characters. Without a token, webhooks"
        " are disabled.",
        secret=True,
    )
    admin_token: str | None = option(
        _CLIENTS,
        kinds.token,
        None,
        "Token of the console and of all other endpoints below /admin, at least 16 characters. If it is not set, the"
        " first start creates one in DATA_DIR/admin-token. Gateways that share a load balancer but not DATA_DIR need"
        " the same ADMIN_TOKEN.",
        secret=True,
    )

    log_level: str = option(
        _LOGS,
        kinds.one_of("ERROR", "INFO", "DEBUG", upper=True),
        "ERROR",
        "Minimum severity to log. ERROR includes warnings. The start and the stop are reported at every level.",
    )
    log_format: str = option(
        _LOGS,
        kinds.one_of("auto", "human", "json"),
        "auto",
        "Format of log lines. auto is human on a terminal and json elsewhere.",
    )
