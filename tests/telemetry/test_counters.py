"""The counters in shared memory: whole rows only, and event counts that never decrease."""

import os
import signal
import time

from tornado_gateway.process.counters import LAYOUT, new_counters
from tornado_gateway.telemetry.counters import CounterRow
from tornado_gateway.telemetry.layout import GAUGES


def test_what_a_worker_delivered_in_its_last_moment_is_added_to_both_sides():
    memory = new_counters()

    def steady(received, delivered, waiting):
        counts = {
            "received": received,
            "delivered": delivered,
            "waiting": waiting,
            "dead": 0,
            "rejected": 0,
            "discarded": 0,
            "lost": 0,
        }
        return memory.steady(lambda: (None, {"": counts}))[1][""]

    assert steady(100, 50, 50)["received"] == 100
    after = steady(70, 50, 20)  # 30 were delivered and never published
    assert (after["received"], after["delivered"], after["waiting"]) == (100, 80, 20)
    later = steady(75, 50, 25)
    assert (later["received"], later["delivered"], later["waiting"]) == (105, 80, 25)


def test_a_writer_that_dies_half_way_leaves_the_row_before():
    memory = new_counters()
    gauges = dict.fromkeys(GAUGES, 1.0)
    memory.write(0, CounterRow(1, gauges, [1] * LAYOUT.size))
    memory.write(0, CounterRow(1, gauges, [2] * LAYOUT.size))
    slots = memory._slots
    other_half = slots._half(slots._start, 3)
    slots._memory[other_half : other_half + 80] = b"\xff" * 80
    assert memory.read(0).counts == [2] * LAYOUT.size


def test_a_reader_never_sees_half_a_row():
    memory = new_counters(2)
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            gauges = dict.fromkeys(GAUGES, float(number))
            memory.write(1, CounterRow(number, gauges, [number] * LAYOUT.size))
    try:
        deadline = time.monotonic() + 60
        seen = set()
        while len(seen) <= 1000:
            assert time.monotonic() < deadline, len(seen)
            if (row := memory.read(1)) is not None:
                assert set(row.counts) == {row.generation}
                assert set(row.gauges.values()) == {float(row.generation)}
                seen.add(row.generation)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
