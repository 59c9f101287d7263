"""The pages for probes and monitoring: health, readiness, status, metrics."""

from collections.abc import Callable

from tornado_gateway.console.base import Page
from tornado_gateway.console.overview import Status
from tornado_gateway.http.fields import weights
from tornado_gateway.settings.mirror import SettingsMirror

OPEN_METRICS = "application/openmetrics-text"


class HealthPage(Page):
    """The process is alive."""

    def get(self) -> None:
        self.write_json({"status": "ok"})


class RootPage(Page):
    """The root: a browser is sent to the console, any other client learns that the process is alive."""

    def get(self) -> None:
        if weights(self.request.headers.get("Accept", "")).get("text/html", 0.0) > 0:
            self.redirect("/console")
        else:
            self.write_json({"status": "ok"})


class ReadyPage(Page):
    """Settings are loaded. Stale settings count: their age is in the body."""

    def initialize(self, mirror: SettingsMirror, is_stopping: Callable[[], bool]) -> None:
        self._mirror = mirror
        self._is_stopping = is_stopping

    def get(self) -> None:
        age = self._mirror.age_seconds()
        if self._is_stopping():
            self._not_ready("the gateway is shutting down")
        elif self._mirror.current is None:
            self._not_ready(f"no settings yet: {self._mirror.last_poll.error or 'the first request is in flight'}")
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
    """Metrics for Prometheus, in the format that it accepts."""

    def initialize(self, metrics: Callable[[str], tuple[bytes, str]]) -> None:
        self._metrics = metrics

    def get(self) -> None:
        body, kind = self._metrics(_by_weight(self.request.headers.get("Accept", "")))
        self.set_header("Content-Type", kind)
        self.write(body)


def _by_weight(accept: str) -> str:
    """Return the Accept header without OpenMetrics if the client prefers text, because the encoder ignores weights."""
    weight = weights(accept)
    if weight.get(OPEN_METRICS, 0.0) > 0 and weight[OPEN_METRICS] >= weight.get("text/plain", 0.0):
        return accept
    return ",".join(item for item in accept.split(",") if OPEN_METRICS not in item.lower())
