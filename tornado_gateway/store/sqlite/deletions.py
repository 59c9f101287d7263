"""Deletions of delivered events, which wait for the next append to share its transaction."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.store.sqlite.chunks import delete_alone
from tornado_gateway.store.sqlite.database import Database
from tornado_gateway.store.sqlite.space import DiskSpace

logger = logging.getLogger(__name__)


class Settled(NamedTuple):
    """Chunks that are to be deleted, and the number of their events."""

    ids: list[int]
    events: int


_NOTHING = Settled([], 0)


class PendingDeletions:
    """Settled chunks that are still in the file.

    The next transaction that appends deletes them, or one of their own after `settle_seconds`; deliveries never wait
    for that. After a failure they are deleted alone, every `retry_seconds`, until that has worked.
    """

    def __init__(self, database: Database, space: DiskSpace, settle_seconds: float, retry_seconds: float) -> None:
        self.settled_events = 0  # since the start, not counting those that were deleted at once
        self.deleted_events = 0  # of those
        self._database = database
        self._space = space
        self._settle_seconds = settle_seconds
        self._retry_seconds = retry_seconds
        self._pending = Settled([], 0)
        self._timer: asyncio.TimerHandle | None = None
        self._is_alone = False  # a deletion failed: until one works, they do not share transactions
        self._deleting: asyncio.Task[None] | None = None
        self._appended_at = -settle_seconds

    @property
    def ids(self) -> list[int]:
        """Return a copy of the numbers of the chunks that are still in the file."""
        return self._pending.ids[:]

    def add(self, ids: Sequence[int], events: int) -> None:
        self.settled_events += events
        is_busy = asyncio.get_running_loop().time() - self._appended_at < self._settle_seconds
        self._delete_later(ids, events, self._settle_seconds if is_busy else 0)

    def take_for_append(self) -> Settled:
        """Hand over the chunks that an append deletes. It reports its end to `appended` or `not_deleted`."""
        return self._take() if self._pending.ids and not self._is_alone else _NOTHING

    def appended(self, settled: Settled) -> None:
        self.deleted_events += settled.events
        self._appended_at = asyncio.get_running_loop().time()

    def not_deleted(self, settled: Settled) -> None:
        if settled.ids:
            self._is_alone = True
            self._delete_later(settled.ids, settled.events, self._retry_seconds)

    async def close(self) -> None:
        """Delete the rest. Chunks that cannot be deleted are sent once more after the next start."""
        if self._deleting is not None:
            await asyncio.wait([self._deleting])
        await self._delete()
        self._take()

    def _delete_later(self, ids: Sequence[int], events: int, seconds: float) -> None:
        self._pending.ids.extend(ids)
        self._pending = Settled(self._pending.ids, self._pending.events + events)
        if self._pending.ids and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._delete_now)

    def _delete_now(self) -> None:
        self._timer = None
        self._deleting = asyncio.ensure_future(self._delete())

    async def _delete(self) -> None:
        settled = self._take()
        if not settled.ids:
            return
        try:
            await self._database.run(delete_alone, self._space, settled.ids, then=partial(self._deleted, settled))
        except StoreError as error:
            logger.debug("deleting delivered events failed: %s", error)

    def _deleted(self, settled: Settled, _: object, error: BaseException | None) -> None:
        if error is not None:
            self.not_deleted(settled)
        else:
            self.deleted_events += settled.events
            self._is_alone = False

    def _take(self) -> Settled:
        taken, self._pending = self._pending, Settled([], 0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return taken
