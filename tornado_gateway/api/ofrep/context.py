"""The context of an OFREP request as the context of a decision."""

from collections.abc import Callable
from typing import Any, Final

import orjson

from tornado_gateway import core
from tornado_gateway.api.ofrep.errors import INVALID_CONTEXT, PARSE_ERROR, TARGETING_KEY_MISSING, EvaluationError
from tornado_gateway.environments.evaluation import with_address
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import Fields, is_from_browser, json_object, json_value, limited_id
from tornado_gateway.http.messages import Request

IDS: Final = ("targetingKey", "userId", "id")  # the vendor's own providers use the latter two
OPTIONS: Final = "fme"
NO_OPTIONS: Final[Fields] = {}
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
# The fields of getFlag by the attribute; "" for attributes that are neither fields nor custom variables.
_FIELDS: Final = {**_SPELLINGS, **{name: name for name in _NAMES}, IDS[0]: "", OPTIONS: ""}


class EvaluationRequest:
    """The context of a decision, and what the request says beside it.

    `variable` is the attribute `key`, by which the vendor's providers name a variable. `features` limits a bulk
    evaluation, None does not. `impressions` is None if the request does not say.
    """

    __slots__ = ("context", "features", "has_variables", "impressions", "variable")

    def __init__(
        self,
        context: core.Context,
        variable: Any,
        features: tuple[str, ...] | None = None,
        has_variables: bool = True,
        impressions: bool | None = None,
    ) -> None:
        self.context = context
        self.variable = variable
        self.features = features
        self.has_variables = has_variables
        self.impressions = impressions


class StandIn:
    """The address and the user agent of a browser, for a context without them: a page does not know its address."""

    def __init__(self, client_address: Callable[[Request], str]) -> None:
        self._client_address = client_address

    def __call__(self, request: Request) -> tuple[str | None, str | None]:
        """Return both, or None for a server, whose visitors are elsewhere."""
        if not is_from_browser(request):
            return None, None
        agent = request.header(b"user-agent")
        return self._client_address(request) or None, None if agent is None else agent.decode("latin-1")


def read(body: bytes, address: str | None, user_agent: str | None) -> EvaluationRequest:
    """Return the request that a body describes. `address` and `user_agent` replace those that it lacks.

    Raise EvaluationError for a body that is not JSON, and a context that is invalid or has no targeting key.
    """
    attributes = _fields(body).get("context")
    if not isinstance(attributes, dict):
        raise _invalid("context", "an object")
    options = attributes.get(OPTIONS, NO_OPTIONS)
    if not isinstance(options, dict):
        raise _invalid(f"context.{OPTIONS}", "an object")
    id_name, user_id = _user_id(attributes)
    described: Fields = {}
    custom: Fields = {}
    for name, value in attributes.items():
        field = _FIELDS.get(name)
        if field is None:
            custom[name] = value
        elif field:
            described[field] = value
    if id_name != IDS[0]:
        del custom[id_name]
    variables = described.get("customVariables")
    described["customVariables"] = {**custom, **variables} if isinstance(variables, dict) else custom
    described["ipAddress"] = described.get("ipAddress") or address  # a page may name the unknown as null or ""
    described["userAgent"] = described.get("userAgent") or user_agent
    context = with_address(core.context_from_json(described, user_id))
    if not options:
        return EvaluationRequest(context, attributes.get("key"))
    return EvaluationRequest(
        context,
        attributes.get("key"),
        _features(options.get("features")),
        _boolean(options, "variables") is not False,
        _boolean(options, "impressions"),
    )


def _fields(body: bytes) -> Fields:
    try:
        return json_object(body)
    except RequestError as problem:
        code = INVALID_CONTEXT
        try:
            json_value(body)
        except RequestError:
            code = PARSE_ERROR
        raise EvaluationError(problem.status, code, str(problem)) from None


def _user_id(attributes: Fields) -> tuple[str, str]:
    """Return the attribute with the visitor's id, and the id. A number counts as its text, a blank as absent."""
    for name in IDS:
        value = attributes.get(name)
        if type(value) is int or type(value) is float:
            value = orjson.dumps(value).decode()
        if isinstance(value, str) and value and not value.isspace():
            try:
                return name, limited_id(f"context.{name}", value)
            except RequestError as error:
                raise EvaluationError(400, INVALID_CONTEXT, str(error)) from error
    raise EvaluationError(400, TARGETING_KEY_MISSING, "context.targetingKey is required")


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
