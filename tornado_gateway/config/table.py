"""The table of options: one field for each, with its name outside, kind, default and description."""

# ruff: noqa: RUF009  The table of options consists of the defaults of a frozen dataclass.

from dataclasses import dataclass, replace
from pathlib import Path

from tornado_gateway.config import kinds
from tornado_gateway.config.kinds import Networks, option

_ACCOUNT = "Account"
_SERVER = "Server"
_SETTINGS = "Settings and VWO"
_EVENTS = "Events"
_STORE = "Store"
_REDIS = "Redis"
_FACTS = "Location and device"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OptionValues:
    """The value of every option, in our units."""

    account_id: int | None = option(_ACCOUNT, kinds.whole(1), None, "VWO account ID. Needs SDK_KEY.")
    sdk_key: str | None = option(
        _ACCOUNT,
        kinds.word,
        None,
        "SDK key of one environment of the account (production, staging, ...). Needs ACCOUNT_ID.",
        secret=True,
    )
    environments_file: Path | None = option(
        _ACCOUNT,
        kinds.file,
        None,
        "File (TOML) of the environments to serve, instead of ACCOUNT_ID and SDK_KEY. See docs/environments.md.",
    )
    max_environments: int = option(
        _ACCOUNT,
        kinds.whole(1, 10_000),
        "200",
        "Maximum number of environments in ENVIRONMENTS_FILE. Each takes memory in every worker.",
    )
    ready_requires: str = option(
        _ACCOUNT,
        kinds.one_of("any", "all"),
        "any",
        "With ENVIRONMENTS_FILE, when /ready returns 200: once any environment has settings and each of them has been"
        " tried, or only when all have settings.",
    )
    decision_required: bool = option(
        _ACCOUNT,
        kinds.boolean,
        "false",
        "Enable the decision endpoints getFlag, trackEvent and setAttribute. When off, they return 403.",
    )

    metrics_by_feature: bool = option(
        _SERVER,
        kinds.boolean,
        "false",
        "Add metrics about each feature, labelled with its key: decisions by outcome, and exposures. At most 500"
        " features of an environment.",
    )
    max_connections: int = option(
        _SERVER, kinds.whole(0), "0", "Clients of each worker; more get a 503. 0 is the limit of open files minus 256."
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
        "65536",
        "Maximum size of a request body. Larger bodies are rejected with 413. A single event may always have 1 MiB, a"
        " batch of events 8 MiB.",
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

    drain_seconds: float = option(
        _SERVER,
        kinds.decimal(0, 3600),
        "0",
        "Before a shutdown, serve on for this time with /ready at 503, for load balancers. A second SIGTERM ends it.",
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
    upstream_ca_path: Path | None = option(
        _SETTINGS,
        kinds.file,
        None,
        "CA certificates (PEM) that verify the certificates of UPSTREAM_URL and COLLECT_URL, instead of the system's.",
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
    internal_events: str = option(
        _EVENTS,
        kinds.one_of("forward", "sample", "drop"),
        "forward",
        "Events of SDKs about themselves (vwo_sdkUsageStats, vwo_sdkDebug, vwo_fmeSdkInit): forward sends them to VWO,"
        " drop discards them, and sample forwards one of 10, by a hash of the event. SDKs get the same response.",
    )
    dead_letter_limit: int = option(
        _EVENTS,
        kinds.whole(0),
        "100000",
        "Maximum number of dead letters per worker (with Redis: of the account). Beyond it, the oldest are discarded.",
        unit="events",
    )
    dead_letter_days: int = option(
        _EVENTS,
        kinds.whole(0, 3650),
        "0",
        "Age at which dead letters are discarded. 0: never.",
        unit="days",
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
        "How long a decision is stored (default: 90 days). Expired ones are deleted while the gateway runs.",
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
    trusted_proxies: Networks = option(
        _FACTS,
        kinds.networks,
        "",
        "Networks whose X-Forwarded-For and X-Forwarded-Proto headers are trusted. None by default.",
    )
    trusted_address_header: str = option(
        _FACTS,
        kinds.matching(r"[A-Za-z0-9-]{1,64}", "the name of a header, such as X-Real-IP"),
        "X-Forwarded-For",
        "The only header in which TRUSTED_PROXIES report the client's address, e.g. X-Real-IP, CF-Connecting-IP or"
        " Forwarded (RFC 7239). The proxy must overwrite it or append to it, because clients can send it too.",
    )
    proxy_protocol: bool = option(
        _FACTS,
        kinds.boolean,
        "false",
        "Connections from TRUSTED_PROXIES begin with a header of the PROXY protocol (1 or 2), as with send-proxy of"
        " haproxy. Only those from this machine can omit it.",
    )
    client_ip_fallback: str = option(
        _FACTS,
        kinds.one_of("browser", "always", "never"),
        "browser",
        "When a request has no ipAddress, use the connection's address: for browsers only, always, or never. For a"
        " server SDK that is the application server, not the visitor.",
    )
