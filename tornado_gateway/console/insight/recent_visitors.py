"""A sample of the users for whom decisions were requested recently, for simulations. It is in memory only.

A worker notes the users of the first decisions of each tick, so that all others cost nothing. Workers publish their
samples in shared memory. The sample of a simulation is that of all workers of this machine.
"""

import time
from collections.abc import Iterator
from typing import Any

import orjson

from tornado_gateway.telemetry.slots import Slots

NOTED_PER_TICK = 32  # decisions of one worker
MOST_VISITORS = 2000  # of one worker, in all environments
KEPT_SECONDS = 3600.0
PUBLISH_SECONDS = 10.0  # until other workers know of a visitor: 2,000 of them take 2 ms

Json = dict[str, Any]
User = tuple[str, str]  # environment, ID


class RecentVisitors:
    """The part of one worker, which owns the slot `row`."""

    def __init__(self, shared: Slots, row: int) -> None:
        self._shared = shared
        self._row = row
        self._seen: dict[User, float] = {}  # the time of the last decision, the oldest first
        self._left = 0  # decisions that are still noted in this tick
        self._published_at = 0.0
        self._has_news = False

    def begin_tick(self) -> None:
        """Note the next decisions. From time to time, publish the visitors and forget old ones."""
        self._left = NOTED_PER_TICK
        now = time.monotonic()
        if now - self._published_at >= PUBLISH_SECONDS:
            is_old = next(iter(self._seen.values()), now) < now - KEPT_SECONDS
            if self._has_news or is_old:
                self._publish()

    def note(self, environment: str, user_id: str) -> bool:
        """Note the user of a decision. Return False if no more are noted in this tick."""
        user = environment, user_id
        self._seen.pop(user, None)
        self._seen[user] = time.monotonic()
        self._has_news = True
        self._left -= 1
        return self._left > 0

    def of(self, environment: str) -> list[str]:
        """Return the user IDs of an environment, each once, the most recent first."""
        self._publish()
        found: dict[str, float] = {}
        for row in range(self._shared.count):
            for user_id, at in self._published(row, environment):
                found[user_id] = max(at, found.get(user_id, 0.0))
        return sorted(found, key=lambda user_id: -found[user_id])

    def _published(self, row: int, environment: str) -> Iterator[tuple[str, float]]:
        body = self._shared.read(row)
        oldest = time.monotonic() - KEPT_SECONDS
        for name, user_id, at in [] if body is None else orjson.loads(body):
            if name == environment and at >= oldest:
                yield user_id, at

    def _publish(self) -> None:
        self._forget(len(self._seen) - MOST_VISITORS)
        while len(body := self._encoded()) > self._shared.capacity:
            self._forget(len(self._seen) // 2)
        self._shared.write(self._row, body)
        self._published_at, self._has_news = time.monotonic(), False

    def _forget(self, number: int) -> None:
        """Forget the oldest visitors: so many, and those that are too old."""
        oldest = time.monotonic() - KEPT_SECONDS
        kept = [item for item in list(self._seen.items())[max(0, number) :] if item[1] >= oldest]
        self._seen = dict(kept)

    def _encoded(self) -> bytes:
        return orjson.dumps([(*user, at) for user, at in self._seen.items()])
