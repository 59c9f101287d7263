"""Command line: faults at random, chosen by a seed, with the embedded store and with Redis. See scripts/chaos."""

import argparse
import asyncio
import collections
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from ledger import identity
from load import Exchange
from process import Gateway
from redis_servers import REDIS_SERVER

from chaos import faults
from chaos.plan import PARTS, of_part, plan
from chaos.traffic import Clients, Newcomers, requests_of, sendings
from chaos.verdict import Evidence, Key, Taken, change_problems, problems, summary, unbalanced
from chaos.watch import Watch, counts_of
from chaos.world import World, world_of
from tornado_gateway.store.spill import LOCAL

WORKER_BYTES = 256 << 20
CONNECTIONS = 10
PAUSE_SECONDS = 0.06  # of each connection between two requests
DRAIN_SECONDS = 150.0  # pauses of delivery are up to 30 s, and poisoned events need several attempts
AUDIT_SECONDS = 60.0
AUDITED = 140  # requests, of each gateway
POLL_SECONDS = 0.3
FORBIDDEN = ("Traceback", "Unhandled error", "unexpectedly")  # in logs


class Run:
    """One run with one store."""

    def __init__(self, seed: int, store: str, seconds: float, world: World) -> None:
        self.problems: list[str] = []
        self.world = world
        self.watch = Watch(world, store)
        self._seed = seed
        self._store = store
        self._seconds = seconds
        self._exchanges: list[Exchange] = []

    async def run(self) -> None:
        watching = asyncio.create_task(self.watch.run())
        try:
            await self._under_load(self._fail(), Clients, CONNECTIONS, PAUSE_SECONDS, "load")
            self.world.note("everything is repaired")
            # An event dies only while others of its worker succeed.
            await self._under_load(self._until_accounted_for(), Newcomers, 2, 0.2, "drain")
            await self._until(lambda counts: not any(each["waiting"] for each in counts), "events still wait")
            await self._audit()
            await asyncio.to_thread(self._judge, await self._evidence())  # beside the proxy to Redis
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _under_load(self, work: Any, clients: type[Clients], connections: int, pause: float, name: str) -> None:
        loads = [
            clients(
                gateway.port,
                requests_of(f"{self._seed}-{name}-{number}", poison=name == "load"),
                connections,
                None,
                pause,
            )
            for number, gateway in enumerate(self.world.gateways)
        ]
        running = asyncio.gather(*(load.run() for load in loads))
        try:
            await work
        finally:
            for load in loads:
                load.stopping = True
            await running
            self._exchanges += [exchange for load in loads for exchange in load.exchanges]

    async def _fail(self) -> None:
        steps = plan(self._seed, self._store, self._seconds)
        parts = (faults.play(self.world, self.watch, of_part(steps, part)) for part in PARTS[self._store])
        await asyncio.gather(*parts)
        await asyncio.sleep(max(0.0, self._seconds - self.world.seconds))

    async def _until_accounted_for(self) -> None:
        """Wait until each event that was acknowledged has arrived or is a dead letter."""
        acknowledged = sendings(self._exchanges)
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            evidence = await self._evidence(acknowledged)
            if not evidence.missing:
                return
            await asyncio.sleep(1)
        self.world.note(f"{len(evidence.missing)} events are missing after {DRAIN_SECONDS} s")

    async def _evidence(self, sent: dict[Key, Any] | None = None) -> Evidence:
        evidence = Evidence(sendings(self._exchanges) if sent is None else sent)
        for arrival in self.world.vendor.arrivals[:]:
            for event in arrival.events:
                evidence.taken.setdefault(identity(event), []).append(Taken(arrival.taken, arrival.answered))
        shared, local = await asyncio.to_thread(self._dead_events)
        evidence.dead = collections.Counter(itertools.chain(shared, *local))
        evidence.incidents = self.world.incidents + self.watch.deaths
        return evidence

    def _dead_events(self) -> tuple[list[Key], list[list[Key]]]:
        """Return the dead letters of the shared store, and those in the data directory of each gateway."""
        letters = [dead_events(gateway) for gateway in self.world.gateways]
        if self._store == "embedded":
            return [], [letters[0][""]]
        return letters[0][""], [each["local"] for each in letters]

    # --- Counts ---

    async def _counts(self) -> list[dict[str, Any]]:
        return [await asyncio.to_thread(counts_of, gateway) for gateway in self.world.gateways]

    async def _until(self, is_true: Callable[[list[dict[str, Any]]], bool], otherwise: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + AUDIT_SECONDS
        while not is_true(counts := await self._counts()):
            if time.monotonic() > deadline:
                self.problems.append(f"{otherwise}: {counts}")
                break
            await asyncio.sleep(POLL_SECONDS)
        return counts

    async def _audit(self) -> None:
        """Send events without any fault, and compare their number with the changes of the counts."""
        await asyncio.to_thread(self._lasting_count_problems)  # which are reported at the end
        before = _total(await self._counts())
        sent: set[Key] = set()
        for number, gateway in enumerate(self.world.gateways):
            make = requests_of(f"{self._seed}-audit-{number}")
            load = Clients(gateway.port, lambda at, make=make: make(7 * at + 6), 4, AUDITED)  # batches
            await load.run()
            self._exchanges += load.exchanges
            sent |= sendings(load.exchanges).keys()
        counts = await self._until(
            lambda counts: (
                _total(counts)["delivered"] >= before["delivered"] + len(sent) and not _total(counts)["waiting"]
            ),
            "the events of the audit are not delivered",
        )
        arrivals = sum(len(taken) for key, taken in (await self._evidence()).taken.items() if key in sent)
        self.problems += change_problems(before, _total(counts), len(sent), arrivals)

    # --- Verdict ---

    def _judge(self, evidence: Evidence) -> None:
        self.problems += self.watch.problems[:3]
        self.problems += problems(evidence)
        self.problems += self._lasting_count_problems()
        peak = max(self.watch.memory.values())
        if peak > WORKER_BYTES:
            self.problems.append(f"a worker needed {peak >> 20} MB, more than {WORKER_BYTES >> 20} MB")
        statuses = collections.Counter(exchange.status for exchange in self._exchanges)
        if statuses.keys() - {200, 503, None}:
            self.problems.append(f"unexpected responses: {statuses}")
        for gateway in self.world.gateways:
            lines = [line for line in gateway.log().splitlines() if any(word in line for word in FORBIDDEN)]
            if lines:
                self.problems.append(f"{len(lines)} lines in {gateway.log_path.name}, such as {lines[0][:300]}")
        shown = ", ".join(f"{count} {status or 'without response'}" for status, count in statuses.items())
        print(f"{len(self.world.incidents)} faults, {len(self.watch.deaths)} ends of workers")
        print(f"requests: {shown}; scrapes: {self.watch.scrapes}; most memory of a worker: {peak >> 20} MB")
        print(summary(evidence))

    def _lasting_count_problems(self) -> list[str]:
        """With Redis, the number of dead events may be half a minute old."""
        deadline = time.monotonic() + AUDIT_SECONDS
        while (found := self._count_problems()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return found

    def _count_problems(self) -> list[str]:
        """The final numbers of /metrics and /status, which the audit has left without waiting events."""
        found = []
        shared, local = self._dead_events()
        for gateway, own in zip(self.world.gateways, local, strict=True):
            dead = len(shared) + len(own)
            for name, counts in (("/metrics", counts_of(gateway)), ("/status", gateway.status()["events"])):
                if self._store == "embedded":
                    found += [
                        unbalanced(counts),
                        f"{counts['unknown']} events are unknown" if counts["unknown"] else None,
                    ]
                for key, value in (("waiting", 0), ("dead", dead), ("lost", 0), ("discarded", 0)):
                    if counts[key] != value:
                        found.append(f"{name} of gateway {gateway.port} has {counts[key]} {key}, expected {value}")
        return [problem for problem in found if problem]


def _total(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums over all gateways; those of a shared Redis all show the same waiting and dead events."""
    total = {name: sum(each[name] for each in counts) for name in counts[0]}
    return total | {name: max(each[name] for each in counts) for name in ("waiting", "dead", "unknown")}


def dead_events(gateway: Gateway) -> dict[str, list[Key]]:
    """Return the events of all dead letters by store, "local" or ""; none if they cannot be read now."""
    found: dict[str, list[Key]] = {"": [], "local": []}
    first = ""
    while True:
        try:
            status, page = gateway.get(f"/admin/events?complete=true&limit=1000{first}", gateway.admin_headers)
        except OSError:
            return found
        if status != 200:
            return found
        for letter in page["dead"]:
            store = "local" if str(letter["id"]).startswith(LOCAL) else ""
            found[store] += [identity(orjson.loads(line)) for line in letter["body"].splitlines()]
        if page["next"] is None:
            return found
        first = f"&first={page['next']}"


async def _run(seed: int, store: str, seconds: float, directory: Path) -> list[str]:
    async with world_of(store, directory) as world:
        run = Run(seed, store, seconds, world)
        try:
            await run.run()
        except Exception as error:
            traceback.print_exc()
            run.problems.append(f"the run failed: {error!r}")
        return run.problems


def run_store(seed: int, store: str, seconds: float) -> bool:
    """Return whether the run passed. The directory of one that failed is kept."""
    print(f"seed {seed}, {store} store, {seconds:g} s of faults", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    found: Iterable[str]
    try:
        found = asyncio.run(_run(seed, store, seconds, directory))
    except KeyboardInterrupt:
        print(f"interrupted; the files are kept in {directory}", flush=True)
        raise SystemExit(130) from None
    except Exception as error:
        found = [f"the run ended: {error!r}"]
    for problem in found:
        print(f"  FAULT: {problem}")
    if found:
        print(f"FAILED: seed {seed}, {store} store; the files are kept in {directory}", flush=True)
        return False
    shutil.rmtree(directory)
    print(f"passed: seed {seed}, {store} store", flush=True)
    return True


def _raise_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument(
        "seed", nargs="?", type=int, default=random.randrange(10000), help="of the faults; default: random"
    )
    parser.add_argument("--store", choices=sorted(PARTS), help="only this store; default: one after the other")
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults, for each store; default: 60")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _raise_interrupt)  # end all processes
    stores = [arguments.store] if arguments.store else sorted(PARTS)
    if not REDIS_SERVER:
        print("redis-server is not installed: only the embedded store is tested", file=sys.stderr)
        stores = [store for store in stores if store != "redis"]
    if not shutil.which("cc"):
        print("no C compiler (Debian: gcc): the clocks are not stepped", file=sys.stderr)
    results = [run_store(arguments.seed, store, arguments.seconds) for store in stores]
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
