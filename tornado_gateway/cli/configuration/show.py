"""The command `config`: every option with its value and source, also of an invalid configuration."""

import argparse
import sys
import textwrap
from collections.abc import Iterator
from itertools import chain, repeat

from tornado_gateway.cli.output import bullets, paint, print_json
from tornado_gateway.config import Examined, OptionRow, described, described_environments, environments_of

COLUMNS = 80
CHANGED, INVALID, DEFAULT = "*", "!", " "
_COLOURS = {CHANGED: "bold", INVALID: "red"}


def show(examined: Examined, arguments: argparse.Namespace) -> int:
    """Return the code of an invalid configuration: its values are shown, and its problems listed at the end."""
    rows = described(examined.config, examined.invalid)
    if examined.config.environments_file is not None and not examined.problems:
        rows += described_environments(environments_of(examined.config))
    if arguments.json:
        print_json([row._asdict() for row in rows])
    else:
        print(f"{CHANGED} differs from the default   {INVALID} invalid\n")
        _print_rows(rows)
    if examined.problems:
        sys.stdout.flush()
        print(f"\nInvalid configuration:\n{bullets(examined.problems)}", file=sys.stderr)
    return examined.error.exit_code if examined.problems else 0


def _print_rows(rows: list[OptionRow]) -> None:
    width = max(len(row.name) for row in rows)
    for row in rows:
        mark = INVALID if row.problem else CHANGED if row.is_changed else DEFAULT
        names = chain([row.name], repeat(""))
        for name, value in zip(names, _value_lines(row, COLUMNS - width - 4), strict=False):
            line = f"{mark if name else ' '} {name:<{width}}  {value}".rstrip()
            print(paint(line, _COLOURS[mark]) if mark in _COLOURS else line)


def _value_lines(row: OptionRow, width: int) -> Iterator[str]:
    """Yield the value with its unit and, unless it is the default, its source; wrapped only if it does not fit."""
    value = f"{row.value} {row.unit}" if row.unit and row.value else row.value
    source = "" if row.source == "default" else f"({row.source})"
    together = f"{value}  {source}".strip()
    if len(together) <= width:
        yield together
        return
    for text in filter(None, (value, source)):
        yield from textwrap.wrap(text, width, break_on_hyphens=False)
