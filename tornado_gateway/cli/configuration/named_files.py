"""Files that options name, read as the gateway reads them at its start: their problems, for `check`."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from tornado_gateway.cli.insight.database import opened
from tornado_gateway.config import Config, ConfigError
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import GatewayError
from tornado_gateway.process.certificate_expiry import expiry


def find_problems(config: Config) -> list[str]:
    """Return a line for each file that does not have the expected content.

    SETTINGS_FILE and files of tokens and environments are not among them: other code reports these.
    """
    return [f"{name} ({config.source(name)}): {problem}" for name, problem in _problems(config)]


def _problems(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the problems, and the options that they are about."""
    yield from _unreadable("MAXMIND_DB_PATH", config.maxmind_db_path, lambda path: opened(path).close())
    yield from _unreadable("GEO_MAP_FILE", config.geo_map_file, lambda path: LocationReader(None, path))
    yield from _unreadable("UA_MAP_FILE", config.ua_map_file, lambda path: DeviceReader(map_file=path))
    yield from _unreadable("UPSTREAM_CA_PATH", config.upstream_ca_path, _read_authorities)
    yield from _unreadable("REDIS_TLS_CA_PATH", config.redis_tls_ca_path, _read_authorities)
    key = config.tls_key_path
    if key is not None:
        yield from _unreadable("TLS_CERT_PATH", config.tls_cert_path, lambda path: expiry(path, key))


def _unreadable(name: str, path: Path | None, read: Callable[[Path], object]) -> Iterator[tuple[str, str]]:
    if path is None:
        return
    try:
        read(path)
    except ConfigError as error:
        yield from ((name, problem) for problem in error.problems)
    except GatewayError as error:
        yield name, str(error)


def _read_authorities(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: expected certificates (PEM), got none that can be read ({error})"]) from error
