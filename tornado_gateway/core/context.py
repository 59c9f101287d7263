"""The user of one call: the inputs of a decision that a caller provides."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

Properties = Mapping[str, Any]

EMPTY_PROPERTIES: Final[Properties] = MappingProxyType({})


class Abort(Exception):  # noqa: N818 - the term of the specification
    """The settings or the context cannot be evaluated; the decision ends as disabled."""


class _Null(Mapping[str, Any]):
    """Variables that were given as null: harmless until a condition reads them."""

    def __getitem__(self, name: str) -> Any:
        raise Abort("the custom variables are null")

    def __len__(self) -> int:
        raise Abort("the custom variables are null")

    def __iter__(self) -> Iterator[str]:
        raise Abort("the custom variables are null")


NULL: Final[Properties] = _Null()


class Context:
    """The user that a decision is about, with the facts known about them. Never changed by the core.

    `location` and `device` are the `location` and `userAgent` of a `/get-user-details` response; None means that
    they have not been looked up. `lists` is for `inlist(...)`: (list id, value as text) -> is it a member?
    `custom_variables` of None (an explicit null) makes every rule abort, as in the SDKs.
    """

    __slots__ = (
        "bucketing_seed",
        "custom_variables",
        "device",
        "ip_address",
        "is_dev_mode",
        "lists",
        "location",
        "post_segmentation_variables",
        "session_id",
        "use_id_for_web",
        "user_agent",
        "user_id",
        "variation_targeting_variables",
        "web_testing_campaigns",
    )

    def __init__(
        self,
        user_id: Any,  # anything but a string makes the decision an error
        bucketing_seed: str | None = None,
        custom_variables: Properties | None = EMPTY_PROPERTIES,
        variation_targeting_variables: Properties | None = EMPTY_PROPERTIES,
        post_segmentation_variables: Sequence[str] = (),
        web_testing_campaigns: object = None,
        user_agent: str | None = None,
        ip_address: str | None = None,
        location: Properties | None = None,
        device: Properties | None = None,
        session_id: Any = None,
        use_id_for_web: bool = False,
        is_dev_mode: bool = False,
        lists: Mapping[tuple[str, str], bool] = MappingProxyType({}),
    ) -> None:
        self.user_id = user_id
        self.bucketing_seed = bucketing_seed
        self.custom_variables = custom_variables
        self.variation_targeting_variables = variation_targeting_variables
        self.post_segmentation_variables = post_segmentation_variables
        self.web_testing_campaigns = web_testing_campaigns
        self.user_agent = user_agent
        self.ip_address = ip_address
        self.location = location
        self.device = device
        self.session_id = session_id
        self.use_id_for_web = use_id_for_web
        self.is_dev_mode = is_dev_mode
        self.lists = lists


def context_from_json(fields: Mapping[str, Any], user_id: Any) -> Context:
    """Return the context that a JSON body with the clients' camelCase names describes; unknown names are ignored.

    Fields of a wrong type count as absent, except null variables, which stay None (see Context). With `_vwo` or
    `_wingify` present, `location` and `device` are never None: missing fields are unknown, not to be looked up.
    """
    context = Context(user_id)
    for name in fields:
        use = FIELDS.get(name)
        if use is not None:
            use(context, fields[name])
    if "_vwo" in fields or "_wingify" in fields:
        known = fields.get("_vwo") or fields.get("_wingify")
        if known and isinstance(known, Mapping):
            context.location = _facts(known.get("location"))
            context.device = _facts(known.get("userAgent"))
    return context


def _use_custom_variables(context: Context, value: object) -> None:
    context.custom_variables = value if isinstance(value, dict) else None


def _use_variation_targeting_variables(context: Context, value: object) -> None:
    context.variation_targeting_variables = value if isinstance(value, dict) else None


def _use_user_agent(context: Context, value: object) -> None:
    context.user_agent = value if isinstance(value, str) else None


def _use_ip_address(context: Context, value: object) -> None:
    context.ip_address = value if isinstance(value, str) else None


def _use_session_id(context: Context, value: object) -> None:
    context.session_id = value


def _use_id_for_web(context: Context, value: object) -> None:
    context.use_id_for_web = value is True


def _use_dev_mode(context: Context, value: object) -> None:
    context.is_dev_mode = bool(value)


def _use_bucketing_seed(context: Context, value: object) -> None:
    context.bucketing_seed = value if isinstance(value, str) else None


def _use_post_segmentation_variables(context: Context, value: object) -> None:
    names = value if isinstance(value, list) else ()
    context.post_segmentation_variables = tuple(name for name in names if isinstance(name, str))


def _use_platform_variables(context: Context, value: object) -> None:
    if isinstance(value, Mapping):
        context.web_testing_campaigns = value.get("webTestingCampaigns")


# A request has few of these fields, so they are found by their names instead of being asked for one after the other.
FIELDS: Final[Mapping[str, Callable[[Context, object], None]]] = {
    "customVariables": _use_custom_variables,
    "variationTargetingVariables": _use_variation_targeting_variables,
    "userAgent": _use_user_agent,
    "ipAddress": _use_ip_address,
    "sessionId": _use_session_id,
    "useIdForWeb": _use_id_for_web,
    "isDevMode": _use_dev_mode,
    "bucketingSeed": _use_bucketing_seed,
    "postSegmentationVariables": _use_post_segmentation_variables,
    "platformVariables": _use_platform_variables,
}


def _facts(value: object) -> Properties:
    return value if isinstance(value, Mapping) else EMPTY_PROPERTIES
