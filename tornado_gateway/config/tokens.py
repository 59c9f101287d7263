"""TOKENS_FILE: the tokens of clients, as SHA-256 digests (docs/environments.md, "Client tokens").

[[token]]
id = "shop-web"
hash = "sha256:<64 hexadecimal digits>"
kind = "browser"
environments = ["production"]
scopes = ["decide", "track"]
origins = ["https://shop.example"]
expires = 2027-03-01T00:00:00Z
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tornado_gateway.config import kinds
from tornado_gateway.config.values import read_blocks
from tornado_gateway.errors import ConfigError

SCOPES = ("decide", "track", "sdk")
SERVER, BROWSER = KINDS = ("server", "browser")
BROWSER_SCOPES = frozenset({"decide", "track"})  # settings hold every rule of an account
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class TokenRow(NamedTuple):
    """A block of the file. Blocks with one `id` are the tokens of one client, for example during a rotation.

    `environments` are names, none for all. `expires` is in unix seconds.
    """

    id: str
    digest: bytes
    kind: str = SERVER
    environments: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset(SCOPES)
    origins: tuple[str, ...] = ()
    expires: float | None = None


def read_tokens(path: Path) -> tuple[TokenRow, ...]:
    """Return the tokens of the file. Raise ConfigError with all mistakes, each with the number and id of its block."""
    blocks, found = read_blocks(path, "token", f"TOKENS_FILE ({path})", may_be_empty=True)
    problems = list(found)
    rows = [_row(block, f"TOKENS_FILE ({path}), token {n}", problems) for n, block in enumerate(blocks, 1)]
    digests = [row.digest for row in rows]
    for number, row in enumerate(rows, 1):
        if row.digest and row.digest in digests[: number - 1]:
            first = digests.index(row.digest) + 1
            problems.append(
                f"TOKENS_FILE ({path}), token {number} ({row.id}): hash: expected every hash once, got that"
                f" of token {first} again"
            )
    if problems:
        raise ConfigError(problems)
    return tuple(rows)


def unknown_environments(tokens: Iterable[TokenRow], names: Collection[str]) -> Iterator[str]:
    """Yield a problem for each token that names an environment which is not one of these."""
    for token in tokens:
        if unknown := set(token.environments).difference(names):
            expected = f"names of environments ({', '.join(sorted(names)):.200})"
            yield f"TOKENS_FILE, token {token.id}: environments: expected {expected}, got {min(unknown)!r}"


def _row(block: Mapping[str, Any], place: str, problems: list[str]) -> TokenRow:
    """Return the token of a block; append its mistakes to `problems`."""
    given = block.get("id")
    if isinstance(given, str):
        place = f"{place} ({given:.64})"
    values: dict[str, Any] = {}
    before = len(problems)
    for key, value in block.items():
        if key not in _FIELDS:
            problems.append(f"{place}: unknown key {key!r:.50}, expected {', '.join(_FIELDS)}")
            continue
        name, expected, parse = _FIELDS[key]
        try:
            values[name] = parse(value)
        except (ValueError, TypeError):
            problems.append(f"{place}: {key}: expected {expected}")
    for key in ("id", "hash"):
        if key not in block:
            problems.append(f"{place}: {key}: expected a value, got nothing")
    row = TokenRow(**({"id": "", "digest": b""} | _defaults(values.get("kind")) | values))
    if len(problems) == before:
        problems += [f"{place}: {problem}" for problem in _contradictions(row)]
    return row


def _defaults(kind: object) -> dict[str, Any]:
    return {"scopes": BROWSER_SCOPES} if kind == BROWSER else {}


def _contradictions(row: TokenRow) -> list[str]:
    if row.kind != BROWSER:
        return ["origins: only browser tokens have origins"] if row.origins else []
    return [
        problem
        for is_wrong, problem in (
            (not row.scopes <= BROWSER_SCOPES, "scopes: a browser token can have decide and track only"),
            (not row.origins, "origins: expected at least one, because the token is for browsers"),
            (not row.environments, "environments: expected at least one, because the token is for browsers"),
        )
        if is_wrong
    ]


def _parse_hash(value: object) -> bytes:
    match = _HASH.fullmatch(_text(value))
    if match is None:
        raise ValueError(value)
    return bytes.fromhex(match[1])


def _parse_id(value: object) -> str:
    if not _ID.fullmatch(_text(value)):
        raise ValueError(value)
    return _text(value)


def _parse_kind(value: object) -> str:
    if value not in KINDS:
        raise ValueError(value)
    return str(value)


def _parse_environments(value: object) -> tuple[str, ...]:
    """Return the names. An empty list is a mistake, because no list at all means all environments."""
    names = _texts(value)
    if not names:
        raise ValueError(value)
    return names


def _parse_scopes(value: object) -> frozenset[str]:
    scopes = frozenset(_texts(value))
    if not scopes <= frozenset(SCOPES) or not scopes:
        raise ValueError(value)
    return scopes


def _parse_origins(value: object) -> tuple[str, ...]:
    parsed = kinds.origins.parse(",".join(_texts(value)))
    if "*" in parsed:
        raise ValueError(value)
    return parsed


def _parse_expiry(value: object) -> float:
    """Return unix seconds. A time without offset is UTC, and a date ends with its day's start."""
    if not isinstance(value, date):
        raise TypeError(value)
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(value)
    return tuple(map(_text, value))


_FIELDS: dict[str, tuple[str, str, Callable[[object], object]]] = {  # key: field, what is expected, parser
    "id": ("id", "at most 64 letters, digits, dots, hyphens and underscores", _parse_id),
    "hash": ("digest", "sha256: and 64 hexadecimal digits", _parse_hash),
    "kind": ("kind", "server or browser", _parse_kind),
    "environments": ("environments", "a list of one or more names of environments", _parse_environments),
    "scopes": ("scopes", f"a list of {', '.join(SCOPES)}", _parse_scopes),
    "origins": (
        "origins",
        'a list of origins such as "https://shop.example" or "https://*.shop.example"',
        _parse_origins,
    ),
    "expires": ("expires", "a TOML date and time such as 2027-03-01T00:00:00Z", _parse_expiry),
}
