"""Delivery under faults, end to end: a real gateway, real files, a vendor that fails on demand."""

import asyncio
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from ledger import STRICT, acknowledged, arrived, visitor_requests
from length import length
from load import Load
from process import SAMPLE_SETTINGS, Gateway, sample_document
from redis_servers import RedisServer
from vendor import Fault, Vendor

FOREVER = 1_000_000_000
ROUNDS = length(3, long=10)  # of test_a17
GOLD = {"featureKey": "new-checkout", "userId": "user-1", "customVariables": {"plan": "gold"}}
TRACK = {"eventName": "purchase", "userId": "user-1"}


@pytest.fixture
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


def event(number, name="purchase"):
    return {"d": {"event": {"name": name, "props": {"number": number}}}}


def number_of(document):
    return document["d"]["event"]["props"].get("number")


def send_batches(gateway, numbers, size=100):
    numbers = list(numbers)
    for at in range(0, len(numbers), size):
        batch = {"ev": [event(number) for number in numbers[at : at + size]]}
        assert gateway.post("/server-side/batch-events-v2", batch)[0] == 200


def delivered(vendor):
    return {number_of(document) for document in list(vendor.events)}


@pytest.mark.parametrize("fault", [{"status": 500}, {"close": True}], ids=["500", "reset"])
def test_a_poisoned_event_among_10000_does_not_delay_the_others(tmp_path, vendor, fault):
    """Row A1, acceptance 3: all others arrive while load goes on, and no other batch is cut up for it."""
    vendor.event_faults.append(Fault(**fault, times=FOREVER, refuses=lambda document: number_of(document) == 4_444))
    with Gateway.of_vendor(tmp_path / "data", vendor, FLUSH_EVENTS_INTERVAL=1) as gateway:
        send_batches(gateway, range(10_000))
        vendor.wait_until(
            lambda: len(delivered(vendor)) == 9_999, 60, lambda: f"{len(delivered(vendor))} of 9999 arrived"
        )
        assert sum(size == 100 for size in vendor.batches) >= 99
        send_batches(gateway, range(20_000, 20_200))
        vendor.wait_until(lambda: {20_000, 20_199} <= delivered(vendor), 60)


def test_an_event_without_a_response_does_not_delay_the_others(tmp_path, vendor):
    """Row A1: each attempt costs a time-out, so the batch is cut up at once."""
    fault = Fault(times=FOREVER, delay_seconds=3600, refuses=lambda document: number_of(document) == 44)
    vendor.event_faults.append(fault)
    with Gateway.of_vendor(tmp_path / "data", vendor, FLUSH_EVENTS_INTERVAL=1, SOCKET_TIMEOUT=1) as gateway:
        send_batches(gateway, range(1_000))
        vendor.wait_until(lambda: len(delivered(vendor)) == 999, 60, lambda: f"{len(delivered(vendor))} of 999 arrived")
        assert sum(size == 100 for size in vendor.batches) >= 9


def test_a26_events_arrive_although_upstream_is_slower_than_the_timeout(tmp_path, vendor):
    vendor.event_faults.append(Fault(status=200, times=FOREVER, delay_seconds=2.5))
    with Gateway.of_vendor(tmp_path / "data", vendor, SOCKET_TIMEOUT=1) as gateway:
        send_batches(gateway, range(1_000))
        vendor.wait_until(lambda: gateway.status()["events"]["delivered"] == 1_000, 60, lambda: gateway.status())
        assert delivered(vendor) == set(range(1_000))


@pytest.mark.parametrize("status", [401, 405, 302])
def test_a_rejection_of_everything_keeps_all_events(tmp_path, vendor, status):
    """Rows A5 and A21: no dead letters, one log line, and delivery resumes by itself when the cause is gone.

    tests/events/test_flusher.py has more statuses.
    """
    vendor.event_faults.append(Fault(status=status, times=FOREVER))
    with Gateway.of_vendor(tmp_path / "data", vendor, FLUSH_EVENTS_INTERVAL=1) as gateway:
        send_batches(gateway, range(2_000))
        vendor.wait_until(lambda: len(vendor.calls_to("/server-side/batch-events-v2")) > 3, 60)
        status_now = gateway.status()
        assert (status_now["events"]["waiting"], status_now["events"]["dead"]) == (2_000, 0)
        assert str(status) in status_now["last_flush"]["error"]
        lines = [line for line in gateway.log().splitlines() if "event delivery failed" in line]
        assert len(lines) == 1
        vendor.event_faults.clear()
        vendor.wait_until(lambda: len(delivered(vendor)) == 2_000, 60)
        vendor.wait_until(lambda: gateway.status()["events"]["delivered"] == 2_000, 60)


def test_a12_events_of_the_sample_account_are_discarded_and_not_delivered(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, FLUSH_EVENTS_INTERVAL=1) as gateway:
        assert gateway.post("/server-side/trackEvent", TRACK)[0] == 200
        wait_until(lambda: gateway.status()["events"]["waiting"] == 0)
        status = gateway.status()
        events = {name: count for name, count in status["events"].items() if name in PARTS and count}
        assert events == {"discarded": status["events"]["received"]}
        assert "events are discarded" in status["last_error"]
        assert "sample account: events are discarded" in gateway.log()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_decisions_continue_while_the_queue_is_full(tmp_path, vendor):
    """Row A20: the impression of a decision is secondary; an event alone is still rejected with 503."""
    vendor.event_faults.append(Fault(status=503, times=FOREVER))
    options = {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 10}
    with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        for _ in range(20):
            status, answer = gateway.post("/server-side/getFlag", GOLD)
            assert (status, answer["isEnabled"]) == (200, True)
        assert gateway.post("/server-side/trackEvent", TRACK)[0] == 503
        assert gateway.post("/events/t?en=purchase", event(1))[0] == 503
        events = gateway.status()["events"]
        assert events["waiting"] == 10
        assert events["received"] == events["waiting"] + events["rejected"]
        assert gateway.log().count("decisions continue") == 1


def test_a_full_queue_rejects_decisions_if_configured_so(tmp_path, vendor):
    vendor.event_faults.append(Fault(status=503, times=FOREVER))
    options = {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 10, "EVENT_QUEUE_FULL": "refuse"}
    with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        statuses = {gateway.post("/server-side/getFlag", GOLD)[0] for _ in range(20)}
        assert statuses == {200, 503}


def test_decisions_continue_while_the_disk_does_not_respond(tmp_path, vendor):
    """Row A20: a write that takes too long is reported, and decisions do not wait for it.

    The disk is played by another process's locks on the event logs, which make the commits of both workers wait. One
    of them writes the lines for both.
    """
    with Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=100, WORKERS=2) as gateway:
        vendor.wait_until(lambda: [worker["state"] for worker in gateway.status()["workers"]] == ["serving"] * 2)
        with ExitStack() as locks, ThreadPoolExecutor(16) as threads:
            for number in range(2):
                path = tmp_path / "data" / f"events-{number}.db"
                other = locks.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                other.execute("BEGIN IMMEDIATE")

            def all_have_failed():
                answers = list(threads.map(lambda _: gateway.post("/server-side/getFlag", GOLD)[0], range(16)))
                assert set(answers) == {200}
                return all(errors_of_workers(gateway))

            vendor.wait_until(all_have_failed, 60, gateway.log)

        def all_store_again():
            return gateway.post("/server-side/trackEvent", TRACK)[0] == 200 and not any(errors_of_workers(gateway))

        vendor.wait_until(all_store_again, 60, gateway.log)
        log = gateway.log()
        assert log.count("events cannot be stored: the store has not completed a write") == 1
        assert log.count("events can be stored again") == 1
        events = gateway.status()["events"]
        assert events["received"] == sum(count for name, count in events.items() if name in PARTS)


def errors_of_workers(gateway):
    return [worker["last_error"] for worker in gateway.status()["workers"]]


PARTS = ("waiting", "delivered", "dead", "rejected", "discarded", "lost")


def test_a17_upstream_that_fails_again_and_again_leaves_nothing_behind_on_redis(tmp_path, vendor, record_property):
    """Row A17, acceptance 2: rounds of 2 s of 503 under load; afterwards everything arrives without traffic."""
    with RedisServer(tmp_path / "redis") as server:
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": server.port, "WORKERS": 2, "FLUSH_EVENTS_INTERVAL": 1}
        options |= STRICT
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            load = Load(gateway.port, visitor_requests("a17"), connections=8, pause_seconds=0.01)
            running = threading.Thread(target=lambda: asyncio.run(load.run()))
            running.start()
            for _ in range(ROUNDS):
                vendor.event_faults.append(Fault(status=503, times=FOREVER))
                time.sleep(2)
                vendor.event_faults.clear()
                time.sleep(0.5)
            load.stopping = True
            running.join(60)
            recovered = time.monotonic()
            wanted = acknowledged(load.exchanges)
            vendor.wait_until(
                lambda: wanted <= arrived(vendor), 60, lambda: f"{(wanted - arrived(vendor)).total()} miss"
            )
            record_property("seconds", time.monotonic() - recovered)
            print(f"{wanted.total()} events, all {time.monotonic() - recovered:.1f} s after upstream had recovered")
            vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, 60)
