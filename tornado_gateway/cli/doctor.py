"""`tornado-gateway doctor`: looks at everything that a gateway depends on and says what to do about what is wrong.

Each finding has a code, and each code that is not "ok" has its remedy in `REMEDIES`, which docs/operating.md repeats.
Nothing is changed: what is written for a test is removed again.
"""

import asyncio
import errno
import os
import re
import resource
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from tornado_gateway import __version__, core
from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.stored_events import Overall, open_backlog
from tornado_gateway.config import Config
from tornado_gateway.console import admin_token
from tornado_gateway.console.admin_token import AdminTokenError
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import EDITION
from tornado_gateway.errors import GatewayError, StoreError, UpstreamError
from tornado_gateway.http.certificates import CertificateError, expiry
from tornado_gateway.settings.compilation import compile_document
from tornado_gateway.upstream.client import Dialect, Upstream

__all__ = ["REMEDIES", "Finding", "Machine", "examine", "finding_of_configuration"]

OK, WARN, FAIL = "ok", "warn", "fail"

REMEDIES = {
    "configuration": "Correct the variable that is named; `tornado-gateway config` shows where each value comes from.",
    "key-refused": "Compare ACCOUNT_ID and SDK_KEY with the dashboard: account settings, and the SDK key of the"
    " environment (production, staging). A key that was revoked there is refused as well.",
    "upstream-unreachable": "Check from this machine: `curl -v UPSTREAM_URL`. Name resolution, the firewall's outgoing"
    " rules and the route to it are the usual reasons. The gateway goes on with its last settings meanwhile.",
    "upstream-tls": "The certificate that arrives is not the vendor's: a proxy that inspects TLS, a wrong UPSTREAM_URL,"
    " or a machine without CA certificates (Debian: package ca-certificates).",
    "upstream-failing": "The vendor has trouble or limits requests; wait and look at its status page. Nothing is lost:"
    " settings stay, events wait.",
    "upstream-strange": "Something that is not the vendor answers at UPSTREAM_URL, such as a login page of a proxy."
    " Look at the answer with `curl -i UPSTREAM_URL`.",
    "settings-unusable": "Correct in the dashboard (or in SETTINGS_FILE) what is named. A running gateway keeps the"
    " last good settings.",
    "collector-unreachable": "Check COLLECT_URL as UPSTREAM_URL: name, firewall, route. Events wait meanwhile.",
    "clock": "Set the clock with NTP (`timedatectl set-ntp true`): event times and TLS certificates depend on it.",
    "redis-unreachable": "Check REDIS_HOST and REDIS_PORT, that Redis runs (`redis-cli ping` from this machine), its"
    " `bind` and the firewall. Events go to DATA_DIR meanwhile.",
    "redis-password": "Set REDIS_PASSWORD (and REDIS_USERNAME with ACLs) to what Redis expects.",
    "redis-tls": "Both sides must agree: REDIS_ENABLE_TLS and Redis' tls-port, REDIS_TLS_CA_PATH for the authority,"
    " REDIS_TLS_CERT_PATH if Redis asks for a client's certificate.",
    "redis-failing": "Redis answers but cannot do its work: do what is said, or look into its log (`INFO`, maxmemory,"
    " replica, ACL).",
    "geo-wanted": "Features ask for the location: set MAXMIND_DB_PATH, or MAXMIND_USER_ID and MAXMIND_LICENSE_KEY.",
    "geo-absent": "Put the database there, or correct MAXMIND_DB_PATH; with a MaxMind account:"
    " `tornado-gateway geo update`.",
    "geo-broken": "Replace the file: with a MaxMind account by `tornado-gateway geo update`, otherwise by a new"
    " download. A running gateway keeps the last good one.",
    "geo-old": "Refresh it: `tornado-gateway geo update`, or whatever brings the file to MAXMIND_DB_PATH.",
    "data-dir": "Make DATA_DIR a directory that the gateway's user may write to: `chown tornado-gateway: DATA_DIR`;"
    " in a container, mount a volume there.",
    "admin-token": "Do what is said about the file, or set ADMIN_TOKEN. The gateway does not start without a token.",
    "admin-token-exposed": "Run `chmod 600 DATA_DIR/admin-token`; the next start does it as well. If other users have"
    " used the machine, delete the file and restart the gateway: it creates a new token.",
    "disk-full": "Free space on the disk of DATA_DIR now; without it events cannot be stored and are refused with 503.",
    "disk-low": "Free space on the disk of DATA_DIR, or move it: a day without upstream needs about 1 KB per event.",
    "open-files": "Raise the limit: LimitNOFILE in the service unit, `ulimits` of a container, `ulimit -n` in a shell."
    " Every connection takes one.",
    "port-taken": "Another program listens there: find it with `ss -ltnp`, end it or choose another PORT.",
    "port-forbidden": "Ports below 1024 need CAP_NET_BIND_SERVICE; HOST has to be an address of this machine.",
    "certificate": "Install a certificate and its key that belong together and are valid; the gateway takes them up by"
    " itself when the files change.",
    "certificate-ending": "Renew the certificate; the gateway takes it up by itself when the files change.",
    "events-waiting": "Events do not get away: see the lines about upstream, and last_flush in /status for the reason.",
    "events-stuck": "Restart the gateway: waiting events stay stored and are sent after the start. If it happens again,"
    " report it with the log and /status.",
    "events-dead": "See why with `tornado-gateway events list`, then `tornado-gateway events requeue` or"
    " `tornado-gateway events export`.",
    "events-unreadable": "If a gateway runs, give this command its HOST, PORT and ADMIN_TOKEN; if none does, look at"
    " the files in DATA_DIR.",
}

CLOCK_WARN_SECONDS = 30.0
CLOCK_FAIL_SECONDS = 300.0
GEO_OLD_DAYS = 30  # MaxMind publishes twice a week
DISK_LOW_BYTES = 1 << 30
DISK_FULL_BYTES = 100 << 20
OPEN_FILES_LOW = 8192
OPEN_FILES_FEW = 1024
CERTIFICATE_DAYS = 14
WAITING_SHARE = 0.5  # of EVENT_QUEUE_LIMIT
WAITING_INTERVALS = 3  # of FLUSH_EVENTS_INTERVAL


class Finding(NamedTuple):
    """One line of the report. `code` is "ok" or a key of REMEDIES."""

    check: str
    state: str
    code: str
    message: str

    @property
    def remedy(self) -> str:
        return REMEDIES.get(self.code, "")

    def as_json(self) -> dict[str, str]:
        return {**self._asdict(), "remedy": self.remedy}


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of the machine, so that a test can be one."""

    now: Callable[[], float] = time.time
    free_bytes: Callable[[Path], int] = _free_bytes
    open_files: Callable[[], int] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]


_THIS_MACHINE = Machine()


def finding_of_configuration(problem: str) -> Finding:
    return Finding("configuration", FAIL, "configuration", problem)


async def examine(config: Config, machine: Machine = _THIS_MACHINE) -> AsyncIterator[Finding]:
    """All findings, each as soon as it is known."""
    yield Finding("configuration", OK, OK, "can be used")
    finding, settings = await (_look_at_file(config) if config.is_offline else _look_at_upstream(config))
    yield finding
    if not config.is_offline and config.collect_url != config.upstream_url:
        yield (await _look_at_server(config, machine, config.collect_url, "collector"))[0]
    if not config.is_offline:
        yield (await _look_at_server(config, machine, config.upstream_url, "clock"))[1]
    yield await _look_at_redis(config)
    yield await asyncio.to_thread(_look_at_location, config, settings, machine)
    storage = _look_at_data_dir(config.data_dir)
    yield storage
    if storage.state == OK:
        yield _look_at_admin_token(config)
    yield _look_at_disk(config.data_dir, machine)
    yield _look_at_open_files(machine)
    yield await asyncio.to_thread(_look_at_port, config)
    if config.tls_cert_path and config.tls_key_path:
        yield _look_at_certificate(config.tls_cert_path, config.tls_key_path, machine)
    if storage.code != "data-dir":  # the events that wait can be counted on a full disk, too
        yield await _look_at_events(config, machine)


# Upstream: settings, clock


Looked = tuple[Finding, core.Settings | None]


async def _look_at_file(config: Config) -> Looked:
    """Offline: the settings come from a file, and nobody upstream is asked."""
    assert config.settings_file is not None  # noqa: S101  the configuration has seen to it
    return _judge_settings(config, config.settings_file.read_bytes(), f"offline, from {config.settings_file}")


async def _look_at_upstream(config: Config) -> Looked:
    upstream = Upstream(
        config.upstream_url,
        config.collect_url,
        str(config.account_id),
        config.sdk_key or "",
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
    return _judge_settings(config, document, f"{config.upstream_url} answered in {milliseconds:.0f} ms, key accepted")


def _judge_settings(config: Config, document: bytes, origin: str) -> Looked:
    try:
        settings = compile_document(document, core.Sdk(config.sdk_name, __version__)).settings
    except core.SettingsError as error:
        is_json = document.lstrip()[:1] in (b"{", b"[")
        code = "settings-unusable" if is_json or config.is_offline else "upstream-strange"
        return Finding("upstream", FAIL, code, f"the settings cannot be used: {'; '.join(error.problems)}"), None
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


async def _look_at_server(config: Config, machine: Machine, url: str, check: str) -> tuple[Finding, Finding]:
    """Any answer will do: that there is one, and what time it says."""
    client = AsyncHTTPClient(force_instance=True)
    timeout = config.socket_timeout_seconds
    request = HTTPRequest(url, "HEAD", connect_timeout=timeout, request_timeout=timeout, follow_redirects=False)
    try:
        response = await client.fetch(request, raise_error=False)
    except (HTTPClientError, OSError) as error:
        unknown = Finding("clock", WARN, "upstream-unreachable", "cannot be compared: upstream tells no time")
        return Finding(check, FAIL, "collector-unreachable", f"{url}: {error}"), unknown
    finally:
        client.close()
    now = machine.now()
    return Finding(check, OK, OK, f"{url} answers"), _judge_clock(response.headers.get("Date", ""), now)


def _judge_clock(date: str, now: float) -> Finding:
    try:
        off = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("clock", OK, OK, "not compared: upstream tells no time")
    if abs(off) < CLOCK_WARN_SECONDS:
        return Finding("clock", OK, OK, f"agrees with upstream within {CLOCK_WARN_SECONDS:.0f} s")
    state = WARN if abs(off) < CLOCK_FAIL_SECONDS else FAIL
    direction = "ahead of" if off > 0 else "behind"
    return Finding("clock", state, "clock", f"{abs(off):.0f} s {direction} upstream's")


# Redis


async def _look_at_redis(config: Config) -> Finding:
    if config.redis_host is None and not config.redis_sentinels:
        return Finding("redis", OK, OK, "not configured: the embedded store in DATA_DIR is used")
    from tornado_gateway.store.redis.events import open_redis  # what a gateway without Redis need not load

    owner = f"doctor:{os.getpid()}"
    state = open_redis(config, config.namespace, owner).state
    before = time.monotonic()
    try:
        await state.open()
        await state.acquire_lease("doctor", owner)  # a write, which a replica or a full Redis refuses
        await state.release_lease("doctor", owner)
    except StoreError as error:
        code = "redis-tls" if await _is_silent_to_tls(config, error) else _code_of_redis(str(error))
        return Finding("redis", FAIL, code, str(error))
    finally:
        await state.close()
    milliseconds = (time.monotonic() - before) * 1000
    with_tls = ", TLS" if config.redis_enable_tls else ""
    return Finding("redis", OK, OK, f"written to and read from within {milliseconds:.0f} ms{with_tls}")


async def _is_silent_to_tls(config: Config, error: StoreError) -> bool:
    """A Redis without TLS waits for the end of the line that our handshake seems to be."""
    if not config.redis_enable_tls or config.redis_host is None or "no answer" not in str(error):
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
        ("redis-unreachable", r"connect|refused|timed? ?out|no answer|too slow|resol|unreachable|closed|not known"),
    ):
        if re.search(signs, message, re.IGNORECASE):
            return code
    return "redis-failing"


# Files and the machine


def _look_at_location(config: Config, settings: core.Settings | None, machine: Machine) -> Finding:
    path = config.maxmind_db_path or (config.data_dir / f"{EDITION}.mmdb" if config.maxmind_license_key else None)
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


def _look_at_data_dir(directory: Path) -> Finding:
    """Write as the gateway does: into the directory or, if it is not there yet, into the one it will be made in."""
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
        "data directory", OK, OK, f"{directory} {'can be written to' if directory.exists() else 'can be made'}"
    )


def _look_at_admin_token(config: Config) -> Finding:
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
    """The directory, or the nearest one above that exists."""
    return next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())


def _look_at_disk(directory: Path, machine: Machine) -> Finding:
    free = machine.free_bytes(_existing(directory))
    message = f"{free / (1 << 30):.1f} GiB free at {directory}"
    if free < DISK_FULL_BYTES:
        return Finding("disk", FAIL, "disk-full", message)
    if free < DISK_LOW_BYTES:
        return Finding("disk", WARN, "disk-low", message)
    return Finding("disk", OK, OK, message)


def _look_at_open_files(machine: Machine) -> Finding:
    limit = machine.open_files()
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES_LOW:
        return Finding("open files", OK, OK, "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}")
    message = f"this process may open {limit} files; a service can have another limit"
    return Finding("open files", FAIL if limit < OPEN_FILES_FEW else WARN, "open-files", message)


def _look_at_port(config: Config) -> Finding:
    """Free, or taken by a gateway."""
    client = Client(config)
    try:
        status, answer = client.ask("/health")
        if status == 200 and isinstance(answer, dict) and answer.get("status") == "ok":
            return Finding("port", OK, OK, f"a gateway answers at {client.url}")
        return Finding("port", FAIL, "port-taken", f"{client.url} answers, but not as a gateway")
    except ClientError as error:
        if error.status:
            return Finding("port", FAIL, "port-taken", str(error))
    return _try_to_listen(config)


def _try_to_listen(config: Config) -> Finding:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        socket.create_server((config.host, config.port), family=family).close()
    except PermissionError:
        return Finding("port", FAIL, "port-forbidden", f"this user may not listen on port {config.port}")
    except OSError as error:
        code = "port-taken" if "in use" in str(error) else "port-forbidden"
        return Finding("port", FAIL, code, f"{config.host}:{config.port}: {error.strerror}")
    return Finding("port", OK, OK, f"{config.port} is free")


def _look_at_certificate(cert: Path, key: Path, machine: Machine) -> Finding:
    try:
        days = (expiry(cert, key) - machine.now()) / 86400
    except CertificateError as error:
        return Finding("certificate", FAIL, "certificate", str(error))
    if days < CERTIFICATE_DAYS:
        return Finding("certificate", WARN, "certificate-ending", f"{cert} ends in {days:.0f} days")
    return Finding("certificate", OK, OK, f"{cert}, valid for {days:.0f} days")


async def _look_at_events(config: Config, machine: Machine) -> Finding:
    try:
        async with open_backlog(config) as backlog:
            depth = await backlog.depth()
    except (GatewayError, OSError) as error:
        return Finding("events", WARN, "events-unreadable", str(error))
    age = machine.now() - depth.oldest_at if depth.oldest_at is not None else 0.0
    message = f"{depth.waiting} wait ({_oldest(depth, age)}), {depth.dead} dead: {backlog.where}"
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
