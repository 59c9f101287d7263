"""Rows H7 and H8: what waits is shown for the whole instance by every page and command; a wait without a reason is a
problem of its own."""

import asyncio
import math
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
from in_process import SECONDS, TOKEN, InProcess
from process import ROOT, Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents
from tornado_gateway.telemetry.waiting import STUCK_SECONDS, Watch, pause_after, stuck_after

VENDOR_IS_DOWN = 10**6  # times
EVENTS_LEAST = 20
ASKED_TIMES = 12


def until(condition, describe=lambda: ""):
    """The first true value of a condition."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)
    return found


def command(gateway, *arguments):
    """The JSON that an operator's command prints about this gateway. `gateway` is (port, data_dir, vendor)."""
    port, data_dir, vendor = gateway
    sample = sample_document()
    options = {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "UPSTREAM_URL": vendor.url}
    options |= {"HOST": "127.0.0.1", "PORT": port, "DATA_DIR": data_dir, "ADMIN_TOKEN": TOKEN}
    variables = {"PATH": os.environ["PATH"], **{name: str(value) for name, value in options.items()}}
    line = [sys.executable, "-m", "tornado_gateway", *arguments, "--json"]
    result = subprocess.run(line, capture_output=True, text=True, env=variables, timeout=SECONDS, cwd=ROOT)
    return orjson.loads(result.stdout)


def events_finding(gateway):
    (found,) = (one for one in command(gateway, "doctor")["findings"] if one["check"] == "events")
    return found


# Row H7: numbers of all workers, whichever of them is asked


def is_not_good(event):
    return event["d"]["event"]["name"] != "good"


def fill_two_workers(gateway):
    """Send events until two workers hold some that wait, and the oldest one is known. Return how many there are."""
    sent, first_is_stored = 0, None

    def are_two_filled():
        nonlocal sent, first_is_stored
        for _ in range(EVENTS_LEAST):
            body = {"eventName": "purchase", "userId": f"user-{sent}"}
            assert gateway.post("/server-side/trackEvent", body)[0] == 200
            first_is_stored = first_is_stored or time.time()
            sent += 1
        return sum(worker["events"]["waiting"] > 0 for worker in gateway.status()["workers"]) > 1

    until(are_two_filled)
    until(lambda: gateway.status()["events"]["waiting"] == sent, gateway.status)
    until(lambda: (gateway.status()["events"]["oldest_at"] or math.inf) <= first_is_stored, gateway.status)
    return sent


def test_h7_every_page_and_command_counts_the_events_of_all_workers(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(503, times=VENDOR_IS_DOWN))
        options = {"WORKERS": 4, "ADMIN_TOKEN": TOKEN, "FLUSH_EVENTS_INTERVAL": "0.2", "SHUTDOWN_SECONDS": "1"}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            sent = fill_two_workers(gateway)
            oldest = gateway.status()["events"]["oldest_at"]
            known = gateway.port, gateway.data_dir, vendor
            for _ in range(ASKED_TIMES):
                depth = gateway.get("/admin/events", gateway.admin_headers)[1]["depth"]
                assert (depth["waiting"], depth["dead"], depth["oldest_at"]) == (sent, 0, oldest)
                queue = gateway.get("/admin/overview", gateway.admin_headers)[1]["queue"]
                assert (queue["waiting"], queue["dead"], queue["oldest_at"]) == (sent, 0, oldest)
            for _ in range(4):
                assert command(known, "events", "status")["waiting"] == sent
                assert f"{sent} wait" in events_finding(known)["message"]


def test_h7_the_dead_letters_of_all_workers_are_listed(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(404, times=VENDOR_IS_DOWN, refuses=is_not_good))
        options = {"WORKERS": 2, "ADMIN_TOKEN": TOKEN, "FLUSH_EVENTS_INTERVAL": "0.2", "EVENTS_PER_REQUEST": "10"}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            sent = fill_two_workers(gateway)
            gateway.wait_for_dead_letters(sent)
            known = gateway.port, gateway.data_dir, vendor
            for _ in range(4):
                letters = command(known, "events", "list")
                assert sum(letter["count"] for letter in letters) == sent
                assert command(known, "events", "status")["dead"] == sent


@needs_redis_server
def test_h7_dead_letters_in_redis_count_after_a_restart(tmp_path):
    """A worker counts the dead of its own time; what Redis holds is more, and became less than 0 by a requeue."""
    with Vendor(sample_document()) as vendor, RedisServer(tmp_path / "redis") as redis:
        vendor.event_faults.append(Fault(404, times=VENDOR_IS_DOWN, refuses=is_not_good))
        options = {"WORKERS": 2, "ADMIN_TOKEN": TOKEN, "FLUSH_EVENTS_INTERVAL": "0.2"}
        options |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "user-1"})
            gateway.wait_for_dead_letters(1)
            until(lambda: gateway.status()["events"]["waiting"] == 0, gateway.status)
            vendor.event_faults.clear()
            assert gateway.terminate() == 0
            gateway.start()
            until(lambda: gateway.status()["events"]["dead"] == 1, gateway.status)
            known = gateway.port, gateway.data_dir, vendor
            assert command(known, "events", "status")["dead"] == 1
            assert command(known, "events", "requeue", "--all") == {"requeued": 1}
            until(lambda: any(map(is_not_good, vendor.events)))
            until(lambda: gateway.status()["events"]["dead"] == 0, gateway.status)


# Row H8: events that wait without a reason


OPTIONS = {"DECISION_REQUIRED": "true", "FLUSH_EVENTS_INTERVAL": "0.2"}


def test_h8_events_that_wait_without_a_reason_are_a_problem_everywhere(tmp_path):
    """The delivery of a worker has ended without an error; before, no page, metric or command showed it."""
    with Vendor(sample_document()) as vendor, InProcess(tmp_path / "data", vendor, 1.0, **OPTIONS) as gateway:
        gateway.track(1)
        vendor.wait_for_events(1)
        assert gateway.json("/status")["stuck"] is None
        assert gateway.metric("fme_events_stuck") == 0
        gateway.call(lambda: gateway.worker.environments.default.flusher.stop(0))
        gateway.track(3)
        stuck = until(lambda: gateway.json("/status")["stuck"])
        status = gateway.json("/status")
        assert status["last_flush"]["error"] is None
        assert (stuck["events"], stuck["since"]) == (3, status["events"]["oldest_at"])
        assert "3 waiting" in stuck["message"]
        assert status["last_error"].startswith("Events are stuck: 3 waiting")
        assert gateway.metric("fme_events_stuck") == 3
        assert gateway.json("/admin/overview")["queue"]["stuck"]["events"] == 3
        assert gateway.json("/admin/events")["depth"]["stuck"]["events"] == 3
        assert command(gateway.known, "events", "status")["stuck"].startswith("Events are stuck: 3 waiting")
        (finding,) = (one for one in command(gateway.known, "doctor")["findings"] if one["code"] == "events-stuck")
        assert finding["state"] == "fail"
        assert "Restart the gateway" in finding["remedy"]
        gateway.call(gateway.worker.environments.default.flusher.start)
        until(lambda: gateway.json("/status")["stuck"] is None)
        vendor.wait_for_events(4)


def test_h8_a_vendor_that_is_down_is_the_reason_and_nothing_is_stuck(tmp_path):
    with Vendor(sample_document()) as vendor, InProcess(tmp_path / "data", vendor, 0.1, **OPTIONS) as gateway:
        vendor.event_faults.append(Fault(503, times=VENDOR_IS_DOWN))
        gateway.track(2)
        until(lambda: gateway.json("/status")["last_flush"]["error"])
        read = until(lambda: gateway.json("/status")["events"]["oldest_at"])
        until(lambda: time.time() > read + 3)
        status = gateway.json("/status")
        assert status["stuck"] is None
        assert "503" in status["last_error"]
        vendor.event_faults.clear()


# The reading of one worker


@asynccontextmanager
async def watched(directory, stuck_after=60.0):
    events = SqliteEvents(directory)
    await events.open()
    counted = [0]
    try:
        yield events, counted, Watch(events, lambda: counted[0], stuck_after)
    finally:
        await events.close()


async def test_h8_an_oldest_event_that_changes_is_progress(tmp_path):
    async with watched(tmp_path) as (events, counted, watch):
        await watch.read()
        assert watch.reading(None).still_since is None
        for number in range(3):
            await events.append([NewChunk(1, b'{"n":%d}' % number)])
            await asyncio.sleep(0.01)
        counted[0] = 3
        await watch.read()
        first = watch.reading(None)
        await watch.read()
        again = watch.reading(None)
        assert again == replace(first, at=again.at, still_until=again.still_until)
        assert again.still_until > first.still_until == first.still_since
        await events.settle((await events.claim(1))[:1])
        await events.append([NewChunk(1, b"{}")])  # what is settled goes with the next commit
        await watch.read()
        second = watch.reading(None)
        assert second.oldest_at > first.oldest_at
        assert second.still_since > first.still_since


async def test_h8_an_error_starts_the_time_anew(tmp_path):
    async with watched(tmp_path) as (events, counted, watch):
        await events.append([NewChunk(1, b"{}")])
        counted[0] = 1
        await watch.read()
        before = watch.reading(None)
        after = watch.reading("events: HTTP 503")
        assert after.still_since > after.still_until == before.still_until


async def test_h7_a_store_that_cannot_be_read_is_unknown_and_not_empty(tmp_path):
    async with watched(tmp_path) as (events, counted, watch):
        assert watch.reading(None).unknown_since is not None, "not read yet"
        await events.append([NewChunk(1, b"{}")])
        counted[0] = 1
        await watch.read()
        good = watch.reading(None)
        assert good.unknown_since is None
        await events.close()
        await watch.read()
        await watch.read()
        bad = watch.reading(None)
        assert (bad.oldest_at, bad.unknown_since) == (good.oldest_at, good.at)


def test_h7_a_slow_reading_delays_the_next_one_but_not_for_minutes():
    """A reading that waits for a Redis that hangs takes seconds; afterwards the numbers must not stay those of then."""
    assert 1 < pause_after(0.001) < 3
    assert 5 < pause_after(0.1) < 30
    assert pause_after(4.0) <= 30


def test_h8_the_time_that_is_long_depends_on_the_configuration():
    assert stuck_after(0.5, 5.0) == STUCK_SECONDS
    assert stuck_after(600.0, 5.0) > 1800
