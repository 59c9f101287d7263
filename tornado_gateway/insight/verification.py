"""Comparison of decisions with their expectations, and its results as JUnit XML."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import orjson

from tornado_gateway.insight.cases import Case

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Actual(NamedTuple):
    """A decision as it is compared. `explanation` has the lines that explain it."""

    enabled: bool
    variation: Mapping[str, Any] | None  # its id, if it is known, and its name
    variables: Mapping[str, Any]  # values by key
    explanation: Sequence[str] = ()


class Verified(NamedTuple):
    """A case with the differences between expectation and decision; it has passed if there are none."""

    case: Case
    differences: Sequence[str]
    explanation: Sequence[str] = ()


def differences(case: Case, actual: Actual) -> list[str]:
    """Return one line for each difference. Only the given expectations are compared."""
    found = []
    if case.enabled is not None and case.enabled != actual.enabled:
        found.append(_difference("enabled", case.enabled, actual.enabled))
    if case.variation is not None and not _is_variation(case.variation, actual.variation):
        shown = "name" if isinstance(case.variation, str) else "id"
        found.append(_difference("variation", case.variation, actual.variation and actual.variation.get(shown)))
    for key, value in (case.values or {}).items():
        if key not in actual.variables:
            found.append(f"variables.{key}: expected {_json(value)}, got none")
        elif not _is_equal(value, actual.variables[key]):
            found.append(_difference(f"variables.{key}", value, actual.variables[key]))
    return found


def _is_variation(expected: str | int | float, actual: Mapping[str, Any] | None) -> bool:
    return actual is not None and any(_is_equal(expected, actual.get(name)) for name in ("name", "id"))


def _is_equal(expected: Any, actual: Any) -> bool:
    """Compare as JSON: true is not 1, but 1 is 1.0."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(_is_equal(expected[key], actual[key]) for key in expected)
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(_is_equal, expected, actual))
    return isinstance(expected, bool) == isinstance(actual, bool) and bool(expected == actual)


def _difference(name: str, expected: Any, actual: Any) -> str:
    return f"{name}: expected {_json(expected)}, got {_json(actual)}"


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


# --- JUnit XML ---


def junit(results: Sequence[Verified], suite: str) -> str:
    """Return the results as a JUnit document with one suite."""
    failed = sum(1 for result in results if result.differences)
    head = f'tests="{len(results)}" failures="{failed}" errors="0"'
    return "\n".join(
        [
            '<?xml version="1.0" encoding="utf-8"?>',
            f"<testsuites {head}>",
            f"<testsuite name={_attribute(suite)} {head}>",
            *map(_testcase, results),
            "</testsuite>",
            "</testsuites>",
            "",
        ]
    )


def _testcase(result: Verified) -> str:
    case = result.case
    name = _attribute(f"{case.place}: {case.title}")
    start = f"<testcase classname={_attribute(case.feature)} name={name}"
    if not result.differences:
        return f"{start}/>"
    text = escape(_printable("\n".join([*result.differences, "", *result.explanation])))
    message = _attribute("; ".join(result.differences))
    return f"{start}><failure message={message}>{text}</failure></testcase>"


def _attribute(text: str) -> str:
    return quoteattr(_printable(text))


def _printable(text: str) -> str:
    """Replace the characters that XML cannot have."""
    return _NOT_IN_XML.sub("\ufffd", text)
