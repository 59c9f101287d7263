"""The HTTP interface as an OpenAPI 3.1 document, written in openapi.json.

Tests compare it with the routes, limits and error texts of the code, and send its examples to a gateway.
"""

from importlib import resources
from typing import Any

import orjson

from tornado_gateway import __version__


def _load() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(resources.files(__package__).joinpath("openapi.json").read_bytes())
    document["info"]["version"] = __version__
    return document


DOCUMENT = _load()
