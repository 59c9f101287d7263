"""The configuration: one table of options, read once at start into a frozen `Config` that is passed around.

Every option can be given as a flag, an environment variable or a line of an env file. The flags, `conf/gateway.env`
and `docs/configuration.md` come from the table, and nothing else in the gateway reads the environment.

    python -m tornado_gateway.config env|markdown
"""

# ruff: noqa: RUF009  The table of options stands in the defaults of a frozen dataclass.

import argparse
import difflib
import hashlib
import ipaddress
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, overload
from urllib.parse import urlsplit

from tornado_gateway.errors import ConfigError

__all__ = [
    "OPTIONS",
    "Config",
    "Option",
    "Row",
    "add_flags",
    "described",
    "given_flags",
    "load",
    "mask",
    "render_env_file",
    "render_markdown",
]

T = TypeVar("T")
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# A batch of 5000 events of about 1.6 KiB has to fit, whatever MAX_BODY_BYTES says about single requests.
_SMALLEST_BATCH_BYTES = 8 * 1024 * 1024


# ---- Kinds: how a value is read from text, and shown as text again ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A type of value. `parse` raises ValueError for what is not `expected`; `show` is its inverse."""

    expected: str
    parse: Callable[[str], T]
    show: Callable[[T], str] = str


def _matching(pattern: str, expected: str) -> Kind[str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(expected, parse)


def _whole(low: int, high: int | None = None) -> Kind[int]:
    def parse(text: str) -> int:
        # int() alone would also take "1_000", "+5" and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= (high or 10**18):
            raise ValueError(text)
        return int(text)

    return Kind(f"a whole number from {low} to {high}" if high else f"a whole number, at least {low}", parse)


def _decimal(low: float, high: float, scale: int = 1) -> Kind[float]:
    """A number that is `scale` times larger outside than inside: 1000 for milliseconds that we keep as seconds."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ValueError(text)
        return float(text) / scale

    return Kind(f"a number from {low:g} to {high:.0f}", parse, lambda value: f"{value * scale:.12g}")


def _one_of(*words: str, upper: bool = False) -> Kind[str]:
    def parse(text: str) -> str:
        word = text.upper() if upper else text.lower()
        if word not in words:
            raise ValueError(text)
        return word

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", parse)


_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def _parse_boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text.lower()]


def _parse_host(text: str) -> str:
    """A host name or an IP address; underscores are common in names of containers."""
    if re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", text):
        return text
    return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))


def _parse_url(text: str) -> str:
    # urlsplit drops tabs and line ends without a word, so look at the characters first.
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(text)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(text)
    if parts.query or parts.fragment or "@" in parts.netloc or text.endswith(("?", "#")):
        raise ValueError(text)
    return text.rstrip("/")


def _parse_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError(text)
    return path


def _list_of(item: Callable[[str], T], expected: str, show: Callable[[T], str] = str) -> Kind[tuple[T, ...]]:
    def parse(text: str) -> tuple[T, ...]:
        return tuple(item(part.strip()) for part in text.split(",")) if text else ()

    return Kind(expected, parse, lambda values: ",".join(map(show, values)))


def _parse_address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if parts.netloc != text or "@" in text or parts.hostname is None or parts.port == 0:
        raise ValueError(text)
    return _parse_host(parts.hostname), parts.port or 26379


def _show_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_origin(text: str) -> str:
    """An origin as browsers send it: scheme and host in lower case, no path."""
    if text == "*" or text == "null":
        return text
    origin = text.lower()
    if not re.fullmatch(
        r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]+)?|[a-z][a-z0-9+.-]*://\[[0-9a-f:.]+\](:[0-9]+)?", origin
    ):
        raise ValueError(text)
    return origin


_line = _matching(r"[^\x00-\x1f\x7f]+", "text on one line")
_word = _matching(r"[!-~]+", "text without blanks")
_boolean = Kind("true or false", _parse_boolean, lambda value: "true" if value else "false")
_host = Kind("a host name or an IP address", _parse_host)
_url = Kind("an http or https URL without user, query and fragment", _parse_url)
_path = Kind("a path", lambda text: Path(_line.parse(text)))
_file = Kind("a file that can be read", _parse_file)
_networks: Kind[tuple[Network, ...]] = _list_of(ipaddress.ip_network, "networks such as 10.0.0.0/8,fd00::/8")
_addresses = _list_of(_parse_address, "addresses such as sentinel-1:26379,sentinel-2:26379", _show_address)
_origins = _list_of(_parse_origin, "* or origins such as https://shop.example,https://admin.example:8443")


# ---- The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One line of the table. `name` and `unit` are the outside, `attribute` is the name inside."""

    section: str
    name: str
    kind: Kind[Any]
    default: str | None
    help: str
    unit: str = ""
    secret: bool = False
    attribute: str = ""

    @property
    def flag(self) -> str:
        return _flag(self.name)

    @property
    def file_name(self) -> str:
        """The variable that names a file holding the secret."""
        return f"{self.name}_FILE"

    @property
    def expected(self) -> str:
        return f"{self.kind.expected} ({self.unit})" if self.unit else self.kind.expected

    def shown(self, value: Any) -> str:
        """`value` as text in the outside's unit; secrets are masked."""
        if value is None:
            return ""
        text = self.kind.show(value)
        return mask(text) if self.secret else text


@overload
def _option(
    section: str, name: str, kind: Kind[T], default: str, words: str, *, unit: str = "", secret: bool = False
) -> T: ...


@overload
def _option(
    section: str, name: str, kind: Kind[T], default: None, words: str, *, unit: str = "", secret: bool = False
) -> T | None: ...


def _option(
    section: str, name: str, kind: Kind[Any], default: str | None, words: str, *, unit: str = "", secret: bool = False
) -> Any:
    option = Option(section, name, kind, default, words, unit, secret)
    value = None if default is None else kind.parse(default)
    return field(default=value, metadata={"option": option})


_ACCOUNT = "Account"
_SERVER = "Server"
_SETTINGS = "Settings and upstream"
_EVENTS = "Events"
_STORE = "Store"
_REDIS = "Redis"
_FACTS = "Location and device"
_CLIENTS = "Browsers and operators"
_LOGS = "Logs"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Config:
    """Every option's value, in our units. `Config()` has all defaults, which is enough for a test but not to serve."""

    account_id: int | None = _option(
        _ACCOUNT, "ACCOUNT_ID", _whole(1), None, "The account whose features are decided. Needs SDK_KEY."
    )
    sdk_key: str | None = _option(
        _ACCOUNT,
        "SDK_KEY",
        _word,
        None,
        "Key of the account's environment (production, staging, ...). Needs ACCOUNT_ID.",
        secret=True,
    )
    decision_required: bool = _option(
        _ACCOUNT,
        "DECISION_REQUIRED",
        _boolean,
        "false",
        "Serve getFlag, trackEvent and setAttribute; without it they answer 403.",
    )

    host: str = _option(
        _SERVER,
        "HOST",
        _host,
        "0.0.0.0",  # noqa: S104  A published port of a container arrives on its outer interface, never on loopback.
        "Address to listen on. The default is all interfaces, because a container's published port does not arrive on"
        " loopback. Use 127.0.0.1 when only a proxy on the same machine may connect.",
    )
    port: int = _option(
        _SERVER, "PORT", _whole(0, 65535), "8000", "Port to listen on. 0 takes any free port and needs WORKERS=1."
    )
    workers: int = _option(
        _SERVER,
        "WORKERS",
        _whole(0, 1024),
        "0",
        "Number of worker processes. 0 starts one for each core it may use. A parent process replaces those that end or"
        " hang.",
    )
    tls_cert_path: Path | None = _option(
        _SERVER, "TLS_CERT_PATH", _file, None, "Certificate chain (PEM) to serve HTTPS with. Needs TLS_KEY_PATH."
    )
    tls_key_path: Path | None = _option(
        _SERVER, "TLS_KEY_PATH", _file, None, "Private key (PEM) of TLS_CERT_PATH, without a passphrase."
    )
    max_body_bytes: int = _option(
        _SERVER,
        "MAX_BODY_BYTES",
        _whole(1024, 2**30),
        "1048576",
        "Largest request body; a larger one is answered with 413. Batches of events may always have 8 MiB.",
        unit="bytes",
    )
    keep_alive_seconds: float = _option(
        _SERVER,
        "KEEP_ALIVE_SECONDS",
        _decimal(0.1, 86400),
        "75",
        "How long an idle connection stays open. Choose more than the load balancer in front does.",
        unit="s",
    )
    shutdown_seconds: float = _option(
        _SERVER,
        "SHUTDOWN_SECONDS",
        _decimal(0, 3600),
        "30",
        "How long a shutdown may take to finish requests and to send events; what is left stays in the store.",
        unit="s",
    )

    upstream_url: str = _option(
        _SETTINGS, "UPSTREAM_URL", _url, "https://dev.visualwebsiteoptimizer.com", "Where the settings come from."
    )
    collect_url: str = _option(
        _SETTINGS,
        "COLLECT_URL",
        replace(_url, parse=lambda text: _parse_url(text) if text else ""),
        "",
        "Where events are sent. When it is not set, events go to UPSTREAM_URL.",
    )
    poll_seconds: float = _option(
        _SETTINGS,
        "POLLING_TIME",
        _decimal(100, 86400000, scale=1000),
        "60000",
        "How often upstream is asked for changed settings.",
        unit="ms",
    )
    socket_timeout_seconds: float = _option(
        _SETTINGS,
        "SOCKET_TIMEOUT",
        _decimal(0.1, 300),
        "5",
        "Deadline of one request to upstream and of one command to Redis, connecting included.",
        unit="s",
    )
    settings_file: Path | None = _option(
        _SETTINGS,
        "SETTINGS_FILE",
        _file,
        None,
        "A settings document (JSON) to start with while there is no newer one. Without SDK_KEY the gateway works"
        " offline from this file: it does not poll, and sends events only if UPSTREAM_URL or COLLECT_URL is set.",
    )
    sdk_name: str = _option(
        _SETTINGS,
        "SDK_NAME",
        _word,
        "fme-gateway",
        "The name that the gateway gives itself in event documents and in queries to upstream.",
    )

    event_ack: str = _option(
        _EVENTS,
        "EVENT_ACK",
        _one_of("durable", "fast"),
        "durable",
        "When a request is answered: durable waits until its events are in the store; fast does not wait, and a crash"
        " can lose what was accepted within the last moments.",
    )
    events_per_request: int = _option(
        _EVENTS,
        "EVENTS_PER_REQUEST",
        _whole(1, 5000),
        "100",
        "Number of events in one request to upstream; that many waiting events start a flush.",
        unit="events",
    )
    max_events_per_request: int = _option(
        _EVENTS,
        "MAX_EVENTS_PER_REQUEST",
        _whole(1, 5000),
        "5000",
        "Maximum number of events in one batch to upstream, which accepts 5000. Larger batches of SDKs are accepted and"
        " split.",
        unit="events",
    )
    flush_seconds: float = _option(
        _EVENTS,
        "FLUSH_EVENTS_INTERVAL",
        _decimal(0.1, 86400),
        "600",
        "Longest time that an event waits before it is sent, however few there are.",
        unit="s",
    )
    event_queue_limit: int = _option(
        _EVENTS,
        "EVENT_QUEUE_LIMIT",
        _whole(1),
        "1000000",
        "Maximum number of undelivered events. Beyond it, new events are rejected (see EVENT_QUEUE_FULL).",
        unit="events",
    )
    event_queue_full: str = _option(
        _EVENTS,
        "EVENT_QUEUE_FULL",
        _one_of("drop", "refuse"),
        "drop",
        "What getFlag does while events cannot be stored: drop responds with the decision and counts its events as"
        " rejected; refuse returns 503. trackEvent, setAttribute and events of SDKs always get a 503.",
    )
    dead_letter_limit: int = _option(
        _EVENTS,
        "DEAD_LETTER_LIMIT",
        _whole(0),
        "100000",
        "Maximum number of dead letters per worker (with Redis: of the account). Beyond it, the oldest are discarded.",
        unit="events",
    )

    data_dir: Path = _option(
        _STORE,
        "DATA_DIR",
        _path,
        "./data",
        "Directory of the embedded store and of downloaded databases. Keep it on a disk that outlives the process.",
    )
    store_sync: str = _option(
        _STORE,
        "STORE_SYNC",
        _one_of("normal", "full"),
        "normal",
        "Embedded store: normal loses nothing when the process dies, but a power cut can take the last moment; full"
        " also survives the power cut, with an fsync for every commit.",
    )
    store_namespace: str | None = _option(
        _STORE,
        "STORE_NAMESPACE",
        _matching(r"[A-Za-z0-9._:-]{1,100}", "letters, digits and . _ : -, at most 100"),
        None,
        "Name that separates the stored data of environments that share a Redis or a DATA_DIR. The default is"
        " derived from ACCOUNT_ID and SDK_KEY (a short hash, from which the key cannot be recovered). Set it to keep"
        " aliases and stored decisions when the key of an environment changes.",
    )
    sticky_decisions: bool = _option(
        _STORE,
        "STICKY_DECISIONS",
        _boolean,
        "false",
        "Remember each user's variation, so that it survives changes of weights and segments.",
    )
    sticky_seconds: float = _option(
        _STORE,
        "STICKY_SECONDS",
        _decimal(1, 315360000),
        "7776000",
        "How long a decision is remembered (the default is 90 days).",
        unit="s",
    )
    aliasing_enabled: bool = _option(
        _STORE,
        "ALIASING_ENABLED",
        _boolean,
        "false",
        "Resolve aliases of user ids before deciding and tracking, as SDKs do when aliasing is on.",
    )

    redis_host: str | None = _option(
        _REDIS,
        "REDIS_HOST",
        _host,
        None,
        "Redis server. Without it and without REDIS_SENTINELS the embedded store in DATA_DIR is used.",
    )
    redis_port: int = _option(_REDIS, "REDIS_PORT", _whole(1, 65535), "6379", "Port of REDIS_HOST.")
    redis_username: str | None = _option(_REDIS, "REDIS_USERNAME", _line, None, "User name (Redis ACL).")
    redis_password: str | None = _option(_REDIS, "REDIS_PASSWORD", _line, None, "Password.", secret=True)
    redis_cluster: bool = _option(
        _REDIS, "REDIS_CLUSTER", _boolean, "false", "REDIS_HOST is a node of a Redis Cluster."
    )
    redis_sentinels: tuple[tuple[str, int], ...] = _option(
        _REDIS,
        "REDIS_SENTINELS",
        _addresses,
        "",
        "Sentinels that know the master; they replace REDIS_HOST. The port 26379 can be left out.",
    )
    redis_sentinel_master: str | None = _option(
        _REDIS, "REDIS_SENTINEL_MASTER", _word, None, "The master's name at the sentinels. Needs REDIS_SENTINELS."
    )
    redis_enable_tls: bool = _option(_REDIS, "REDIS_ENABLE_TLS", _boolean, "false", "Connect to Redis with TLS.")
    redis_tls_ca_path: Path | None = _option(
        _REDIS, "REDIS_TLS_CA_PATH", _file, None, "Certificates (PEM) of the authorities that Redis is checked against."
    )
    redis_tls_cert_path: Path | None = _option(
        _REDIS, "REDIS_TLS_CERT_PATH", _file, None, "Client certificate (PEM), when Redis asks for one."
    )
    redis_tls_key_path: Path | None = _option(
        _REDIS, "REDIS_TLS_KEY_PATH", _file, None, "Private key (PEM) of REDIS_TLS_CERT_PATH."
    )
    redis_tls_reject_unauthorized: bool = _option(
        _REDIS,
        "REDIS_TLS_REJECT_UNAUTHORIZED",
        _boolean,
        "false",
        "Refuse a Redis whose certificate or host name does not check. Set it to true outside of tests.",
    )

    maxmind_user_id: int | None = _option(
        _FACTS,
        "MAXMIND_USER_ID",
        _whole(1),
        None,
        "MaxMind account that the location database is downloaded with. Needs MAXMIND_LICENSE_KEY.",
    )
    maxmind_license_key: str | None = _option(
        _FACTS, "MAXMIND_LICENSE_KEY", _word, None, "Licence key of MAXMIND_USER_ID.", secret=True
    )
    maxmind_db_path: Path | None = _option(
        _FACTS,
        "MAXMIND_DB_PATH",
        _path,
        None,
        "A location database (.mmdb) of your own. When there is none, locations are unknown and nothing else changes.",
    )
    geo_map_file: Path | None = _option(
        _FACTS,
        "GEO_MAP_FILE",
        _file,
        None,
        'Other spellings of places (JSON), e.g. {"country":{"Czechia":"Czech Republic"}}.',
    )
    ua_map_file: Path | None = _option(
        _FACTS,
        "UA_MAP_FILE",
        _file,
        None,
        'Other spellings of device facts (JSON), e.g. {"device_type":{"tablet":"mobile"}}.',
    )
    trusted_proxies: tuple[Network, ...] = _option(
        _FACTS,
        "TRUSTED_PROXIES",
        _networks,
        "",
        "Networks whose X-Forwarded-For and X-Forwarded-Proto are believed. By default nobody's.",
    )
    client_ip_fallback: str = _option(
        _FACTS,
        "CLIENT_IP_FALLBACK",
        _one_of("browser", "always", "never"),
        "browser",
        "Whose connection's address stands in for a missing ipAddress: only browsers', everybody's, nobody's. A server"
        " SDK's address is its application's, not the user's.",
    )

    cors_config_required: bool = _option(
        _CLIENTS, "CORS_CONFIG_REQUIRED", _boolean, "false", "Answer browsers of other origins (CORS)."
    )
    cors_allowed_origins: tuple[str, ...] = _option(
        _CLIENTS, "CORS_ALLOWED_ORIGINS", _origins, "*", "Origins that CORS is granted to; * is everyone."
    )
    webhook_token: str | None = _option(
        _CLIENTS,
        "WEBHOOK_TOKEN",
        _word,
        None,
        "Token that a webhook call has to carry to make the gateway fetch the settings; without one webhooks are off.",
        secret=True,
    )
    admin_token: str | None = _option(
        _CLIENTS,
        "ADMIN_TOKEN",
        _word,
        None,
        "Token of the console and of all other endpoints below /admin. If it is not set, the first start creates one in"
        " DATA_DIR/admin-token. Gateways that share a load balancer but not DATA_DIR need the same ADMIN_TOKEN.",
        secret=True,
    )

    log_level: str = _option(
        _LOGS, "LOG_LEVEL", _one_of("ERROR", "INFO", "DEBUG", upper=True), "ERROR", "The least that is logged."
    )
    log_format: str = _option(
        _LOGS,
        "LOG_FORMAT",
        _one_of("auto", "human", "json"),
        "auto",
        "Shape of log lines. auto is human on a terminal and json elsewhere.",
    )

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.collect_url:
            object.__setattr__(self, "collect_url", self.upstream_url)

    def __repr__(self) -> str:
        """What differs from the default, secrets masked."""
        values = [(option, getattr(self, option.attribute)) for option in OPTIONS]
        shown = [f"{o.attribute}={o.shown(value)!r}" for o, value in values if value != _DEFAULTS[o.attribute]]
        return f"Config({', '.join(shown)})"

    def source(self, name: str) -> str:
        """Where the value of the variable `name` came from: "flag", "environment", "file PATH:LINE" or "default".

        A secret that was read from a file has the file's variable in it: "environment SDK_KEY_FILE".
        """
        return self.sources.get(_BY_NAME[name].name, "default")

    @property
    def is_offline(self) -> bool:
        """Whether the settings come from SETTINGS_FILE only, without polling."""
        return self.sdk_key is None

    @property
    def namespace(self) -> str:
        """STORE_NAMESPACE, or the account with a short hash of the key, so that environments never mix."""
        if self.store_namespace is not None:
            return self.store_namespace
        if self.sdk_key is None:
            return self.former_namespace
        digest = hashlib.sha256(f"{self.account_id}:{self.sdk_key}".encode()).hexdigest()
        return f"{self.former_namespace}:{digest[:12]}"

    @property
    def former_namespace(self) -> str:
        """The name that version 0.1 used."""
        return str(self.account_id or "file")

    @property
    def worker_count(self) -> int:
        """WORKERS with 0 resolved to the cores that this process may use."""
        if self.workers:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def max_batch_bytes(self) -> int:
        """Largest body of a batch of events."""
        return max(self.max_body_bytes, _SMALLEST_BATCH_BYTES)


OPTIONS = tuple(replace(f.metadata["option"], attribute=f.name) for f in fields(Config) if "option" in f.metadata)
SECTIONS = tuple(dict.fromkeys(option.section for option in OPTIONS))
_BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}
_BY_FILE_NAME: dict[str, Option] = {option.file_name: option for option in OPTIONS if option.secret}
_NAMES = (*_BY_NAME, *_BY_FILE_NAME)
_DEFAULTS = {option.attribute: getattr(Config(), option.attribute) for option in OPTIONS}


def _option_name(name: str) -> str:
    """NAME for NAME_FILE, any other name as it is."""
    return _BY_FILE_NAME[name].name if name in _BY_FILE_NAME else name


# ---- Reading ---------------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    text: str
    source: str


@dataclass(slots=True)
class _Findings:
    """What is wrong so far, and the options about which nothing more can be said."""

    problems: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def add(self, name: str, source: str, expected: str, got: str) -> None:
        self.problems.append(f"{name} ({source}): expected {expected}, got {got}")
        self.broken.add(_option_name(name))

    def add_unknown(self, key: str, source: str, expected: str, spell: Callable[[str], str]) -> None:
        name = key.lstrip("-").replace("-", "_").upper()
        near = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"; did you mean {spell(near[0])}?" if near else ""
        self.problems.append(f"{key} ({source}): expected {expected} of the gateway{hint}")
        self.broken.update(map(_option_name, near))


def load(argv_flags: Mapping[str, str], environ: Mapping[str, str], env_file: Path | None = None) -> Config:
    """The configuration from flags, environment and file, in this order of precedence. An empty value is not set.

    The keys of `argv_flags` are flags or variables: `--redis-host`, `redis-host`, `REDIS_HOST`.
    Raises `ConfigError` with all problems at once.
    """
    findings = _Findings()
    layers = (
        _read_env_file(env_file, findings) if env_file else {},
        {name: _Given(environ[name], "environment") for name in _NAMES if name in environ},
        _read_flags(argv_flags, findings),
    )
    given = {name: value for layer in layers for name, value in layer.items() if value.text.strip()}
    _read_secret_files(given, findings)
    config = _parsed(given, findings)
    for names, expected, got in _contradictions(config):
        if findings.broken.isdisjoint(names):
            source = config.sources.get(names[0], "not set")
            findings.problems.append(f"{names[0]} ({source}): expected {expected}, got {got}")
    if findings.problems:
        raise ConfigError(findings.problems)
    return config


def _parsed(given: Mapping[str, _Given], findings: _Findings) -> Config:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        if option.name not in given:
            continue
        text, source = given[option.name]
        try:
            values[option.attribute] = option.kind.parse(text if option.secret else text.strip())
            sources[option.name] = source
        except ValueError:
            findings.add(option.name, source, option.expected, _quoted(option, text))
    return Config(**values, sources=sources)


def _contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Every rule about more than one option: the names it is about, what was expected of the first, what was got."""
    c = config
    if c.account_id is None and c.sdk_key is None and c.settings_file is None:
        names = ("ACCOUNT_ID", "SDK_KEY", "SETTINGS_FILE")
        yield names, "ACCOUNT_ID and SDK_KEY, or SETTINGS_FILE to work offline from a settings document", "none of them"
    for one, other, is_mutual in (
        ("ACCOUNT_ID", "SDK_KEY", True),
        ("MAXMIND_USER_ID", "MAXMIND_LICENSE_KEY", True),
        ("TLS_CERT_PATH", "TLS_KEY_PATH", True),
        ("REDIS_SENTINEL_MASTER", "REDIS_SENTINELS", True),
        ("REDIS_TLS_CERT_PATH", "REDIS_TLS_KEY_PATH", False),  # a certificate's file may hold its key as well
    ):
        has_one, has_other = (bool(getattr(c, _BY_NAME[name].attribute)) for name in (one, other))
        if has_other and not has_one:
            yield (one, other), f"a value, because {other} is set", "nothing"
        if is_mutual and has_one and not has_other:
            yield (other, one), f"a value, because {one} is set", "nothing"
    if c.redis_cluster and c.redis_sentinels:
        yield ("REDIS_CLUSTER", "REDIS_SENTINELS"), "false, because REDIS_SENTINELS is set", "true"
    elif c.redis_cluster and not c.redis_host:
        yield ("REDIS_HOST", "REDIS_CLUSTER"), "a node of the cluster, because REDIS_CLUSTER is true", "nothing"
    if c.events_per_request > c.max_events_per_request:
        expected = f"at most MAX_EVENTS_PER_REQUEST ({c.max_events_per_request})"
        yield ("EVENTS_PER_REQUEST", "MAX_EVENTS_PER_REQUEST"), expected, f'"{c.events_per_request}"'
    if c.event_queue_limit < c.events_per_request:
        expected = f"at least EVENTS_PER_REQUEST ({c.events_per_request})"
        yield ("EVENT_QUEUE_LIMIT", "EVENTS_PER_REQUEST"), expected, f'"{c.event_queue_limit}"'
    if "*" in c.cors_allowed_origins and len(c.cors_allowed_origins) > 1:
        shown = ",".join(c.cors_allowed_origins)
        yield ("CORS_ALLOWED_ORIGINS",), "either * or a list of origins", f'"{shown}"'
    if c.port == 0 and c.workers != 1:
        yield ("WORKERS", "PORT"), "1, because every worker would take another free port with PORT=0", f'"{c.workers}"'


def _read_flags(argv_flags: Mapping[str, str], findings: _Findings) -> dict[str, _Given]:
    given = {}
    for key, text in argv_flags.items():
        name = key.lstrip("-").replace("-", "_").upper()
        if name in _NAMES:
            given[name] = _Given(text, "flag")
        else:
            findings.add_unknown(key, "flag", "a flag", _flag)
    return given


def _read_env_file(path: Path, findings: _Findings) -> dict[str, _Given]:
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        findings.problems.append(
            f'--env-file (flag): expected a text file that can be read, got "{path}" ({_why(error)})'
        )
        findings.broken.update(_BY_NAME)  # whatever seems to be missing may stand in that file
        return {}
    given: dict[str, _Given] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        source = f"file {path}:{number}"
        name, value, problem = _parse_line(line)
        if name and name not in _NAMES:
            findings.add_unknown(name, source, "a variable", str)
        elif problem:  # never with the line itself: it may hold a secret
            findings.add(name or "line", source, *problem)
        elif name in given:
            findings.add(name, source, "every variable once", f"it again after {given[name].source}")
        else:
            given[name] = _Given(value, source)
    return given


_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:\s#.*)?""")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def _parse_line(line: str) -> tuple[str, str, tuple[str, str] | None]:
    """Name, value and, if it cannot be read, what was expected and got."""
    assignment = _ASSIGNMENT.fullmatch(line.strip())
    if not assignment:
        return "", "", ("KEY=VALUE or a comment", "something else")
    name, text = assignment.groups()
    if not text.startswith(("'", '"')):
        return name, re.split(r"(?:^|\s+)#", text, maxsplit=1)[0], None
    quoted = _QUOTED.fullmatch(text)
    if not quoted:
        return name, "", ("a closing quote and nothing after it but a comment", "something else")
    if quoted[2] is None:
        return name, quoted[1], None
    return name, re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), quoted[2]), None


def _read_secret_files(given: dict[str, _Given], findings: _Findings) -> None:
    """Replace every NAME_FILE by NAME with the content of that file."""
    for file_name, option in _BY_FILE_NAME.items():
        if file_name not in given:
            continue
        path, source = given.pop(file_name)
        if option.name in given:
            expected = f"either {option.name} or {file_name}"
            findings.add(file_name, source, expected, f"{option.name} as well ({given.pop(option.name).source})")
            continue
        try:
            content = Path(path.strip()).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            findings.add(file_name, source, "a text file that can be read", f"{_quoted_path(path)} ({_why(error)})")
            continue
        if not content:
            findings.add(file_name, source, "a file that holds the secret", f"{_quoted_path(path)}, which is empty")
            continue
        given[option.name] = _Given(content, f"{source} {file_name}")


def _why(error: OSError | ValueError) -> str:
    """The reason without the content: an error of the decoder carries the bytes, which may be a secret."""
    return (error.strerror or "unreadable") if isinstance(error, OSError) else "not UTF-8"


def _quoted(option: Option, text: str) -> str:
    if option.secret:
        return _in_quotes(mask(text))
    # redis://:password@host in REDIS_HOST is a common mistake, and no reason to print the password.
    return _in_quotes(re.sub(r"^([a-z]+://)?.*@", r"\1****@", text, flags=re.DOTALL | re.IGNORECASE))


def _quoted_path(text: str) -> str:
    """A path in place of a secret. Without a slash it is more likely the secret itself, put into NAME_FILE."""
    return _in_quotes(text if "/" in text else mask(text))


def _in_quotes(text: str) -> str:
    return json.dumps(text if len(text) <= 100 else f"{text[:100]}...", ensure_ascii=False)


def mask(secret: str) -> str:
    """A secret as it may be shown: its last four characters, or none of them if it is short."""
    return f"****{secret[-4:]}" if len(secret) >= 8 else "****"


# ---- Flags -----------------------------------------------------------------------------------------------------------


def _flag(name: str) -> str:
    return f"--{name.lower().replace('_', '-')}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` a flag for every option, and `--env-file`. A boolean's flag may stand without a value."""
    parser.add_argument("--env-file", type=Path, metavar="PATH", help="file of KEY=VALUE lines to read options from")
    for section in SECTIONS:
        group = parser.add_argument_group(section)
        for option in OPTIONS:
            if option.section == section:
                _add_flag(group, option)


def _add_flag(group: argparse._ArgumentGroup, option: Option) -> None:
    words = option.help if not option.default else f"{option.help} [{option.default}{option.unit and ' '}{option.unit}]"
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": "PATH" if option.kind in (_path, _file) else "X"}
    if option.kind is _boolean:
        common |= {"nargs": "?", "const": "true", "metavar": "BOOL"}
    group.add_argument(option.flag, dest=option.name, help=words.replace("%", "%%"), **common)
    if option.secret:
        words = f"File that holds {option.name}; a flag's value can be seen in the list of processes."
        group.add_argument(
            _flag(option.file_name), dest=option.file_name, default=argparse.SUPPRESS, metavar="PATH", help=words
        )


def given_flags(namespace: argparse.Namespace, rest: Sequence[str] = ()) -> dict[str, str]:
    """The flags in what `parse_known_args` returned, for `load`; unknown ones become problems there."""
    given = {name: value for name, value in vars(namespace).items() if name in _NAMES}
    unknown = [
        item.partition("=")[0]
        for before, item in zip(("", *rest), rest, strict=False)
        # What follows an unknown flag is taken for its value; it may be a secret and is not repeated.
        if item.startswith("-") or not before.startswith("-") or "=" in before
    ]
    return given | dict.fromkeys(unknown, "")


# ---- Showing ---------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One option as an operator sees it."""

    name: str
    value: str
    source: str
    default: str
    help: str


def described(config: Config) -> list[Row]:
    """Every option with its value in the outside's unit, secrets masked, in the order of the table."""
    return [
        Row(o.name, o.shown(getattr(config, o.attribute)), config.source(o.name), o.default or "", o.help)
        for o in OPTIONS
    ]


_ENV_FILE_HEAD = """\
# Options of the gateway, all at their defaults. Remove the # in front of a line to change it.
# Read by `tornado-gateway serve --env-file`, by `docker run --env-file` and by systemd's EnvironmentFile.
# Rendered by: python -m tornado_gateway.config env
"""


def render_env_file() -> str:
    """`conf/gateway.env`: every option at its default, as comments."""
    blocks = [_ENV_FILE_HEAD]
    for section in SECTIONS:
        blocks.append(f"\n# {'-' * 4} {section} {'-' * (70 - len(section))}\n")
        for option in OPTIONS:
            if option.section == section:
                blocks.append(_env_file_block(option))
    return "".join(blocks)


def _env_file_block(option: Option) -> str:
    names = [f"#{option.name}={option.default or ''}"] + ([f"#{option.file_name}="] if option.secret else [])
    words = textwrap.wrap(option.help, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join(["", *words, f"# Expects {option.expected}.", *names, ""])


def render_markdown() -> str:
    """`docs/configuration.md`: the table by section, then how values are read and what some of them mean together."""
    parts = [_MARKDOWN_HEAD]
    for section in SECTIONS:
        parts.append(
            f"\n## {section}\n\n| Variable | Flag | Default | Unit | Expects | Meaning |\n|---|---|---|---|---|---|\n"
        )
        parts += [_markdown_line(option) for option in OPTIONS if option.section == section]
    parts.append(_MARKDOWN_TAIL)
    return "".join(parts)


def _markdown_line(option: Option) -> str:
    words = f"{option.help} Secret: can be given as `{option.file_name}`." if option.secret else option.help
    default = f"`{option.default}`" if option.default else ""
    cells = (f"`{option.name}`", f"`{option.flag}`", default, option.unit, option.kind.expected, words)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


_MARKDOWN_HEAD = """\
# Configuration

<!-- Rendered by: python -m tornado_gateway.config markdown -->

Every option has one name in three spellings: the environment variable `POLLING_TIME`, the flag `--polling-time`,
and the line `POLLING_TIME=60000` of an env file. A minimal configuration is two variables:

```sh
ACCOUNT_ID=123456 SDK_KEY=... tornado-gateway serve
```

or, offline from a settings document:

```sh
tornado-gateway serve --settings-file conf/sample-settings.json
```

`tornado-gateway config` prints every value and where it came from. [`conf/gateway.env`](../conf/gateway.env) has
every option at its default.
"""

_MARKDOWN_TAIL = """
## Where values come from

A flag is preferred to an environment variable, an environment variable to a line of the file named by `--env-file`,
and that line to the default. An empty value counts as not set, wherever it stands. Environment variables that are
not in the tables are ignored; an unknown flag, and an unknown variable in the env file, is an error.

Booleans are `true`, `yes`, `on`, `1` or `false`, `no`, `off`, `0`, in any case. The flag of a boolean may stand
alone: `--redis-enable-tls`. Lists are separated by commas. Relative paths start at the working directory.

### The env file

```sh
# a comment
ACCOUNT_ID=123456
export LOG_LEVEL=INFO            # a comment after a blank and a number sign
REDIS_PASSWORD='taken # literally \\n'
WEBHOOK_TOKEN="with-\\"escapes\\""
```

Inside double quotes `\\n`, `\\r`, `\\t` are control characters and a backslash makes any other character literal.
Variables are not expanded, a value ends with its line, and every variable may occur once.

### Secrets

A secret can be given as a file: `SDK_KEY_FILE=/run/secrets/sdk_key`. Blanks and line ends around the file's content
are removed. A secret and its file together, an empty file and an unreadable one are errors. Prefer files to flags:
a flag's value can be seen in the list of processes. Secrets are shown nowhere, except for the last four characters
of those with eight or more.

### Errors

The gateway does not start with a configuration that it cannot use. It lists everything that is wrong at once: which
variable, where it was set, what was expected and what was got:

```
POLLING_TIM (file gateway.env:3): expected a variable of the gateway; did you mean POLLING_TIME?
REDIS_PORT (environment): expected a whole number from 1 to 65535, got "redis"
EVENTS_PER_REQUEST (flag): expected at most MAX_EVENTS_PER_REQUEST (500), got "600"
```

## Options that belong together

- `ACCOUNT_ID` and `SDK_KEY`: both, or neither and `SETTINGS_FILE`. With all three the file is only used until
  settings have been fetched.
- `MAXMIND_USER_ID` and `MAXMIND_LICENSE_KEY`: both or neither. `TLS_CERT_PATH` and `TLS_KEY_PATH`: both or neither.
  `REDIS_TLS_KEY_PATH` needs `REDIS_TLS_CERT_PATH`.
- `REDIS_SENTINELS` and `REDIS_SENTINEL_MASTER`: both or neither, and not with `REDIS_CLUSTER`, which needs
  `REDIS_HOST`.
- `EVENTS_PER_REQUEST` is at most `MAX_EVENTS_PER_REQUEST` and at most `EVENT_QUEUE_LIMIT`.
- `PORT=0` needs `WORKERS=1`; `*` in `CORS_ALLOWED_ORIGINS` stands alone.
- Files that are named must exist, except `MAXMIND_DB_PATH`: without a location database, locations are unknown.

## What is kept, and when

With `EVENT_ACK=durable` an answer means that the request's events are in the store; they are deleted only after
upstream has taken them. They survive a crash of the gateway. With the embedded store and `STORE_SYNC=normal` a
power cut can lose the last moment; `STORE_SYNC=full` closes that gap. With `EVENT_ACK=fast` answers do not wait,
and a crash loses what had not reached the store.

Upstream gets `EVENTS_PER_REQUEST` events at a time, at the latest after `FLUSH_EVENTS_INTERVAL`. When upstream is
away, events wait, up to `EVENT_QUEUE_LIMIT`; beyond it, requests that bring events are refused with 503, so that
callers know and can repeat them.

Without Redis each machine has its own store in `DATA_DIR`. With Redis all gateways share settings, events, aliases
and remembered variations; `DATA_DIR` is then where events go while Redis is away.
"""
