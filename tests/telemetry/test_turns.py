"""Row C8: one turn per pause for all workers together."""

import os

from tornado_gateway.telemetry.turns import Turns


def test_c8_turns_are_a_pause_apart():
    turns = Turns(100.0)
    assert turns.take() == 0
    waits = [turns.take(1000) for _ in range(3)]
    assert [round(wait / 100) for wait in waits] == [1, 2, 3]


def test_c8_a_turn_that_is_far_away_is_not_taken():
    turns = Turns(100.0)
    assert turns.take() == 0
    assert turns.take(99.0 - 60) is None
    assert turns.take(1000) <= 100


def test_c8_processes_share_the_turns():
    turns = Turns(1000.0)
    pids = []
    read, write = os.pipe()
    for _ in range(4):
        if (pid := os.fork()) == 0:
            os.write(write, b"1" if turns.take() == 0 else b"0")
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert sorted(os.read(read, 10)) == sorted(b"0001")
