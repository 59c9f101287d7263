"""Which events the acknowledged requests of a load must have caused, and which have arrived."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from load import Exchange
from process import sample_document
from vendor import Vendor

from tornado_gateway import core

SETTINGS = core.compile_settings(sample_document())
# Otherwise a 200 of getFlag does not acknowledge its impressions: they are rejected while a store does not respond.
STRICT = {"EVENT_QUEUE_FULL": "refuse"}


def visitor_requests(run: object) -> Callable[[int], tuple[str, dict[str, Any]]]:
    """Every request is of another visitor, so that each event upstream tells which request it came from."""

    def make(number: int) -> tuple[str, dict[str, Any]]:
        user = f"visitor-{run}-{number}"
        if number % 4 == 2:
            return "/server-side/trackEvent", {
                "eventName": "purchase",
                "userId": user,
                "eventProperties": {"n": number},
            }
        if number % 4 == 3:
            return "/server-side/setAttribute", {"attributeKey": "tier", "attributeValue": "gold", "userId": user}
        plan = {"plan": "gold" if number % 8 else "none"}
        return "/server-side/getFlag", {"featureKey": "new-checkout", "userId": user, "customVariables": plan}

    return make


def expected_events(exchange: Exchange) -> list[tuple[str, str, object]]:
    """What the core says that a request causes: visitor, event, campaign."""
    fields = exchange.fields
    context = core.context_from_json(fields, fields["userId"])
    if exchange.path.endswith("getFlag"):
        decision = core.decide(SETTINGS, fields["featureKey"], context)
        documents, count = core.event_documents(SETTINGS, context, decision, 0)
        events = [identity(orjson.loads(line)) for line in documents.splitlines()]
        assert len(events) == count > 0
        return events
    if exchange.path.endswith("trackEvent"):
        return [identity(orjson.loads(core.track_event_document(SETTINGS, context, "purchase", {}, 0)))]
    return [identity(orjson.loads(core.attribute_document(SETTINGS, context, {"tier": "gold"}, 0)))]


def identity(document: dict[str, Any]) -> tuple[str, str, object]:
    data = document["d"]
    return data["visId"], data["event"]["name"], data["event"]["props"].get("id")


def acknowledged(exchanges: Iterable[Exchange]) -> "collections.Counter[Any]":
    return collections.Counter(
        event for exchange in exchanges if exchange.status == 200 for event in expected_events(exchange)
    )


def arrived(vendor: Vendor) -> "collections.Counter[Any]":
    return collections.Counter(identity(event) for event in vendor.events)
