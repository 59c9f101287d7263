"""What settings are compiled into. Everything here is built by `settings.py` and only read afterwards.

Ids and keys keep the type that they have in the document (10 and "10" are different campaigns).
"""

import json
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
    """One vwo_variationShown. `tail` is the end of its event document that it alone has; holdouts name a feature."""

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
    weight: int | float | str
    start: int
    end: int
    salt: Any
    body: bytes
    impression: Impression
    segment: "Predicate | None"
    facts: "Facts"

    @property
    def variables(self) -> list[dict[str, Any]]:
        """The variables of the answer as values; read from it because hardly anybody asks."""
        variables: list[dict[str, Any]] = json.loads(self.body)["variables"]
        return variables


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
    limit: int | float | None  # as in the document; mypyc makes a float of an int that is called a float
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
    percent_traffic: int | float
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
    """A mutually exclusive group. `problem` aborts the evaluation of a member, `run_problem` the choice of a winner.

    Its features are in `Settings.group_features`: here, their rules and the group would hold each other.
    """

    id: str
    storage_key: str
    prefix: bytes
    problem: str | None = None
    run_problem: str | None = None
    is_random: bool = True
    priority: tuple[str, ...] = ()
    weights: Mapping[str, Any] = field(default_factory=dict)


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
    campaign_ids: tuple[Id, ...]
    impact: tuple[Impression, Impression] | None
    is_debugged: bool
    needs_location: bool
    needs_device: bool
    list_checks: tuple[tuple[str, str], ...]
    storage_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """One compiled settings document, immutable: the snapshot that decisions are made from.

    Nothing in it refers back to what refers to it, so all of it goes with the last reference, without the collector.
    """

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
    sdk: Sdk
    identify: Callable[[str], str]
    variations_by_key: Mapping[str, list[tuple[Variation, ...]]]
    group_features: Mapping[str, tuple[GroupFeature, ...]]  # by group id
    event_parts: "EventParts"
    is_traced: bool
    read_document: Callable[[], dict[str, Any]]
    documents: list[dict[str, Any]]  # holds the document, unless it is read once it is asked for
    twins: list["Settings"]  # holds the traced twin once it is asked for
    life: set[object] = field(default_factory=set)  # what a weak reference can be to: not to a class compiled by mypyc

    @property
    def document(self) -> dict[str, Any]:
        """What the settings were compiled from."""
        if not self.documents:
            self.documents.append(self.read_document())
        return self.documents[0]

    def parts(self) -> list[object]:
        """Return nearly all that the settings hold, in many parts: who keeps these can let go of them one by one."""
        parts: list[object] = [*self.features.values(), *self.variations_by_key.values()]
        for document in self.documents:
            parts += [item for items in document.values() if isinstance(items, list) for item in items]
        for twin in self.twins:
            parts += twin.parts()
        return parts

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
    shown_head: str
    usage_tail: str


class Facts(NamedTuple):
    """What a segment may look at outside the properties that it is given."""

    location: bool = False
    device: bool = False
    lists: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()


NO_FACTS = Facts()
