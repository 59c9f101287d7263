"""Reading requests: their fields, lenient where real SDKs are odd (wire contract 0.9, 0.10), and the client's address.

A field that is not valid raises `RequestError` 400 with the name of the field and the expected value.
"""

import ipaddress
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import orjson

from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Request

Fields = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ABSENT_TEXTS: Final = frozenset({"", "undefined", "null", "None"})  # how SDKs write an absent value
ESCAPE: Final = re.compile(b"%[0-9A-Fa-f]{2}")
# A lone surrogate, in a text without escaped backslashes: a high one without a low one behind it, or the reverse.
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_SURROGATE_BYTES: Final = re.compile(
    b"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]|\xed[\xa0-\xbf][\x80-\xbf]"
)  # no character of UTF-8 has such bytes
_NOT_PRINTABLE: Final = re.compile(r"[^ !#-\[\]-~]")  # quotes and backslashes included
MAX_REPAIRS: Final = 50_000  # surrogates per body, at most 50 ms; a body with more is not JSON
MAX_ID_BYTES: Final = 1024
SHORT_ID: Final = MAX_ID_BYTES // 4  # characters: no such id is too long
MAX_VALUE_BYTES: Final = 2048  # of a parameter that is forwarded
MAX_HOPS: Final = 32  # addresses of X-Forwarded-For that are read: a client can send 16,000
MAX_DOCUMENT_BYTES: Final = 256 * 1024  # of one event
MAX_TEXT_BYTES: Final = 64 * 1024
MAX_LEVELS: Final = 64  # of nested lists and objects
# In so few bytes no list or object is nested so deeply that it matters, so none is counted.
HARMLESS_BYTES: Final = 4 * MAX_LEVELS
MAX_DIGITS: Final = 100  # of a number, signs, point and exponent included
_OF_NUMBERS: Final = b"-+.eE0123456789"
_LONG_NUMBER: Final = re.compile(b"[%b]{%d}" % (re.escape(_OF_NUMBERS), MAX_DIGITS + 1))
# A run of 101 bytes contains 4 samples of every 25th byte, which are ten times as fast to search.
_SAMPLE_STEP: Final = 25
_IN_A_RUN: Final = b"0" * ((MAX_DIGITS + 1) // _SAMPLE_STEP)  # in samples in which each byte of a number is a 0
_RUN_BYTES: Final = (len(_IN_A_RUN) - 1) * _SAMPLE_STEP  # from the first of these samples to before the last
_AS_ZERO: Final = bytes.maketrans(_OF_NUMBERS, b"0" * len(_OF_NUMBERS))
_TEXT: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"')


def json_object(body: bytes) -> Fields:
    """Return the body as a JSON object, whatever the content type says. If a key is repeated, the last value wins."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = json_value(body)[0]
    if type(fields) is not dict:
        raise RequestError(400, "the body must be a JSON object", code="invalid_json")
    if len(body) > HARMLESS_BYTES:
        _check_size(fields, body)
    return fields


def json_object_and_body(body: bytes) -> tuple[Fields, bytes]:
    """Return the body as a JSON object, and the body, as `json_value` does."""
    return json_object(body), json_value(body)[1]


def _check_size(fields: Fields, body: bytes) -> None:
    if len(body) > MAX_TEXT_BYTES or _openings(body) > MAX_LEVELS:
        problem = document_problem(fields, body, len(body))
        if problem is not None:
            raise problem


def json_value(body: bytes) -> tuple[Any, bytes]:
    """Return the value of a JSON body, and the body; the latter is repaired if it has lone surrogates.

    JavaScript and .NET cut texts between the two halves of a character and write the half that is left. Some .NET
    writers put a byte order mark first.
    """
    try:
        return orjson.loads(body), body
    except orjson.JSONDecodeError as error:
        return repaired_value(body, str(error))


def repaired_value(body: bytes, problem: str) -> tuple[Any, bytes]:
    """Do the same for a body that could not be read because of this problem."""
    repaired = _without_lone_surrogates(body.removeprefix(BOM_UTF8))
    if repaired == body:  # reading it again would take as long, with the same result
        raise RequestError(400, f"the body is not JSON: {problem}", code="invalid_json")
    try:
        return orjson.loads(repaired), repaired
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from error


def document_problem(
    value: object, encoded: bytes, max_bytes: int = MAX_DOCUMENT_BYTES, pause: Callable[[], object] | None = None
) -> RequestError | None:
    """Return the error that names the limit which a JSON document exceeds, None if it keeps to all of them.

    `encoded` is its JSON. The bytes of texts are those of UTF-8, as in `encoded` without escapes. `pause` is called now
    and then.
    """
    size = len(encoded)
    if size > max_bytes:
        return RequestError(413, f"the document is larger than {max_bytes} bytes")
    if _openings(encoded) > MAX_LEVELS and _levels(value, MAX_LEVELS + 1, pause) > MAX_LEVELS:
        return RequestError(400, f"the document has more than {MAX_LEVELS} levels of nested lists and objects")
    if size > MAX_TEXT_BYTES and _has_long_text(encoded):
        return RequestError(400, f"the document has a text of more than {MAX_TEXT_BYTES} bytes")
    if _has_run_of_digits(encoded) and _LONG_NUMBER.search(_TEXT.sub(b'""', encoded)):
        return RequestError(400, f"the document has a number of more than {MAX_DIGITS} digits")
    return None


def _has_run_of_digits(encoded: bytes) -> bool:
    """Return whether JSON may have a number of more than MAX_DIGITS.

    Most documents have some samples in a row that could be of one, but rarely could all bytes between these be of one.
    """
    samples = encoded[_SAMPLE_STEP - 1 :: _SAMPLE_STEP].translate(_AS_ZERO)
    found = samples.find(_IN_A_RUN)
    while found >= 0:
        start = (found + 1) * _SAMPLE_STEP - 1
        if not encoded[start : start + _RUN_BYTES].strip(_OF_NUMBERS):
            return True
        found = samples.find(_IN_A_RUN, found + 1)
    return False


def _openings(encoded: bytes) -> int:
    """Return the number of lists and objects in JSON, those in texts included, counted up to a little over MAX_LEVELS.

    The bytes are removed, which is four times as fast as to count them.
    """
    most = MAX_LEVELS + 1
    return 2 * len(encoded) - len(encoded.replace(b"{", b"", most)) - len(encoded.replace(b"[", b"", most))


def _levels(value: object, most: int, pause: Callable[[], object] | None) -> int:
    """Return the number of nested lists and objects, counted up to `most`."""
    level: list[object] = [value]
    count = 0
    while count < most:
        parts = [part for part in level if isinstance(part, list) or isinstance(part, dict)]  # noqa: SIM101 - faster
        if not parts:
            break
        count += 1
        level = list(chain.from_iterable([_items(part) for part in parts if part]))
        if pause is not None:
            pause()
    return count


def _items(part: object) -> Iterable[object]:
    return part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _has_long_text(encoded: bytes) -> bool:
    """Return whether a text or a name in a JSON document is too long. Only quotes far from each other are examined."""
    plain = encoded.replace(b"\\\\", b"..").replace(b'\\"', b"..")  # in which each quote begins or ends a text
    start = plain.find(b'"')
    while start >= 0 and len(plain) - start > MAX_TEXT_BYTES:
        end = plain.rfind(b'"', start + 1, start + MAX_TEXT_BYTES + 2)
        if end < 0:
            end = plain.find(b'"', start + 1)
            if end > 0 and _is_long_text(plain, encoded, start, end):
                return True
        start = end
    return False


def _is_long_text(plain: bytes, encoded: bytes, start: int, end: int) -> bool:
    is_text = plain.count(b'"', 0, start) % 2 == 0  # otherwise it is the rest of a document between two texts
    return is_text and len(json_value(encoded[start : end + 1])[0].encode()) > MAX_TEXT_BYTES


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


def boolean(fields: Fields, name: str) -> bool:
    """Return a field that is true or false; false if it is absent or null."""
    value = fields.get(name)
    if value is None or type(value) is bool:
        return bool(value)
    raise RequestError(400, f"{name} must be true or false")


def user_id(fields: Fields) -> str:
    """Return `userId` of REST callers, or `id` of the SDKs; a number as its text (decision engine 7.3, row 31)."""
    value = fields.get("userId")
    if value is None:
        value = fields.get("id")
    if type(value) is str and value and not value.isspace():
        return value if len(value) <= SHORT_ID else limited_id("userId", value)
    if type(value) in (int, float):
        return orjson.dumps(value).decode()
    raise RequestError(400, "userId is required and must be a non-empty string")


def limited_id(name: str, value: str) -> str:
    """Return an id of a visitor, which is a key in the store: it has at most 1 KB."""
    if len(value) > SHORT_ID and len(value.encode()) > MAX_ID_BYTES:
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


def known_parameters(query: bytes, names: Iterable[bytes]) -> str:
    """Return the parameters with these names, as the client wrote them, each once, without values of more than 2 KB."""
    values = [(name, raw_query_value(query, name)) for name in names]
    known = [b"%b=%b" % (name, value) for name, value in values if value is not None and len(value) <= MAX_VALUE_BYTES]
    return b"&".join(known).decode("latin-1")


def form_decoded(raw: bytes) -> str:
    raw = raw.replace(b"+", b" ")
    return (raw if raw.find(b"%") < 0 else unquote_to_bytes(raw)).decode("utf-8", "replace")


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


def printable(text: str, most: int = 200) -> str:
    """Return a text for a header: at most 200 characters, and only those that a header may contain."""
    return _NOT_PRINTABLE.sub("?", text[:most])


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


# --- Addresses ---

_IPV4 = re.compile(
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}"
)
_PORT = re.compile(r":[0-9]{1,5}")
_NODE = re.compile(r"for=(\"[^\"]*\"?|[^;]*)", re.IGNORECASE)  # RFC 7239, 4
_PROTOCOL = re.compile(r"proto=\"?([a-z]+)", re.IGNORECASE)
_LONGEST_ADDRESS = 80  # characters, with brackets, port, zone and blanks
FORWARDED = "forwarded"  # its elements have parameters; any other header lists addresses


def address_in(text: str) -> str | None:
    """Return the address in a text, None if there is none; of a list, such as `X-Forwarded-For`, the first one.

    Port, brackets, quotes, blanks and zone are dropped, and an IPv4 address in IPv6 form becomes one of IPv4.
    """
    if _IPV4.fullmatch(text):
        return text
    for part in text.split(",", MAX_HOPS)[:MAX_HOPS]:
        address = _one_address(part)
        if address is not None:
            return str(address)
    return None


def _one_address(text: str) -> Address | None:
    return _parsed_address(text) if len(text) <= _LONGEST_ADDRESS else None


def _parse_address(text: str) -> Address | None:
    text = text.strip(' \t"')
    if text.startswith("["):
        text, end, port = text[1:].partition("]")
        if not end or (port and not _PORT.fullmatch(port)):
            return None
    elif text.count(":") == 1:
        text, colon, port = text.partition(":")
        if not _PORT.fullmatch(colon + port):
            return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


_parsed_address = lru_cache(maxsize=4096)(_parse_address)


class ClientAddress:
    """Finds the address of the client: that of the socket, or the one that trusted proxies report in `header`.

    The right-most address in the header that is not a trusted proxy counts; all left of it can be forged. If a proxy
    reports something else than an address, the client is unknown.
    """

    def __init__(self, trusted: Sequence[Network] = (), header: str = "X-Forwarded-For") -> None:
        self._trusted = tuple(trusted)
        self._header = header.lower()
        self.name = self._header.encode()  # in lower case, as requests have it

    def __call__(self, request: Request) -> str:
        """Return the address; "" if it is unknown."""
        if not self._trusted or not self.trusts(request.peer):
            return request.peer
        address: str | None = request.peer
        for hop in self._hops(request.list_header(self.name)):
            address = address_in(hop)
            if address is None or not self.trusts(address):
                break
        return address or ""

    def trusts(self, peer: str) -> bool:
        """Whether an address is that of a trusted proxy."""
        address = _one_address(peer)
        return address is not None and any(address in network for network in self._trusted)

    def reports_https(self, peer: str, headers: Mapping[str, str]) -> bool:
        """Whether the nearest proxy, if it is trusted, reports a client with TLS: the last value is its own."""
        if not self.trusts(peer):
            return False
        is_standard = self._header == FORWARDED
        nearest = headers.get("Forwarded" if is_standard else "X-Forwarded-Proto", "").rpartition(",")[2]
        found = _PROTOCOL.search(nearest) if is_standard else None
        return (found[1] if found else nearest).strip().lower() == "https"

    def _hops(self, header: bytes) -> list[str]:
        """Return the reported addresses, the nearest one first.

        A quoted text of a client may contain commas, but those of proxies, which stand to the right of it, do not.
        """
        hops = [hop for hop in header.decode("latin-1").rsplit(",", MAX_HOPS)[-MAX_HOPS:] if hop.strip()]
        hops.reverse()
        return [_node(hop) for hop in hops] if self._header == FORWARDED else hops


def _node(element: str) -> str:
    found = _NODE.search(element)
    return found[1] if found else ""
