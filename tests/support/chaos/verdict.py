"""Compares the events that were acknowledged with those that arrived, and explains each duplicate. Pure.

An event is lost if its request was acknowledged and it neither arrived nor is a dead letter. A duplicate needs a fault
that explains it (`CAUSES`, in the words of docs/operating.md). All times are of the monotonic clock.
"""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

Key = tuple[str, str, object]  # visitor, name of the event, campaign or serial number

SETTLE_SECONDS = 5.0  # delivered events leave the store within this time, also on a loaded machine
APPEND_SECONDS = 0.2  # of the 0.25 s for which an append waits for Redis before the event goes to the local store
RECOVERY_SECONDS = {"disk": 5.0, "redis": 10.0, "stop": 5.0}  # until a store works again after its fault
IN_FLIGHT = 16 * 50  # events of one worker in flight: PARALLEL_REQUESTS times EVENTS_PER_REQUEST of the run
SILENT_SECONDS = 4.5  # Redis hears of a worker with claims every 1.5 s; without this for 6 s, the worker loses them


class Sending(NamedTuple):
    """A request that caused an event. `acknowledged` is None if there was no 200."""

    sent: float
    acknowledged: float | None


class Taken(NamedTuple):
    """An event that upstream accepted. `answered` is None if the gateway got no response."""

    at: float
    answered: float | None


class Incident(NamedTuple):
    """A fault, or an end of a worker: kind "death" or "exit", from the last sign of life to the first without."""

    kind: str
    began: float
    ended: float = math.inf
    detail: str = ""

    @property
    def until(self) -> float:
        """Return when its effects are over."""
        return self.ended + RECOVERY_SECONDS.get(self.kind, 0.0)

    def touches(self, first: float, last: float) -> bool:
        return self.began <= last and first <= self.until


@dataclass
class Evidence:
    """Everything that was observed in a run."""

    sent: dict[Key, Sending] = field(default_factory=dict)
    taken: dict[Key, list[Taken]] = field(default_factory=dict)
    dead: "collections.Counter[Key]" = field(default_factory=collections.Counter)
    incidents: list[Incident] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Incident]:
        return [incident for incident in self.incidents if incident.kind in kinds]

    @property
    def acknowledged(self) -> set[Key]:
        return {key for key, sending in self.sent.items() if sending.acknowledged is not None}

    @property
    def missing(self) -> set[Key]:
        """The acknowledged events that have neither arrived nor died."""
        return self.acknowledged - self.taken.keys() - self.dead.keys()


# --- Duplicates ---


def _response_lost(evidence: Evidence, sending: Sending, first: Taken, second: Taken) -> bool:
    return first.answered is None


def _cannot_settle(evidence: Evidence, first: float, last: float) -> bool:
    """Return whether a fault of the store prevented that delivered events were removed from it."""
    return any(incident.touches(first, last) for incident in evidence.of("disk", "redis"))


def _worker_killed(evidence: Evidence, sending: Sending, first: Taken, second: Taken) -> bool:
    return any(
        first.at <= death.ended
        and death.began <= second.at
        and (death.began - first.at <= SETTLE_SECONDS or _cannot_settle(evidence, first.at, death.ended))
        for death in evidence.of("death")
    )


def _worker_ended(evidence: Evidence, sending: Sending, first: Taken, second: Taken) -> bool:
    """An orderly end gives up the requests in flight at its deadline, and keeps events that cannot be removed."""
    return any(
        first.at <= end.ended
        and end.began <= second.at
        and (first.answered is None or first.answered >= end.began or _cannot_settle(evidence, first.at, end.ended))
        for end in evidence.of("exit")
    )


def _worker_stopped(evidence: Evidence, sending: Sending, first: Taken, second: Taken) -> bool:
    """A response that arrives at a stopped worker is late, and others take over what it has claimed in Redis."""
    in_flight = first.answered if first.answered is not None else first.at
    return any(
        stop.touches(first.at, in_flight)
        or (stop.touches(second.at, second.at) and stop.ended - stop.began >= SILENT_SECONDS)
        for stop in evidence.of("stop")
    )


def _killed_while_moving(evidence: Evidence, sending: Sending, first: Taken, second: Taken) -> bool:
    """A worker was killed while it moved the event: out of the log of a dead worker, or from the disk to Redis."""
    waited = [death for death in evidence.of("death") if sending.sent <= death.ended and death.began <= first.at]
    of_redis = any(_redis_failed_between(evidence, sending.sent, death.began) for death in waited)
    return len(waited) >= 2 or of_redis


def _redis_failed_between(evidence: Evidence, first: float, last: float) -> bool:
    return any(incident.touches(first, last) for incident in evidence.of("redis"))


def _reply_lost(evidence: Evidence, sending: Sending, first: Taken, second: Taken) -> bool:
    """Redis stored the event, but its reply came too late or never: the event is on disk as well."""
    until = sending.acknowledged if sending.acknowledged is not None else sending.sent + 1
    is_slow = until - sending.sent >= APPEND_SECONDS and bool(evidence.of("redis"))
    return is_slow or _redis_failed_between(evidence, sending.sent, until)


Cause = Callable[[Evidence, Sending, Taken, Taken], bool]
CAUSES: dict[str, Cause] = {  # the first one that applies counts
    "response of upstream lost or late": _response_lost,
    "worker killed": _worker_killed,
    "worker ended with requests in flight": _worker_ended,
    "worker stopped": _worker_stopped,
    "reply of Redis lost or late": _reply_lost,
    "worker killed while it moved events": _killed_while_moving,
}
UNEXPLAINED = "unexplained"


def cause_of(evidence: Evidence, key: Key, first: Taken, second: Taken) -> str:
    sending = evidence.sent.get(key, Sending(first.at, None))
    return next((name for name, applies in CAUSES.items() if applies(evidence, sending, first, second)), UNEXPLAINED)


def duplicates(evidence: Evidence) -> list[tuple[Key, str, Taken, Taken]]:
    """Return each repetition of an event, with its cause."""
    return [
        (key, cause_of(evidence, key, first, second), first, second)
        for key, times in evidence.taken.items()
        for first, second in pairwise(sorted(times))
    ]


def too_many_of_one_death(evidence: Evidence, found: Iterable[tuple[Key, str, Taken, Taken]]) -> list[str]:
    """Return the ends of workers that caused more duplicates than one worker has in flight.

    Those during a fault of the store do not count: all events that were delivered meanwhile are sent again.
    """
    firsts = [first.at for _, cause, first, _ in found if cause == "worker killed"]
    deaths = evidence.of("death")
    groups = collections.Counter(
        min(deaths, key=lambda death: abs(death.began - at)).detail
        for at in firsts
        if not _cannot_settle(evidence, at, at + SETTLE_SECONDS)
    )
    return [f"{count} duplicates after the end of {name}" for name, count in groups.items() if count > 2 * IN_FLIGHT]


def deaths_without_a_fault(evidence: Evidence) -> list[str]:
    """Return the workers that ended although no fault killed or stopped them, or prevented their start."""
    faults = evidence.of("kill", "stop", "disk")
    return [
        f"{death.detail} ended without a fault"
        for death in evidence.of("death")
        if not any(fault.touches(death.began - 1, death.ended + 1) for fault in faults)
    ]


# --- Everything ---


def problems(evidence: Evidence) -> list[str]:
    """Return everything that contradicts the guarantees, about lost and about repeated events."""
    found = []
    missing = evidence.missing
    if missing:
        found.append(f"{len(missing)} acknowledged events are lost, such as {_shown(missing)}")
    repeated = duplicates(evidence)
    unexplained = [(key, first, second) for key, cause, first, second in repeated if cause == UNEXPLAINED]
    if unexplained:
        found.append(f"{len(unexplained)} duplicates are unexplained, such as {unexplained[:3]}")
    strangers = evidence.taken.keys() - evidence.sent.keys()
    if strangers:
        found.append(f"{len(strangers)} events arrived that no request caused, such as {_shown(strangers)}")
    return found + too_many_of_one_death(evidence, repeated) + deaths_without_a_fault(evidence)


def _shown(keys: Iterable[Key]) -> list[Key]:
    return sorted(keys, key=str)[:3]


ENDS = ("delivered", "waiting", "dead", "rejected", "discarded", "lost", "unknown")


def unbalanced(counts: dict[str, Any]) -> str | None:
    """Return a problem unless received = delivered + waiting + dead + rejected + discarded + lost + unknown."""
    if counts["received"] == sum(counts[name] for name in ENDS):
        return None
    return f"received is not the sum of its parts: {counts}"


def change_problems(before: dict[str, Any], after: dict[str, Any], events: int, arrivals: int) -> list[str]:
    """Return problems unless exactly so many events were received and delivered between two readings.

    An event that Redis stored without a reply in time is stored twice, and counts as delivered as often as it arrives.
    With Redis, `unknown` of a gateway is what others deliver of its events.
    """
    change = {name: after[name] - before[name] for name in ("received", *ENDS) if name != "unknown"}
    delivered = min(max(change["delivered"], events), arrivals)
    if change == dict.fromkeys(change, 0) | {"received": events, "delivered": delivered}:
        return []
    return [f"{events} events were sent and arrived {arrivals} times, but the counts changed by {change}"]


def summary(evidence: Evidence) -> str:
    causes: Sequence[tuple[str, int]] = collections.Counter(
        cause for _, cause, _, _ in duplicates(evidence)
    ).most_common()
    explained = ", ".join(f"{count} {cause}" for cause, count in causes) or "none"
    return (
        f"events: {len(evidence.acknowledged)} acknowledged, {len(evidence.taken)} arrived,"
        f" {len(evidence.dead)} dead, {len(evidence.missing)} lost; duplicates: {explained}"
    )
