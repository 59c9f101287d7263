"""The live feed: decisions and events of all workers, collected only while a console watches them, apart from a sample
of recent visitors.

Each worker publishes the filters of the consoles that it serves. All workers read these several times per second,
sample the matches of each filter, and publish them for the worker that serves the console. Everything is bounded: the
filters, the rows of a sample, the texts in a row and the slots in shared memory.
"""

import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.console.insight.recent_visitors import RecentVisitors
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError
from tornado_gateway.events.group_commit import Entry
from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry.scoreboard import Scoreboard

Json = dict[str, Any]

TICK_SECONDS = 0.25
SHOWN_PER_SECOND = 50
SHOWN_PER_TICK = int(SHOWN_PER_SECOND * TICK_SECONDS)
KEPT_TICKS = 6  # that a worker publishes: others read them at their own times
KEPT_ROWS = 4 * SHOWN_PER_SECOND  # that wait for a console
MOST_WATCHES = 4  # of one worker
WATCH_SECONDS = 2.0  # until the filters of a worker that was killed are ignored
LONGEST_TEXT = 120  # characters of a text in a row
LONGEST_EVENT = 16_384  # bytes of an event whose properties are read


class Filter(NamedTuple):
    """The choice of one console in one environment; an empty text matches everything.

    Feature and user match a part of the key or the ID. Events have neither feature nor outcome.
    """

    environment: str
    feature: str = ""
    user: str = ""
    outcome: str = ""

    def accepts_decision(self, environment: str, feature: str, user: str, outcome: str) -> bool:
        return (
            environment == self.environment
            and self.outcome in ("", outcome)
            and self.feature in feature
            and self.user in user
        )

    def accepts_events(self, environment: str) -> bool:
        return environment == self.environment and not self.feature and not self.outcome


class Sample:
    """Rows that match a filter: all of them, or an even choice if there are too many."""

    def __init__(self, wanted: Filter) -> None:
        self.filter = wanted
        self.seen = 0
        self.rows: list[Json] = []

    def offer(self, make: Callable[[], Json]) -> None:
        """Count a row, and make it if it is chosen."""
        self.seen += 1
        if len(self.rows) < SHOWN_PER_TICK:
            self.rows.append(make())
            return
        place = random.randrange(self.seen)
        if place < SHOWN_PER_TICK:
            self.rows[place] = make()


class Watch:
    """The matches that one console has not received yet."""

    def __init__(self, name: str, wanted: Filter) -> None:
        self.name = name
        self.filter = wanted
        self.seen = 0
        self._rows: deque[Json] = deque(maxlen=KEPT_ROWS)
        self._known: dict[int, tuple[int, int]] = {}  # process and last tick, by row of the scoreboard

    def collect(self, row: int, published: Json) -> None:
        process, last = self._known.get(row, (0, 0))
        if process != published["process"]:
            last = 0
        for tick, found in published["ticks"]:
            if tick > last and self.name in found:
                seen, rows = found[self.name]
                self.seen += seen
                self._rows.extend(rows)
        self._known[row] = published["process"], published["ticks"][-1][0] if published["ticks"] else last

    def take(self, most: int) -> tuple[int, list[Json]]:
        """Return the number of matches since the last call, and at most so many of them in the order of time."""
        seen, rows = self.seen, list(self._rows)
        self.seen = 0
        self._rows.clear()
        chosen = rows if len(rows) <= most else random.sample(rows, most)
        return seen, sorted(chosen, key=lambda row: row["at"])


class LiveFeed:
    """The part of one worker. `row` is its row of the scoreboard. `visitors` also notes decisions in each tick."""

    def __init__(self, board: Scoreboard, row: int, environments: Environments) -> None:
        self.visitors = RecentVisitors(board.visitors, row)
        self._watched, self._found = board.watched, board.found
        self._row = row
        self._environments = environments
        self._own: dict[str, Watch] = {}
        self._samples: dict[str, Sample] = {}  # of the consoles at all workers
        self._ticks: deque[tuple[int, Json]] = deque(maxlen=KEPT_TICKS)
        self._numbers = itertools.count(1)
        self._has_published = False
        self._names: tuple[core.Settings | None, dict[tuple[str, str], tuple[str, str]]] = (None, {})
        self._timer = Periodic(self.tick, TICK_SECONDS)

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    # --- Consoles ---

    def watch(self, wanted: Filter) -> Watch:
        """Begin to watch. Raise RequestError if too many consoles do."""
        if len(self._own) >= MOST_WATCHES:
            raise RequestError(429, f"a worker has at most {MOST_WATCHES} live streams: close one of them")
        watch = Watch(f"{os.getpid()}-{next(self._numbers)}", wanted)
        self._own[watch.name] = watch
        return watch

    def unwatch(self, watch: Watch) -> None:
        self._own.pop(watch.name, None)

    def name_of(self, environment: str | None) -> str:
        return self._environments.first.access.name if environment is None else environment

    # --- Sampling ---

    def tick(self) -> None:
        """Exchange filters and rows with the other workers. Without consoles this reads an empty slot of each."""
        self._publish_filters()
        self._publish_rows()
        self._samples = {name: Sample(wanted) for name, wanted in self._filters()}
        self.visitors.begin_tick()
        for one in self._environments.all:
            one.counts.watch = partial(self.decided, one)
        if self._own:
            for row in range(self._found.count):
                body = self._found.read(row)
                published = None if body is None else orjson.loads(body)
                if published is not None:
                    for watch in self._own.values():
                        watch.collect(row, published)

    def decided(self, environment: Environment, user_id: str, decision: core.Decision) -> None:
        """Sample a decision. Without consoles, the hook is set for the first decisions of each tick only."""
        name = environment.access.name
        if not self.visitors.note(name, user_id) and not self._samples:
            environment.counts.watch = None
        outcome = core.OUTCOMES[decision.outcome]
        for sample in self._samples.values():
            if sample.filter.accepts_decision(name, decision.feature_key, user_id, outcome):
                sample.offer(partial(_decision_row, user_id, decision, outcome))

    def committed(self, environment: Environment, group: Sequence[Entry]) -> None:
        """Sample stored events."""
        for sample in self._samples.values():
            if sample.filter.accepts_events(environment.access.name):
                settings = None if environment.mirror.current is None else environment.mirror.current.settings
                for line in _lines(group, _visitor_texts(sample.filter.user, settings)):
                    sample.offer(partial(self._event_row, line, settings))

    def _publish_filters(self) -> None:
        if self._own or self._has_published:
            filters = {name: tuple(watch.filter) for name, watch in self._own.items()}
            self._watched.write(self._row, orjson.dumps([time.monotonic() + WATCH_SECONDS, filters]))
        self._has_published = bool(self._own)

    def _publish_rows(self) -> None:
        if not self._samples:
            return
        found = {name: (sample.seen, sample.rows) for name, sample in self._samples.items() if sample.seen}
        self._ticks.append((next(self._numbers), found))
        while len(body := orjson.dumps({"process": os.getpid(), "ticks": list(self._ticks)})) > self._found.capacity:
            self._ticks.popleft()
        self._found.write(self._row, body)

    def _filters(self) -> Iterator[tuple[str, Filter]]:
        now = time.monotonic()
        for row in range(self._watched.count):
            body = self._watched.read(row)
            until, filters = (0, {}) if body is None else orjson.loads(body)
            if until > now:
                yield from ((name, Filter(*wanted)) for name, wanted in filters.items())

    # --- Rows ---

    def _event_row(self, line: bytes, settings: core.Settings | None) -> Json:
        """Return an event with the names of its rule and variation."""
        try:
            data = orjson.loads(line)["d"] if len(line) <= LONGEST_EVENT else {}
            event, visitor = data.get("event") or {}, data.get("visId")
            props = event.get("props") or {}
            ids = str(props.get("id")), str(props.get("variation"))
            rule, variation = self._names_of(settings).get(ids, (None, None))
            return _row("event", _text(visitor), name=_text(event.get("name")), rule=rule, variation=variation)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            return _row("event", None)

    def _names_of(self, settings: core.Settings | None) -> dict[tuple[str, str], tuple[str, str]]:
        """Return the names of campaign and variation by their ids, made once for each version of the settings."""
        known, names = self._names
        if known is not settings and settings is not None:
            rules = [rule for one in settings.features.values() for rule in (*one.rollouts, *one.experiments)]
            names = {
                (str(rule.campaign.id), str(variation.id)): (_cut(rule.campaign.name), _cut(variation.name))
                for rule in rules
                for variation in rule.variations
            }
            self._names = settings, names
        return names


def _decision_row(user_id: str, decision: core.Decision, outcome: str) -> Json:
    match = decision.experiment or decision.rollout
    return _row(
        "decision",
        _cut(user_id),
        name=_cut(decision.feature_key),
        outcome=outcome,
        rule=None if match is None else _text(match.key),
        variation=None if decision.variation is None else _cut(decision.variation.name),
        reason=decision.reason,
    )


def _row(kind: str, user: str | None, **fields: str | None) -> Json:
    empty = dict.fromkeys(("name", "outcome", "rule", "variation", "reason"))
    return {"at": time.time(), "kind": kind, "user": user, **empty, **fields}


def _lines(group: Sequence[Entry], texts: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the events that have one of the texts, or all if there are none."""
    for _, body in group:
        for line in body.split(b"\n"):
            if not texts or any(text in line for text in texts):
                yield line


def _visitor_texts(user: str, settings: core.Settings | None) -> list[bytes]:
    """Return the texts of which an event of the user has one: SDKs send the UUID that belongs to the ID."""
    if not user:
        return []
    return [orjson.dumps(user), *([] if settings is None else [settings.identify(user).encode()])]


def _text(value: object) -> str | None:
    return _cut(str(value)) if isinstance(value, str | int | float) else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
