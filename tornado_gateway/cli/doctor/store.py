"""Checks of the stores: Redis, DATA_DIR with its disk and its admin token, and the events that wait there."""

import asyncio
import errno
import os
import tempfile
import time
from pathlib import Path

from tornado_gateway.cli.doctor.machine import Machine
from tornado_gateway.cli.doctor.remedies import FAIL, OK, WARN, Finding
from tornado_gateway.cli.stored_events import Overall, open_stored_events
from tornado_gateway.config import Config
from tornado_gateway.console import admin_token
from tornado_gateway.console.admin_token import AdminTokenError
from tornado_gateway.errors import GatewayError, StoreError
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.quantities import duration
from tornado_gateway.store.sqlite.repair.reports import find_damaged_files
from tornado_gateway.telemetry.problems import code_of_redis

DISK_LOW_BYTES = 1 << 30
DISK_FULL_BYTES = 100 << 20
LISTED_FILES = 5
WAITING_SHARE = 0.5  # of EVENT_QUEUE_LIMIT
WAITING_INTERVALS = 3  # of FLUSH_EVENTS_INTERVAL


async def check_redis(config: Config) -> Finding:
    if not config.uses_redis:
        return Finding("redis", OK, OK, "not configured: the embedded store in DATA_DIR is used")
    before = time.monotonic()
    try:
        can_notify, risks = await _use_redis(config)
    except StoreError as error:
        code = "redis-tls" if await _is_silent_to_tls(config, error) else code_of_redis(str(error))
        return Finding("redis", FAIL, code, str(error))
    if not can_notify:
        return Finding("redis", WARN, "redis-channels", "the user lacks the permission to publish (ACL)")
    if risks:
        return Finding("redis", WARN, "redis-loses", "; ".join(risks))
    milliseconds = (time.monotonic() - before) * 1000
    with_tls = ", TLS" if config.redis_enable_tls else ""
    return Finding("redis", OK, OK, f"wrote and read in {milliseconds:.0f} ms{with_tls}")


async def _use_redis(config: Config) -> tuple[bool, list[str]]:
    """Write to Redis. Return whether its channel can be used, too, and in which ways it can lose events."""
    from tornado_gateway.store.redis.events import open_redis  # not needed without Redis
    from tornado_gateway.store.redis.state import RedisState

    owner = f"doctor:{os.getpid()}"
    state = open_redis(redis_options(config), config.namespace, owner).state
    try:
        await state.open()
        await state.acquire_lease("doctor", owner)  # a write, which a replica or a full Redis rejects
        await state.release_lease("doctor", owner)
        if not isinstance(state, RedisState):
            return True, []
        return await state.can_notify(), list(await state.risks())
    finally:
        await state.close()


async def _is_silent_to_tls(config: Config, error: StoreError) -> bool:
    """Return whether Redis ignores a TLS handshake: without TLS, it reads the handshake as an incomplete line."""
    if not config.redis_enable_tls or config.redis_host is None or "no response" not in str(error):
        return False
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(config.redis_host, config.redis_port), 1)
    except OSError:
        return False
    writer.close()
    return True


def check_data_dir(directory: Path) -> Finding:
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


def find_damaged(directory: Path) -> Finding | None:
    """Return a warning about files that the store has moved aside."""
    files = find_damaged_files(directory)
    if not files:
        return None
    newest = ". ".join(file.message for file in files[:LISTED_FILES])
    message = f"{len(files)} damaged files were replaced. {newest}"
    return Finding("damaged files", WARN, "damaged-files", message)


def check_admin_token(config: Config) -> Finding:
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


def check_disk(directory: Path, machine: Machine) -> Finding:
    free = machine.free_bytes(_existing(directory))
    message = f"{free / (1 << 30):.1f} GiB free at {directory}"
    if free < DISK_FULL_BYTES:
        return Finding("disk", FAIL, "disk-full", message)
    if free < DISK_LOW_BYTES:
        return Finding("disk", WARN, "disk-low", message)
    return Finding("disk", OK, OK, message)


async def check_events(config: Config, machine: Machine) -> Finding:
    try:
        async with open_stored_events(config) as stored:
            depth = await stored.depth()
    except (GatewayError, OSError) as error:
        return Finding("events", WARN, "events-unreadable", str(error))
    return _judge_depth(config, depth, machine.now(), stored.where)


def _judge_depth(config: Config, depth: Overall, now: float, where: str) -> Finding:
    age = now - depth.oldest_at if depth.oldest_at is not None else 0.0
    known = "last known: " if depth.is_stale else ""
    message = f"{known}{depth.waiting} wait ({_oldest(depth, age)}), {depth.dead} dead: {where}"
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
        return f"oldest {duration(age)}"
    known = "not known" if depth.oldest_at is None else duration(age)
    read = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(depth.unknown_since))
    return f"oldest {known}, last read {read}"
