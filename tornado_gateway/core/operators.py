"""Operands of conditions: `lower(x)`, `wildcard(*x*)`, `regex(x)`, `gte(1.2)`, plain text (decision engine 4.2).

`value_matcher` and `version_matcher` turn an operand into a function `value -> does it match?` once, when the settings
are compiled. They differ in the treatment of numbers: see `normalise`.
"""

import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from tornado_gateway.core.patterns import compile_pattern

Matcher = Callable[[Any], bool]
Text = Callable[[Any], str | None]  # None if the value matches no operand
Version = tuple[int, ...]

# Values come from clients. Lists, objects and texts above this length match no operand (decision engine 4.2.4).
LONGEST_VALUE: Final = 4_096
# The number that a text is, is read once from a longer text, however many conditions compare it.
_LONG_NUMBER: Final = 32

# The last form fits everything, so a search always ends. Text after the bracket is tolerated by the first three.
_FORMS = (
    ("lower", re.compile(r"lower\((.*)\)")),
    ("wildcard", re.compile(r"wildcard\((.*)\)")),
    ("regex", re.compile(r"regex\((.*)\)")),
    ("gt", re.compile(r"gt\(([\d.]+)\)$")),
    ("gte", re.compile(r"gte\(([\d.]+)\)$")),
    ("lt", re.compile(r"lt\(([\d.]+)\)$")),
    ("lte", re.compile(r"lte\(([\d.]+)\)$")),
    ("equal", re.compile(r"(.*)", re.DOTALL)),
)
_DOTTED_NUMBER = re.compile(r"(\d+\.)*\d+")
_LARGEST_EXACT_INTEGER: Final = 2**53
_NAMED_NUMBERS = frozenset({"inf", "infinity", "nan"})


def value_matcher(operand: str) -> Matcher:
    """Match custom variables and user agents: both sides are normalised, so 20, "20.0" and "020" are the same."""
    kind, text = _parse(operand)
    return _MATCHERS[kind](normalise(text), value_text)


def version_matcher(operand: object) -> Matcher:
    """Match versions and IP addresses: "1.10" stays "1.10", and two dotted numbers are equal as versions.

    The SDK for Python normalises here too, which makes 1.10 smaller than 1.9; the other SDKs do not, and neither do we.
    """
    kind, text = _parse(str(operand))
    text = text.strip().replace('"', "")
    if kind == "equal" and _DOTTED_NUMBER.fullmatch(text):
        return _equal_version(text)
    return _MATCHERS[kind](text, _plain_text)


def normalise(text: str) -> str:
    """Return the one spelling of a number: "20.0", "020" and "2e1" become "20"; other texts stay as they are."""
    first = text[:1]
    if not first or (first.isalpha() and (first not in "iInN" or text.rstrip().lower() not in _NAMED_NUMBERS)):
        return text  # sooner than by an exception
    return _normalised(text) if len(text) <= _LONG_NUMBER else _normalised_once(text)


def _normalised(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)


_normalised_once = lru_cache(maxsize=64)(_normalised)


def value_text(value: object) -> str | None:
    """Return the normalised text of a value that a client sent. Booleans read as in JSON, null as the empty text.

    None for lists, objects and long texts: they match no operand.
    """
    kind = type(value)
    if kind is str:
        return normalise(value) if len(value) <= LONGEST_VALUE else None  # type: ignore[arg-type]
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return ""
    if kind is int and -_LARGEST_EXACT_INTEGER <= value <= _LARGEST_EXACT_INTEGER:  # type: ignore[operator]
        return str(value)
    return normalise(str(value)) if isinstance(value, int | float) else None


def _plain_text(value: object) -> str | None:
    """Return the text of a value without normalising it; None as in `value_text`."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
    return text if text is None or len(text) <= LONGEST_VALUE else None


def list_value(value: object) -> str | None:
    """Return the text under which a value is looked up in an attribute list: text as it is, numbers in one spelling.

    None for values that are in no list: lists, objects and long texts.
    """
    if isinstance(value, str):
        return value if len(value) <= LONGEST_VALUE else None
    return value_text(value)


def _parse(operand: str) -> tuple[str, str]:
    """Return the kind of an operand and the text inside its brackets; wildcards are distinguished by their stars."""
    for kind, form in _FORMS:
        if found := form.match(operand):
            return _parse_wildcard(found[1]) if kind == "wildcard" else (kind, found[1])
    raise AssertionError("the last form fits everything")


def _parse_wildcard(text: str) -> tuple[str, str]:
    return _WILDCARDS[text.startswith("*"), text.endswith("*")], text.strip("*")


_WILDCARDS = {(True, True): "contains", (True, False): "ends", (False, True): "starts", (False, False): "equal"}


def _equal(want: str, text: Text) -> Matcher:
    if text is value_text and not _is_number(want) and len(want) <= LONGEST_VALUE:
        # Normalising a value can only turn it into a number, so it cannot make it equal to this.
        return lambda value: (value if type(value) is str else value_text(value)) == want
    return lambda value: text(value) == want


def _lower(want: str, text: Text) -> Matcher:
    return _compared_texts(lambda have, lowered: have.lower() == lowered, want.lower(), text)


def _contains(want: str, text: Text) -> Matcher:
    return _compared_texts(lambda have, part: part in have, want, text)


def _starts(want: str, text: Text) -> Matcher:
    return _compared_texts(str.startswith, want, text)


def _ends(want: str, text: Text) -> Matcher:
    return _compared_texts(str.endswith, want, text)


def _compared_texts(compare: Callable[[str, str], bool], want: str, text: Text) -> Matcher:
    def matches(value: object) -> bool:
        have = text(value)
        return have is not None and compare(have, want)

    return matches


def _regex(pattern: str, text: Text) -> Matcher:
    search = compile_pattern(pattern)
    if search is None:
        return lambda value: False

    def matches(value: object) -> bool:
        have = text(value)
        return have is not None and search(have)

    return matches


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[str, Text], Matcher]:
    def matcher(want_text: str, text: Text) -> Matcher:
        want = _version(want_text)
        if want is None:  # an operand of stray dots, gt(.): such texts are compared part by part as texts
            return _compared_texts(
                lambda have, dots: _version(have) is None and compare(have.split("."), dots.split(".")), want_text, text
            )
        return _compared(compare, want, text)

    return matcher


# A function of its own: two functions inside one refer to each other in a compiled build.
def _compared(compare: Callable[[Any, Any], bool], want: Version, text: Text) -> Matcher:
    def matches(value: object) -> bool:
        if type(value) is int and 0 < value < _LARGEST_EXACT_INTEGER:
            return compare((value,), want)
        have_text = text(value)
        have = None if have_text is None else _version(have_text)
        return have is not None and compare(have, want)

    return matches


def _equal_version(want_text: str) -> Matcher:
    want = _version(want_text)

    def matches(value: object) -> bool:
        text = _plain_text(value)
        return text is not None and (text == want_text or _version(text) == want)

    return matches


def _version(text: str) -> Version | None:
    """Return the parts of a dotted number without trailing zeros (1.2 equals 1.2.0), None for other texts."""
    return _parts(text) if len(text) <= _LONG_NUMBER else _parts_once(text)


def _parts(text: str) -> Version | None:
    parts = text.split(".")
    if len(text) > LONGEST_VALUE or not all(map(str.isdecimal, parts)):
        return None
    numbers = list(map(int, parts))
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


_parts_once = lru_cache(maxsize=64)(_parts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_MATCHERS: dict[str, Callable[[str, Text], Matcher]] = {
    "equal": _equal,
    "lower": _lower,
    "contains": _contains,
    "starts": _starts,
    "ends": _ends,
    "regex": _regex,
    "gt": _comparison(operator.gt),
    "gte": _comparison(operator.ge),
    "lt": _comparison(operator.lt),
    "lte": _comparison(operator.le),
}
