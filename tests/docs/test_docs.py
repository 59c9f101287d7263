"""The documents say what there is, no less and no more."""

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
