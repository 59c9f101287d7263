"""The numbers of the whole instance, readable by every worker: shared memory with one row for each process.

The parent creates it before it forks. Each worker writes its own row, so writers never block each other, and
`/status` of any worker shows the sums.

All rules about the sums are in this file:

- A worker counts received = delivered + waiting + dead + rejected + discarded + lost for itself and publishes all at
  once. The events in its log when it opens or adopts the log count as received. So the log determines the waiting
  events.
- When a worker has ended, the parent retires it: its final events (delivered, rejected, discarded, lost) go into the
  totals permanently, and are received there too. Its waiting and dead events are in its log. The worker that adopts
  the log receives them again.
- Until then these events are orphaned and stay in the sums, so that no event disappears in between. They are dropped
  when a worker reports that it has adopted the logs of all workers up to a certain retirement.
- A killed worker did not publish its last changes. Events that it had received come back with its log; events that it
  had delivered are missing among received and delivered alike. So received = delivered + waiting + dead + rejected +
  discarded + lost holds for the sums at any time.
- A log that is adopted between the end of its worker and the retirement counts twice until logs are adopted again.
- With ENVIRONMENTS_FILE, a record has a part for each environment beside the numbers of the default one. The same rules
  hold for the parts of each environment.
- With a queue that is shared with other machines (Redis) every worker shows the waiting and dead events of the whole
  queue, so the sums count them once, and no worker leaves orphaned events. Events that one machine received may be
  delivered by another. Then received + elsewhere = delivered + waiting + dead + rejected + discarded + lost + unknown,
  and one of both is 0. `elsewhere` are events of this sum that other gateways or an earlier run have received.
  `unknown` are the waiting and dead events while no worker can read the queue, and the events that others delivered.
"""

import mmap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tornado_gateway.tasks import Steps, at_once
from tornado_gateway.telemetry import series, waiting
from tornado_gateway.telemetry.attempts import Attempts
from tornado_gateway.telemetry.judging.memory import Judged
from tornado_gateway.telemetry.slots import WORD_BYTES, Slots, bytes_for
from tornado_gateway.telemetry.turns import Turns
from tornado_gateway.telemetry.waiting import Reading

WorkerRecord = dict[str, Any]

ROW_BYTES = 1 << 20  # of address space: only written pages take memory. 200 environments need 200 KB
RECENT_BYTES = 1 << 18
WATCHED_BYTES = 1 << 14  # the filters of the live streams of one worker
FOUND_BYTES = 1 << 17  # the matches that a worker has found for the live streams of all workers
VISITORS_BYTES = 1 << 17  # the IDs of users that a worker has seen recently
PARTS_IN_STEP = 5  # environments that are merged in one step of a reading: 0.1 ms
MOST_NAMES = 100  # features whose slow patterns are counted by name
OTHER = "other"
FINAL_COUNTS = ("delivered", "rejected", "discarded", "lost")
EVENT_COUNTS = ("received", "waiting", "dead", *FINAL_COUNTS)
PARTIAL_COUNTS = ("discarded_internal",)  # parts of other counts, which no sum includes
SHARED_COUNTS = ("unknown", "elsewhere")  # with other machines
_SUMMED = (*EVENT_COUNTS, *PARTIAL_COUNTS, *SHARED_COUNTS)

_NO_SUMS: dict[str, Any] = {"adopted": 0, "events": {}, "orphaned": [], "counts": {}}
_NO_TOTALS: dict[str, Any] = {"retirements": 0, "retired": {}, "environments": {}, "slow_patterns": {}, **_NO_SUMS}


@dataclass(frozen=True, slots=True)
class PartReading:
    """The parts of all workers that concern one environment, and the sums of its counts, ended workers included."""

    parts: list[WorkerRecord]
    events: dict[str, int]
    waiting: waiting.Merged
    ended_counts: dict[str, dict[str, int]]  # of ended workers
    last_known: Reading | None = None  # of a shared queue that no worker can read now

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By metric and label."""
        return _added(self.ended_counts, *(part.get("counts", {}) for part in self.parts))

    @property
    def newest_settings(self) -> dict[str, Any] | None:
        return _newest_settings(self.parts)


@dataclass(frozen=True, slots=True)
class InstanceReading:
    """The last records of all workers, and the event counts of the instance, those of ended workers included."""

    workers: list[WorkerRecord]
    events: dict[str, int]
    waiting: waiting.Merged
    slow_patterns: dict[str, int]  # by feature
    last_known: Reading | None = None  # of a shared queue that no worker can read now
    environments: dict[str, PartReading] = field(default_factory=dict)

    @property
    def newest_settings(self) -> dict[str, Any] | None:
        return _newest_settings(self.workers)


class Scoreboard:
    """One record for each process, replaced as a whole. Create it before forking.

    A record belongs to a `generation`, the number of a process; later processes in a row have higher ones.
    """

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows
        self.started_at = time.monotonic()
        self.admin_attempts = Attempts(rows)
        self.webhook_attempts = Attempts(rows)
        self.client_attempts = Attempts(rows, of_address=20)
        self.pull_turns = Turns()
        self.judged = Judged()
        recent_bytes = bytes_for(RECENT_BYTES)
        self.recent = Slots(mmap.mmap(-1, rows * recent_bytes), rows, recent_bytes)  # newest events of each worker
        series_bytes = bytes_for(series.SHARED_BYTES)
        self.series = Slots(mmap.mmap(-1, rows * series_bytes), rows, series_bytes)  # behind the charts of each worker
        watched_bytes, found_bytes = bytes_for(WATCHED_BYTES), bytes_for(FOUND_BYTES)
        self.watched = Slots(mmap.mmap(-1, rows * watched_bytes), rows, watched_bytes)
        self.found = Slots(mmap.mmap(-1, rows * found_bytes), rows, found_bytes)
        visitors_bytes = bytes_for(VISITORS_BYTES)
        self.visitors = Slots(mmap.mmap(-1, rows * visitors_bytes), rows, visitors_bytes)
        records_bytes = (rows + 1) * ROW_BYTES  # the last row is for the totals
        memory = mmap.mmap(-1, records_bytes + rows * WORD_BYTES)
        self._slots = Slots(memory, rows + 1, ROW_BYTES)
        self._beats = memoryview(memory).cast("Q")[records_bytes // WORD_BYTES :]

    def beat(self, row: int) -> None:
        """Record a heartbeat of the process that owns the row.

        Separate from the record, because a record that cannot be written is no reason to end a worker.
        """
        self._beats[row] = time.monotonic_ns()

    def last_beat(self, row: int) -> float:
        """Return the time of the last heartbeat, 0.0 at first. All processes of a machine share the monotonic clock."""
        return self._beats[row] / 1e9

    def publish(self, row: int, record: Mapping[str, Any]) -> None:
        """Replace the record of a row. Only the process that owns the row may call it."""
        self._write(row, record)

    def read_all(self) -> InstanceReading:
        return at_once(self.read_in_steps())

    def read_in_steps(self) -> Steps[InstanceReading]:
        """Read a record in each step, then merge the parts of some environments in each.

        The totals come last: a worker that is retired in the meantime is found in them and omitted here.
        """
        records = []
        for row in range(self.rows):
            if (record := self._read(row)) is not None:
                records.append(record)
                yield
        totals = self._totals()
        living = [record for record in records if not _is_retired(record, totals)]
        is_shared = any(record["is_queue_shared"] for record in living)
        whole = _merged(living, totals, is_shared=is_shared)
        living.sort(key=lambda record: (record["slot"], record["generation"]))
        environments = {}
        for number, name in enumerate(_names_of(living)):
            if number % PARTS_IN_STEP == 0:
                yield
            sums = totals["environments"].get(name, _NO_SUMS)
            parts = [record["environments"][name] for record in living if name in record.get("environments", {})]
            environments[name] = _merged(parts, sums, is_shared=is_shared)
        slow_patterns = _slow_patterns([totals, *living])
        return InstanceReading(living, whole.events, whole.waiting, slow_patterns, whole.last_known, environments)

    def retire(self, row: int, generation: int) -> None:
        """Keep the counts of a process that has ended. Only the parent may call it."""
        totals = self._totals()
        final = self._read(row)
        totals["retirements"] += 1
        totals["retired"][str(row)] = generation
        records = [record for other in range(self.rows) if (record := self._read(other)) is not None]
        environments = totals["environments"]
        if final is not None and final["generation"] == generation:
            _keep(totals, final, final, totals["retirements"])
            totals["slow_patterns"] = _slow_patterns([totals, final])
            for name, part in final.get("environments", {}).items():
                sums = environments.setdefault(name, orjson.loads(orjson.dumps(_NO_SUMS)))
                _keep(sums, part, final, totals["retirements"])
        _forget_adopted(totals, records)
        known = {name for record in records for name in record.get("environments", {})}
        totals["environments"] = {name: sums for name, sums in environments.items() if name in known}
        for name, sums in totals["environments"].items():
            _forget_adopted(sums, [record.get("environments", {}).get(name, {}) for record in records])
        self._write(self.rows, totals)

    @property
    def retirements(self) -> int:
        """The number of processes that have ended. A worker that adopts their logs publishes the number as `adopted`.

        Read it before adopting: the log of a process that ends in the meantime may be missed.
        """
        retirements: int = self._totals()["retirements"]
        return retirements

    def _totals(self) -> dict[str, Any]:
        return self._read(self.rows) or orjson.loads(orjson.dumps(_NO_TOTALS))

    def _write(self, row: int, record: Mapping[str, Any]) -> None:
        self._slots.write(row, orjson.dumps(record))

    def _read(self, row: int) -> WorkerRecord | None:
        body = self._slots.read(row)
        return None if body is None else orjson.loads(body)


def _is_retired(record: WorkerRecord, totals: dict[str, Any]) -> bool:
    return bool(record["generation"] <= totals["retired"].get(str(record["row"]), 0))


def _names_of(records: Iterable[WorkerRecord]) -> list[str]:
    """Return the names of all environments, in the order of the file."""
    return list(dict.fromkeys(name for record in records for name in record.get("environments", {})))


def _newest_settings(parts: Iterable[WorkerRecord]) -> dict[str, Any] | None:
    """Return the highest stored version; among equal versions that of the worker that confirmed it last."""
    settings = [part["settings"] for part in parts]
    return max(settings, key=lambda s: (s["stored_version"] or 0, -(s["age_seconds"] or 0.0)), default=None)


def _merged(parts: list[WorkerRecord], sums: dict[str, Any], *, is_shared: bool) -> PartReading:
    """Return the counts of one environment: those of the living workers, and the kept ones of ended workers."""
    adopted = max([sums["adopted"], *(part.get("adopted", 0) for part in parts)])
    events = _summed([sums["events"], *(part["events"] for part in parts)])
    holders = [waiting.Waiting(part["events"]["waiting"], _reading(part)) for part in parts]
    last_known = waiting.newest_reading(holders) if is_shared and waiting.is_unknown(holders) else None
    if is_shared:
        _count_shared(events, holders, is_known=last_known is None)
    for retirement, counts, reading in sums["orphaned"]:
        if retirement > adopted:
            events = _summed([events, counts])
            holders.append(waiting.Waiting(counts["waiting"], Reading(**reading)))
    return PartReading(parts, events, waiting.merged(holders, is_shared=is_shared), sums["counts"], last_known)


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the sum of each count. A `Counter` takes several times as long, every second for each environment."""
    return {name: sum([one.get(name, 0) for one in counts]) for name in _SUMMED}


def _keep(sums: dict[str, Any], part: WorkerRecord, final: WorkerRecord, retirement: int) -> None:
    """Add the counts of a worker that has ended, whose last record was `final`."""
    counts: Counter[str] = Counter(part["events"])
    if final["is_queue_shared"]:
        done, orphaned = {**counts, "waiting": 0}, {}
    else:
        done = _received({name: counts[name] for name in FINAL_COUNTS})
        done |= {name: counts[name] for name in PARTIAL_COUNTS}
        orphaned = {"waiting": counts["waiting"], "dead": counts["dead"]}
    sums["events"] = Counter(sums["events"]) + Counter(done)
    sums["counts"] = _added(sums["counts"], part.get("counts", {}))
    sums["adopted"] = max(sums["adopted"], part.get("adopted", 0))
    if any(orphaned.values()):
        reading = part["reading"] | {"still_until": None}  # no other reading follows
        sums["orphaned"].append([retirement, _received(orphaned), reading])


def _forget_adopted(sums: dict[str, Any], parts: Iterable[WorkerRecord]) -> None:
    adopted = max([sums["adopted"], *(part.get("adopted", 0) for part in parts)])
    sums["orphaned"] = [entry for entry in sums["orphaned"] if entry[0] > adopted]


def _added(*counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return the sums of counts by metric and label."""
    added: dict[str, Counter[str]] = {}
    for count in counts:
        for metric, numbers in count.items():
            added.setdefault(metric, Counter()).update(numbers)
    return {metric: dict(numbers) for metric, numbers in added.items()}


def _count_shared(events: dict[str, int], workers: list[waiting.Waiting], *, is_known: bool) -> None:
    """Count the waiting and dead events of a shared queue once. They are unknown if it cannot be read."""
    events["waiting"] = max((worker.events for worker in workers), default=0) if is_known else 0
    events["dead"] = (waiting.newest_reading(workers).dead or 0) if is_known else 0
    rest = events["received"] - sum(events[name] for name in EVENT_COUNTS[1:])
    events["unknown"], events["elsewhere"] = max(0, rest), max(0, -rest)


def _slow_patterns(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Add the counts of slow patterns. The names of the first record stay, so that no count decreases."""
    sums: dict[str, int] = {}
    for record in records:
        for name, count in record["slow_patterns"].items():
            shown = name if name in sums or len(sums) < MOST_NAMES else OTHER
            sums[shown] = sums.get(shown, 0) + count
    return sums


def _reading(record: WorkerRecord) -> Reading:
    return Reading(**record["reading"])


def _received(counts: dict[str, int]) -> dict[str, int]:
    return {"received": sum(counts.values()), **counts}
