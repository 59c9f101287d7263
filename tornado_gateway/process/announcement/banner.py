"""The banner: the facts about a gateway that has started, and a first request to try. One worker prints it for all."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence

import orjson

from tornado_gateway import logs
from tornado_gateway.config import Config, EnvironmentConfig
from tornado_gateway.console import admin_token
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.process.environments.serving import Serving
from tornado_gateway.quantities import listed
from tornado_gateway.version import BUILD

SAMPLE_NAME = "sample-settings.json"
TITLES = {
    "address": "Address",
    "console": "Console",
    "docs": "API docs",
    "account": "Account",
    "environments": "Environments",
    "decisions": "Decisions",
    "store": "Store",
    "workers": "Workers",
    "build": "Build",
    "locations": "Locations",
    "example": "Try it",
}
SIGN_IN = "`tornado-gateway console-url` prints a link that signs in to the console"


def announce(config: Config, serving: Serving, location: LocationReader) -> None:
    """Print the banner to stderr. Only a terminal gets the link that signs in, because others can read logs."""
    facts = describe(config, serving, location)
    shown = dict(facts)
    if sys.stderr.isatty() and config.admin_token is not None:
        shown["console"] = admin_token.sign_in_link(config.local_url, config.admin_token)
    else:
        shown["console"] = f"{facts['console']}  ({SIGN_IN})"
    if config.host != config.local_host:  # a wildcard
        shown["address"] = f"{facts['address']}  (and all other addresses of this machine)"
    logs.announce(f"the gateway serves {config.local_url}; {SIGN_IN}", facts, screen(shown))


def screen(facts: Mapping[str, object]) -> str:
    """Return one line for each fact."""
    width = max(map(len, TITLES.values())) + 2
    lines = [f"  {TITLES[name]:{width}}{fact}" for name, fact in facts.items()]
    return "\n".join(["FME gateway is running. Press Ctrl-C to stop it.", *lines])


def describe(config: Config, serving: Serving, location: LocationReader) -> dict[str, object]:
    """Return the facts by name, in the order of TITLES."""
    environments = [one.config for one in serving.all]
    facts: dict[str, object | None] = {
        "address": config.local_url,
        "console": f"{config.local_url}/console",
        "docs": f"{config.local_url}/docs",
        "account": None if serving.is_from_file else _account(config),
        "environments": _environments(environments) if serving.is_from_file else None,
        "decisions": None if any(one.config.decision_required for one in environments) else _off(serving),
        "store": _store(config),
        "workers": config.worker_count,
        "build": BUILD,
        "locations": _locations(location),
        "example": _example(config, serving),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _account(config: Config) -> str:
    if not config.is_offline:
        return str(config.account_id)
    is_sample = config.settings_file is not None and config.settings_file.name == SAMPLE_NAME
    kind = "sample account" if is_sample else f"none, with the settings of {config.settings_file}"
    has_target = any(config.source(name) != "default" for name in ("UPSTREAM_URL", "COLLECT_URL"))
    return kind if has_target else f"{kind}: events are discarded"


def _environments(environments: Sequence[EnvironmentConfig]) -> str:
    return listed([f"{one.name} (account {one.config.account_id})" for one in environments])


def _off(serving: Serving) -> str:
    option = "decision_required = true in ENVIRONMENTS_FILE" if serving.is_from_file else "DECISION_REQUIRED=true"
    return f"off: set {option} to serve getFlag, trackEvent and setAttribute"


def _store(config: Config) -> str:
    if not config.uses_redis:
        return f"embedded, in {config.data_dir.resolve()}"
    servers = [f"{host}:{port}" for host, port in config.redis_sentinels or [(config.redis_host, config.redis_port)]]
    kind = "Redis Sentinel" if config.redis_sentinels else "Redis Cluster" if config.redis_cluster else "Redis"
    return f"{kind} at {', '.join(servers)}; while it is down, {config.data_dir.resolve()}"


def _locations(location: LocationReader) -> str:
    if location.path is None:
        return "unknown, because no location database is configured"
    if location.build_epoch is None:
        return f"unknown, because {location.path} cannot be used"
    return f"{location.database_type} of {time.strftime('%Y-%m-%d', time.gmtime(location.build_epoch))}"


# --- The example ---


def _example(config: Config, serving: Serving) -> str:
    """Return a command that works: a decision if there is one for requests without credentials, otherwise /ready."""
    curl = "curl -s" if config.tls_cert_path is None else "curl -sk"  # the certificate is for another name
    feature = _first_feature(config, serving)
    if feature is None:
        return f"{curl} {config.local_url}/ready"
    body = orjson.dumps({"featureKey": feature, "userId": "user-1"}).decode()
    return f"{curl} {config.local_url}/server-side/getFlag -d {shlex.quote(body)}"


def _first_feature(config: Config, serving: Serving) -> str | None:
    first = serving.first
    snapshot = first.environment.mirror.current
    is_open = config.client_auth == "off" and not config.client_key_required
    if not is_open or not first.config.is_default or not first.config.config.decision_required or snapshot is None:
        return None
    return next(iter(snapshot.settings.features), None)
