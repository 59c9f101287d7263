"""Explaining decisions: the same inputs and the same engine as getFlag, with a trace."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tornado_gateway import core
from tornado_gateway.console.descriptions import describe_node
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import StoreError
from tornado_gateway.http.fields import Fields, required_text, user_id
from tornado_gateway.store.interfaces import StateStore

Json = dict[str, Any]


@dataclass(slots=True)
class Explainer:
    """Gathers the inputs of a decision as getFlag does, and decides without sending an event or storing a decision."""

    location: LocationReader
    device: DeviceReader
    lists: ListChecks
    state: StateStore
    resolves_aliases: bool
    is_sticky: bool

    async def explain(self, settings: core.Settings, fields: Fields) -> Json:
        context = core.context_from_json(fields, user_id(fields))
        if self.resolves_aliases:
            context.user_id = await self._resolved(context.user_id)
        keys = _feature_keys(settings, fields)
        traced = await asyncio.to_thread(core.with_tracing, settings)
        facts = self._facts(context)
        decisions = [await self._decision(traced, key, context, facts) for key in keys]
        return {
            "visitor": {
                "id": context.user_id,
                "uuid": core.uuid_of(settings, context),
                "location": facts.location,
                "device": facts.device,
            },
            "decisions": decisions,
        }

    async def _resolved(self, given: str) -> str:
        try:
            return (await self.state.aliases([given])).get(given, given)
        except StoreError:
            return given

    def _facts(self, context: core.Context) -> "VisitorFacts":
        """Return location and device: those of the request, else looked up."""
        if context.location is not None or context.device is not None:
            return VisitorFacts(context.location, context.device, is_given=True)
        location = self.location.lookup(context.ip_address) if context.ip_address else None
        device = self.device.facts(context.user_agent) if context.user_agent else None
        return VisitorFacts(location, device, is_given=False)

    async def _decision(self, settings: core.Settings, key: str, context: core.Context, facts: "VisitorFacts") -> Json:
        feature = settings.features.get(key)
        if feature is not None:
            if not facts.is_given:  # as in getFlag: facts that no rule needs are not looked up
                context.location = facts.location if feature.needs_location else None
                context.device = facts.device if feature.needs_device else None
            if feature.list_checks:
                context.lists = await self._memberships(feature, context)
        stored = await self._records(key, feature, context) if self.is_sticky else None
        trace = core.Trace()
        decision = core.decide(settings, key, context, stored=stored, trace=trace)
        await asyncio.sleep(0)  # other requests run between the features of a large account
        return _explained(settings, feature, decision, trace)

    async def _memberships(self, feature: core.Feature, context: core.Context) -> Mapping[tuple[str, str], bool]:
        variables = context.custom_variables or {}, context.variation_targeting_variables or {}
        return await self.lists.gather(feature.list_checks, variables)

    async def _records(
        self, key: str, feature: core.Feature | None, context: core.Context
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """Return the stored decisions of the visitor; None if the store fails."""
        keys = (key,) if feature is None else feature.storage_keys
        try:
            return await self.state.load_records(context.user_id, keys)
        except StoreError:
            return None


class VisitorFacts(NamedTuple):
    """Location and device of a visitor; `is_given` if the request contains them."""

    location: Mapping[str, Any] | None
    device: Mapping[str, Any] | None
    is_given: bool


def _feature_keys(settings: core.Settings, fields: Fields) -> list[str]:
    if fields.get("featureKey") in (None, "", "*"):
        return list(settings.features)
    return [required_text(fields, "featureKey")]


def _explained(
    settings: core.Settings, feature: core.Feature | None, decision: core.Decision, trace: core.Trace
) -> Json:
    variation = decision.variation
    return {
        "feature_key": decision.feature_key,
        "feature_name": feature.name if feature is not None else None,
        "enabled": decision.enabled,
        "reason": decision.reason,
        "error": decision.error,
        "variation": variation and {"id": variation.id, "name": variation.name},
        "variables": decision.variables,
        "rule": _deciding_rule(feature, decision),
        "impressions": [
            {"campaign": impression.campaign_id, "variation": impression.variation_id}
            for impression in decision.impressions
        ],
        "lines": core.explain_lines(trace),
        "steps": _with_descriptions(trace.steps, settings.document),
    }


def _deciding_rule(feature: core.Feature | None, decision: core.Decision) -> Json | None:
    """Return the rule whose variation is shown."""
    passed = decision.experiment or decision.rollout
    if feature is None or passed is None:
        return None
    for rule in (*feature.experiments, *feature.rollouts):
        if rule.campaign.id == passed.id and rule.key == passed.key:
            return {
                "kind": rule.kind,
                "rule_key": rule.rule_key,
                "campaign_id": rule.campaign.id,
                "name": rule.campaign.name,
            }
    return None


def _with_descriptions(steps: Sequence[Mapping[str, Any]], document: dict[str, Any]) -> list[Json]:
    """Return the steps, with a description of each node of a segment."""
    described = []
    for step in steps:
        copy = dict(step)
        if "node" in step:
            copy["words"] = describe_node(step["node"], document)
        copy["steps"] = _with_descriptions(step.get("steps") or (), document)
        described.append(copy)
    return described
