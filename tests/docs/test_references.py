"""References resolve: sections of the two specifications, links and anchors of documents, files of the repository."""

import re

import pytest
from process import ROOT

SPECIFICATIONS = {"decision engine": "decisions.md", "wire contract": "wire-contract.md"}
# Text files that are written by hand.
PATTERNS = {
    "tornado_gateway": ("**/*.py", "**/*.js", "**/*.html", "**/*.css", "**/*.lua", "**/openapi.json"),
    "tests": ("*.py", "*/*.py", "sdk/*.mjs", "sdk/*.cjs", "sdk/*.html"),
    "docs": ("**/*.md",),
    "benchmarks": ("*.py", "README.md"),
    "scripts": ("*",),
    "conf": ("*", "kubernetes/*"),
    ".": ("*.md", "*.py", "*.toml", "*.yaml", "Dockerfile"),
}
FILES = sorted(
    path for folder, patterns in PATTERNS.items() for pattern in patterns for path in (ROOT / folder).glob(pattern)
)
FILES = [path for path in FILES if path.is_file() and path.name != "test_references.py"]
MARKDOWN = [path for path in FILES if path.suffix == ".md"]

_SECTION = r"\b(?:[A-E]|\d+)(?:\.\d+)*"
_LIST = rf"{_SECTION}(?:,? row \d+)?(?:(?:,| and| to)\s+{_SECTION}(?:,? row \d+)?)*"
REFERENCE = re.compile(rf"\b({'|'.join(SPECIFICATIONS)})\s+(?:sections? )?({_LIST})\b", re.IGNORECASE)
FORMER_SPELLINGS = re.compile(r"\b(?:decision-engine|decisions spec\w*|wire-contract)\s+\d", re.IGNORECASE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MENTION = re.compile(
    r"(?<![\w/.-])((?:docs|tests|conf|scripts|benchmarks|tornado_gateway)/[\w./-]*\w\.(?:md|py|json|js|yaml|env|html|lua))\b"
    r"(#[\w-]+)?"
)


def relative(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    """Return the text with line breaks inside comments and docstrings as spaces, since references may be wrapped."""
    return re.sub(r"\s*\n[ \t]*(?:#|//|--|\*)?[ \t]*", " ", path.read_text(encoding="utf-8", errors="replace"))


def sections(name):
    """Return the numbers of all headings, and of numbered rows in tables: "7.3", "B.5", "0.8", "7.3 row 18"."""
    found, heading = set(), ""
    for line in (ROOT / "docs" / "spec" / name).read_text(encoding="utf-8").splitlines():
        if match := re.match(rf"#+ ({_SECTION})\.? ", line):
            heading = match[1]
            found.add(heading)
        elif match := re.match(r"\| ((?:[0A-E])\.\d+) \|", line):
            found.add(match[1])
        elif match := re.match(r"\| ([BCD]?\d+) \|", line):
            found.add(f"{heading} row {match[1]}")
    return found


SECTIONS = {specification: sections(name) for specification, name in SPECIFICATIONS.items()}


def references(text):
    """Yield (specification, section) for every reference in a text."""
    for match in REFERENCE.finditer(text):
        for section, row in re.findall(rf"({_SECTION})(?:,? (row \d+))?", match[2]):
            yield match[1].lower(), f"{section} {row}".strip()


def anchors(path):
    """Return the anchors of a document's headings, as GitHub forms them, and those that it names."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    formed = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return formed | set(re.findall(r'<a id="([^"]+)"></a>', text))


def broken(target, anchor):
    if not target.exists():
        return "no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return "no such heading"
    return ""


def test_the_specifications_have_numbered_sections():
    assert {"1.4", "3.9", "4.2.1", "7.3", "7.3 row 18", "7.2 row B2"} <= SECTIONS["decision engine"]
    assert {"0.8", "A.5", "B.7", "C.1", "D.3", "E.7"} <= SECTIONS["wire contract"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(decision engine 3.3 to 3.6)", ["3.3", "3.6"]),
        ("decision engine 3.12 and 5, wire contract B.4", ["3.12", "5", "B.4"]),
        ("wire contract A.2, A.3, A.10).", ["A.2", "A.3", "A.10"]),
        ("decision engine 7.3, row 31", ["7.3 row 31"]),
    ],
)
def test_references_are_found(text, expected):
    assert [section for _, section in references(text)] == expected


def test_every_reference_names_a_section_that_exists():
    missing = [
        f"{relative(path)}: {name} {section}"
        for path in FILES
        for name, section in references(text_of(path))
        if section not in SECTIONS[name]
    ]
    assert missing == []


def test_references_are_spelled_alike():
    """Write "decision engine 4.2" and "wire contract A.3"."""
    assert [relative(path) for path in FILES if FORMER_SPELLINGS.search(text_of(path))] == []


@pytest.mark.parametrize("name", SPECIFICATIONS.values())
def test_the_specifications_refer_to_their_own_sections(name):
    (specification,) = [known for known, file in SPECIFICATIONS.items() if file == name]
    text = (ROOT / "docs" / "spec" / name).read_text(encoding="utf-8")
    number = r"\b([A-E]\.\d+)\b" if name == "wire-contract.md" else r"(?<= \()(\d\.\d+(?:\.\d+)?)(?=[),; ])"
    named = set(re.findall(number, re.sub(r"https?://\S+", "", text)))
    assert len(named) > 15
    assert named - SECTIONS[specification] == set()


def test_every_link_of_a_document_resolves():
    wrong = {}
    for path in MARKDOWN:
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            file, _, anchor = link.partition("#")
            if not re.match(r"https?:|mailto:", link):
                wrong[relative(path), link] = broken((path.parent / file).resolve() if file else path, anchor)
    assert {link: reason for link, reason in wrong.items() if reason} == {}


def test_every_file_that_is_named_exists():
    named = {
        (relative(path), match[0]): broken(ROOT / match[1], (match[2] or "")[1:])
        for path in FILES
        for match in MENTION.finditer(text_of(path))
    }
    assert {mention: reason for mention, reason in named.items() if reason} == {}


def test_many_references_are_checked():
    assert sum(1 for path in FILES for _ in references(text_of(path))) > 40
