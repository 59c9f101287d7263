"""Visitor ids: the uuid that stands for a user in events (decision engine 2.4)."""

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from typing import Final

# UUIDv5(URL namespace, "https://vwo.com"): the root of every account's namespace, the same for both brands.
_ROOT = bytes.fromhex("11e13cd76c4853ec86797e9c752273c5")
# The two high bits of the seventeenth digit are the RFC 4122 variant.
_VARIANT: Final = {digit: "89AB"[int(digit, 16) & 3] for digit in "0123456789ABCDEF"}
_WEB_UUID: Final = re.compile(r"[DJ][0-9A-Fa-f]{32}")


def identity_of(account_id: str) -> Callable[[str], str]:
    """Return the function `user id -> uuid` of one account; its hash state is primed with the account's namespace."""
    primed = sha1(_account_namespace(account_id), usedforsecurity=False)
    copy = primed.copy

    def identify(user_id: str) -> str:
        state = copy()
        state.update(user_id.encode())
        digits = state.hexdigest().upper()
        return f"{digits[:12]}5{digits[13:16]}{_VARIANT[digits[16]]}{digits[17:32]}"

    return identify


def visitor_uuid(account_id: str, user_id: str) -> str | None:
    """Return the 32 upper-case hex digits that stand for `user_id` in `account_id`; None for an empty id."""
    return _cached_identity(account_id)(user_id) if user_id else None


def is_web_uuid(user_id: str) -> bool:
    """Return whether the vendor's browser library has made this id, so that it is a visitor uuid already."""
    return len(user_id) == 33 and _WEB_UUID.fullmatch(user_id) is not None


_cached_identity = lru_cache(maxsize=64)(identity_of)


def _account_namespace(account_id: str) -> bytes:
    digest = bytearray(sha1(_ROOT + account_id.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)
