"""Values of options from text of any source, blocks of TOML files, and the problems found in them."""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tornado_gateway.config import kinds
from tornado_gateway.config.kinds import Option, is_placeholder, mask
from tornado_gateway.config.options import BY_FILE_NAME, NAMES, option_name

MAX_FILE_BYTES = 1 << 20  # of a file with options: 200 environments with all keys have about 200 KB


class Given(NamedTuple):
    """A value as text, and its source."""

    text: str
    source: str


class Invalid(NamedTuple):
    """An option that cannot be used: the value as far as it can be shown, its source, and the problem in words."""

    shown: str
    source: str
    problem: str


@dataclass(slots=True)
class Findings:
    """Problems found so far, and the options they concern, to suppress follow-up errors.

    `spell` makes the name of an option the one that its author has written.
    """

    problems: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    spell: Callable[[str], str] = str
    invalid: dict[str, Invalid] = field(default_factory=dict)  # by the names of the options
    unreadable: set[str] = field(default_factory=set)  # options with a file that cannot be read

    def add(self, name: str, source: str, expected: str, got: str, shown: str = "") -> None:
        self.add_problem(name, source, f"{self.spell(name)} ({source}): expected {expected}, got {got}", shown)

    def add_problem(self, name: str, source: str, problem: str, shown: str = "") -> None:
        self.problems.append(problem)
        self.broken.add(option_name(name))
        self.invalid.setdefault(option_name(name), Invalid(shown, source, problem))

    def add_unknown(self, key: str, problem: str, spell: Callable[[str], str], names: Collection[str] = NAMES) -> None:
        name = key.lstrip("-").replace("-", "_").upper()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f". Did you mean {spell(near[0])}?" if near else ""
        self.problems.append(f"{problem} {key}{hint}")
        self.broken.update(map(option_name, near))


def parsed(
    given: Mapping[str, Given], findings: Findings, options: Iterable[Option]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of the options by attribute, and their sources by name."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in options:
        if option.name not in given:
            continue
        text, source = given[option.name]
        if option.rejects_placeholders and is_placeholder(text.strip()):
            shown = _in_quotes(text.strip())  # no secret: the text of an example
            findings.add(option.name, source, "your own value", f"the placeholder {shown}", shown)
            continue
        try:
            values[option.attribute] = option.kind.parse(text if option.secret else text.strip())
            sources[option.name] = source
        except ValueError:
            shown = quoted(option, text)
            findings.add(option.name, source, option.expected, shown, shown)
            if option.kind is kinds.file:
                findings.unreadable.add(option.name)
    return values, sources


def read_secret_files(given: dict[str, Given], findings: Findings, directory: Path = Path()) -> None:
    """Replace every NAME_FILE by NAME with the content of that file, whose path is relative to `directory`."""
    for file_name, option in BY_FILE_NAME.items():
        if file_name not in given:
            continue
        path, source = given.pop(file_name)
        if option.name in given:
            expected = f"either {findings.spell(option.name)} or {findings.spell(file_name)}"
            got = f"{findings.spell(option.name)} as well ({given.pop(option.name).source})"
            findings.add(file_name, source, expected, got)
            continue
        try:
            content = (directory / path.strip()).read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            findings.add(file_name, source, "a text file that can be read", f"{quoted_path(path)} ({why(error)})")
            continue
        if not content:
            findings.add(file_name, source, "a file that holds the secret", f"{quoted_path(path)}, which is empty")
            continue
        given[option.name] = Given(content, f"{source} {file_name}")


class TooLargeError(ValueError):
    """A file has more than MAX_FILE_BYTES."""


def read_text(path: Path) -> str:
    """Return the text of a file. Raise OSError, TooLargeError or another ValueError, which `why` explains."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise TooLargeError(f"more than {MAX_FILE_BYTES} bytes")
    return content.decode("utf-8-sig")


def why(error: OSError | ValueError) -> str:
    """Return the reason without the content, because a decoding error has the bytes, which may be a secret."""
    if isinstance(error, OSError):
        return error.strerror or "unreadable"
    return str(error) if isinstance(error, TooLargeError) else "not UTF-8"


def quoted(option: Option, text: str) -> str:
    if option.secret:
        return _in_quotes(mask(text))
    # redis://:password@host in REDIS_HOST is a common mistake, and no reason to print the password.
    shown = re.sub(r"^([a-z]+://)?.*@", r"\1****@", text, flags=re.DOTALL | re.IGNORECASE)
    return _in_quotes(shown) + option.note(text)


def quoted_path(text: str) -> str:
    """Quote a path. Without a slash it is more likely the secret itself, given by mistake, and is masked."""
    return _in_quotes(text if "/" in text else mask(text))


def _in_quotes(text: str) -> str:
    return json.dumps(text if len(text) <= 100 else f"{text[:100]}...", ensure_ascii=False)


class Blocks(NamedTuple):
    """The blocks of a file, and the problems in its form. There are none if they cannot be read."""

    blocks: Sequence[Mapping[str, Any]]
    problems: Sequence[str]


def read_blocks(path: Path, table: str, place: str, *, may_be_empty: bool = False) -> Blocks:
    """Return the blocks `[[table]]` of a file. `place` names it at the beginning of each problem."""
    try:
        document = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return _failed(f"{place}: expected TOML, got a mistake: {error}")
    except TooLargeError:
        return _failed(f"{place}: expected at most {MAX_FILE_BYTES} bytes")
    except (OSError, ValueError) as error:
        return _failed(f"{place}: expected a text file that can be read, got one that cannot ({why(error)})")
    blocks = document.pop(table, [])
    problems = [f"{place}: unknown table or key {key}, expected [[{table}]] blocks only" for key in document]
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        return Blocks((), [*problems, f"{place}: expected [[{table}]] blocks, got another type of value"])
    if not blocks and not may_be_empty:
        return Blocks((), [*problems, f"{place}: expected one [[{table}]] or more"])
    return Blocks(blocks, problems)


def _failed(problem: str) -> Blocks:
    return Blocks((), [problem])
