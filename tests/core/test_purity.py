"""The wall around the core: importing it brings no IO library into a fresh process, and its files import none."""

import ast
import subprocess
import sys
from pathlib import Path

import tornado_gateway.core

FORBIDDEN = {"tornado", "redis", "asyncio", "socket", "sqlite3", "ssl", "selectors", "pycurl", "httptools", "logging"}
# Modules of the standard library that the core's own files may name; `random` and `time` come with others, unused.
ALLOWED = {
    *("collections", "dataclasses", "functools", "hashlib", "itertools", "json", "math", "operator", "re", "types"),
    *("typing", "uuid", "warnings"),
    *("mmh3", "orjson", "tornado_gateway"),
}
ALLOWED_IN_PATTERNS = {"atexit", "os", "re2", "signal", "threading", "time"}  # for the alarm that ends a search
FILES = sorted(Path(tornado_gateway.core.__file__).parent.rglob("*.py"))


def test_a_fresh_process_has_no_io_library() -> None:
    code = "import sys, tornado_gateway.core; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tornado_gateway.core" in loaded
    assert FORBIDDEN & {name.partition(".")[0] for name in loaded} == set()


def test_files_import_only_what_is_allowed() -> None:
    assert FILES
    for path in FILES:
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            allowed = ALLOWED | ALLOWED_IN_PATTERNS if path.parent.name == "patterns" else ALLOWED
            assert name.partition(".")[0] in allowed, f"{path.name} imports {name}"
            if name.startswith("tornado_gateway"):
                assert name.startswith("tornado_gateway.core"), f"{path.name} imports {name}"


def imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def test_public_names_exist_and_are_sorted() -> None:
    names = tornado_gateway.core.__all__
    assert all(hasattr(tornado_gateway.core, name) for name in names)
    assert list(names) == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
