"""The servers that are measured, each as a context manager that gives a `Target`; and what they lean on."""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from accounts import ACCOUNT_ID, SDK_KEY, account, unleash_features
from measure import (
    DRAIN_SECONDS,
    HERE,
    LOAD_CORE,
    SERVER_CORE,
    Row,
    Target,
    UnavailableError,
    accepts,
    answers,
    fetch_json,
    free_port,
    process,
)

PEERS = HERE / "peers"
ANSWER = '{"isEnabled":true,"variables":[{"value":"on","type":"string","key":"title","id":1}]}'
BATCH_EVENTS = 100  # of the gateway by default, and of the SDKs
ENABLED = b'"isEnabled":true'
FLAG_PROBE = (
    "/server-side/getFlag",
    b'{"featureKey":"feature-0","userId":"probe","customVariables":{"plan":"gold"}}',
    ENABLED,
)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A temporary one, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield Path(name)


# ---- What servers lean on --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def vendor(
    *,
    settings: Path | None = None,
    is_changing: bool = False,
    unleash: Path | None = None,
    cores: Sequence[int] = (LOAD_CORE,),
) -> Iterator[int]:
    """The stand-in for the vendor. Gives its port."""
    port = free_port()
    command: list[object] = [sys.executable, HERE / "vendor.py", port]
    command += ["--settings", settings] if settings else []
    command += ["--changing"] if is_changing else []
    command += ["--unleash", unleash] if unleash else []
    with process(*command, cores=cores, ready=accepts(port)):
        yield port


@contextlib.contextmanager
def redis(*, cores: Sequence[int] = (LOAD_CORE,)) -> Iterator[int]:
    """A Redis with an append-only file that is synced every second. Gives its port."""
    command = needed("redis-server")
    port = free_port()
    with directory() as folder:
        options = ["--port", port, "--bind", "127.0.0.1", "--dir", folder]
        options += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        with process(command, *options, cores=cores, ready=accepts(port)):
            yield port


def needed(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise UnavailableError(f"{command} is not installed")
    return path


# ---- The gateway -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def gateway(
    document: dict[str, Any],
    *,
    uses_redis: bool = False,
    workers: int = 1,
    cores: Sequence[int] = (SERVER_CORE,),
    **options: object,
) -> Iterator[Target]:
    """The gateway as it is installed, with its settings from a file; its events go to the stand-in."""
    with directory() as folder, vendor() as vendor_port, contextlib.ExitStack() as stack:
        if uses_redis:
            options |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": stack.enter_context(redis())}
        (folder / "settings.json").write_text(json.dumps(document))
        options |= {
            "SETTINGS_FILE": folder / "settings.json",
            "UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}",
            "WORKERS": workers,
        }
        with started_gateway(folder / "data", cores=cores, **options) as (pid, port):
            yield Target(pid, port, partial(delivery, port, vendor_port, workers))


@contextlib.contextmanager
def started_gateway(
    data: Path, *, cores: Sequence[int] = (SERVER_CORE,), **options: object
) -> Iterator[tuple[int, int]]:
    """A gateway that is ready: its process and its port."""
    port = free_port()
    defaults: dict[str, object] = {
        "PYTHONSAFEPATH": 1,  # PYTHONPATH says which build, not the current directory
        "HOST": "127.0.0.1",
        "PORT": port,
        "WORKERS": 1,
        "DECISION_REQUIRED": "true",
        "DATA_DIR": data,
        "EVENT_QUEUE_LIMIT": 100_000_000,
        "SHUTDOWN_SECONDS": 2,
    }
    command = [sys.executable, "-m", "tornado_gateway", "serve"]
    ready = answers(f"http://127.0.0.1:{port}/ready")
    with process(*command, cores=cores, ready=ready, **(defaults | options)) as running:
        yield running.pid, port


def delivery(port: int, vendor_port: int, workers: int = 1) -> Row:
    """Wait until no worker has a full batch any more, then compare what the gateway took with what has arrived.

    `delivered_percent` says how much had arrived when the load ended.
    """
    arrived = _arrived(vendor_port)
    counts = _counts(port)
    share = 100 * min(1.0, arrived / counts["received"]) if counts["received"] else 100.0
    deadline = time.monotonic() + DRAIN_SECONDS
    while not (is_balanced := _is_settled(port, vendor_port, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return {"delivered_percent": share, "is_balanced": is_balanced}


def _is_settled(port: int, vendor_port: int, workers: int) -> bool:
    counts = _counts(port)
    is_complete = counts["received"] == counts["delivered"] + counts["waiting"] and counts["dead"] == 0
    return is_complete and counts["waiting"] < BATCH_EVENTS * workers and _arrived(vendor_port) == counts["delivered"]


def _counts(port: int) -> dict[str, int]:
    counts: dict[str, int] = fetch_json(f"http://127.0.0.1:{port}/status")["events"]
    return counts


def _arrived(vendor_port: int) -> int:
    return int(fetch_json(f"http://127.0.0.1:{vendor_port}/count")["events"])


# ---- Yardsticks and peers --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def simple(
    *command: object, ready: Callable[[int], Callable[[], bool]] = accepts, **environment: object
) -> Iterator[Target]:
    """A server that takes its port as the last argument and as PORT."""
    port = free_port()
    with process(*command, port, cores=[SERVER_CORE], ready=ready(port), PORT=port, **environment) as running:
        yield Target(running.pid, port)


def constant(**environment: object) -> AbstractContextManager[Target]:
    """Our own HTTP front with a constant answer."""
    return simple(sys.executable, HERE / "constant.py", **environment)


def bare_tornado() -> AbstractContextManager[Target]:
    return simple(sys.executable, PEERS / "tornado_bare.py")


def bare_node() -> AbstractContextManager[Target]:
    return simple(needed("node"), PEERS / "node_bare.cjs", NODE_ENV="production")


@contextlib.contextmanager
def nginx(location: str) -> Iterator[Target]:
    """nginx with one process and this content of its only location; "%s" in it is its folder."""
    command = needed("nginx")
    port = free_port()
    with directory() as folder:
        (folder / "nginx.conf").write_text(_nginx_configuration(port, location.replace("%s", str(folder))))
        (folder / "logs").mkdir()
        arguments = ["-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
        with process(command, *arguments, cores=[SERVER_CORE], ready=accepts(port)) as running:
            yield Target(running.pid, port)


def _nginx_configuration(port: int, location: str) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path temp-{kind};" for kind in kinds)
    return f"""
        daemon off; master_process off; pid nginx.pid; error_log stderr crit;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; keepalive_requests 1000000000; sendfile on; tcp_nodelay on; {temporary}
            default_type "application/json; charset=utf-8";
            server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}
        }}"""


def constant_nginx() -> AbstractContextManager[Target]:
    return nginx(f"return 200 '{ANSWER}';")


@contextlib.contextmanager
def with_sdk(*command: object, document: dict[str, Any], **environment: object) -> Iterator[Target]:
    """A server that decides with an official SDK, which sends its events to the stand-in in batches of 100."""
    with directory() as folder:
        settings = folder / "settings.json"
        settings.write_text(json.dumps(document))
        options: dict[str, object] = {"SETTINGS_FILE": settings, "ACCOUNT_ID": ACCOUNT_ID, "SDK_KEY": SDK_KEY}
        with (
            vendor(settings=settings) as vendor_port,
            simple(*command, VENDOR_PORT=vendor_port, **options, **environment) as target,
        ):
            yield Target(target.pid, target.port, SdkDelivery(vendor_port))


class SdkDelivery:
    """The SDKs do not say what waits: wait until nothing more arrives, and tell what is new since the last time."""

    def __init__(self, vendor_port: int) -> None:
        self._vendor_port = vendor_port
        self._seen = 0

    def __call__(self) -> Row:
        before, arrived = -1, _arrived(self._vendor_port)
        while arrived != before:
            time.sleep(0.3)
            before, arrived = arrived, _arrived(self._vendor_port)
        new, self._seen = arrived - self._seen, arrived
        return {"arrived_events": new}


def node_sdk(features: int, kind: Callable[..., Any]) -> AbstractContextManager[Target]:
    node = _node_with("vwo-fme-node-sdk")
    return with_sdk(node, PEERS / "fastify_sdk.cjs", document=account(features, kind), NODE_ENV="production")


def python_sdk(features: int, kind: Callable[..., Any]) -> AbstractContextManager[Target]:
    with contextlib.suppress(ImportError):
        import vwo  # noqa: F401  # only to see whether it is there

        return with_sdk(sys.executable, PEERS / "tornado_sdk.py", document=account(features, kind))
    raise UnavailableError("vwo-fme-python-sdk is not installed")


@contextlib.contextmanager
def unleash_proxy(features: int) -> Iterator[Target]:
    """As its own container image starts it, with the stand-in as the Unleash API."""
    node = _node_with("@unleash/proxy")
    with directory() as folder:
        (folder / "features.json").write_text(json.dumps(unleash_features(features)))
        with vendor(unleash=folder / "features.json") as vendor_port:
            options = {
                "UNLEASH_URL": f"http://127.0.0.1:{vendor_port}/api",
                "UNLEASH_API_TOKEN": "benchmark",
                "UNLEASH_PROXY_CLIENT_KEYS": "benchmark",
                "LOG_LEVEL": "error",
                "NODE_ENV": "production",
            }
            start = PEERS / "node_modules" / "@unleash" / "proxy" / "dist" / "start.js"
            ready = lambda port: answers(f"http://127.0.0.1:{port}/proxy/health")  # noqa: E731
            with simple(node, start, ready=ready, **options) as target:
                yield target


def _node_with(package: str) -> str:
    node = needed("node")
    if not (PEERS / "node_modules" / package).is_dir():
        raise UnavailableError(f"{package} is not installed: scripts/bench does it where npm reaches a registry")
    return node
