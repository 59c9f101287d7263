"""The pages for people and probes: health, readiness, status. The only module that subclasses tornado.web."""

import time
from collections.abc import Callable, Mapping
from http.client import responses
from typing import Any, ClassVar

import orjson
from tornado.web import Application, HTTPError, RequestHandler

from .settings import SettingsMirror

Status = Callable[[], Mapping[str, Any]]


def build_application(mirror: SettingsMirror, status: Status, is_stopping: Callable[[], bool]) -> Application:
    """All pages. `status` gives the body of /status."""
    return Application(
        [
            ("/health", HealthPage),
            ("/ready", ReadyPage, {"mirror": mirror, "is_stopping": is_stopping}),
            ("/status", StatusPage, {"status": status}),
        ],
        default_handler_class=UnknownPage,
        log_function=lambda handler: None,  # never a log line for each request
    )


class Page(RequestHandler):
    """Answers JSON, errors included."""

    METHODS: ClassVar = ("GET", "HEAD")

    def compute_etag(self) -> None:
        return None

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")

    def write_json(self, body: Mapping[str, Any], status: int = 200) -> None:
        self.set_status(status)
        self.write(orjson.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.METHODS))
        self.finish(orjson.dumps({"status": 0, "error": self._message(status_code, kwargs.get("exc_info"))}))

    def head(self) -> None:
        self.get()

    def _message(self, status: int, raised: Any) -> str:
        error = raised[1] if raised else None
        if isinstance(error, HTTPError) and error.log_message:
            return error.log_message
        return responses.get(status, "error").lower()


class UnknownPage(Page):
    def prepare(self) -> None:
        raise HTTPError(404, f"no such path: {self.request.path}"[:200].replace("%", "%%"))


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
        age = self._mirror.age_seconds(time.time())
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
