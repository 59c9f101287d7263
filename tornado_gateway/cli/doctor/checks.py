"""The checks of the doctor, in the order of the report."""

import asyncio
import errno
import os
import re
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from tornado_gateway import __version__, core
from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.doctor.remedies import FAIL, OK, WARN, Finding
from tornado_gateway.cli.stored_events import Overall, open_stored_events
from tornado_gateway.config import Config
from tornado_gateway.console import admin_token
from tornado_gateway.console.admin_token import AdminTokenError
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import GatewayError, StoreError, UpstreamError
from tornado_gateway.process import open_files
from tornado_gateway.process.certificate_expiry import expiry
from tornado_gateway.process.parent.sockets import bind
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.settings.compilation import compile_document
from tornado_gateway.upstream.client import Dialect, Upstream
from tornado_gateway.upstream.curl import CurlError, CurlPool

CLOCK_WARN_SECONDS = 30.0
CLOCK_FAIL_SECONDS = 300.0
GEO_OLD_DAYS = 30  # MaxMind publishes twice a week
DISK_LOW_BYTES = 1 << 30
DISK_FULL_BYTES = 100 << 20
CERTIFICATE_DAYS = 14
WAITING_SHARE = 0.5  # of EVENT_QUEUE_LIMIT
WAITING_INTERVALS = 3  # of FLUSH_EVENTS_INTERVAL


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about the host, injectable for tests."""

    now: Callable[[], float] = time.time
    free_bytes: Callable[[Path], int] = _free_bytes
    open_files: Callable[[], int] = open_files.open_files_limit


_THIS_MACHINE = Machine()


def finding_of_configuration(problem: str) -> Finding:
    return Finding("configuration", FAIL, "configuration", problem)


async def examine(config: Config, machine: Machine = _THIS_MACHINE) -> AsyncIterator[Finding]:
    """Yield all findings, each as soon as it is known."""
    yield Finding("configuration", OK, OK, "valid")
    finding, settings = await (_check_file(config) if config.is_offline else _check_upstream(config))
    yield finding
    if not config.is_offline and config.collect_url != config.upstream_url:
        yield (await _check_server(config, machine, config.collect_url, "collector"))[0]
    if not config.is_offline:
        yield (await _check_server(config, machine, config.upstream_url, "clock"))[1]
    yield await _check_redis(config)
    yield await asyncio.to_thread(_check_location, config, settings, machine)
    storage = _check_data_dir(config.data_dir)
    yield storage
    if storage.state == OK:
        yield _check_admin_token(config)
    if damaged := _find_damaged(config.data_dir):
        yield damaged
    yield _check_disk(config.data_dir, machine)
    yield _check_open_files(machine)
    yield await asyncio.to_thread(_check_port, config)
    if config.tls_cert_path and config.tls_key_path:
        yield _check_certificate(config.tls_cert_path, config.tls_key_path, machine)
    if storage.code != "data-dir":  # the events that wait can be counted on a full disk, too
        yield await _check_events(config, machine)


# --- VWO: settings, collector, clock ---


Looked = tuple[Finding, core.Settings | None]


async def _check_file(config: Config) -> Looked:
    """Check SETTINGS_FILE of a gateway without an account."""
    assert config.settings_file is not None  # noqa: S101  `load` requires it
    return _judge_settings(config, config.settings_file.read_bytes(), f"offline, from {config.settings_file}")


async def _check_upstream(config: Config) -> Looked:
    upstream = Upstream(
        config.upstream_url,
        config.collect_url,
        *config.account,
        sdk_name=config.sdk_name,
        sdk_version=__version__,
        timeout_seconds=config.socket_timeout_seconds,
    )
    before = time.monotonic()
    try:
        document = await upstream.fetch_settings(Dialect())
    except UpstreamError as error:
        return Finding("upstream", FAIL, _code_of_upstream(error), str(error)), None
    finally:
        upstream.close()
    milliseconds = (time.monotonic() - before) * 1000
    return _judge_settings(config, document, f"{config.upstream_url} responded in {milliseconds:.0f} ms, key accepted")


def _judge_settings(config: Config, document: bytes, origin: str) -> Looked:
    try:
        settings = compile_document(document, core.Sdk(config.sdk_name, __version__)).settings
    except core.SettingsError as error:
        is_json = document.lstrip()[:1] in (b"{", b"[")
        code = "settings-unusable" if is_json or config.is_offline else "upstream-strange"
        return Finding("upstream", FAIL, code, f"invalid settings: {'; '.join(error.problems)}"), None
    return Finding("upstream", OK, OK, f"{origin}, {len(settings.features)} features"), settings


def _code_of_upstream(error: UpstreamError) -> str:
    if error.status == 429 or error.status >= 500:
        return "upstream-failing"
    if error.status in (404, 405) or 300 <= error.status < 400:
        return "upstream-strange"
    if error.status:
        return "key-refused"
    for code, signs in (
        ("upstream-tls", r"SSL|TLS|certificate"),
        ("upstream-strange", r"HTTP/0\.9|Unsupported HTTP|Weird|Invalid (status|header)|Received HTTP"),
    ):
        if re.search(signs, str(error), re.IGNORECASE):
            return code
    return "upstream-unreachable"


async def _check_server(config: Config, machine: Machine, url: str, check: str) -> tuple[Finding, Finding]:
    """Any response is enough: it shows that the server is reachable, and its clock."""
    client = CurlPool(timeout_seconds=config.socket_timeout_seconds)
    try:
        response = await client.request(url)
    except CurlError as error:
        if error.response is None:
            unknown = Finding("clock", WARN, "upstream-unreachable", "not checked: VWO could not be reached")
            return Finding(check, FAIL, "collector-unreachable", f"{url}: {error}"), unknown
        response = error.response  # of a large page, only the head is needed
    finally:
        client.close()
    now = machine.now()
    return Finding(check, OK, OK, f"{url} answers"), _judge_clock(response.headers.get("date", ""), now)


def _judge_clock(date: str, now: float) -> Finding:
    try:
        off = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("clock", OK, OK, "not checked: the response of VWO has no date")
    if abs(off) < CLOCK_WARN_SECONDS:
        return Finding("clock", OK, OK, f"within {CLOCK_WARN_SECONDS:.0f} s of VWO's clock")
    state = WARN if abs(off) < CLOCK_FAIL_SECONDS else FAIL
    direction = "ahead of" if off > 0 else "behind"
    return Finding("clock", state, "clock", f"{abs(off):.0f} s {direction} VWO's clock")


# --- Redis ---


async def _check_redis(config: Config) -> Finding:
    if not config.uses_redis:
        return Finding("redis", OK, OK, "not configured: the embedded store in DATA_DIR is used")
    from tornado_gateway.store.redis.events import open_redis  # not needed without Redis
    from tornado_gateway.store.redis.state import RedisState

    owner = f"doctor:{os.getpid()}"
    state = open_redis(redis_options(config), config.namespace, owner).state
    before = time.monotonic()
    try:
        await state.open()
        await state.acquire_lease("doctor", owner)  # a write, which a replica or a full Redis rejects
        await state.release_lease("doctor", owner)
        can_notify = not isinstance(state, RedisState) or await state.can_notify()
        risks = await state.risks() if isinstance(state, RedisState) else []
    except StoreError as error:
        code = "redis-tls" if await _is_silent_to_tls(config, error) else _code_of_redis(str(error))
        return Finding("redis", FAIL, code, str(error))
    finally:
        await state.close()
    if not can_notify:
        return Finding("redis", WARN, "redis-channels", "the user may not publish to the channel of the gateway (ACL)")
    if risks:
        return Finding("redis", WARN, "redis-loses", "; ".join(risks))
    milliseconds = (time.monotonic() - before) * 1000
    with_tls = ", TLS" if config.redis_enable_tls else ""
    return Finding("redis", OK, OK, f"wrote and read in {milliseconds:.0f} ms{with_tls}")


async def _is_silent_to_tls(config: Config, error: StoreError) -> bool:
    """Return whether Redis ignores a TLS handshake: without TLS, it takes the handshake for an incomplete line."""
    if not config.redis_enable_tls or config.redis_host is None or "no response" not in str(error):
        return False
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(config.redis_host, config.redis_port), 1)
    except OSError:
        return False
    writer.close()
    return True


def _code_of_redis(message: str) -> str:
    for code, signs in (
        ("redis-password", r"password|NOAUTH|WRONGPASS|authentication"),
        ("redis-tls", r"SSL|TLS|certificate"),
        ("redis-unreachable", r"connect|refused|timed? ?out|no response|too slow|resol|unreachable|closed|not known"),
    ):
        if re.search(signs, message, re.IGNORECASE):
            return code
    return "redis-failing"


# --- Files and the host ---


def _check_location(config: Config, settings: core.Settings | None, machine: Machine) -> Finding:
    path = config.location_database
    if path is None:
        if settings is not None and any(feature.needs_location for feature in settings.features.values()):
            return Finding("geoip", WARN, "geo-wanted", "no location database is configured")
        return Finding("geoip", OK, OK, "no location database is configured, and no feature asks for one")
    if not path.exists():
        return Finding("geoip", WARN if config.maxmind_license_key else FAIL, "geo-absent", f"{path} does not exist")
    reader = LocationReader(path)
    if not reader.open():
        return Finding("geoip", FAIL, "geo-broken", reader.error or f"{path} cannot be read")
    days = (reader.age_seconds(machine.now()) or 0) / 86400
    reader.close()
    if days > GEO_OLD_DAYS:
        return Finding("geoip", WARN, "geo-old", f"{path} is {days:.0f} days old")
    return Finding("geoip", OK, OK, f"{reader.database_type or path}, {days:.0f} days old")


def _check_data_dir(directory: Path) -> Finding:
    """Write a file as the gateway does. If the directory does not exist, use the one in which it will be created."""
    existing = _existing(directory)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor-") as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "data-dir"
        return Finding("data directory", FAIL, code, f"{directory} cannot be written to: {error.strerror}")
    return Finding(
        "data directory", OK, OK, f"{directory} {'can be written to' if directory.exists() else 'can be created'}"
    )


def _find_damaged(directory: Path) -> Finding | None:
    """Return a warning about files that the store has moved aside."""
    names = sorted(path.name for path in directory.glob("*.damaged-*") if not path.name.endswith(("-wal", "-shm")))
    if not names:
        return None
    message = f"{len(names)} damaged files were replaced in {directory}, the newest is {names[-1]}"
    return Finding("damaged files", WARN, "damaged-files", message)


def _check_admin_token(config: Config) -> Finding:
    path = admin_token.path_in(config.data_dir)
    if config.admin_token is not None:
        return Finding("admin token", OK, OK, "ADMIN_TOKEN is set")
    try:
        admin_token.read(config.data_dir)
        is_exposed = admin_token.is_exposed(path)
    except FileNotFoundError:
        return Finding("admin token", OK, OK, f"ADMIN_TOKEN is not set: the first start creates {path}")
    except AdminTokenError as error:
        return Finding("admin token", FAIL, "admin-token", str(error))
    if is_exposed:
        return Finding("admin token", WARN, "admin-token-exposed", f"{path} is accessible to other users")
    return Finding("admin token", OK, OK, f"ADMIN_TOKEN is not set: {path} is used")


def _existing(directory: Path) -> Path:
    """Return the directory, or its nearest ancestor that exists."""
    return next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())


def _check_disk(directory: Path, machine: Machine) -> Finding:
    free = machine.free_bytes(_existing(directory))
    message = f"{free / (1 << 30):.1f} GiB free at {directory}"
    if free < DISK_FULL_BYTES:
        return Finding("disk", FAIL, "disk-full", message)
    if free < DISK_LOW_BYTES:
        return Finding("disk", WARN, "disk-low", message)
    return Finding("disk", OK, OK, message)


def _check_open_files(machine: Machine) -> Finding:
    limit = machine.open_files()
    if open_files.is_sufficient(limit):
        return Finding("open files", OK, OK, "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}")
    message = f"{open_files.shortage(limit)}; a service can have another limit than this command"
    return Finding("open files", FAIL if limit < open_files.FEW else WARN, "open-files", message)


def _check_port(config: Config) -> Finding:
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


def _check_certificate(cert: Path, key: Path, machine: Machine) -> Finding:
    try:
        days = (expiry(cert, key) - machine.now()) / 86400
    except GatewayError as error:
        return Finding("certificate", FAIL, "certificate", str(error))
    if days < CERTIFICATE_DAYS:
        return Finding("certificate", WARN, "certificate-ending", f"{cert} expires in {days:.0f} days")
    return Finding("certificate", OK, OK, f"{cert}, valid for {days:.0f} days")


async def _check_events(config: Config, machine: Machine) -> Finding:
    try:
        async with open_stored_events(config) as stored:
            depth = await stored.depth()
    except (GatewayError, OSError) as error:
        return Finding("events", WARN, "events-unreadable", str(error))
    age = machine.now() - depth.oldest_at if depth.oldest_at is not None else 0.0
    message = f"{depth.waiting} wait ({_oldest(depth, age)}), {depth.dead} dead: {stored.where}"
    if depth.stuck is not None:
        return Finding("events", FAIL, "events-stuck", f"{depth.stuck} {message}")
    is_late = age > WAITING_INTERVALS * config.flush_seconds
    if is_late or depth.waiting > WAITING_SHARE * config.event_queue_limit:
        return Finding("events", WARN, "events-waiting", message)
    if depth.dead:
        return Finding("events", WARN, "events-dead", message)
    return Finding("events", OK, OK, message)


def _oldest(depth: Overall, age: float) -> str:
    if depth.unknown_since is None:
        return f"oldest {age:.0f} s"
    known = "not known" if depth.oldest_at is None else f"{age:.0f} s"
    read = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(depth.unknown_since))
    return f"oldest {known}, last read {read}"
