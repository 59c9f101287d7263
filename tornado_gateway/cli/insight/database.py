"""The evaluator of commands that decide by themselves, with their location database (`--maxmind-db-path`)."""

from pathlib import Path

from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.errors import ConfigError


def opened(path: Path, place: str = "") -> LocationReader:
    """Open a location database. Raise ConfigError, whose problem begins with `place`."""
    reader = LocationReader(path)
    if not reader.open():
        raise ConfigError([f"{place}expected a GeoIP2 or GeoLite2 database, got {reader.error}"])
    return reader


def evaluator_with(path: Path | None, *, is_used: bool = True) -> Evaluator:
    """Return an evaluator with this database, which is only opened if it is used.

    Raise ConfigError for a database that cannot be used: decisions without it would look like those of a gateway that
    knows no location.
    """
    location = LocationReader(None) if path is None or not is_used else opened(path, "--maxmind-db-path: ")
    return Evaluator(location, DeviceReader())
