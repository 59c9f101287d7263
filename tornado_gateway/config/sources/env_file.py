"""Env files, in the grammar that systemd, `docker run --env-file`, Compose and the gateway read alike.

A line is NAME=VALUE, a comment that begins with #, or blank. A value is everything behind = up to the end of the line.
Whatever these programs read differently is a mistake, so that a file has one meaning everywhere.
"""

import re
from pathlib import Path
from typing import NamedTuple

from tornado_gateway.config.options import BY_NAME, NAMES
from tornado_gateway.config.values import Findings, Given, read_text, why

_NAME = r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)"
_ASSIGNMENT = re.compile(rf"{_NAME}=(?P<value>.*)")


class _Form(NamedTuple):
    """A form of a line that programs read differently. `expected` is the form that all read alike."""

    pattern: re.Pattern[str]
    expected: str
    reason: str
    is_of_value: bool = True  # if the value itself may have to be like this, a file can hold it


_FORMS = (
    _Form(
        re.compile(rf"\s*export\s+{_NAME}\s*=.*"),
        "{name}=VALUE without export",
        "systemd ignores such a line, and docker rejects the file",
        is_of_value=False,
    ),
    _Form(re.compile(rf"{_NAME}\s*:(\s.*)?"), "{name}=VALUE", "the line has a colon instead of =", is_of_value=False),
    _Form(
        re.compile(rf"{_NAME}(\s+=.*|=\s.*|=.*\s)"),
        "{name}=VALUE without blanks around the value",
        "systemd removes them, and docker rejects the file or keeps them",
    ),
    _Form(
        re.compile(rf"{_NAME}=[\"'].*"),
        "{name}=VALUE without quotes",
        "docker keeps the quotes, systemd and Compose remove them",
    ),
    _Form(
        re.compile(rf"{_NAME}=(.*\s)?#.*"),
        "{name}=VALUE, and the comment on a line of its own",
        "systemd and docker make it a part of the value",
    ),
    _Form(re.compile(rf"{_NAME}=.*\\.*"), "{name}=VALUE without \\", "systemd removes it"),
    _Form(re.compile(rf"{_NAME}=.*\$.*"), "{name}=VALUE without $", "Compose replaces it and the text behind it"),
)


def read_env_file(path: Path, findings: Findings) -> dict[str, Given]:
    """Return the values of a file, and report each line that is not in the grammar. No report has a value."""
    given: dict[str, Given] = {}
    for number, line in enumerate(_lines(path, findings), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        place = f"{path} line {number}"
        source = f"file {path}:{number}"
        name, problem = _mistake(line)
        if name and name not in NAMES:
            findings.add_unknown(name, f"{place}: unknown option", str)
        elif problem:
            findings.add_problem(name, source, f"{place}: expected {problem}")
        elif name in given:
            findings.add(name, source, "every variable once", f"it again after {given[name].source}")
        else:
            given[name] = Given(line.partition("=")[2], source)
    return given


def _lines(path: Path, findings: Findings) -> list[str]:
    try:
        return read_text(path).replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        findings.problems.append(
            f'--env-file (flag): expected a text file that can be read, got "{path}" ({why(error)})'
        )
        findings.broken.update(BY_NAME)  # a missing option may be set in that file
        return []


def _mistake(line: str) -> tuple[str, str]:
    """Return the name in a line, and the expected form with the reason if it has another one."""
    for form in _FORMS:
        if match := form.pattern.fullmatch(line):
            name = match["name"]
            return name, f"{form.expected.format(name=name)}: {form.reason}{_remedy(name, form)}"
    if match := _ASSIGNMENT.fullmatch(line):
        return match["name"], ""
    return "", "NAME=VALUE or a comment that begins with #"


def fits_env_file(name: str, text: str) -> bool:
    """Return whether a line of an env file can have this value."""
    return "\n" not in text and not _mistake(f"{name}={text}")[1]


def _remedy(name: str, form: _Form) -> str:
    """Return how to give a secret that has such characters."""
    option = BY_NAME.get(name)
    if option is None or not option.secret or not form.is_of_value:
        return ""
    return f". If the value has such characters, write it to a file and set {option.file_name}"
