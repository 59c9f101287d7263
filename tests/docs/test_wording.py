"""Texts use conventional English: no banned phrase in documents, console, options, messages, log lines and comments."""

import ast
import json
import re
import tokenize

import pytest
from process import ROOT

PACKAGE = ROOT / "tornado_gateway"

# In every text, comments included: phrase -> what to write instead.
BANNED = {
    r"for good|for ever\b": "permanently",
    r"\btells?\b|\btelling\b|\btold\b": "show, report, notify",
    r"\brefus\w+": "reject",
    r"\blook(?:s|ed|ing)? at\b": "check, evaluate",
    r"\bstands? in\b": "replace",
    r"with the eyes of": "as the user",
    r"\b(?:no|some|any|every)body\b": "the actor, or the passive",
    r"\bwho is asking|\bwho asks?\b|\bfor who\b|\bof who\b|\bwhoever\b": "name the actor",
    r"\bwhat is there\b|\bwhat became of\b|\b[Ww]hat is (?:not|wrong|only|left)\b|\bof what\b": "name the thing",
    r"\b(?:1|99|999) of 100": "p99",
    r"\b[Pp]ublishers?\b": "settings API",
    r"(?<!\")(?<!garbage )\b[Cc]ollectors?\b": "events API",
    r"\btak(?:e|es|en|ing) over\b|\btakes? (?:it|them) over\b|\btook over\b": "adopt",
    r"\bgets? away\b": "deliver",
    r"\bgo(?:es)? on\b": "continue",
    r"\bunder way\b|\bon (?:its|their) way\b": "in flight",
    r"\bleft behind\b": "orphaned",
    r"\bin force\b": "in use",
    r"\bordinary life\b|\bbreath(?:e|es|ing)?\b|\bculprit\b|\blane\b": "a technical term",
}
# In texts for users only.
BANNED_FOR_READERS = {
    r"\banswer(?:s|ed|ing)?\b": "respond, return, response",
    r"\bupstream\b": "VWO",
    r"\b(?:gateway|VWO|Redis|service|server|worker|SDKs?|it) takes\b(?! (?:about|less|more|\d))": "accept",
    r"\b(?:gateway|process|worker) lives\b": "is running",
    r"\bmay not\b": "must not, is not permitted to",
}
# The value `refuse` of EVENT_QUEUE_FULL, the check "upstream" of doctor, the value `refused` of a metric, and an error
# of the operating system.
ALLOWED = (
    *("drop or refuse", "refuse returns 503", "EVENT_QUEUE_FULL=refuse"),
    "See the upstream findings",
    '"delivered", "refused" or "failed"',
    "connect|refused",
    "(key|upstream)-",
)

DOCUMENTS_FOR_MAINTAINERS = {"architecture.md", "compiled-build.md"}
ROOMS_FOR_READERS = ("cli", "config", "console")


def relative(path):
    return str(path.relative_to(ROOT))


def markdown_texts(path):
    """Yield the lines of a document without code and, in the changelog, without released versions."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = re.split(r"^## \d", text, maxsplit=1, flags=re.MULTILINE)[0]
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'<a id="[^"]*"></a>', "", text)
    yield from re.sub(r"`[^`]*`", "`code`", text).split("\n\n")


def python_texts(path):
    """Yield comments, docstrings and all strings with a space."""
    with tokenize.open(path) as file:
        source = file.read()
    comments = [""]
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            comments[-1] += " " + token.string.lstrip("# ")
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            comments.append("")
    yield from filter(None, comments)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.value


def script_texts(path):
    """Yield the lines of a script, configuration or page of the console."""
    yield from path.read_text(encoding="utf-8").splitlines()


def json_texts(path):
    def walk(value):
        if isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, str) and name in ("title", "description", "summary", "legendFormat", "error"):
                    yield item
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)

    yield from walk(json.loads(path.read_text(encoding="utf-8")))


READERS = {".md": markdown_texts, ".py": python_texts, ".json": json_texts}
PATHS = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *PACKAGE.rglob("*.py"),
        *PACKAGE.rglob("*.lua"),
        *(
            path
            for path in (PACKAGE / "console" / "web").iterdir()
            if path.suffix in (".js", ".html") and path.name != "uPlot.iife.min.js"
        ),
        PACKAGE / "console" / "openapi.json",
        *ROOT.glob("conf/*.env"),
        *ROOT.glob("conf/*.yaml"),
        *ROOT.glob("conf/*.service"),
        *ROOT.glob("conf/kubernetes/*"),
        ROOT / "conf" / "grafana-dashboard.json",
        *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
        ROOT / "Dockerfile",
        ROOT / "docker-compose.yaml",
    )
)


def is_for_readers(path):
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0] in ROOMS_FOR_READERS
    return path.name not in DOCUMENTS_FOR_MAINTAINERS and "scripts" not in path.parts


def findings(path):
    """Return "phrase -> instead: text" for every banned phrase of a file."""
    banned = BANNED | BANNED_FOR_READERS if is_for_readers(path) else BANNED
    found = []
    for text in READERS.get(path.suffix, script_texts)(path):
        text = " ".join(text.split())
        for allowed in ALLOWED:
            text = text.replace(allowed, "")
        for phrase, instead in banned.items():
            if match := re.search(phrase, text):
                start = max(match.start() - 60, 0)
                found.append(f"{match[0]!r} -> {instead}: ...{text[start : match.end() + 60]}")
    return found


@pytest.mark.parametrize("path", PATHS, ids=relative)
def test_no_text_has_a_banned_phrase(path):
    assert findings(path) == []


def test_most_texts_are_read():
    assert sum(1 for path in PATHS for _ in READERS.get(path.suffix, script_texts)(path)) > 3000


@pytest.mark.parametrize(
    "text",
    ["the worker is gone for good", "VWO refused it", "it is looking at it", "1 of 100 decisions", "if nobody waits"],
)
def test_phrases_are_found(text):
    assert any(re.search(phrase, text) for phrase in BANNED)
