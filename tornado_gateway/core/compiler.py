"""`compile_settings`: one settings document -> everything that decisions need (decision engine 1).

Everything that depends on the settings alone happens here: rules are linked to campaigns, weights become ranges,
segments become closures, responses and the ends of event documents become texts.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from tornado_gateway.core.bucketing import ranges_of
from tornado_gateway.core.event_templates import (
    USAGE,
    common_props,
    event_tail,
    impression,
    shown_head,
    shown_start,
    to_json,
)
from tornado_gateway.core.groups import compiled_group, features_of_groups
from tornado_gateway.core.identity import identity_of
from tornado_gateway.core.recorder import record_node
from tornado_gateway.core.segments import compile_segment
from tornado_gateway.core.types import (
    AB,
    NO_NEEDS,
    OTHER,
    PERSONALIZE,
    ROLLOUT,
    CampaignName,
    EventParts,
    Feature,
    FeatureDraft,
    Group,
    GroupFeature,
    Holdout,
    Id,
    Impression,
    LinkedRule,
    Needs,
    Predicate,
    Recorder,
    Rule,
    RuleMatch,
    Sdk,
    Settings,
    SettingsSource,
    Variation,
    join_needs,
    member_names,
)
from tornado_gateway.core.validation import YieldPoint, check_document, each_of, emptied, items_of, never_yield, paced

DEFAULT_SDK = Sdk("fme-gateway", "0")
FREED_AT_ONCE = 50  # objects: some microseconds

_KINDS = {"FLAG_ROLLOUT": ROLLOUT, "FLAG_TESTING": AB, "FLAG_PERSONALIZE": PERSONALIZE}

Document = dict[str, Any]
Shared = TypeVar("Shared", str, bytes, int)


def compile_settings(
    document: object,
    *,
    sdk: Sdk = DEFAULT_SDK,
    traced: bool = False,
    yield_point: YieldPoint = never_yield,
    read_again: Callable[[], Document] | None = None,
) -> Settings:
    """Compile a parsed settings document; raise SettingsError if it cannot be used. Never changes the document.

    With `traced`, segments record their results in the trace of a decision, which makes decisions slower. `yield_point`
    is called every few dozen microseconds, so that a caller can give way to other work. The settings keep the document,
    which is half of their size; with `read_again`, they call it instead if the document is needed.
    """
    checked = check_document(document, yield_point)
    return _Compiler(checked, sdk, record_node if traced else None, yield_point).compile(read_again)


def with_tracing(settings: Settings) -> Settings:
    """Return the same settings compiled for tracing. They are compiled at the first call and kept."""
    source = settings.source
    if source.traced is None:
        source.traced = compile_settings(settings.document, sdk=settings.sdk, traced=True)
    return source.traced


class _Segment(NamedTuple):
    """A compiled segment."""

    predicate: Predicate | None
    needs: Needs


_NO_SEGMENT = _Segment(None, NO_NEEDS)


class _Reach(NamedTuple):
    """The inputs and the records that a decision about one feature can read."""

    needs: Needs
    storage_keys: tuple[str, ...]


class _Campaign(NamedTuple):
    """A campaign of the document with its compiled variations and their segments."""

    name: CampaignName
    kind: str
    variations: tuple[Variation, ...]
    segments: list[_Segment]
    segment: _Segment
    salt: Any
    limit: Any
    is_forced: bool
    is_user_list: bool


class _Compiler:
    """One compilation. The order of the steps matters: see `compile`.

    Equal parts of many features are made once and shared. That takes less time and memory, and keeps them in the
    processor's cache between decisions about different features.
    """

    def __init__(self, document: Document, sdk: Sdk, recorder: Recorder | None, yield_point: YieldPoint) -> None:
        self.yield_point = yield_point
        self.document = document
        self.sdk = sdk
        self.recorder = recorder
        self.account_id = str(document["accountId"])
        self.props = common_props(sdk, document["sdkKey"])
        self.event_names: set[str] = set()
        self.groups: dict[str, Group] = {}
        self.segments: dict[str, _Segment] = {}  # by their JSON
        self.shared: dict[Any, Any] = {}
        self.drafts = [self.draft(feature) for feature in each_of(document["features"])]
        # `featureId` conditions name features by a number. The first of an id wins.
        self.feature_keys = {draft.id: draft.key for draft in paced(self.drafts[::-1], yield_point)}

    def compile(self, read_again: Callable[[], Document] | None) -> Settings:
        document = self.document
        campaigns = [self.campaign(item) for item in each_of(document["campaigns"])]
        by_id = {item.name.id: item for item in paced(campaigns, self.yield_point)}  # the last of an id wins
        linked = [self.rules(feature, by_id) for feature in self.drafts]
        holdouts = [self.holdout(item) for item in each_of(document.get("holdouts"))]
        applicable = [self.applicable(feature, holdouts) for feature in self.drafts]
        group_features = features_of_groups(
            self.groups.values(), document, self.drafts, linked, applicable, self.yield_point
        )
        variations_by_key = self.variations_by_key(campaigns, linked)
        wants_lookups = any(holdout.needs.wants_lookups for holdout in holdouts)
        features = self.features(linked, applicable, group_features, wants_lookups)
        for needed in (campaigns, by_id, self.shared):
            for _ in emptied(needed, FREED_AT_ONCE):
                self.yield_point()
        prefix = document.get("collectionPrefix")
        return Settings(
            account_id=self.account_id,
            sdk_key=document["sdkKey"],
            version=document["version"],
            is_mau=bool(document.get("isMAU")),
            is_dev_mode=bool(document.get("devMode")),
            is_web_connected=bool(document.get("isWebConnectivityEnabled", True)),
            collection_prefix=prefix if isinstance(prefix, str) and prefix.strip() else None,
            features=MappingProxyType(features),
            has_list_checks=any(feature.list_checks for feature in paced(features.values(), self.yield_point)),
            event_names=frozenset(self.event_names),
            sdk=self.sdk,
            identify=identity_of(self.account_id),
            variations_by_key=variations_by_key,
            group_features=group_features,
            event_parts=EventParts(
                f'"vwo_fs_environment":{to_json(document["sdkKey"])}',
                self.props,
                shown_head(self.props),
                event_tail(USAGE, self.props),
            ),
            source=SettingsSource(
                read_again or (lambda: document), None if read_again else document, is_traced=self.recorder is not None
            ),
        )

    # --- Features as they are in the document ---

    def draft(self, document: Document) -> FeatureDraft:
        self.yield_point()
        self.add_event_names(document["metrics"])
        return FeatureDraft(
            self.share(document["key"]),
            document["id"],
            self.share(document["name"]),
            [
                LinkedRule(self.share(rule["ruleKey"]), rule["campaignId"], rule.get("variationId"))
                for rule in document["rules"]
            ],
            (document.get("impactCampaign") or {}).get("campaignId"),
            bool(document.get("isDebuggerEnabled")),
        )

    def add_event_names(self, metrics: list[Any]) -> None:
        names = (metric.get("identifier") for metric in metrics if isinstance(metric, dict))
        self.event_names.update(self.share(name) for name in names if isinstance(name, str))

    # --- Campaigns ---

    def campaign(self, document: Document) -> _Campaign:
        self.yield_point()
        kind = _KINDS.get(document["type"], OTHER)
        items = items_of(document["variations"])
        ranges = ranges_of(item["weight"] for item in items) if kind is AB else [(0, 0)] * len(items)
        segments = [self.segment(item.get("segments")) for item in items]
        name = CampaignName(document["id"], self.share(document["key"]), self.share(document["name"]))
        key = name.key if kind is AB else None
        variations = tuple(map(self.variation, [name.id] * len(items), [key] * len(items), items, ranges, segments))
        own = self.segment(document["segments"]) if kind is AB else next(iter(segments), _NO_SEGMENT)
        return _Campaign(
            name,
            kind,
            variations,
            segments,
            own,
            document.get("salt"),
            document.get("percentTraffic"),
            bool(document.get("isForcedVariationEnabled")),
            bool(document.get("isUserListEnabled")),
        )

    def variation(
        self, campaign_id: Id, key: str | None, document: Document, bounds: tuple[int, int], segment: _Segment
    ) -> Variation:
        variables = [
            {"value": item["value"], "type": item["type"], "key": item["key"], "id": item["id"]}
            for item in items_of(document.get("variables"))
        ]
        return Variation(
            id=document["id"],
            name=self.share(document["name"]),
            weight=document["weight"],
            start=self.share(bounds[0]),
            end=self.share(bounds[1]),
            salt=document.get("salt"),
            body=self.share(f'{{"isEnabled":true,"variables":{to_json(variables)}}}'.encode()),
            impression=impression(campaign_id, document["id"]),
            match=None if key is None else RuleMatch(campaign_id, key, document["id"]),
            segment=segment.predicate,
            needs=segment.needs,
        )

    def segment(self, segment: Document | None) -> _Segment:
        if not segment:
            return _NO_SEGMENT
        try:
            text = to_json(segment)
        except RecursionError:
            return self.compiled_segment(segment)
        if text not in self.segments:
            self.segments[text] = self.compiled_segment(segment)
        return self.segments[text]

    def compiled_segment(self, segment: Document) -> _Segment:
        predicate, needs = compile_segment(segment, self.feature_keys, self.recorder)
        return _Segment(predicate, NO_NEEDS if needs == NO_NEEDS else needs)

    def share(self, value: Shared) -> Shared:
        """Return the first value that is equal to this one; for texts, bytes and integers, where equal is alike."""
        return self.shared.setdefault(value, value)  # type: ignore[no-any-return]

    # --- Rules ---

    def rules(self, feature: FeatureDraft, campaigns: Mapping[Any, _Campaign]) -> tuple[Rule, ...]:
        """Link the rules of a feature to their campaigns; a rule for an unknown campaign does not exist."""
        found = ((rule, campaigns.get(rule.campaign_id)) for rule in feature.rules)
        return tuple(self.rule(feature, rule, campaign) for rule, campaign in found if campaign)

    def rule(self, feature: FeatureDraft, rule: LinkedRule, campaign: _Campaign) -> Rule:
        self.yield_point()
        campaign_id, kind, segment = campaign.name.id, campaign.kind, campaign.segment
        variations = _linked_variations(campaign, rule.variation_id)
        if kind is not AB and variations != campaign.variations:
            segment = campaign.segments[campaign.variations.index(variations[0])]
        needs = segment.needs
        if kind is AB and campaign.is_forced:
            needs = join_needs([needs, *(variation.needs for variation in variations)])
            needs = needs._replace(wants_lookups=segment.needs.wants_lookups)
        salt = campaign.salt if kind is AB else variations and variations[0].salt
        prefix = f"{salt or campaign_id}_"
        limit = campaign.limit if kind is AB else variations and variations[0].weight
        has_own_key = kind in (ROLLOUT, PERSONALIZE)
        key = self.share(f"{feature.key}_{rule.key}") if has_own_key else campaign.name.key
        return Rule(
            kind=kind,
            rule_key=rule.key,
            campaign=campaign.name,
            variations=variations,
            segment=segment.predicate,
            needs=needs,
            is_forced=kind is AB and campaign.is_forced,
            is_user_list=campaign.is_user_list,
            traffic_prefix=prefix.encode(),
            variation_prefix=f"{prefix}{self.account_id}_".encode(),
            limit=limit if isinstance(limit, int | float) else None,
            key=key,
            group=self.group(member_names(kind, campaign_id, variations).listed),
            match=RuleMatch(campaign_id, key, variations[0].id) if has_own_key else None,
        )

    def features(
        self,
        linked: list[tuple[Rule, ...]],
        applicable: list[tuple[Holdout, ...]],
        group_features: Mapping[str, tuple[GroupFeature, ...]],
        wants_lookups: bool,
    ) -> dict[str, Feature]:
        """Compile all features, the last one first, because the first of a key wins. Free their drafts meanwhile."""
        found: dict[str, Feature] = {}
        while self.drafts:
            draft, rules, holdouts = self.drafts.pop(), linked.pop(), applicable.pop()
            reach = _reach(draft.key, rules, holdouts, group_features)
            found[draft.key] = self.feature(draft, rules, holdouts, reach, wants_lookups)
        return dict(reversed(found.items()))

    def feature(
        self,
        draft: FeatureDraft,
        rules: tuple[Rule, ...],
        holdouts: tuple[Holdout, ...],
        reach: _Reach,
        wants_lookups: bool,
    ) -> Feature:
        self.yield_point()
        needs, storage_keys = reach
        wants_lookups = wants_lookups or any(rule.needs.wants_lookups for rule in rules)
        impact: tuple[Impression, Impression] | None = None
        if draft.impact_id:
            impact = impression(draft.impact_id, 1), impression(draft.impact_id, 2)
        return Feature(
            key=draft.key,
            id=draft.id,
            name=draft.name,
            holdouts=holdouts,
            rollouts=tuple(rule for rule in rules if rule.kind is ROLLOUT),
            experiments=tuple(rule for rule in rules if rule.kind in (AB, PERSONALIZE)),
            campaign_ids=tuple(rule.campaign_id for rule in draft.rules),
            impact=impact,
            is_debugged=draft.is_debugged,
            needs_location=wants_lookups and needs.location,
            needs_device=wants_lookups and needs.device,
            list_checks=needs.lists,
            storage_keys=storage_keys,
        )

    # --- Holdouts ---

    def holdout(self, document: Document) -> Holdout:
        segment = self.segment(document["segments"])
        self.add_event_names(items_of(document.get("m")) or document["metrics"])  # "m" is not checked by the schema
        start = shown_start(document["id"])
        return Holdout(
            id=document["id"],
            name=document["name"],
            is_global=document["isGlobal"],
            feature_ids=frozenset(document["featureIds"]),
            percent_traffic=document["percentTraffic"],
            prefix=f"{self.account_id}_{document['id']}_".encode(),
            tails=(f'{start}1,"isFirst":1,"fId":', f'{start}2,"isFirst":1,"fId":'),
            segment=segment.predicate,
            needs=segment.needs,
        )

    def applicable(self, feature: FeatureDraft, holdouts: list[Holdout]) -> tuple[Holdout, ...]:
        self.yield_point()
        return tuple(holdout for holdout in holdouts if holdout.is_global or feature.id in holdout.feature_ids)

    # --- Groups ---

    def group(self, member: str) -> Group | None:
        """Return the group of a campaign as the rules name it; its features are filled in later."""
        number = (self.document.get("campaignGroups") or {}).get(member)
        if number is None:
            return None
        group_id = str(number)
        if group_id not in self.groups:
            self.groups[group_id] = compiled_group(group_id, (self.document.get("groups") or {}).get(group_id))
        return self.groups[group_id]

    # --- Variations by the keys in records ---

    def variations_by_key(
        self, campaigns: list[_Campaign], linked: list[tuple[Rule, ...]]
    ) -> dict[str, tuple[Variation, ...]]:
        """Index variations by the keys that records use: the first campaign of a key, then the rules."""
        found: dict[str, tuple[Variation, ...]] = {}
        further: dict[str, list[Variation]] = {}
        for campaign in paced(campaigns, self.yield_point):
            found.setdefault(campaign.name.key, campaign.variations)
        for rule in (rule for rules in paced(linked, self.yield_point) for rule in rules if rule.kind is not OTHER):
            if found.setdefault(rule.key, rule.variations) is not rule.variations:
                further.setdefault(rule.key, []).extend(rule.variations)
        for key, variations in paced(further.items(), self.yield_point):
            found[key] += tuple(variations)
        return found


def _linked_variations(campaign: _Campaign, variation_id: Id | None) -> tuple[Variation, ...]:
    """Return the one variation that the rule names, with the range it has among all; else all of them."""
    if variation_id is not None and len(campaign.variations) > 1:
        for variation in campaign.variations:
            if variation.id == variation_id:
                return (variation,)
    return campaign.variations


def _reach(
    key: str,
    rules: tuple[Rule, ...],
    holdouts: tuple[Holdout, ...],
    group_features: Mapping[str, tuple[GroupFeature, ...]],
) -> _Reach:
    """Return the needs and the storage keys that a decision about one feature can read."""
    needs = [holdout.needs for holdout in holdouts]
    keys = {key: None}
    groups: dict[str, Group] = {}
    waiting = [rule for rule in rules if rule.kind is not OTHER]
    for rule in waiting:  # which grows during the loop
        needs.append(rule.needs)
        group = rule.group
        if group is None or group.id in groups:
            continue
        groups[group.id] = group
        keys[group.storage_key] = None
        for member in group_features.get(group.id, ()):
            keys[member.key] = None
            needs += [holdout.needs for holdout in member.holdouts]
            needs += [candidate.needs for candidate in member.candidates]
            waiting += member.rollouts
    joined = join_needs(needs)
    keys.update(dict.fromkeys(joined.features))
    return _Reach(joined, tuple(keys))
