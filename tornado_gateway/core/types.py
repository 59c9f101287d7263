"""The types that all of the core needs: compiled settings, and the state of one decision.

They are in one file because they name each other: settings hold predicates, a predicate takes an evaluation, and an
evaluation has settings. Settings are built by `compiler` and only read afterwards. Ids and keys keep the type that they
have in the document (10 and "10" are different campaigns).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tornado_gateway.core.context import Context, Properties
from tornado_gateway.core.trace import Trace
from tornado_gateway.core.webtests import parse_web_campaigns

Id = int | float | str
Predicate = Callable[["Evaluation", Properties, object], bool]  # the last: `_vwoUserId`, or UNSET
# (node, its predicate, "segment" for a node, "check" for a check that replaces several nodes, "skipped") -> predicate
Recorder = Callable[[object, Predicate, str], Predicate]
StickyRecord = Mapping[str, Any]
StoredRecords = Mapping[str, StickyRecord | None]

ROLLOUT: Final = "rollout"
AB: Final = "ab"
PERSONALIZE: Final = "personalize"
OTHER: Final = "other"

DISABLED_BODY: Final = b'{"isEnabled":false,"variables":[]}'
MEG_KEY_PREFIX: Final = "_vwo_meta_meg_"
VWO_USER_ID: Final = "_vwoUserId"

# Before the first rule, `user` conditions see only a `_vwoUserId` that the caller passed (decision engine 2.6).
UNSET: Final = object()


class Sdk(NamedTuple):
    """The vwo_sdkName and vwo_sdkVersion of event documents."""

    name: str
    version: str


class Impression(NamedTuple):
    """One vwo_variationShown event. `tail` is the variable end of its document. Those of holdouts name a feature."""

    campaign_id: Id
    variation_id: Id
    tail: str
    feature_id: Id | None = None


class RuleMatch(NamedTuple):
    """The rule that a user passed, as records, debug messages and callers name it."""

    id: Any
    key: Any
    variation_id: Any


class EventParts(NamedTuple):
    """The constant texts of event documents: see payloads."""

    environment: str
    props: dict[str, Any]
    shown_head: str
    usage_tail: str


class Needs(NamedTuple):
    """The inputs that a segment may read besides custom variables."""

    location: bool = False
    device: bool = False
    lists: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    wants_lookups: bool = False  # an SDK requests location and device facts from a gateway


NO_NEEDS: Final = Needs()


def join_needs(needs: list[Needs]) -> Needs:
    """Return everything that any of the segments needs, without `wants_lookups`."""
    needs = [item for item in needs if item is not NO_NEEDS]
    if not needs:
        return NO_NEEDS
    return Needs(
        any(item.location for item in needs),
        any(item.device for item in needs),
        tuple(dict.fromkeys(check for item in needs for check in item.lists)),
        tuple(dict.fromkeys(key for item in needs for key in item.features)),
    )


# --- Settings while they are compiled ---


class LinkedRule(NamedTuple):
    """A rule of a document, which links a feature to a campaign."""

    key: str
    campaign_id: Id
    variation_id: Id | None


class FeatureDraft(NamedTuple):
    """A feature of a document, without the fields that nothing needs."""

    key: str
    id: Id
    name: str
    rules: list[LinkedRule]
    impact_id: Any
    is_debugged: bool


# --- Compiled settings ---


@dataclass(slots=True, eq=False)
class Variation:
    """A variation with its encoded response. `segment` is None if the document has none.

    `match` is that of all rules for an A/B campaign; other rules have their own.
    """

    id: Id
    name: str
    weight: int | float | str
    start: int
    end: int
    salt: Any
    body: bytes
    impression: Impression
    match: RuleMatch | None
    segment: Predicate | None
    needs: Needs

    @property
    def variables(self) -> list[dict[str, Any]]:
        """The variables of the response as values; parsed on demand because few callers need them."""
        variables: list[dict[str, Any]] = json.loads(self.body)["variables"]
        return variables


class CampaignName(NamedTuple):
    """The three names of a campaign."""

    id: Id
    key: str
    name: str


class MemberNames(NamedTuple):
    """How groups list a rule: "campaignId", and personalizations "campaignId_variationId"; `personal` is the latter."""

    listed: str
    personal: str


def member_names(kind: str, campaign_id: Id, variations: tuple[Variation, ...]) -> MemberNames:
    """Return the names of a rule with these variations."""
    personal = f"{campaign_id}_{variations[0].id}" if variations else ""
    is_personal = kind is PERSONALIZE and variations[0].id
    return MemberNames(personal if is_personal else str(campaign_id), personal)


@dataclass(slots=True, eq=False)
class Rule:
    """A rule of one feature, linked to its campaign.

    Only the first variation of rollouts and personalizations counts: `match` is for that one. `key` is the rollout key
    of rollouts and the experiment key of the others.
    """

    kind: str
    rule_key: str
    campaign: CampaignName
    variations: tuple[Variation, ...]
    segment: Predicate | None
    needs: Needs
    is_forced: bool
    is_user_list: bool
    traffic_prefix: bytes
    variation_prefix: bytes
    limit: int | float | None  # as in the document, because an int in it stays one
    key: str
    group: "Group | None"
    match: RuleMatch | None

    @property
    def members(self) -> MemberNames:
        """The names in groups; made on demand because few rules are in a group."""
        return member_names(self.kind, self.campaign.id, self.variations)

    @property
    def first(self) -> Variation:
        return self.variations[0]

    @property
    def experiment_key(self) -> str:
        return self.campaign.key if self.kind is ROLLOUT else self.key


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
    segment: Predicate | None
    needs: Needs


@dataclass(slots=True, eq=False)
class GroupFeature:
    """One feature of a group. `candidates` are its rules that are members of the group."""

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

    `needs_location` and `needs_device`: a decision may read the context's location or device. `list_checks`
    are the (variable name, list id) pairs that `Context.lists` has to hold; the variable is looked up in the custom
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


@dataclass(slots=True, eq=False)
class SettingsSource:
    """The document of compiled settings, and forms of it that are made on demand."""

    read_document: Callable[[], dict[str, Any]]
    document: dict[str, Any] | None
    is_traced: bool
    traced: "Settings | None" = None  # the same settings with tracing
    # The target of weak references (see docs/compiled-build.md).
    lifetime: set[object] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """One compiled settings document, immutable: the snapshot that decisions are made from.

    It has no reference cycles, so the last reference frees all of it without the garbage collector.
    """

    account_id: str
    sdk_key: str
    version: Any
    is_mau: bool
    is_dev_mode: bool
    is_web_connected: bool
    collection_prefix: str | None
    features: Mapping[str, Feature]
    has_list_checks: bool  # of any feature
    event_names: frozenset[str]
    sdk: Sdk
    identify: Callable[[str], str]
    variations_by_key: Mapping[str, tuple[Variation, ...]]
    group_features: Mapping[str, tuple[GroupFeature, ...]]  # by group id
    event_parts: EventParts
    source: SettingsSource

    @property
    def document(self) -> dict[str, Any]:
        """The document that the settings were compiled from."""
        document = self.source.document
        if document is None:
            document = self.source.document = self.source.read_document()
        return document

    def parts(self) -> list[object]:
        """Return nearly everything that the settings hold, in many parts, so that a caller can free them gradually."""
        parts: list[object] = [*self.features.values(), *self.variations_by_key.values()]
        for items in (self.source.document or {}).values():
            if isinstance(items, list):
                parts += items
        return parts if self.source.traced is None else parts + self.source.traced.parts()

    def find_variation(self, key: object, variation_id: object) -> Variation | None:
        """Return the variation that a record names by the key of its rule and its id, if the settings still have it."""
        for variation in self.variations_by_key.get(key, ()) if isinstance(key, str) else ():
            if variation.id == variation_id:
                return variation
        return None


# --- One decision ---


class Evaluation:
    """The state of one decision: a user and a feature. Attributes that are rarely used get a value on first use."""

    vwo_user_id: object = UNSET  # set by each evaluated rule
    running_groups: tuple[str, ...] = ()
    sent = 0  # number of impressions that an abort keeps
    _web_campaigns: dict[str, str] | None = None

    def __init__(
        self,
        settings: Settings,
        context: Context,
        stored: StoredRecords | None,
        trace: Trace | None,
        impressions: list[Impression],
        writes: list[StickyRecord],
    ) -> None:
        self.settings = settings
        self.context = context
        user_id: str = context.user_id
        self.user_id = user_id
        self.properties: Properties | None = context.custom_variables
        seed = context.bucketing_seed
        self.bucketing_id = (seed if seed and seed.strip() else user_id).encode()
        self.stored = stored
        self.trace = trace
        self.impressions = impressions
        self.writes = writes
        self.not_in: list[Any] = []  # ids of holdouts that the record lists as "not in"
        self.rollouts_passed: tuple[str, ...] = ()  # keys of features

    def web_campaigns(self) -> dict[str, str]:
        """Return the caller's web testing campaigns: campaign id -> variation id."""
        if self._web_campaigns is None:
            self._web_campaigns = parse_web_campaigns(self.context.web_testing_campaigns)
        return self._web_campaigns
