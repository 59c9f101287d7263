"""The structure: which room may import which, and which library belongs to which room.

Read from the sources with `ast`. Imports under TYPE_CHECKING count.
"""

import ast
import re
from pathlib import Path

import figures
import pytest
from figures import PACKAGE, files, imports, module_name, name_of

# A room may import rooms on lower lines, never one on its own line.
LINES = (
    {"errors", "logs", "gate", "backoff", "quantities", "tasks", "version"},
    {"core", "http", "config"},
    {"store"},
    {"settings", "events", "upstream", "enrichment", "telemetry", "experiments"},
    {"environments"},
    {"insight"},
    {"api", "console"},
    {"process"},
    {"cli"},
)
HEIGHT = {room: height for height, line in enumerate(LINES) for room in line}
ONLY_BY = {  # rooms that only these may import
    "http": {"environments", "api", "console", "process"},
    "config": {"process", "cli"},
}
LIBRARIES = {  # outside library: where it may be imported
    "httptools": {"http"},
    "re2": {"core/patterns"},
    "pycurl": {"upstream/curl.py"},
    "redis": {"store/redis"},
    "sqlite3": {"store/sqlite"},
    "maxminddb": {"enrichment"},
    "ua_parser": {"enrichment"},
    "tornado.web": {"console"},
    "tornado.httpclient": set(),  # curl is the client, which honours the proxies of the environment
    "tornado.ioloop": set(),  # its PeriodicCallback plans calls by the wall clock; tasks.py has one that does not
    "prometheus_client": {"telemetry/prometheus.py"},
    "yaml": {"insight/cases.py"},
    "argparse": {"cli", "config/sources/flags.py"},
}
COMPARES_ACCOUNTS = {"environments", "config", "upstream"}  # rooms
KEY_PARAMETERS = {b"sdkKey", b"env"}  # of queries
ACCOUNT_OR_KEY = re.compile(r"account(_id)?|account_?keys?|sdk_?keys?|raw_key|env_?key|environment_key", re.IGNORECASE)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def breaks_the_order(path: Path, module: str) -> bool:
    importer = room_of(module_name(path))
    imported = room_of(module)
    if not imported or imported == importer or importer in ("__main__", "__init__"):
        return False
    allowed = ONLY_BY.get(imported)
    if HEIGHT[imported] >= HEIGHT[importer]:
        return True
    return allowed is not None and importer not in allowed


def breaks_a_wall(path: Path, module: str) -> bool:
    library = next((name for name in LIBRARIES if module == name or module.startswith(name + ".")), None)
    return library is not None and not any(name_of(path).startswith(place) for place in LIBRARIES[library])


def found_violations() -> set[tuple[str, str]]:
    found = set()
    for path in files():
        for module in imports(path):
            if module.startswith("tornado_gateway."):
                if breaks_the_order(path, module):
                    found.add((name_of(path), module))
            elif breaks_a_wall(path, module):
                found.add((name_of(path), module))
    return found


def test_imports_point_down_and_libraries_stay_in_their_room():
    assert found_violations() == set()


@pytest.mark.parametrize("graph", [figures.file_graph, figures.room_graph], ids=["files", "rooms"])
def test_there_is_no_import_cycle(graph):
    assert figures.cycle_in(graph()) == []


def account_comparisons(source: str) -> list[str]:
    """Comparisons with a variable or attribute that is an account or a key, and uses of the query parameters of keys.

    An `identity`, which is both as one, is opaque.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and node.value in KEY_PARAMETERS:
            found.append(ast.unparse(node))
        if isinstance(node, ast.Compare) and not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            parts = list(ast.walk(node))
            names = [part.id for part in parts if isinstance(part, ast.Name)]
            names += [part.attr for part in parts if isinstance(part, ast.Attribute)]
            if any(ACCOUNT_OR_KEY.fullmatch(name.strip("_")) for name in names):
                found.append(ast.unparse(node))
    return found


def test_only_these_rooms_compare_accounts_or_keys():
    others = [path for path in files() if name_of(path).split("/")[0] not in COMPARES_ACCOUNTS]
    assert len(others) > 100
    assert {name_of(path): account_comparisons(path.read_text(encoding="utf-8")) for path in others} == {
        name_of(path): [] for path in others
    }


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("key == self._sdk_key", True),
        ("given in (settings.account_id, '')", True),
        ("query_text(query, b'sdkKey')", True),
        ("config.sdk_key is None", False),
        ("fields.keys() >= {'accountId'}", False),
        ("chunk.identity != other.identity", False),
    ],
)
def test_the_search_for_such_comparisons_finds_them(source, is_found):
    assert bool(account_comparisons(source)) == is_found


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_each_room_says_what_it_is_for(room):
    document = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert document
    assert 1 <= len(document.splitlines()) <= 6
