"""Operands of conditions: `lower(x)`, `wildcard(*x*)`, `regex(x)`, `gte(1.2)`, plain text (decision engine 4.2).

`value_matcher` and `version_matcher` turn an operand into a function `value -> does it match?` once, when the settings
are compiled. They differ in the treatment of numbers: see `normalise`.
"""

import operator
import re
import warnings
from collections.abc import Callable
from typing import Any, Final

Matcher = Callable[[Any], bool]
Text = Callable[[Any], str]
Version = tuple[int, ...]

# A longer value matches no regex and is no version: patterns may take exponential time, and values come from clients.
LONGEST_VALUE: Final = 4_096

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
    return _MATCHERS[kind](text, str)


def normalise(text: str) -> str:
    """Return the one spelling of a number: "20.0", "020" and "2e1" become "20"; other texts stay as they are."""
    first = text[:1]
    if not first or (first.isalpha() and (first not in "iInN" or text.rstrip().lower() not in _NAMED_NUMBERS)):
        return text  # sooner than by an exception
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)


def value_text(value: object) -> str:
    """Return the normalised text of a value that a client sent. Booleans read as in JSON, null as the empty text."""
    kind = type(value)
    if kind is str:
        return normalise(value)  # type: ignore[arg-type]
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return ""
    if kind is int and -_LARGEST_EXACT_INTEGER <= value <= _LARGEST_EXACT_INTEGER:  # type: ignore[operator]
        return str(value)
    return normalise(str(value))


def list_value(value: object) -> str:
    """Return the text under which a value is looked up in an attribute list: text as it is, numbers in one spelling."""
    return value if isinstance(value, str) else value_text(value)


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
    if text is value_text and not _is_number(want):
        # Normalising a value can only turn it into a number, so it cannot make it equal to this.
        return lambda value: (value if type(value) is str else value_text(value)) == want
    return lambda value: text(value) == want


def _lower(want: str, text: Text) -> Matcher:
    want = want.lower()
    return lambda value: text(value).lower() == want


def _contains(want: str, text: Text) -> Matcher:
    return lambda value: want in text(value)


def _starts(want: str, text: Text) -> Matcher:
    return lambda value: text(value).startswith(want)


def _ends(want: str, text: Text) -> Matcher:
    return lambda value: text(value).endswith(want)


def _regex(pattern: str, text: Text) -> Matcher:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set": the pattern is not ours
            search = re.compile(pattern).search
    except (re.error, OverflowError, RecursionError):
        return lambda value: False

    def matches(value: object) -> bool:
        subject = text(value)
        return len(subject) <= LONGEST_VALUE and search(subject) is not None

    return matches


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[str, Text], Matcher]:
    def matcher(want_text: str, text: Text) -> Matcher:
        want = _version(want_text)
        if want is None:  # an operand of stray dots, gt(.): such texts are compared part by part as texts
            return lambda value: _version(text(value)) is None and compare(text(value).split("."), want_text.split("."))
        return _compared(compare, want, text)

    return matcher


# A function of its own: two functions inside one refer to each other in a compiled build.
def _compared(compare: Callable[[Any, Any], bool], want: Version, text: Text) -> Matcher:
    def matches(value: object) -> bool:
        if type(value) is int and 0 < value < _LARGEST_EXACT_INTEGER:
            return compare((value,), want)
        have = _version(text(value))
        return have is not None and compare(have, want)

    return matches


def _equal_version(want_text: str) -> Matcher:
    want = _version(want_text)

    def matches(value: object) -> bool:
        text = str(value)
        return text == want_text or _version(text) == want

    return matches


def _version(text: str) -> Version | None:
    """Return the parts of a dotted number without trailing zeros (1.2 equals 1.2.0), None for other texts."""
    parts = text.split(".")
    if len(text) > LONGEST_VALUE or not all(map(str.isdecimal, parts)):
        return None
    numbers = list(map(int, parts))
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


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
