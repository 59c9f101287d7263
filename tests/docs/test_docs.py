"""The documents say what there is, no less and no more."""

import ast
import inspect
import re
from unittest.mock import MagicMock

from process import ROOT

from tornado_gateway.api.router import Api
from tornado_gateway.config import OPTIONS
from tornado_gateway.console.pages import build_application

FILES = "/web/"  # of the console


def documented_routes():
    text = (ROOT / "docs" / "endpoints.md").read_text()
    return re.findall(r"^### ([A-Z]+) (/\S+)$", text, re.MULTILINE)


def data_routes():
    api = Api(*[MagicMock() for _ in range(4)], decides=True, serves_browsers=True)
    return {(method.decode(), path.decode()) for method, path in api.routes}


def pages():
    parts = [MagicMock() for _ in inspect.signature(build_application).parameters]
    for rule in build_application(*parts).wildcard_router.rules:
        path = rule.matcher.regex.pattern.removesuffix("$").replace("\\", "")
        if not path.startswith(FILES):
            for method in rule.target.METHODS:
                yield method, path


def test_every_route_is_documented_once_and_nothing_else():
    routes = documented_routes()
    assert len(routes) == len(set(routes))
    assert set(routes) == data_routes() | {page for page in pages() if page[0] != "HEAD"}


def test_the_documents_name_only_options_that_exist():
    known = {option.name for option in OPTIONS}
    for name in ("endpoints", "sdks"):
        text = (ROOT / "docs" / f"{name}.md").read_text()
        assert set(re.findall(r"`([A-Z][A-Z_]+_[A-Z_]+)(?:=[^`]*)?`", text)) <= known


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
