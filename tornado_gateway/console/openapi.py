"""The HTTP interface as an OpenAPI 3.1 document: every route with its bodies, answers, errors and examples.

Kept by hand. A test holds it to the route tables and sends its examples to a gateway.
"""

from typing import Any

from tornado_gateway import __version__
from tornado_gateway.console.auth import NO_TOKEN

Schema = dict[str, Any]

# --- pieces ------------------------------------------------------------------

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str = "", /, **properties: Schema) -> Schema:
    """`required` names properties, separated by blanks."""
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    return schema


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _said(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _json(schema: Schema, example: Any = None) -> Schema:
    return {"application/json": {"schema": schema, **({} if example is None else {"example": example})}}


def _ok(description: str, schema: Schema, example: Any = None) -> Schema:
    return {"200": {"description": description, "content": _json(schema, example)}}


def _errors(**answers: tuple[str, str]) -> Schema:
    """`_400=("what is wrong", "the message")`."""
    return {
        name.removeprefix("_"): {
            "description": description,
            "content": _json(_ref("Error"), {"status": 0, "error": message}),
        }
        for name, (description, message) in answers.items()
    }


def _query(
    name: str, description: str, example: Any = None, *, required: bool = False, schema: Schema = TEXT
) -> Schema:
    parameter: Schema = {
        "name": name,
        "in": "query",
        "required": required,
        "description": description,
        "schema": schema,
    }
    return parameter if example is None else {**parameter, "example": example}


def _operation(
    name: str,
    tag: str,
    summary: str,
    responses: Schema,
    *,
    description: str = "",
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
    secured: list[dict[str, list[str]]] | None = None,
    deprecated: bool = False,
) -> Schema:
    operation: Schema = {"operationId": name, "tags": [tag], "summary": summary}
    if description:
        operation["description"] = description
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    operation["responses"] = responses
    if secured is not None:
        operation["security"] = secured
    if deprecated:
        operation["deprecated"] = True
    return operation


OPERATORS: list[dict[str, list[str]]] = [{"adminToken": []}, {"session": []}]
NOT_ALLOWED = _errors(
    _401=("The admin token or a session is missing or wrong", NO_TOKEN),
)
OTHER_SITE = _errors(_403=("The request comes from another site's page", "not from another site's page"))
NOT_JSON = _errors(_415=("The body is not sent as JSON", "expected Content-Type: application/json"))
STORE_DOWN = _errors(_503=("The store cannot be read at the moment", "SQLite: disk I/O error"))
NOT_LOADED = _errors(_503=("There are no settings yet", "no settings have been loaded yet, see /ready"))
BAD_BODY = _errors(_400=("The body or the query cannot be used", "userId is required and must be a non-empty string"))
NO_DECISIONS = _errors(
    _403=("DECISION_REQUIRED is off", "decisions are off at this gateway: set DECISION_REQUIRED=true")
)
QUEUE_FULL = _errors(
    _503=(
        "No settings yet, or the event cannot be kept; nothing was taken",
        "the event queue is full: 1000000 events wait (EVENT_QUEUE_LIMIT)",
    )
)
TOO_LARGE = _errors(_413=("The body is too large", "the request body is too large"))
NO_JSON_EVENTS = _errors(
    _400=(
        "The body is not JSON. Any JSON is answered with 200; documents that are no events are counted as rejected",
        "the body is not JSON: unexpected end of data: line 1 column 1 (char 0)",
    )
)

ACCOUNT = [
    _query("a", "The account. Optional; if given, it must be this gateway's", "123456"),
    _query("i", "The SDK key. Optional; if given, it must be this gateway's"),
]
EVENT_KEY = _query("env", "The SDK key of the event. Events of another environment are dropped and counted as rejected")
EVENT_EXAMPLE = {
    "d": {
        "visId": "user-1",
        "event": {"name": "purchase", "props": {"vwoMeta": {}, "price": 49.5}, "time": 1735689600000},
    }
}
LOCATION_EXAMPLE = {"country": "Germany", "region": "Hesse", "city": "Frankfurt am Main"}
DEVICE_EXAMPLE = {"os": "iOS", "os_version": "17.4", "browser_string": "Safari", "device_type": "mobile"}
AGENT_EXAMPLE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15"
ADDRESS = _query("ipAddress", "The visitor's address", "192.0.2.7")
AGENT = _query("userAgent", "The visitor's user agent", AGENT_EXAMPLE)
VISITOR_EXAMPLE = {"userId": "user-1", "customVariables": {"plan": "gold"}}

# --- what SDKs and applications ask ------------------------------------------

DECISIONS: Schema = {
    "/server-side/getFlag": {
        "post": _operation(
            "getFlag",
            "Decisions",
            "Decide one feature for one visitor",
            {
                **_ok(
                    "The decision. It is also an event, which is stored before this answer leaves",
                    _ref("Flag"),
                    {
                        "isEnabled": True,
                        "variables": [{"value": "Almost there", "type": "string", "key": "headline", "id": 1}],
                    },
                ),
                **BAD_BODY,
                **NO_DECISIONS,
                **QUEUE_FULL,
            },
            description="A feature that does not exist, or that the visitor is not eligible for, is a disabled flag.",
            body=_json(_ref("FlagRequest"), {"featureKey": "new-checkout", **VISITOR_EXAMPLE}),
        )
    },
    "/server-side/trackEvent": {
        "post": _operation(
            "trackEvent",
            "Decisions",
            "Count a conversion",
            {
                **_ok("Under the event's name: does the account know it?", _ref("Tracked"), {"purchase": True}),
                **BAD_BODY,
                **NO_DECISIONS,
                **QUEUE_FULL,
            },
            body=_json(
                _ref("TrackRequest"),
                {"eventName": "purchase", "userId": "user-1", "eventProperties": {"price": 49.5}},
            ),
        )
    },
    "/server-side/setAttribute": {
        "post": _operation(
            "setAttribute",
            "Decisions",
            "Say something about a visitor",
            {
                "200": {
                    "description": "Always, with an empty body. What was wrong with the request is in a Warning header",
                    "headers": {"Warning": {"schema": TEXT, "description": "Only when nothing was sent, and why"}},
                },
                **NO_DECISIONS,
                **QUEUE_FULL,
            },
            body=_json(
                _ref("AttributeRequest"), {"attributeKey": "tier", "attributeValue": "gold", "userId": "user-1"}
            ),
        )
    },
}

SETTINGS_ANSWER = {
    "200": {
        "description": "The settings document, as upstream has it",
        "headers": {"ETag": {"schema": TEXT, "description": "Send it back as If-None-Match"}},
        "content": _json(ANY_OBJECT),
    },
    "304": {"description": "If-None-Match named the document that is current"},
    **_errors(_400=("Of another account", "accountId or sdkKey does not match this gateway")),
    **NOT_LOADED,
}
DIALECT = [
    _query("api-version", "1 or 3: the dialect of the document", "3"),
    _query("platform", "server or client", "server"),
]

SDKS: Schema = {
    "/server-side/v2-settings": {
        "get": _operation(
            "settings",
            "SDKs",
            "The account's settings",
            SETTINGS_ANSWER,
            description="Answered from memory, so upstream may be down. Waits a moment when there are none yet.",
            parameters=[*ACCOUNT, *DIALECT],
        )
    },
    "/server-side/v2-pull": {
        "get": _operation(
            "pullSettings",
            "SDKs",
            "The account's settings, fetched from upstream first",
            SETTINGS_ANSWER,
            description="Fetches at most once a second; when that fails, the document that is there is the answer.",
            parameters=[*ACCOUNT, *DIALECT],
        )
    },
    "/get-user-details": {
        "get": _operation(
            "userDetails",
            "SDKs",
            "Where a visitor is and what their device is",
            _ok(
                "What is known; what is not is left out",
                _ref("UserDetails"),
                {"location": LOCATION_EXAMPLE, "userAgent": DEVICE_EXAMPLE},
            ),
            parameters=[ADDRESS, AGENT],
        )
    },
    "/check-attribute": {
        "get": _operation(
            "checkAttribute",
            "SDKs",
            "Is a value in an attribute list?",
            {
                **_ok("The answer of upstream, at most five minutes old; no when upstream cannot tell", BOOLEAN, False),
                **_errors(_400=("A parameter is missing", "attribute and listId are required")),
            },
            parameters=[
                _query("attribute", "The value", "jane@shop.example", required=True),
                _query("listId", "The list", "6718a1b2c3", required=True),
                *ACCOUNT,
            ],
        )
    },
    "/events/t": {
        "post": _operation(
            "event",
            "Events",
            "Take one event of an SDK",
            {
                **_ok("The event is stored, or counted as rejected", _ref("Success"), {"success": True}),
                **NO_JSON_EVENTS,
                **TOO_LARGE,
                **QUEUE_FULL,
            },
            parameters=[_query("en", "The event's name, as SDKs send it", "purchase"), EVENT_KEY],
            body=_json(_ref("Event"), EVENT_EXAMPLE),
        )
    },
    "/server-side/batch-events-v2": {
        "post": _operation(
            "batch",
            "Events",
            "Take a batch of events of an SDK",
            {
                **_ok("Each event is stored, or counted as rejected", _ref("Success"), {"success": True}),
                **NO_JSON_EVENTS,
                **TOO_LARGE,
                **QUEUE_FULL,
            },
            parameters=[EVENT_KEY],
            body=_json(_ref("Batch"), {"ev": [EVENT_EXAMPLE]}),
        )
    },
    "/evaluate-event-dsl": {
        "post": _operation(
            "evaluateEventDsl",
            "SDKs",
            "Did a visitor do something before?",
            {
                **_ok("Upstream's answer; false when it cannot tell", BOOLEAN, False),
                **_errors(_400=("Not a JSON object", "the body must be a JSON object")),
            },
            description="Passed on to upstream as it is: only upstream knows past events.",
            body=_json(ANY_OBJECT, {"dsl": {}}),
        )
    },
    "/user-alias/setUserAlias": {
        "post": _operation(
            "setAlias",
            "Aliases",
            "Make an id an alias of a user",
            {
                **_ok("Has it been stored?", _object("isAliasSet", isAliasSet=BOOLEAN), {"isAliasSet": True}),
                **_errors(_400=("An id is missing, or both are the same", "userId and aliasId must differ")),
            },
            body=_json(
                _object("userId aliasId", userId=TEXT, aliasId=TEXT), {"userId": "user-1", "aliasId": "device-77"}
            ),
        )
    },
    "/user-alias/getAliasUserId": {
        "get": _operation(
            "aliases",
            "Aliases",
            "The users behind ids",
            {
                **_ok(
                    "A row for each id, in the order asked",
                    _list(_ref("AliasRow")),
                    [{"aliasId": "device-77", "userId": "user-1"}],
                ),
                **_errors(_400=("No id", "userId is required: a JSON list of ids")),
            },
            parameters=[
                _query("userId", "A JSON list of ids", '["device-77"]', required=True),
                _query("accountId", "With it, ids without an alias get a row as well", "123456"),
            ],
        )
    },
    "/webhook": {
        "post": _operation(
            "webhook",
            "Events",
            "The settings have changed: fetch them",
            {
                **_ok("Were they fetched?", _object("refreshed", refreshed=BOOLEAN), {"refreshed": True}),
                **_errors(
                    _401=("Wrong token", "the token is not the one in WEBHOOK_TOKEN"),
                    _403=("WEBHOOK_TOKEN is not set", "webhooks are off at this gateway: set WEBHOOK_TOKEN"),
                ),
            },
            secured=[{"webhookToken": []}],
        )
    },
    "/getUserData": {
        "get": _operation(
            "legacyUserDetails",
            "Older SDKs",
            "Older name of /get-user-details",
            _ok(
                "As there",
                _ref("UserDetails"),
                {"location": LOCATION_EXAMPLE, "userAgent": DEVICE_EXAMPLE},
            ),
            parameters=[ADDRESS, AGENT],
            deprecated=True,
        )
    },
    "/getLocation": {
        "get": _operation(
            "legacyLocation",
            "Older SDKs",
            "Only the location",
            _ok(
                "The location, or status 0 when it is not known",
                _object("", location=_ref("Location"), status={"const": 0}),
                {"status": 0},
            ),
            parameters=[ADDRESS],
            deprecated=True,
        )
    },
    "/server-side/ua-parser": {
        "get": _operation(
            "legacyDevice",
            "Older SDKs",
            "Only the device",
            _ok("What is known of it", _ref("Device"), DEVICE_EXAMPLE),
            parameters=[AGENT],
            deprecated=True,
        )
    },
    "/attributes/check": {
        "get": _operation(
            "legacyCheckAttribute",
            "Older SDKs",
            "Older name of /check-attribute",
            {
                **_ok("As there", BOOLEAN, False),
                **_errors(_400=("A parameter is missing", "attribute and listId are required")),
            },
            parameters=[
                _query("attribute", "The value", "jane@shop.example", required=True),
                _query("listId", "The list", "6718a1b2c3", required=True),
            ],
            deprecated=True,
        )
    },
}

# --- what operators and probes ask -------------------------------------------

PAGE = {
    "200": {"description": "The page", "content": {"text/html": {"schema": TEXT}}},
    "304": {"description": "If-None-Match named this version"},
}

OPERATING: Schema = {
    "/health": {
        "get": _operation(
            "health",
            "Probes",
            "Is the process alive?",
            _ok("It is", _object("status", status=TEXT), {"status": "ok"}),
        )
    },
    "/ready": {
        "get": _operation(
            "ready",
            "Probes",
            "Can it decide?",
            {
                **_ok("It can", _ref("Ready"), {"status": "ready", "settings_age_seconds": 12.5}),
                "503": {
                    "description": "There are no settings yet, or the gateway is shutting down",
                    "content": _json(
                        _object("status reason", status=TEXT, reason=TEXT),
                        {"status": "not ready", "reason": "the gateway is shutting down"},
                    ),
                },
            },
            description="Stale settings can be used, so their age is in the answer and not in the status.",
        )
    },
    "/status": {
        "get": _operation(
            "status",
            "Probes",
            "How is it doing?",
            _ok("The whole instance, all workers", _ref("Status")),
            description="received = delivered + waiting + dead + rejected + discarded, at any time.",
        )
    },
    "/metrics": {
        "get": _operation(
            "metrics",
            "Probes",
            "Numbers for Prometheus",
            {
                "200": {
                    "description": "The whole instance. OpenMetrics for who asks for it",
                    "content": {"text/plain": {"schema": TEXT}, "application/openmetrics-text": {"schema": TEXT}},
                }
            },
        )
    },
    "/openapi.json": {"get": _operation("openapi", "Pages", "This document", _ok("OpenAPI 3.1", ANY_OBJECT))},
    "/docs": {"get": _operation("docs", "Pages", "This document, to read and to try", PAGE)},
    "/console": {"get": _operation("console", "Pages", "The operators' console", PAGE)},
    "/admin/session": {
        "get": _operation(
            "session",
            "Operators",
            "Current session",
            {**_ok("Signed in", _object("signed_in", signed_in=BOOLEAN), {"signed_in": True}), **NOT_ALLOWED},
            secured=OPERATORS,
        ),
        "post": _operation(
            "signIn",
            "Operators",
            "Sign in: exchange the admin token for a cookie",
            {
                "200": {
                    "description": "Signed in, for twelve hours",
                    "headers": {"Set-Cookie": {"schema": TEXT, "description": "HttpOnly, SameSite=Strict"}},
                    "content": _json(_object("signed_in", signed_in=BOOLEAN), {"signed_in": True}),
                },
                **_errors(
                    _400=("The body is not a JSON object", "the body must be a JSON object"),
                    _401=("Wrong token", "wrong admin token: expected ADMIN_TOKEN"),
                ),
                **OTHER_SITE,
                **NOT_JSON,
            },
            body=_json(_object("token", token=TEXT), {"token": "…"}),
        ),
        "delete": _operation(
            "signOut",
            "Operators",
            "Sign out: forget the cookie",
            {
                **_ok("Signed out", _object("signed_in", signed_in=BOOLEAN), {"signed_in": False}),
                **OTHER_SITE,
                **NOT_JSON,
            },
        ),
    },
    "/admin/overview": {
        "get": _operation(
            "overview",
            "Operators",
            "What the console's first page shows",
            {**_ok("Now, and the last five minutes", _ref("Overview")), **NOT_ALLOWED},
            secured=OPERATORS,
        )
    },
    "/admin/features": {
        "get": _operation(
            "features",
            "Operators",
            "The features and their rules in words",
            {**_ok("In the order of the account", _ref("Features")), **NOT_ALLOWED, **NOT_LOADED},
            secured=OPERATORS,
        )
    },
    "/admin/explain": {
        "post": _operation(
            "explain",
            "Operators",
            "Why does a visitor get what they get?",
            {
                **_ok("The decisions and the way to each", _ref("Explanation")),
                **BAD_BODY,
                **NOT_ALLOWED,
                **OTHER_SITE,
                **NOT_JSON,
                **NOT_LOADED,
            },
            description="Takes what getFlag takes; without a featureKey, all features. Sends no event, stores nothing.",
            body=_json(_ref("ExplainRequest"), {"featureKey": "new-checkout", **VISITOR_EXAMPLE}),
            secured=OPERATORS,
        )
    },
    "/admin/events": {
        "get": _operation(
            "events",
            "Operators",
            "Events that wait, that are dead, that came last",
            {
                **_ok("Of all workers; the newest events are those of the worker that answers", _ref("Events")),
                **_errors(_400=("No number", "limit: expected a number of dead letters, 1 to 9999999")),
                **NOT_ALLOWED,
                **STORE_DOWN,
            },
            parameters=[_query("limit", "How many dead letters, the oldest first", 200, schema=WHOLE)],
            secured=OPERATORS,
        )
    },
    "/admin/events/requeue": {
        "post": _operation(
            "requeue",
            "Operators",
            "Send dead letters again",
            {
                **_ok("How many events wait again", _object("requeued", requeued=WHOLE), {"requeued": 2}),
                **_errors(
                    _400=("Not a list", "ids: expected a list of ids of dead letters, or null for all"),
                ),
                **NOT_ALLOWED,
                **OTHER_SITE,
                **NOT_JSON,
                **STORE_DOWN,
            },
            body=_json(_ref("RequeueRequest"), {"ids": None}),
            secured=OPERATORS,
        )
    },
}

# --- schemas -----------------------------------------------------------------

VISITOR_FIELDS: dict[str, Schema] = {
    "userId": _said({"type": ["string", "number"]}, "The visitor; id does as well"),
    "id": _said({"type": ["string", "number"]}, "The visitor, as SDKs call it"),
    "customVariables": _said(_or_null(ANY_OBJECT), "For segments"),
    "variationTargetingVariables": _said(_or_null(ANY_OBJECT), "For whitelisting"),
    "platformVariables": _said(ANY_OBJECT, "webTestingCampaigns: the web tests that the visitor is in"),
    "bucketingSeed": _said(TEXT, "Decides the buckets instead of the id"),
    "ipAddress": _said(TEXT, "For segments on the location"),
    "userAgent": _said(TEXT, "For segments on the device"),
    "sessionId": _said(WHOLE, "Of the visitor's session, in unix seconds"),
}
_STEP_NAMES = "rule, segment, check, skipped, traffic, variation, whitelisting, holdout, group, stored or end"

SCHEMAS: Schema = {
    "Error": _object("status error", status={"const": 0}, error=TEXT),
    "Success": _object("success", success=BOOLEAN),
    "Variable": _object("key type value id", key=TEXT, type=TEXT, value={}, id={"type": ["integer", "string"]}),
    "Flag": _object("isEnabled variables", isEnabled=BOOLEAN, variables=_list(_ref("Variable"))),
    "FlagRequest": _object("featureKey", featureKey=TEXT, **VISITOR_FIELDS),
    "TrackRequest": _object("eventName", eventName=TEXT, eventProperties=_or_null(ANY_OBJECT), **VISITOR_FIELDS),
    "Tracked": {"type": "object", "additionalProperties": BOOLEAN},
    "AttributeRequest": _object(
        attributeKey=TEXT,
        attributeValue=_said({"type": ["string", "number", "boolean"]}, "Of attributeKey"),
        attributes=_said(ANY_OBJECT, "Several at once, instead of key and value"),
        **VISITOR_FIELDS,
    ),
    "Location": _object("", country=TEXT, region=TEXT, city=TEXT),
    "Device": _object(
        "",
        os=TEXT,
        os_version=TEXT,
        browser_string=TEXT,
        browser_version=TEXT,
        device_type=_said(TEXT, "mobile, tablet, desktop or tv"),
        device=TEXT,
    ),
    "UserDetails": _object("location userAgent", location=_ref("Location"), userAgent=_ref("Device")),
    "Event": _object(
        "d",
        d=_object(
            "event",
            visId=TEXT,
            event=_object("name", name=TEXT, props=ANY_OBJECT, time=NUMBER),
        ),
    ),
    "Batch": _object("ev", ev=_list(_ref("Event"))),
    "AliasRow": _object("aliasId userId", aliasId=TEXT, userId=TEXT),
    "Ready": _object("status settings_age_seconds", status=TEXT, settings_age_seconds=_or_null(NUMBER)),
    "EventCounts": _object(
        "received waiting delivered dead rejected discarded oldest_at oldest_unknown_since",
        received=WHOLE,
        waiting=WHOLE,
        delivered=WHOLE,
        dead=WHOLE,
        rejected=WHOLE,
        discarded=WHOLE,
        oldest_at=_said(_or_null(NUMBER), "When the oldest waiting event was stored, in unix seconds"),
        oldest_unknown_since=_said(_or_null(NUMBER), "The time of the last reading, while a store cannot be read"),
    ),
    "Stuck": _said(
        _object("since seconds events message", since=NUMBER, seconds=NUMBER, events=WHOLE, message=TEXT),
        "Events that wait although delivery reports no error; since when the oldest of them waits",
    ),
    "Queue": _said(
        _object(
            "waiting dead oldest_at oldest_unknown_since stuck",
            waiting=WHOLE,
            dead=WHOLE,
            oldest_at=_or_null(NUMBER),
            oldest_unknown_since=_or_null(NUMBER),
            stuck=_or_null(_ref("Stuck")),
        ),
        "Of all workers, as in /status",
    ),
    "Status": _object(
        "version uptime_seconds settings events stuck workers",
        version=TEXT,
        uptime_seconds=NUMBER,
        settings=_or_null(ANY_OBJECT),
        events=_ref("EventCounts"),
        stuck=_or_null(_ref("Stuck")),
        last_poll=_or_null(_ref("LastPoll")),
        last_flush=_or_null(ANY_OBJECT),
        last_error=_or_null(TEXT),
        workers=_list(ANY_OBJECT),
    ),
    "LastPoll": _object(
        "at age_seconds instance error",
        at=_said(_or_null(NUMBER), "When settings were last fetched or an attempt failed, in Unix seconds"),
        age_seconds=_said(_or_null(NUMBER), "How long ago that was"),
        instance=_said(_or_null(TEXT), "The process that polled, as host:pid. It can belong to another gateway"),
        error=_said(_or_null(TEXT), "Why the attempt failed"),
    ),
    "Overview": _object(
        "at worker status account queue location store samples",
        at=NUMBER,
        worker=_said(WHOLE, "The process that answers"),
        status=_ref("Status"),
        account=ANY_OBJECT,
        queue=_ref("Queue"),
        location=_said(ANY_OBJECT, "The GeoIP database"),
        store=_object("kind is_up error", kind=TEXT, is_up=BOOLEAN, error=_or_null(TEXT)),
        samples=_said(
            {"type": "object", "additionalProperties": {"anyOf": [NUMBER, _list(_or_null(NUMBER))]}},
            "Columns of one number a second: rates, latency, what waits, what is dead, the lag of the loop",
        ),
    ),
    "Words": _said(
        _object(
            "",
            text=TEXT,
            note=TEXT,
            all=_list(_ref("Words")),
            any=_list(_ref("Words")),
            **{"not": _list(_ref("Words"))},
        ),
        "A condition (text), or conditions of which all, any or none must hold",
    ),
    "Rule": _object(
        "kind rule_key campaign who segment percent variations group text",
        kind=_said(TEXT, "rollout, ab, personalize or other"),
        rule_key=TEXT,
        campaign=ANY_OBJECT,
        who=TEXT,
        segment=_ref("Words"),
        percent={},
        variations=_list(ANY_OBJECT),
        group=_or_null(ANY_OBJECT),
        text=_said(TEXT, "The rule in one sentence"),
    ),
    "Feature": _object(
        "key id name rules variables holdouts metrics needs",
        key=TEXT,
        id={},
        name=TEXT,
        rules=_list(_ref("Rule")),
        variables=_list(ANY_OBJECT),
        holdouts=_list(ANY_OBJECT),
        metrics=_list(ANY_OBJECT),
        needs=ANY_OBJECT,
    ),
    "Features": _object("settings features", settings=ANY_OBJECT, features=_list(_ref("Feature"))),
    "ExplainRequest": _object(featureKey=_said(TEXT, "One feature; all without it"), **VISITOR_FIELDS),
    "Step": _object(
        "step steps",
        step=_said(TEXT, _STEP_NAMES),
        words=_said(TEXT, "The condition in words"),
        result=_or_null(BOOLEAN),
        bucket=_or_null(WHOLE),
        steps=_list(_ref("Step")),
    ),
    "Explained": _object(
        "feature_key enabled reason variables steps lines",
        feature_key=TEXT,
        enabled=BOOLEAN,
        reason=TEXT,
        error=_or_null(TEXT),
        variation=_or_null(ANY_OBJECT),
        variables=_list(_ref("Variable")),
        rule=_said(_or_null(ANY_OBJECT), "The rule whose variation is shown"),
        impressions=_said(_list(ANY_OBJECT), "What getFlag would have sent"),
        lines=_said(_list(TEXT), "The steps as text"),
        steps=_list(_ref("Step")),
    ),
    "Explanation": _object(
        "settings visitor decisions", settings=ANY_OBJECT, visitor=ANY_OBJECT, decisions=_list(_ref("Explained"))
    ),
    "DeadLetter": _object(
        "id count reason at body",
        id={"type": ["integer", "string"]},
        count=WHOLE,
        reason=TEXT,
        at=NUMBER,
        body=_said(TEXT, "One JSON document on each line"),
    ),
    "Events": _object(
        "depth dead recent",
        depth=_ref("Queue"),
        dead=_list(_ref("DeadLetter")),
        recent=_said(_list(ANY_OBJECT), "The newest first"),
    ),
    "RequeueRequest": _object(
        "", ids=_said(_or_null(_list({"type": ["integer", "string"]})), "Of dead letters; null for all")
    ),
}

TAGS = {
    "Decisions": "Flags for thin clients and REST callers.",
    "SDKs": "What official SDKs ask while they decide by themselves.",
    "Events": "What SDKs send. An event is stored before it is acknowledged.",
    "Aliases": "Several ids of one user.",
    "Older SDKs": "Paths of earlier versions.",
    "Probes": "For load balancers and monitoring.",
    "Operators": "Data of the console. Every request needs the admin token or a session.",
    "Pages": "For people.",
}

DOCUMENT: Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "FME gateway",
        "version": __version__,
        "description": (
            "A gateway service for VWO/Wingify Feature Management & Experimentation. "
            'Errors are `{"status": 0, "error": "what is wrong"}` everywhere. HEAD is answered wherever GET is.'
        ),
    },
    "servers": [{"url": "/"}],
    "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
    "paths": {**DECISIONS, **SDKS, **OPERATING},
    "components": {
        "schemas": SCHEMAS,
        "securitySchemes": {
            "adminToken": {
                "type": "http",
                "scheme": "bearer",
                "description": "ADMIN_TOKEN or, if it is not set, the token in DATA_DIR/admin-token",
            },
            "session": {"type": "apiKey", "in": "cookie", "name": "fme_gateway_session"},
            "webhookToken": {"type": "apiKey", "in": "header", "name": "X-Webhook-Token"},
        },
    },
}
