"""Checks of this machine: location database, limits, port, certificate."""

import errno
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tornado_gateway import core
from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.doctor.remedies import FAIL, OK, WARN, Finding
from tornado_gateway.config import Config, EnvironmentConfig
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import GatewayError
from tornado_gateway.process import open_files
from tornado_gateway.process.certificate_expiry import ENDING_DAYS, expiry
from tornado_gateway.process.location_parts import OLD_DAYS
from tornado_gateway.process.parent.sockets import bind
from tornado_gateway.quantities import counted, duration, listed

FEATURE_BYTES = 18_000  # of a worker's memory for one feature, measured with documents of 100 and 1,000 features


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _mounts() -> str:
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about the host, injectable for tests."""

    now: Callable[[], float] = time.time
    free_bytes: Callable[[Path], int] = _free_bytes
    open_files: Callable[[], int] = open_files.attainable_limit
    mounts: Callable[[], str] = _mounts


def estimate_memory(documents: Sequence[core.Settings]) -> Finding:
    """Return the memory that the settings of several environments need in each worker."""
    if not documents:
        return Finding("memory", OK, OK, "not estimated: no settings could be read")
    features = sum(len(settings.features) for settings in documents)
    size = f"about {math.ceil(features * FEATURE_BYTES / 1e6)} MB in each worker"
    amount = f"{counted(len(documents), 'environment')} with {counted(features, 'feature')}"
    return Finding("memory", OK, OK, f"{amount}: {size}")


def check_decisions(environments: Sequence[EnvironmentConfig]) -> Finding:
    off = [one for one in environments if not one.config.decision_required]
    if not off:
        return Finding("decisions", OK, OK, "getFlag, trackEvent and setAttribute are served")
    cause = "DECISION_REQUIRED=false"
    if off[0].config.environment_name is not None:
        cause = f"decision_required = false for {listed([one.name for one in off])}"
    message = f"{cause}: getFlag, trackEvent and setAttribute get a 403. Thin SDKs (Go, Ruby) need true"
    return Finding("decisions", OK, OK, message)


def check_location(config: Config, documents: Sequence[core.Settings], machine: Machine) -> Finding:
    path = config.location_database
    if path is None:
        if any(feature.needs_location for settings in documents for feature in settings.features.values()):
            return Finding("geoip", WARN, "geo-wanted", "no location database is configured")
        return Finding("geoip", OK, OK, "no location database is configured, and no feature asks for one")
    if not path.exists():
        return Finding("geoip", WARN if config.maxmind_license_key else FAIL, "geo-absent", f"{path} does not exist")
    reader = LocationReader(path)
    if not reader.open():
        return Finding("geoip", FAIL, "geo-broken", reader.error or f"{path} cannot be read")
    days = (reader.age_seconds(machine.now()) or 0) / 86400
    reader.close()
    if days > OLD_DAYS:
        return Finding("geoip", WARN, "geo-old", f"{path} is {days:.0f} days old")
    return Finding("geoip", OK, OK, f"{reader.database_type or path}, {days:.0f} days old")


def check_open_files(config: Config, machine: Machine) -> Finding:
    """Check the limit of the running gateway. If none runs, that of this command counts."""
    running = _limit_of_gateway(config)
    limit = machine.open_files() if running is None else running
    if open_files.is_sufficient(limit):
        return Finding("open files", OK, OK, "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}")
    unsure = "; a service can have another limit than this command" if running is None else ""
    message = f"{open_files.shortage(limit)}{unsure}"
    return Finding("open files", FAIL if limit < open_files.FEW else WARN, "open-files", message)


def _limit_of_gateway(config: Config) -> int | None:
    """Return the lowest limit of the workers, None if no gateway responds."""
    try:
        status, answer = Client(config).request("/status")
    except ClientError:
        return None
    workers = answer.get("workers") if status == 200 and isinstance(answer, dict) else None
    limits = [worker["open_files_limit"] for worker in workers or () if "open_files_limit" in worker]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=limits[0] if limits else None)


def check_port(config: Config) -> Finding:
    """Check that the port is free or in use by a gateway."""
    client = Client(config)
    try:
        status, answer = client.request("/health")
        if status == 200 and isinstance(answer, dict) and answer.get("status") == "ok":
            return Finding("port", OK, OK, f"a gateway is running at {client.url}")
        return Finding("port", FAIL, "port-taken", f"{client.url} responds, but is not a gateway")
    except ClientError as error:
        if error.status:
            return Finding("port", FAIL, "port-taken", str(error))
    return _try_to_bind(config)


def _try_to_bind(config: Config) -> Finding:
    try:
        bind(config.host, config.port).close()
    except PermissionError:
        return Finding("port", FAIL, "port-forbidden", f"this user is not permitted to listen on port {config.port}")
    except OSError as error:
        code = "port-taken" if error.errno == errno.EADDRINUSE else "port-forbidden"
        return Finding("port", FAIL, code, str(error.strerror))
    return Finding("port", OK, OK, f"{config.port} is free")


def check_certificate(cert: Path, key: Path, machine: Machine) -> Finding:
    try:
        days = (expiry(cert, key) - machine.now()) / 86400
    except GatewayError as error:
        return Finding("certificate", FAIL, "certificate", str(error))
    if days < ENDING_DAYS:
        return Finding("certificate", WARN, "certificate-ending", f"{cert} expires in {duration(days * 86_400)}")
    return Finding("certificate", OK, OK, f"{cert}, valid for {days:.0f} days")
