"""Nothing acknowledged is lost: a real gateway, killed and stopped under load, against a vendor that counts."""

import asyncio
import collections
import random
import resource

import orjson
import pytest
from ledger import SETTINGS, STRICT, acknowledged, arrived, visitor_requests
from length import length
from load import Exchange, Load, kill_after
from process import Gateway, sample_document
from vendor import Fault, Vendor

from tornado_gateway import core
from tornado_gateway.events.flusher import PARALLEL_REQUESTS

EVENTS_PER_REQUEST = 50
ROUNDS = length(4, long=10)
REQUESTS_PER_ROUND = 2000


def test_killed_at_any_moment_no_acknowledged_event_is_lost(tmp_path, record_property):
    rng = random.Random(20)
    exchanges: list[Exchange] = []
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=EVENTS_PER_REQUEST, **STRICT) as gateway,
    ):
        for number in range(ROUNDS):
            load = Load(gateway.port, visitor_requests(number))
            asyncio.run(kill_after(gateway, load, REQUESTS_PER_ROUND + rng.randrange(1000), rng.uniform(0, 0.01)))
            assert load.answered >= REQUESTS_PER_ROUND
            exchanges += load.exchanges
            gateway.start(path="/ready")
        assert gateway.terminate() == 0
        wanted, got = acknowledged(exchanges), arrived(vendor)
    lost = wanted - got
    assert not lost, f"{len(lost)} acknowledged events did not arrive"
    duplicates = sum((got - collections.Counter(set(got))).values())
    record_property("duplicates", duplicates)
    print(f"{sum(wanted.values())} acknowledged events, {duplicates} duplicates in {ROUNDS} kills")
    assert duplicates <= ROUNDS * PARALLEL_REQUESTS * EVENTS_PER_REQUEST  # what was on its way upstream


def test_sigterm_under_load_answers_what_was_accepted_and_delivers_it(tmp_path):
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=EVENTS_PER_REQUEST) as gateway,
    ):
        load = Load(gateway.port, visitor_requests(0))
        code = asyncio.run(terminate_after(gateway, load, 1000))
        assert code == 0, gateway.log()
        refused = [e for e in load.exchanges if e.path == "connect"]
        answered = [e for e in load.exchanges if e.path != "connect"]
        assert {e.status for e in answered} == {200}, collections.Counter((e.status, e.error) for e in answered)
        assert len(answered) > 1000
        assert not refused
        assert arrived(vendor) == acknowledged(load.exchanges)


async def terminate_after(gateway: Gateway, load: Load, answers: int) -> int:
    running = asyncio.create_task(load.run())
    while load.answered < answers:
        await asyncio.sleep(0.001)
    code = await asyncio.to_thread(gateway.terminate)
    await running
    return code


FAULTS = {
    "500": [Fault(500, times=3)],
    "429 with Retry-After": [Fault(429, times=2, headers={"Retry-After": "1"})],
    "time-out": [Fault(200, delay_seconds=1.5)],
    "closed connection": [Fault(close=True, times=2)],
    "413": [Fault(413, times=2)],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_upstream_delays_events_but_loses_none(tmp_path, faults):
    with Vendor(sample_document()) as vendor:
        options = {"EVENTS_PER_REQUEST": EVENTS_PER_REQUEST, "SOCKET_TIMEOUT": 1, "FLUSH_EVENTS_INTERVAL": 1}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            vendor.event_faults.extend(Fault(**vars(fault)) for fault in faults)
            load = Load(gateway.port, visitor_requests(0), connections=8, total=400)
            asyncio.run(load.run())
            wanted = acknowledged(load.exchanges)
            vendor.wait_until(lambda: not wanted - arrived(vendor))  # a stop does not wait for a slow vendor
            assert gateway.terminate() == 0
        assert not vendor.event_faults
        assert arrived(vendor).keys() == wanted.keys()


def test_an_event_that_upstream_refuses_becomes_a_dead_letter_and_the_others_arrive(tmp_path):
    with Vendor(sample_document()) as vendor:
        bad = core.visitor_uuid(SETTINGS.account_id, "visitor-0-7")
        vendor.event_faults.append(Fault(400, times=1000, refuses=lambda event: event["d"]["visId"] == bad))
        with Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=EVENTS_PER_REQUEST) as gateway:
            load = Load(gateway.port, visitor_requests(0), connections=8, total=100)
            asyncio.run(load.run())
            wanted = acknowledged(load.exchanges)
            vendor.wait_until(lambda: gateway.status()["events"]["dead"] == 1)
            assert gateway.terminate() == 0
            got = arrived(vendor)
            assert [event[0] for event in wanted - got] == [bad]
            gateway.start()
            events = gateway.status()["events"]
            assert (events["dead"], events["waiting"]) == (1, 0)


def test_upstream_down_for_good_keeps_the_events_for_the_next_process(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(503, times=10**6))
        with Gateway.of_vendor(tmp_path / "data", vendor, SHUTDOWN_SECONDS=2) as gateway:
            load = Load(gateway.port, visitor_requests(0), connections=4, total=40)
            asyncio.run(load.run())
            assert gateway.terminate() == 0
            assert not vendor.events
            vendor.event_faults.clear()
            gateway.start()
            vendor.wait_for_events(sum(acknowledged(load.exchanges).values()))
            assert arrived(vendor) == acknowledged(load.exchanges)


def test_a_full_disk_refuses_events_until_there_is_room_again(tmp_path):
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, **STRICT) as gateway:
        vendor.event_faults.append(Fault(503, times=10**6))
        before = Load(gateway.port, visitor_requests(0), connections=4, total=40)
        asyncio.run(before.run())
        (worker,) = gateway.worker_pids()
        limits = resource.prlimit(worker, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        full = Load(gateway.port, visitor_requests(1), connections=4, total=400)
        asyncio.run(full.run())
        assert 503 in {e.status for e in full.exchanges}
        refusal = next(orjson.loads(e.body) for e in full.exchanges if e.status == 503)
        assert refusal["status"] == 0
        assert "could not be stored" in refusal["error"]
        assert gateway.get("/health")[0] == 200
        resource.prlimit(worker, resource.RLIMIT_FSIZE, limits)
        after = Load(gateway.port, visitor_requests(2), connections=4, total=40)
        asyncio.run(after.run())
        assert {e.status for e in after.exchanges} == {200}
        vendor.event_faults.clear()
        vendor.wait_for_events(1)  # so no rejection is on its way: its batch would stay for the next process
        assert gateway.terminate() == 0
        assert arrived(vendor) == acknowledged([*before.exchanges, *full.exchanges, *after.exchanges])
