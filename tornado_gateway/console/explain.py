"""Explaining decisions: the same inputs and the same engine as getFlag, with a trace."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tornado_gateway import core
from tornado_gateway.console.descriptions import describe_node
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.evaluation import Evaluator, Inputs, with_address
from tornado_gateway.http.fields import Fields, required_text, user_id
from tornado_gateway.insight.smallest_change import TARGETING, VARIABLES, Change, possible_changes
from tornado_gateway.insight.suggestions import nearest
from tornado_gateway.insight.what_if import ChangeError, changed_settings

Json = dict[str, Any]

# The engine reads location and device only of visitors who have an address and a user agent.
ANY_ADDRESS, ANY_AGENT = "198.18.0.1", "unknown"
NO_CHANGE = "No single condition and no share of traffic alone would turn it on."


@dataclass(slots=True)
class Explainer:
    """Decides as getFlag does, without sending an event or storing a decision."""

    evaluator: Evaluator
    location: LocationReader

    async def explain(self, settings: core.Settings, fields: Fields) -> Json:
        context = with_address(core.context_from_json(fields, user_id(fields)))
        keys = _feature_keys(settings, fields)
        traced = await asyncio.to_thread(core.with_tracing, settings)
        inputs = await self.evaluator.gather(traced, keys, context)
        location, device = self.evaluator.facts(inputs)
        decisions = [await self._decision(traced, key, inputs) for key in keys]
        if len(keys) == 1 and keys[0] in settings.features and not decisions[0]["enabled"]:
            decisions[0]["change"] = await self._smallest_change(settings, keys[0], fields, decisions[0]["steps"])
        return {
            "visitor": {
                "id": context.user_id,
                "uuid": core.uuid_of(settings, context),
                "location": location,
                "device": device,
                "notes": self._notes(settings, keys, fields, inputs),
            },
            "decisions": decisions,
        }

    def _notes(self, settings: core.Settings, keys: Sequence[str], fields: Fields, inputs: Inputs) -> list[str]:
        """Return the reasons, in words, for which the location is unknown."""
        sent, address, notes = fields.get("ipAddress"), inputs.context.ip_address, []
        if sent and address is None:
            notes.append(f"The IP address {_quoted(sent)} is invalid, it counts as absent: expected IPv4 or IPv6.")
        features = [settings.features[key] for key in keys if key in settings.features]
        is_used = address is not None or any(feature.needs_location for feature in features)
        if is_used and not inputs.has_own_facts and not self.location.available:
            reason = f": {self.location.error}" if self.location.error else " (MAXMIND_DB_PATH)"
            notes.append(f"There is no location database{reason}. Country, region and city are unknown.")
        return notes

    async def _smallest_change(self, settings: core.Settings, key: str, fields: Fields, steps: Sequence[Json]) -> Json:
        """Return the first change with which the engine turns the feature on."""
        for change in possible_changes(steps):
            if await self._turns_on(settings, key, fields, change):
                return {"found": True, "text": change.text, "fields": change.fields}
        return {"found": False, "text": NO_CHANGE, "fields": None}

    async def _turns_on(self, settings: core.Settings, key: str, fields: Fields, change: Change) -> bool:
        if change.traffic is not None:
            try:
                settings = await asyncio.to_thread(changed_settings, settings, [key], change.traffic, {})
            except (ChangeError, core.SettingsError):
                return False
        context = with_address(core.context_from_json(fields, user_id(fields)))
        inputs = await self.evaluator.gather(settings, [key], context)
        inputs = self._changed(fields, change, inputs)
        return self.evaluator.decide_from(settings, key, inputs).enabled

    def _changed(self, fields: Fields, change: Change, inputs: Inputs) -> Inputs:
        """Return the inputs for the visitor with the change. Lists are not checked again."""
        if change.fields is None:
            return inputs
        body = dict(fields)
        for name in (VARIABLES, TARGETING):
            sent = fields.get(name)
            variables = {**(sent if isinstance(sent, dict) else {}), **change.fields.get(name, {})}
            body[name] = {key: value for key, value in variables.items() if value is not None}
        if "location" in change.fields or "userAgent" in change.fields:
            location, device = self.evaluator.facts(inputs)
            known = {"location": location or {}, "userAgent": device or {}}
            body["_vwo"] = {name: {**facts, **change.fields.get(name, {})} for name, facts in known.items()}
            body["ipAddress"] = inputs.context.ip_address or ANY_ADDRESS
            body["userAgent"] = inputs.context.user_agent or ANY_AGENT
        context = with_address(core.context_from_json(body, inputs.context.user_id))
        context.lists = inputs.context.lists
        return Inputs(context, inputs.stored)

    async def _decision(self, settings: core.Settings, key: str, inputs: Inputs) -> Json:
        trace = core.Trace()
        decision = self.evaluator.decide_from(settings, key, inputs, trace)
        await asyncio.sleep(0)  # other requests run between the features of a large account
        explained = _explained(settings, settings.features.get(key), decision, trace)
        if key not in settings.features:
            explained["did_you_mean"] = nearest(key, settings.features)
        return explained


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
    """Return the rule that decides the variation; None if no rule does."""
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


def _quoted(text: object) -> str:
    return f"“{str(text)[:100]}”"
