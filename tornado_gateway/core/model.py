"""What settings are compiled into. Everything here is built by `settings.py` and only read afterwards.

Ids and keys keep the type that they have in the document (10 and "10" are different campaigns).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tornado_gateway.core.segments import Predicate

Id = int | float | str

ROLLOUT = "rollout"
AB = "ab"
PERSONALIZE = "personalize"
OTHER = "other"

DISABLED_BODY = b'{"isEnabled":false,"variables":[]}'
MEG_KEY_PREFIX = "_vwo_meta_meg_"


class Sdk(NamedTuple):
    """What event documents carry as vwo_sdkName and vwo_sdkVersion."""

    name: str
    version: str


class Impression(NamedTuple):
    """One vwo_variationShown. `tail` is the constant end of its event document; holdouts name their feature."""

    campaign_id: Id
    variation_id: Id
    tail: str
    feature_id: Id | None = None


class Passed(NamedTuple):
    """The rule that a user passed, in the words of records, debug messages and callers."""

    id: Any
    key: Any
    variation_id: Any


@dataclass(slots=True, eq=False)
class Variation:
    """A variation with its ready answer. `segment` is None when the document has none."""

    id: Id
    name: str
    weight: float | str
    start: int
    end: int
    salt: Any
    variables: list[dict[str, Any]]
    body: bytes
    impression: Impression
    segment: "Predicate | None"
    facts: "Facts"


@dataclass(slots=True, eq=False)
class Rule:
    """A rule of one feature, linked to its campaign.

    Only the first variation of rollouts and personalizations counts. `key` is the rollout key of rollouts and the
    experiment key of the others.
    """

    kind: str
    rule_key: str
    campaign_id: Id
    campaign_key: str
    campaign_name: str
    variations: tuple[Variation, ...]
    segment: "Predicate | None"
    facts: "Facts"
    is_marked: bool
    is_forced: bool
    is_user_list: bool
    traffic_prefix: bytes
    variation_prefix: bytes
    limit: float | None
    key: str
    experiment_key: str
    member: str  # how a group lists it: "campaignId", of personalizations "campaignId_variationId"
    personal_member: str  # "campaignId_variationId" of any kind
    group: "Group | None"
    outcomes: Mapping[Id, Passed]  # by variation id

    @property
    def first(self) -> Variation:
        return self.variations[0]


@dataclass(slots=True, eq=False)
class Holdout:
    """A share of the users that sees no feature. `tails` are the ends of its events without the feature id."""

    id: Id
    name: str
    is_global: bool
    feature_ids: frozenset[Id]
    percent_traffic: float
    prefix: bytes
    tails: tuple[str, str]
    segment: "Predicate | None"
    facts: "Facts"


@dataclass(slots=True, eq=False)
class GroupFeature:
    """One feature as a group sees it. `candidates` are its rules that are members."""

    key: str
    holdouts: tuple[Holdout, ...]
    rollouts: tuple[Rule, ...]
    candidates: tuple[Rule, ...]


@dataclass(slots=True, eq=False)
class Group:
    """A mutually exclusive group. `problem` aborts the evaluation of a member, `run_problem` the choice of a winner."""

    id: str
    storage_key: str
    prefix: bytes
    problem: str | None = None
    run_problem: str | None = None
    is_random: bool = True
    priority: tuple[str, ...] = ()
    weights: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[GroupFeature, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """A feature ready to be decided.

    `needs_location` and `needs_device` say that a decision may look at the context's location or device. `list_checks`
    are the (variable name, list id) pairs to answer in `Context.lists`; the variable is looked up in the custom
    variables, and for whitelisting in the variation targeting variables. `storage_keys` are all records that a decision
    can read.
    """

    key: str
    id: Id
    name: str
    holdouts: tuple[Holdout, ...]
    rollouts: tuple[Rule, ...]
    experiments: tuple[Rule, ...]
    campaign_ids: frozenset[Id]
    impact: tuple[Impression, Impression] | None
    is_debugged: bool
    needs_location: bool
    needs_device: bool
    list_checks: tuple[tuple[str, str], ...]
    storage_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """One compiled settings document, immutable: the snapshot that decisions are made from."""

    account_id: str
    sdk_key: str
    version: Any
    is_mau: bool
    is_dev_mode: bool
    is_web_connected: bool
    collection_prefix: str | None
    poll_interval_ms: int | None
    usage_stats_account_id: Any
    features: Mapping[str, Feature]
    event_names: frozenset[str]
    document: dict[str, Any]
    sdk: Sdk
    identify: Callable[[str], str]
    variations_by_key: Mapping[str, list[tuple[Variation, ...]]]
    event_parts: "EventParts"
    is_traced: bool
    twins: list["Settings"]  # holds the traced twin once it is asked for

    def find_variation(self, key: object, variation_id: object) -> Variation | None:
        """Return the variation that a record names by the key of its rule and its id, if the settings still have it."""
        for variations in self.variations_by_key.get(key, ()) if isinstance(key, str) else ():
            for variation in variations:
                if variation.id == variation_id:
                    return variation
        return None


class EventParts(NamedTuple):
    """The constant texts of event documents: see payloads."""

    environment: str
    props: dict[str, Any]
    usage_tail: str


class Facts(NamedTuple):
    """What a segment may look at outside the properties that it is given."""

    location: bool = False
    device: bool = False
    lists: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()


NO_FACTS = Facts()
