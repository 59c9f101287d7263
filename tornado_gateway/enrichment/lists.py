"""List membership: `inlist(...)` in segments and /check-attribute (wire contract A.3, B.6).

VWO stores the lists. Responses are cached. If VWO fails, an expired response counts; without one, the result is "no".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tornado_gateway.core import list_value
from tornado_gateway.errors import UpstreamError
from tornado_gateway.tasks import SharedResult

FRESH_SECONDS = 300.0
FAILURE_SECONDS = 2.0  # until a check that failed is tried again
MAX_WAITING = 64  # checks that wait for VWO; further ones get the last known result
CACHED_MEMBERSHIPS = 100_000
LONGEST_CACHED = 256  # characters of list id and value; longer ones are asked for each time

Membership = tuple[str, str]  # list id, value as text
Ask = Callable[[str, str], Awaitable[bool]]


class ListChecks:
    """A cache of list checks. `ask(list_id, value)` asks VWO and raises UpstreamError if there is no response."""

    def __init__(
        self, ask: Ask, fresh_seconds: float = FRESH_SECONDS, failure_seconds: float = FAILURE_SECONDS
    ) -> None:
        self._ask = ask
        self._fresh_seconds = fresh_seconds
        self._failure_seconds = failure_seconds
        self._known: dict[Membership, tuple[bool, float]] = {}  # oldest first; with the time until which it counts
        self._asking: dict[Membership, SharedResult[bool]] = {}

    async def is_member(self, list_id: str, value: str) -> bool:
        known = self.known_member(list_id, value)
        return await self._ask_once((list_id, value)) if known is None else known

    def known_member(self, list_id: str, value: str) -> bool | None:
        """Return the result of a check, None if VWO has to be asked."""
        key = (list_id, value)
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        if key not in self._asking and len(self._asking) >= MAX_WAITING:
            return known is not None and known[0]
        return None

    async def _ask_once(self, key: Membership) -> bool:
        if key not in self._asking:
            self._asking[key] = SharedResult(self._refresh(key))
        return await self._asking[key].outcome()

    async def gather(
        self, checks: Sequence[tuple[str, str]], given: Sequence[Mapping[str, Any]]
    ) -> dict[Membership, bool]:
        """Return the memberships that a feature's segments need: `checks` are pairs of variable name and list id."""
        wanted = {
            (list_id, value)
            for name, list_id in checks
            for variables in given
            if name in variables and (value := list_value(variables[name])) is not None
        }
        members = await asyncio.gather(*(self.is_member(*key) for key in wanted))
        return dict(zip(wanted, members, strict=True))

    async def _refresh(self, key: Membership) -> bool:
        seconds = self._fresh_seconds
        try:
            member = await self._ask(*key)
        except UpstreamError:
            member, seconds = self._known.get(key, (False, 0.0))[0], self._failure_seconds
        finally:
            del self._asking[key]
        self._known.pop(key, None)
        if len(key[0]) + len(key[1]) > LONGEST_CACHED:
            return member
        self._known[key] = (member, time.monotonic() + seconds)
        if len(self._known) > CACHED_MEMBERSHIPS:
            del self._known[next(iter(self._known))]
        return member
