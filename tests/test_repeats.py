"""One log line per reason and interval, with the number of occurrences since the last one."""

import logging

from tornado_gateway.repeats import RepeatedLine


def test_a7_one_line_per_reason_and_interval(caplog):
    caplog.set_level(logging.INFO)
    now = 100.0
    line = RepeatedLine(
        logging.getLogger("x"), "%d times: %s", interval_seconds=60, level=logging.INFO, clock=lambda: now
    )
    for _ in range(1000):
        line.add("one", 2)
    line.add("another")
    now += 59
    line.add("one")
    assert [record.getMessage() for record in caplog.records] == ["2 times: one", "1 times: another"]
    now += 1
    line.add("one")
    line.add("one")
    now += 60
    line.add("another")
    assert [record.getMessage() for record in caplog.records][2:] == ["2000 times: one", "1 times: another"]
    assert {record.levelno for record in caplog.records} == {logging.INFO}
