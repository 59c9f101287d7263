"""Explaining decisions: the same inputs and the same engine as getFlag, with a trace."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tornado_gateway import core
from tornado_gateway.console.descriptions import describe_node
from tornado_gateway.environments.evaluation import Evaluator, Inputs, with_address
from tornado_gateway.http.fields import Fields, required_text, user_id

Json = dict[str, Any]


@dataclass(slots=True)
class Explainer:
    """Decides as getFlag does, without sending an event or storing a decision."""

    evaluator: Evaluator

    async def explain(self, settings: core.Settings, fields: Fields) -> Json:
        context = with_address(core.context_from_json(fields, user_id(fields)))
        keys = _feature_keys(settings, fields)
        traced = await asyncio.to_thread(core.with_tracing, settings)
        inputs = await self.evaluator.gather(traced, keys, context)
        location, device = self.evaluator.facts(inputs)
        decisions = [await self._decision(traced, key, inputs) for key in keys]
        return {
            "visitor": {
                "id": context.user_id,
                "uuid": core.uuid_of(settings, context),
                "location": location,
                "device": device,
            },
            "decisions": decisions,
        }

    async def _decision(self, settings: core.Settings, key: str, inputs: Inputs) -> Json:
        trace = core.Trace()
        decision = self.evaluator.decide_from(settings, key, inputs, trace)
        await asyncio.sleep(0)  # other requests run between the features of a large account
        return _explained(settings, settings.features.get(key), decision, trace)


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
