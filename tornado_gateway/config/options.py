"""The configuration: the values of all options, values that are derived from them, and rules about several options."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from tornado_gateway.config.clients_table import AllOptionValues
from tornado_gateway.config.cores import usable_cores
from tornado_gateway.config.kinds import Option
from tornado_gateway.errors import account_options

# A batch of 5000 events of about 1.6 KiB has to fit, whatever MAX_BODY_BYTES says about single requests.
_SMALLEST_BATCH_BYTES = 8 * 1024 * 1024
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  address to connect to for a wildcard HOST
_SMALLEST_EVENT_BYTES = 1024 * 1024  # SDKs lose events that are rejected, or send them again forever


class Account(NamedTuple):
    """The account ID and SDK key in use; both are empty when the gateway works offline."""

    id: str
    sdk_key: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Config(AllOptionValues):
    """All options. `Config()` has all defaults, which is enough for a test but not to serve."""

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    misspelt: tuple[str, ...] = field(default=(), compare=False)  # variables that are nearly options, in words
    service_links: tuple[str, ...] = field(default=(), compare=False)  # of Kubernetes, named like options, in words
    environment_name: str | None = None  # of ENVIRONMENTS_FILE, in the configuration of one of its environments

    def __post_init__(self) -> None:
        if not self.collect_url:
            object.__setattr__(self, "collect_url", self.upstream_url)

    def __repr__(self) -> str:
        """The values that differ from the default, secrets masked."""
        values = [(option, getattr(self, option.attribute)) for option in OPTIONS]
        shown = [f"{o.attribute}={o.shown(value)!r}" for o, value in values if value != DEFAULTS[o.attribute]]
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
        """Return whether the settings come from SETTINGS_FILE only, without polling."""
        return self.sdk_key is None

    @property
    def account_options(self) -> str:
        """The names of the options with the account and its key, for advice."""
        return account_options(self.environments_file, self.environment_name)

    @property
    def local_host(self) -> str:
        """The host to connect to from this machine."""
        return _LOOPBACK.get(self.host, self.host)

    @property
    def local_url(self) -> str:
        """The URL of the gateway for programs and browsers on this machine."""
        host = f"[{self.local_host}]" if ":" in self.local_host else self.local_host
        return f"{'http' if self.tls_cert_path is None else 'https'}://{host}:{self.port}"

    @property
    def namespace(self) -> str:
        """STORE_NAMESPACE, or the account with a short hash of the key, so that environments never mix.

        With ENVIRONMENTS_FILE it has the environment's name, which stays when the key changes.
        """
        if self.environment_name is not None:
            return f"{self.account_id}:{self.environment_name}"
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
    def max_event_bytes(self) -> int:
        """Largest body of a single event."""
        return max(self.max_body_bytes, _SMALLEST_EVENT_BYTES)

    @property
    def max_batch_bytes(self) -> int:
        """Largest body of a batch of events."""
        return max(self.max_body_bytes, _SMALLEST_BATCH_BYTES)


OPTIONS = tuple(f.metadata["option"].named(f.name) for f in fields(Config) if "option" in f.metadata)
SECTIONS = tuple(dict.fromkeys(option.section for option in OPTIONS))
BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}
BY_FILE_NAME: dict[str, Option] = {option.file_name: option for option in OPTIONS if option.secret}
NAMES = (*BY_NAME, *BY_FILE_NAME)
DEFAULTS = {option.attribute: getattr(Config(), option.attribute) for option in OPTIONS}


def secrets_of(config: Config) -> list[str]:
    """Return the values that no log may contain."""
    values = [getattr(config, option.attribute) for option in OPTIONS if option.secret]
    return [secret for value in values for secret in (value if isinstance(value, tuple) else (value,)) if secret]


def option_name(name: str) -> str:
    """NAME for NAME_FILE, any other name as it is."""
    return BY_FILE_NAME[name].name if name in BY_FILE_NAME else name


# --- Rules about several options ---

EXCLUDED = ("ACCOUNT_ID", "SDK_KEY", "SETTINGS_FILE", "WEBHOOK_TOKEN", "STORE_NAMESPACE")


def contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield violated rules about several options: their names, and the expected and actual value of the first."""
    c = config
    if c.environments_file is not None and c.environment_name is None:
        for name in EXCLUDED:
            if (value := getattr(c, BY_NAME[name].attribute)) is not None:
                yield (name,), "nothing, because ENVIRONMENTS_FILE is set", f'"{BY_NAME[name].shown(value)}"'
    for one, other, is_mutual in (
        ("ACCOUNT_ID", "SDK_KEY", True),
        ("MAXMIND_USER_ID", "MAXMIND_LICENSE_KEY", True),
        ("TLS_CERT_PATH", "TLS_KEY_PATH", True),
        ("REDIS_SENTINEL_MASTER", "REDIS_SENTINELS", True),
        ("REDIS_TLS_CERT_PATH", "REDIS_TLS_KEY_PATH", False),  # a certificate's file may hold its key as well
    ):
        has_one, has_other = (bool(getattr(c, BY_NAME[name].attribute)) for name in (one, other))
        if has_other and not has_one:
            yield (one, other), f"a value, because {other} is set", "nothing"
        if is_mutual and has_one and not has_other:
            yield (other, one), f"a value, because {one} is set", "nothing"
    needing_redis = ("REDIS_PASSWORD", "REDIS_USERNAME", "REDIS_ENABLE_TLS")
    if not c.uses_redis and (given := [name for name in needing_redis if getattr(c, BY_NAME[name].attribute)]):
        yield ("REDIS_HOST", "REDIS_SENTINELS", *given), f"a value, because {given[0]} is set", "nothing"
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
    if c.client_auth != "off" and not (c.sdk_key_auth or c.client_tokens or c.tokens_file):
        yield ("SDK_KEY_AUTH", "CLIENT_AUTH"), "true, because no client token is configured", "false"
    if "*" in c.cors_allowed_origins and len(c.cors_allowed_origins) > 1:
        shown = ",".join(c.cors_allowed_origins)
        yield ("CORS_ALLOWED_ORIGINS",), "either * or a list of origins", f'"{shown}"'
    if c.proxy_protocol and not c.trusted_proxies:
        yield ("TRUSTED_PROXIES", "PROXY_PROTOCOL"), "a value, because PROXY_PROTOCOL is set", "nothing"
    if c.port == 0 and c.workers != 1:
        yield ("WORKERS", "PORT"), "1, because every worker would use another free port with PORT=0", f'"{c.workers}"'
