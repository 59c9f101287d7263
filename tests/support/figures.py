"""The size of things, read from the sources: files, modules, classes, functions, imports, words of comments.

    python tests/support/figures.py      print the figures of each room

`tests/test_figures.py` holds the limits. A folder with Python files is a room, also inside another room, and all its
Python files count. A function is its whole `def` without the docstring; nested ones count on their own, too. A class
has the attributes that its methods assign to `self`; fields of dataclasses and named tuples are none.
"""

import ast
import io
import math
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tornado_gateway"
SCRIPTS = PACKAGE / "console" / "web"
VENDORED = "uPlot.iife.min.js"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)

WORD = re.compile(r"[A-Za-z][A-Za-z']*")
NOUN_CLAUSE = re.compile(r"\b(?:what|who)\b(?![^.;:]*\?)", re.IGNORECASE)  # questions are allowed
PERSONS = re.compile(r"\b(?:nobody|somebody|anybody|everybody)\b", re.IGNORECASE)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    return str(path.parent.relative_to(PACKAGE)).replace(".", "ground floor")


def rooms() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in files():
        found.setdefault(room_of(path), []).append(path)
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def modules() -> dict[str, int]:
    """Return the lines of each module."""
    return {name_of(path): lines_of(path) for path in files()}


def scripts() -> dict[str, int]:
    """Return the lines of each script of the console that is ours."""
    return {path.name: lines_of(path) for path in sorted(SCRIPTS.glob("*.js")) if path.name != VENDORED}


# --- Functions and classes ---


def functions(path: Path) -> list[tuple[str, int]]:
    """Return the name and the lines of each function of a module."""
    return [(f"{name_of(path)}:{name}", _length(node)) for name, node in _functions(tree_of(path), "")]


def _functions(node: ast.AST, above: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for inner in ast.iter_child_nodes(node):
        name = above + inner.name if isinstance(inner, (ast.ClassDef, *FUNCTIONS)) else ""
        if isinstance(inner, FUNCTIONS):
            yield name, inner
        yield from _functions(inner, f"{name}." if name else above)


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    size = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        document = node.body[0]
        size -= (document.end_lineno or 0) - document.lineno + 1
    return size


def lengths(paths: list[Path]) -> list[int]:
    return sorted(size for path in paths for _, size in functions(path))


def ninth_decile(paths: list[Path]) -> int:
    """Return the number of lines that nine of ten functions do not exceed."""
    sizes = lengths(paths)
    return sizes[math.ceil(0.9 * len(sizes)) - 1] if sizes else 0


def classes(path: Path) -> dict[str, int]:
    """Return the number of attributes of each class of a module."""
    found = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            found[f"{name_of(path)}:{node.name}"] = len(set(_attributes(node)))
    return found


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
            yield inner.attr


# --- Imports ---


def imports(path: Path) -> list[str]:
    """Return all imported modules, absolute; `from a.b import c` gives `a.b.c` if that is a module, otherwise `a.b`."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: imports are absolute"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            found += [name if is_module(name) else module for name in names]
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("tornado_gateway") and (path.with_suffix(".py").exists() or path.is_dir())


def own_imports(path: Path) -> set[str]:
    return {module for module in imports(path) if module.startswith("tornado_gateway.")}


def module_name(path: Path) -> str:
    return f"tornado_gateway.{name_of(path).removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


def file_graph() -> dict[str, set[str]]:
    return {module_name(path): own_imports(path) for path in files()}


def room_graph() -> dict[str, set[str]]:
    """Return the rooms that each room imports; folders inside a room belong to it, the ground floor is left out."""
    found: dict[str, set[str]] = {}
    for module, imported in file_graph().items():
        for other in imported:
            rooms_of = [name.split(".")[1] for name in (module, other)]
            if rooms_of[0] != rooms_of[1] and (PACKAGE / rooms_of[0]).is_dir() and (PACKAGE / rooms_of[1]).is_dir():
                found.setdefault(rooms_of[0], set()).add(rooms_of[1])
    return found


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle, or nothing."""
    done: set[str] = set()

    def visit(node: str, above: tuple[str, ...]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        for other in sorted(graph.get(node, ())) if node not in done else ():
            found = visit(other, (*above, node))
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, ()))), [])


# --- Words ---


def prose(path: Path) -> list[str]:
    """Return the comments, one text for consecutive lines, and the docstrings of a module."""
    texts: list[str] = []
    last = -1
    with io.StringIO(path.read_text(encoding="utf-8")) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT:
                if token.start[0] == last + 1 and texts:
                    texts[-1] += " " + token.string.lstrip("# ")
                else:
                    texts.append(token.string.lstrip("# "))
                last = token.start[0]
    documents = (ast.get_docstring(node) for node in ast.walk(tree_of(path)) if isinstance(node, DOCUMENTED))
    return texts + [document for document in documents if document]


def words(paths: list[Path]) -> int:
    return sum(len(WORD.findall(text)) for path in paths for text in prose(path))


def matches(paths: list[Path], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name_of(path)}: {found[0]}" for path in paths for text in prose(path) for found in pattern.finditer(text)
    ]


def noun_clauses(paths: list[Path]) -> float:
    """Return the number of "what" and "who" that are no question in 1,000 words of comments and docstrings."""
    return round(1000 * len(matches(paths, NOUN_CLAUSE)) / max(words(paths), 1), 1)


# --- The table ---

COLUMNS = ("room", "files", "lines", "largest", "attributes", "imports", "functions", "p90", "longest", "what/who")


def row(room: str, paths: list[Path]) -> tuple[str, ...]:
    lines = [lines_of(path) for path in paths]
    attributes = max((size for path in paths for size in classes(path).values()), default=0)
    imported = max(len(own_imports(path)) for path in paths)
    sizes = lengths(paths)
    functions_of = (len(sizes), ninth_decile(paths), max(sizes, default=0))
    return room, *map(
        str, (len(paths), sum(lines), max(lines), attributes, imported, *functions_of, noun_clauses(paths))
    )


def main() -> None:
    table = [COLUMNS, *(row(room, paths) for room, paths in rooms().items()), row("all", files())]
    widths = [max(len(line[at]) for line in table) for at in range(len(COLUMNS))]
    for line in table:
        print(line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)))
    longest = max(scripts().items(), key=lambda script: script[1])
    print(f"largest script of the console: {longest[0]}, {longest[1]} lines")


if __name__ == "__main__":
    main()
