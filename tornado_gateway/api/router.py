"""Finding the endpoint of a request in the table of `routes`."""

import re
from collections.abc import Callable
from operator import attrgetter

import orjson

from tornado_gateway.api.cors import OPERATORS_PATHS, respond_to_preflight
from tornado_gateway.api.endpoints import Endpoints
from tornado_gateway.api.routes import ROUTES, TREES, Route
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Handler, Response, error_response, json_error
from tornado_gateway.settings.mirror import Snapshot

SLASHES = re.compile(b"//+")
MAX_PREFIXES = 256  # one for each account; the newest
MAX_KNOWN = 1000  # paths of each method that are remembered with their handlers
LONGEST_KNOWN = 256  # bytes of such a path
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
        self._handlers: dict[tuple[bytes, bytes], Handler] = {}  # by method and path of the route
        for route in ROUTES:
            endpoint: Handler = attrgetter(route.handler)(endpoints)
            handler = endpoint if protect is None else protect(route, endpoint)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                self._handlers[method.encode(), route.path.encode()] = handler
        # By method and path, as requests have it. A pair of both as the key would have to be made for each request.
        self._known: dict[bytes, dict[bytes, Handler]] = {method: {} for method, _ in self._handlers}
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
            for known in self._known.values():
                known.clear()

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """Return the handler of a request, None if the path is not that of a data route."""
        known = self._known.get(method)
        return (known.get(path) if known is not None else None) or self._find_leniently(method, path)

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

    def error_response(self, path: bytes, error: RequestError) -> Response:
        """Return the response to a request that has failed, in the route's shape."""
        shape = self._shapes.get(self._route_path(path))
        return error_response(error) if shape is None else shape(path, error)

    def _find_leniently(self, method: bytes, path: bytes) -> Handler | None:
        route_path = self._route_path(path)
        handler = self._handlers.get((method, path)) or self._handlers.get((method, route_path))
        if handler is not None:
            return self._remember(method, path, handler)
        if method == b"OPTIONS" and self._serves_browsers and not route_path.startswith(OPERATORS_PATHS):
            return respond_to_preflight
        return self._not_allowed.get(route_path)

    def _remember(self, method: bytes, path: bytes, handler: Handler) -> Handler:
        if len(path) <= LONGEST_KNOWN:
            known = self._known[method]
            if len(known) >= MAX_KNOWN:  # unknown flags, too; the others are known again soon
                known.clear()
            known[path] = handler
        return handler

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
    """Return the path of the route that stands for all paths like this one.

    With an empty key it is the path without the slash: OFREP clients send an empty key for all flags.
    """
    for start, route_path in TREES.items():
        if path.startswith(start):
            return route_path if path[len(start) :].lstrip(b"/") else start[:-1]
    return None


def _always(response: Response) -> Handler:
    return lambda request: response


def _handlers_of_wrong_methods() -> dict[bytes, Handler]:
    methods: dict[str, list[str]] = {}
    for route in ROUTES:
        methods.setdefault(route.path, []).append(route.method)
    return {path.encode(): _always(_method_not_allowed(", ".join(sorted(of)))) for path, of in methods.items()}


def _method_not_allowed(allowed: str) -> Response:
    return json_error(405, f"method not allowed: this path supports {allowed}", [(b"Allow", allowed.encode())])
