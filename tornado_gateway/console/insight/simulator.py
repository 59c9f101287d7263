"""POST /admin/simulate: simulated visitors, in slices on the loop, with progress.

The response has one JSON document in each line: the progress from time to time, and the result at the end.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar, NamedTuple

import orjson
from tornado.iostream import StreamClosedError

from tornado_gateway import core
from tornado_gateway.console.admin_pages import AdminApi, AdminPage
from tornado_gateway.console.auth import Auth
from tornado_gateway.environments.evaluation import Evaluator, has_address, with_address
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import Fields, limited_id, required_text
from tornado_gateway.insight.simulation import Simulation, generated_ids
from tornado_gateway.insight.suggestions import suggested
from tornado_gateway.insight.what_if import ChangeError, changed_settings
from tornado_gateway.settings.pacing import ReplacedSettings, throttled

MOST_VISITORS = 100_000
MOST_DECISIONS = 4_000_000  # of one simulation: some two minutes
MOST_CHANGES = 100
RETRY_SECONDS = 5
CONTEXT_FIELDS = (  # of getFlag
    *("customVariables", "variationTargetingVariables", "userAgent", "ipAddress", "sessionId", "useIdForWeb"),
    *("isDevMode", "bucketingSeed", "postSegmentationVariables", "platformVariables", "_vwo", "_wingify"),
)
FIELDS = ("featureKey", "visitors", "ids", "recent", "traffic", "weights", *CONTEXT_FIELDS)

Json = dict[str, Any]


class Plan(NamedTuple):
    """A valid request."""

    fields: Fields
    keys: list[str]
    ids: Iterable[str]
    visitors: int
    traffic: Mapping[str, float]
    weights: Mapping[str, list[float]]


class Simulator:
    """Runs one simulation at a time. It works for `work_seconds` and rests for `rest_seconds`, in turns."""

    def __init__(
        self, work_seconds: float = 0.001, rest_seconds: float = 0.002, progress_seconds: float = 0.25
    ) -> None:
        self._work_seconds = work_seconds
        self._rest_seconds = rest_seconds
        self._progress_seconds = progress_seconds
        self._is_running = False
        self._replaced = ReplacedSettings()

    async def run(
        self, evaluator: Evaluator, settings: core.Settings, plan: Plan, is_stopping: Callable[[], bool]
    ) -> AsyncIterator[Json]:
        """Yield the progress, and the result at the end, unless the gateway stops meanwhile.

        Raise RequestError before that if the changes are not possible, or if another simulation is running.
        """
        if self._is_running:
            headers = [(b"Retry-After", b"%d" % RETRY_SECONDS)]
            raise RequestError(429, "another simulation is running, try again when it has ended", headers)
        self._is_running = True
        changed = None
        try:
            if plan.traffic or plan.weights:
                changed = await _changed(settings, plan)
            simulation = Simulation(settings, plan.keys, changed)
            async for done in self._progress(evaluator, simulation, plan, is_stopping):
                yield {"progress": {"done": done, "of": plan.visitors}}
            if not is_stopping():
                yield {"result": await self._report(simulation)}
        finally:
            self._is_running = False
            if changed is not None:
                self._replaced.release(changed)

    async def _progress(
        self, evaluator: Evaluator, simulation: Simulation, plan: Plan, is_stopping: Callable[[], bool]
    ) -> AsyncIterator[int]:
        """Decide about all visitors. Yield the number of those that are done from time to time."""
        pace, reported = Pace(self._work_seconds, self._rest_seconds), time.monotonic()
        for user_id in plan.ids:
            context = with_address(core.context_from_json(plan.fields, user_id))
            inputs = await evaluator.gather(simulation.settings, plan.keys, context)
            for _ in simulation.steps(user_id, partial(evaluator.decide_from, inputs=inputs)):
                await pace.give_way()
            if is_stopping():
                return
            if time.monotonic() - reported >= self._progress_seconds:
                reported = time.monotonic()
                yield simulation.visitors

    async def _report(self, simulation: Simulation) -> Json:
        pace, features = Pace(self._work_seconds, self._rest_seconds), []
        for feature in simulation.features():
            features.append(feature)
            await pace.give_way()
        return {**simulation.head(), "features": features}


class Pace:
    """Gives way to requests after each slice of work."""

    def __init__(self, work_seconds: float, rest_seconds: float) -> None:
        self._work_seconds = work_seconds
        self._rest_seconds = rest_seconds
        self._began = time.monotonic()

    async def give_way(self) -> None:
        if time.monotonic() - self._began >= self._work_seconds:
            await asyncio.sleep(self._rest_seconds)
            self._began = time.monotonic()


async def _changed(settings: core.Settings, plan: Plan) -> core.Settings:
    change = partial(changed_settings, settings, plan.keys, plan.traffic, plan.weights, throttled())
    try:
        return await asyncio.to_thread(change)
    except (ChangeError, core.SettingsError) as error:
        raise RequestError(400, "; ".join(error.problems)) from error


# --- Requests ---


def plan_of(settings: core.Settings, fields: Fields, recent: Callable[[], Sequence[str]] = tuple) -> Plan:
    """Read a request. `recent` returns the IDs of recent visitors. Raise RequestError for one that is not valid."""
    for name in fields:
        if name not in FIELDS:
            raise RequestError(400, f"unknown field {name[:200]}{suggested(name, FIELDS)}")
    _check_address(fields.get("ipAddress"))
    keys = _keys(settings, fields)
    ids, visitors = _recent(fields, recent) if "recent" in fields else _visitors(fields)
    traffic = {name: _percent(f"traffic.{name}", share) for name, share in _changes(fields, "traffic")}
    weights = {name: _percents(f"weights.{name}", shares) for name, shares in _changes(fields, "weights")}
    decisions = visitors * len(keys) * (2 if traffic or weights else 1)
    if decisions > MOST_DECISIONS:
        raise RequestError(
            400, f"these are {decisions} decisions, at most {MOST_DECISIONS} are permitted: choose one feature"
        )
    return Plan(fields, keys, ids, visitors, traffic, weights)


def _check_address(sent: Any) -> None:
    """Raise RequestError for a text without an address: getFlag decides as if there were none."""
    if isinstance(sent, str) and sent and not has_address(sent):
        raise RequestError(400, f"ipAddress: expected an IPv4 or IPv6 address, got {sent[:200]}")


def _keys(settings: core.Settings, fields: Fields) -> list[str]:
    if fields.get("featureKey") in (None, ""):
        return list(settings.features)
    key = required_text(fields, "featureKey")
    if key not in settings.features:
        raise RequestError(400, f"unknown feature {key[:200]}{suggested(key, settings.features)}")
    return [key]


def _visitors(fields: Fields) -> tuple[Iterable[str], int]:
    """Return the ids, each once, and their number."""
    ids, number = fields.get("ids"), fields.get("visitors")
    if ids is None:
        if type(number) is not int or not 1 <= number <= MOST_VISITORS:
            raise RequestError(400, f"visitors: expected a number from 1 to {MOST_VISITORS}, or a list of ids")
        return generated_ids(number), number
    if not isinstance(ids, list) or not ids or not all(isinstance(id_, str) and id_.strip() for id_ in ids):
        raise RequestError(400, "ids: expected a list of texts that are not empty")
    unique = dict.fromkeys(limited_id("ids", id_.strip()) for id_ in ids)
    if len(unique) > MOST_VISITORS:
        raise RequestError(400, f"ids: expected at most {MOST_VISITORS} of them")
    return unique, len(unique)


def _recent(fields: Fields, recent: Callable[[], Sequence[str]]) -> tuple[Iterable[str], int]:
    if fields["recent"] is not True or "ids" in fields or "visitors" in fields:
        raise RequestError(400, "recent: expected true, without ids and visitors")
    found = recent()
    if not found:
        raise RequestError(409, "no decision was requested in the last hour: use visitors or ids")
    return found, len(found)


def _changes(fields: Fields, name: str) -> list[tuple[str, Any]]:
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, dict) or len(value) > MOST_CHANGES:
        raise RequestError(400, f"{name}: expected an object with at most {MOST_CHANGES} rules")
    return list(value.items())


def _percent(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise RequestError(400, f"{name[:200]}: expected a percentage")
    return float(value)


def _percents(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not value:
        raise RequestError(400, f"{name[:200]}: expected a list of percentages")
    return [_percent(name, share) for share in value]


# --- Page ---


class SimulatePage(AdminPage):
    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    def initialize(  # type: ignore[override]
        self, admin: AdminApi, auth: Auth, simulator: Simulator, is_stopping: Callable[[], bool]
    ) -> None:
        super().initialize(admin, auth)
        self._simulator = simulator
        self._is_stopping = is_stopping

    async def post(self) -> None:
        try:
            await self._simulate()
        except RequestError as error:
            self.reject(error)
        except StreamClosedError:  # the client has left, which ends the simulation
            pass

    async def _simulate(self) -> None:
        operated = self._admin.environment(self.environment())
        snapshot = operated.snapshot()
        evaluator = operated.explainer.evaluator
        live = self._admin.live
        plan = plan_of(snapshot.settings, self.fields(), lambda: live.visitors.of(live.name_of(self.environment())))
        run = self._simulator.run(evaluator, snapshot.settings, plan, self._is_stopping)
        async with aclosing(run) as lines:  # type: ignore[type-var]
            async for line in lines:
                self.set_header("Content-Type", "application/x-ndjson")
                self.set_header("X-Accel-Buffering", "no")
                self.write(orjson.dumps(line, default=str) + b"\n")
                await self.flush()
