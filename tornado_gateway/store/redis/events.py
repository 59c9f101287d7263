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
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from tornado_gateway.errors import StoreError
from tornado_gateway.logs import once
from tornado_gateway.store.interfaces import CLAIM_BYTES, Chunk, DeadLetters, Depth, NewChunk, Store
from tornado_gateway.store.redis.consumer import GROUP, Consumer
from tornado_gateway.store.redis.durability import RISK_REMEDY, Ledger, risks
from tornado_gateway.store.redis.entries import PAGE, arguments_of, letter_of, stored_at
from tornado_gateway.store.redis.link import Link, Links, TimelyScripts, prefix
from tornado_gateway.store.redis.lua import DEPTH, DISCARD, REQUEUE, SETTLE, TRIM, Value
from tornado_gateway.store.redis.options import RedisOptions
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
        self._ledger = Ledger()
        self._scripts = TimelyScripts(link)
        self._consumer = Consumer(link, self._scripts, namespace, owner, alive_seconds)
        self._keys = tuple(f"{prefix(namespace)}:{name}" for name in ("events", "counts", "dead"))
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
        return self._ledger.lost

    def _ledger_argument(self) -> str:
        return self._ledger.argument(self._consumer.held_events)

    async def append(self, chunks: Sequence[NewChunk], seconds: float | None = None) -> None:
        """As promised by EventStore. Appending nothing tests whether chunks could be appended."""
        values = [value for chunk in chunks for value in arguments_of(chunk)]
        count, size = sum([chunk.count for chunk in chunks]), sum([len(chunk.body) for chunk in chunks])
        work = (self._ledger_argument(), count, *values)
        self._ledger.note(await self._scripts.append(self._keys, *work, size=size, seconds=seconds))

    async def claim(self, max_events: int, max_bytes: int = CLAIM_BYTES) -> list[Chunk]:
        return await self._consumer.claim(max_events, max_bytes)

    async def release(self, chunks: Sequence[Chunk]) -> None:
        self._consumer.release(chunks)

    def drop_bodies(self, chunks: Sequence[Chunk]) -> None:
        """As promised by EventStore. Bodies of claimed chunks are in Redis only."""

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        settled: list[Value] = [value for chunk in chunks for value in (chunk.id, chunk.count, chunk.size)]
        rejected = [value for chunk, reason in dead for value in (*arguments_of(chunk), reason)]
        waiting = [value for chunk in remaining for value in arguments_of(chunk)]
        work = (len(chunks), *settled, len(dead), *rejected, len(remaining), *waiting)
        self._ledger.note(await self._scripts.run(SETTLE, self._keys, GROUP, *work, self._ledger_argument()))
        self._consumer.forget(chunks)

    async def depth(self) -> Depth:
        ledger, first, size = await self._link.run(DEPTH, self._keys, self._ledger_argument())
        self._ledger.note(ledger)
        _, _, waiting, dead, _ = ledger
        return Depth(waiting, dead, stored_at(first) if first else None, max(0, size))

    async def adopt(self) -> int:
        """Return 0: ended workers leave nothing but claims, and other consumers claim these events."""
        return 0

    async def dead_letters(self, limit: int = 100, first: int | str | None = None) -> DeadLetters:
        entries = await self._link.call("XRANGE", self._keys[2], "-" if first is None else first, "+", "COUNT", limit)
        return DeadLetters(letter_of(entry_id, fields) for entry_id, fields in entries)

    async def requeue(self, ids: Sequence[int | str] | None = None, max_events: int | None = None) -> int:
        """Move dead letters back; each moves in one step, and those moved before an error stay moved."""
        moved = 0
        try:
            async for events in self._requeued(ids, -1 if max_events is None else max_events):
                moved += events
        except StoreError as error:
            if not moved:
                raise
            logger.error("requeued %d dead events, the others stay dead: %s", moved, error)
        return moved

    async def _requeued(self, ids: Sequence[int | str] | None, budget: int) -> AsyncIterator[int]:
        """Move one portion after the other. Yield the number of events of each."""
        if ids is None:
            last = await self._link.call("XREVRANGE", self._keys[2], "+", "-", "COUNT", 1)
            ranges = [("-", last[0][0].decode(), PAGE)] if last else []
        else:
            ranges = [(id_, id_, 1) for id_ in _known(ids)]
        for first, last_id, page in ranges:
            while True:
                letters, events = await self._link.run(REQUEUE, self._keys, first, last_id, page, budget)
                yield events
                budget -= events if budget >= 0 else 0
                if letters < page or page == 1:
                    break

    async def requeue_edited(self, id_: int | str, body: bytes) -> int:
        moved = 0
        for known in _known([id_]):
            _, moved = await self._link.run(REQUEUE, self._keys, known, known, 1, -1, body)
        return moved

    async def discard_dead_letters(self, ids: Sequence[int | str]) -> int:
        return sum([(await self._link.run(DISCARD, self._keys, id_, id_, 1))[1] for id_ in _known(ids)])

    async def expire_dead_letters(self, before: float) -> int:
        """As promised by EventStore. All instances share the dead letters."""
        discarded, last = 0, int(before * 1000) - 1
        while last > 0:
            letters, events = await self._link.run(DISCARD, self._keys, "-", last, PAGE)
            discarded += int(events)
            if letters < PAGE:
                break
        return discarded

    async def trim_dead_letters(self, max_events: int) -> int:
        """As promised by EventStore. All instances share the dead letters, and the limit."""
        discarded = 0
        while True:
            letters, events = await self._link.run(TRIM, self._keys, max_events, PAGE)
            discarded += int(events)
            if letters < PAGE:
                return discarded


def _known(ids: Sequence[int | str]) -> list[str]:
    """Return those that can be ids of this store."""
    return [str(id_) for id_ in ids if re.fullmatch(r"\d{1,20}-\d{1,20}", str(id_))]
