"""The context of an OFREP request as the context of a decision."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.api.ofrep.errors import INVALID_CONTEXT, PARSE_ERROR, TARGETING_KEY_MISSING, EvaluationError
from tornado_gateway.environments.evaluation import with_address
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import SHORT_ID, Fields, is_from_browser, json_object, json_value, limited_id
from tornado_gateway.http.messages import Request

TARGETING_KEY: Final = "targetingKey"
OTHER_IDS: Final = ("userId", "id")  # of the vendor's own providers
OPTIONS: Final = "fme"
MAX_FEATURES = 1000
_SPELLINGS: Final = {  # other spellings of fields
    "user_agent": "userAgent",
    "ip_address": "ipAddress",
    "variation_targeting_variables": "variationTargetingVariables",
    "custom_variables": "customVariables",
}
_NAMES = (
    *_SPELLINGS.values(),
    *("bucketingSeed", "sessionId", "postSegmentationVariables", "platformVariables", "_vwo", "_wingify"),
    *("useIdForWeb", "isDevMode"),
)
_FIELDS: Final = {**_SPELLINGS, **{name: name for name in _NAMES}}  # the fields of getFlag by the attribute
VARIABLE: Final = "key"  # by which the vendor's providers name a variable
_ATTRIBUTES: Final = frozenset((*_FIELDS, OPTIONS, VARIABLE))  # all others are custom variables


class Options(NamedTuple):
    """The attribute `fme`. `features` limits a bulk evaluation, None does not. `impressions` None: as usual."""

    features: tuple[str, ...] | None = None
    has_variables: bool = True
    impressions: bool | None = None


NO_OPTIONS: Final = Options()


class Browser(NamedTuple):
    """The client of a page, which does not know its address: for a context without it, or without a user agent."""

    address: str | None
    user_agent: str | None


class Browsers:
    """Finds the browsers that send requests. Those of servers say nothing about visitors."""

    def __init__(self, client_address: Callable[[Request], str]) -> None:
        self._client_address = client_address

    def of(self, request: Request) -> Browser | None:
        """Return the browser that has sent a request, None for a server."""
        if not is_from_browser(request):
            return None
        agent = request.header(b"user-agent")
        return Browser(self._client_address(request) or None, None if agent is None else agent.decode("latin-1"))


def read(body: bytes, browser: Browser | None) -> tuple[core.Context, object, Options]:
    """Return the visitor, the value of the attribute VARIABLE, and the options.

    Raise EvaluationError for a body that is not JSON, and a context that is invalid or has no targeting key.
    """
    try:
        attributes = json_object(body).get("context")
    except RequestError as problem:
        raise _unreadable(body, problem) from None
    if not isinstance(attributes, dict):
        raise _invalid("context", "an object")
    user_id = attributes.pop(TARGETING_KEY, None)
    if type(user_id) is not str or not user_id or len(user_id) > SHORT_ID or user_id.isspace():
        user_id = _take_other_id(attributes, user_id)
    if browser is None and _ATTRIBUTES.isdisjoint(attributes):  # as in nearly all contexts
        return core.Context(user_id, None, attributes), None, NO_OPTIONS
    options = _options(attributes.pop(OPTIONS)) if OPTIONS in attributes else NO_OPTIONS
    variable = attributes.get(VARIABLE)
    return _described(attributes, user_id, browser), variable, options


def _described(attributes: Fields, user_id: str, browser: Browser | None) -> core.Context:
    """Return the context of a decision. Attributes that are no fields of getFlag are custom variables."""
    fields: Fields = {}
    for name in [name for name in attributes if name in _FIELDS]:
        fields[_FIELDS[name]] = attributes.pop(name)
    variables = fields.get("customVariables")
    fields["customVariables"] = {**attributes, **variables} if isinstance(variables, dict) else attributes
    address, user_agent = (None, None) if browser is None else browser
    fields["ipAddress"] = fields.get("ipAddress") or address  # a page may name the unknown as null or ""
    fields["userAgent"] = fields.get("userAgent") or user_agent
    return with_address(core.context_from_json(fields, user_id))


def _unreadable(body: bytes, problem: RequestError) -> EvaluationError:
    code = INVALID_CONTEXT
    try:
        json_value(body)
    except RequestError:
        code = PARSE_ERROR
    return EvaluationError(problem.status, code, str(problem))


def _take_other_id(attributes: Fields, targeting_key: object) -> str:
    """Return the visitor's id, and remove its attribute. A number counts as its text, a blank as absent."""
    for name in (TARGETING_KEY, *OTHER_IDS):
        value = targeting_key if name == TARGETING_KEY else attributes.get(name)
        if type(value) is int or type(value) is float:
            value = orjson.dumps(value).decode()
        if isinstance(value, str) and value and not value.isspace():
            attributes.pop(name, None)
            return _limited(name, value)
    raise EvaluationError(400, TARGETING_KEY_MISSING, "context.targetingKey is required")


def _limited(name: str, value: str) -> str:
    try:
        return limited_id(f"context.{name}", value)
    except RequestError as error:
        raise EvaluationError(400, INVALID_CONTEXT, str(error)) from error


def _options(value: object) -> Options:
    if not isinstance(value, dict):
        raise _invalid(f"context.{OPTIONS}", "an object")
    features, has_variables = _features(value.get("features")), _boolean(value, "variables") is not False
    return Options(features, has_variables, _boolean(value, "impressions"))


def feature_keys(name: str, value: Any) -> tuple[str, ...] | None:
    """Return the requested features, each once, in their order; None without a request. Raise RequestError."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_FEATURES or not all(isinstance(key, str) for key in value):
        raise RequestError(400, f"{name} must be a list of at most {MAX_FEATURES} texts")
    return tuple(dict.fromkeys(value))


def _features(value: Any) -> tuple[str, ...] | None:
    try:
        return feature_keys(f"context.{OPTIONS}.features", value)
    except RequestError as error:
        raise EvaluationError(400, INVALID_CONTEXT, str(error)) from error


def _boolean(options: Fields, name: str) -> bool | None:
    value = options.get(name)
    if value is not None and not isinstance(value, bool):
        raise _invalid(f"context.{OPTIONS}.{name}", "true or false")
    return value


def _invalid(name: str, expected: str) -> EvaluationError:
    return EvaluationError(400, INVALID_CONTEXT, f"{name} must be {expected}")
