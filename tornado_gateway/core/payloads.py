"""Event documents as bytes, from plain values (decision engine 3.12 and 5, wire contract B.4).

A document is a head with the visitor, written once per call, and a tail with the event, written once per settings.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

from tornado_gateway.core.context import EMPTY_PROPERTIES, Context, Properties
from tornado_gateway.core.decision import Decision, context_problem, uuid_of
from tornado_gateway.core.event_templates import event_tail, to_json
from tornado_gateway.core.types import VWO_USER_ID, Settings

_DEBUG_NAMESPACE = UUID("11e13cd7-6c48-53ec-8679-7e9c752273c5")


def event_documents(
    settings: Settings, context: Context, decision: Decision, now_ms: int, serial: int = 0
) -> tuple[bytes, int]:
    """Return the documents of a decision's events, joined by newlines, and their number.

    Impressions come in their order, then the usage event, then the debug event. Nothing is sent in dev mode. `serial`
    and the numbers after it, one for each event, distinguish events of one visitor and millisecond.
    """
    impressions = decision.impressions
    if not impressions and not decision.usage and decision.debug is None:
        return b"", 0
    if context.is_dev_mode and settings.is_dev_mode:
        return b"", 0
    uuid = decision.uuid
    environment, _, shown_head, usage_tail = settings.event_parts
    visitor = "" if context.user_agent is None and context.ip_address is None else _visitor(context)
    message, start = _message(uuid, now_ms), _start(uuid, context.session_id or now_ms // 1000, visitor)
    end = f'}}}},"event":{{"time":{now_ms},'
    documents = []
    if impressions:
        shown = f"{start}{environment}{_shown_props(context)}{end}{shown_head}"
        for number, impression in enumerate(impressions, serial):
            if impression.feature_id is not None:
                held_out = _held_out_start(settings, context, now_ms, number, visitor)
                feature_id = to_json(impression.feature_id)
                documents.append(f"{held_out}{environment}{end}{shown_head}{impression.tail}{feature_id}}}}}}}}}")
            elif decision.vwo_user_ids and number - serial in decision.vwo_user_ids:
                props = _shown_props(context, {VWO_USER_ID: decision.vwo_user_ids[number - serial]})
                documents.append(f"{message}{number}{start}{environment}{props}{end}{shown_head}{impression.tail}")
            else:
                documents.append(f"{message}{number}{shown}{impression.tail}")
    if decision.usage:
        documents.append(f"{message}{serial + len(documents)}{start}{environment}{end}{usage_tail}")
    if decision.debug is not None:
        tail = _debug_tail(settings, context, decision, now_ms)
        documents.append(f"{message}{serial + len(documents)}{start}{environment}{end}{tail}")
    return "\n".join(documents).encode(), len(documents)


def track_event_document(
    settings: Settings, context: Context, event_name: str, properties: Mapping[str, Any], now_ms: int, serial: int = 0
) -> bytes:
    """Return the document of a custom event; b"" if none is to be sent: see `event_problem`, and dev mode.

    The caller's properties override the gateway's, as in the SDKs.
    """
    if event_problem(settings, context, event_name) or _is_silent(settings, context):
        return b""
    props = {**settings.event_parts.props, "isCustomEvent": True, "variation": 1, "id": 1, **properties}
    return _single(settings, context, now_ms, serial, "", event_tail(event_name, props))


def attribute_document(
    settings: Settings, context: Context, attributes: Mapping[str, Any], now_ms: int, serial: int = 0
) -> bytes:
    """Return the document that sets attributes of a visitor; b"" if none is to be sent, as for events."""
    if attributes_problem(attributes) or context_problem(settings, context) or _is_silent(settings, context):
        return b""
    visitor = {"vwo_fs_environment": settings.sdk_key, **attributes}
    props = {**settings.event_parts.props, "isCustomEvent": True, "vwo_fs_environment": settings.sdk_key}
    tail = event_tail("vwo_syncVisitorProp", props)
    return _single(settings, context, now_ms, serial, to_json(visitor)[1:-1], tail)


def event_problem(settings: Settings, context: Context, event_name: str) -> str | None:
    """Return why trackEvent rejects an event, or None."""
    if event_name not in settings.event_names:
        return f"event {event_name} belongs to no metric of a feature or a holdout"
    return context_problem(settings, context)


def attributes_problem(attributes: object) -> str | None:
    """Return why setAttribute rejects attributes, or None. They are an object with strings, numbers, booleans."""
    if not isinstance(attributes, Mapping) or not attributes:
        return "attributes: expected an object with at least one key"
    for key, value in attributes.items():
        if not isinstance(value, str | int | float):
            return f"attributes.{key}: expected a string, number or boolean"
    return None


def _is_silent(settings: Settings, context: Context) -> bool:
    return settings.is_dev_mode and context.is_dev_mode


def _single(settings: Settings, context: Context, now_ms: int, serial: int, visitor_props: str, tail: str) -> bytes:
    uuid = uuid_of(settings, context)
    session_start = _start(uuid, context.session_id or now_ms // 1000, _visitor(context))
    start = f"{_message(uuid, now_ms)}{serial}{session_start}"
    props = visitor_props or settings.event_parts.environment
    return f'{start}{props}}}}},"event":{{"time":{now_ms},{tail}'.encode()


def _message(uuid: str | None, now_ms: int) -> str:
    """Return the start of a document, up to the number that makes its `msgId` unique."""
    return f'{{"d":{{"msgId":"{uuid}-{now_ms}-'


def _start(uuid: str | None, session_id: object, visitor: str) -> str:
    """Return the part of a document between the number of its `msgId` and the properties of its visitor."""
    session = session_id if type(session_id) is int else to_json(session_id)
    vis_id = f'"{uuid}"' if uuid else "null"
    return f'","visId":{vis_id},"sessionId":{session},{visitor}"visitor":{{"props":{{'


def _held_out_start(settings: Settings, context: Context, now_ms: int, number: int, visitor: str) -> str:
    """Return the start of a holdout event, which ignores web uuids and the caller's session."""
    uuid = settings.identify(context.user_id) if context.user_id else None
    return f"{_message(uuid, now_ms)}{number}{_start(uuid, now_ms // 1000, visitor)}"


def _visitor(context: Context) -> str:
    user_agent, ip_address = context.user_agent, context.ip_address
    text = "" if user_agent is None else f'"visitor_ua":{to_json(user_agent)},'
    return text if ip_address is None else f'{text}"visitor_ip":{to_json(ip_address)},'


def _shown_props(context: Context, vwo_user_id: Properties = EMPTY_PROPERTIES) -> str:
    """Return the visitor properties of impressions of rules. `vwo_user_id` overrides the custom variables."""
    if not context.post_segmentation_variables and not context.device:
        return f',"ip":{to_json(context.ip_address)}' if context.ip_address else ""
    props: dict[str, Any] = {}
    if context.post_segmentation_variables:
        variables = {**(context.custom_variables or EMPTY_PROPERTIES), **vwo_user_id}
        props = {name: variables[name] for name in context.post_segmentation_variables if name in variables}
    if context.ip_address:
        props["ip"] = context.ip_address
    if context.device:
        if version := context.device.get("os_version"):
            props["vwo_osv"] = version
        if version := context.device.get("browser_version"):
            props["vwo_bv"] = version
    return f",{to_json(props)[1:-1]}" if props else ""


def _debug_tail(settings: Settings, context: Context, decision: Decision, now_ms: int) -> str:
    session_id = now_ms // 1000 if context.session_id is None else context.session_id
    meta = {
        "an": "getFlag",
        "fk": decision.feature_key,
        "uuid": decision.uuid,
        "sId": session_id,
        "cg": "decision",
        "lt": "info",
        "msg_t": "FLAG_DECISION_GIVEN",
        "msg": decision.debug,
        "a": settings.account_id,
        "product": "fme",
        "sn": settings.sdk.name,
        "sv": settings.sdk.version,
        "eventId": str(uuid5(_DEBUG_NAMESPACE, f"{decision.uuid}-{now_ms}-{decision.feature_key}")),
    }
    return event_tail("vwo_sdkDebug", {"vwoMeta": meta})
