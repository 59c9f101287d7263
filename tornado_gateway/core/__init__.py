"""The decision engine: pure functions from settings and a context to a decision and its event documents.

It imports nothing of the gateway but itself and does no IO: clock, records, location, device facts and list
memberships are arguments. Used by all rooms that decide, describe features or write events.
"""

from tornado_gateway.core.compiler import compile_settings, with_tracing
from tornado_gateway.core.context import Context, context_from_json
from tornado_gateway.core.decision import OUTCOMES, Decision, context_problem, decide, exposure, uuid_of
from tornado_gateway.core.event_templates import to_json
from tornado_gateway.core.identity import is_web_uuid, visitor_uuid
from tornado_gateway.core.operators import list_value
from tornado_gateway.core.payloads import (
    attribute_document,
    attributes_problem,
    event_documents,
    event_problem,
    track_event_document,
)
from tornado_gateway.core.trace import Trace, explain_lines
from tornado_gateway.core.types import DISABLED_BODY, Feature, Impression, Sdk, Settings
from tornado_gateway.core.validation import SettingsError, YieldPoint, never_yield

__all__ = [
    "DISABLED_BODY",
    "OUTCOMES",
    "Context",
    "Decision",
    "Feature",
    "Impression",
    "Sdk",
    "Settings",
    "SettingsError",
    "Trace",
    "YieldPoint",
    "attribute_document",
    "attributes_problem",
    "compile_settings",
    "context_from_json",
    "context_problem",
    "decide",
    "event_documents",
    "event_problem",
    "explain_lines",
    "exposure",
    "is_web_uuid",
    "list_value",
    "never_yield",
    "to_json",
    "track_event_document",
    "uuid_of",
    "visitor_uuid",
    "with_tracing",
]
