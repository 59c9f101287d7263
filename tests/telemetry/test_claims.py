"""Claims of log lines: real processes agree on the one that writes."""

import fcntl
import os
import signal
import sys
import time

import orjson
import pytest

from tornado_gateway.telemetry import claims
from tornado_gateway.telemetry.claims import FURTHER, MOST_CONDITIONS, MOST_ENVIRONMENTS, Claims

HOUR = 3600.0


@pytest.fixture
def shared():
    return Claims()


def in_child(work):
    """Run `work` in a fork. Return its result as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, repr(work()).encode())
        sys.stdout = sys.stderr = None
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with open(read, "rb") as pipe:
        return pipe.read().decode()


def test_one_process_writes_the_lines_of_a_condition(shared):
    assert shared.claim("VWO rejected the key", "", HOUR) == ""
    assert shared.claim("VWO rejected the key", "", HOUR) == ""
    assert in_child(lambda: shared.claim("VWO rejected the key", "", HOUR)) == "None"
    assert in_child(lambda: shared.claim("another condition", "", HOUR)) == "''"
    assert in_child(lambda: shared.claim("VWO rejected the key", "staging: ", HOUR)) == "''"


def test_a_claim_ends_with_its_time(shared):
    shared.claim("condition", "", 0.0)
    assert in_child(lambda: shared.claim("condition", "", HOUR)) == "''"


def test_a_claim_ends_with_its_process(shared):
    assert in_child(lambda: shared.claim("condition", "", HOUR)) == "''"
    assert shared.claim("condition", "", HOUR) == ""


def test_only_some_of_many_environments_are_named(shared):
    texts = [shared.claim("condition", f"e{number}: ", HOUR) for number in range(3 * MOST_ENVIRONMENTS)]
    assert texts == [*[""] * (MOST_ENVIRONMENTS - 1), FURTHER, *[None] * (2 * MOST_ENVIRONMENTS)]
    assert shared.claim("condition", "e0: ", HOUR) == "", "a line of the same environment is not a further one"


def test_the_memory_is_bounded_and_no_line_is_lost(shared):
    """It has the longest names of environments, and a process ID and a time of many digits."""
    names = [f"{number:032}: " for number in range(MOST_ENVIRONMENTS)]
    claim = (4_194_304, 1_234_567_890.123456789 + time.monotonic())
    full = {f"{number:016x}": dict.fromkeys(names, claim) for number in range(MOST_CONDITIONS)}
    shared._slots.write(0, orjson.dumps(full))
    assert shared.claim("one more", "", HOUR) == ""
    assert in_child(lambda: shared.claim("one more", "", HOUR)) == "''"


def test_a_process_that_is_stopped_with_the_lock_stops_no_other(shared):
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(shared._file, fcntl.LOCK_EX)
        os.write(done, b"1")
        signal.pause()
    try:
        os.read(ready, 1)
        os.kill(pid, signal.SIGSTOP)
        assert shared.claim("condition", "", HOUR) == ""
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert claims.LOCK_TRIES * claims.LOCK_RETRY_SECONDS < 0.1
