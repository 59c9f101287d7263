"""The pages for probes and monitoring: health, readiness, status, metrics."""

from collections.abc import Callable, Sequence

from tornado_gateway import __version__
from tornado_gateway.console.base import Page
from tornado_gateway.console.overview import Status
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import weights
from tornado_gateway.settings.mirror import SettingsMirror

OPEN_METRICS = "application/openmetrics-text"


class HealthPage(Page):
    """The process is alive."""

    def get(self) -> None:
        self.write_json({"status": "ok"})


LINKS = {name: f"/{name}" for name in ("console", "docs", "openapi.json", "health", "ready", "status", "metrics")}


class RootPage(Page):
    """The root: a browser is redirected to the console. Any other client gets the name, the version and links."""

    def get(self) -> None:
        if weights(self.request.headers.get("Accept", "")).get("text/html", 0.0) > 0:
            self.redirect("/console")
        else:
            self.write_json({"name": "FME gateway", "version": __version__, "links": LINKS})


class ReadyPage(Page):
    """Settings are loaded. Stale settings count: their age is in the body.

    With several environments: each of them has been tried, and one can decide; with `needs_all`, all of them can.
    """

    def initialize(self, environments: Environments, is_stopping: Callable[[], bool], *, needs_all: bool) -> None:
        self._environments = environments
        self._is_stopping = is_stopping
        self._needs_all = needs_all

    def get(self) -> None:
        name = self.get_query_argument("environment", None)
        found = self._environments.all if name is None else [self._environments.named(name)]
        mirrors = [one.mirror for one in found if one is not None]
        if not mirrors:
            self.reject(RequestError(404, f"there is no environment {name!r:.50}"))
        elif self._is_stopping():
            self._not_ready("the gateway is shutting down")
        elif (missing := _missing(mirrors, needs_all=self._needs_all)) is not None:
            self._not_ready(f"no settings yet: {missing.last_poll.error or 'the first request is in flight'}")
        else:
            ages = [age for mirror in mirrors if (age := mirror.age_seconds()) is not None]
            is_pinned = any(mirror.pinning.pin is not None for mirror in mirrors)
            self.write_json(
                {"status": "ready", "settings_age_seconds": max(ages, default=None), "settings_pinned": is_pinned}
            )

    def _not_ready(self, reason: str) -> None:
        self.write_json({"status": "not ready", "reason": reason}, 503)


class StatusPage(Page):
    def initialize(self, status: Status) -> None:
        self._status = status

    def get(self) -> None:
        self.write_json(self._status())


class MetricsPage(Page):
    """Metrics for Prometheus, in the format that it accepts."""

    def initialize(self, metrics: Callable[[str], tuple[bytes, str]]) -> None:
        self._metrics = metrics

    def get(self) -> None:
        body, kind = self._metrics(_by_weight(self.request.headers.get("Accept", "")))
        self.set_header("Content-Type", kind)
        self.write(body)


def _missing(mirrors: Sequence[SettingsMirror], *, needs_all: bool) -> SettingsMirror | None:
    """Return an environment that has to load its settings before the gateway is ready."""
    missing = [mirror for mirror in mirrors if mirror.current is None]
    if len(missing) < len(mirrors) and not needs_all:
        missing = [mirror for mirror in missing if not mirror.has_tried]
    return missing[0] if missing else None


def _by_weight(accept: str) -> str:
    """Return the Accept header without OpenMetrics if the client prefers text, because the encoder ignores weights."""
    weight = weights(accept)
    if weight.get(OPEN_METRICS, 0.0) > 0 and weight[OPEN_METRICS] >= weight.get("text/plain", 0.0):
        return accept
    return ",".join(item for item in accept.split(",") if OPEN_METRICS not in item.lower())
