"""The data routes: which request goes to which endpoint."""

import re
from collections.abc import Mapping

from tornado_gateway.api.cors import respond_to_preflight
from tornado_gateway.api.events import Collector
from tornado_gateway.api.flags import Decisions
from tornado_gateway.api.settings import SettingsApi
from tornado_gateway.api.visitors import Lookups
from tornado_gateway.http.messages import Handler, Request, Response, json_error
from tornado_gateway.settings.mirror import Snapshot

ADMIN_PATHS = b"/admin"  # no other page may even ask for these
SLASHES = re.compile(b"//+")
DECISIONS_ARE_OFF = json_error(403, "decisions are off at this gateway: set DECISION_REQUIRED=true")

Routes = Mapping[tuple[bytes, bytes], Handler]


class Api:
    """All data routes. `decides` is DECISION_REQUIRED; `serves_browsers` is CORS_CONFIG_REQUIRED."""

    def __init__(
        self,
        decisions: Decisions,
        collector: Collector,
        lookups: Lookups,
        publisher: SettingsApi,
        *,
        decides: bool,
        serves_browsers: bool,
    ) -> None:
        self.routes: Routes = {
            (b"POST", b"/server-side/getFlag"): decisions.get_flag if decides else _refuse_decision,
            (b"POST", b"/server-side/trackEvent"): decisions.track_event if decides else _refuse_decision,
            (b"POST", b"/server-side/setAttribute"): decisions.set_attribute if decides else _refuse_decision,
            (b"GET", b"/server-side/v2-settings"): publisher.settings,
            (b"GET", b"/server-side/v2-pull"): publisher.pull,
            (b"GET", b"/get-user-details"): lookups.user_details,
            (b"GET", b"/check-attribute"): lookups.check_attribute,
            (b"POST", b"/events/t"): collector.take_event,
            (b"POST", b"/server-side/batch-events-v2"): collector.take_batch,
            (b"POST", b"/user-alias/setUserAlias"): lookups.set_alias,
            (b"GET", b"/user-alias/getAliasUserId"): lookups.alias_user_id,
            (b"POST", b"/evaluate-event-dsl"): lookups.evaluate_event_dsl,
            (b"POST", b"/webhook"): publisher.webhook,
            (b"GET", b"/getLocation"): lookups.location_only,
            (b"GET", b"/server-side/ua-parser"): lookups.device_only,
            (b"GET", b"/attributes/check"): lookups.check_attribute,
            (b"GET", b"/getUserData"): lookups.user_details,
        }
        self._methods = _methods_by_path(self.routes)
        self._prefix = b""
        self._serves_browsers = serves_browsers

    def settings_changed(self, snapshot: Snapshot) -> None:
        prefix = snapshot.settings.collection_prefix
        self._prefix = f"/{prefix}/".encode() if prefix else b""

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """The handler of a request; None if the path is not a data route."""
        return self.routes.get((method, path)) or self._find_leniently(method, path)

    def is_sdk_path(self, path: bytes) -> bool:
        """Whether SDKs send requests to this path, some of which do not escape their query."""
        return self.find(b"GET", path) is not None and not path.endswith(b"/webhook")

    def _find_leniently(self, method: bytes, path: bytes) -> Handler | None:
        """Paths of clients that write them in their own way (wire contract 0.8, 0.10), HEAD, and wrong methods."""
        path = SLASHES.sub(b"/", path)
        if self._prefix and path.startswith(self._prefix):
            path = path[len(self._prefix) - 1 :]
        handler = self.routes.get((b"GET" if method == b"HEAD" else method, path))
        if handler is None and method == b"OPTIONS" and self._serves_browsers and not path.startswith(ADMIN_PATHS):
            return respond_to_preflight
        if handler is None and path in self._methods:
            refusal = _method_not_allowed(self._methods[path])
            return lambda request: refusal
        return handler


def _refuse_decision(request: Request) -> Response:
    return DECISIONS_ARE_OFF


def _methods_by_path(routes: Routes) -> dict[bytes, list[bytes]]:
    methods: dict[bytes, list[bytes]] = {}
    for method, path in routes:
        methods.setdefault(path, []).append(method)
    return methods


def _method_not_allowed(methods: list[bytes]) -> Response:
    allowed = b", ".join(sorted(methods))
    return json_error(405, f"method not allowed: this path takes {allowed.decode()}", [(b"Allow", allowed)])
