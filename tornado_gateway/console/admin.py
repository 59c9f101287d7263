"""What the operators' endpoints answer: the live overview, the features in words, why a decision ends as it does, the
events that wait, that are dead, and that came last.

Nothing here is on the way of a request: numbers are sampled once a second from `/status`, so they are the instance's,
and events are remembered after their commit. Explaining a decision sends no event and stores nothing.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import orjson
from tornado.ioloop import PeriodicCallback

from tornado_gateway import core
from tornado_gateway.console.descriptions import describe_features, describe_node
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.events.queue import Entry, EventQueue
from tornado_gateway.http.fields import Fields, required_text, user_id
from tornado_gateway.settings.mirror import SettingsMirror, Snapshot
from tornado_gateway.store.interfaces import DeadLetter, EventStore, StateStore
from tornado_gateway.telemetry.metrics import REQUEST_BUCKETS, REQUEST_SECONDS, Memory

Status = Callable[[], Mapping[str, Any]]
Answer = dict[str, Any]

SAMPLE_SECONDS = 1.0
SAMPLES = 300
RECENT_ENTRIES = 50
RECENT_BYTES = 16_384  # of one entry; a batch of thousands is not kept alive for being looked at
SHOWN_EVENTS = 50
SHOWN_LETTERS = 200

RATES = ("requests", "decisions", "received", "delivered", "rejected")
GAUGES = ("waiting", "dead", "lag_ms")
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99}  # of the latency in each second


# --- numbers -----------------------------------------------------------------


@dataclass(slots=True)
class RequestCounts:
    """How many requests of data routes this worker has answered, as the other workers may know."""

    total: int = 0
    decisions: int = 0

    def as_record(self) -> dict[str, int]:
        return {"total": self.total, "decisions": self.decisions}


def request_latencies(memory: Memory) -> list[int]:
    """How many requests took up to each of REQUEST_BUCKETS seconds, and longer than all: so far, in all workers."""
    rows = [row.counts for place in range(memory.places) if (row := memory.read(place)) is not None]
    starts = [REQUEST_SECONDS.at(route) for route in REQUEST_SECONDS.values]
    return [
        sum(counts[start + bucket] for counts in rows for start in starts) for bucket in range(len(REQUEST_BUCKETS) + 1)
    ]


def quantile_ms(counts: Sequence[int], quantile: float) -> float | None:
    """A quantile of the counts in REQUEST_BUCKETS, taking each bucket as evenly filled; None if there are none."""
    rank = quantile * sum(counts)
    if not rank:
        return None
    lower = 0.0
    for count, upper in zip(counts, REQUEST_BUCKETS, strict=False):
        if rank <= count:
            return round((lower + (upper - lower) * rank / count) * 1000, 3)
        rank -= count
        lower = upper
    return REQUEST_BUCKETS[-1] * 1000


@dataclass(slots=True)
class Sample:
    """The counters at one moment."""

    at: float
    values: dict[str, float]
    latencies: list[int]


class History:
    """A ring of one sample a second, and from it what happened in each second."""

    def __init__(self, status: Status, latencies: Callable[[], list[int]]) -> None:
        self._status = status
        self._latencies = latencies
        self._ring: deque[Sample] = deque(maxlen=SAMPLES + 1)
        self._by_worker: dict[int, Mapping[str, int]] = {}
        self._totals = {"requests": 0, "decisions": 0}
        self._due: float | None = None
        self._timer = PeriodicCallback(self.sample, SAMPLE_SECONDS * 1000)

    def start(self) -> None:
        self.sample()
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def sample(self) -> None:
        status = self._status()
        now = time.monotonic()
        lag_ms = max(0.0, (now - self._due) * 1000) if self._due is not None else 0.0
        self._due = now + SAMPLE_SECONDS if lag_ms > SAMPLE_SECONDS * 1000 or self._due is None else self._due + 1.0
        self._count_requests(status.get("workers") or ())
        events = status["events"]
        counted = {name: events[name] for name in ("received", "delivered", "rejected", "discarded", "waiting", "dead")}
        values = {**self._totals, **counted, "lag_ms": round(lag_ms, 2)}
        self._ring.append(Sample(time.time(), values, self._latencies()))

    def series(self) -> Answer:
        """Columns: the end of each second; rates, and the latency, in it; gauges as they were then."""
        samples = list(self._ring)
        pairs = list(pairwise(samples))
        return {
            "interval_seconds": SAMPLE_SECONDS,
            "at": [round(later.at, 3) for _, later in pairs],
            **{name: [_rate(name, *pair) for pair in pairs] for name in RATES},
            **{name: [later.values[name] for _, later in pairs] for name in GAUGES},
            **{name: [_latency(quantile, *pair) for pair in pairs] for name, quantile in QUANTILES.items()},
        }

    def _count_requests(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Add up what the workers have counted since; a worker that ended takes nothing back."""
        counts = {worker["pid"]: worker["requests"] for worker in workers if "requests" in worker}
        for pid, count in counts.items():
            before = self._by_worker.get(pid, {})
            self._totals["requests"] += count["total"] - before.get("total", 0)
            self._totals["decisions"] += count["decisions"] - before.get("decisions", 0)
        self._by_worker = counts


def _latency(quantile: float, before: Sample, after: Sample) -> float | None:
    counts = [max(0, late - early) for early, late in zip(before.latencies, after.latencies, strict=True)]
    return quantile_ms(counts, quantile)


def _rate(name: str, before: Sample, after: Sample) -> float:
    seconds = max(after.at - before.at, 0.001)
    return round(max(0.0, after.values[name] - before.values[name]) / seconds, 2)


# --- events ------------------------------------------------------------------


class RecentEvents:
    """The tail of what this worker has stored. Give `note` to `EventQueue.on_commit`."""

    def __init__(self) -> None:
        self._tail: deque[tuple[float, bytes]] = deque(maxlen=RECENT_ENTRIES)

    def note(self, group: Sequence[Entry]) -> None:
        """Costs 0.4 µs for each commit and 0.06 µs for each of its last entries, after the answers have left."""
        now = time.time()
        self._tail.extend([(now, body[:RECENT_BYTES]) for _, body, _ in group[-RECENT_ENTRIES:]])

    def newest(self) -> list[Answer]:
        """The newest first, as far as whole documents have been kept."""
        return list(islice(self._documents(), SHOWN_EVENTS))

    def _documents(self) -> Iterator[Answer]:
        for at, body in reversed(self._tail):
            for line in reversed(body.split(b"\n")):
                try:
                    yield _event_in_short(at, orjson.loads(line))
                except (orjson.JSONDecodeError, AttributeError):
                    continue  # cut off in the middle of a batch


def _event_in_short(at: float, document: Any) -> Answer:
    """What an operator looks for first, and the document."""
    data = document.get("d") or {}
    event = data.get("event") or {}
    props = event.get("props") or {}
    return {
        "at": at,
        "name": event.get("name"),
        "visitor": data.get("visId"),
        "campaign": props.get("id"),
        "variation": props.get("variation"),
        "document": document,
    }


def _letter(letter: DeadLetter) -> Answer:
    return {
        "id": letter.id,
        "count": letter.count,
        "reason": letter.reason,
        "at": letter.at,
        "body": letter.body.decode("utf-8", "replace"),
    }


# --- the endpoints -----------------------------------------------------------


@runtime_checkable
class Degradable(Protocol):
    """A store that goes on by other means when what it should use is down."""

    @property
    def is_degraded(self) -> bool: ...


@dataclass(slots=True)
class Explainer:
    """What a decision needs to know about a visitor, asked for as getFlag does, and without its traces in the world."""

    location: LocationReader
    device: DeviceReader
    lists: ListChecks
    state: StateStore
    resolves_aliases: bool
    is_sticky: bool

    async def explain(self, settings: core.Settings, fields: Fields) -> Answer:
        context = core.context_from_json(fields, user_id(fields))
        if self.resolves_aliases:
            context.user_id = await self._resolved(context.user_id)
        keys = _feature_keys(settings, fields)
        traced = await asyncio.to_thread(core.with_tracing, settings)
        facts = self._facts(context)
        decisions = [await self._decision(traced, key, context, facts) for key in keys]
        return {
            "visitor": {
                "id": context.user_id,
                "uuid": core.uuid_of(settings, context),
                "location": facts.location,
                "device": facts.device,
            },
            "decisions": decisions,
        }

    async def _resolved(self, given: str) -> str:
        try:
            return (await self.state.aliases([given])).get(given, given)
        except StoreError:
            return given

    def _facts(self, context: core.Context) -> "Known":
        """Location and device: the caller's own, else looked up."""
        if context.location is not None or context.device is not None:
            return Known(context.location, context.device, is_given=True)
        location = self.location.lookup(context.ip_address) if context.ip_address else None
        device = self.device.facts(context.user_agent) if context.user_agent else None
        return Known(location, device, is_given=False)

    async def _decision(self, settings: core.Settings, key: str, context: core.Context, facts: "Known") -> Answer:
        feature = settings.features.get(key)
        if feature is not None:
            if not facts.is_given:  # as getFlag: what no rule asks for is not looked up
                context.location = facts.location if feature.needs_location else None
                context.device = facts.device if feature.needs_device else None
            if feature.list_checks:
                context.lists = await self._memberships(feature, context)
        stored = await self._records(key, feature, context) if self.is_sticky else None
        trace = core.Trace()
        decision = core.decide(settings, key, context, stored=stored, trace=trace)
        await asyncio.sleep(0)  # others may go on between the features of a large account
        return _explained(settings, feature, decision, trace)

    async def _memberships(self, feature: core.Feature, context: core.Context) -> Mapping[tuple[str, str], bool]:
        variables = context.custom_variables or {}, context.variation_targeting_variables or {}
        return await self.lists.gather(feature.list_checks, variables)

    async def _records(
        self, key: str, feature: core.Feature | None, context: core.Context
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """The visitor's earlier decisions; without the store as if there were none."""
        keys = (key,) if feature is None else feature.storage_keys
        try:
            return await self.state.load_records(context.user_id, keys)
        except StoreError:
            return None


class Known(NamedTuple):
    """Where a visitor is and what they use; `is_given` when the caller has said so."""

    location: Mapping[str, Any] | None
    device: Mapping[str, Any] | None
    is_given: bool


def _queue(status: Mapping[str, Any]) -> Answer:
    """What waits and what is dead in all workers, from the numbers of /status."""
    events = status["events"]
    shown = ("waiting", "dead", "oldest_at", "oldest_unknown_since")
    return {**{name: events[name] for name in shown}, "stuck": status["stuck"]}


def _feature_keys(settings: core.Settings, fields: Fields) -> list[str]:
    if fields.get("featureKey") in (None, "", "*"):
        return list(settings.features)
    return [required_text(fields, "featureKey")]


def _explained(
    settings: core.Settings, feature: core.Feature | None, decision: core.Decision, trace: core.Trace
) -> Answer:
    variation = decision.variation
    return {
        "feature_key": decision.feature_key,
        "feature_name": feature.name if feature is not None else None,
        "enabled": decision.enabled,
        "reason": decision.reason,
        "error": decision.error,
        "variation": variation and {"id": variation.id, "name": variation.name},
        "variables": decision.variables,
        "rule": _deciding_rule(feature, decision),
        "impressions": [
            {"campaign": impression.campaign_id, "variation": impression.variation_id}
            for impression in decision.impressions
        ],
        "lines": core.explain_lines(trace),
        "steps": _with_words(trace.steps, settings.document),
    }


def _deciding_rule(feature: core.Feature | None, decision: core.Decision) -> Answer | None:
    """The rule whose variation is shown."""
    passed = decision.experiment or decision.rollout
    if feature is None or passed is None:
        return None
    for rule in (*feature.experiments, *feature.rollouts):
        if rule.campaign.id == passed.id and rule.key == passed.key:
            return {
                "kind": rule.kind,
                "rule_key": rule.rule_key,
                "campaign_id": rule.campaign.id,
                "name": rule.campaign.name,
            }
    return None


def _with_words(steps: Sequence[Mapping[str, Any]], document: dict[str, Any]) -> list[Answer]:
    """The steps, those about a node of a segment with the node in words."""
    told = []
    for step in steps:
        copy = dict(step)
        if "node" in step:
            copy["words"] = describe_node(step["node"], document)
        copy["steps"] = _with_words(step.get("steps") or (), document)
        told.append(copy)
    return told


@dataclass(slots=True)
class Admin:
    """One method for each endpoint. `start` and `stop` are for the samples."""

    mirror: SettingsMirror
    queue: EventQueue
    store: EventStore
    explainer: Explainer
    status: Status
    latencies: Callable[[], list[int]]  # see `request_latencies`
    recent: RecentEvents = field(default_factory=RecentEvents)
    _history: History = field(init=False)
    _described: tuple[str, list[Answer]] = ("", [])

    def __post_init__(self) -> None:
        self._history = History(self.status, self.latencies)
        self.queue.on_commit = self.recent.note

    def start(self) -> None:
        self._history.start()

    def stop(self) -> None:
        self._history.stop()

    async def overview(self) -> Answer:
        now = time.time()
        snapshot = self.mirror.current
        status = self.status()
        return {
            "at": now,
            "worker": os.getpid(),
            "status": status,
            "account": {
                "id": snapshot.settings.account_id if snapshot else None,
                "features": len(snapshot.settings.features) if snapshot else 0,
            },
            "queue": _queue(status),
            "location": self._location(now),
            "store": self._store_health(),
            "samples": self._history.series(),
        }

    def features(self) -> Answer:
        """Described once for each version of the settings."""
        snapshot = self._snapshot()
        if self._described[0] != snapshot.digest:
            self._described = snapshot.digest, describe_features(snapshot.settings)
        return {
            "settings": {"version": snapshot.settings.version, "hash": snapshot.digest},
            "features": self._described[1],
        }

    async def explain(self, fields: Fields) -> Answer:
        """Raises RequestError for a visitor that getFlag would not take either."""
        snapshot = self._snapshot()
        answer = await self.explainer.explain(snapshot.settings, fields)
        return {"settings": {"version": snapshot.settings.version, "hash": snapshot.digest}, **answer}

    async def events(self, letters_limit: int = SHOWN_LETTERS) -> Answer:
        """The oldest dead letters, whole, and the newest events."""
        letters = await self.store.dead_letters(letters_limit)
        return {
            "depth": _queue(self.status()),
            "dead": [_letter(letter) for letter in letters],
            "recent": self.recent.newest(),
        }

    async def requeue(self, ids: Sequence[int | str] | None) -> Answer:
        """Dead letters wait again, and are sent soon."""
        return {"requeued": await self.queue.requeue(ids)}

    def _snapshot(self) -> Snapshot:
        if self.mirror.current is None:
            raise RequestError(503, "no settings have been loaded yet, see /ready")
        return self.mirror.current

    def _location(self, now: float) -> Answer:
        reader = self.explainer.location
        return {
            "available": reader.available,
            "type": reader.database_type,
            "built_at": reader.build_epoch,
            "age_seconds": reader.age_seconds(now),
            "error": reader.error,
        }

    def _store_health(self) -> Answer:
        is_redis = isinstance(self.store, Degradable)
        error = self.queue.failure or self.store.failure
        is_up = error is None and not (isinstance(self.store, Degradable) and self.store.is_degraded)
        return {"kind": "redis" if is_redis else "embedded", "is_up": is_up, "error": error}
