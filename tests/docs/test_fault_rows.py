"""Each row of docs/spec/faults.md is named by at least one test."""

import re

import pytest
from process import ROOT

DOCUMENT = (ROOT / "docs" / "spec" / "faults.md").read_text("utf-8")
TESTS = [path for path in (ROOT / "tests").rglob("test_*.py") if not {"node_modules", "docs"} & set(path.parts)]
CASES = sorted((ROOT / "tests" / "data" / "config").glob("*.json"))

ROWS = re.findall(r"^\| ([A-Z]\d+) \|", DOCUMENT.split("## Decided differently")[0], re.M)
DECIDED_DIFFERENTLY = re.findall(r"^\| ([A-Z]\d+) \|", DOCUMENT.split("## Decided differently")[1], re.M)

ID = r"[A-HP]\d{1,2}"
LIST = rf"\b[Rr]ows? ((?:{ID}(?:, and |, | and )?)+)"  # in a docstring or a comment
NAME = r"def test_([a-hp]\d{1,2})_"
CASE = rf"\"({ID}): "  # the id of a parameter, such as "A27: a date that has passed"


def rows_in(text: str) -> set[str]:
    lists = {row for found in re.findall(LIST, text) for row in re.findall(ID, found)}
    return lists | set(re.findall(CASE, text)) | {row.upper() for row in re.findall(NAME, text)}


NAMED = {row for path in TESTS for row in rows_in(path.read_text("utf-8"))}
NAMED |= {row.upper() for path in CASES for row in re.findall(r'"id": "([a-z]\d+) ', path.read_text("utf-8"))}


def test_rows_are_numbered_without_gaps() -> None:
    letters = sorted({row[0] for row in ROWS})
    assert "".join(letters) == "ABCDEFGHP"
    for letter in letters:
        numbers = [int(row[1:]) for row in ROWS if row[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_named_by_a_test(row: str) -> None:
    assert row in NAMED


def test_exceptions_are_rows() -> None:
    assert set(DECIDED_DIFFERENTLY) <= set(ROWS)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("def test_a10_each_event():", {"A10"}),
        ('"""Rows A6, A7, and A8: each event."""', {"A6", "A7", "A8"}),
        ("# limits in bytes (row A2)", {"A2"}),
        ('"A27: a date": (', {"A27"}),
        ('"caf%C3%A4", "Rows D4 to D17"', {"D4"}),
    ],
)
def test_names_of_rows(text: str, rows: set[str]) -> None:
    assert rows_in(text) == rows
