"""Reading requests: their fields, lenient where real SDKs are odd (wire contract 0.9, 0.10), and the client's address.

A field that is not valid raises `RequestError` 400 with the name of the field and the expected value.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Request

Fields = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ABSENT_TEXTS = frozenset({"", "undefined", "null", "None"})  # how SDKs write an absent value
ESCAPE = re.compile(b"%[0-9A-Fa-f]{2}")
# A lone surrogate, in a text without escaped backslashes: a high one without a low one behind it, or the reverse.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_SURROGATE_BYTES = re.compile(
    b"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]|\xed[\xa0-\xbf][\x80-\xbf]"
)  # no character of UTF-8 has such bytes
MAX_REPAIRS = 50_000  # surrogates per body, at most 50 ms; a body with more is not JSON
MAX_ID_BYTES = 1024
MAX_HOPS = 32  # addresses of X-Forwarded-For that are read: a client can send 16,000


def json_object(body: bytes) -> Fields:
    """Return the body as a JSON object, whatever the content type says. If a key is repeated, the last value wins."""
    fields = json_value(body)[0]
    if type(fields) is not dict:
        raise RequestError(400, "the body must be a JSON object")
    return fields


def json_value(body: bytes) -> tuple[Any, bytes]:
    """Return the value of a JSON body, and the body; the latter is repaired if it has lone surrogates.

    JavaScript and .NET cut texts between the two halves of a character and write the half that is left.
    """
    try:
        return orjson.loads(body), body
    except orjson.JSONDecodeError:
        repaired = _without_lone_surrogates(body)
    try:
        return orjson.loads(repaired), repaired
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error


def _without_lone_surrogates(body: bytes) -> bytes:
    """Replace lone surrogates, escaped or as bytes, by U+FFFD; a pair in bytes (CESU-8) by its character."""
    if b"\1" in body:  # not valid in JSON, so it can represent a backslash
        return body
    marked = _LONE_SURROGATE.sub(rb"\\ufffd", body.replace(b"\\\\", b"\1\1"), MAX_REPAIRS).replace(b"\1\1", b"\\\\")
    return _SURROGATE_BYTES.sub(_decoded, marked, MAX_REPAIRS)


def _decoded(surrogates: re.Match[bytes]) -> bytes:
    units = surrogates[0].decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace").encode()


def required_text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if type(value) is str and value and not value.isspace():
        return value
    if value is None or isinstance(value, str):
        raise RequestError(400, f"{name} is required")
    raise RequestError(400, f"{name} must be a string")


def user_id(fields: Fields) -> str:
    """Return `userId` of REST callers, or `id` of the SDKs; a number as its text (decision engine 7.3, row 31)."""
    value = fields.get("userId")
    if value is None:
        value = fields.get("id")
    if type(value) is str and value and not value.isspace():
        return limited_id("userId", value)
    if type(value) in (int, float):
        return orjson.dumps(value).decode()
    raise RequestError(400, "userId is required and must be a non-empty string")


def limited_id(name: str, value: str) -> str:
    """Return an id of a visitor, which is a key in the store: it has at most 1 KB."""
    if len(value) > MAX_ID_BYTES // 4 and len(value.encode()) > MAX_ID_BYTES:
        raise RequestError(400, f"{name} must not be longer than {MAX_ID_BYTES} bytes")
    return value


def raw_query_value(query: bytes, name: bytes) -> bytes | None:
    """Return the undecoded value of a parameter; None if it is absent. Only `&` separates parameters."""
    marker = b"&" + name + b"="
    if query.startswith(marker[1:]):
        start = len(marker) - 1
    else:
        start = query.find(marker)
        if start < 0:
            return None
        start += len(marker)
    end = query.find(b"&", start)
    return query[start:] if end < 0 else query[start:end]


def form_decoded(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")


def query_text(query: bytes, name: bytes) -> str | None:
    """Return a parameter's text, None if it is absent or one of ABSENT_TEXTS."""
    raw = raw_query_value(query, name)
    return None if raw is None else parameter_text(raw)


def parameter_text(raw: bytes) -> str | None:
    """Return the text of a parameter's undecoded value, None if it is one of ABSENT_TEXTS.

    Some clients encode twice (wire contract A.2): a value that still has escapes and no blank is decoded once more.
    """
    if raw.isdigit():
        return raw.decode()
    value = form_decoded(raw)
    if "%" in value and " " not in value and ESCAPE.search(value.encode()):
        value = unquote_to_bytes(value).decode("utf-8", "replace")
    value = value.strip()
    return None if value in ABSENT_TEXTS else value


def is_from_browser(request: Request) -> bool:
    """Browsers send the origin of the page; server SDKs never do."""
    return request.header(b"origin") is not None


_WEIGHT = re.compile(r"\s*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*")  # RFC 9110, 12.4.2
MAX_WEIGHTED_ITEMS = 100  # further ones are ignored


def weights(header: str) -> dict[str, float]:
    """Return the weights of a list such as Accept, by name in lower case. A weight that is not valid counts as 0."""
    found: dict[str, float] = {}
    for item in header.lower().split(",", MAX_WEIGHTED_ITEMS)[:MAX_WEIGHTED_ITEMS]:
        name, *parameters = item.split(";")
        name = name.strip()
        if name:
            found[name] = max(_weight(parameters), found.get(name, 0.0))
    return found


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.lstrip().startswith("q="):
            valid = _WEIGHT.fullmatch(parameter)
            return float(valid[1]) if valid else 0.0
    return 1.0


def accepts_gzip(header: str) -> bool:
    """Return whether Accept-Encoding names gzip, and does not prefer the plain form."""
    weight = weights(header)
    gzip = max(weight.get("gzip", 0.0), weight.get("x-gzip", 0.0))
    return gzip > 0 and gzip >= weight.get("identity", 0.0)


class ClientAddress:
    """Finds the address of the client: that of the socket, or the one that trusted proxies report.

    The right-most address of `X-Forwarded-For` that is not a trusted proxy counts; all left of it can be forged.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def __call__(self, request: Request) -> str:
        address = request.peer
        if not self._trusted or not self._is_trusted(address):
            return address
        hops = request.list_header(b"x-forwarded-for").decode("latin-1").rsplit(",", MAX_HOPS)
        for hop in reversed(hops[-MAX_HOPS:]):
            hop = hop.strip()
            if not hop:
                continue
            address = hop
            if not self._is_trusted(hop):
                break
        return address

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)
