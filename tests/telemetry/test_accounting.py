"""received = delivered + waiting + dead + rejected + discarded + lost, in every scrape, whatever upstream does."""

import asyncio
import itertools
import random

import orjson
from ledger import STRICT, acknowledged, arrived, visitor_requests
from length import length
from load import Load
from metrics import assert_adds_up, samples_of, scrape
from process import Gateway, sample_document
from vendor import Fault, Vendor

SECONDS = length(8, long=300)  # how long faults are injected
REFUSED = "400 for some"  # until one of them is dead: every batch is halved down to the events to blame
FAULTS = {
    "500": lambda: Fault(500, times=2),
    "503 with Retry-After": lambda: Fault(503, headers={"Retry-After": "1"}),
    "429": lambda: Fault(429),
    "413": lambda: Fault(413, times=3),
    REFUSED: lambda: Fault(400, times=1_000_000, refuses=lambda event: event["d"]["visId"].endswith(("0", "1"))),
    "time-out": lambda: Fault(200, delay_seconds=1.5),
    "closed": lambda: Fault(close=True),
}


def test_the_events_always_add_up(tmp_path, record_property):
    options = {"WORKERS": 2, "EVENTS_PER_REQUEST": 200, "SOCKET_TIMEOUT": 1, "FLUSH_EVENTS_INTERVAL": 1}
    options |= STRICT
    with Vendor(sample_document()) as vendor:
        with Gateway.of_vendor(tmp_path / "data", vendor, EVENT_QUEUE_LIMIT=1500, **options) as gateway:
            load = Load(gateway.port, visitor_requests("a"), connections=16, pause_seconds=0.04)
            scrapes, met = asyncio.run(_inject(gateway, vendor, load))
            vendor.event_faults.clear()
            final = asyncio.run(_settled(gateway))
            wanted = acknowledged(load.exchanges)
            assert gateway.terminate() == 0
        got = arrived(vendor)
    assert met == set(FAULTS)
    for before, after in itertools.pairwise([*scrapes, final]):
        assert_adds_up(after)
        for name in ("received", "delivered", "rejected"):
            assert after[f"fme_events_{name}_total", ()] >= before[f"fme_events_{name}_total", ()]
    counts = {name.removeprefix("fme_events_"): value for (name, _), value in final.items() if "fme_events" in name}
    record_property("counts", orjson.dumps(counts).decode())
    print(f"{len(scrapes)} scrapes in {SECONDS:.0f} s: {counts}")
    assert counts["waiting"] == 0
    assert counts["delivered_total"] > 0
    assert counts["dead"] > 0
    assert counts["rejected_total"] > 0
    # The counts are about what really happened: everything acknowledged has arrived or is dead.
    assert sum((wanted - got).values()) <= counts["dead"]
    assert sum(wanted.values()) <= counts["received_total"] - counts["rejected_total"]


async def _inject(gateway, vendor, load):
    """One fault after the other while clients send and scrapes come in; one long one, to fill the queue."""
    rng = random.Random(20)
    running = asyncio.create_task(load.run())
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    filling_starts = loop.time() + SECONDS / 2
    kinds, met, scrapes, dead, rejected = itertools.cycle(FAULTS), set(), [], 0, 0
    while loop.time() < end or met != set(FAULTS) or not dead or not rejected or len(scrapes) <= 100:
        assert loop.time() < end + 300, f"met {met}, {dead} dead, {rejected} rejected, {len(scrapes)} scrapes"
        if filling_starts < loop.time() and not rejected:
            if not vendor.event_faults:
                vendor.event_faults.append(Fault(500))
        elif not vendor.event_faults and rng.random() < 0.3:
            kind = next(kinds)
            met.add(kind)
            vendor.event_faults.append(FAULTS[kind]())
        scrapes.append(samples_of((await asyncio.to_thread(scrape, gateway))[0]))
        before, dead = dead, scrapes[-1]["fme_events_dead", ()]
        rejected = scrapes[-1]["fme_events_rejected_total", ()]
        if dead > before and vendor.event_faults and vendor.event_faults[0].refuses:
            vendor.event_faults.clear()
        await asyncio.sleep(0.05)
    load.stopping = True
    await running
    return scrapes, met


async def _settled(gateway):
    """The numbers when nothing waits any more."""
    deadline = asyncio.get_running_loop().time() + 120  # the last pause after failures may be a minute
    while True:
        samples = samples_of((await asyncio.to_thread(scrape, gateway))[0])
        if samples["fme_events_waiting", ()] == 0:
            return samples
        assert asyncio.get_running_loop().time() < deadline, samples
        await asyncio.sleep(0.2)
