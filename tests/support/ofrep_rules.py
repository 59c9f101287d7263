"""What OFREP clients demand of responses, as checks: for the clients that cannot be run here.

The sets of keys are closed, because the Kotlin provider rejects others. Java and Python tell numbers by their fraction,
and the Go provider ignores a value with the reason DISABLED.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

REASONS = {"STATIC", "TARGETING_MATCH", "SPLIT", "DEFAULT", "DISABLED"}
CODES = {"PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "GENERAL", "FLAG_NOT_FOUND"}
LARGEST = 2**31 - 1
ERROR = {"errorCode", "errorDetails"}
STREAM = {"type", "endpoint", "inactivityDelaySec"}


def check(status: int, headers: Mapping[str, str], body: bytes, key: str | None, types: Mapping[str, str]) -> Any:
    """Check a response and return its JSON. `key` is None for a bulk evaluation. `types` are those of variables."""
    if status == 304:
        assert body == b""
        return None
    assert headers["content-type"].split(";")[0] == "application/json"
    found = orjson.loads(body)
    assert isinstance(found, dict)
    if status in (429, 503):
        assert "retry-after" in headers
    assert re.fullmatch("[1-9][0-9]*", headers.get("retry-after", "1"))
    if status != 200:
        check_error(found, key)
    elif key is None:
        check_bulk(found, types)
    else:
        assert found["key"] == key
        check_flag(found, types)
    return found


def check_error(found: dict[str, Any], key: str | None) -> None:
    assert found.keys() == (ERROR if key is None else ERROR | {"key"}), found
    assert found.get("key") == key
    assert found["errorCode"] in CODES
    assert isinstance(found["errorDetails"], str)
    assert found["errorDetails"]


def check_bulk(found: dict[str, Any], types: Mapping[str, str]) -> None:
    assert found.keys() <= {"flags", "eventStreams"}
    keys = [flag["key"] for flag in found["flags"]]
    assert len(keys) == len(set(keys))
    for flag in found["flags"]:
        if "errorCode" in flag:
            check_error(flag, flag["key"])
        else:
            check_flag(flag, types)
    for stream in found.get("eventStreams", []):
        assert stream.keys() == STREAM
        assert stream["endpoint"].keys() == {"requestUri"}


def check_flag(flag: dict[str, Any], types: Mapping[str, str]) -> None:
    assert flag.keys() <= {"key", "value", "reason", "variant", "metadata"}, flag
    assert flag["reason"] in REASONS
    assert isinstance(flag["variant"], str)
    assert flag["variant"]
    assert ("value" in flag) == (flag["reason"] != "DISABLED"), flag
    for value in flag.get("metadata", {"": ""}).values():
        assert type(value) in (str, bool) or (type(value) is int and abs(value) <= LARGEST), flag
    if "value" in flag:
        assert is_of_type(flag["value"], types.get(flag["key"], "boolean")), flag


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a value has the type of its variable; in JSON, only a number with a fraction or exponent is a float."""
    kinds = {"boolean": bool, "string": str, "integer": int, "double": float, "json": (dict, list), "any": object}
    return isinstance(value, kinds[kind]) and (kind in ("boolean", "any") or not isinstance(value, bool))
