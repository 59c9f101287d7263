"""The differences of two settings documents in words, for people who look for the change that broke something.

The rules of a feature are compared together with their campaigns. Fields that have no words here are named by their
path, so that two different documents always have a difference.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

MOST_CHANGES = 200  # subjects
MOST_TEXTS = 50  # of a subject
LONGEST_VALUE = 60  # characters
DEEPEST = 20  # fields that are named, one inside the other

WHOLE = "settings"  # subject of differences outside of features, groups and holdouts

_MISSING = object()
_LISTS = {  # lists of named things, and the fields that identify one of them
    "features": ("key",),
    "campaigns": ("id",),
    "rules": ("campaignId", "variationId"),
    "variations": ("id",),
    "variables": ("key",),
    "metrics": ("identifier",),
    "holdouts": ("id",),
}
_NOUNS = {
    "features": "feature",
    "campaigns": "campaign",
    "rules": "rule",
    "variations": "variation",
    "variables": "variable",
    "metrics": "goal",
    "holdouts": "holdout",
    "groups": "group",
}
_PERCENT = {"percentTraffic": "traffic", "weight": "weight"}
_WORDS = {"isForcedVariationEnabled": "whitelisting", "impactCampaign": "impact campaign"}
_OPAQUE = {"segments": "audience", "sdkKey": "SDK key"}  # shown without values: they are long, or secret
_WHOLE = {*_OPAQUE, "value"}  # fields that are compared as one value


class Change(NamedTuple):
    """The differences of one feature, group or holdout, or of the settings as a whole."""

    subject: str
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.subject}: {', '.join(self.texts)}"


class _Thing(NamedTuple):
    noun: str
    name: str


class _Difference(NamedTuple):
    """A field that differs. `things` are the named things around it, `path` the other fields."""

    things: tuple[_Thing, ...]
    path: tuple[str, ...]
    before: object
    after: object


def differences(before: bytes, after: bytes) -> list[Change]:
    """Return the differences of two documents, none only if they are identical."""
    if before == after:
        return []
    old, new = orjson.loads(before), orjson.loads(after)
    used = _used_campaigns(old) | _used_campaigns(new)
    rules = _rules_by_feature(old) | _rules_by_feature(new)
    found: dict[str, list[str]] = {}
    arranged = list(_compared(_arranged(old, used), _arranged(new, used), (), ()))
    for difference in arranged or _compared(old, new, (), ()):
        subject, inner = _subject(difference)
        texts = found.setdefault(subject, [])
        if len(texts) <= MOST_TEXTS:
            names_rule = rules.get(subject, 0) > 1
            texts.append("further changes" if len(texts) == MOST_TEXTS else _text(inner, names_rule=names_rule))
    of_all = found.pop(WHOLE, [] if found else ["only the formatting differs"])
    changes = [Change(subject, tuple(texts)) for subject, texts in found.items()]
    if len(changes) > MOST_CHANGES:
        of_all = [*of_all, f"{len(changes) - MOST_CHANGES} further changes"]
    return changes[:MOST_CHANGES] + ([Change(WHOLE, tuple(of_all))] if of_all else [])


# --- Comparison ---


def _arranged(document: Any, used: set[str]) -> Any:
    """Return a document with each campaign inside the rules that use it. `used` are such campaigns of both."""
    if not isinstance(document, dict):
        return document
    arranged = dict(document)
    campaigns = {_id(campaign.get("id")): campaign for campaign in _things(document.get("campaigns"))}
    if _are_things(document.get("features")):
        arranged["features"] = [_with_campaigns(feature, campaigns) for feature in document["features"]]
    if _are_things(document.get("campaigns")):
        arranged["campaigns"] = [one for one in document["campaigns"] if _id(one.get("id")) not in used]
    return arranged


def _with_campaigns(feature: dict[str, Any], campaigns: Mapping[str, Any]) -> dict[str, Any]:
    if not _are_things(feature.get("rules")):
        return feature
    rules = [{"rule": rule, "campaign": campaigns.get(_id(rule.get("campaignId")))} for rule in feature["rules"]]
    return {**feature, "rules": rules}


def _used_campaigns(document: Any) -> set[str]:
    features = _things(document.get("features")) if isinstance(document, dict) else []
    return {_id(rule.get("campaignId")) for feature in features for rule in _things(feature.get("rules"))}


def _rules_by_feature(document: Any) -> dict[str, int]:
    features = _things(document.get("features")) if isinstance(document, dict) else []
    return {_name(feature): len(_things(feature.get("rules"))) for feature in features}


def _compared(before: Any, after: Any, things: tuple[_Thing, ...], path: tuple[str, ...]) -> Iterator[_Difference]:
    """Yield the fields that differ."""
    if _are_same(before, after):
        return
    field = path[-1] if path else ""
    if field in _LISTS and _are_things(before) and _are_things(after):
        yield from _compared_lists(before, after, things, path)
    elif field == "groups" and isinstance(before, dict) and isinstance(after, dict):
        for key in {**after, **before}:
            old, new = before.get(key, _MISSING), after.get(key, _MISSING)
            thing = _Thing("group", _name(new) if isinstance(new, dict) else _name(old) or key)
            yield from _compared(old, new, (*things, thing), ())
    elif isinstance(before, dict) and isinstance(after, dict) and field not in _WHOLE and len(path) < DEEPEST:
        for key in {**after, **before}:
            yield from _compared(before.get(key, _MISSING), after.get(key, _MISSING), things, (*path, key))
    else:
        yield _Difference(things, path, before, after)


def _compared_lists(
    before: list[Any], after: list[Any], things: tuple[_Thing, ...], path: tuple[str, ...]
) -> Iterator[_Difference]:
    kind = path[-1]
    old, new = _identified(before, kind), _identified(after, kind)
    for key in {**new, **old}:
        thing = _Thing(_NOUNS[kind], _name(new.get(key, old.get(key))))
        yield from _compared(old.get(key, _MISSING), new.get(key, _MISSING), (*things, thing), path[:-1])
    if [key for key in old if key in new] != [key for key in new if key in old]:
        yield _Difference(things, (*path[:-1], f"order of {'goals' if kind == 'metrics' else kind}"), None, None)


def _identified(items: list[Any], kind: str) -> dict[tuple[object, ...], Any]:
    """Return the items by the fields that identify them, and a number if they repeat."""
    seen: Counter[tuple[str, ...]] = Counter()
    found: dict[tuple[object, ...], Any] = {}
    for item in items:
        own = item["rule"] if kind == "rules" and isinstance(item.get("rule"), dict) else item
        key = tuple(_id(own.get(field)) for field in _LISTS[kind])
        found[(*key, seen[key])] = item
        seen[key] += 1
    return found


def _are_same(before: object, after: object) -> bool:
    """Return whether two values are the same JSON: 1 is not true, and not 1.0."""
    if before is _MISSING or after is _MISSING:
        return before is after
    try:
        return orjson.dumps(before, option=orjson.OPT_SORT_KEYS) == orjson.dumps(after, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # too deeply nested for orjson
        pass
    try:
        return bool(before == after)
    except RecursionError:
        return False


def _things(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _are_things(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _id(value: object) -> str:
    return _shown(value)


# --- Words ---


def _name(item: Any) -> str:
    """Return the name of a thing for people, "" if it has none."""
    if not isinstance(item, dict):
        return ""
    if "rule" in item and "campaign" in item:
        rule = item["rule"] if isinstance(item["rule"], dict) else {}
        return _name(item["campaign"]) or str(rule.get("ruleKey", ""))[:LONGEST_VALUE]
    fields = ("key", "identifier", "id") if "rules" in item else ("name", "identifier", "key", "id")
    return next((str(item[field])[:LONGEST_VALUE] for field in fields if item.get(field) not in (None, "")), "")


def _subject(difference: _Difference) -> tuple[str, _Difference]:
    """Return the feature, group or holdout of a difference, and the rest."""
    if not difference.things:
        return WHOLE, difference
    first, *rest = difference.things
    is_feature = first.noun == "feature"
    subject = first.name if is_feature and first.name else f"{first.noun} {first.name}".strip()
    if is_feature and not rest and not difference.path:
        rest = [_Thing(first.noun, "")]
    return subject, difference._replace(things=tuple(rest))


def _text(difference: _Difference, *, names_rule: bool) -> str:
    things = list(difference.things)
    rule = things.pop(0) if len(things) + len(difference.path) > 1 and things and things[0].noun == "rule" else None
    prefix = f"rule {rule.name}: " if rule is not None and names_rule else ""
    path = [step for step in difference.path if step not in ("rule", "campaign")]
    return prefix + _text_of(things, path, difference.before, difference.after)


def _text_of(things: list[_Thing], path: list[str], before: object, after: object) -> str:
    place = " of ".join(f"{thing.noun} {thing.name}".strip() for thing in reversed(things))
    if not path:
        verb = "added" if before is _MISSING else "removed" if after is _MISSING else "changed"
        return f"{place} {verb}".strip()
    field = path[-1]
    if field.startswith("order of "):
        return " of ".join(part for part in (f"{field} changed", place) if part)
    if field == "value" and things and things[-1].noun == "variable":
        return f"{place} {_shown(before)} -> {_shown(after)}"
    name = {**_PERCENT, **_WORDS, **_OPAQUE}.get(field, ".".join(path))
    named = f"{name} of {place}" if place else name
    if field in _OPAQUE:
        return f"{named} changed"
    shown: Callable[[object], str] = _percent if field in _PERCENT else _shown
    return f"{named} {shown(before)} -> {shown(after)}"


def _percent(value: object) -> str:
    return f"{value:g} %" if isinstance(value, (int, float)) and not isinstance(value, bool) else _shown(value)


def _shown(value: object) -> str:
    """Return a value as JSON, shortened."""
    if value is _MISSING:
        return "none"
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # too deeply nested for orjson
        return "a nested value"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
