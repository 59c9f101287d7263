"""Group commit: the events of concurrent requests are written to the store together. Used by `queue.py`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from tornado_gateway.errors import StoreError
from tornado_gateway.events.budget import ByteBudget
from tornado_gateway.gate import Gate
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

Entry = tuple[int, bytes]  # number of events, their documents joined by newlines
CHECKS = 4  # of a commit within its time


class Group:
    """Events that are committed together, and the gates that hold back the responses to their requests.

    `gate` fails if the commit fails. `decisions` opens then as well: a decision does not depend on its impressions.
    `checks` is the number of checks since the commit began. They measure its time, because a clock also counts the time
    for which the process was suspended.
    """

    __slots__ = ("checks", "decisions", "entries", "gate")

    def __init__(self, *, one_gate: bool) -> None:
        self.entries: list[Entry] = []
        self.gate = Gate()
        self.decisions = self.gate if one_gate else Gate()
        self.checks = 0

    @property
    def has_one_gate(self) -> bool:
        """Whether decisions depend on their impressions."""
        return self.decisions is self.gate

    @property
    def count(self) -> int:
        """The number of events."""
        return sum([count for count, _ in self.entries])

    @property
    def size(self) -> int:
        """The number of bytes of their documents."""
        return sum([len(documents) for _, documents in self.entries])

    def next(self) -> "Group":
        """Return an empty group with the same kind of gates."""
        return Group(one_gate=self.has_one_gate)

    def open(self) -> None:
        """Release the responses, because the events are stored."""
        self.gate.open()
        self.decisions.open()  # without effect if both are one

    def release(self, failure: str) -> None:
        """Release the responses although the events are not stored."""
        self.gate.fail(StoreError(failure))
        self.decisions.open()


class GroupCommit:
    """Writes groups of events, one after the other, for the queue that fills `pending` and then sets `wanted`.

    Entries that arrive during a commit form the next group. `write` stores the entries of a group or raises StoreError.
    `stored` is called with each group that was stored, and has to open it. `rejected` is called with each group that
    will not be stored.

    Without `durable` a group that cannot be stored is kept, and tried again after `retry_seconds`. With `durable` it is
    rejected, and the budget is closed while a commit takes longer than `commit_seconds`.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Entry]], Awaitable[None]],
        stored: Callable[[Group], None],
        rejected: Callable[[Group], None],
        budget: ByteBudget,
        *,
        durable: bool,
        one_gate: bool,
        commit_seconds: float,
        retry_seconds: float,
    ) -> None:
        self.pending = Group(one_gate=one_gate)
        self.wanted = asyncio.Event()
        self.failure: str | None = None  # of the commit in progress or the last one
        self._write = write
        self._stored = stored
        self._rejected = rejected
        self._budget = budget
        self._durable = durable
        self._commit_seconds = commit_seconds
        self._retry_seconds = retry_seconds
        self._log = ThrottledLog(logger)
        self._committing: Group | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._watch = Periodic(self._check_for_stall, commit_seconds / CHECKS)

    def start(self) -> None:
        self._watch.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Commit the events that are pending. Call when nothing is added any more."""
        if self._task is not None:
            self._stopping = True
            self.wanted.set()
            await self._task
            self._task = None
        await self._watch.end()

    @property
    def uncommitted(self) -> int:
        """The number of events in memory."""
        return self.pending.count + (self._committing.count if self._committing is not None else 0)

    async def _run(self) -> None:
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            if self.pending.entries:
                await self._commit()
            if self._stopping:
                return

    async def _commit(self) -> None:
        group, self.pending = self.pending, self.pending.next()
        self._committing = group
        failure: str | None = None
        try:
            await self._write(group.entries)
        except StoreError as error:
            failure = str(error)
        finally:
            self._committing = None
            if self._budget.is_closed:
                self._budget.close(is_closed=False)
        if failure is not None:
            await self._not_stored(group, failure)
            return
        if self.failure is not None:
            logger.error("events can be stored again")
            self.failure = None
        self._stored(group)

    async def _not_stored(self, group: Group, failure: str) -> None:
        self._failed(failure)
        if self._durable:
            self._reject(group)
        else:
            self.pending.entries[:0] = group.entries
            await asyncio.sleep(self._retry_seconds)
            self.wanted.set()

    def _reject(self, group: Group) -> None:
        self._rejected(group)
        group.release(f"the event could not be stored: {self.failure}")

    def _failed(self, reason: str) -> None:
        self._log.error(reason, "events cannot be stored: %s", reason)
        self.failure = reason

    def _check_for_stall(self) -> None:
        """Release the responses that wait for a commit that has stalled, such as on a disk that does not respond."""
        group = self._committing
        if group is None:
            return
        group.checks += 1
        if group.checks <= CHECKS:
            return
        self._failed(f"the store has not completed a write for {self._commit_seconds:g} s")
        if self._durable:
            self._budget.close()
            group.release(f"the event could not be stored in time: {self.failure}")
            pending, self.pending = self.pending, self.pending.next()
            self._reject(pending)
