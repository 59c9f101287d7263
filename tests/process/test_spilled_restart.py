"""Events and dead letters that went to DATA_DIR while Redis was down, after their worker has ended.

Rows A18 and H7: every way into a store is delivered without a new event, and all numbers are those of the machine.
"""

import signal
import time

import pytest
from ports import free_port
from process import Gateway, is_running, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

pytestmark = needs_redis_server

EVENTS = 20


@pytest.fixture
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


def send(gateway, name, count):
    for number in range(count):
        event = {"d": {"visId": f"{name}-{number}", "event": {"name": name}}}
        assert gateway.post(f"/events/t?en={name}", event)[0] == 200


def letters(gateway):
    status, page = gateway.get("/admin/events", gateway.admin_headers)
    assert status == 200, page
    return page["dead"]


def replace_workers(gateway, vendor):
    """A rolling restart: the new workers start before the former ones give up their logs."""
    former = gateway.worker_pids()
    gateway.process.send_signal(signal.SIGHUP)
    vendor.wait_until(lambda: not any(map(is_running, former)), 60, gateway.log)
    vendor.wait_until(lambda: len(gateway.worker_pids()) == len(former))


def test_a18_events_in_the_log_of_a_replaced_worker_are_delivered_while_redis_is_down(tmp_path, vendor):
    options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": free_port(), "SOCKET_TIMEOUT": 1, "SHUTDOWN_SECONDS": 2}
    with Gateway.of_vendor(tmp_path / "data", vendor, FLUSH_EVENTS_INTERVAL=1, **options) as gateway:
        vendor.event_faults.append(Fault(503, times=10**6))
        send(gateway, "good", EVENTS)
        replace_workers(gateway, vendor)
        vendor.event_faults.clear()
        vendor.wait_for_events(EVENTS)


def test_h7_dead_letters_of_all_workers_of_the_machine_are_counted_with_redis(tmp_path, vendor):
    with RedisServer(tmp_path / "redis") as redis:
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, "SOCKET_TIMEOUT": 1, "WORKERS": 2}
        with Gateway.of_vendor(tmp_path / "data", vendor, FLUSH_EVENTS_INTERVAL=1, **options) as gateway:
            vendor.wait_until(lambda: len(gateway.status()["workers"]) == 2)
            vendor.rejects = lambda event: event["d"]["event"]["name"] == "bad"
            redis.kill()
            send(gateway, "bad", 4)
            vendor.wait_until(
                lambda: send(gateway, "good", 1) or len(letters(gateway)) == 4
            )  # they die while others succeed
            replace_workers(gateway, vendor)
            redis.start()
            vendor.wait_until(lambda: gateway.status()["last_error"] is None, 60, gateway.status)
            vendor.wait_until(lambda: gateway.status()["events"]["dead"] == 4, 60, gateway.status)
            shown = set()
            for _ in range(50):  # readings of both workers, in turn
                shown.add(gateway.status()["events"]["dead"])
                time.sleep(0.1)
            assert shown == {4}
