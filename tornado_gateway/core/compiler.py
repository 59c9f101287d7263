"""`compile_settings`: one settings document -> everything that decisions need (decision engine 1).

Everything that depends on the settings alone happens here: rules are linked to campaigns, weights become ranges,
segments become closures, responses and the ends of event documents become texts.
"""

from collections.abc import Callable, Iterable, Mapping
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
from tornado_gateway.core.identity import identity_of
from tornado_gateway.core.recorder import record_node
from tornado_gateway.core.segments import compile_segment
from tornado_gateway.core.types import (
    AB,
    MEG_KEY_PREFIX,
    NO_NEEDS,
    OTHER,
    PERSONALIZE,
    ROLLOUT,
    CampaignName,
    EventParts,
    Feature,
    Group,
    GroupFeature,
    Holdout,
    Id,
    Impression,
    MemberNames,
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
)
from tornado_gateway.core.validation import YieldPoint, check_document, items_of, never_yield, paced

DEFAULT_SDK = Sdk("fme-gateway", "0")

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


class _Campaign(NamedTuple):
    """A campaign of the document with its compiled variations and their segments."""

    document: Document
    name: CampaignName
    kind: str
    variations: tuple[Variation, ...]
    segments: list[_Segment]
    segment: _Segment


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
        # `featureId` conditions name features by a number.
        features = items_of(document["features"])[::-1]
        self.feature_keys = {feature["id"]: feature["key"] for feature in paced(features, yield_point)}
        self.groups: dict[str, Group] = {}
        self.group_features: dict[str, tuple[GroupFeature, ...]] = {}
        self.segments: dict[str, _Segment] = {}  # by their JSON
        self.shared: dict[Any, Any] = {}

    def compile(self, read_again: Callable[[], Document] | None) -> Settings:
        document = self.document
        campaigns = [self.campaign(item) for item in items_of(document["campaigns"])]
        by_id = {item.document["id"]: item for item in paced(campaigns, self.yield_point)}  # the last of an id wins
        linked = [self.rules(feature, by_id) for feature in items_of(document["features"])]
        holdouts = [self.holdout(item) for item in items_of(document.get("holdouts"))]
        applicable = [self.applicable(feature, holdouts) for feature in items_of(document["features"])]
        self.fill_groups(linked, applicable)
        wants_lookups = any(
            self.segment(item["segments"]).needs.wants_lookups for item in items_of(document.get("holdouts"))
        )
        features = {}
        for index, item in list(enumerate(items_of(document["features"])))[::-1]:  # the first of a key wins
            features[item["key"]] = self.feature(item, linked[index], applicable[index], wants_lookups)
        prefix = document.get("collectionPrefix")
        return Settings(
            account_id=self.account_id,
            sdk_key=document["sdkKey"],
            version=document["version"],
            is_mau=bool(document.get("isMAU")),
            is_dev_mode=bool(document.get("devMode")),
            is_web_connected=bool(document.get("isWebConnectivityEnabled", True)),
            collection_prefix=prefix if isinstance(prefix, str) and prefix.strip() else None,
            features=MappingProxyType(dict(reversed(features.items()))),
            has_list_checks=any(feature.list_checks for feature in paced(features.values(), self.yield_point)),
            event_names=_event_names(document, self.yield_point),
            sdk=self.sdk,
            identify=identity_of(self.account_id),
            variations_by_key=self.variations_by_key(campaigns, linked),
            group_features=self.group_features,
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

    # --- Campaigns ---

    def campaign(self, document: Document) -> _Campaign:
        self.yield_point()
        kind = _KINDS.get(document["type"], OTHER)
        items = items_of(document["variations"])
        ranges = ranges_of(item["weight"] for item in items) if kind is AB else [(0, 0)] * len(items)
        segments = [self.segment(item.get("segments")) for item in items]
        variations = tuple(map(self.variation, [document["id"]] * len(items), items, ranges, segments))
        own = self.segment(document["segments"]) if kind is AB else next(iter(segments), _NO_SEGMENT)
        name = CampaignName(document["id"], self.share(document["key"]), self.share(document["name"]))
        return _Campaign(document, name, kind, variations, segments, own)

    def variation(self, campaign_id: Id, document: Document, bounds: tuple[int, int], segment: _Segment) -> Variation:
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

    def rules(self, feature: Document, campaigns: Mapping[Any, _Campaign]) -> tuple[Rule, ...]:
        """Link the rules of a feature to their campaigns; a rule for an unknown campaign does not exist."""
        found = ((rule, campaigns.get(rule["campaignId"])) for rule in feature["rules"])
        return tuple(self.rule(feature, rule, campaign) for rule, campaign in found if campaign)

    def rule(self, feature: Document, rule: Document, campaign: _Campaign) -> Rule:
        self.yield_point()
        document, kind, segment = campaign.document, campaign.kind, campaign.segment
        variations = _linked_variations(campaign, rule.get("variationId"))
        if kind is not AB and variations != campaign.variations:
            segment = campaign.segments[campaign.variations.index(variations[0])]
        needs = segment.needs
        if kind is AB and document.get("isForcedVariationEnabled"):
            needs = join_needs([needs, *(variation.needs for variation in variations)])
            needs = needs._replace(wants_lookups=segment.needs.wants_lookups)
        salt = document.get("salt") if kind is AB else variations and variations[0].salt
        prefix = f"{salt or document['id']}_"
        limit = document.get("percentTraffic") if kind is AB else variations and variations[0].weight
        feature_rule_key = self.share(f"{feature['key']}_{rule['ruleKey']}")
        personal_member = f"{document['id']}_{variations[0].id}" if variations else ""
        key = feature_rule_key if kind in (ROLLOUT, PERSONALIZE) else campaign.name.key
        member = personal_member if kind is PERSONALIZE and variations[0].id else str(document["id"])
        return Rule(
            kind=kind,
            rule_key=self.share(rule["ruleKey"]),
            campaign=campaign.name,
            variations=variations,
            segment=segment.predicate,
            needs=needs,
            is_forced=kind is AB and bool(document.get("isForcedVariationEnabled")),
            is_user_list=bool(document.get("isUserListEnabled")),
            traffic_prefix=prefix.encode(),
            variation_prefix=f"{prefix}{self.account_id}_".encode(),
            limit=limit if isinstance(limit, int | float) else None,
            key=key,
            members=MemberNames(member, personal_member),
            group=self.group(member),
            outcomes={item.id: RuleMatch(document["id"], key, item.id) for item in variations},
        )

    def feature(
        self, document: Document, rules: tuple[Rule, ...], holdouts: tuple[Holdout, ...], wants_lookups: bool
    ) -> Feature:
        self.yield_point()
        needs, storage_keys = self.reach(document["key"], rules, holdouts)
        wants_lookups = wants_lookups or any(rule.needs.wants_lookups for rule in rules)
        impact_id = (document.get("impactCampaign") or {}).get("campaignId")
        impact: tuple[Impression, Impression] | None = None
        if impact_id:
            impact = impression(impact_id, 1), impression(impact_id, 2)
        return Feature(
            key=document["key"],
            id=document["id"],
            name=document["name"],
            holdouts=holdouts,
            rollouts=tuple(rule for rule in rules if rule.kind is ROLLOUT),
            experiments=tuple(rule for rule in rules if rule.kind in (AB, PERSONALIZE)),
            campaign_ids=tuple(rule["campaignId"] for rule in document["rules"]),
            impact=impact,
            is_debugged=bool(document.get("isDebuggerEnabled")),
            needs_location=wants_lookups and needs.location,
            needs_device=wants_lookups and needs.device,
            list_checks=needs.lists,
            storage_keys=storage_keys,
        )

    def reach(self, key: str, rules: tuple[Rule, ...], holdouts: tuple[Holdout, ...]) -> tuple[Needs, tuple[str, ...]]:
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
            for member in self.group_features.get(group.id, ()):
                keys[member.key] = None
                needs += [holdout.needs for holdout in member.holdouts]
                needs += [candidate.needs for candidate in member.candidates]
                waiting += member.rollouts
        joined = join_needs(needs)
        keys.update(dict.fromkeys(joined.features))
        return joined, tuple(keys)

    # --- Holdouts ---

    def holdout(self, document: Document) -> Holdout:
        segment = self.segment(document["segments"])
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

    def applicable(self, feature: Document, holdouts: list[Holdout]) -> tuple[Holdout, ...]:
        self.yield_point()
        return tuple(holdout for holdout in holdouts if holdout.is_global or feature["id"] in holdout.feature_ids)

    # --- Groups ---

    def group(self, member: str) -> Group | None:
        """Return the group of a campaign as the rules name it; its features are filled in later."""
        number = (self.document.get("campaignGroups") or {}).get(member)
        if number is None:
            return None
        group_id = str(number)
        if group_id not in self.groups:
            self.groups[group_id] = _group(group_id, (self.document.get("groups") or {}).get(group_id))
        return self.groups[group_id]

    def fill_groups(self, linked: list[tuple[Rule, ...]], applicable: list[tuple[Holdout, ...]]) -> None:
        features = items_of(self.document["features"])
        by_campaign, by_key = self.feature_indexes(features)
        for group in self.groups.values():
            if group.problem:
                continue
            members = self.document["groups"][group.id].get("campaigns") or []
            try:
                indexes = _features_of(members, features, by_campaign)
            except ValueError:
                group.run_problem = f"group {group.id} lists a campaign that is not a number: {members}"
                continue
            self.group_features[group.id] = tuple(
                _group_feature(key, by_key[key], frozenset(members), linked, applicable)
                for key in dict.fromkeys(features[index]["key"] for index in indexes)
            )

    def feature_indexes(self, features: list[Document]) -> tuple[dict[Any, list[int]], dict[str, list[int]]]:
        """Return the positions of the features by the ids of their campaigns, and by their keys."""
        by_campaign: dict[Any, list[int]] = {}
        by_key: dict[str, list[int]] = {}
        for index, feature in enumerate(features):
            self.yield_point()
            by_key.setdefault(feature["key"], []).append(index)
            for rule in feature["rules"]:
                by_campaign.setdefault(rule["campaignId"], []).append(index)
        return by_campaign, by_key

    # --- Variations by the keys in records ---

    def variations_by_key(
        self, campaigns: list[_Campaign], linked: list[tuple[Rule, ...]]
    ) -> dict[str, list[tuple[Variation, ...]]]:
        """Index variations by the keys that records use: the first campaign of a key, then the rules."""
        found: dict[str, list[tuple[Variation, ...]]] = {}
        for campaign in campaigns:
            self.yield_point()
            found.setdefault(self.share(campaign.document["key"]), [campaign.variations])
        for rules in linked:
            self.yield_point()
            for rule in rules:
                if rule.kind is not OTHER:
                    found.setdefault(rule.key, []).append(rule.variations)
        return found


def _linked_variations(campaign: _Campaign, variation_id: Id | None) -> tuple[Variation, ...]:
    """Return the one variation that the rule names, with the range it has among all; else all of them."""
    if variation_id is not None and len(campaign.variations) > 1:
        for variation in campaign.variations:
            if variation.id == variation_id:
                return (variation,)
    return campaign.variations


def _group(group_id: str, document: Document | None) -> Group:
    group = Group(group_id, MEG_KEY_PREFIX + group_id, f"{group_id}_".encode())
    if document is None or "name" not in document:
        group.problem = f"group {group_id} does not exist or has no name"
        return group
    group.is_random = document.get("et", 1) == 1
    group.priority = tuple(document.get("p") or ())
    group.weights = document.get("wt") or {}
    return group


def _features_of(members: list[str], features: list[Document], by_campaign: Mapping[Any, list[int]]) -> list[int]:
    """Return the features that have a rule for a member, in order of the members, then of the document."""
    found: dict[int, None] = {}
    for member in members:
        campaign, _, variation = member.partition("_")
        campaign_id, variation_id = int(campaign), int(variation) if variation else None
        for index in by_campaign.get(campaign_id, ()):
            for rule in features[index]["rules"]:
                if rule["campaignId"] == campaign_id and variation_id in (None, rule.get("variationId")):
                    found.setdefault(index)
    return list(found)


def _group_feature(
    key: str,
    indexes: list[int],
    members: frozenset[str],
    linked: list[tuple[Rule, ...]],
    applicable: list[tuple[Holdout, ...]],
) -> GroupFeature:
    """If a key is repeated, the first feature wins, but the rules of all can be candidates."""
    rollouts = tuple(rule for rule in linked[indexes[0]] if rule.kind is ROLLOUT)
    candidates = _candidates([rule for index in indexes for rule in linked[index]], members)
    return GroupFeature(key, applicable[indexes[0]], rollouts, candidates)


def _candidates(rules: Iterable[Rule], members: frozenset[str]) -> tuple[Rule, ...]:
    found: dict[str, Rule] = {}
    for rule in rules:
        if str(rule.campaign.id) in members or rule.members.personal in members:
            found.setdefault(rule.rule_key, rule)
    return tuple(found.values())


def _event_names(document: Document, yield_point: YieldPoint) -> frozenset[str]:
    features = paced(items_of(document["features"]), yield_point)
    metrics = [metric for feature in features for metric in feature["metrics"]]
    for holdout in items_of(document.get("holdouts")):
        metrics += items_of(holdout.get("m")) or holdout["metrics"]  # "m" is not checked by the schema
    names = (metric.get("identifier") for metric in paced(metrics, yield_point) if isinstance(metric, dict))
    return frozenset(name for name in names if isinstance(name, str))
