"""Workers of a real gateway are replaced, killed and ended under load: clients notice nothing, no event is lost."""

import asyncio
import contextlib
import os
import signal
import time

import orjson
import pytest
from ledger import acknowledged, arrived, visitor_requests
from load import Load
from process import Gateway, is_running, sample_document
from vendor import Fault, Vendor

EVENTS_PER_REQUEST = 50
REQUESTS_PER_CONNECTION = 20
IDLE_SECONDS = 0.9  # a worker that stops keeps idle connections for a second
SECONDS = 60.0  # for anything that is bound to happen; nothing is expected to take long
DONE = ("waiting", "delivered", "dead", "rejected")


class Visitors(Load):
    """Load that goes on with a new connection whenever one is closed, and closes them often itself.

    A stopping worker closes connections, also new ones, that have been idle for a second. If this process gets no core
    for that long, its connections are idle. Such a request never reaches a worker, and HTTP clients send it again if
    the connection was closed before the first byte of the response (RFC 9110, 9.2.2; RFC 9112, 9.3.1).
    """

    def __post_init__(self):
        super().__post_init__()
        self._idle_since = {}  # by task, which has one connection at a time; a time at which it was not idle yet

    async def run(self):
        await asyncio.gather(*(self._come_again() for _ in range(self.connections)))

    async def _come_again(self):
        while not self.stopping:
            self._idle_since[asyncio.current_task()] = time.monotonic()
            await self._connection()

    async def _exchange(self, exchange, reader, writer):
        task = asyncio.current_task()
        idle_since, self._idle_since[task] = self._idle_since[task], time.monotonic()
        try:
            closes = await super()._exchange(exchange, reader, writer)
        except (OSError, asyncio.IncompleteReadError) as error:
            if exchange.written_at - idle_since < IDLE_SECONDS or not is_before_first_byte(error):
                raise
            self.exchanges.remove(exchange)
            return True
        return closes or self.answered % REQUESTS_PER_CONNECTION == 0

    @property
    def failures(self):
        return [(x.path, x.status, x.error) for x in self.exchanges if x.status != 200]

    async def answers(self, more):
        """Wait until so many more requests have been answered."""
        await until(lambda now=self.answered: self.answered >= now + more, f"{more} more answers")


def is_before_first_byte(error):
    """Whether the connection was closed before the head of the response."""
    return getattr(error, "expected", None) is None and not getattr(error, "partial", b"")


async def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def load_on(gateway, run=0):
    load = Visitors(gateway.port, visitor_requests(run))
    running = asyncio.create_task(load.run())
    try:
        yield load
    except BaseException:
        running.cancel()  # its connections may hang
        raise
    load.stopping = True
    await running


class Patient:
    """A gateway whose status is asked again when the worker that was to answer is killed."""

    def __init__(self, gateway):
        self._gateway = gateway

    def status(self):
        while True:
            with contextlib.suppress(ConnectionResetError):
                return self._gateway.status()


async def pids(gateway, count=2):
    """Of all workers, by slot."""
    while True:
        workers = (await asyncio.to_thread(gateway.status))["workers"]
        found = {worker["slot"]: worker["pid"] for worker in workers if worker["state"] == "serving"}
        if len(found) == count:
            return found
        await asyncio.sleep(0.05)


async def until_replaced(gateway, former):
    while True:
        now = await pids(gateway)
        if not set(now.values()) & set(former.values()):
            return now
        await asyncio.sleep(0.05)


async def watch_sums(gateway, seen):
    """Keep every sum that /status shows."""
    while True:
        seen.append((await asyncio.to_thread(gateway.status))["events"])
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def sums_of(gateway):
    seen = []
    watching = asyncio.create_task(watch_sums(gateway, seen))
    try:
        yield seen
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    assert all(events["received"] == sum(events[name] for name in DONE) for events in seen)


def until_received(gateway, vendor, events):
    """Wait for what the workers publish last; it must be this number, and no event may be dead or refused."""

    def counts():
        return gateway.status()["events"]

    vendor.wait_until(lambda: counts()["received"] == events, SECONDS, lambda: f"{events}, {counts()}")
    last = counts()
    assert last["received"] == last["waiting"] + last["delivered"]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def two_workers(directory, vendor, **options):
    options = {"WORKERS": 2, "EVENTS_PER_REQUEST": EVENTS_PER_REQUEST} | options
    return Gateway.of_vendor(directory / "data", vendor, is_fresh=True, **options)


def test_rolling_restarts_are_not_noticed(tmp_path):
    async def restart_three_times(gateway):
        former = await pids(gateway)
        async with load_on(gateway) as load, sums_of(gateway) as sums:
            await load.answers(200)
            for _ in range(3):
                gateway.process.send_signal(signal.SIGHUP)
                former = await asyncio.wait_for(until_replaced(gateway, former), SECONDS)
                await load.answers(200)
        received = [events["received"] for events in sums]
        assert received == sorted(received)
        return load

    with Vendor(sample_document()) as vendor, two_workers(tmp_path, vendor) as gateway:
        load = asyncio.run(restart_three_times(gateway))
        assert not load.failures, (len(load.failures), load.failures[:5])
        wanted = acknowledged(load.exchanges)
        until_received(gateway, vendor, sum(wanted.values()))
        assert gateway.terminate() == 0
        assert arrived(vendor) == wanted


def test_a_killed_worker_comes_back_and_the_other_goes_on(tmp_path):
    async def kill_three_times(gateway):
        async with load_on(gateway) as load, sums_of(Patient(gateway)):
            await load.answers(200)
            for _ in range(3):
                former = await pids(Patient(gateway))
                os.kill(former[1], signal.SIGKILL)
                await load.answers(200)
                await asyncio.wait_for(until_back(Patient(gateway), former[1]), SECONDS)
        return load

    async def until_back(gateway, killed):
        while (await pids(gateway))[1] == killed:
            await asyncio.sleep(0.05)

    with Vendor(sample_document()) as vendor, two_workers(tmp_path, vendor) as gateway:
        before = asyncio.run(pids(gateway))
        load = asyncio.run(kill_three_times(gateway))
        assert asyncio.run(pids(gateway))[0] == before[0]
        failures = load.failures
        assert len(failures) <= 3 * load.connections  # those that the killed worker had accepted
        assert not [failure for failure in failures if failure[0] == "connect" or failure[1] is not None], failures
        assert gateway.terminate() == 0
        assert not acknowledged(load.exchanges) - arrived(vendor)


def test_sigterm_under_load_answers_all_that_was_accepted(tmp_path):
    async def terminate(gateway):
        load = Load(gateway.port, visitor_requests(0))
        running = asyncio.create_task(load.run())
        await until(lambda: load.answered >= 1000, "1000 answers")
        code = await asyncio.to_thread(gateway.terminate)
        await running
        return load, code

    with Vendor(sample_document()) as vendor, two_workers(tmp_path, vendor) as gateway:
        workers = asyncio.run(pids(gateway)).values()
        load, code = asyncio.run(terminate(gateway))
        assert code == 0
        assert [x for x in load.exchanges if x.status != 200 or x.error] == []
        assert arrived(vendor) == acknowledged(load.exchanges)
        assert not any(map(is_alive, workers))


def test_events_of_workers_that_have_ended_are_taken_over(tmp_path):
    """Upstream is away, so the workers that are replaced end with events in their logs."""
    requests = 60

    async def send(gateway, vendor):
        load = Load(gateway.port, visitor_requests(0), total=requests)
        await load.run()
        await asyncio.to_thread(until_received, gateway, vendor, sum(acknowledged(load.exchanges).values()))
        former = await pids(gateway)
        gateway.process.send_signal(signal.SIGHUP)
        async with sums_of(gateway) as sums:
            await asyncio.wait_for(until_replaced(gateway, former), SECONDS)
            await until(lambda: gateway.log().count("ended normally") == 2, "the old workers end")
        return load, sums

    with (
        Vendor(sample_document()) as vendor,
        two_workers(tmp_path, vendor, SHUTDOWN_SECONDS=0.5, EVENTS_PER_REQUEST=500, FLUSH_EVENTS_INTERVAL=1) as gateway,
    ):
        vendor.event_faults.append(Fault(status=503, times=1_000_000))
        load, sums = asyncio.run(send(gateway, vendor))
        wanted = acknowledged(load.exchanges)
        assert min(events["received"] for events in sums) == sum(wanted.values())
        vendor.event_faults.clear()
        vendor.wait_until(lambda: not wanted - arrived(vendor), SECONDS, lambda: f"{gateway.status()} {gateway.log()}")
        vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, SECONDS, gateway.status)
        until_received(gateway, vendor, sum(wanted.values()))
        assert arrived(vendor) == wanted


def test_status_is_of_the_whole_instance_whichever_worker_answers(tmp_path):
    with Vendor(sample_document()) as vendor, two_workers(tmp_path, vendor, WORKERS=3) as gateway:
        load = Load(gateway.port, visitor_requests(0), total=300)
        asyncio.run(load.run())
        total = sum(acknowledged(load.exchanges).values())
        until_received(gateway, vendor, total)
        vendor.wait_until(lambda: [w["state"] for w in gateway.status()["workers"]] == ["serving"] * 3, SECONDS)
        for _ in range(20):  # new connections, so all workers get to answer
            status = gateway.status()
            assert status["events"]["received"] == total
            assert [worker["slot"] for worker in status["workers"]] == [0, 1, 2]
            assert len({worker["pid"] for worker in status["workers"]}) == 3
            assert {worker["settings"] for worker in status["workers"]} == {status["settings"]["hash"]}
            assert sum(worker["events"]["received"] for worker in status["workers"]) == total
            assert status["last_poll"]["error"] is None


@pytest.mark.parametrize("workers", [1, 2])
def test_p2_after_the_parent_was_killed_a_start_on_the_same_port_succeeds(tmp_path, workers):
    """Row P2: also a stopped worker ends with its parent; the events that it had acknowledged are delivered later."""
    with Vendor(sample_document()) as vendor, two_workers(tmp_path, vendor, WORKERS=workers) as gateway:
        load = Load(gateway.port, visitor_requests(0), total=100)
        asyncio.run(load.run())
        vendor.wait_until(lambda: gateway.log().count(") is ready") == workers, SECONDS)  # and ends with the parent
        former = gateway.worker_pids()
        os.kill(former[-1], signal.SIGSTOP)
        gateway.process.kill()
        gateway.process.wait()
        gateway.start(path="/ready")  # at once: the kernel may not have ended the workers yet
        assert not any(map(is_running, former))
        vendor.wait_until(lambda: not acknowledged(load.exchanges) - arrived(vendor), SECONDS)


@pytest.mark.parametrize("workers", [1, 2])
def test_p1_a_worker_that_hangs_is_replaced(tmp_path, workers):
    """Row P1: for any number of workers, with a line that gives the reason."""

    async def stop_one(gateway):
        former = await asyncio.wait_for(pids(gateway, workers), SECONDS)
        async with load_on(gateway) as load:
            await load.answers(200)
            os.kill(former[workers - 1], signal.SIGSTOP)
            await until(lambda: not is_alive(former[workers - 1]), "the hung worker is killed")
            now = await asyncio.wait_for(pids(Patient(gateway), workers), SECONDS)
            await load.answers(200)
        assert {slot for slot in now if now[slot] != former[slot]} == {workers - 1}
        return former[workers - 1]

    with Vendor(sample_document()) as vendor, two_workers(tmp_path, vendor, WORKERS=workers) as gateway:
        hung = asyncio.run(stop_one(gateway))
        assert f"worker {workers - 1} (pid {hung}) did not respond for 15 s" in gateway.log()
        assert gateway.terminate() == 0


def test_sighup_replaces_a_single_worker_and_brings_the_newest_settings(tmp_path):
    async def restart(gateway):
        (former,) = (await pids(gateway, 1)).values()
        async with load_on(gateway) as load:
            await load.answers(200)
            gateway.process.send_signal(signal.SIGHUP)
            await until(lambda: not is_alive(former), "the former worker ends")
            await load.answers(200)
        return load

    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, POLLING_TIME=1000) as gateway,
    ):
        document = sample_document()
        document["version"] = document.get("version", 1) + 1
        vendor.settings = orjson.dumps(document)
        assert not asyncio.run(restart(gateway)).failures
        vendor.wait_until(lambda: gateway.status()["settings"]["version"] == document["version"], SECONDS)
        assert gateway.terminate() == 0


def test_a_start_that_fails_ends_the_gateway(tmp_path):
    """Two workers cannot read a file of theirs: the parent does not try for ever."""
    (tmp_path / "names.json").write_text("no JSON")
    options = {
        "ACCOUNT_ID": 1,
        "SDK_KEY": "x" * 32,
        "ADMIN_TOKEN": "0123456789abcdef",
        "UPSTREAM_URL": "http://127.0.0.1:9",
        "GEO_MAP_FILE": tmp_path / "names.json",
    }
    gateway = Gateway(tmp_path / "data", is_fresh=True, WORKERS=2, **options)
    try:
        gateway.start()
    except AssertionError:
        pass
    assert gateway.process.wait(SECONDS) == 1
    assert "could not start (exit code 1)" in gateway.log()
