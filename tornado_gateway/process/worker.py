"""One worker process: starts the parts that `assembly` has made, and stops them in the reverse order."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

from tornado_gateway.config import Config, EnvironmentConfig
from tornado_gateway.errors import GatewayError
from tornado_gateway.process.announcement import banner
from tornado_gateway.process.assembly import Assembly
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.parts import enter
from tornado_gateway.tasks import wait_at_most
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.version import BUILD

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Python's default of 5 ms is how long the thread of the store waits for a busy loop, several times for each group.
SWITCH_SECONDS = 0.0005
YOUNG_OBJECTS = 1000  # 0.6 ms; more of them if as many older ones are freed meanwhile
# Parameters of glibc's mallopt, with their values. Blocks of this size are those of bodies of several events.
ALLOCATION = {
    -3: 512 << 10,  # M_MMAP_THRESHOLD
    -1: 4 << 20,  # M_TRIM_THRESHOLD
    -8: 2,  # M_ARENA_MAX: of the loop, and of all other threads
}


class Worker:
    """The parts of one process, as one list."""

    def __init__(
        self,
        config: Config,
        slot: WorkerSlot,
        memory: SharedCounters | None = None,
        stuck_after_seconds: float | None = None,
        environments: Sequence[EnvironmentConfig] | None = None,
    ) -> None:
        assembly = Assembly(config, slot, memory, stuck_after_seconds, environments)
        self._config = config
        self._serving, self._location = assembly.serving, assembly.location
        self.environments = assembly.environments
        self.parts = assembly.parts()
        self._server, self._publication = assembly.server, assembly.publication
        self._stopping = assembly.stopping
        self._entered = AsyncExitStack()

    async def start(self) -> None:
        """Start all parts. If one of them fails, stop those that were started and raise StartError."""
        async with AsyncExitStack() as entered:
            try:
                await enter(self.parts, entered)
            except BaseException:
                self._stopping.set()
                raise
            self._entered = entered.pop_all()
        self._publication.publish()
        scheme = "https" if self._config.tls_cert_path else "http"
        logger.info("serving on %s://%s:%d, version %s", scheme, self._config.host, self._server.port, BUILD)

    def announce(self) -> None:
        """Print the banner."""
        config = replace(self._config, port=self._server.port)  # PORT=0 is any free port
        banner.announce(config, self._serving, self._location)

    async def drain(self, further: asyncio.Event) -> None:
        """Serve as before for DRAIN_SECONDS, while /ready returns 503. A `further` signal ends it."""
        seconds = self._config.drain_seconds
        if not seconds:
            return
        self._stopping.set()
        logger.info("serving for %g s more, until load balancers have seen that /ready is 503", seconds)
        await wait_at_most(further, seconds)

    async def stop(self) -> None:
        """Accept no new requests, finish those in flight, and flush once more. The remaining events stay stored."""
        self._stopping.set()  # /ready returns 503 from now on
        await self._entered.aclose()


def run(
    config: Config,
    slot: WorkerSlot,
    memory: SharedCounters | None = None,
    environments: Sequence[EnvironmentConfig] | None = None,
) -> int:
    """Run one worker until SIGTERM or SIGINT. Return the exit code.

    `environments` are used if ENVIRONMENTS_FILE has a mistake now, because a worker may be replaced at any time.
    """
    _tune_allocator()
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(_serve(partial(Worker, config, slot, memory, environments=environments), slot))


async def _serve(make: Callable[[], Worker], slot: WorkerSlot) -> int:
    stop, further = _stop_events()
    try:
        worker = make()
        await worker.start()
    except (GatewayError, OSError) as error:
        logger.error("the gateway cannot start: %s", error)
        return 1
    _tune_collector()
    slot.report_ready()
    if slot.is_first:
        worker.announce()
    await stop.wait()
    await worker.drain(further)
    return await _stop(worker)


def _stop_events() -> tuple[asyncio.Event, asyncio.Event]:
    """Return the events of a stop and of a further signal, which ends the drain.

    SIGINT stops without a drain, for Ctrl-C and rolling restarts.
    """
    loop = asyncio.get_running_loop()
    stop, further = asyncio.Event(), asyncio.Event()

    def stop_now() -> None:
        further.set()
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, lambda: (further if stop.is_set() else stop).set())
    loop.add_signal_handler(signal.SIGINT, stop_now)
    return stop, further


async def _stop(worker: Worker) -> int:
    # Closing the loop removes its signal handlers. A repeated signal would then kill the process before it has ended.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        await worker.stop()
    except (GatewayError, OSError) as error:
        logger.error("the gateway has stopped with an error: %s", error)
        return 1
    return 0


def _tune_collector() -> None:
    """Collect garbage rarely, because requests leave no cycles, and skip objects that live as long as the process.

    New objects are examined in small groups, because the loop waits for that: 30 ms for 50,000 of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 1000, 50)


def _tune_allocator() -> None:
    """Return the memory of large bodies to the system when they are freed.

    By default glibc keeps blocks of up to 32 MB for itself once some of them were freed, and smaller ones, which live
    longer, split them: a worker under attack had 72 MB that it did not use. Other C libraries have no mallopt.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ALLOCATION.items():
            mallopt(parameter, value)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop if it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()
