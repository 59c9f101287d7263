"""Kinds of values, which read a value from text and show it as text, and the rows of the table of options."""

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, overload
from urllib.parse import urlsplit

T = TypeVar("T")
Networks: TypeAlias = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A type of value. `parse` raises ValueError if the text is not as `expected`; `show` is its inverse."""

    expected: str
    parse: Callable[[str], T]
    show: Callable[[T], str] = str
    metavar: str = "TEXT"


def matching(pattern: str, expected: str) -> Kind[str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(expected, parse)


def whole(low: int, high: int | None = None) -> Kind[int]:
    def parse(text: str) -> int:
        # int() alone would also accept "1_000", "+5" and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= (high or 10**18):
            raise ValueError(text)
        return int(text)

    expected = f"a whole number from {low} to {high}" if high else f"a whole number, at least {low}"
    return Kind(expected, parse, metavar="N")


def decimal(low: float, high: float, scale: int = 1) -> Kind[float]:
    """Return the kind of a number that is `scale` times larger in text: 1000 for milliseconds kept as seconds."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ValueError(text)
        return float(text) / scale

    return Kind(f"a number from {low:g} to {high:.0f}", parse, lambda value: f"{value * scale:.12g}", metavar="N")


def one_of(*words: str, upper: bool = False) -> Kind[str]:
    def parse(text: str) -> str:
        word = text.upper() if upper else text.lower()
        if word not in words:
            raise ValueError(text)
        return word

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", parse, metavar=f"{{{','.join(words)}}}")


# Words of examples, with any separators between them.
_PLACEHOLDER = re.compile(
    r"change[-_.]?(me|this|it)|replace[-_.]?(me|this|with)|place[-_.]?holder|(^|[^a-z])(put|your|insert|example|todo)[-_.]"
    r"|<.*>|\$\{|\{\{",
    re.IGNORECASE,
)
# A whole value that was copied from an example, or a reference to a variable that was not replaced.
_EXAMPLE = re.compile(
    r"(your|put|insert|enter|replace|change)([-_. ]\w+)+|(change|replace)(me|this)|<[\w -]+>"
    r"|\$\{[^{}]*\}|\$\([^()]*\)|\{\{[^{}]*\}\}",
    re.IGNORECASE,
)
# Not REDIS_PASSWORD: passwords such as "changeme" are in use.
_NEVER_PLACEHOLDERS = frozenset(
    (
        *("ACCOUNT_ID", "SDK_KEY", "REDIS_HOST", "MAXMIND_USER_ID", "MAXMIND_LICENSE_KEY"),
        *("ADMIN_TOKEN", "WEBHOOK_TOKEN", "CLIENT_TOKENS"),
    )
)
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def is_placeholder(text: str) -> bool:
    """Return whether a value is the text of an example as a whole, so that it can be shown even for a secret."""
    return _EXAMPLE.fullmatch(text) is not None


def _parse_boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text.lower()]


def _parse_token(text: str) -> str:
    """Parse a token that must not be guessed: neither short, nor copied from an example, nor one repeated character."""
    if not re.fullmatch(r"[!-~]{16,}", text) or len(set(text)) < 6 or _PLACEHOLDER.search(text):
        raise ValueError(text)
    return text


def _parse_client_token(text: str) -> str:
    if len(text) < 20:
        raise ValueError(text)
    return _parse_token(text)


def _parse_host(text: str) -> str:
    """Parse a host name or an IP address. Names of containers often have underscores."""
    if re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", text):
        return text
    return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))


def parse_url(text: str) -> str:
    # urlsplit drops tabs and line ends silently, so the characters are checked first.
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(text)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(text)
    if parts.query or parts.fragment or "@" in parts.netloc or text.endswith(("?", "#")):
        raise ValueError(text)
    return text.rstrip("/")


def _parse_file(text: str) -> Path:
    path = Path(text)
    if not os.path.isfile(path) or not os.access(path, os.R_OK):  # Path.is_file raises if a directory is closed to us
        raise ValueError(text)
    return path


def _denied(text: str) -> str:
    """Return a note for a message if only the permission to read a file is missing."""
    try:
        Path(text).open("rb").close()
    except PermissionError:
        return f", which user {os.geteuid()} is not permitted to read"
    except (OSError, ValueError):
        pass
    return ""


def list_of(item: Callable[[str], T], expected: str, show: Callable[[T], str] = str) -> Kind[tuple[T, ...]]:
    def parse(text: str) -> tuple[T, ...]:
        return tuple(item(part.strip()) for part in text.split(",")) if text else ()

    return Kind(expected, parse, lambda values: ",".join(map(show, values)), "LIST")


def _parse_address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if parts.netloc != text or "@" in text or parts.hostname is None or parts.port == 0:
        raise ValueError(text)
    return _parse_host(parts.hostname), parts.port or 26379


def _show_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_origin(text: str) -> str:
    """Parse an origin as browsers send it: scheme and host in lower case, no path, no default port."""
    if text == "*" or text == "null":
        return text
    origin = re.sub(r"(?<=^http)(://.*):80$|(?<=^https)(://.*):443$", r"\1\2", text.lower())
    if not re.fullmatch(
        r"[a-z][a-z0-9+.-]*://(\*\.)?[a-z0-9._-]+(:[0-9]+)?|[a-z][a-z0-9+.-]*://\[[0-9a-f:.]+\](:[0-9]+)?", origin
    ):
        raise ValueError(text)
    return origin


line = matching(r"[^\x00-\x1f\x7f]+", "text on one line")
word = matching(r"[!-~]+", "text without blanks")
token = Kind("at least 16 characters without blanks, and no placeholder", _parse_token)
tokens = list_of(_parse_client_token, "tokens of at least 20 characters without blanks, and no placeholders")
boolean = Kind("true or false", _parse_boolean, lambda value: "true" if value else "false", "{true,false}")
host = Kind("a host name or an IP address", _parse_host, metavar="HOST")
url = Kind("an http or https URL without user, query and fragment", parse_url, metavar="URL")
path = Kind("a path", lambda text: Path(line.parse(text)), metavar="PATH")
file = Kind("a file that can be read", _parse_file, metavar="PATH")
networks: Kind[Networks] = list_of(ipaddress.ip_network, "networks such as 10.0.0.0/8,fd00::/8")
addresses = list_of(_parse_address, "addresses such as sentinel-1:26379,sentinel-2:26379", _show_address)
origins = list_of(
    _parse_origin, "* or origins such as https://shop.example,https://*.shop.example,https://admin.example:8443"
)


# --- Rows of the table ---


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the table. `name` and `unit` are public, `attribute` is the name in `Config`."""

    section: str
    name: str
    kind: Kind[Any]
    default: str | None
    help: str
    unit: str = ""
    secret: bool = False
    attribute: str = ""

    def named(self, attribute: str) -> "Option":
        return replace(self, attribute=attribute, name=self.name or attribute.upper())

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def file_name(self) -> str:
        """The variable that names a file holding the secret."""
        return f"{self.name}_FILE"

    @property
    def rejects_placeholders(self) -> bool:
        return self.name in _NEVER_PLACEHOLDERS

    @property
    def expected(self) -> str:
        return f"{self.kind.expected} ({self.unit})" if self.unit else self.kind.expected

    def note(self, text: str) -> str:
        """Return what is known about an invalid value, to be added to the message."""
        return _denied(text.strip()) if self.kind is file else ""

    def shown(self, value: Any) -> str:
        """`value` as text in the outside's unit; secrets are masked."""
        if value is None:
            return ""
        text = self.kind.show(value)
        return mask(text) if self.secret and text else text


@overload
def option(
    section: str, kind: Kind[T], default: str, words: str, *, unit: str = "", secret: bool = False, name: str = ""
) -> T: ...


@overload
def option(
    section: str, kind: Kind[T], default: None, words: str, *, unit: str = "", secret: bool = False, name: str = ""
) -> T | None: ...


def option(
    section: str,
    kind: Kind[Any],
    default: str | None,
    words: str,
    *,
    unit: str = "",
    secret: bool = False,
    name: str = "",
) -> Any:
    """Make a field of `Config`. Its name is that of the field in upper case unless `name` is given."""
    row = Option(section, name, kind, default, words, unit, secret)
    value = None if default is None else kind.parse(default)
    return field(default=value, metadata={"option": row})


def flag_of(name: str) -> str:
    return f"--{name.lower().replace('_', '-')}"


def mask(secret: str) -> str:
    """Return the last four characters of a secret, or none of them if it is short."""
    return f"****{secret[-4:]}" if len(secret) >= 8 else "****"
