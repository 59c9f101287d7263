"""Finding the endpoint of a request in the table of `routes`."""

import re
from collections.abc import Callable
from functools import partial
from operator import attrgetter

import orjson

from tornado_gateway.api.cors import OPERATORS_PATHS, respond_to_preflight
from tornado_gateway.api.endpoints import Endpoints
from tornado_gateway.api.routes import ROUTES, TREES, Route
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Handler, Request, Response, Result, json_error
from tornado_gateway.settings.mirror import Snapshot

SLASHES = re.compile(b"//+")
MAX_PREFIXES = 256  # one for each account; the newest
OTHER_PREFIX = re.compile(rb"/[a-z0-9]{2,8}(/.+)")  # of an account whose settings are not known here, or not yet


Protect = Callable[[Route, Handler], Handler]


class Router:
    """Finds handlers.

    `protect` returns the handler of a route with a check of credentials before it. Without it, none are required.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        serves_browsers: bool,
        protect: Protect | None = None,
    ) -> None:
        self._handlers: dict[tuple[bytes, bytes], Handler] = {}
        for route in ROUTES:
            handler: Handler = attrgetter(route.handler)(endpoints)
            if protect is not None:
                handler = protect(route, handler)
            if route.error_shape is not None:
                handler = _shaped(handler, route.error_shape)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                self._handlers[method.encode(), route.path.encode()] = handler
        self._not_allowed = _handlers_of_wrong_methods()
        self._event_paths = frozenset(route.path.encode() for route in ROUTES if route.is_event)
        self._batch_paths = frozenset(route.path.encode() for route in ROUTES if route.is_batch)
        self._sdk_paths = frozenset(route.path.encode() for route in ROUTES if route.is_for_sdks)
        self._shapes = {route.path.encode(): route.error_shape for route in ROUTES if route.error_shape is not None}
        self._prefixes: tuple[bytes, ...] = ()  # of the accounts whose settings are known
        self._serves_browsers = serves_browsers

    def settings_changed(self, snapshot: Snapshot) -> None:
        prefix = snapshot.settings.collection_prefix
        found = f"/{prefix}/".encode() if prefix else b""
        if found and found not in self._prefixes:
            self._prefixes = (*self._prefixes, found)[-MAX_PREFIXES:]

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

    def shaped(self, path: bytes, response: Response) -> Response:
        """Return the response to a request that was rejected before its handler was called, in the route's shape."""
        shape = self._shapes.get(self._route_path(path))
        if shape is None:
            return response
        error = orjson.loads(response.body)
        return shape(path, RequestError(response.status, error["error"], code=error["code"]))

    def _find_leniently(self, method: bytes, path: bytes) -> Handler | None:
        path = self._route_path(path)
        handler = self._handlers.get((method, path))
        if handler is None and method == b"OPTIONS" and self._serves_browsers and not path.startswith(OPERATORS_PATHS):
            return respond_to_preflight
        return handler or self._not_allowed.get(path)

    def _route_path(self, path: bytes) -> bytes:
        """Return the path of the route of a request, if there is one."""
        return _whole_tree(path) or _whole_tree(path := self._normal(path)) or path

    def _normal(self, path: bytes) -> bytes:
        """Return a path without an account's prefix and doubled slashes, which SDKs send (wire contract 0.8, 0.10)."""
        path = SLASHES.sub(b"/", path)
        if path.startswith(self._prefixes):
            return path[next(len(prefix) for prefix in self._prefixes if path.startswith(prefix)) - 1 :]
        other = OTHER_PREFIX.fullmatch(path)
        return other[1] if other and other[1] in self._sdk_paths and not path.startswith(OPERATORS_PATHS) else path


def _whole_tree(path: bytes) -> bytes | None:
    """Return the path of the route that stands for all paths like this one."""
    for start, route_path in TREES.items():
        if path.startswith(start):
            return route_path
    return None


def _shaped(handler: Handler, shape: Callable[[bytes, RequestError], Response]) -> Handler:
    def respond(request: Request) -> Result:
        request.error_shape = partial(shape, request.path)
        return handler(request)

    return respond


def _always(response: Response) -> Handler:
    return lambda request: response


def _handlers_of_wrong_methods() -> dict[bytes, Handler]:
    methods: dict[str, list[str]] = {}
    for route in ROUTES:
        methods.setdefault(route.path, []).append(route.method)
    return {path.encode(): _always(_method_not_allowed(", ".join(sorted(of)))) for path, of in methods.items()}


def _method_not_allowed(allowed: str) -> Response:
    return json_error(405, f"method not allowed: this path supports {allowed}", [(b"Allow", allowed.encode())])
