"""The numbers of the whole instance, readable by every worker: shared memory with one place for each process.

The parent makes it before it forks; each worker publishes in its own place, so nobody waits for anybody. `/status` of
any worker shows the sums.

Everything that binds the sums is in this file:

- A worker counts received = delivered + waiting + dead + rejected + discarded for itself and publishes all at once.
  Whatever its event log holds when it opens or adopts it, it counts as received. So the log is the truth of what waits.
- When a worker has ended, the parent retires it: delivered, rejected and discarded, the events that are done with, go
  into the totals permanently, and are received there too. What waits or is dead lies in its log and is going to be
  received again by the worker that takes the log over.
- Until then these are "left behind" and stay in the sums, so that nothing disappears in between. They are dropped
  when a worker says that it has taken over all that was left behind up to a certain retirement.
- A worker that was killed had no chance to publish its last moment. What it had received then comes back with its
  log; what it had delivered then is missing among received and delivered alike. So received = delivered + waiting +
  dead + rejected + discarded holds for the sums at any time.
- A log that is taken over in the moment between the end of its worker and the retirement counts twice until the next
  time that somebody takes over logs.
- With a queue that is shared with other machines (Redis) every worker shows what waits and what is dead there as a
  whole, so the sums have it once, and no worker leaves anything behind. What one machine received another one may
  deliver.
"""

import mmap
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tornado_gateway.telemetry import waiting

Record = dict[str, Any]

PLACE_BYTES = 65536
READ_TRIES = 100
FINAL_COUNTS = ("delivered", "rejected", "discarded")
EVENT_COUNTS = ("received", "waiting", "dead", *FINAL_COUNTS)

_NUMBER_BYTES = 8  # of the last record that is complete
_HEAD = struct.Struct("=QII")  # its number again, its length, the checksum
_HALF_BYTES = (PLACE_BYTES - _NUMBER_BYTES) // 2
_ROOM_BYTES = _HALF_BYTES - _HEAD.size
_INTERNAL = frozenset({"place", "generation", "adopted", "is_queue_shared", "last_poll", "reading"})
_NO_TOTALS: Record = {"retirements": 0, "adopted": 0, "retired": {}, "events": {}, "left_behind": []}


@dataclass(frozen=True, slots=True)
class Reading:
    """What all workers published last, and the event counts of the instance, those of ended workers included."""

    workers: list[Record]
    events: dict[str, int]
    waiting: waiting.Merged


class Scoreboard:
    """One record for each process, replaced as a whole. Make it before forking.

    A record belongs to a `generation`, the number of a process; later processes in a place have higher ones.
    """

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self.started_at = time.monotonic()
        records_bytes = (places + 1) * PLACE_BYTES  # the last place is for the totals
        self._memory = mmap.mmap(-1, records_bytes + places * _NUMBER_BYTES)
        # Stores 8 bytes at once. `struct` fills with zeros first, which another process would see.
        self._numbers = memoryview(self._memory).cast("Q")
        self._beats = self._numbers[records_bytes // _NUMBER_BYTES :]

    def beat(self, place: int) -> None:
        """Note that the process that owns the place is alive and does its work.

        Not a part of the record: a record that cannot be written is no reason to end a worker.
        """
        self._beats[place] = time.monotonic_ns()

    def last_beat(self, place: int) -> float:
        """When that was, by the monotonic clock, which all processes of a machine share. 0.0 at first."""
        return self._beats[place] / 1e9

    def publish(self, place: int, record: Mapping[str, Any]) -> None:
        """Replace the record of a place. Only the process that owns the place may call it."""
        self._write(place, record)

    def read_all(self) -> Reading:
        """The totals are read last: a worker that was retired meanwhile is then found in them and left out here."""
        records = [record for place in range(self.places) if (record := self._read(place)) is not None]
        totals = self._totals()
        living = [record for record in records if not _is_retired(record, totals)]
        adopted = max([totals["adopted"], *(record.get("adopted", 0) for record in living)])
        events: Counter[str] = Counter(totals["events"])
        for record in living:
            events.update(record["events"])
        holders = [waiting.Waiting(record["events"]["waiting"], _reading(record)) for record in living]
        is_shared = any(record["is_queue_shared"] for record in living)
        if is_shared:
            events["waiting"] = max(record["events"]["waiting"] for record in living)
            events["dead"] = waiting.newest_dead(holders, events["dead"])
        for retirement, counts, reading in totals["left_behind"]:
            if retirement > adopted:
                events.update(counts)
                holders.append(waiting.Waiting(counts["waiting"], waiting.Reading(**reading)))
        living.sort(key=lambda record: (record["slot"], record["generation"]))
        counted = {name: events[name] for name in EVENT_COUNTS}
        return Reading(living, counted, waiting.merged(holders, is_shared=is_shared))

    def retire(self, place: int, generation: int) -> None:
        """Keep the counts of a process that has ended. Only the parent may call it."""
        totals = self._totals()
        final = self._read(place)
        totals["retirements"] += 1
        totals["retired"][str(place)] = generation
        if final is not None and final["generation"] == generation:
            counts: Counter[str] = Counter(final["events"])
            if final["is_queue_shared"]:
                done, left = {**counts, "waiting": 0}, {}
            else:
                done = _received({name: counts[name] for name in FINAL_COUNTS})
                left = {"waiting": counts["waiting"], "dead": counts["dead"]}
            totals["events"] = Counter(totals["events"]) + Counter(done)
            totals["adopted"] = max(totals["adopted"], final.get("adopted", 0))
            if any(left.values()):
                reading = final["reading"] | {"still_until": None}  # no other reading follows
                totals["left_behind"].append([totals["retirements"], _received(left), reading])
        adopted = max([totals["adopted"], *self._adopted()])
        totals["left_behind"] = [entry for entry in totals["left_behind"] if entry[0] > adopted]
        self._write(self.places, totals)

    @property
    def retirements(self) -> int:
        """How many processes have ended. A worker that takes over their logs publishes the number as `adopted`.

        Read it before taking over: the log of one that ends meanwhile may be missed.
        """
        retirements: int = self._totals()["retirements"]
        return retirements

    def _adopted(self) -> Iterable[int]:
        for place in range(self.places):
            yield (self._read(place) or {}).get("adopted", 0)

    def _totals(self) -> Record:
        return self._read(self.places) or orjson.loads(orjson.dumps(_NO_TOTALS))

    # A place has two halves, written in turn, and the number says which one counts. A writer that dies half way has
    # touched only the other one. A reader that is overtaken twice sees it by the number or the checksum.

    def _write(self, place: int, record: Mapping[str, Any]) -> None:
        body = orjson.dumps(record)
        if len(body) > _ROOM_BYTES:
            raise ValueError(f"a record of {len(body)} bytes does not fit into {_ROOM_BYTES}")
        memory, start = self._memory, place * PLACE_BYTES
        number = self._numbers[start // _NUMBER_BYTES] + 1
        half = start + _NUMBER_BYTES + number % 2 * _HALF_BYTES
        _HEAD.pack_into(memory, half, number, len(body), _checksum(number, body))
        memory[half + _HEAD.size : half + _HEAD.size + len(body)] = body
        self._numbers[start // _NUMBER_BYTES] = number

    def _read(self, place: int) -> Record | None:
        memory, start = self._memory, place * PLACE_BYTES
        for _ in range(READ_TRIES):
            number = self._numbers[start // _NUMBER_BYTES]
            if not number:
                return None
            half = start + _NUMBER_BYTES + number % 2 * _HALF_BYTES
            again, size, checksum = _HEAD.unpack_from(memory, half)
            body = memory[half + _HEAD.size : half + _HEAD.size + min(size, _ROOM_BYTES)]
            if again == number and checksum == _checksum(number, body):
                record: Record = orjson.loads(body)
                return record
        return None


def _checksum(number: int, body: bytes) -> int:
    return zlib.crc32(body, number & 0xFFFFFFFF)


def _is_retired(record: Record, totals: Record) -> bool:
    return bool(record["generation"] <= totals["retired"].get(str(record["place"]), 0))


def _reading(record: Record) -> waiting.Reading:
    return waiting.Reading(**record["reading"])


def _received(counts: dict[str, int]) -> dict[str, int]:
    return {"received": sum(counts.values()), **counts}


def instance_status(scoreboard: Scoreboard, version: str) -> Record:
    """The body of /status. What the workers differ in comes from the one that knows best."""
    reading = scoreboard.read_all()
    workers = reading.workers
    stuck = reading.waiting.stuck
    errors = (worker["last_error"] for worker in workers if worker["last_error"])
    return {
        "version": version,
        "uptime_seconds": round(time.monotonic() - scoreboard.started_at, 3),
        "settings": _newest_settings(workers),
        "events": {
            **reading.events,
            "oldest_at": reading.waiting.oldest_at,
            "oldest_unknown_since": reading.waiting.unknown_since,
        },
        "stuck": stuck,
        "last_poll": max((worker["last_poll"] for worker in workers), key=_at, default=None),
        "last_flush": max(workers, key=_flush_order, default={"last_flush": None})["last_flush"],
        "last_error": next(errors, stuck and stuck["message"]),
        "workers": [_as_listed(worker) for worker in workers],
    }


def _newest_settings(workers: list[Record]) -> Record | None:
    """The highest stored version; among equals the worker that polls knows best how old it is."""
    settings = [worker["settings"] for worker in workers]
    return max(settings, key=lambda s: (s["stored_version"] or 0, -(s["age_seconds"] or 0.0)), default=None)


def _at(last: Record) -> float:
    return last["at"] or 0.0


def _flush_order(worker: Record) -> tuple[bool, float]:
    """Failures first, then the newest: a worker that delivers must not hide one that cannot deliver what it holds."""
    flush = worker["last_flush"]
    return bool(flush["error"] and worker["events"]["waiting"]), _at(flush)


def _as_listed(worker: Record) -> Record:
    """A worker among others: of its settings only the hash is of interest."""
    shown = {key: value for key, value in worker.items() if key not in _INTERNAL}
    return shown | {"settings": worker["settings"]["hash"]}
