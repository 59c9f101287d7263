"""The instance's numbers in shared memory: whole records only, and sums that stay right when workers come and go."""

import asyncio
import os
import signal
import time
from dataclasses import asdict

import pytest

from tornado_gateway.process.counters import new_counters
from tornado_gateway.process.status import instance_status
from tornado_gateway.tasks import in_turns
from tornado_gateway.telemetry import scoreboard
from tornado_gateway.telemetry.judging.verdict import Verdict
from tornado_gateway.telemetry.scoreboard import EVENT_COUNTS, ROW_BYTES, Scoreboard
from tornado_gateway.telemetry.waiting import Reading

merge = scoreboard._merged


def counts(waiting=0, delivered=0, dead=0, rejected=0, discarded=0, internal=0):
    done = {"waiting": waiting, "delivered": delivered, "dead": dead, "rejected": rejected, "discarded": discarded}
    done |= {"lost": 0, "discarded_internal": internal, "unknown": 0, "elsewhere": 0}
    return {"received": waiting + delivered + dead + rejected + discarded, **done}


def record(row, generation, adopted=0, **events):
    return {
        "pid": 1000 + generation,
        "slot": row,
        "row": row,
        "generation": generation,
        "adopted": adopted,
        "is_queue_shared": False,
        "uptime_seconds": 1.0,
        "connections": 2,
        "in_flight": 1,
        "settings": {"version": 1, "stored_version": 1, "age_seconds": 1.0, "hash": "a", "source": "store"},
        "events": counts(**events),
        "reading": asdict(Reading()),
        "last_poll": {"at": None, "error": None},
        "last_flush": {"at": None, "events": 0, "error": None},
        "last_error": None,
        "last_error_code": None,
        "problems": [],
        "slow_patterns": {},
    }


def shown(board, version):
    return instance_status(board, version, Verdict(board, new_counters(board.rows)))


def sums(board):
    events = board.read_all().events
    assert events["received"] == sum(events[name] for name in EVENT_COUNTS[1:])
    return events


class Instance:
    """Publishes as workers do."""

    def __init__(self, rows=4):
        self.board = Scoreboard(rows)

    def worker(self, row, generation, adopted=0, **events):
        self.board.publish(row, record(row, generation, adopted, **events))

    def end(self, row, generation):
        self.board.retire(row, generation)

    def sums(self):
        return sums(self.board)


def test_nothing_is_published_at_first():
    board = Scoreboard(3)
    assert board.read_all().workers == []
    assert board.read_all().events == counts()
    assert shown(board, "1")["workers"] == []


def test_the_last_record_of_each_place_counts():
    instance = Instance()
    instance.worker(1, 2, delivered=5)
    instance.worker(0, 1, waiting=1)
    instance.worker(1, 2, delivered=7, waiting=2)
    assert [worker["slot"] for worker in instance.board.read_all().workers] == [0, 1]
    assert instance.sums() == counts(waiting=3, delivered=7)


def test_an_ended_worker_is_gone_and_its_finished_events_are_not():
    instance = Instance()
    instance.worker(0, 1, delivered=10, rejected=2, discarded=3, internal=2)
    instance.worker(1, 2, delivered=1, discarded=1, internal=1)
    before = instance.sums()
    instance.end(0, 1)
    assert [worker["generation"] for worker in instance.board.read_all().workers] == [2]
    assert instance.sums() == before
    instance.worker(0, 3, delivered=1)
    assert instance.sums() == counts(delivered=12, rejected=2, discarded=4, internal=3)


def test_what_an_ended_worker_left_waits_until_it_is_taken_over():
    instance = Instance()
    instance.worker(0, 1, waiting=4, delivered=10, dead=1, rejected=2)
    instance.worker(1, 2)
    before = instance.sums()
    instance.end(0, 1)
    assert instance.sums() == before
    instance.worker(1, 2, adopted=instance.board.retirements, waiting=4, dead=1)
    assert instance.sums() == before
    instance.worker(1, 2, adopted=1, delivered=4, dead=1)
    assert instance.sums() == counts(delivered=14, dead=1, rejected=2)


def test_the_log_decides_what_a_killed_worker_left():
    """It had published 4 waiting, and then stored 3 more and delivered none."""
    instance = Instance()
    instance.worker(0, 1, waiting=4)
    instance.end(0, 1)
    instance.worker(0, 2, adopted=1, waiting=7)
    assert instance.sums() == counts(waiting=7)


def test_what_is_left_behind_after_the_taking_over_began_still_counts():
    instance = Instance()
    instance.worker(0, 1, waiting=4)
    instance.worker(1, 2, waiting=6)
    instance.worker(2, 3)
    instance.end(0, 1)
    before_adoption = instance.board.retirements
    instance.end(1, 2)
    instance.worker(2, 3, adopted=before_adoption, waiting=4)
    assert instance.sums() == counts(waiting=10)
    instance.worker(2, 3, adopted=2, waiting=10)
    assert instance.sums() == counts(waiting=10)


def test_the_adopter_may_end_as_well():
    instance = Instance()
    instance.worker(0, 1, waiting=4)
    instance.end(0, 1)
    instance.worker(1, 2, adopted=1, waiting=1, delivered=3)
    instance.end(1, 2)
    assert instance.sums() == counts(waiting=1, delivered=3)
    instance.worker(1, 3, adopted=2, waiting=1)
    assert instance.sums() == counts(waiting=1, delivered=3)
    for generation in range(4, 200):  # what was taken over is forgotten, so the totals do not grow
        instance.end(1, generation - 1)
        instance.worker(1, generation, adopted=instance.board.retirements, waiting=1)
    assert instance.sums() == counts(waiting=1, delivered=3)
    assert len(instance.board._totals()["orphaned"]) == 1


def test_events_sent_before_they_are_counted_as_adopted():
    """Between adopting and counting, an adopter that already delivers has fewer than none waiting."""
    instance = Instance()
    instance.worker(0, 1, waiting=10)
    instance.end(0, 1)
    instance.worker(1, 2, waiting=-10, delivered=10)
    assert instance.sums() == counts(delivered=10)
    instance.end(1, 2)
    assert instance.sums() == counts(delivered=10)


def test_a_queue_that_is_shared_with_other_machines_is_counted_once():
    board = Scoreboard(2)

    def publish(row, generation, received, delivered, waiting):
        events = {
            "received": received,
            "waiting": waiting,
            "delivered": delivered,
            "dead": 0,
            "rejected": 0,
            "discarded": 0,
            "lost": 0,
        }
        board.publish(row, record(row, generation) | {"is_queue_shared": True, "events": events})

    publish(0, 1, received=10, delivered=2, waiting=12)
    publish(1, 2, received=5, delivered=1, waiting=12)
    assert board.read_all().events == counts(waiting=12, delivered=3)
    board.retire(0, 1)
    assert board.read_all().events == counts(waiting=12, delivered=3)
    publish(0, 3, received=0, delivered=0, waiting=11)
    publish(1, 2, received=5, delivered=2, waiting=11)
    assert board.read_all().events == counts(waiting=11, delivered=4)


def test_events_that_other_machines_received_are_counted_elsewhere_and_no_count_is_negative():
    board = Scoreboard(1)
    own = counts(delivered=7, waiting=5)
    for received, elsewhere, unknown in ((2, 10, 0), (12, 0, 0), (20, 0, 8)):
        board.publish(0, record(0, 1) | {"is_queue_shared": True, "events": own | {"received": received}})
        events = board.read_all().events
        assert (events["elsewhere"], events["unknown"]) == (elsewhere, unknown)
        assert received + elsewhere == sum(events[name] for name in EVENT_COUNTS[1:]) + unknown


def test_a_worker_that_never_published():
    instance = Instance()
    instance.end(0, 1)
    instance.worker(0, 2, delivered=1)
    instance.end(0, 2)
    instance.end(0, 3)  # its row still holds the record of its predecessor
    assert instance.sums() == counts(delivered=1)


def test_p1_a_heartbeat_is_seen_by_the_parent_and_belongs_to_one_place():
    board = Scoreboard(3)
    assert [board.last_beat(row) for row in range(3)] == [0.0] * 3
    before = time.monotonic()
    pid = os.fork()
    if pid == 0:
        board.beat(1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert before <= board.last_beat(1) <= time.monotonic()
    assert (board.last_beat(0), board.last_beat(2)) == (0.0, 0.0)
    board.publish(2, record(2, 1, delivered=1))
    board.beat(2)
    assert sums(board) == counts(delivered=1)


def test_two_processes_of_a_slot_are_both_shown():
    board = Scoreboard(2)
    board.publish(0, record(0, 1) | {"slot": 0})
    board.publish(1, record(1, 2) | {"slot": 0})
    assert [worker["generation"] for worker in board.read_all().workers] == [1, 2]


def test_a_record_that_is_too_large_is_refused():
    board = Scoreboard()
    board.publish(0, record(0, 1))
    with pytest.raises(ValueError, match="does not fit"):
        board.publish(0, record(0, 1) | {"last_error": "x" * ROW_BYTES})
    assert len(board.read_all().workers) == 1


def test_a_writer_that_dies_half_way_leaves_the_record_before():
    board = Scoreboard()
    board.publish(0, record(0, 1, delivered=1))
    board.publish(0, record(0, 1, delivered=2))
    half_bytes = board._slots._half_bytes
    board._slots._memory[8 + half_bytes : 8 + 2 * half_bytes] = b"\xff" * half_bytes  # number 3 would be here
    assert sums(board) == counts(delivered=2)


def test_a_reader_never_sees_half_a_record():
    """One process writes records of very different lengths as fast as it can, another one reads."""
    board = Scoreboard()
    board.publish(0, record(0, 1))
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            events = {"waiting": number, "delivered": number * 3}
            board.publish(0, record(0, 1, **events) | {"last_error": "x" * (number * 7919 % 30000)})
    try:
        deadline = time.monotonic() + 60
        seen = set()
        while len(seen) <= 1000:
            assert time.monotonic() < deadline, len(seen)
            (worker,) = board.read_all().workers
            events = worker["events"]
            assert events == counts(waiting=events["waiting"], delivered=events["waiting"] * 3)
            seen.add(events["waiting"])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_status_takes_what_differs_from_the_worker_that_knows_best():
    board = Scoreboard(3)
    settings = {"version": 7, "stored_version": 3, "age_seconds": 60.0, "hash": "new", "source": "store"}
    board.publish(0, record(0, 1) | {"last_poll": {"at": 5.0, "error": "old"}})
    board.publish(1, record(1, 2) | {"settings": settings, "last_error": "full"})
    polled = settings | {"age_seconds": 0.5, "source": "upstream"}
    flushed = {"at": 8.0, "events": 2, "error": None}
    poll = {"at": 9.0, "error": None}
    board.publish(2, record(2, 3) | {"settings": polled, "last_poll": poll, "last_flush": flushed})
    status = shown(board, "1.2")
    assert status["version"] == "1.2"
    assert status["settings"] == polled
    assert status["last_poll"] == poll | {"running_seconds": None}
    assert status["last_flush"] == flushed
    assert status["last_error"] == "full"
    assert [worker["settings"] for worker in status["workers"]] == ["a", "new", "new"]
    assert status["workers"][0]["pid"] == 1001
    assert status["workers"][0]["connections"] == 2


# What waits (rows H7 and H8)


def holding(row, generation, waiting, is_shared=False, **reading):
    known = asdict(Reading(**{"at": time.time(), "stuck_after": 60.0, **reading}))
    return record(row, generation, waiting=waiting) | {"reading": known, "is_queue_shared": is_shared}


def status_of(*records):
    board = Scoreboard(len(records))
    for one in records:
        board.publish(one["row"], one)
    return shown(board, "1")


def still_for(seconds):
    return time.monotonic() - seconds


def test_h7_the_oldest_event_is_that_of_all_workers():
    status = status_of(holding(0, 1, 2, oldest_at=500.0), holding(1, 2, 3, oldest_at=400.0), holding(2, 3, 0))
    assert (status["events"]["waiting"], status["events"]["oldest_at"]) == (5, 400.0)
    assert status["events"]["oldest_unknown_since"] is None
    assert "reading" not in status["workers"][0]
    assert status_of(holding(0, 1, 0, oldest_at=400.0))["events"]["oldest_at"] is None


def test_h8_an_oldest_event_that_stays_the_same_without_an_error_is_stuck():
    stuck = holding(0, 1, 680, oldest_at=time.time() - 3600, still_since=still_for(61))
    status = status_of(stuck, holding(1, 2, 5, oldest_at=time.time() - 1, still_since=still_for(-600)))
    assert status["stuck"]["events"] == 680
    assert 3600 <= status["stuck"]["seconds"] < 3700
    assert "680 waiting" in status["stuck"]["message"]
    assert status["last_error"] == status["stuck"]["message"]


@pytest.mark.parametrize(
    ("still_seconds", "reading"),
    [(None, {}), (0, {"stuck_after": 1000.0}), (900, {"stuck_after": 1800.0}), (900, {"oldest_at": None})],
    ids=["an error is reported", "for a short time", "a longer flush interval", "never read"],
)
def test_h8_old_events_alone_are_not_stuck(still_seconds, reading):
    since = None if still_seconds is None else still_for(still_seconds)
    old = {"oldest_at": time.time() - 3600, "still_since": since}
    assert status_of(holding(0, 1, 3, **old | reading))["stuck"] is None


def test_h8_an_oldest_event_counts_as_the_same_until_the_last_reading_only():
    """A large log is read rarely: since then the oldest event may have been delivered."""
    old = {"oldest_at": time.time() - 3600, "still_since": still_for(1000)}
    assert status_of(holding(0, 1, 3, still_until=still_for(990), **old))["stuck"] is None
    assert status_of(holding(0, 1, 3, still_until=still_for(900), **old))["stuck"]["events"] == 3


def test_h8_nothing_is_stuck_when_nothing_waits():
    assert status_of(holding(0, 1, 0, oldest_at=1.0, still_since=still_for(61)))["stuck"] is None


def test_h8_a_shared_queue_is_stuck_if_all_workers_agree():
    seen = {"oldest_at": time.time() - 3600, "is_shared": True}
    one = holding(0, 1, 7, still_since=still_for(61), **seen)
    assert status_of(one, holding(1, 2, 7, still_since=still_for(70), **seen))["stuck"]["events"] == 7
    assert status_of(one, holding(1, 2, 7, still_since=still_for(-600), **seen))["stuck"] is None


def test_h8_what_an_ended_worker_left_behind_can_be_stuck():
    board = Scoreboard(2)
    reading = {"oldest_at": 400.0, "still_since": still_for(61), "still_until": still_for(61)}
    board.publish(0, holding(0, 1, 4, **reading))
    assert shown(board, "1")["stuck"] is None
    board.publish(1, holding(1, 2, 0))
    board.retire(0, 1)
    status = shown(board, "1")
    assert status["events"]["oldest_at"] == 400.0
    assert status["stuck"]["events"] == 4
    board.publish(1, holding(1, 2, 0) | {"adopted": board.retirements})
    assert shown(board, "1")["stuck"] is None


def test_h7_a_store_that_cannot_be_read_is_unknown_since_its_last_reading():
    known = holding(0, 1, 2, oldest_at=500.0)
    status = status_of(known, holding(1, 2, 3, oldest_at=None, unknown_since=450.0))
    assert status["events"]["oldest_at"] == 500.0
    assert status["events"]["oldest_unknown_since"] == 450.0
    shared = holding(0, 1, 2, oldest_at=500.0, is_shared=True)
    other = holding(1, 2, 2, unknown_since=450.0, is_shared=True)
    assert status_of(shared, other)["events"]["oldest_unknown_since"] is None, "one that can read it is enough"


def test_h7_the_dead_of_a_shared_queue_are_those_that_it_holds():
    """A worker counts only those of its own time."""
    before = holding(0, 1, 0, is_shared=True, dead=3, at=100.0)
    assert status_of(before, holding(1, 2, 0, is_shared=True, dead=5, at=200.0))["events"]["dead"] == 5


def test_h8_a_worker_that_cannot_deliver_is_not_hidden_by_one_that_can():
    failed = {"at": 5.0, "events": 0, "error": "events: HTTP 503"}
    fine = {"at": 9.0, "events": 2, "error": None}
    failing, working = holding(0, 1, 4) | {"last_flush": failed}, holding(1, 2, 1) | {"last_flush": fine}
    assert status_of(failing, working)["last_flush"] == failed
    done = holding(0, 1, 0) | {"last_flush": failed}
    assert status_of(done, working)["last_flush"] == fine, "nothing waits for it"


def test_d7_counts_of_slow_patterns_never_decrease_and_are_bounded():
    board = Scoreboard(2)
    for generation in range(1, 40):
        named = {f"feature-{generation}-{number}": 1 for number in range(10)} | {"common": 1}
        board.publish(0, record(0, generation) | {"slow_patterns": named})
        seen = board.read_all().slow_patterns
        board.retire(0, generation)
        assert board.read_all().slow_patterns == seen
    assert seen["common"] == 39
    assert sum(seen.values()) == 39 * 11
    assert len(seen) <= 101


async def test_many_environments_are_read_in_steps(monkeypatch):
    board, merged = Scoreboard(2), []
    monkeypatch.setattr(scoreboard, "_merged", lambda *args, **options: merged.append(1) or merge(*args, **options))
    for row in range(2):
        parts = {f"environment-{number}": record(row, row + 1, delivered=number) for number in range(35)}
        board.publish(row, record(row, row + 1, delivered=1) | {"environments": parts})
    reading = asyncio.ensure_future(in_turns(board.read_in_steps()))
    most = 0
    while not reading.done():
        before = len(merged)
        await asyncio.sleep(0)
        most = max(most, len(merged) - before)
    assert most <= scoreboard.PARTS_IN_STEP
    assert len(merged) == 1 + 35
    assert reading.result().environments["environment-34"].events == counts(delivered=68)
    assert reading.result() == board.read_all()
