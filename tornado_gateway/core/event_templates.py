"""The constant ends of event documents, written once per settings (decision engine 3.12, wire contract B.4)."""

import json
from typing import Any, Final

import orjson

from tornado_gateway.core.types import Id, Impression, Sdk

SHOWN: Final = "vwo_variationShown"
USAGE: Final = "vwo_feTrackUsage"


def to_json(value: object) -> str:
    """Return compact JSON; also for values that orjson rejects: huge integers, lone surrogates, deep nesting."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"))


def common_props(sdk: Sdk, sdk_key: str) -> dict[str, Any]:
    """Return the properties that every event has."""
    return {"vwo_sdkName": sdk.name, "vwo_sdkVersion": sdk.version, "vwo_envKey": sdk_key}


def event_tail(name: str, props: dict[str, Any]) -> str:
    """Return the rest of a document after `"event":{"time":<ms>,`."""
    return f'"name":{to_json(name)},"props":{to_json(props)}}}}}}}'


def shown_head(props: dict[str, Any]) -> str:
    """Return the part of all `vwo_variationShown` between `"event":{"time":<ms>,` and their own tail."""
    return f'"name":"{SHOWN}","props":{to_json(props)[:-1]},'


def impression(campaign_id: Id, variation_id: Id) -> Impression:
    """Return the event of showing a variation."""
    variation_id = whole(variation_id)
    return Impression(campaign_id, variation_id, shown_tail(to_json(campaign_id), to_json(variation_id)))


def shown_tail(campaign: str, variation: str) -> str:
    """Return the end of the event of showing a variation. The ids are JSON."""
    return f'"id":{campaign},"variation":{variation},"isFirst":1}}}}}}}}'


def shown_start(campaign_id: Id) -> str:
    return f'"id":{to_json(campaign_id)},"variation":'


def whole(variation_id: Id) -> Id:
    """Return an integer for an id that is one: "2" and 2.0 become 2."""
    try:
        number = float(variation_id)
    except ValueError:
        return variation_id
    return int(number) if number.is_integer() else variation_id
