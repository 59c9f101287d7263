"""The operators' endpoints below /admin: their data, and the pages that serve it.

None of this is on the path of a request. Explaining a decision sends no event and stores nothing.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from tornado.web import HTTPError

from tornado_gateway.console.auth import SESSION_SECONDS, Auth
from tornado_gateway.console.base import Page
from tornado_gateway.console.descriptions import describe_features
from tornado_gateway.console.explain import Explainer
from tornado_gateway.console.insight.live_feed import LiveFeed
from tornado_gateway.console.overview import SHORTEST, History, Json, Status
from tornado_gateway.console.recent_events import RecentEvents, dead_letters
from tornado_gateway.console.settings_versions import FormerSettings, VersionInUse
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import NotLoadedError, RequestError, StoreError
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.fields import Fields, json_object
from tornado_gateway.settings.history import SettingsHistory
from tornado_gateway.settings.mirror import SettingsMirror, Snapshot
from tornado_gateway.store.interfaces import EventStore

SHOWN_LETTERS = 200
MOST_DESCRIBED = 4  # environments whose described features are kept
WRONG_TOKEN_SECONDS = 0.5  # delay of the response to a wrong token
WRONG_TOKEN = "wrong admin token: expected ADMIN_TOKEN or, if it is not set, the token in DATA_DIR/admin-token"  # noqa: S105


# --- Data ---


@runtime_checkable
class Degradable(Protocol):
    """A store that falls back to another backend."""

    @property
    def is_degraded(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class EventsQuery:
    """Which dead letters are requested: from `first` on, with complete bodies, with SDK keys."""

    limit: int = SHOWN_LETTERS
    first: int | str | None = None
    is_complete: bool = False
    shows_keys: bool = False


class Operated(NamedTuple):
    """The parts of one environment that operators see. `experiments` and `usage` return the bodies of their pages."""

    mirror: SettingsMirror
    queue: EventQueue
    store: EventStore
    explainer: Explainer
    history: SettingsHistory
    experiments: Callable[[], Awaitable[Json]]
    usage: Callable[[], Json]

    def snapshot(self) -> Snapshot:
        if self.mirror.current is None:
            raise NotLoadedError
        return self.mirror.current


@dataclass(slots=True)
class AdminApi:
    """The data of the endpoints, one method for each. `start` and `stop` are for the samples and the live stream.

    `operated` returns the environment of a name (None: the default one), or None if there is no such environment.
    """

    operated: Callable[[str | None], Operated | None]
    location: LocationReader
    status: Status
    history: History
    live: LiveFeed
    recent: RecentEvents = field(default_factory=RecentEvents)
    _former: FormerSettings = field(default_factory=FormerSettings)
    _described: dict[str | None, tuple[str, list[Json]]] = field(default_factory=dict)

    def start(self) -> None:
        self.history.start()
        self.live.start()
        self.recent.start()

    def stop(self) -> None:
        self._former.stop()
        self.recent.stop()
        self.live.stop()
        self.history.stop()

    def environment(self, name: str | None) -> Operated:
        found = self.operated(name)
        if found is None:
            raise RequestError(404, f"there is no environment {name!r:.50}")
        return found

    async def overview(self, name: str | None = None, span: str = SHORTEST) -> Json:
        now = time.time()
        operated = self.environment(name)
        snapshot = operated.mirror.current
        status = of_environment(self.status(), name)
        return {
            "at": now,
            "worker": os.getpid(),
            "status": status,
            "account": {
                "id": snapshot.settings.account_id if snapshot else None,
                "features": len(snapshot.settings.features) if snapshot else 0,
            },
            "queue": _queue(status),
            "location": self._location_health(now),
            "store": _store_health(operated),
            "samples": self.history.series(span),
            "markers": self._former.markers(name, operated.history, snapshot),
        }

    def features(self, name: str | None = None) -> Json:
        """Return the features, described once for each version of the settings."""
        snapshot = self.environment(name).snapshot()
        digest, described = self._described.get(name, ("", []))
        if digest != snapshot.digest:
            if len(self._described) >= MOST_DESCRIBED:
                self._described.clear()
            described = describe_features(snapshot.settings)
            self._described[name] = snapshot.digest, described
        return {
            "settings": {"version": snapshot.settings.version, "hash": snapshot.digest},
            "features": described,
        }

    def usage(self, name: str | None = None) -> Json:
        """Return the use of each feature, and the requested keys that no feature has."""
        return self.environment(name).usage()

    async def experiments(self, name: str | None = None) -> Json:
        """Return the reports of the experiments."""
        operated = self.environment(name)
        snapshot = operated.snapshot()
        settings = {"version": snapshot.settings.version, "hash": snapshot.digest}
        return {"settings": settings, **await operated.experiments()}

    async def explain(self, fields: Fields, name: str | None = None) -> Json:
        """Explain with the current settings, or with those of a former `version`.

        Raise RequestError for a visitor that getFlag would reject too.
        """
        operated = self.environment(name)
        snapshot, version = operated.snapshot(), fields.get("version")
        used = VersionInUse(snapshot.settings, snapshot.digest)
        if version is not None:
            used = await self._former.of_version(str(version), operated.history, operated.mirror, snapshot)
        explanation = await operated.explainer.explain(used.settings, fields)
        return {"settings": {"version": used.settings.version, "hash": used.digest}, **explanation}

    async def events(self, query: EventsQuery, name: str | None = None) -> Json:
        """Return the oldest dead letters and, unless they are requested completely, the newest events.

        The newest ones are those of all environments.
        """
        store = self.environment(name).store
        listed = await dead_letters(
            store, query.limit, query.first, is_complete=query.is_complete, shows_keys=query.shows_keys
        )
        recent = [] if query.is_complete else self.recent.newest()
        depth = _queue(of_environment(self.status(), name))
        dead = {"dead": listed.letters, "next": listed.next_id, "unreadable": listed.unreadable}
        return {"depth": depth, **dead, "recent": recent}

    def _location_health(self, now: float) -> Json:
        reader = self.location
        return {
            "available": reader.available,
            "type": reader.database_type,
            "built_at": reader.build_epoch,
            "age_seconds": reader.age_seconds(now),
            "error": reader.error,
        }


def _store_health(operated: Operated) -> Json:
    store = operated.store
    is_redis = isinstance(store, Degradable)
    error = operated.queue.failure or store.failure
    is_up = error is None and not (isinstance(store, Degradable) and store.is_degraded)
    return {"kind": "redis" if is_redis else "embedded", "is_up": is_up, "error": error}


def of_environment(status: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return /status with the fields of an environment in place of those of the default one."""
    own: Mapping[str, Any] = next((part for part in status.get("environments", ()) if part["name"] == name), {})
    return {**status, **{key: value for key, value in own.items() if key in status}}


def _queue(status: Mapping[str, Any]) -> Json:
    """Return the waiting and dead events of all workers, from the numbers of /status."""
    events = status["events"]
    shown = ("waiting", "dead", "last_known", "oldest_at", "oldest_unknown_since")
    return {**{name: events[name] for name in shown}, "stuck": status["stuck"]}


# --- Pages ---


class AdminPage(Page):
    """Requires the admin token or a session (see `auth`). RequestError and StoreError become error responses."""

    def initialize(self, admin: AdminApi, auth: Auth) -> None:
        self._admin = admin
        self._auth = auth

    async def prepare(self) -> None:
        try:
            await self._auth.check(self.request, time.time())
            if self.request.method not in self.allowed():
                raise HTTPError(405)
            if self.request.method not in ("GET", "HEAD"):
                self._auth.check_change(self.request)
        except RequestError as error:
            self.reject(error)

    async def respond(self, body: Awaitable[Mapping[str, Any]]) -> None:
        try:
            self.write_json(await body)
        except RequestError as error:
            self.reject(error)
        except StoreError as error:
            self.reject_for_store(error)

    def fields(self) -> Fields:
        return json_object(self.request.body)

    def user(self) -> str:
        """Return the user of an authorized request, for records of changes."""
        return self._auth.user(self.request)

    def environment(self) -> str | None:
        """Return the name of the environment that the query selects; None: the default one."""
        return self.get_query_argument("environment", None)


class SessionPage(AdminPage):
    """GET: check the session. POST: exchange the token for a cookie. DELETE: end the session.

    POST and DELETE need no session, so that it can begin and so that signing out always succeeds.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("GET", "POST", "DELETE")

    async def prepare(self) -> None:
        if self.request.method not in ("POST", "DELETE"):
            await super().prepare()
            return
        try:
            self._auth.check_change(self.request)
        except RequestError as error:
            self.reject(error)

    def get(self) -> None:
        self.write_json({"signed_in": True})

    async def post(self) -> None:
        await self.respond(self._sign_in())

    async def delete(self) -> None:
        await self._auth.end_session(self.request, time.time())
        is_encrypted = self._auth.is_encrypted(self.request)
        self.clear_cookie(self._auth.cookie_name(self.request), path="/", secure=is_encrypted)
        self.write_json({"signed_in": False})

    async def _sign_in(self) -> Mapping[str, Any]:
        token = self.fields().get("token")
        if not isinstance(token, str) or not self._auth.is_token(self.request, token):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            raise RequestError(401, WRONG_TOKEN)
        self.set_cookie(
            self._auth.cookie_name(self.request),
            self._auth.new_session(time.time()),
            path="/",
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=self._auth.is_encrypted(self.request),
        )
        return {"signed_in": True}


class OverviewPage(AdminPage):
    async def get(self) -> None:
        await self.respond(self._admin.overview(self.environment(), self.get_query_argument("range", SHORTEST)))


class FeaturesPage(AdminPage):
    async def get(self) -> None:
        await self.respond(self._features())

    async def _features(self) -> Mapping[str, Any]:
        return self._admin.features(self.environment())


class UsagePage(AdminPage):
    async def get(self) -> None:
        await self.respond(self._usage())

    async def _usage(self) -> Mapping[str, Any]:
        return self._admin.usage(self.environment())


class ExperimentsPage(AdminPage):
    async def get(self) -> None:
        await self.respond(self._admin.experiments(self.environment()))


class ExplainPage(AdminPage):
    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    async def post(self) -> None:
        await self.respond(self._explain())

    async def _explain(self) -> Mapping[str, Any]:
        return await self._admin.explain(self.fields(), self.environment())


class EventsPage(AdminPage):
    async def get(self) -> None:
        await self.respond(self._events())

    async def _events(self) -> Mapping[str, Any]:
        limit = self._parameter("limit", r"0*[1-9]\d{0,6}", "a number of dead letters, 1 to 9999999")
        first = self._parameter("first", r"(local:)?\d{1,18}|\d{1,18}-\d{1,18}", "the id of a dead letter")
        is_complete = self._parameter("complete", "true|false", "true or false") == "true"
        shows_keys = self._parameter("keys", "shown|masked", "shown or masked") == "shown"
        first_id = int(first) if first.isdecimal() else first or None
        return await self._admin.events(
            EventsQuery(int(limit or SHOWN_LETTERS), first_id, is_complete=is_complete, shows_keys=shows_keys),
            self.environment(),
        )

    def _parameter(self, name: str, pattern: str, expected: str) -> str:
        value = self.get_query_argument(name, "")
        if value and not re.fullmatch(pattern, value, re.ASCII):
            raise RequestError(400, f"{name}: expected {expected}")
        return value
