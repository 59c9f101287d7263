"""Finding the endpoint of a request in the table of `routes`."""

import re
from collections.abc import Collection
from operator import attrgetter
from typing import NamedTuple

from tornado_gateway.api.aliases import AliasesApi
from tornado_gateway.api.cors import OPERATORS_PATHS, respond_to_preflight
from tornado_gateway.api.events import EventsApi
from tornado_gateway.api.flags import FlagsApi
from tornado_gateway.api.lists import ListsApi
from tornado_gateway.api.routes import ROUTES, Guard
from tornado_gateway.api.settings import SettingsApi
from tornado_gateway.api.visitors import VisitorsApi
from tornado_gateway.http.messages import Handler, Response, json_error
from tornado_gateway.settings.mirror import Snapshot

SLASHES = re.compile(b"//+")
OTHER_PREFIX = re.compile(rb"/[a-z0-9]{2,8}(/.+)")  # of an account whose settings are not known here, or not yet


class Endpoints(NamedTuple):
    """The endpoints that routes name."""

    flags: FlagsApi
    events: EventsApi
    settings: SettingsApi
    visitors: VisitorsApi
    lists: ListsApi
    aliases: AliasesApi


class Router:
    """Finds handlers. Routes with a guard in `disabled` only return its response."""

    def __init__(self, endpoints: Endpoints, *, disabled: Collection[Guard] = (), serves_browsers: bool) -> None:
        self._handlers: dict[tuple[bytes, bytes], Handler] = {}
        for route in ROUTES:
            handler: Handler = attrgetter(route.handler)(endpoints)
            if route.guard is not None and route.guard in disabled:
                handler = _always(route.guard.response)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                self._handlers[method.encode(), route.path.encode()] = handler
        self._not_allowed = _handlers_of_wrong_methods()
        self._event_paths = frozenset(route.path.encode() for route in ROUTES if route.is_event)
        self._batch_paths = frozenset(route.path.encode() for route in ROUTES if route.is_batch)
        self._sdk_paths = frozenset(route.path.encode() for route in ROUTES if route.is_for_sdks)
        self._prefix = b""
        self._serves_browsers = serves_browsers

    def settings_changed(self, snapshot: Snapshot) -> None:
        prefix = snapshot.settings.collection_prefix
        self._prefix = f"/{prefix}/".encode() if prefix else b""

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """Return the handler of a request, None if the path is not that of a data route."""
        return self._handlers.get((method, path)) or self._find_leniently(method, path)

    def takes_events(self, path: bytes) -> bool:
        """Whether bodies may be as large as a single event."""
        return self._normal(path) in self._event_paths

    def takes_batches(self, path: bytes) -> bool:
        """Return whether bodies may be as large as a batch of events."""
        return self._normal(path) in self._batch_paths

    def carries_events(self, path: bytes) -> bool:
        """Return whether the path is for events of SDKs."""
        return self.takes_events(path) or self.takes_batches(path)

    def is_sdk_path(self, path: bytes) -> bool:
        """Return whether SDKs send requests to this path. Some of them do not escape their query."""
        return self._normal(path) in self._sdk_paths

    def _find_leniently(self, method: bytes, path: bytes) -> Handler | None:
        path = self._normal(path)
        handler = self._handlers.get((method, path))
        if handler is None and method == b"OPTIONS" and self._serves_browsers and not path.startswith(OPERATORS_PATHS):
            return respond_to_preflight
        return handler or self._not_allowed.get(path)

    def _normal(self, path: bytes) -> bytes:
        """Return a path without an account's prefix and doubled slashes, which SDKs send (wire contract 0.8, 0.10)."""
        path = SLASHES.sub(b"/", path)
        if self._prefix and path.startswith(self._prefix):
            return path[len(self._prefix) - 1 :]
        other = OTHER_PREFIX.fullmatch(path)
        return other[1] if other and other[1] in self._sdk_paths and not path.startswith(OPERATORS_PATHS) else path


def _always(response: Response) -> Handler:
    return lambda request: response


def _handlers_of_wrong_methods() -> dict[bytes, Handler]:
    methods: dict[str, list[str]] = {}
    for route in ROUTES:
        methods.setdefault(route.path, []).append(route.method)
    return {path.encode(): _always(_method_not_allowed(", ".join(sorted(of)))) for path, of in methods.items()}


def _method_not_allowed(allowed: str) -> Response:
    return json_error(405, f"method not allowed: this path supports {allowed}", [(b"Allow", allowed.encode())])
