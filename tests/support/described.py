"""The API description with closed schemas: a field of a response that it does not name is an error."""

import copy

import jsonschema

from tornado_gateway.console.openapi import DOCUMENT


def _closed(schema):
    if isinstance(schema, dict):
        shown = {name: _closed(part) for name, part in schema.items()}
        if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
            shown["additionalProperties"] = False
        return shown
    return [_closed(part) for part in schema] if isinstance(schema, list) else schema


COMPONENTS = {"schemas": _closed(copy.deepcopy(DOCUMENT["components"]["schemas"]))}


def response_of(path, method, status):
    """The description of a response."""
    response = DOCUMENT["paths"][path][method]["responses"][str(status)]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return response


def check_described(path, method, status, body):
    """Every field of the response has a description, and every required one is there."""
    schema = response_of(path, method, status)["content"]["application/json"]["schema"]
    checked = {**_closed(copy.deepcopy(schema)), "components": COMPONENTS}
    jsonschema.Draft202012Validator(checked).validate(body)
