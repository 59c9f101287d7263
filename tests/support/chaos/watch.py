"""Observes the workers during a run: when each ended, the most memory of each, and whether the counts add up."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from metrics import samples_of, scrape
from process import Gateway

from chaos.verdict import ENDS, Incident, unbalanced
from chaos.world import World, workers_of

LOOK_SECONDS = 0.1
SCRAPE_SECONDS = 1.0


class Watch:
    """`memory` is the highest resident set of each worker, in bytes."""

    def __init__(self, world: World, store: str) -> None:
        self.memory: dict[int, int] = {}
        self.deaths: list[Incident] = []
        self.problems: list[str] = []
        self.scrapes = 0
        self._world = world
        self._is_shared = store == "redis"
        self._seen: dict[int, float] = {}  # when each living worker was last seen
        self._ending: set[int] = set()
        self._restarts: list[asyncio.Task[None]] = []

    def expect_end(self, pids: list[int]) -> None:
        """Note workers that are asked to end, so that their end is not a death."""
        self._ending.update(pids)

    def expect_death(self, pid: int) -> None:
        """Note a worker that is about to be killed, even if it is ending."""
        self._ending.discard(pid)
        self.look()

    async def run(self) -> None:
        """Run until cancelled."""
        await asyncio.gather(self._look(), *(self._scrape(gateway) for gateway in self._world.gateways))

    async def _look(self) -> None:
        while True:
            self.look()
            for gateway in self._world.gateways:
                self._check_parent(gateway)
            await asyncio.sleep(LOOK_SECONDS)

    def _check_parent(self, gateway: Gateway) -> None:
        """A parent that ends without a fault is started again, as a service manager does, and is a problem."""
        lock = self._world.lock(gateway)
        if not lock.locked() and gateway.process is not None and gateway.process.poll() is not None:
            self.problems.append(f"after {self._world.seconds:.1f} s a gateway ended: {gateway.log()[-500:]}")
            self._restarts.append(asyncio.create_task(self._restart(gateway, lock)))

    async def _restart(self, gateway: Gateway, lock: asyncio.Lock) -> None:
        async with lock:
            await asyncio.to_thread(gateway.start)

    def look(self) -> None:
        now = time.monotonic()
        for gateway in self._world.gateways:
            for pid in workers_of(gateway):
                if peak := _peak_bytes(pid):
                    self.memory[pid] = max(self.memory.get(pid, 0), peak)
                    self._seen[pid] = now
        for pid in [pid for pid, seen in self._seen.items() if seen < now]:
            kind = "exit" if pid in self._ending else "death"
            self.deaths.append(Incident(kind, self._seen.pop(pid), now, f"worker {pid}"))

    async def _scrape(self, gateway: Gateway) -> None:
        """With Redis every machine counts the waiting events of all of them, so the sum does not hold for each."""
        while True:
            await asyncio.sleep(SCRAPE_SECONDS)
            with suppress(OSError, AssertionError, ValueError):
                counts = await asyncio.to_thread(counts_of, gateway)
                self.scrapes += 1
                if not self._is_shared and (problem := unbalanced(counts)):
                    self.problems.append(f"after {self._world.seconds:.1f} s {problem}")


def _peak_bytes(pid: int) -> int:
    """Return the highest resident set so far; 0 if the process has ended."""
    with suppress(OSError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def counts_of(gateway: Gateway) -> dict[str, Any]:
    """Return the counts of events in /metrics."""
    samples = samples_of(scrape(gateway)[0])
    gauges = ("waiting", "dead", "unknown")
    return {
        name: samples[f"fme_events_{name}" if name in gauges else f"fme_events_{name}_total", ()]
        for name in ("received", *ENDS)
    }
