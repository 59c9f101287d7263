"""The log lines in docs/operating.md are those of the code, because alerts on logs search for their wording."""

import ast
import re

from process import ROOT

PACKAGE = ROOT / "tornado_gateway"
PLACEHOLDER = r"%(?:\.\d)?[sdfgr]"
LEVELS = {"debug", "info", "warning", "error", "critical", "log"}


def formats():
    """Yield the format of every call of a logger, and the texts that are inserted into such formats."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                for part in (item for argument in node.args[:3] for item in ast.walk(argument)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


def pattern(text):
    return re.compile(".*?".join(re.escape(part) for part in re.split(PLACEHOLDER, text)), re.DOTALL)


def has_words(text):
    return len(re.findall(r"[a-z]{3,}", re.sub(PLACEHOLDER, "", text))) > 0


FORMATS = [text for text in set(formats()) if has_words(text)]


def exists(line):
    """Return whether a format has this line. "..." at its end stands for the rest of the line."""
    start, dots, rest = line.partition("...")
    if not dots or rest:
        return any(pattern(text).fullmatch(line) for text in FORMATS)
    return any(pattern(text[:end]).fullmatch(start.rstrip()) for text in FORMATS for end in ends(text))


def ends(text):
    """Yield the positions after each word of a format, from the first that has words before it."""
    yield from (match.end() for match in re.finditer(rf"{PLACEHOLDER}|\w+\S?", text) if has_words(text[: match.end()]))


def documented_lines():
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").split("\n## Logs\n")[1]
    for row in re.findall(r"^\| (`.*`) \| [A-Z]+ \|", text, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)


def test_every_documented_log_line_exists():
    lines = list(documented_lines())
    assert len(lines) > 15
    assert [line for line in lines if not exists(line)] == []


def test_other_lines_are_found_to_be_unknown():
    assert not exists("upstream refused 3 events")
    assert not exists("upstream refused 3 events: ...")
