"""Files of expected decisions: cases with a feature, a visitor and the expectation. YAML, which includes JSON.

All mistakes of a file are reported at once, each with the number of its case and its line.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import yaml

from tornado_gateway.environments.evaluation import has_address
from tornado_gateway.errors import GatewayError
from tornado_gateway.insight.suggestions import suggested

MOST_BYTES = 4 * 1024 * 1024  # of a file, which PyYAML reads in some ten seconds
MOST_NODES = 500_000
Json = dict[str, Any]


class CasesError(GatewayError):
    """A file of cases that cannot be used. `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Case(NamedTuple):
    """An expected decision. `enabled`, `variation` and `values` are None if nothing is expected of them.

    `variation` is a name or an ID. `values` are the expected variables, by key.
    """

    number: int
    line: int
    feature: str
    user: str
    variables: Json
    targeting: Json
    user_agent: str | None
    ip: str | None
    enabled: bool | None
    variation: str | int | float | None
    values: Json | None

    @property
    def place(self) -> str:
        return f"case {self.number} (line {self.line})"

    @property
    def title(self) -> str:
        given = f" {orjson.dumps(self.variables).decode()}" if self.variables else ""
        return f"{self.feature} for {self.user}{given}"


class Kind(NamedTuple):
    """A kind of values, as it is named in messages."""

    name: str
    is_valid: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_json(value)


def _is_id(value: Any) -> bool:
    return _is_text(value) or (type(value) in (int, float) and math.isfinite(value) and _is_json(value))


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and has_address(value)


def _is_json_object(value: Any) -> bool:
    return isinstance(value, dict) and _is_json(value)


def _is_json(value: Any) -> bool:
    try:
        orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except TypeError:  # dates, binary values and sets of YAML, keys that are not texts, half of a character
        return False
    return True


TEXT = Kind("a text", _is_text)
ID = Kind("a text or a number", _is_id)
ADDRESS = Kind("an IPv4 or IPv6 address", _is_address)
OBJECT = Kind("names with JSON values", _is_json_object)
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
MAPPING = Kind("names with values", lambda value: isinstance(value, dict))
CASE_FIELDS = {
    "feature": TEXT,
    "user": ID,
    "variables": OBJECT,
    "targeting": OBJECT,
    "user_agent": TEXT,
    "ip": ADDRESS,
    "expect": MAPPING,
}
EXPECT_FIELDS = {"enabled": BOOLEAN, "variation": ID, "variables": OBJECT}
REQUIRED = ("feature", "user", "expect")


@dataclass(slots=True)
class _Reader:
    """Reads one file. `features` are the keys of the settings, None if they are unknown."""

    features: Collection[str] | None
    problems: list[str] = field(default_factory=list)
    seen: dict[bytes, Case] = field(default_factory=dict)

    def case(self, number: int, line: int, value: Any) -> Case | None:
        found = len(self.problems)
        place = f"case {number} (line {line})"
        if not isinstance(value, dict):
            self.problems.append(f"{place}: expected feature, user and expect, got {_shown(value)}")
            return None
        self.check_fields(place, "", value, CASE_FIELDS)
        self.problems += [f"{place}: {name} is missing" for name in REQUIRED if name not in value]
        expect = value.get("expect")
        if isinstance(expect, dict):
            self.check_expectation(f"{place}: expect", expect)
        self.check_feature(place, value.get("feature"))
        if len(self.problems) > found or not isinstance(expect, dict):
            return None
        return self.unique(_case(number, line, value, expect))

    def check_fields(self, place: str, prefix: str, value: Mapping[Any, Any], fields: Mapping[str, Kind]) -> None:
        for name, item in value.items():
            kind = fields.get(name)
            if kind is None:
                self.problems.append(f"{place}: unknown field {prefix}{name}{suggested(str(name), fields)}")
            elif not kind.is_valid(item):
                hint = ". Put it in quotes" if kind in (TEXT, ID) and not isinstance(item, str | dict | list) else ""
                self.problems.append(f"{place}: {prefix}{name}: expected {kind.name}, got {_shown(item)}{hint}")

    def check_expectation(self, place: str, expect: Mapping[str, Any]) -> None:
        self.check_fields(place.removesuffix(": expect"), "expect.", expect, EXPECT_FIELDS)
        if not expect:
            self.problems.append(f"{place}: expected at least one of {', '.join(EXPECT_FIELDS)}")
        if expect.get("enabled") is False and (expect.get("variation") is not None or expect.get("variables")):
            self.problems.append(f"{place}: a feature that is not enabled has neither variation nor variables")

    def check_feature(self, place: str, key: Any) -> None:
        if self.features is not None and isinstance(key, str) and key.strip() and key not in self.features:
            self.problems.append(f"{place}: unknown feature {key}{suggested(key, self.features)}")

    def unique(self, case: Case) -> Case | None:
        """Reject a second case with the same feature and the same visitor."""
        visitor = [case.feature, case.user, case.variables, case.targeting, case.user_agent, case.ip]
        first = self.seen.setdefault(orjson.dumps(visitor, option=orjson.OPT_SORT_KEYS), case)
        if first is case:
            return case
        self.problems.append(f"{case.place}: has the feature and visitor of {first.place}")
        return None


def read_cases(text: bytes, features: Collection[str] | None) -> list[Case]:
    """Return the cases of a file. Raise CasesError with all its mistakes."""
    if len(text) > MOST_BYTES:
        raise CasesError([f"expected at most {MOST_BYTES} bytes, got {len(text)}"])
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if _size(root, {}) > MOST_NODES:
            raise CasesError([f"expected at most {MOST_NODES} values, those of each alias counted again"])
        reader = _Reader(features)
        items = _items(root)
        cases = [_read(reader, loader, number, node) for number, node in enumerate(items, 1)]
    except RecursionError as error:
        raise CasesError(["the file is nested too deeply"]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise CasesError([_reason(error)]) from error
    if reader.problems:
        raise CasesError(reader.problems)
    return [case for case in cases if case is not None]


def _items(root: Any) -> list[Any]:
    """Return the nodes of the cases."""
    if not isinstance(root, yaml.MappingNode):
        raise CasesError(["expected a list `cases:`"])
    names = [key.value for key, _ in root.value]
    unknown = [name for name in names if name != "cases"]
    if unknown:
        raise CasesError([f"unknown field {name}{suggested(str(name), ['cases'])}" for name in unknown])
    if len(names) != 1 or not isinstance(root.value[0][1], yaml.SequenceNode) or not root.value[0][1].value:
        raise CasesError(["expected one list `cases:` with at least one case"])
    items: list[Any] = root.value[0][1].value
    return items


def _read(reader: _Reader, loader: Any, number: int, node: Any) -> Case | None:
    line = node.start_mark.line + 1
    found = len(reader.problems)
    reader.problems += [f"case {number} (line {at}): {name} is given twice" for name, at in _repeated(node)]
    case = reader.case(number, line, loader.construct_object(node, deep=True))
    return case if len(reader.problems) == found else None


def _size(node: Any, known: dict[Any, float]) -> float:
    """Return the number of nodes, those of each alias counted again; infinite for a node that contains itself."""
    if node not in known:
        known[node] = math.inf
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        known[node] = 1 + sum(_size(part, known) for part in inner)
    return known[node]


def _repeated(node: Any) -> list[tuple[str, int]]:
    """Return the names that a mapping has twice, with their lines. YAML readers use the last value silently."""
    if not isinstance(node, yaml.MappingNode):
        return []
    found = []
    names = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in names:
                found.append((key.value, key.start_mark.line + 1))
            names.add(key.value)
        found += _repeated(value)
    return found


def _case(number: int, line: int, value: Json, expect: Json) -> Case:
    return Case(
        number,
        line,
        value["feature"],
        _id_text(value["user"]),
        value.get("variables", {}),
        value.get("targeting", {}),
        value.get("user_agent"),
        value.get("ip"),
        expect.get("enabled"),
        expect.get("variation"),
        expect.get("variables"),
    )


def _id_text(value: Any) -> str:
    """Return an ID as text, a number as getFlag reads it."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{line}not YAML: {getattr(error, 'problem', None) or error}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
