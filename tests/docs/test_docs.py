"""The documents say what there is, no less and no more."""

import ast
import re

from process import ROOT

from tornado_gateway.api import routes
from tornado_gateway.config import OPTIONS
from tornado_gateway.console import pages

FILES = "/web/"  # of the console
OTHER_VARIABLES = {"REDIS_DB", "SDK_KEY_FILE"}  # mentioned, but not in the tables of options


def documented_routes():
    text = (ROOT / "docs" / "endpoints.md").read_text()
    return re.findall(r"^### ([A-Z]+) (/\S*)$", text, re.MULTILINE)


def served_routes():
    served = {(route.method, route.path) for route in routes.ROUTES}
    shown = [route for route in pages.ROUTES if not route.path.startswith(FILES)]
    return served | {(method, route.path) for route in shown for method in route.page.METHODS}


def test_every_route_is_documented_once_and_nothing_else():
    documented = documented_routes()
    assert len(documented) == len(set(documented))
    assert set(documented) == served_routes()


def test_the_documents_name_only_options_that_exist():
    known = {option.name for option in OPTIONS}
    pages = ("endpoints", "sdks", "migrating", "maintenance", "troubleshooting", "faq", "security", "privacy")
    for name in pages:
        text = (ROOT / "docs" / f"{name}.md").read_text()
        assert set(re.findall(r"`([A-Z][A-Z_]+_[A-Z_]+)(?:=[^`]*)?`", text)) - OTHER_VARIABLES <= known


def architecture():
    return (ROOT / "docs" / "architecture.md").read_text()


def functions_in(path):
    tree = ast.parse((ROOT / "tornado_gateway" / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_each_step_of_the_architecture_names_a_file_and_a_function_that_exist():
    paths = architecture().split("## Four paths")[1].split("\n## ")[0]
    steps = re.findall(r"^\d+\. .*(?:\n {3}.*)*", paths, re.MULTILINE)
    assert len(steps) > 20
    for step in steps:
        named = re.findall(r"`([a-z_/]+\.py)`\s+`(\w+)`", step)
        assert named, step
        for path, function in named:
            assert function in functions_in(path), f"{path} has no {function}"


def test_the_architecture_shows_every_package():
    rooms = {path.parent.name for path in (ROOT / "tornado_gateway").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", architecture(), re.MULTILINE)) == rooms
