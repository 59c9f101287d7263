"""Group commit: the events of concurrent requests are written to the store together. Used by `queue.py`.

Each environment has groups of its own. Environments whose stores share a connection commit theirs in rounds, because a
round costs far more than a group in it.
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, NamedTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.events.budget import ByteBudget
from tornado_gateway.gate import Gate
from tornado_gateway.logs import ThrottledLog, once
from tornado_gateway.store.interfaces import EventStore, NewChunk, Together
from tornado_gateway.tasks import Periodic, end_tasks

logger = logging.getLogger(__name__)

Entry = tuple[int, bytes]  # number of events, their documents joined by newlines
CHECKS = 4  # of a commit within its time
# Between the beginnings of two rounds while requests are many: to commit a group costs more than to decide.
GROUP_SECONDS = 0.001
MANY_REQUESTS = 2  # on average in that time. To wait for fewer would cost them more time than it saves of the core's
RATE_SECONDS = 0.02  # over which they are counted
FULL_GROUP = 48  # requests that wait no longer for others: a larger group saves little more
TIMER_SECONDS = 0.001  # the shortest time that uvloop can wait
ROUND_GROUPS = 64  # in one step of the store, which does nothing else meanwhile
ROUND_BYTES = 1024 * 1024  # so that a large group delays few others


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
    """Wakes the task that commits. While requests are many, a round begins `seconds` after the one before it.

    So rounds are fewer and larger under load. A round with a full group begins at once, as does one after a round with
    a single request. Each arrival of a group checks the time, because the timer is coarse. `rate_seconds` is the
    shortest time over which requests are counted.
    """

    def __init__(
        self,
        seconds: float = GROUP_SECONDS,
        timer_seconds: float = TIMER_SECONDS,
        rate_seconds: float = RATE_SECONDS,
    ) -> None:
        self._seconds = seconds
        self._timer_seconds = timer_seconds
        self._rate_seconds = rate_seconds
        self._counted_since = 0.0
        self._requests = 0  # since then
        self._are_many = False
        self._next_at = 0.0  # when the next round may begin, by the monotonic clock
        self._idle: asyncio.Future[None] | None = None  # done when there is something to do
        self._is_timed = False

    def begin(self, requests: int) -> None:
        """Note that a round with the events of so many requests begins."""
        now = monotonic()
        self._requests += requests
        passed = now - self._counted_since
        if passed >= self._rate_seconds:
            self._are_many = self._requests * self._seconds >= MANY_REQUESTS * passed
            self._requests, self._counted_since = 0, now
        self._next_at = now + self._seconds if self._are_many and requests > 1 else 0.0

    def is_early(self) -> bool:
        """Return whether the next round may not begin yet."""
        return self._next_at > 0.0 and monotonic() < self._next_at

    async def wait(self, *, is_wanted: bool) -> None:
        """Wait until there is something to do; `is_wanted`: there is, but the round may not begin yet."""
        idle = self._idle = asyncio.get_running_loop().create_future()
        if is_wanted:
            self.want()
        await idle

    def want(self, *, at_once: bool = False) -> None:
        """End the wait, if there is one, as soon as the round may begin."""
        if self._idle is None or self._idle.done():
            return
        if at_once or not self.is_early():
            self._idle.set_result(None)
            self._idle = None
        elif not self._is_timed:
            self._is_timed = True
            asyncio.get_running_loop().call_later(self._timer_seconds, self._timer_ended)

    def hurry(self) -> None:
        """Let the next round begin at once."""
        self._next_at = 0.0
        self.want()

    def _timer_ended(self) -> None:
        self._is_timed = False
        self.want(at_once=True)


class Terms(NamedTuple):
    """How a queue commits.

    Without `durable` a group that cannot be stored is kept, and tried again after `retry_seconds`. With `durable` it is
    rejected, and the budget is closed while a commit takes longer than `commit_seconds`.
    """

    durable: bool
    commit_seconds: float
    retry_seconds: float


class GroupCommit:
    """The groups of one environment, committed one after the other.

    The queue fills `pending`, and calls `want` with its first entry and `hurry` when it is full. Entries that arrive
    during a commit form the next group. `chunks_of` returns the chunks of a group for the `store`. `stored` is called
    with each group that was stored, and has to open it. `rejected` is called with each group that will not be stored.
    `commits` begins the commits.
    """

    def __init__(
        self,
        store: EventStore,
        chunks_of: Callable[[Group], list[NewChunk]],
        stored: Callable[[Group], None],
        rejected: Callable[[Group], None],
        budget: ByteBudget,
        commits: "Commits",
        terms: Terms,
        *,
        one_gate: bool,
    ) -> None:
        self.pending = Group(one_gate=one_gate)
        self.failure: str | None = None  # of the commit in progress or the last one
        self.store = store
        self.chunks_of = chunks_of
        self._stored = stored
        self._rejected = rejected
        self._budget = budget
        self._commits = commits
        self._terms = terms
        self._log = ThrottledLog(logger, condition="commit")
        self._committing: Group | None = None
        self._context: contextvars.Context | None = None  # of the log lines; None: it was not started
        self._ended: asyncio.Future[None] | None = None  # done when the last commit of a stop has ended
        self._watch = Periodic(self._check_for_stall, terms.commit_seconds / CHECKS)

    def start(self) -> None:
        self._context = contextvars.copy_context()
        self._watch.start()
        self._commits.open()

    async def stop(self) -> None:
        """Commit the events that are pending. Call when nothing is added any more."""
        if self._context is not None:
            self._ended = asyncio.get_running_loop().create_future()
            if self._committing is None:
                self._continue(is_stored=True)
            await self._ended
            self._context = None
            await self._commits.close()
        await self._watch.end()

    def want(self) -> None:
        """Commit the pending group in the next turn of the loop, or as soon as it may begin.

        During a commit without effect: the next one begins after it.
        """
        if self._committing is None:
            self._commits.want(self)

    def hurry(self) -> None:
        """Let the pending group, which is full, wait for nothing but the commit in progress."""
        self._commits.hurry()

    @property
    def uncommitted(self) -> int:
        """The number of events in memory."""
        return self.pending.count + (self._committing.count if self._committing is not None else 0)

    # --- One commit ---

    @property
    def can_begin(self) -> bool:
        """Whether there is something to commit, and no commit in progress."""
        return bool(self.pending.entries) and self._committing is None and self._context is not None

    def begin(self) -> Group:
        """Return the pending group, whose commit begins."""
        group, self.pending = self.pending, self.pending.next()
        self._committing = group
        self._budget.begin(group.size)
        return group

    async def write(self, group: Group) -> None:
        """Store a group that has begun, by itself."""
        is_stored, failure = False, ""
        try:
            await self.store.append(self.chunks_of(group))
            is_stored = True
        except StoreError as error:
            failure = str(error)
        finally:
            self._budget.end(is_stored=is_stored)
        self._finish(group, failure, is_stored=is_stored)

    def written(self, group: Group, error: StoreError | None) -> None:
        """End the commit of a group of a round. If it has failed, the group is written by itself."""
        context = self._context or contextvars.copy_context()
        if error is not None:
            self._commits.run_alone(self.write(group), context)
        else:
            self._budget.end(is_stored=True)
            context.run(self._finish, group, "", is_stored=True)

    def _finish(self, group: Group, failure: str, *, is_stored: bool) -> None:
        try:
            if is_stored:
                if self.failure is not None:
                    logger.error("events can be stored again", extra=once("events are stored again"))
                    self.failure = None
                self._stored(group)
            else:
                self._not_stored(group, failure)
        finally:
            self._committing = None
            if self.pending.entries or self._ended is not None:
                self._continue(is_stored=is_stored)

    def _continue(self, *, is_stored: bool) -> None:
        """Commit what is pending, later if the store has failed to store it. With nothing left to do, a stop ends."""
        is_kept = not (is_stored or self._terms.durable)  # for another try
        if self.pending.entries and not (is_kept and self._ended is not None):
            if is_kept:
                asyncio.get_running_loop().call_later(self._terms.retry_seconds, self._commits.want, self)
            else:
                self._commits.want(self)
        elif self._ended is not None and not self._ended.done():
            self._budget.close()  # a request that is still in progress would wait for a commit that never comes
            self._ended.set_result(None)

    def _not_stored(self, group: Group, failure: str) -> None:
        self._failed(failure)
        if self._terms.durable:
            self._reject(group)
        else:
            self.pending.put_back(group)

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
        self._failed(f"the store has not completed a write for {self._terms.commit_seconds:g} s")
        if self._terms.durable:
            self._budget.close()
            group.release(f"the event could not be stored in time: {self.failure}")
            pending, self.pending = self.pending, self.pending.next()
            self._reject(pending)


Begun = list[tuple[GroupCommit, Group]]


class Commits:
    """Begins the commits of environments whose stores have this `together`: those that wait share the next round.

    A round ends when the store has responded. A group that could not be stored in it is written outside of rounds, so
    that it delays no other environment. Without `together` there is one environment.
    """

    def __init__(self, together: Together | None = None, pace: Pace | None = None) -> None:
        self._together = together
        self._waiting: deque[GroupCommit] = deque()
        self._pace = pace or Pace()
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Count one more environment. Each `open` needs one `close`."""
        self._users += 1
        if self._task is None:
            context = None if self._together is None else contextvars.Context()  # of no environment
            self._task = asyncio.get_running_loop().create_task(self._run(), context=context)

    async def close(self) -> None:
        self._users -= 1
        if not self._users:
            task, self._task = self._task, None
            await end_tasks(task)

    def want(self, member: GroupCommit) -> None:
        """Commit the pending group of an environment in the next round."""
        self._waiting.append(member)
        self._pace.want()

    def hurry(self) -> None:
        """Let the next round begin at once."""
        self._pace.hurry()

    def run_alone(self, work: Coroutine[Any, Any, None], context: contextvars.Context) -> None:
        """Run work outside of rounds."""
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)

    async def _run(self) -> None:
        while True:
            if not self._waiting or self._pace.is_early():
                await self._pace.wait(is_wanted=bool(self._waiting))
            if self._together is not None:
                await self._write_together(self._together, self._begin())
            elif self._waiting and (member := self._waiting.popleft()).pending.entries:
                group = member.begin()
                self._pace.begin(len(group.entries))
                await member.write(group)

    def _begin(self) -> Begun:
        """Begin a round with the groups that have waited longest."""
        begun: Begun = []
        requests = size = 0
        while self._waiting and len(begun) < ROUND_GROUPS and size < ROUND_BYTES:
            member = self._waiting.popleft()
            if member.can_begin:
                group = member.begin()
                begun.append((member, group))
                requests += len(group.entries)
                size += group.size
        self._pace.begin(requests)
        return begun

    async def _write_together(self, together: Together, begun: Begun) -> None:
        errors: Sequence[StoreError | None]
        try:
            errors = await together.append([(member.store, member.chunks_of(group)) for member, group in begun])
        except Exception:  # a fault of ours must not end the commits of all environments
            logger.exception("groups of events failed unexpectedly, they are written one by one")
            errors = [StoreError("failed unexpectedly")] * len(begun)
        for (member, group), error in zip(begun, errors, strict=True):
            try:
                member.written(group, error)
            except Exception:
                logger.exception("a commit failed unexpectedly")
