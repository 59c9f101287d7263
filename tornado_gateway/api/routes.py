"""The table of data routes: a new route is one row here.

Read by the router, the metrics (their labels) and the tests of openapi.json and docs/endpoints.md.
"""

from collections.abc import Callable
from typing import NamedTuple

from tornado_gateway.api.ofrep.errors import ofrep_error
from tornado_gateway.environments.client_tokens import DECIDE, SDK, TRACK
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Response


class Route(NamedTuple):
    """One route. `handler` is a field of `router.Endpoints` and the name of its method.

    `scope` is the scope that a client token needs; with None the handler checks a token of its own. `is_decision`:
    DECISION_REQUIRED enables it. `error_shape` makes the response to a failure from the path and the error, if it is
    not that of all errors. `is_event`, `is_batch`: bodies may have the size of an event or of a batch. `is_for_sdks`:
    the query is read leniently, because some SDKs do not escape theirs. `is_lookup`: values of a visitor are in it, so
    that not each `i` names a key. A path that ends with `{key}` stands for all paths below.
    """

    method: str
    path: str
    handler: str
    scope: str | None
    is_decision: bool = False
    error_shape: Callable[[bytes, RequestError], Response] | None = None
    is_event: bool = False
    is_batch: bool = False
    is_for_sdks: bool = True
    is_lookup: bool = False

    @property
    def label(self) -> str:
        """The route in metrics."""
        return self.path


KEY = "{key}"  # the variable end of a path
ROUTES = (
    Route("POST", "/server-side/getFlag", "flags.get_flag", DECIDE, True),
    Route("POST", "/server-side/trackEvent", "flags.track_event", TRACK, True),
    Route("POST", "/server-side/setAttribute", "flags.set_attribute", TRACK, True),
    Route("POST", "/server-side/getFlags", "bulk.get_flags", DECIDE, True),
    Route("POST", "/server-side/trackExposure", "exposures.track_exposure", TRACK, True),
    Route("POST", "/ofrep/v1/evaluate/flags", "evaluation.evaluate_all", DECIDE, True, ofrep_error),
    Route("POST", "/ofrep/v1/evaluate/flags/{key}", "evaluation.evaluate", DECIDE, True, ofrep_error),
    Route("GET", "/stream", "streams.open", None, True, is_for_sdks=False),
    Route("GET", "/server-side/v2-settings", "settings.settings", SDK),
    Route("GET", "/server-side/v2-pull", "settings.pull", SDK),
    Route("POST", "/webhook", "settings.webhook", None, is_for_sdks=False),
    Route("POST", "/events/t", "events.take_event", TRACK, is_event=True),
    Route("POST", "/server-side/batch-events-v2", "events.take_batch", TRACK, is_batch=True),
    Route("GET", "/get-user-details", "visitors.user_details", SDK, is_lookup=True),
    Route("GET", "/check-attribute", "lists.check_attribute", SDK, is_lookup=True),
    Route("POST", "/evaluate-event-dsl", "lists.evaluate_event_dsl", SDK, is_lookup=True),
    Route("POST", "/user-alias/setUserAlias", "aliases.set_alias", SDK, is_lookup=True),
    Route("GET", "/user-alias/getAliasUserId", "aliases.alias_user_id", SDK, is_lookup=True),
    # Requests of older SDKs
    Route("GET", "/getUserData", "visitors.user_details", SDK, is_lookup=True),
    Route("GET", "/getLocation", "visitors.location_only", SDK, is_lookup=True),
    Route("GET", "/server-side/ua-parser", "visitors.device_only", SDK, is_lookup=True),
    Route("GET", "/attributes/check", "lists.check_attribute", SDK, is_lookup=True),
)
LABELS_OF_TREES = {route.path.removesuffix(KEY): route.label for route in ROUTES if route.path.endswith(KEY)}
TREES = {tree.encode(): f"{tree}{KEY}".encode() for tree in LABELS_OF_TREES}  # the path of the route, by its start
DECISION_LABEL = ROUTES[0].label  # of the requests that are counted as decisions
LABELS = tuple(dict.fromkeys(route.label for route in ROUTES))
