"""List membership: `inlist(...)` in segments and /check-attribute (wire contract A.3, B.6).

The lists live upstream. Answers are cached; when upstream fails an old answer is better than none, and none is "no".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tornado_gateway.core import list_value
from tornado_gateway.errors import UpstreamError

FRESH_SECONDS = 300.0
CACHED_ANSWERS = 100_000

Membership = tuple[str, str]  # list id, value as text
Ask = Callable[[str, str], Awaitable[bool]]


class ListChecks:
    """`ask(list_id, value)` asks upstream and raises UpstreamError when it cannot tell."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._answers: dict[Membership, tuple[bool, float]] = {}  # oldest first; when it was asked
        self._asking: dict[Membership, asyncio.Task[bool]] = {}

    async def is_member(self, list_id: str, value: str) -> bool:
        key = (list_id, value)
        known = self._answers.get(key)
        if known is not None and time.monotonic() - known[1] < FRESH_SECONDS:
            return known[0]
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._refresh(key))
        return await asyncio.shield(self._asking[key])

    async def gather(
        self, checks: Sequence[tuple[str, str]], given: Sequence[Mapping[str, Any]]
    ) -> dict[Membership, bool]:
        """The answers that a feature's segments will ask for: of (variable name, list id), for the given variables."""
        wanted = {
            (list_id, list_value(variables[name]))
            for name, list_id in checks
            for variables in given
            if name in variables
        }
        answers = await asyncio.gather(*(self.is_member(*key) for key in wanted))
        return dict(zip(wanted, answers, strict=True))

    async def _refresh(self, key: Membership) -> bool:
        try:
            member = await self._ask(*key)
        except UpstreamError:
            stale = self._answers.get(key)
            return stale is not None and stale[0]
        finally:
            del self._asking[key]
        self._answers.pop(key, None)
        self._answers[key] = (member, time.monotonic())
        if len(self._answers) > CACHED_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return member
