"""The pages for people and probes: health, status, console, API description, and what the console asks for.

The only module that subclasses tornado.web.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from http.client import responses
from importlib import resources
from types import TracebackType
from typing import Any, ClassVar

import orjson
from tornado.web import Application, HTTPError, RequestHandler

from tornado_gateway.console.admin import SHOWN_LETTERS, Admin
from tornado_gateway.console.auth import COOKIE, SESSION_SECONDS, Access, is_operators_path
from tornado_gateway.console.openapi import DOCUMENT
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.http.fields import Fields, json_object
from tornado_gateway.http.messages import Request
from tornado_gateway.http.request_ids import log_failure
from tornado_gateway.settings.mirror import SettingsMirror

Status = Callable[[], Mapping[str, Any]]

WRONG_TOKEN_SECONDS = 0.5  # delay of the response to a wrong token
WRONG_TOKEN = "wrong admin token: expected ADMIN_TOKEN or, if it is not set, the token in DATA_DIR/admin-token"  # noqa: S105
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
ASSETS = {
    "/console": ("console.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/web/console.css": ("console.css", "text/css; charset=utf-8"),
    "/web/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/web/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/web/dom.js": ("dom.js", "text/javascript; charset=utf-8"),
    "/web/theme.js": ("theme.js", "text/javascript; charset=utf-8"),
    "/web/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/web/docs.css": ("docs.css", "text/css; charset=utf-8"),
}


def build_application(
    mirror: SettingsMirror,
    status: Status,
    is_stopping: Callable[[], bool],
    admin: Admin,
    access: Access,
    metrics: Callable[[str], tuple[bytes, str]],
) -> Application:
    """All pages. `status` gives the body of /status, `metrics` that of /metrics and its type, for an Accept header."""
    operators = {"admin": admin, "access": access}
    return Application(
        [
            ("/health", HealthPage),
            ("/ready", ReadyPage, {"mirror": mirror, "is_stopping": is_stopping}),
            ("/status", StatusPage, {"status": status}),
            ("/metrics", MetricsPage, {"metrics": metrics}),
            ("/openapi.json", DescriptionPage),
            *((path, AssetPage, {"file": file, "kind": kind}) for path, (file, kind) in ASSETS.items()),
            ("/admin/session", SessionPage, operators),
            ("/admin/overview", OverviewPage, operators),
            ("/admin/features", FeaturesPage, operators),
            ("/admin/explain", ExplainPage, operators),
            ("/admin/events", EventsPage, operators),
            ("/admin/events/requeue", RequeuePage, operators),
        ],
        default_handler_class=UnknownPage,
        default_handler_args={"access": access},
        log_function=lambda handler: None,  # never a log line for each request
    )


class Page(RequestHandler):
    """Answers JSON, errors included."""

    METHODS: ClassVar[tuple[str, ...]] = ("GET", "HEAD")

    def compute_etag(self) -> str | None:
        return None

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_json(self, body: Mapping[str, Any], status: int = 200) -> None:
        self.set_status(status)
        self.write(_encoded(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.METHODS))
        self.finish(orjson.dumps({"status": 0, "error": self._message(status_code, kwargs.get("exc_info"))}))

    def head(self) -> Awaitable[None] | None:
        return self.get()

    def reject(self, error: RequestError) -> None:
        if error.status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="operators"')
        self.set_status(error.status)
        self.finish(orjson.dumps({"status": 0, "error": str(error)}))

    def log_exception(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Log it as for data routes, with the id of the request."""
        if error is None or isinstance(error, HTTPError):
            super().log_exception(kind, error, traceback)
            return
        asked = self.request
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.headers.get_all()]
        log_failure(Request((asked.method or "").encode(), asked.path.encode("latin-1"), b"", headers), error)

    def _message(self, status: int, raised: Any) -> str:
        error = raised[1] if raised else None
        if isinstance(error, HTTPError) and error.log_message:
            return error.log_message
        return responses.get(status, "error").lower()


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # a segment nested more deeply than orjson goes
        return json.dumps(body, default=str).encode()


class UnknownPage(Page):
    """Below /admin, however it is spelled, only operators learn that there is no such path."""

    def initialize(self, access: Access) -> None:
        self._access = access

    def prepare(self) -> None:
        if is_operators_path(self.request.path):
            try:
                self._access.check(self.request, time.time())
            except RequestError as error:
                self.reject(error)
                return
        raise HTTPError(404, f"no such path: {self.request.path}"[:200].replace("%", "%%"))


# --- probes ------------------------------------------------------------------


class HealthPage(Page):
    """The process is alive."""

    def get(self) -> None:
        self.write_json({"status": "ok"})


class ReadyPage(Page):
    """The gateway can decide. Stale settings are usable settings: their age is in the body, not in the status."""

    def initialize(self, mirror: SettingsMirror, is_stopping: Callable[[], bool]) -> None:
        self._mirror = mirror
        self._is_stopping = is_stopping

    def get(self) -> None:
        age = self._mirror.age_seconds()
        if self._is_stopping():
            self._not_ready("the gateway is shutting down")
        elif self._mirror.current is None:
            self._not_ready(f"no settings yet: {self._mirror.last_poll.error or 'the first request is under way'}")
        else:
            self.write_json({"status": "ready", "settings_age_seconds": age})

    def _not_ready(self, reason: str) -> None:
        self.write_json({"status": "not ready", "reason": reason}, 503)


class StatusPage(Page):
    def initialize(self, status: Status) -> None:
        self._status = status

    def get(self) -> None:
        self.write_json(self._status())


class MetricsPage(Page):
    """For Prometheus, in the format that it asks for."""

    def initialize(self, metrics: Callable[[str], tuple[bytes, str]]) -> None:
        self._metrics = metrics

    def get(self) -> None:
        body, kind = self._metrics(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", kind)
        self.write(body)


# --- what is the same for everybody ------------------------------------------


class AssetPage(Page):
    """A file of the package. It holds no secret, so it is for everybody: the console asks for its data by itself."""

    def initialize(self, file: str, kind: str) -> None:
        self._body = _asset(file)
        self._kind = kind

    def compute_etag(self) -> str:
        return f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'

    def get(self) -> None:
        self.set_header("Content-Type", self._kind)
        self.set_header("Cache-Control", "no-cache")  # ask again each time; the answer is a 304
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        self.write(self._body)


_ASSETS: dict[str, bytes] = {}


def _asset(file: str) -> bytes:
    """Read once; the files of a running gateway do not change."""
    if file not in _ASSETS:
        _ASSETS[file] = resources.files(__package__).joinpath("web", file).read_bytes()
    return _ASSETS[file]


class DescriptionPage(Page):
    def get(self) -> None:
        self.write_json(DOCUMENT)


# --- for operators -----------------------------------------------------------


class AdminPage(Page):
    """Requires the admin token or a session (access.py). RequestError and StoreError become error responses."""

    def initialize(self, admin: Admin, access: Access) -> None:
        self._admin = admin
        self._access = access

    def prepare(self) -> None:
        try:
            self._access.check(self.request, time.time())
            if self.request.method not in self.METHODS:
                raise HTTPError(405)
            if self.request.method not in ("GET", "HEAD"):
                self._access.check_change(self.request)
        except RequestError as error:
            self.reject(error)

    async def answer(self, answer: Awaitable[Mapping[str, Any]]) -> None:
        try:
            self.write_json(await answer)
        except RequestError as error:
            self.reject(error)
        except StoreError as error:
            self.reject(RequestError(503, str(error)))

    def fields(self) -> Fields:
        return json_object(self.request.body)


class SessionPage(AdminPage):
    """GET: check the session. POST: exchange the token for a cookie. DELETE: forget the cookie.

    POST and DELETE need no session, so that it can begin and so that signing out always succeeds.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("GET", "HEAD", "POST", "DELETE")

    def prepare(self) -> None:
        if self.request.method not in ("POST", "DELETE"):
            super().prepare()
            return
        try:
            self._access.check_change(self.request)
        except RequestError as error:
            self.reject(error)

    def get(self) -> None:
        self.write_json({"signed_in": True})

    async def post(self) -> None:
        await self.answer(self._sign_in())

    def delete(self) -> None:
        self.clear_cookie(COOKIE, path="/")
        self.write_json({"signed_in": False})

    async def _sign_in(self) -> Mapping[str, Any]:
        token = self.fields().get("token")
        if not isinstance(token, str) or not self._access.is_token(token):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            raise RequestError(401, WRONG_TOKEN)
        self.set_cookie(
            COOKIE,
            self._access.new_session(time.time()),
            path="/",
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=self._access.is_encrypted(self.request),
        )
        return {"signed_in": True}


class OverviewPage(AdminPage):
    async def get(self) -> None:
        await self.answer(self._admin.overview())


class FeaturesPage(AdminPage):
    async def get(self) -> None:
        await self.answer(self._features())

    async def _features(self) -> Mapping[str, Any]:
        return self._admin.features()


class ExplainPage(AdminPage):
    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    async def post(self) -> None:
        await self.answer(self._explain())

    async def _explain(self) -> Mapping[str, Any]:
        return await self._admin.explain(self.fields())


class EventsPage(AdminPage):
    async def get(self) -> None:
        await self.answer(self._events())

    async def _events(self) -> Mapping[str, Any]:
        limit = self.get_query_argument("limit", str(SHOWN_LETTERS))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 8 and int(limit)):
            raise RequestError(400, "limit: expected a number of dead letters, 1 to 9999999")
        return await self._admin.events(int(limit))


class RequeuePage(AdminPage):
    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    async def post(self) -> None:
        await self.answer(self._requeue())

    async def _requeue(self) -> Mapping[str, Any]:
        ids = self.fields().get("ids")
        if ids is not None and not (isinstance(ids, list) and all(type(id_) in (int, str) for id_ in ids)):
            raise RequestError(400, "ids: expected a list of ids of dead letters, or null for all")
        return await self._admin.requeue(ids)
