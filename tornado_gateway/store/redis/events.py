"""The distributed store: one Redis (standalone, behind Sentinels, or a Cluster) shared by all instances of a namespace.

A namespace belongs to one account and environment (STORE_NAMESPACE); its prefix is {fme:<namespace>}.

    …:events       stream of chunks (n events, query, body, account, key) with a consumer group of the processes
    …:counts       hash: events `waiting` and `dead`, and the `bytes` of the waiting ones; `epoch` and `sequence` show
                   whether Redis has lost data
    …:dead         stream of permanently rejected events (also r, the reason)
    …:consumers    sorted set: the time (the server's ms) until which each consumer counts as alive; 0: it left
    …:document:…   hash with body, version, saved_at, by, latest, unpinned_by, and pin, pin_ends while a version is
                   pinned; its name is published on …:changes
    …:versions:…   hash of the kept versions of a document: number and facts by digest
    …:bodies:…     hash of their compressed documents by digest
    …:lease:…      owner; expires after seconds unless its live owner prolongs it
    …:aliases      hash
    …:record:…     one sticky decision, with expiry
    …:format       distinguishes these keys from those of version 0.1 (see takeover.py)

All keys of a namespace have the same hash tag, so they share a slot and each step is one script (scripts/), atomic on
one node. The stream is never trimmed, because its events were acknowledged to clients. Its bound is EVENT_QUEUE_LIMIT:
beyond it new events are rejected with 503. For the same reason Redis must not evict (maxmemory-policy noeviction).
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import suppress

from tornado_gateway.errors import StoreError
from tornado_gateway.logs import once
from tornado_gateway.store.interfaces import CLAIM_BYTES, Chunk, DeadLetters, Depth, NewChunk, Part, Store
from tornado_gateway.store.redis.consumer import GROUP, Consumer
from tornado_gateway.store.redis.durability import RISK_REMEDY, Ledger, risks
from tornado_gateway.store.redis.entries import PAGE, arguments_of, letter_of, stored_at
from tornado_gateway.store.redis.link import Link, Links, prefix
from tornado_gateway.store.redis.lua import APPEND, DEPTH, DISCARD, REQUEUE, SETTLE, TRIM, Value
from tornado_gateway.store.redis.options import RedisOptions
from tornado_gateway.store.redis.replies import ForbiddenError, store_error, unwrapped
from tornado_gateway.store.redis.state import RECHECK_SECONDS, RedisState

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 6.0  # a consumer without a heartbeat for this long is considered dead


def open_redis(
    options: RedisOptions,
    namespace: str,
    owner: str,
    *,
    alive_seconds: float = ALIVE_SECONDS,
    recheck_seconds: float = RECHECK_SECONDS,
    links: Links | None = None,
    pace: int = 1,
) -> Store:
    """Return the store of `namespace` on the Redis of `options`. `owner` names this process in the consumer group.

    Stores with the same `links` share a connection. Of many, each checks its document `pace` times as rarely.
    """
    link = (links or Links(options)).of(namespace)
    return Store(
        RedisEvents(link, namespace, owner, alive_seconds=alive_seconds),
        RedisState(link, namespace, recheck_seconds=recheck_seconds * pace),
    )


class RedisEvents:
    """The queue of events of all instances; this process is one consumer of it.

    An append whose reply was lost may be in the queue although StoreError was raised. (One that reached Redis too late,
    because Redis was stopped or overloaded, is not.)
    """

    def __init__(self, link: Link, namespace: str, owner: str, *, alive_seconds: float = ALIVE_SECONDS) -> None:
        self.failure: str | None = None
        self.repairs = 0
        self.letters_version = 0  # it stays: all processes share one number of dead events
        self._link = link
        self.ledger = Ledger()
        self.keys = tuple(f"{prefix(namespace)}:{name}" for name in ("events", "counts", "dead"))
        self._append_all = Appends(link)
        self._consumer = Consumer(link, namespace, owner, alive_seconds)
        self._format = f"{prefix(namespace)}:format"

    async def open(self) -> None:
        """Join the group. May be called again after it failed."""
        self._link.open()
        try:
            await self._consumer.join()
        except (StoreError, asyncio.CancelledError):
            await self._link.close()
            raise
        with suppress(StoreError):  # such as a full Redis
            await self._link.call("SET", self._format, 1)
        for risk in await risks(self._link):
            extra = once(risk, is_of_instance=True)
            logger.warning("acknowledged events can be lost: %s. %s", risk, RISK_REMEDY, extra=extra)
        self._consumer.start()

    async def close(self) -> None:
        if await self._consumer.leave():
            await self._link.close()

    @property
    def lost(self) -> int:
        return self.ledger.lost

    def _ledger_argument(self) -> str:
        return self.ledger.argument(self._consumer.held_events)

    def append_arguments(self, chunks: Sequence[NewChunk]) -> list[Value]:
        """Return the arguments of `append.lua` for these chunks, after their number."""
        values: list[Value] = [0, self.ledger.argument(self._consumer.held_events)]
        for chunk in chunks:
            values += arguments_of(chunk)
        values[0] = len(values) - 1
        return values

    async def append(self, chunks: Sequence[NewChunk], seconds: float | None = None) -> None:
        """As promised by EventStore. Appending nothing tests whether chunks could be appended."""
        (error,) = await self._append_all([(self, chunks)], seconds)
        if error is not None:
            raise error

    async def claim(self, max_events: int, max_bytes: int = CLAIM_BYTES) -> list[Chunk]:
        return await self._consumer.claim(max_events, max_bytes)

    async def release(self, chunks: Sequence[Chunk]) -> None:
        self._consumer.release(chunks)

    def drop_bodies(self, chunks: Sequence[Chunk]) -> None:
        """As promised by EventStore. Bodies of claimed chunks are in Redis only."""

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        sizes = [len(chunk.body) or chunk.dropped for chunk in chunks]
        facts = " ".join([f"{chunk.count} {size}" for chunk, size in zip(chunks, sizes, strict=True)])
        numbers = len(chunks), sum([chunk.count for chunk in chunks]), sum(sizes)
        settled: list[Value] = [*numbers, *[chunk.id for chunk in chunks], facts]
        rejected = [value for chunk, reason in dead for value in (*arguments_of(chunk), reason)]
        waiting = [value for chunk in remaining for value in arguments_of(chunk)]
        work = (*settled, len(dead), *rejected, len(remaining), *waiting)
        self.ledger.note(await self._link.scripts.run(SETTLE, self.keys, GROUP, *work, self._ledger_argument()))
        self._consumer.forget(chunks)

    async def depth(self, *, patient: bool = False) -> Depth:
        ledger, first, size = await self._link.run(DEPTH, self.keys, self._ledger_argument(), patient=patient)
        self.ledger.note(ledger)
        _, _, waiting, dead, _ = ledger
        return Depth(waiting, dead, stored_at(first) if first else None, max(0, size))

    async def adopt(self) -> int:
        """Return 0: ended workers leave nothing but claims, and other consumers claim these events."""
        return 0

    async def dead_letters(self, limit: int = 100, first: int | str | None = None) -> DeadLetters:
        entries = await self._link.call("XRANGE", self.keys[2], "-" if first is None else first, "+", "COUNT", limit)
        return DeadLetters(letter_of(entry_id, fields) for entry_id, fields in entries)

    async def requeue(self, ids: Sequence[int | str] | None = None, max_events: int | None = None) -> int:
        """Move dead letters back; each moves in one step, and those moved before an error stay moved."""
        moved = 0
        try:
            for first, last in await self._ranges(ids):
                letters = PAGE
                while letters == PAGE:
                    budget = -1 if max_events is None else max_events - moved
                    letters, events = await self._link.run(REQUEUE, self.keys, first, last, PAGE, budget)
                    moved += events
        except StoreError as error:
            if not moved:
                raise
            logger.error("requeued %d dead events, the others stay dead: %s", moved, error)
        return moved

    async def _ranges(self, ids: Sequence[int | str] | None) -> list[tuple[str, str]]:
        """Return the first and last ids of the letters with these ids, with None of all letters."""
        if ids is not None:
            return [(id_, id_) for id_ in _known(ids)]
        last = await self._link.call("XREVRANGE", self.keys[2], "+", "-", "COUNT", 1)
        return [("-", last[0][0].decode())] if last else []

    async def requeue_edited(self, id_: int | str, body: bytes) -> int:
        moved = 0
        for known in _known([id_]):
            _, moved = await self._link.run(REQUEUE, self.keys, known, known, 1, -1, body)
        return moved

    async def discard_dead_letters(self, ids: Sequence[int | str]) -> int:
        return sum([(await self._link.run(DISCARD, self.keys, id_, id_, 1))[1] for id_ in _known(ids)])

    async def expire_dead_letters(self, before: float) -> int:
        """As promised by EventStore. All instances share the dead letters."""
        discarded, last = 0, int(before * 1000) - 1
        while last > 0:
            letters, events = await self._link.run(DISCARD, self.keys, "-", last, PAGE)
            discarded += int(events)
            if letters < PAGE:
                break
        return discarded

    async def trim_dead_letters(self, max_events: int) -> int:
        """As promised by EventStore. All instances share the dead letters, and the limit."""
        discarded = 0
        while True:
            letters, events = await self._link.run(TRIM, self.keys, max_events, PAGE)
            discarded += int(events)
            if letters < PAGE:
                return discarded


class Appends:
    """The appends on one link, of several environments by one script: an environment among many has few events.

    Each part succeeds or fails by itself, unless Redis does not reply at all.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def __call__(self, parts: Sequence[Part], seconds: float | None = None) -> list[StoreError | None]:
        """Append the chunks of each part to its store. Return the error of each, None if it is stored.

        The caller waits for `seconds`.
        """
        keys: list[str] = []
        values: list[Value] = []
        for store, chunks in parts:
            keys += store.keys
            values += store.append_arguments(chunks)
        try:
            replies = await self._link.scripts.run(APPEND, keys, *values, seconds=seconds)
        except ForbiddenError as error:  # perhaps for the keys of some of them only. Redis has executed nothing
            if len(parts) == 1:
                return [error]
            return [(await self([part], seconds))[0] for part in parts]
        except StoreError as error:
            return [error] * len(parts)
        errors: list[StoreError | None] = []
        for (store, _), reply in zip(parts, replies, strict=True):
            if isinstance(reply, Exception):
                errors.append(store_error(self._link.name, unwrapped(reply)))
            else:
                store.ledger.note(reply)
                errors.append(None)
        return errors


def _known(ids: Sequence[int | str]) -> list[str]:
    """Return those that can be ids of this store."""
    return [str(id_) for id_ in ids if re.fullmatch(r"\d{1,20}-\d{1,20}", str(id_))]
