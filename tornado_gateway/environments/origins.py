"""Origins of web pages, as CORS and browser tokens list them."""

import re
from collections.abc import Iterable

ANY = "*"
WILDCARD = "://*."  # stands for one label


class Origins:
    """A set of origins, such as `https://shop.example` and `https://*.shop.example`; `*` is all of them."""

    def __init__(self, allowed: Iterable[str]) -> None:
        allowed = tuple(allowed)
        self.has_any = ANY in allowed
        self._allowed = frozenset(origin.encode() for origin in allowed if WILDCARD not in origin)
        wildcards = [
            re.escape(origin).replace(r"://\*\.", "://[a-z0-9_-]+[.]") for origin in allowed if WILDCARD in origin
        ]
        self._wildcards = re.compile("|".join(wildcards).encode()) if wildcards else None

    def __contains__(self, origin: bytes) -> bool:
        if self.has_any or origin in self._allowed:
            return True
        return self._wildcards is not None and self._wildcards.fullmatch(origin) is not None
