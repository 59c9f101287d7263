"""The evaluator of commands that decide by themselves, with their location database (`--maxmind-db-path`)."""

from pathlib import Path

from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.errors import ConfigError


def evaluator_with(path: Path | None, *, is_used: bool = True) -> Evaluator:
    """Return an evaluator with this database, which is only opened if it is used.

    Raise ConfigError for a database that cannot be used: decisions without it would look like those of a gateway that
    knows no location.
    """
    reader = LocationReader(path)
    if path is not None and is_used and not reader.open():
        raise ConfigError([f"--maxmind-db-path: expected a GeoIP2 or GeoLite2 database, got {reader.error}"])
    return Evaluator(reader, DeviceReader())
