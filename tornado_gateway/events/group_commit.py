"""Group commit: the events of concurrent requests are written to the store together. Used by `queue.py`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from tornado_gateway.errors import StoreError
from tornado_gateway.events.budget import ByteBudget
from tornado_gateway.gate import Gate
from tornado_gateway.logs import ThrottledLog, once
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

Entry = tuple[int, bytes]  # number of events, their documents joined by newlines
CHECKS = 4  # of a commit within its time
# Between the beginnings of two groups while requests are concurrent: to commit a group costs more than to decide.
GROUP_SECONDS = 0.0005
TIMER_SECONDS = 0.001  # the shortest time that uvloop can wait


class Group:
    """Events that are committed together, and the gates that hold back the responses to their requests.

    `count` is their number, `size` that of the bytes of their documents. `gate` fails if the commit fails. `decisions`
    opens then as well: a decision does not depend on its impressions. With `one_gate` both are the same. `checks` is
    the number of checks since the commit began. They measure its time, because a clock also counts the time for which
    the process was suspended.
    """

    __slots__ = ("_gate", "checks", "count", "decisions", "entries", "size")

    def __init__(self, *, one_gate: bool) -> None:
        self.entries: list[Entry] = []
        self.count = 0
        self.size = 0
        self.decisions = Gate()
        self._gate: Gate | None = self.decisions if one_gate else None
        self.checks = 0

    @property
    def gate(self) -> Gate:
        """The gate of events. Most groups have only decisions, and need none."""
        if self._gate is None:
            self._gate = Gate()
        return self._gate

    @property
    def has_one_gate(self) -> bool:
        """Whether decisions depend on their impressions."""
        return self.decisions is self._gate

    def next(self) -> "Group":
        """Return an empty group with the same kind of gates."""
        return Group(one_gate=self.decisions is self._gate)

    def put_back(self, group: "Group") -> None:
        """Add the events of an earlier group, which could not be stored. Their responses have left."""
        self.entries[:0] = group.entries
        self.count += group.count
        self.size += group.size

    def open(self) -> None:
        """Release the responses, because the events are stored."""
        self.decisions.open()
        if self._gate is not None:
            self._gate.open()  # without effect if both are one

    def release(self, failure: str) -> None:
        """Release the responses although the events are not stored."""
        self.decisions.is_lost = True
        if self._gate is not None:
            self._gate.fail(StoreError(failure))
        self.decisions.open()


class Pace:
    """Wakes the task that commits. After a group of several requests it waits until `seconds` after their beginning.

    So groups are fewer and larger under load, and a lone client never waits. Each arrival of a request checks the
    time, because the timer is coarse.
    """

    def __init__(self, seconds: float = GROUP_SECONDS, timer_seconds: float = TIMER_SECONDS) -> None:
        self._seconds = seconds
        self._timer_seconds = timer_seconds
        self._next_at = 0.0  # when the next group may begin, by the monotonic clock
        self._idle: asyncio.Future[None] | None = None  # done when there is something to do
        self._is_timed = False

    def begin(self, group: Group) -> None:
        """Note that a group begins."""
        self._next_at = monotonic() + self._seconds if len(group.entries) > 1 else 0.0

    def is_early(self) -> bool:
        """Return whether the next group may not begin yet."""
        return self._next_at > 0.0 and monotonic() < self._next_at

    async def wait(self, *, is_wanted: bool) -> None:
        """Wait until there is something to do; `is_wanted`: there is, but the group may not begin yet."""
        idle = self._idle = asyncio.get_running_loop().create_future()
        if is_wanted:
            self.want()
        await idle

    def want(self, *, at_once: bool = False) -> None:
        """End the wait, if there is one, as soon as the group may begin."""
        if self._idle is None:
            return
        if at_once or not self.is_early():
            self._idle.set_result(None)
            self._idle = None
        elif not self._is_timed:
            self._is_timed = True
            asyncio.get_running_loop().call_later(self._timer_seconds, self._timer_ended)

    def _timer_ended(self) -> None:
        self._is_timed = False
        self.want(at_once=True)


class GroupCommit:
    """Writes groups of events, one after the other, for the queue that fills `pending` and then calls `want`.

    Entries that arrive during a commit form the next group. `write` stores the entries of a group or raises StoreError.
    `stored` is called with each group that was stored, and has to open it. `rejected` is called with each group that
    will not be stored.

    Without `durable` a group that cannot be stored is kept, and tried again after `retry_seconds`. With `durable` it is
    rejected, and the budget is closed while a commit takes longer than `commit_seconds`.
    """

    def __init__(
        self,
        write: Callable[[Group], Awaitable[None]],
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
        self.failure: str | None = None  # of the commit in progress or the last one
        self._write = write
        self._stored = stored
        self._rejected = rejected
        self._budget = budget
        self._durable = durable
        self._commit_seconds = commit_seconds
        self._retry_seconds = retry_seconds
        self._log = ThrottledLog(logger, condition="commit")
        self._committing: Group | None = None
        self._stopping = False
        self._pace = Pace()
        self._task: asyncio.Task[None] | None = None
        self._watch = Periodic(self._check_for_stall, commit_seconds / CHECKS)

    def start(self) -> None:
        self._watch.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Commit the events that are pending. Call when nothing is added any more."""
        if self._task is not None:
            self._stopping = True
            self.want()
            await self._task
            self._task = None
        await self._watch.end()

    def want(self) -> None:
        """Commit the pending group in the next turn of the loop, or as soon as it may begin."""
        self._pace.want(at_once=self._stopping)

    @property
    def uncommitted(self) -> int:
        """The number of events in memory."""
        return self.pending.count + (self._committing.count if self._committing is not None else 0)

    async def _run(self) -> None:
        while True:
            is_wanted = bool(self.pending.entries)
            if not self._stopping and (not is_wanted or self._pace.is_early()):
                await self._pace.wait(is_wanted=is_wanted)
            if self.pending.entries:
                await self._commit()
            if self._stopping and not (self._durable and self.pending.entries):
                self._budget.close()  # a request that is still in progress would wait for a commit that never comes
                return

    async def _commit(self) -> None:
        group, self.pending = self.pending, self.pending.next()
        self._committing = group
        self._pace.begin(group)
        self._budget.begin(group.size)
        is_stored, failure = False, ""
        try:
            await self._write(group)
            is_stored = True
        except StoreError as error:
            failure = str(error)
        finally:
            self._committing = None
            self._budget.end(is_stored=is_stored)
        if not is_stored:
            await self._not_stored(group, failure)
            return
        if self.failure is not None:
            logger.error("events can be stored again", extra=once("events are stored again"))
            self.failure = None
        self._stored(group)

    async def _not_stored(self, group: Group, failure: str) -> None:
        self._failed(failure)
        if self._durable:
            self._reject(group)
        else:
            self.pending.put_back(group)
            await asyncio.sleep(self._retry_seconds)

    def _reject(self, group: Group) -> None:
        self._rejected(group)
        group.release(f"the event could not be stored: {self.failure}")

    def _failed(self, reason: str) -> None:
        # One reason for the log: the texts differ in file names and numbers, although the cause is the same.
        self._log.error("not stored", "events cannot be stored: %s", reason)
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
