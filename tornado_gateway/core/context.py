"""The user of one call: the inputs of a decision that a caller provides."""

from collections.abc import Iterator, Mapping, Sequence
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
    get = fields.get
    context = Context(
        user_id,
        None,
        _variables(get("customVariables", EMPTY_PROPERTIES)),
        _variables(get("variationTargetingVariables", EMPTY_PROPERTIES)),
        (),
        None,
        _text(get("userAgent")),
        _text(get("ipAddress")),
        None,
        None,
        get("sessionId"),
        get("useIdForWeb") is True,
        bool(get("isDevMode")),
    )
    if "bucketingSeed" in fields:
        context.bucketing_seed = _text(fields["bucketingSeed"])
    if "postSegmentationVariables" in fields:
        context.post_segmentation_variables = _names(fields["postSegmentationVariables"])
    if "platformVariables" in fields and isinstance(fields["platformVariables"], Mapping):
        context.web_testing_campaigns = fields["platformVariables"].get("webTestingCampaigns")
    known = get("_vwo") or get("_wingify")
    if known and isinstance(known, Mapping):
        context.location = _facts(known.get("location"))
        context.device = _facts(known.get("userAgent"))
    return context


def _variables(value: object) -> Properties | None:
    return value if value is EMPTY_PROPERTIES or isinstance(value, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _names(value: object) -> Sequence[str]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _facts(value: object) -> Properties:
    return value if isinstance(value, Mapping) else EMPTY_PROPERTIES
