"""Fallback when Redis fails: events go to the embedded store of this worker, then to Redis again.

Clients notice nothing: chunks that cannot be appended to the primary store are appended to the local one and
acknowledged from there. A probe in the background, with backoff, detects when the primary can be written again, and
moves everything. Until then, events are delivered from both stores.

Nothing is lost, but an event can arrive twice: when an append succeeded but its reply was lost (the events are
appended locally as well); when the process dies between the two halves of a move; and when it dies before the events
delivered during an outage are settled in the primary store.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import StoreError
from tornado_gateway.logs import once
from tornado_gateway.store.interfaces import CLAIM_BYTES, Chunk, DeadLetters, Depth, EventStore, NewChunk, Part
from tornado_gateway.tasks import TimeLimit, end_tasks, wait_at_most

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCAL = "local:"  # prefix of the ids of chunks and dead letters in the local store
PROBE_FIRST_SECONDS = 0.1
PROBE_LONGEST_SECONDS = 2.0
PROBE_JITTER = 0.5
APPEND_SECONDS = 0.25  # a response waits for this
READ_SECONDS = 1.0  # pages wait this long for a primary store that has failed
MOVED_EVENTS = 1000  # events that move to the primary store in one append


class SpillingEvents:
    """`primary` while it works, `local` while it does not.

    A call to the primary that takes longer than `patience_seconds` counts as failed. The primary should give up
    before that and then have done nothing, otherwise work that it completes later is done twice.
    """

    def __init__(
        self,
        primary: EventStore,
        local: EventStore,
        *,
        patience_seconds: float = 10.0,
        together: "SpillingAppends | None" = None,
    ) -> None:
        self._together = together
        self.repairs = 0  # those of the local log are not counted: it holds events only while the primary fails
        self.letters_version = 0
        self.failure: str | None = None  # why the primary store is not used at the moment
        self.primary = primary
        self._local = local
        self._patience_seconds = patience_seconds
        self._primary_is_open = False
        self._primary_depth = Depth(0, 0, None)
        self._unused: tuple[object, Depth] | None = None  # depth of the local store, until it changes
        self._delivered: list[Chunk] = []  # chunks that are not yet settled in the primary store
        self._local_first = False
        self._wanted = asyncio.Event()  # there are chunks to move, or the primary store has to be probed
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def lost(self) -> int:
        return self.primary.lost

    @property
    def is_degraded(self) -> bool:
        """Return whether new events go to the local store."""
        return self.failure is not None

    async def open(self) -> None:
        """Open the stores. A primary store that fails is no error here; `failure` has the reason."""
        await self._local.open()
        self.failure = None
        self._stopping.clear()
        with suppress(StoreError):
            await self._open_primary()
        self._wanted.set()  # a previous process may have left chunks
        if self._together is not None:
            self._together.stores.add(self)
        self._task = asyncio.create_task(self._keep_moving())

    async def close(self) -> None:
        if self._together is not None:
            self._together.stores.discard(self)
        if self._task is not None:
            self._stopping.set()
            self._wanted.set()
            _, unfinished = await asyncio.wait([self._task], timeout=self._patience_seconds)
            await end_tasks(*unfinished)
            self._task = None
        if self._primary_is_open:
            self._primary_is_open = False
            await self.primary.close()
        await self._local.close()

    async def append(self, chunks: Sequence[NewChunk], seconds: float | None = None) -> None:
        """As promised by EventStore. A primary store that hangs delays the first chunks by APPEND_SECONDS at most."""
        seconds = min(APPEND_SECONDS, seconds or self._patience_seconds)
        if not self.is_degraded:
            with suppress(StoreError):
                await self._ask(self.primary.append, chunks, seconds, within=seconds)
                return
        try:
            await self._change(self._local.append(chunks))
        finally:
            self._wanted.set()  # the primary may have recovered, and everything else moved, before this append ended

    async def claim(self, max_events: int, max_bytes: int = CLAIM_BYTES) -> list[Chunk]:
        """As promised by EventStore, of one of the two stores."""
        if not self.is_degraded:
            with suppress(StoreError):
                return await self._ask(self.primary.claim, max_events, max_bytes)
        # A primary that is full and accepts no more events has to be drained, so claims alternate.
        self._local_first = not self._local_first
        claims = [self._claim_local, self._claim_primary]
        for claim in claims if self._local_first else reversed(claims):
            if chunks := await claim(max_events, max_bytes):
                return chunks
        return []

    async def release(self, chunks: Sequence[Chunk]) -> None:
        local, primary = _split(chunks)
        if primary:
            await self.primary.release(primary)
        if local:
            await self._local.release(local)
            self._wanted.set()

    def drop_bodies(self, chunks: Sequence[Chunk]) -> None:
        self._local.drop_bodies(_split(chunks)[0])

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        """As promised by EventStore. If the primary fails, it is settled later, and the rest is kept locally."""
        local, primary = _split(chunks)
        has_failed = False
        if primary:
            try:
                await self._ask(self.primary.settle, primary, dead, remaining)
                dead = remaining = ()
            except StoreError:
                has_failed = True
        if local or dead or remaining:
            await self._change(self._local.settle(local, dead, remaining))
        if has_failed:  # only now: if the local store fails too, all chunks still belong to the caller
            self._delivered += primary
        if remaining or has_failed:
            self._wanted.set()

    async def depth(self, *, patient: bool = False) -> Depth:
        """Return the sum of both stores; a primary store that fails counts with its last known depth.

        It is not patient while the local store has events, which may move between the two readings.
        """
        local = await self._depth_of_local()
        is_stale = True
        if self._primary_is_open:
            with suppress(StoreError):
                read = partial(self.primary.depth, patient=patient and not local.waiting)
                self._primary_depth = await self._ask(read, within=self._read_seconds)
                is_stale = False
        primary = self._primary_depth
        oldest = [at for at in (local.oldest_at, primary.oldest_at) if at is not None]
        size = local.waiting_bytes + primary.waiting_bytes
        waiting, dead = local.waiting + primary.waiting, local.dead + primary.dead
        return Depth(waiting, dead, min(oldest, default=None), size, is_stale)

    async def _depth_of_local(self) -> Depth:
        """Return the depth of the local store, as it was last while that is unused: its thread delays the loop."""
        facts = (self._local.repairs, self._local.letters_version)
        if self._unused is not None and self._unused[0] == facts:
            return self._unused[1]
        depth = await self._local.depth()
        self._unused = None if depth.waiting else (facts, depth)
        return depth

    async def _change(self, work: Awaitable[T]) -> T:
        """Change the local store, and forget its depth."""
        try:
            return await work
        finally:
            self._unused = None

    async def dead_letters(self, limit: int = 100, first: int | str | None = None) -> DeadLetters:
        """Return the letters of the local store, then those of the primary store, unless that fails."""
        letters = DeadLetters()
        if first is None or _is_local(first):
            local = await self._local.dead_letters(limit, None if first is None else _local_id(first))
            letters.extend([replace(letter, id=f"{LOCAL}{letter.id}") for letter in local])
            first = None
        if len(letters) < limit:
            try:
                self._check_primary()
                missing = limit - len(letters)
                letters += await self._ask(self.primary.dead_letters, missing, first, within=self._read_seconds)
            except StoreError as error:
                letters.unreadable = str(error)
        return letters

    async def requeue(self, ids: Sequence[int | str] | None = None, max_events: int | None = None) -> int:
        """As promised by EventStore, first of the primary store: if it fails, nothing is moved."""
        local = None if ids is None else [_local_id(id_) for id_ in ids if _is_local(id_)]
        primary = None if ids is None else [id_ for id_ in ids if not _is_local(id_)]
        moved = 0
        if primary is None or primary:
            self._check_primary()
            moved += await self._ask_long(self.primary.requeue, primary, max_events)
        if local is None or local:
            left = None if max_events is None else max_events - moved
            try:
                moved += await self._change(self._local.requeue(local, left))
            except StoreError as error:
                if not moved:
                    raise
                logger.error("requeued %d dead events, those of the local store stay dead: %s", moved, error)
            self._wanted.set()
        return moved

    async def requeue_edited(self, id_: int | str, body: bytes) -> int:
        if _is_local(id_):
            moved = await self._change(self._local.requeue_edited(_local_id(id_), body))
            self._wanted.set()
            return moved
        self._check_primary()
        return await self._ask_long(self.primary.requeue_edited, id_, body)

    async def discard_dead_letters(self, ids: Sequence[int | str]) -> int:
        """As promised by EventStore, first of the primary store: if it fails, nothing is discarded."""
        discarded = 0
        if primary := [id_ for id_ in ids if not _is_local(id_)]:
            self._check_primary()
            discarded = await self._ask_long(self.primary.discard_dead_letters, primary)
        if local := [_local_id(id_) for id_ in ids if _is_local(id_)]:
            discarded += await self._change(self._local.discard_dead_letters(local))
        return discarded

    async def expire_dead_letters(self, before: float) -> int:
        discarded = await self._change(self._local.expire_dead_letters(before))
        if self._primary_is_open:
            with suppress(StoreError):
                discarded += await self._ask_long(self.primary.expire_dead_letters, before)
        return discarded

    def _check_primary(self) -> None:
        if not self._primary_is_open:
            raise StoreError(self.failure or "the store is closed")

    async def trim_dead_letters(self, max_events: int) -> int:
        """As promised by EventStore; each of the two stores keeps as many."""
        discarded = await self._change(self._local.trim_dead_letters(max_events))
        if self._primary_is_open:
            with suppress(StoreError):
                discarded += await self._ask_long(self.primary.trim_dead_letters, max_events)
        return discarded

    @property
    def _read_seconds(self) -> float | None:
        """The limit for reads that pages wait for: a store that is only full still responds."""
        return READ_SECONDS if self.is_degraded else None

    async def adopt(self) -> int:
        """As promised by EventStore: such events are in the local store until the primary one can be written."""
        moved = await self._change(self._local.adopt())
        if moved:
            self._wanted.set()
        return moved

    async def _claim_local(self, max_events: int, max_bytes: int) -> list[Chunk]:
        return [replace(chunk, id=f"{LOCAL}{chunk.id}") for chunk in await self._local.claim(max_events, max_bytes)]

    async def _claim_primary(self, max_events: int, max_bytes: int) -> list[Chunk]:
        if self._primary_is_open:
            with suppress(StoreError):
                return await self._ask(self.primary.claim, max_events, max_bytes)
        return []

    async def _ask(self, work: Callable[..., Awaitable[T]], *args: object, within: float | None = None) -> T:
        """Call the primary store. If it fails, note the failure and raise StoreError."""
        seconds = within or self._patience_seconds
        try:
            with TimeLimit(seconds):
                return await work(*args)
        except TimeoutError:
            error = StoreError(f"no response within {seconds:g} s")
        except StoreError as failure:
            error = failure
        self.note_failure(error)
        raise error

    async def _ask_long(self, work: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call the primary store without a time limit, for many steps that are bounded one by one."""
        try:
            return await work(*args)
        except StoreError as error:
            self.note_failure(error)
            raise

    async def _open_primary(self) -> None:
        if not self._primary_is_open:
            await self._ask(self.primary.open)
            self._primary_is_open = True

    async def _keep_moving(self) -> None:
        backoff = Backoff(PROBE_FIRST_SECONDS, PROBE_LONGEST_SECONDS, PROBE_JITTER)
        while not self._stopping.is_set():
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._catch_up()
                backoff.reset()
            except StoreError as error:
                logger.debug("the primary store still fails, events stay in the local store: %s", error)
                self._wanted.set()
                await wait_at_most(self._stopping, backoff.next())

    async def _catch_up(self) -> None:
        """If the primary store can be written, settle the delivered chunks there and move all local ones."""
        await self._open_primary()
        await self._ask(self.primary.append, ())
        if self._delivered:
            delivered = self._delivered[:]
            await self._ask(self.primary.settle, delivered)
            del self._delivered[: len(delivered)]
        self._recovered()
        while not self._stopping.is_set() and (chunks := await self._local.claim(MOVED_EVENTS)):
            try:
                await self._ask(self.primary.append, [_renewed(chunk) for chunk in chunks])
            except BaseException:
                await self._local.release(chunks)
                raise
            await self._change(self._local.settle(chunks))

    def note_failure(self, error: StoreError) -> None:
        if self.failure is None:
            extra = once("primary store failed", is_of_instance=True)
            logger.error("the primary store failed, events go to the local store: %s", error, extra=extra)
        self.failure = str(error)
        self._wanted.set()

    def _recovered(self) -> None:
        if self.failure is not None:
            extra = once("primary store recovered", is_of_instance=True)
            logger.error("the primary store recovered, events go there again", extra=extra)
        self.failure = None


class SpillingAppends:
    """Appends to the primary stores of several environments, which share a connection.

    A part fails if its primary store fails, or has failed before: appended by itself, it goes to the local store.
    """

    def __init__(
        self,
        append: Callable[[Sequence[Part], float], Awaitable[Sequence[StoreError | None]]],
        seconds: float = APPEND_SECONDS,
    ) -> None:
        self.stores: set[SpillingEvents] = set()  # that are open
        self._append = append
        self._seconds = seconds

    async def append(self, parts: Sequence[Part]) -> Sequence[StoreError | None]:
        """As promised by Together. A connection that hangs delays all waiting chunks by so many seconds at most."""
        errors = {store: StoreError(store.failure) for store, _ in parts if store.failure is not None}
        working = [part for part in parts if part[0] not in errors] if errors else parts
        found = await self._append_to_primaries(working) if working else []
        if not errors and not any(found):
            return found
        for (store, _), error in zip(working, found, strict=True):
            if error is not None:
                store.note_failure(error)
                errors[store] = error
        return [errors.get(store) for store, _ in parts]

    async def _append_to_primaries(self, parts: Sequence[Part]) -> Sequence[StoreError | None]:
        try:
            with TimeLimit(self._seconds):
                return await self._append([(store.primary, chunks) for store, chunks in parts], self._seconds)
        except TimeoutError:
            error = StoreError(f"no response within {self._seconds:g} s")
            for store in self.stores:  # otherwise those that wait would have to find out one after the other
                store.note_failure(error)
            return [error] * len(parts)


def _renewed(chunk: Chunk) -> NewChunk:
    return NewChunk(chunk.count, chunk.body, chunk.query, chunk.identity)


def _split(chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """Return the chunks of the local store, under its own names, and those of the primary one."""
    local = [replace(chunk, id=_local_id(chunk.id)) for chunk in chunks if _is_local(chunk.id)]
    return local, [chunk for chunk in chunks if not _is_local(chunk.id)] if local else list(chunks)


def _is_local(id_: int | str) -> bool:
    return str(id_).startswith(LOCAL)


def _local_id(id_: int | str) -> int | str:
    name = str(id_).removeprefix(LOCAL)
    return int(name) if name.isdecimal() else name
