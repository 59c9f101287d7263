"""Small settings documents for tests: one feature with the campaigns that are given."""

from typing import Any

Json = Any


def variation(number: int = 1, weight: float = 100, segments: Json = None, **fields: Json) -> Json:
    variables = [{"id": 1, "type": "string", "key": "k", "value": f"v{number}"}]
    return {
        "id": number,
        "name": f"V{number}",
        "weight": weight,
        "segments": segments or {},
        "variables": variables,
        **fields,
    }


def campaign(number: int, kind: str, *variations: Json, segments: Json = None, **fields: Json) -> Json:
    return {
        "id": number,
        "type": kind,
        "key": f"f_rule{number}",
        "name": f"Campaign {number}",
        "status": "RUNNING",
        "segments": segments or {},
        "variations": list(variations) or [variation()],
        **fields,
    }


def rollout(number: int = 10, segments: Json = None, weight: float = 100, **fields: Json) -> Json:
    return campaign(number, "FLAG_ROLLOUT", variation(1, weight, segments), **fields)


def ab(number: int = 20, segments: Json = None, traffic: float = 100, **fields: Json) -> Json:
    variations = fields.pop("variations", [variation(1, 50), variation(2, 50)])
    return campaign(number, "FLAG_TESTING", *variations, segments=segments, percentTraffic=traffic, **fields)


def personalize(number: int = 30, *variations: Json, **fields: Json) -> Json:
    return campaign(number, "FLAG_PERSONALIZE", *variations, **fields)


def rule(campaign: Json, variation_id: int | None = None) -> Json:
    linked = {"type": campaign["type"], "ruleKey": f"rule{campaign['id']}", "campaignId": campaign["id"]}
    return linked if variation_id is None else {**linked, "variationId": variation_id, "ruleKey": f"rule{variation_id}"}


def feature(number: int, *rules: Json, key: str = "", **fields: Json) -> Json:
    return {
        "id": number,
        "key": key or f"f{number}",
        "name": f"Feature {number}",
        "status": "ON",
        "type": "FEATURE_FLAG",
        "metrics": [{"id": 1, "type": "CUSTOM_GOAL", "identifier": f"event{number}"}],
        "rules": list(rules),
        **fields,
    }


def holdout(number: int = 900, percent: float = 100, segments: Json = None, **fields: Json) -> Json:
    return {
        "id": number,
        "name": f"Holdout {number}",
        "segments": segments or {},
        "featureIds": [1],
        "isGlobal": False,
        "percentTraffic": percent,
        "metrics": [],
        **fields,
    }


def document(features: list[Json], campaigns: list[Json], **fields: Json) -> Json:
    return {"version": 1, "accountId": 12345, "sdkKey": "sdk0", "features": features, "campaigns": campaigns, **fields}


def one_feature(*campaigns: Json, **fields: Json) -> Json:
    """One feature "f" with a rule for each campaign."""
    own = {name: fields.pop(name) for name in ("isDebuggerEnabled", "impactCampaign") if name in fields}
    return document([feature(1, *map(rule, campaigns), key="f", **own)], list(campaigns), **fields)
