"""Row A18: a backlog is delivered without new traffic, however it got into the store."""

import asyncio
import http.client

import orjson
import pytest
from ledger import STRICT, acknowledged, arrived, visitor_requests
from load import Load
from process import Gateway, sample_document
from vendor import Fault, Vendor

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

SECONDS = 60
REQUESTS = 1500
LETTERS = 1500
TOKEN = "token-of-this-test"


@pytest.mark.parametrize("way", ["SIGTERM", "SIGKILL"])
def test_a18_a_backlog_of_two_workers_is_delivered_after_a_restart_without_traffic(tmp_path, way):
    with Vendor(sample_document()) as vendor:
        options = {"WORKERS": 2, "SHUTDOWN_SECONDS": 2, **STRICT}
        vendor.event_faults.append(Fault(503, times=10**6))
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            vendor.wait_until(lambda: gateway.get("/ready")[0] == 200, SECONDS)
            load = Load(gateway.port, visitor_requests(0), connections=16, total=REQUESTS)
            asyncio.run(load.run())
            wanted = acknowledged(load.exchanges)
            assert sum(wanted.values()) >= REQUESTS
            if way == "SIGTERM":
                assert gateway.terminate() == 0
            else:
                gateway.kill()
                vendor.wait_until(lambda: not any_log_is_held(tmp_path / "data"), SECONDS)
            vendor.event_faults.clear()
            gateway.start("/ready")
            vendor.wait_until(lambda: not wanted - arrived(vendor), SECONDS, lambda: f"{gateway.status()['events']}")
            vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, SECONDS, gateway.status)


def any_log_is_held(directory):
    """The workers of a killed parent end by themselves."""
    from tornado_gateway.cli.stored_events import is_in_use

    return is_in_use(directory)


def test_a18_many_dead_letters_that_are_requeued_at_once_are_delivered_without_traffic(tmp_path):
    asyncio.run(bury(tmp_path / "data"))
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, ADMIN_TOKEN=TOKEN) as gateway,
    ):
        vendor.wait_until(lambda: gateway.get("/ready")[0] == 200, SECONDS)
        assert requeue_all(gateway) == {"requeued": LETTERS}
        vendor.wait_until(
            lambda: len({event["n"] for event in vendor.events}) == LETTERS,
            SECONDS,
            lambda: f"{len(vendor.events)} of {LETTERS}: {gateway.status()['events']}",
        )
        vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 0, SECONDS, gateway.status)
        assert gateway.status()["events"]["dead"] == 0


async def bury(directory):
    events = SqliteEvents(directory)
    await events.open()
    dead = [(NewChunk(1, orjson.dumps({"n": number})), "400") for number in range(LETTERS)]
    await events.settle([], dead=dead)
    await events.close()


def requeue_all(gateway):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request("POST", "/admin/events/requeue", b'{"ids":null}', headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    return orjson.loads(body)
