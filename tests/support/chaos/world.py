"""Everything that takes part in a run: gateways, the stand-in for VWO, Redis, a small disk and two clocks."""

import asyncio
import math
import os
import resource
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from process import Gateway, sample_document
from redis_servers import Proxy, RedisServer
from vendor import Vendor

from chaos.traffic import is_poisoned
from chaos.verdict import Incident

DISK_BYTES = 32 * 1024 * 1024
WORKERS = 2
GATEWAYS = {"embedded": 1, "redis": 2}
OPTIONS = {
    "WORKERS": WORKERS,
    "EVENTS_PER_REQUEST": 50,
    "FLUSH_EVENTS_INTERVAL": 1,
    "POLLING_TIME": 1000,
    "SOCKET_TIMEOUT": 2,
    "SHUTDOWN_SECONDS": 5,
    "EVENT_QUEUE_FULL": "refuse",  # so that each 200 acknowledges its events
}


class Disk:
    """A small file system, or the directory itself if none can be mounted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"
        self.is_mounted = False

    @contextmanager
    def mounted(self) -> Iterator[None]:
        self.directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", self.directory]
        self.is_mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode
        try:
            yield
        finally:
            if self.is_mounted:
                kept = self.directory.with_name("kept")
                shutil.copytree(self.directory, kept, ignore=shutil.ignore_patterns("ballast"))
                subprocess.run(["umount", "--lazy", self.directory], check=True)

    def fill(self, gateways: "list[Gateway]") -> None:
        """Leave no space: another program takes all of it, or no process may write beyond 4 KB of a file."""
        if not self.is_mounted:
            _limit_files(gateways, 4096)
            return
        with suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def free(self, gateways: "list[Gateway]") -> None:
        if not self.is_mounted:
            _limit_files(gateways, resource.RLIM_INFINITY)
        self._ballast.unlink(missing_ok=True)


def _limit_files(gateways: "list[Gateway]", size: int) -> None:
    for gateway in gateways:
        for pid in pids_of(gateway):
            with suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def pids_of(gateway: Gateway) -> list[int]:
    """The parent and its workers; none if it does not run."""
    return [gateway.process.pid, *workers_of(gateway)] if gateway.process is not None else []


def workers_of(gateway: Gateway) -> list[int]:
    if gateway.process is None or gateway.process.returncode is not None:
        return []
    try:
        return gateway.worker_pids()
    except OSError:
        return []


def build_clock(directory: Path) -> Path | None:
    """Compile clock.c. None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


class Clock:
    """The wall clock of some processes, which run with `environment`. Without the library it cannot be stepped."""

    def __init__(self, file: Path, library: Path | None) -> None:
        self._file = file
        self._library = library
        file.write_bytes(bytes(8))

    def step(self, seconds: int) -> None:
        with self._file.open("r+b") as file:  # in its place, because the processes have mapped it
            file.write(struct.pack("q", seconds * 10**9))

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "STEPPED_CLOCK": str(self._file)} if self._library else {}


@dataclass
class World:
    """`incidents` are the faults so far; `began` is the start by the monotonic clock."""

    directory: Path
    vendor: Vendor
    gateways: list[Gateway]
    disk: Disk
    clock: Clock
    redis: RedisServer | None = None
    redis_clock: Clock | None = None
    proxy: Proxy | None = None
    began: float = field(default_factory=time.monotonic)
    incidents: list[Incident] = field(default_factory=list)
    locks: dict[int, asyncio.Lock] = field(default_factory=dict)

    def lock(self, gateway: Gateway) -> asyncio.Lock:
        """Held while a gateway is ended and started."""
        return self.locks.setdefault(gateway.port, asyncio.Lock())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def has_fault(self, kind: str) -> bool:
        """Return whether there is such a fault at the moment."""
        return any(each.kind == kind and each.ended == math.inf for each in self.incidents)

    def note(self, text: str) -> None:
        print(f"{self.seconds:7.1f} s  {text}", flush=True)

    @contextmanager
    def incident(self, kind: str, text: str, detail: str = "") -> Iterator[None]:
        """Record a fault for as long as it lasts."""
        self.note(text)
        began, number = time.monotonic(), len(self.incidents)
        self.incidents.append(Incident(kind, began, detail=detail))
        try:
            yield
        finally:
            self.incidents[number] = Incident(kind, began, time.monotonic(), detail)


@asynccontextmanager
async def world_of(store: str, directory: Path):  # type: ignore[no-untyped-def]
    """Start everything, with the embedded store or with Redis. Leaves no process behind."""
    with ExitStack() as stack:
        async with AsyncExitStack() as proxies:
            library = build_clock(directory)
            disk, clock = Disk(directory / "disk"), Clock(directory / "clock", library)
            stack.enter_context(disk.mounted())
            vendor = stack.enter_context(Vendor(sample_document()))
            vendor.rejects = is_poisoned
            options: dict[str, Any] = OPTIONS | clock.environment
            world = World(directory, vendor, [], disk, clock)
            if store == "redis":
                world.redis_clock = Clock(directory / "clock-redis", library)
                world.redis = stack.enter_context(_redis(directory, world.redis_clock))
                world.proxy = await proxies.enter_async_context(Proxy(world.redis.port))
                options |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": world.proxy.port}
            for number in range(GATEWAYS[store]):
                gateway = Gateway.of_vendor(disk.directory / str(number), vendor, is_fresh=True, **options)
                gateway.log_path = directory / f"gateway-{number}.log"
                stack.callback(_end, gateway)
                await asyncio.to_thread(gateway.start, "/ready")
                world.gateways.append(gateway)
            world.began = time.monotonic()
            yield world


def _redis(directory: Path, clock: Clock) -> RedisServer:
    """A Redis that keeps what it has acknowledged when it is killed: it writes before each reply."""
    environment = {"PATH": os.environ["PATH"], **clock.environment}
    return RedisServer(directory / "redis", environment=environment, appendonly="yes", appendfsync="no")


def _end(gateway: Gateway) -> None:
    if gateway.process is not None and gateway.process.poll() is None:
        gateway.kill()
    gateway.check_secrets()
