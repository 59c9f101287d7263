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
    """Return the pattern of the lines of a format. "..." in a documented line is the value of a placeholder."""
    return re.compile(".*?".join(re.escape(part) for part in re.split(PLACEHOLDER, text)), re.DOTALL)


PATTERNS = [pattern(text) for text in set(formats()) if len(re.findall(r"[a-z]{3,}", text)) > 0]


def documented_lines():
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").split("\n## Logs\n")[1]
    for row in re.findall(r"^\| (`.*`) \| [A-Z]+ \|", text, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)


def test_every_documented_log_line_exists():
    lines = list(documented_lines())
    assert len(lines) > 15
    assert [line for line in lines if not any(found.fullmatch(line) for found in PATTERNS)] == []


def test_other_lines_are_found_to_be_unknown():
    assert not any(found.fullmatch("upstream refused 3 events") for found in PATTERNS)
