"""Features, rules and segments described for people.

Conditions are described as the engine evaluates them. A condition that the SDKs skip, or that can never be true in its
place, has a note about it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tornado_gateway.core import Feature, Settings
from tornado_gateway.core.validation import items_of

Document = dict[str, Any]
# {"text": ...}, or {"all" | "any" | "not": [Description, ...]}; both may have a "note"
Description = dict[str, Any]

MAX_DEPTH = 60  # of described conditions; the engine has no such limit
EVERYONE = "everyone"

_KINDS = {"FLAG_ROLLOUT": "rollout", "FLAG_TESTING": "ab", "FLAG_PERSONALIZE": "personalize"}
_KIND_NAMES = {"rollout": "Rollout", "ab": "A/B test", "personalize": "Personalization", "other": "Other campaign"}
_LOCATION = {"country": "country", "region": "region", "city": "city"}
_DEVICE = {"os": "operating system", "browser_string": "browser", "device_type": "device type", "device": "device"}

SKIPPED = "the SDKs skip a location beside other conditions"
NEVER_ALONE = "never true: locations count only inside “all of”"
NEVER_MIXED = "never true: device facts count only in an “any of” that has nothing else"


# --- Features ---


def describe_features(settings: Settings) -> list[Description]:
    """Describe all features, in the order of the document."""
    document = settings.document
    campaigns = {campaign["id"]: campaign for campaign in items_of(document["campaigns"])}
    by_key: dict[str, Document] = {}
    for item in items_of(document["features"]):
        by_key.setdefault(item["key"], item)  # the first of a key wins, as in the engine
    return [
        _feature(settings, campaigns, item, settings.features[key])
        for key, item in by_key.items()
        if key in settings.features
    ]


def _feature(settings: Settings, campaigns: Mapping[Any, Document], item: Document, feature: Feature) -> Description:
    linked = [(rule, campaigns[rule["campaignId"]]) for rule in item["rules"] if rule["campaignId"] in campaigns]
    rules = [_rule(settings, rule, campaign) for rule, campaign in linked]
    return {
        "key": feature.key,
        "id": feature.id,
        "name": feature.name,
        "type": item["type"],
        "status": item["status"],
        "rules": rules,
        "variables": _variable_names(rules),
        "holdouts": [_holdout(settings, holdout.id) for holdout in feature.holdouts],
        "metrics": [_metric(metric) for metric in item["metrics"]],
        "impact_campaign": (item.get("impactCampaign") or {}).get("campaignId"),
        "needs": {
            "location": feature.needs_location,
            "device": feature.needs_device,
            "lists": sorted({list_id for _, list_id in feature.list_checks}),
        },
    }


def _variable_names(rules: Sequence[Description]) -> list[Description]:
    found: dict[str, Description] = {}
    for rule in rules:
        for variation in rule["variations"]:
            for variable in variation["variables"]:
                found.setdefault(variable["key"], {"key": variable["key"], "type": variable["type"]})
    return list(found.values())


def _metric(metric: Document) -> Description:
    return {
        "identifier": metric["identifier"],
        "type": metric["type"],
        "revenue_property": metric.get("revenueProp"),
    }


def _holdout(settings: Settings, holdout_id: object) -> Description:
    document = next(item for item in items_of(settings.document.get("holdouts")) if item["id"] == holdout_id)
    audience = describe_segment(document["segments"], settings.document)
    percent = document["percentTraffic"]
    return {
        "id": holdout_id,
        "name": document["name"],
        "percent": percent,
        "is_global": document["isGlobal"],
        "segment": audience,
        "text": f"Withheld {_reach(audience, percent)}",
    }


# --- Rules ---


def _rule(settings: Settings, rule: Document, campaign: Document) -> Description:
    kind = _KINDS.get(campaign["type"], "other")
    items = items_of(campaign["variations"])
    named = [item for item in items if item["id"] == rule.get("variationId")] or items
    shown = named if kind in ("ab", "other") else named[:1]
    segment = campaign["segments"] if kind == "ab" else (shown[0].get("segments") if shown else None)
    percent = campaign.get("percentTraffic") if kind == "ab" else (shown[0]["weight"] if shown else None)
    audience = describe_segment(segment, settings.document)
    is_forced = kind == "ab" and bool(campaign.get("isForcedVariationEnabled"))
    ranges = _ranges(settings, campaign)
    variations = [_variation(settings, item, kind, ranges, is_forced) for item in shown]
    return {
        "kind": kind,
        "rule_key": rule["ruleKey"],
        "campaign": {
            "id": campaign["id"],
            "key": campaign["key"],
            "name": campaign["name"],
            "status": campaign["status"],
        },
        "who": sentence(audience),
        "segment": audience,
        "percent": percent,
        "variations": variations,
        "group": _group(settings.document, campaign["id"], shown, kind),
        "text": _rule_text(kind, audience, percent, variations),
    }


def _ranges(settings: Settings, campaign: Document) -> Mapping[Any, tuple[int, int]]:
    """Return the range of the 10,000 buckets for each variation."""
    ranges: dict[Any, tuple[int, int]] = {}
    for variation in settings.variations_by_key.get(campaign["key"], ()):
        ranges.setdefault(variation.id, (variation.start, variation.end))
    return ranges


def _variation(
    settings: Settings, item: Document, kind: str, ranges: Mapping[Any, tuple[int, int]], is_forced: bool
) -> Description:
    first, last = ranges.get(item["id"], (0, 0))
    listed = describe_segment(item.get("segments"), settings.document) if is_forced and item.get("segments") else None
    return {
        "id": item["id"],
        "name": item["name"],
        "weight": item["weight"],
        "buckets": {"from": first, "to": last} if kind == "ab" and first > 0 else None,
        "listed": listed and {"segment": listed, "text": f"always for {sentence(listed)}"},
        "variables": [
            {"key": variable["key"], "type": variable["type"], "value": variable["value"]}
            for variable in items_of(item.get("variables"))
        ],
    }


def _rule_text(kind: str, audience: Description, percent: object, variations: Sequence[Description]) -> str:
    names = ", ".join(f"{item['name']} {_percent(item['weight'])}" for item in variations)
    shown = names if kind == "ab" else "".join(item["name"] for item in variations[:1])
    return f"{_KIND_NAMES[kind]} {_reach(audience, percent)}: {shown}"


def _reach(audience: Description, percent: object) -> str:
    """Describe the audience of a rule, and the share of it that is included."""
    is_all = percent in (100, None)
    if audience.get("text") == EVERYONE:
        return f"for {EVERYONE}" if is_all else f"for {_percent(percent)} of all visitors"
    share = "" if is_all else f"for {_percent(percent)} of the visitors "
    return f"{share}when {sentence(audience)}"


def _group(document: Document, campaign_id: object, shown: Sequence[Document], kind: str) -> Description | None:
    members = document.get("campaignGroups") or {}
    personal = f"{campaign_id}_{shown[0]['id']}" if shown else ""
    number = members.get(personal if kind == "personalize" else str(campaign_id))
    group = (document.get("groups") or {}).get(str(number)) if number is not None else None
    if group is None:
        return None
    names = {str(item["id"]): item["name"] for item in items_of(document["campaigns"])}
    called = {member: names.get(member.partition("_")[0], member) for member in group.get("campaigns") or ()}
    is_random = group.get("et", 1) == 1
    return {
        "id": str(number),
        "name": group.get("name"),
        "campaigns": [{"member": member, "name": name} for member, name in called.items()],
        "chosen_by": "random" if is_random else "priority",
        "text": _group_text(group, called, is_random),
    }


def _group_text(group: Document, called: Mapping[str, str], is_random: bool) -> str:
    text = f"A visitor sees only one of {_listed(list(called.values()), 'and')}"
    if is_random:
        return f"{text}, drawn with equal chances"
    priority = [called.get(member, member) for member in group.get("p") or ()]
    weights = [f"{called.get(member, member)} {_percent(weight)}" for member, weight in (group.get("wt") or {}).items()]
    first = f", {_listed(priority, 'then')} first" if priority else ""
    others = f", otherwise drawn: {', '.join(weights)}" if weights else ""
    return text + first + others


# --- Segments ---


def describe_segment(segment: object, document: Document) -> Description:
    """Describe a segment as a tree; without a segment, everyone."""
    if not segment:
        return {"text": EVERYONE}
    return _simplified(_node(segment, document, 0))


def describe_node(node: object, document: Document) -> str:
    """Describe one node without its children, for the steps of a trace."""
    if isinstance(node, dict) and len(node) > 1 and set(node) <= {*_LOCATION, *_DEVICE}:
        joint = " or " if set(node) <= set(_DEVICE) else " and "
        return joint.join(_fact(name, node[name]) for name in node)
    tree = _node(node, document, 0)
    for name, title in (("all", "all of"), ("any", "any of"), ("not", "not")):
        if name in tree:
            return title
    return str(tree["text"])


def sentence(tree: Description) -> str:
    """Return the tree as one sentence."""
    if "text" in tree:
        text: str = tree["text"]
        return f"{text} ({tree['note']})" if "note" in tree else text
    if "not" in tree:
        return f"not {_inner(tree['not'][0])}"
    joint = " and " if "all" in tree else " or "
    return joint.join(map(_inner, tree.get("all") or tree.get("any") or [])) or "no visitor"


def _inner(tree: Description) -> str:
    text = sentence(tree)
    return f"({text})" if len(tree.get("all") or tree.get("any") or ()) > 1 else text


def _node(node: object, document: Document, depth: int) -> Description:
    if not isinstance(node, dict) or not node:
        return {"text": f"a malformed condition: {_shown(node)}", "note": "aborts the decision"}
    if depth > MAX_DEPTH:
        return {"text": "more conditions, nested too deeply to be shown"}
    name, operand = next(iter(node.items()))
    if name == "and" and isinstance(operand, list):
        return _all_of(operand, document, depth)
    if name == "or" and isinstance(operand, list):
        return _any_of(operand, document, depth)
    if name == "not":
        return {"not": [_node(operand, document, depth + 1)]}
    return _condition(name, operand, document)


def _all_of(nodes: list[Any], document: Document, depth: int) -> Description:
    located = {key for node in nodes if isinstance(node, dict) for key in _LOCATION if key in node}
    is_checked = len(located) == len(nodes)
    tree = [_noted(_node(node, document, depth + 1), None if is_checked else SKIPPED, node) for node in nodes]
    return {"all": tree}


def _any_of(nodes: list[Any], document: Document, depth: int) -> Description:
    keys = [key for node in nodes if isinstance(node, dict) for key in node if key in _DEVICE]
    is_checked = len(keys) == len(nodes)
    tree = []
    for node in nodes:
        inner = _node(node, document, depth + 1)
        if isinstance(node, dict) and any(key in _DEVICE for key in node):
            inner.pop("note", None)
            if not is_checked:
                inner["note"] = NEVER_MIXED
        tree.append(inner)
    return {"any": tree}


def _noted(tree: Description, note: str | None, node: object) -> Description:
    if isinstance(node, dict) and any(key in _LOCATION for key in node):
        tree.pop("note", None)
        if note:
            tree["note"] = note
    return tree


def _simplified(tree: Description) -> Description:
    """Replace a list of one by its member, and join alternatives of the same subject."""
    for name in ("all", "any"):
        if name in tree:
            inner = [_simplified(item) for item in tree[name]]
            if len(inner) == 1:
                return inner[0]
            joined = _joined(inner) if name == "any" else None
            return joined or {name: inner}
    return {"not": [_simplified(tree["not"][0])]} if "not" in tree else tree


def _joined(tree: Sequence[Description]) -> Description | None:
    subjects = {item["text"].partition(" is ")[0] for item in tree if "text" in item and " is " in item["text"]}
    if len(subjects) != 1 or any("text" not in item or "note" in item for item in tree):
        return None
    values = [item["text"].partition(" is ")[2] for item in tree]
    if any(value.startswith(_COMPARED) for value in values) or len(values) != len(tree):
        return None
    return {"text": f"{subjects.pop()} is {_listed(values, 'or')}"}


# --- Conditions ---


def _condition(name: str, operand: Any, document: Document) -> Description:
    if name in _LOCATION:
        return {"text": _fact(name, operand), "note": NEVER_ALONE}
    if name in _DEVICE:
        return {"text": _fact(name, operand), "note": NEVER_MIXED}
    describe = _CONDITIONS.get(name)
    if describe is None:
        return {"text": f"{name} is {_shown(operand)}", "note": "never true: the engine does not know this condition"}
    return describe(operand, document)


def _fact(name: str, operand: object) -> str:
    values = operand if isinstance(operand, list) else [operand]
    subject = _LOCATION.get(name) or _DEVICE[name]
    return _or_text(subject, [str(value) for value in values])


def _or_text(subject: str, operands: Sequence[str]) -> str:
    if all(_OPERAND.match(operand) is None for operand in operands):
        return f"{subject} is {_listed(operands, 'or')}"
    return " or ".join(_compared(subject, operand) for operand in operands)


def _custom_variable(operand: Any, document: Document) -> Description:
    if not isinstance(operand, dict) or not operand:
        return {"text": f"a malformed custom variable: {_shown(operand)}", "note": "aborts the decision"}
    name, wanted = next(iter(operand.items()))
    subject = "the user’s uuid or id" if name == "_vwoUserId" else name
    return {"text": _compared(subject, wanted if isinstance(wanted, str) else _shown(wanted))}


def _user(operand: Any, document: Document) -> Description:
    return {"text": f"user id is {_listed([item.strip() for item in str(operand).split(',')], 'or')}"}


def _compared_as(subject: str) -> Callable[[Any, Document], Description]:
    return lambda operand, document: {"text": _compared(subject, str(operand))}


def _web_campaign(operand: Any, document: Document) -> Description:
    text = str(operand).strip()
    for form, text_form in _WEB_FORMS:
        if found := form.fullmatch(text):
            return {"text": text_form.format(*found.groups())}
    return {"text": f"web test {text}", "note": "never true: not a campaign"}


def _stored_feature(operand: Any, document: Document) -> Description:
    if not isinstance(operand, dict) or not operand:
        return {"text": f"a malformed feature condition: {_shown(operand)}", "note": "aborts the decision"}
    feature_id, flag = next(iter(operand.items()))
    keys = {str(item["id"]): item["key"] for item in items_of(document["features"])}
    has = {"on": "has", "off": "has not"}.get(flag, "has or has not")
    return {"text": f"the visitor {has} been decided on {keys.get(str(feature_id), f'feature {feature_id}')} before"}


def _compared(subject: str, operand: str) -> str:
    """Describe an operand: `plan` and `lower(gold)` -> plan is gold in any case."""
    found = _OPERAND.match(operand)
    if found is None:
        return f"{subject} is {operand or 'empty'}"
    form, text = found[1], found[2]
    if form == "wildcard":
        stars = text.startswith("*"), text.endswith("*")
        return f"{subject} {_WILDCARDS[stars].format(text.strip('*'))}"
    return f"{subject} {_FORMS[form].format(text)}"


_OPERAND = re.compile(r"(lower|wildcard|regex|gte|gt|lte|lt|inlist)\((.*)\)")
_FORMS = {
    "lower": "is {} in any case",
    "regex": "matches {}",
    "gt": "is greater than {}",
    "gte": "is at least {}",
    "lt": "is less than {}",
    "lte": "is at most {}",
    "inlist": "is in the list {}",
}
_COMPARED = ("greater than ", "at least ", "less than ", "at most ", "in the list ")
_WILDCARDS = {
    (True, True): "contains {}",
    (True, False): "ends with {}",
    (False, True): "starts with {}",
    (False, False): "is {}",
}
_WEB_FORMS = (
    (re.compile(r"(\d+)"), "the visitor is in web test {}"),
    (re.compile(r"(\d+)_(\d+)"), "the visitor sees variation {1} of web test {0}"),
    (re.compile(r"(\d+)_!(\d+)"), "the visitor sees another variation than {1} of web test {0}"),
    (re.compile(r"!(\d+)"), "the visitor is not in web test {}"),
)
_CONDITIONS: dict[str, Callable[[Any, Document], Description]] = {
    "custom_variable": _custom_variable,
    "user": _user,
    "ua": _compared_as("user agent"),
    "ip_address": _compared_as("IP address"),
    "os_version": _compared_as("version of the operating system"),
    "browser_version": _compared_as("version of the browser"),
    "campaignVariation": _web_campaign,
    "featureId": _stored_feature,
}


# --- Texts ---


def _percent(value: object) -> str:
    return f"{value:g} %" if isinstance(value, int | float) else f"{value} %"


def _listed(items: Sequence[str], joint: str) -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {joint} {items[-1]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
