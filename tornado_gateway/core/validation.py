"""Checks whether a settings document can be used: tables of fields, and messages (decision engine 1.1 to 1.4).

The result is that of the vendor's schema, and of rules for documents that its SDK cannot load although its schema
allows them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

MOST_PROBLEMS = 20
_KINDS_WITH_ONE_VARIATION: Final = ("FLAG_ROLLOUT", "FLAG_PERSONALIZE")


class SettingsError(ValueError):
    """The settings document cannot be used. `problems` has one line for each problem, at most 20."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


# The place of a value in the document: (path of its parent, key or index). Spelled out only for a
# problem. The parent's type is Any (see docs/compiled-build.md).
DocumentPath = tuple[Any, str | int]


def _spelled(path: DocumentPath | None) -> str:
    if path is None:
        return ""
    parent, step = path
    if isinstance(step, int):
        return f"{_spelled(parent)}[{step}]"
    return f"{_spelled(parent)}.{step}" if parent else step


YieldPoint = Callable[[], object]


def never_yield() -> None:
    """Do nothing, for callers without other work."""


def paced(items: Iterable[Any], yield_point: YieldPoint) -> Iterator[Any]:
    """Yield the items, with a yield point before each, for a loop over many that do little."""
    for item in items:
        yield_point()
        yield item


def emptied(made: list[Any] | dict[Any, Any], at_once: int) -> Iterator[None]:
    """Free objects without other users in steps of so many: freeing all of them at once would block the loop."""
    pop: Callable[[], object] = made.popitem if isinstance(made, dict) else made.pop
    while made:
        for _ in range(min(len(made), at_once)):
            pop()
        yield


class LongArray:
    """An array of a document that is not in memory as a whole: each iteration reads its items again.

    Parsed items take five times as much memory as their text.
    """

    def __init__(self, read: Callable[[], Iterator[Any]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        return self._read()


class Problems:
    """Gathers the problems of one document."""

    def __init__(self, yield_point: YieldPoint) -> None:
        self.lines: list[str] = []
        self.yield_point = yield_point

    def add(self, path: DocumentPath | None, expected: str, got: str) -> None:
        if len(self.lines) < MOST_PROBLEMS:
            self.lines.append(f"{_spelled(path) or 'document'}: expected {expected}, got {got}")


Check = Callable[[Any, DocumentPath, Problems], None]


class Field(NamedTuple):
    """One row of a table. `types` are the JSON types as Python has them; `check` looks inside."""

    name: str
    is_required: bool
    types: tuple[type, ...]
    expected: str
    check: Check | None = None


def check_document(document: object, yield_point: YieldPoint = never_yield) -> dict[str, Any]:
    """Return the document if it can be used; raise SettingsError otherwise. `yield_point` is called in between."""
    problems = Problems(yield_point)
    if not isinstance(document, dict):
        problems.add(None, "an object", _shown(document))
    else:
        _check_fields(document, _DOCUMENT, None, problems)
        if not problems.lines:
            _check_loadable(document, problems)
    if problems.lines:
        raise SettingsError(tuple(problems.lines))
    return document  # type: ignore[return-value]


def items_of(value: object) -> list[Any]:
    """Return a list that the vendor may send as `{}` if it is empty, or leave out."""
    return value if isinstance(value, list) else []


def each_of(value: object) -> Iterable[Any]:
    """Return the items of an array that may be long, and that the vendor may send as `{}` or leave out."""
    return value if isinstance(value, LongArray) else items_of(value)


def _check_fields(
    value: Mapping[str, Any], table: tuple[Field, ...], path: DocumentPath | None, problems: Problems
) -> None:
    for name, is_required, types, expected, check in table:
        if name not in value:
            if is_required:
                problems.add((path, name), expected, _shown(_ABSENT))
            continue
        item = value[name]
        if type(item) not in types:
            problems.add((path, name), expected, _shown(item))
        elif check is not None:
            check(item, (path, name), problems)


_ABSENT = object()


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "nothing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the string "{value[:40]}"'
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    return "an array" if isinstance(value, list | LongArray) else type(value).__name__


# --- Nested values ---


def _each(table: tuple[Field, ...]) -> Check:
    """Check the objects of a list."""

    def check(items: Iterable[Any], path: DocumentPath, problems: Problems) -> None:
        problems.yield_point()
        for index, item in enumerate(items):
            if type(item) is dict:
                _check_fields(item, table, (path, index), problems)
            else:
                problems.add((path, index), "an object", _shown(item))

    return check


def _each_or_empty(table: tuple[Field, ...]) -> Check:
    """Check the objects of a list, which may be `{}` when it is empty."""
    check_list = _each(table)

    def check(items: Any, path: DocumentPath, problems: Problems) -> None:
        if type(items) is not dict:
            check_list(items, path, problems)
        elif items:
            problems.add(path, "an array", "an object with keys")

    return check


def _each_of_type(types: tuple[type, ...], expected: str, is_unique: bool = False) -> Check:
    def check(items: list[Any], path: DocumentPath, problems: Problems) -> None:
        for index, item in enumerate(items):
            if type(item) not in types:
                problems.add((path, index), expected, _shown(item))
            elif is_unique and item in items[:index]:
                problems.add((path, index), "no duplicates", _shown(item))

    return check


def _object(table: tuple[Field, ...]) -> Check:
    return lambda value, path, problems: _check_fields(value, table, path, problems)


def _each_value(keys: re.Pattern[str], field: Field) -> Check:
    """Check an object whose keys are ids and whose values are alike."""

    def check(value: dict[str, Any], path: DocumentPath, problems: Problems) -> None:
        for key, item in value.items():
            if not keys.search(key):
                problems.add((path, key), f"a key like {field.name}", "this key")
            elif type(item) not in field.types:
                problems.add((path, key), field.expected, _shown(item))
            elif field.check:
                field.check(item, (path, key), problems)

    return check


def _check_weights(value: dict[str, Any], path: DocumentPath, problems: Problems) -> None:
    for key, weight in value.items():
        if _DIGITS.search(key) and type(weight) not in _NUMBER:
            problems.add((path, key), "a number", _shown(weight))


def _check_loadable(document: dict[str, Any], problems: Problems) -> None:
    """Check requirements beyond the schema, for documents that fulfil the schema."""
    if not document.get("sdkKey"):
        problems.add((None, "sdkKey"), "a string that is not empty", _shown(document.get("sdkKey", _ABSENT)))
    _check_rules(document, _check_campaigns(document, problems), problems)


def _check_campaigns(document: dict[str, Any], problems: Problems) -> set[object]:
    """Check the weights. Return the ids of the campaigns that have no variation but need one."""
    incomplete: set[object] = set()
    for index, campaign in enumerate(each_of(document["campaigns"])):
        problems.yield_point()
        incomplete.discard(campaign["id"])  # the last of an id counts
        if campaign["type"] in _KINDS_WITH_ONE_VARIATION:
            if not campaign["variations"]:
                incomplete.add(campaign["id"])
            continue
        for place, variation in enumerate(items_of(campaign["variations"])):
            if variation["weight"] and isinstance(variation["weight"], str):
                path_of_weight = (((((None, "campaigns"), index), "variations"), place), "weight")
                problems.add(path_of_weight, "a number in this type of campaign", _shown(variation["weight"]))
    return incomplete


def _check_rules(document: dict[str, Any], incomplete: set[object], problems: Problems) -> None:
    for index, feature in enumerate(each_of(document["features"])):
        problems.yield_point()
        path = ((None, "features"), index)
        if "rules" not in feature:
            problems.add((path, "rules"), "an array", _shown(_ABSENT))
        for place, rule in enumerate(feature.get("rules", ())):
            if rule["campaignId"] in incomplete:
                path_of_id = (((path, "rules"), place), "campaignId")
                problems.add(path_of_id, "a campaign with variations", f"campaign {rule['campaignId']} without")


# --- The tables ---

_DIGITS = re.compile(r"^[0-9]+$")
_DIGITS_AND_UNDERSCORES = re.compile(r"^[0-9_]+$")

_NUMBER = (int, float)
_TEXT = (str,)
_ID = (int, float, str)
_BOOLEAN = (bool,)
_ARRAY = (list,)
_OBJECT = (dict,)
_ARRAY_OR_EMPTY = (list, dict, LongArray)

_METRIC = (
    Field("id", True, _NUMBER, "a number"),
    Field("type", True, _TEXT, "a string"),
    Field("identifier", True, _TEXT, "a string"),
    Field("mca", False, _NUMBER, "a number"),
    Field("hasProps", False, _BOOLEAN, "a boolean"),
    Field("revenueProp", False, _TEXT, "a string"),
)
_VARIABLE = (
    Field("id", True, _ID, "a number or string"),
    Field("type", True, _TEXT, "a string"),
    Field("key", True, _TEXT, "a string"),
    Field("value", True, (int, float, str, bool, dict), "a number, string, boolean or object"),
)
_VARIABLES = Field("variables", False, _ARRAY_OR_EMPTY, "an array", _each_or_empty(_VARIABLE))
_VARIATION = (
    Field("id", True, _ID, "a number or string"),
    Field("name", True, _TEXT, "a string"),
    Field("weight", True, _ID, "a number or string"),
    Field("segments", False, _OBJECT, "an object"),
    _VARIABLES,
    Field("startRangeVariation", False, _NUMBER, "a number"),
    Field("endRangeVariation", False, _NUMBER, "a number"),
)
_CAMPAIGN = (
    Field("id", True, _ID, "a number or string"),
    Field("type", True, _TEXT, "a string"),
    Field("key", True, _TEXT, "a string"),
    Field("name", True, _TEXT, "a string"),
    Field("status", True, _TEXT, "a string"),
    Field("variations", True, _ARRAY_OR_EMPTY, "an array", _each_or_empty(_VARIATION)),
    Field("segments", True, _OBJECT, "an object"),
    Field("percentTraffic", False, _NUMBER, "a number"),
    Field("isForcedVariationEnabled", False, _BOOLEAN, "a boolean"),
    Field("isAlwaysCheckSegment", False, _BOOLEAN, "a boolean"),
)
_RULE = (
    Field("type", True, _TEXT, "a string"),
    Field("ruleKey", True, _TEXT, "a string"),
    Field("campaignId", True, _NUMBER, "a number"),
    Field("variationId", False, _NUMBER, "a number"),
)
_FEATURE = (
    Field("id", True, _ID, "a number or string"),
    Field("key", True, _TEXT, "a string"),
    Field("name", True, _TEXT, "a string"),
    Field("type", True, _TEXT, "a string"),
    Field("status", True, _TEXT, "a string"),
    Field("metrics", True, _ARRAY, "an array", _each(_METRIC)),
    Field("rules", False, _ARRAY, "an array", _each(_RULE)),
    Field("impactCampaign", False, _OBJECT, "an object"),
    _VARIABLES,
)
_HOLDOUT = (
    Field("id", True, _ID, "a number or string"),
    Field("name", True, _TEXT, "a string"),
    Field("segments", True, _OBJECT, "an object"),
    Field("featureIds", True, _ARRAY, "an array", _each_of_type(_NUMBER, "a number")),
    Field("isGlobal", True, _BOOLEAN, "a boolean"),
    Field("percentTraffic", True, _NUMBER, "a number"),
    Field("metrics", True, _ARRAY, "an array", _each(_METRIC)),
)
_GROUP = Field(
    "123",
    True,
    _OBJECT,
    "an object",
    _object(
        (
            Field("name", False, _TEXT, "a string"),
            Field("campaigns", False, _ARRAY, "an array", _each_of_type(_TEXT, "a string", is_unique=True)),
            Field("et", False, _NUMBER, "a number"),
            Field("p", False, _ARRAY, "an array", _each_of_type(_TEXT, "a string")),
            Field("wt", False, _OBJECT, "an object", _check_weights),
        )
    ),
)
_DOCUMENT = (
    Field("version", True, _ID, "a number or string"),
    Field("accountId", True, _ID, "a number or string"),
    Field("sdkKey", False, _TEXT, "a string"),
    Field("features", True, _ARRAY_OR_EMPTY, "an array", _each_or_empty(_FEATURE)),
    Field("campaigns", True, _ARRAY_OR_EMPTY, "an array", _each_or_empty(_CAMPAIGN)),
    Field("groups", False, _OBJECT, "an object", _each_value(_DIGITS, _GROUP)),
    Field(
        "campaignGroups",
        False,
        _OBJECT,
        "an object",
        _each_value(_DIGITS_AND_UNDERSCORES, Field("123 or 123_4", True, _NUMBER, "a number")),
    ),
    Field("holdouts", False, _ARRAY_OR_EMPTY, "an array", _each_or_empty(_HOLDOUT)),
)
