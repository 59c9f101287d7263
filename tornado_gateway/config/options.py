"""The table of options: one field of `Config` for each, with its name outside, kind, default and description."""

# ruff: noqa: RUF009  The table of options consists of the defaults of a frozen dataclass.

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from tornado_gateway.config import kinds
from tornado_gateway.config.cores import usable_cores
from tornado_gateway.config.kinds import Network, Option, option

# A batch of 5000 events of about 1.6 KiB has to fit, whatever MAX_BODY_BYTES says about single requests.
_SMALLEST_BATCH_BYTES = 8 * 1024 * 1024


class Account(NamedTuple):
    """The account ID and SDK key in use; both are empty when the gateway works offline."""

    id: str
    sdk_key: str


_ACCOUNT = "Account"
_SERVER = "Server"
_SETTINGS = "Settings and VWO"
_EVENTS = "Events"
_STORE = "Store"
_REDIS = "Redis"
_FACTS = "Location and device"
_CLIENTS = "Browsers and operators"
_LOGS = "Logs"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Config:
    """Every option's value, in our units. `Config()` has all defaults, which is enough for a test but not to serve."""

    account_id: int | None = option(_ACCOUNT, kinds.whole(1), None, "VWO account ID. Needs SDK_KEY.")
    sdk_key: str | None = option(
        _ACCOUNT,
        kinds.word,
        None,
        "SDK key of one environment of the account (production, staging, ...). Needs ACCOUNT_ID.",
        secret=True,
    )
    decision_required: bool = option(
        _ACCOUNT,
        kinds.boolean,
        "false",
        "Enable the decision endpoints getFlag, trackEvent and setAttribute. When off, they return 403.",
    )

    host: str = option(
        _SERVER,
        kinds.host,
        "0.0.0.0",  # noqa: S104  A published port of a container arrives on its outer interface, never on loopback.
        "Address to bind to. Defaults to all interfaces so that published container ports work. Use 127.0.0.1 if only a"
        " proxy on the same machine may connect.",
    )
    port: int = option(
        _SERVER, kinds.whole(0, 65535), "8000", "Port to listen on. 0 selects any free port and needs WORKERS=1."
    )
    workers: int = option(
        _SERVER,
        kinds.whole(0, 1024),
        "0",
        "Number of worker processes. 0 starts one for each core it may use, within the CPU quota of a container. A"
        " parent process replaces those that end or hang.",
    )
    tls_cert_path: Path | None = option(
        _SERVER, kinds.file, None, "Certificate chain (PEM) to serve HTTPS with. Needs TLS_KEY_PATH."
    )
    tls_key_path: Path | None = option(
        _SERVER, kinds.file, None, "Private key (PEM) of TLS_CERT_PATH, without a passphrase."
    )
    max_body_bytes: int = option(
        _SERVER,
        kinds.whole(1024, 2**30),
        "1048576",
        "Maximum size of a request body. Larger bodies are rejected with 413. Batches of events may always have 8 MiB.",
        unit="bytes",
    )
    keep_alive_seconds: float = option(
        _SERVER,
        kinds.decimal(0.1, 86400),
        "75",
        "How long idle connections stay open. Set it higher than your load balancer's idle timeout.",
        unit="s",
    )
    shutdown_seconds: float = option(
        _SERVER,
        kinds.decimal(0, 3600),
        "30",
        "Maximum duration of a shutdown, to finish requests and deliver events. Remaining events stay in the store.",
        unit="s",
    )

    upstream_url: str = option(
        _SETTINGS, kinds.url, "https://dev.visualwebsiteoptimizer.com", "URL that settings are fetched from."
    )
    collect_url: str = option(
        _SETTINGS,
        replace(kinds.url, parse=lambda text: kinds.parse_url(text) if text else ""),
        "",
        "URL that events are sent to. Defaults to UPSTREAM_URL.",
    )
    poll_seconds: float = option(
        _SETTINGS,
        kinds.decimal(100, 86400000, scale=1000),
        "60000",
        "How often settings are fetched from VWO.",
        unit="ms",
        name="POLLING_TIME",
    )
    socket_timeout_seconds: float = option(
        _SETTINGS,
        kinds.decimal(0.1, 300),
        "5",
        "Timeout of a request to VWO and of a Redis command, connecting included. A request with events times out only"
        " if it makes no progress for this long; the time doubles with each timeout, up to 60 s.",
        unit="s",
        name="SOCKET_TIMEOUT",
    )
    settings_file: Path | None = option(
        _SETTINGS,
        kinds.file,
        None,
        "Settings document (JSON) to use until newer settings are stored or fetched. Without SDK_KEY the gateway runs"
        " offline from this file: it does not poll, and sends events only if UPSTREAM_URL or COLLECT_URL is set.",
    )
    sdk_name: str = option(
        _SETTINGS,
        kinds.word,
        "fme-gateway",
        "Name of the gateway in event documents and in requests to VWO.",
    )

    event_ack: str = option(
        _EVENTS,
        kinds.one_of("durable", "fast"),
        "durable",
        "When a request gets its response: durable waits until its events are stored; fast does not wait, and a crash"
        " can lose the events of the last few milliseconds.",
    )
    events_per_request: int = option(
        _EVENTS,
        kinds.whole(1, 5000),
        "100",
        "Number of events in a request to VWO. A flush starts when this many events wait.",
        unit="events",
    )
    max_events_per_request: int = option(
        _EVENTS,
        kinds.whole(1, 5000),
        "5000",
        "Maximum number of events in a batch to VWO, which accepts at most 5000. Larger batches of SDKs are accepted"
        " and split.",
        unit="events",
    )
    flush_seconds: float = option(
        _EVENTS,
        kinds.decimal(0.1, 86400),
        "600",
        "Maximum time that an event waits for more events before it is sent.",
        unit="s",
        name="FLUSH_EVENTS_INTERVAL",
    )
    event_queue_limit: int = option(
        _EVENTS,
        kinds.whole(1),
        "1000000",
        "Maximum number of undelivered events. Beyond it, new events are rejected (see EVENT_QUEUE_FULL).",
        unit="events",
    )
    event_queue_bytes: int = option(
        _EVENTS,
        kinds.whole(1024 * 1024),
        "1073741824",
        "Maximum size of the undelivered events. Beyond it, new events are rejected (see EVENT_QUEUE_FULL). At most"
        " 32 MiB of them are in memory; the others are in the store.",
        unit="bytes",
    )
    event_queue_full: str = option(
        _EVENTS,
        kinds.one_of("drop", "refuse"),
        "drop",
        "Behaviour of getFlag while events cannot be stored: drop responds with the decision and counts its events as"
        " rejected; refuse returns 503. trackEvent, setAttribute and events of SDKs always get a 503.",
    )
    dead_letter_limit: int = option(
        _EVENTS,
        kinds.whole(0),
        "100000",
        "Maximum number of dead letters per worker (with Redis: of the account). Beyond it, the oldest are discarded.",
        unit="events",
    )

    data_dir: Path = option(
        _STORE,
        kinds.path,
        "./data",
        "Directory of the embedded store and of downloaded databases. Use a persistent disk.",
    )
    store_sync: str = option(
        _STORE,
        kinds.one_of("normal", "full"),
        "normal",
        "Durability of the embedded store. With normal, nothing is lost if the process dies, but a power cut can lose"
        " the most recent events. full calls fsync for each commit and survives power cuts too.",
    )
    store_namespace: str | None = option(
        _STORE,
        kinds.matching(r"[A-Za-z0-9._:-]{1,100}", "letters, digits and . _ : -, at most 100"),
        None,
        "Name that separates the stored data of environments that share a Redis or a DATA_DIR. The default is"
        " derived from ACCOUNT_ID and SDK_KEY (a short hash, from which the key cannot be recovered). Set it to keep"
        " aliases and stored decisions when the key of an environment changes.",
    )
    sticky_decisions: bool = option(
        _STORE,
        kinds.boolean,
        "false",
        "Store each visitor's variation, so that it survives changes of weights and segments.",
    )
    sticky_seconds: float = option(
        _STORE,
        kinds.decimal(1, 315360000),
        "7776000",
        "How long a decision is stored (default: 90 days).",
        unit="s",
    )
    aliasing_enabled: bool = option(
        _STORE,
        kinds.boolean,
        "false",
        "Resolve aliases of user IDs before evaluating and tracking, as SDKs do when aliasing is on.",
    )

    redis_host: str | None = option(
        _REDIS,
        kinds.host,
        None,
        "Redis server. Without it and without REDIS_SENTINELS the embedded store in DATA_DIR is used.",
    )
    redis_port: int = option(_REDIS, kinds.whole(1, 65535), "6379", "Port of REDIS_HOST.")
    redis_username: str | None = option(_REDIS, kinds.line, None, "User name (Redis ACL).")
    redis_password: str | None = option(_REDIS, kinds.line, None, "Password.", secret=True)
    redis_cluster: bool = option(_REDIS, kinds.boolean, "false", "REDIS_HOST is a node of a Redis Cluster.")
    redis_sentinels: tuple[tuple[str, int], ...] = option(
        _REDIS,
        kinds.addresses,
        "",
        "Redis Sentinels, instead of REDIS_HOST. The default port is 26379.",
    )
    redis_sentinel_master: str | None = option(
        _REDIS, kinds.word, None, "Name of the master at the sentinels. Needs REDIS_SENTINELS."
    )
    redis_enable_tls: bool = option(_REDIS, kinds.boolean, "false", "Connect to Redis with TLS.")
    redis_tls_ca_path: Path | None = option(
        _REDIS,
        kinds.file,
        None,
        "CA certificates (PEM) that verify the certificate of Redis.",
    )
    redis_tls_cert_path: Path | None = option(
        _REDIS, kinds.file, None, "Client certificate (PEM), if Redis requires one."
    )
    redis_tls_key_path: Path | None = option(_REDIS, kinds.file, None, "Private key (PEM) of REDIS_TLS_CERT_PATH.")
    redis_tls_reject_unauthorized: bool = option(
        _REDIS,
        kinds.boolean,
        "false",
        "Reject a Redis server whose certificate or host name cannot be verified. Set to true in production.",
    )

    maxmind_user_id: int | None = option(
        _FACTS,
        kinds.whole(1),
        None,
        "MaxMind account for downloading the location database. Needs MAXMIND_LICENSE_KEY.",
    )
    maxmind_license_key: str | None = option(_FACTS, kinds.word, None, "Licence key of MAXMIND_USER_ID.", secret=True)
    maxmind_db_path: Path | None = option(
        _FACTS,
        kinds.path,
        None,
        "Path of your own location database (.mmdb). Without a database, locations are unknown.",
    )
    geo_map_file: Path | None = option(
        _FACTS,
        kinds.file,
        None,
        'Map of place names to other spellings (JSON), e.g. {"country":{"Czechia":"Czech Republic"}}.',
    )
    ua_map_file: Path | None = option(
        _FACTS,
        kinds.file,
        None,
        'Map of device facts to other values (JSON), e.g. {"device_type":{"tablet":"mobile"}}.',
    )
    trusted_proxies: tuple[Network, ...] = option(
        _FACTS,
        kinds.networks,
        "",
        "Networks whose X-Forwarded-For and X-Forwarded-Proto headers are trusted. None by default.",
    )
    client_ip_fallback: str = option(
        _FACTS,
        kinds.one_of("browser", "always", "never"),
        "browser",
        "When a request has no ipAddress, use the connection's address: for browsers only, always, or never. For a"
        " server SDK that is the application server, not the visitor.",
    )

    cors_config_required: bool = option(
        _CLIENTS, kinds.boolean, "false", "Allow requests from browsers of other origins (CORS)."
    )
    cors_allowed_origins: tuple[str, ...] = option(
        _CLIENTS, kinds.origins, "*", "Origins allowed by CORS. * allows every origin."
    )
    webhook_token: str | None = option(
        _CLIENTS,
        kinds.word,
        None,
        "Token that webhook calls must send to refresh the settings. Without a token, webhooks are disabled.",
        secret=True,
    )
    admin_token: str | None = option(
        _CLIENTS,
        kinds.word,
        None,
        "Token of the console and of all other endpoints below /admin. If it is not set, the first start creates one in"
        " DATA_DIR/admin-token. Gateways that share a load balancer but not DATA_DIR need the same ADMIN_TOKEN.",
        secret=True,
    )

    log_level: str = option(
        _LOGS, kinds.one_of("ERROR", "INFO", "DEBUG", upper=True), "ERROR", "Minimum severity to log."
    )
    log_format: str = option(
        _LOGS,
        kinds.one_of("auto", "human", "json"),
        "auto",
        "Format of log lines. auto is human on a terminal and json elsewhere.",
    )

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.collect_url:
            object.__setattr__(self, "collect_url", self.upstream_url)

    def __repr__(self) -> str:
        """The values that differ from the default, secrets masked."""
        values = [(option, getattr(self, option.attribute)) for option in OPTIONS]
        shown = [f"{o.attribute}={o.shown(value)!r}" for o, value in values if value != _DEFAULTS[o.attribute]]
        return f"Config({', '.join(shown)})"

    def source(self, name: str) -> str:
        """Where the value of the variable `name` came from: "flag", "environment", "file PATH:LINE" or "default".

        A secret that was read from a file has the file's variable in it: "environment SDK_KEY_FILE".
        """
        return self.sources.get(BY_NAME[name].name, "default")

    @property
    def account(self) -> Account:
        return Account(str(self.account_id or ""), self.sdk_key or "")

    @property
    def uses_redis(self) -> bool:
        return self.redis_host is not None or bool(self.redis_sentinels)

    @property
    def location_database(self) -> Path | None:
        """The database to read: MAXMIND_DB_PATH, or the downloaded one if there is a licence key."""
        return self.maxmind_db_path or (self.downloaded_location_database if self.maxmind_license_key else None)

    @property
    def downloaded_location_database(self) -> Path:
        return self.data_dir / "GeoLite2-City.mmdb"

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
        return self.workers or usable_cores()

    @property
    def max_batch_bytes(self) -> int:
        """Largest body of a batch of events."""
        return max(self.max_body_bytes, _SMALLEST_BATCH_BYTES)


OPTIONS = tuple(f.metadata["option"].named(f.name) for f in fields(Config) if "option" in f.metadata)
SECTIONS = tuple(dict.fromkeys(option.section for option in OPTIONS))
BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}
BY_FILE_NAME: dict[str, Option] = {option.file_name: option for option in OPTIONS if option.secret}
NAMES = (*BY_NAME, *BY_FILE_NAME)
_DEFAULTS = {option.attribute: getattr(Config(), option.attribute) for option in OPTIONS}


def option_name(name: str) -> str:
    """NAME for NAME_FILE, any other name as it is."""
    return BY_FILE_NAME[name].name if name in BY_FILE_NAME else name
