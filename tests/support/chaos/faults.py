"""The faults of `plan`, one function each: it begins the fault, waits, and ends it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from process import Gateway, is_running
from vendor import Fault

from chaos.plan import CLOCK_STEPS, Step
from chaos.watch import Watch
from chaos.world import Clock, World, workers_of

Make = Callable[[World, Watch, Step], Awaitable[None]]
ALWAYS = 10**9  # requests that meet a fault
ROLLING_SECONDS = 20  # for a rolling restart, unless it is cancelled because a new worker cannot start
LATE_SECONDS = 5.0  # a fault that is later than planned, because the one before took longer, is left out


async def play(world: World, watch: Watch, steps: list[Step]) -> None:
    """Make the faults of one part, one after the other."""
    for step in steps:
        await asyncio.sleep(max(0.0, step.at - world.seconds))
        if world.seconds > step.at + LATE_SECONDS:
            continue
        await FAULTS[step.fault](world, watch, step)


def _gateway(world: World, step: Step) -> Gateway:
    return world.gateways[step.choice % len(world.gateways)]


# --- Processes ---


def _worker(world: World, step: Step) -> int | None:
    workers = workers_of(_gateway(world, step))
    return workers[step.choice // 7 % len(workers)] if workers else None


async def _kill_worker(world: World, watch: Watch, step: Step) -> None:
    pid = _worker(world, step)
    if pid is None:
        world.note("no worker to kill")
        return
    with world.incident("kill", f"worker {pid} killed"), suppress(ProcessLookupError):
        watch.expect_death(pid)
        os.kill(pid, signal.SIGKILL)


async def _stop_worker(world: World, watch: Watch, step: Step) -> None:
    pid = _worker(world, step)
    if pid is None:
        world.note("no worker to stop")
        return
    with world.incident("stop", f"worker {pid} stopped for {step.seconds} s"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(step.seconds)
        if is_running(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _kill_parent(world: World, watch: Watch, step: Step) -> None:
    gateway = _gateway(world, step)
    async with world.lock(gateway):
        with world.incident("kill", f"parent {_pid(gateway)} killed, restart after {step.seconds} s"):
            watch.look()
            await asyncio.to_thread(gateway.kill)
            await asyncio.sleep(step.seconds)
            await _start(world, gateway)


async def _terminate_parent(world: World, watch: Watch, step: Step) -> None:
    gateway = _gateway(world, step)
    async with world.lock(gateway):
        with world.incident("term", f"SIGTERM to parent {_pid(gateway)}, restart after {step.seconds} s"):
            watch.expect_end(workers_of(gateway))
            code = await asyncio.to_thread(gateway.terminate)
            world.note(f"the gateway ended with exit code {code}")
            await asyncio.sleep(step.seconds)
            await _start(world, gateway)


async def _start(world: World, gateway: Gateway) -> None:
    """Start a gateway, again and again while its directory cannot be used, as a service manager does."""
    while True:
        has_fault = world.has_fault("disk")
        try:
            await asyncio.to_thread(gateway.start)
            return
        except AssertionError:
            if not has_fault:
                raise
            world.note("the gateway did not start during a fault of the disk")
            await asyncio.sleep(1)


async def _reload(world: World, watch: Watch, step: Step) -> None:
    gateway = _gateway(world, step)
    async with world.lock(gateway):
        with world.incident("term", f"SIGHUP to parent {_pid(gateway)}"):
            former = workers_of(gateway)
            watch.expect_end(former)
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGHUP)
            for _ in range(ROLLING_SECONDS * 10):
                if not any(map(is_running, former)):
                    return
                await asyncio.sleep(0.1)
            for pid in former:
                watch.expect_death(pid)


def _pid(gateway: Gateway) -> int:
    assert gateway.process is not None
    return gateway.process.pid


# --- Upstream ---


def _upstream(make: Callable[[], Fault], of_settings: bool = False) -> Make:
    async def fault(world: World, watch: Watch, step: Step) -> None:
        faults = world.vendor.settings_faults if of_settings else world.vendor.event_faults
        with world.incident("upstream", f"{step.fault} for {step.seconds} s"):
            faults.append(make())
            await asyncio.sleep(step.seconds)
            faults.clear()

    return fault


# --- Disk ---


async def _disk_full(world: World, watch: Watch, step: Step) -> None:
    with world.incident("disk", f"the disk is full for {step.seconds} s"):
        await asyncio.to_thread(world.disk.fill, world.gateways)
        await asyncio.sleep(step.seconds)
        await asyncio.to_thread(world.disk.free, world.gateways)


async def _read_only(world: World, watch: Watch, step: Step) -> None:
    directories = [gateway.data_dir for gateway in world.gateways]
    with world.incident("disk", f"the data directories are read-only for {step.seconds} s"):
        for directory in directories:
            directory.chmod(0o500)
        await asyncio.sleep(step.seconds)
        for directory in directories:
            directory.chmod(0o700)


# --- Clocks ---


async def _step(world: World, clock: Clock, name: str, step: Step) -> None:
    offset = CLOCK_STEPS[step.choice % len(CLOCK_STEPS)]
    with world.incident("clock", f"{name} steps by {offset} s for {step.seconds} s"):
        clock.step(offset)
        await asyncio.sleep(step.seconds)
        clock.step(0)


async def _clock_steps(world: World, watch: Watch, step: Step) -> None:
    await _step(world, world.clock, "the clock", step)


async def _redis_clock_steps(world: World, watch: Watch, step: Step) -> None:
    assert world.redis_clock is not None
    await _step(world, world.redis_clock, "the clock of Redis", step)


# --- Redis ---


async def _redis_killed(world: World, watch: Watch, step: Step) -> None:
    assert world.redis is not None
    with world.incident("redis", f"Redis killed, restart after {step.seconds} s"):
        world.redis.kill()
        await asyncio.sleep(step.seconds)
        await asyncio.to_thread(world.redis.start)


async def _redis_stopped(world: World, watch: Watch, step: Step) -> None:
    assert world.redis is not None
    with world.incident("redis", f"Redis stopped for {step.seconds} s"):
        world.redis.pause()
        await asyncio.sleep(step.seconds)
        world.redis.resume()


async def _redis_pauses(world: World, watch: Watch, step: Step) -> None:
    assert world.redis is not None
    with world.incident("redis", f"Redis delays all commands for {step.seconds} s (CLIENT PAUSE)"):
        world.redis.command("CLIENT", "PAUSE", int(step.seconds * 1000), "ALL")
        await asyncio.sleep(step.seconds)


async def _redis_full(world: World, watch: Watch, step: Step) -> None:
    assert world.redis is not None
    with world.incident("redis", f"Redis is full for {step.seconds} s (maxmemory)"):
        world.redis.command("CONFIG", "SET", "maxmemory", "1mb")
        await asyncio.sleep(step.seconds)
        world.redis.command("CONFIG", "SET", "maxmemory", "0")


async def _redis_cut(world: World, watch: Watch, step: Step) -> None:
    assert world.proxy is not None
    with world.incident("redis", "connections to Redis cut"):
        for _ in range(1 + step.choice % 10):
            world.proxy.cut()
            await asyncio.sleep(0.1)


async def _redis_replies_lost(world: World, watch: Watch, step: Step) -> None:
    assert world.proxy is not None
    with world.incident("redis", f"replies of Redis lost for {step.seconds} s"):
        world.proxy.loses_answers = True
        await asyncio.sleep(step.seconds)
        world.proxy.loses_answers = False
        world.proxy.cut()


FAULTS: dict[str, Make] = {
    "kill worker": _kill_worker,
    "stop worker": _stop_worker,
    "kill parent": _kill_parent,
    "terminate parent": _terminate_parent,
    "reload": _reload,
    "upstream hangs": _upstream(lambda: Fault(500, ALWAYS, delay_seconds=30)),
    "upstream returns 500": _upstream(lambda: Fault(500, ALWAYS)),
    "upstream returns 503": _upstream(lambda: Fault(503, ALWAYS, headers={"Retry-After": "2"})),
    "upstream cuts connections": _upstream(lambda: Fault(times=ALWAYS, close=True)),
    "upstream takes events and cuts": _upstream(lambda: Fault(times=ALWAYS, close=True, takes=True)),
    "upstream takes events and responds late": _upstream(lambda: Fault(200, ALWAYS, delay_seconds=5, takes=True)),
    "upstream is slow": _upstream(lambda: Fault(200, ALWAYS, delay_seconds=0.7)),
    "settings fail": _upstream(lambda: Fault(500, ALWAYS), of_settings=True),
    "settings hang": _upstream(lambda: Fault(500, ALWAYS, delay_seconds=30), of_settings=True),
    "disk full": _disk_full,
    "directory read-only": _read_only,
    "clock steps": _clock_steps,
    "redis is killed": _redis_killed,
    "redis is stopped": _redis_stopped,
    "redis pauses": _redis_pauses,
    "redis is full": _redis_full,
    "redis connections are cut": _redis_cut,
    "redis replies are lost": _redis_replies_lost,
    "redis clock steps": _redis_clock_steps,
}
