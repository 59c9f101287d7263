"""The table of all pages, and the application that serves them. A new page is one row of ROUTES.

Read by the application, the metrics (their labels) and the tests of openapi.json and docs/endpoints.md.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from tornado.web import Application, HTTPError

from tornado_gateway.console.admin_pages import (
    AdminApi,
    EventsPage,
    ExperimentsPage,
    ExplainPage,
    FeaturesPage,
    OverviewPage,
    SessionPage,
    UsagePage,
)
from tornado_gateway.console.auth import Auth, is_operators_path
from tornado_gateway.console.base import Page
from tornado_gateway.console.dead_letter_pages import DiscardPage, EditPage, ExportPage, GroupsPage, RequeuePage
from tornado_gateway.console.insight.live import LivePage
from tornado_gateway.console.insight.simulator import SimulatePage, Simulator
from tornado_gateway.console.overview import Status
from tornado_gateway.console.probes import HealthPage, MetricsPage, ReadyPage, RootPage, StatusPage
from tornado_gateway.console.settings_pages import DifferencesPage, PinPage, UnpinPage, VersionsPage
from tornado_gateway.console.static_pages import StaticPage, api_description, web_file
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError

HTML, CSS, SCRIPT, TEXT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript", "plain"))
JSON = "application/json; charset=utf-8"
STYLES = ("console", "explain", "docs", "runbook", "simulator", "uPlot.min")
SCRIPTS = (
    *("main", "session", "overview", "features", "usage", "experiments", "explain", "steps", "events", "live"),
    *("charts", "settings", "simulator", "share", "dead_letters"),
    *("docs", "try", "dom", "runbook", "theme"),
    "uPlot.iife.min",  # 1.6.32, unchanged; see uPlot.LICENSE
)
ASSETS = {  # file and type of each path
    "/console": ("console.html", HTML),
    "/docs": ("docs.html", HTML),
    "/docs/operating": ("runbook.html", HTML),
    "/web/operating.md": ("operating.md", TEXT),  # a link to docs/operating.md, which builds replace by the file
    "/web/uPlot.LICENSE": ("uPlot.LICENSE", TEXT),
    **{f"/web/{name}.css": (f"{name}.css", CSS) for name in STYLES},
    **{f"/web/{name}.js": (f"{name}.js", SCRIPT) for name in SCRIPTS},
}


class UnknownPage(Page):
    """Any other path. Below /admin, however it is spelled, only operators get a 404."""

    def initialize(self, auth: Auth) -> None:
        self._auth = auth

    async def prepare(self) -> None:
        if is_operators_path(self.request.path):
            try:
                await self._auth.check(self.request, time.time())
            except RequestError as error:
                self.reject(error)
                return
        raise HTTPError(404, f"no such path: {self.request.path}"[:200])


class PageRoute(NamedTuple):
    """One page. `parts` are the parameters of `build_application` that its `initialize` gets, beside `arguments`."""

    path: str
    page: type[Page]
    parts: tuple[str, ...] = ()
    arguments: Mapping[str, object] = MappingProxyType({})

    @property
    def pattern(self) -> str:
        """The expression for its path: a slash at the end is accepted, and /healthz, as Kubernetes calls it."""
        return self.path if self.path == "/" else f"{self.path.replace('/health', '/healthz?')}/?"

    @property
    def label(self) -> str:
        """The page in metrics: pages below one of TREES share its label."""
        tree = f"/{self.path.split('/')[1]}"
        return tree if tree in TREES else self.path


TREES = frozenset({"/admin", "/web"})
OPERATORS = ("admin", "auth")
ROUTES = (
    PageRoute("/", RootPage),
    PageRoute("/health", HealthPage),
    PageRoute("/ready", ReadyPage, ("environments", "is_stopping", "needs_all")),
    PageRoute("/status", StatusPage, ("status",)),
    PageRoute("/metrics", MetricsPage, ("metrics",)),
    PageRoute("/openapi.json", StaticPage, arguments={"read": api_description, "kind": JSON}),
    PageRoute("/admin/session", SessionPage, OPERATORS),
    PageRoute("/admin/overview", OverviewPage, OPERATORS),
    PageRoute("/admin/features", FeaturesPage, OPERATORS),
    PageRoute("/admin/usage", UsagePage, OPERATORS),
    PageRoute("/admin/experiments", ExperimentsPage, OPERATORS),
    PageRoute("/admin/explain", ExplainPage, OPERATORS),
    PageRoute("/admin/simulate", SimulatePage, (*OPERATORS, "simulator", "is_stopping")),
    PageRoute("/admin/events", EventsPage, OPERATORS),
    PageRoute("/admin/events/groups", GroupsPage, OPERATORS),
    PageRoute("/admin/events/export", ExportPage, OPERATORS),
    PageRoute("/admin/events/requeue", RequeuePage, OPERATORS),
    PageRoute("/admin/events/edit", EditPage, OPERATORS),
    PageRoute("/admin/events/discard", DiscardPage, OPERATORS),
    PageRoute("/admin/settings/versions", VersionsPage, OPERATORS),
    PageRoute("/admin/settings/diff", DifferencesPage, OPERATORS),
    PageRoute("/admin/settings/pin", PinPage, OPERATORS),
    PageRoute("/admin/settings/unpin", UnpinPage, OPERATORS),
    PageRoute("/admin/live", LivePage, (*OPERATORS, "is_stopping")),
    *(
        PageRoute(path, StaticPage, arguments={"read": partial(web_file, file), "kind": kind})
        for path, (file, kind) in ASSETS.items()
    ),
)
LABELS = tuple(dict.fromkeys(route.label for route in ROUTES))


def build_application(
    environments: Environments,
    status: Status,
    is_stopping: Callable[[], bool],
    admin: AdminApi,
    auth: Auth,
    metrics: Callable[[str], tuple[bytes, str]],
    *,
    needs_all: bool = False,
) -> Application:
    """Return all pages. `status` returns the body of /status; `metrics` that of /metrics and its type.

    With `needs_all` all environments have to be able to decide before /ready is 200.
    """
    parts = {
        "environments": environments,
        "needs_all": needs_all,
        "status": status,
        "is_stopping": is_stopping,
        "admin": admin,
        "auth": auth,
        "simulator": Simulator(),
        "metrics": metrics,
    }
    return Application(
        [
            (route.pattern, route.page, {**route.arguments, **{name: parts[name] for name in route.parts}})
            for route in ROUTES
        ],
        default_handler_class=UnknownPage,
        default_handler_args={"auth": auth},
        log_function=lambda handler: None,  # no log line for each request
    )
