"""The distributed store: one Redis (standalone, behind Sentinels, or a Cluster) shared by all instances of a namespace.

A namespace belongs to one account and environment (STORE_NAMESPACE); its prefix is {fme:<namespace>}.

    …:events       stream of chunks (n events, query, body, account, key) with a consumer group of the processes
    …:counts       hash: events `waiting` and `dead`
    …:dead         stream of permanently rejected events (also r, the reason)
    …:consumers    sorted set: until when (the server's ms) each consumer counts as alive; 0: it left
    …:document:…   hash with body, version, saved_at, by; its name is published on …:changes
    …:lease:…      owner, with an expiry of seconds that a living owner keeps prolonging
    …:aliases      hash
    …:record:…     one sticky decision, with expiry
    …:format       says that these keys are not those of version 0.1 (see takeover.py)

All keys of a namespace have the same hash tag, so they share a slot and every step below is one script, atomic on one
node. The stream is never trimmed: it holds what was acknowledged to clients. Its bound is EVENT_QUEUE_LIMIT at the
entrance, where new events are refused with 503. For the same reason Redis must not evict (maxmemory-policy noeviction).

Steps are scripts and not MULTI for two reasons. A full Redis refuses MULTI as a whole if one command of it may need
memory, so that nothing could be settled, which is what frees memory; a script that has written may go on. And a script
can look at the clock: what reaches Redis later than the caller waited for is refused, not done behind its back.
"""

import asyncio
import hashlib
import logging
import random
import re
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis import exceptions as errors
from redis.asyncio import Connection, ConnectionPool, Redis, Sentinel, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import (
    Chunk,
    Confirmation,
    DeadLetter,
    Depth,
    Identity,
    NewChunk,
    Record,
    Store,
    StoredDocument,
)
from tornado_gateway.store.redis.options import Address, RedisOptions, TlsOptions

logger = logging.getLogger(__name__)

Value = str | bytes | int | float

GROUP = "gateway"
LEASE_SECONDS = 12.0  # after its process was killed; prolonged four times in that time, whatever it is held for
ALIVE_SECONDS = 6.0  # a consumer that has been silent for so long is dead
PIPELINES = 4  # that may be under way at the same time; what comes meanwhile shares the next
HEALTH_CHECK_SECONDS = 30
RETRY_FIRST_SECONDS = 0.1
RETRY_LONGEST_SECONDS = 2.0
RECHECK_SECONDS = 3.0  # a document is looked at that often even if no message came
ON_TIME_SHARE = 0.9  # of the time-out; a script that starts later is refused, for nobody would get its answer
CLAIMED_CHUNKS = 5000  # one claim never takes more chunks than this
PAGE = 100


def open_redis(options: RedisOptions, namespace: str, owner: str, *, alive_seconds: float = ALIVE_SECONDS) -> Store:
    """The store of `namespace` on the Redis that `options` name. `owner` names this process in the consumer group."""
    link = make_link(options, namespace)
    return Store(RedisEvents(link, namespace, owner, alive_seconds=alive_seconds), RedisState(link, namespace))


def make_link(options: RedisOptions, namespace: str) -> "Link":
    return Link(_route(options, prefix(namespace)), options.timeout_seconds)


def prefix(namespace: str) -> str:
    """What all keys of a namespace begin with. The braces make it the hash tag."""
    return f"{{fme:{namespace}}}"


# ---- Scripts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script under its hash."""

    text: str
    sha: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode()).hexdigest())  # noqa: S324


# ARGV[1] is the last moment, in the server's milliseconds, at which the caller still waits; 0 if it is not known.
_ON_TIME = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if tonumber(ARGV[1]) > 0 and now > tonumber(ARGV[1]) then return redis.error_reply('LATE ' .. now) end
"""

# The counter comes first: it is refused by a full or read-only Redis, and then nothing has been written.
_APPEND = Script(
    _ON_TIME
    + """
redis.call('HINCRBY', KEYS[2], 'waiting', ARGV[2])
for i = 3, #ARGV, 5 do
    redis.call('XADD', KEYS[1], '*',
        'n', ARGV[i], 'q', ARGV[i + 1], 'b', ARGV[i + 2], 'a', ARGV[i + 3], 'k', ARGV[i + 4])
end
return 1
"""
)

# Say that the consumer is alive and, with a budget of events, claim: first what dead consumers left, then new chunks,
# until the budget is reached or exceeded by the last one.
_CLAIM = Script(
    _ON_TIME
    + """
local stream, consumers = KEYS[1], KEYS[2]
local group, me, alive_ms = ARGV[2], ARGV[3], tonumber(ARGV[4])
local gone_before, budget, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
redis.call('ZREM', consumers, '')  -- a write that a full Redis allows; after one it allows all of this script
local alive_until = tonumber(redis.call('ZSCORE', consumers, me) or 0)
redis.call('ZADD', consumers, now + alive_ms, me)
local claimed, events = {}, 0
local function keep(entry)
    local values = entry[2]
    claimed[#claimed + 1] = {entry[1], values[2], values[4], values[6], values[8] or '', values[10] or ''}
    events = events + tonumber(values[2])
end
local function wanted() return events < budget and #claimed < most end
local function take_over(name)
    local pending = redis.pcall('XPENDING', stream, group, '-', '+', 100, name)
    if pending.err or #pending == 0 then
        redis.pcall('XGROUP', 'DELCONSUMER', stream, group, name)
        redis.call('ZREM', consumers, name)
        return
    end
    for _, entry in ipairs(pending) do
        if not wanted() then return end
        local got = redis.call('XCLAIM', stream, group, me, 0, entry[1])
        if got[1] then keep(got[1]) else redis.call('XACK', stream, group, entry[1]) end
    end
end
if budget > 0 then
    if gone_before > 0 then gone_before = alive_until > now and now or 0 end
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', consumers, '-inf', gone_before)) do take_over(name) end
    while wanted() do
        local got = redis.pcall('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', stream, '>')
        if got and got.err then
            if not string.find(got.err, 'NOGROUP', 1, true) then return got end
            redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
        elseif got then
            keep(got[1][2][1])
        else
            break
        end
    end
end
return {now, alive_until > now and 1 or 0, claimed}
"""
)

# What this consumer holds after an id; of an entry that is not in the stream any more only the id.
_PENDING = Script(
    _ON_TIME
    + """
local got = redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[5], 'STREAMS', KEYS[1], ARGV[4])
if not got or got.err then return {} end
local held = {}
for _, entry in ipairs(got[1][2]) do
    local values = entry[2] or {}
    held[#held + 1] = {entry[1], values[2], values[4], values[6], values[8] or '', values[10] or ''}
end
return held
"""
)

# A chunk counts only if it was still there: its consumer may have been taken for dead, and another one settled it.
_SETTLE = Script(
    _ON_TIME
    + """
local at = 2
local function next_argument()
    at = at + 1
    return ARGV[at]
end
local waiting, dead = 0, 0
for _ = 1, tonumber(next_argument()) do
    local id, count = next_argument(), tonumber(next_argument())
    redis.call('XACK', KEYS[1], ARGV[2], id)
    if redis.call('XDEL', KEYS[1], id) == 1 then waiting = waiting - count end
end
for _ = 1, tonumber(next_argument()) do
    local count, query, body = next_argument(), next_argument(), next_argument()
    local account, key, reason = next_argument(), next_argument(), next_argument()
    redis.call('XADD', KEYS[3], '*', 'n', count, 'q', query, 'b', body, 'r', reason, 'a', account, 'k', key)
    dead = dead + tonumber(count)
end
for _ = 1, tonumber(next_argument()) do
    local count, query, body = next_argument(), next_argument(), next_argument()
    local account, key = next_argument(), next_argument()
    redis.call('XADD', KEYS[1], '*', 'n', count, 'q', query, 'b', body, 'a', account, 'k', key)
    waiting = waiting + tonumber(count)
end
redis.call('HINCRBY', KEYS[2], 'waiting', waiting)
redis.call('HINCRBY', KEYS[2], 'dead', dead)
return 1
"""
)

_DEPTH = Script("""
local counts = redis.call('HMGET', KEYS[2], 'waiting', 'dead')
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
return {tonumber(counts[1] or 0), tonumber(counts[2] or 0), first[1] and first[1][1] or false}
""")

# The letters between two ids, a page at a time, while they have no more events than the budget (-1: any number).
# Returns the number of letters and of events that were moved. Those of version 0.1 have no account and key.
_REQUEUE = Script("""
local letters, events = redis.call('XRANGE', KEYS[3], ARGV[1], ARGV[2], 'COUNT', ARGV[3]), 0
local budget, moved = tonumber(ARGV[4]), 0
for _, letter in ipairs(letters) do
    local values = letter[2]
    if budget >= 0 and events + tonumber(values[2]) > budget then break end
    redis.call('XADD', KEYS[1], '*',
        'n', values[2], 'q', values[4], 'b', values[6], 'a', values[10] or '', 'k', values[12] or '')
    redis.call('XDEL', KEYS[3], letter[1])
    redis.call('HINCRBY', KEYS[2], 'waiting', values[2])
    redis.call('HINCRBY', KEYS[2], 'dead', -values[2])
    events = events + tonumber(values[2])
    moved = moved + 1
end
return {moved, events}
""")

# The oldest letters beyond a limit, a page at a time. Returns the number of letters and of events that were deleted.
_TRIM = Script("""
local dead, limit = tonumber(redis.call('HGET', KEYS[2], 'dead') or 0), tonumber(ARGV[1])
local letters, events = 0, 0
if dead <= limit then return {0, 0} end
for _, letter in ipairs(redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', ARGV[2])) do
    if dead - events <= limit then break end
    redis.call('XDEL', KEYS[3], letter[1])
    events = events + tonumber(letter[2][2])
    letters = letters + 1
end
if letters > 0 then redis.call('HINCRBY', KEYS[2], 'dead', -events) end
return {letters, events}
""")

# With nothing left to it the consumer disappears, otherwise others may take over at once.
_LEAVE = Script("""
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err or #pending == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return redis.call('ZREM', KEYS[2], ARGV[2])
end
return redis.call('ZADD', KEYS[2], 0, ARGV[2])
""")

# Versions never repeat, even if Redis lost its data: the saver tells the highest version that it has seen.
_SAVE = Script("""
local version = math.max(tonumber(redis.call('HGET', KEYS[1], 'version') or 0), tonumber(ARGV[1])) + 1
redis.call('HSET', KEYS[1], 'version', version, 'saved_at', ARGV[2], 'body', ARGV[3], 'by', ARGV[5])
redis.call('PUBLISH', KEYS[2], ARGV[4])
return version
""")

_CONFIRM = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'saved_at', ARGV[1], 'by', ARGV[2])
return 1
""")

RESTORE = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'saved_at', ARGV[2], 'body', ARGV[3])
redis.call('PUBLISH', KEYS[2], ARGV[4])
return 1
""")

ACQUIRE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
""")

RELEASE = Script("""
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0
""")


# ---- Events ----------------------------------------------------------------------------------------------------------


class RedisEvents:
    """The queue of events of all instances; this process is one consumer of it.

    A chunk belongs to the consumer that claimed it for as long as this consumer lives, however long it works on it.
    Each one keeps saying that it lives; one that has been silent for `alive_seconds` is dead and its chunks are taken
    over, so that a SIGKILL delays events by a few seconds only. One that left in order is taken over at once. After an
    outage of Redis all have been silent: who comes back first has to live for `alive_seconds` again before it takes
    over anything. (A process that stands still for longer than that delivers twice what it was working on.)

    An append whose answer got lost on the network may be in the queue although StoreError was raised. (One that reached
    Redis too late, because it was stopped or swamped, is not.)
    """

    def __init__(self, link: "Link", namespace: str, owner: str, *, alive_seconds: float = ALIVE_SECONDS) -> None:
        self.failure: str | None = None
        self._link = link
        self._keys = tuple(f"{prefix(namespace)}:{name}" for name in ("events", "counts", "dead"))
        self._consumers = f"{prefix(namespace)}:consumers"
        self._format = f"{prefix(namespace)}:format"
        # A process that starts anew under the same name and pid, as in containers, is another consumer.
        self._consumer = f"{owner}:{uuid.uuid4().hex[:8]}"
        self._alive_seconds = alive_seconds
        self._alive_since: float | None = None
        self._server_clock: float | None = None  # the server's milliseconds at our monotonic 0
        self._held: list[Chunk] = []  # ours, and nobody works on them: released, or more than the last claim wanted
        self._ours: set[str] = set()  # ids of all chunks that we know to be ours
        self._in_doubt_until: float | None = None  # a claim may succeed until then, or have succeeded, unknown to us
        self._claiming = asyncio.Lock()
        self._claims: set[asyncio.Task[int]] = set()
        self._heart: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Join the group. May be called again after it failed."""
        self._link.open()
        try:
            await self._claim_events(0)
        except (StoreError, asyncio.CancelledError):
            await self._link.close()
            raise
        with suppress(StoreError):  # such as a full Redis
            await self._link.call("SET", self._format, 1)
        self._heart = asyncio.create_task(self._beat())

    async def close(self) -> None:
        if self._heart is None:
            return
        self._heart.cancel()
        await asyncio.wait([self._heart])
        self._heart = None
        if self._claims:
            await asyncio.wait(self._claims)
        try:
            await self._link.run(_LEAVE, (self._keys[0], self._consumers), GROUP, self._consumer)
        except StoreError as error:
            logger.info("other instances take over in %g s: %s", self._alive_seconds, error)
        self._held, self._ours = [], set()
        await self._link.close()

    async def append(self, chunks: Sequence[NewChunk]) -> None:
        """As promised by EventStore. Appending nothing tells whether something could be appended."""
        values = [value for chunk in chunks for value in _values(chunk)]
        await self._run_on_time(_APPEND, self._keys, sum(chunk.count for chunk in chunks), *values)

    async def claim(self, max_events: int) -> list[Chunk]:
        """As promised by EventStore. A claim that is cancelled goes on, and its chunks are held for the next one."""
        while True:
            found = 0
            if self._missing(max_events) > 0 or self._in_doubt_until is not None:
                found = await asyncio.shield(self._start_claim(max_events))
            chunks = self._take_held(max_events)
            if chunks or not found:
                return chunks

    def _missing(self, max_events: int) -> int:
        return max_events - sum(chunk.count for chunk in self._held)

    def _start_claim(self, max_events: int) -> "asyncio.Task[int]":
        task = asyncio.create_task(self._claim_more(max_events))
        self._claims.add(task)
        task.add_done_callback(self._claim_ended)
        return task

    def _claim_ended(self, task: "asyncio.Task[int]") -> None:
        self._claims.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def _claim_more(self, max_events: int) -> int:
        """Hold enough chunks for a claim. Returns the number of chunks that are held."""
        async with self._claiming:
            if self._in_doubt_until is not None:
                await self._find_lost_claims(self._in_doubt_until)
            missing = self._missing(max_events)
            if missing > 0:
                claimed = await self._claim_events(missing)
                self._held.extend(claimed)
            return len(self._held)

    async def release(self, chunks: Sequence[Chunk]) -> None:
        self._held = sorted([*self._held, *chunks], key=lambda chunk: _order(str(chunk.id)))

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        settled: list[Value] = [value for chunk in chunks for value in (chunk.id, chunk.count)]
        refused = [value for chunk, reason in dead for value in (*_values(chunk), reason)]
        waiting = [value for chunk in remaining for value in _values(chunk)]
        await self._run_on_time(
            _SETTLE, self._keys, GROUP, len(chunks), *settled, len(dead), *refused, len(remaining), *waiting
        )
        self._ours.difference_update(str(chunk.id) for chunk in chunks)

    async def depth(self) -> Depth:
        waiting, dead, first = await self._link.run(_DEPTH, self._keys)
        return Depth(waiting, dead, _stored_at(first) if first else None)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        entries = await self._link.call("XRANGE", self._keys[2], "-", "+", "COUNT", limit)
        return [_letter(entry_id, fields) for entry_id, fields in entries]

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
        """Move one portion after the other. Yields the number of events of each."""
        if ids is None:
            last = await self._link.call("XREVRANGE", self._keys[2], "+", "-", "COUNT", 1)
            ranges = [("-", last[0][0].decode(), PAGE)] if last else []
        else:
            known = [str(id_) for id_ in ids if re.fullmatch(r"\d{1,20}-\d{1,20}", str(id_))]
            ranges = [(id_, id_, 1) for id_ in known]
        for first, last_id, page in ranges:
            while True:
                letters, events = await self._link.run(_REQUEUE, self._keys, first, last_id, page, budget)
                yield events
                budget -= events if budget >= 0 else 0
                if letters < page or page == 1:
                    break

    async def trim_dead_letters(self, max_events: int) -> int:
        """As promised by EventStore; of all instances, which share the dead letters."""
        discarded = 0
        while True:
            letters, events = await self._link.run(_TRIM, self._keys, max_events, PAGE)
            discarded += int(events)
            if letters < PAGE:
                return discarded

    async def _claim_events(self, budget: int) -> list[Chunk]:
        """Say that we are alive and claim until the budget is reached; the last chunk may exceed it."""
        asked_at = time.monotonic()
        may_take_over = self._alive_since is not None and asked_at - self._alive_since >= self._alive_seconds
        alive_ms = int(self._alive_seconds * 1000)
        try:
            now_ms, was_alive, entries = await self._run_on_time(
                _CLAIM,
                (self._keys[0], self._consumers),
                GROUP,
                self._consumer,
                alive_ms,
                int(may_take_over),
                budget,
                CLAIMED_CHUNKS,
            )
        except (StoreError, asyncio.CancelledError):
            if budget > 0:
                self._in_doubt_until = time.monotonic() + self._link.timeout_seconds
            raise
        self._set_clock(now_ms, asked_at)
        if not was_alive:
            self._alive_since = asked_at
        chunks = [_chunk(entry) for entry in entries]
        self._ours.update(str(chunk.id) for chunk in chunks)
        return chunks

    def _take_held(self, max_events: int) -> list[Chunk]:
        taken = 0
        for chunk in self._held:
            if taken and chunk.count > max_events:
                break
            max_events -= chunk.count
            taken += 1
        chunks, self._held = self._held[:taken], self._held[taken:]
        return chunks

    async def _find_lost_claims(self, in_doubt_until: float) -> None:
        """Hold the chunks that are ours according to Redis but that we never heard of.

        A claim whose answer was lost may reach Redis only now, so one search is enough only if it begins late enough.
        """
        began = time.monotonic()
        known = set(self._ours)  # an answer may be older than a settlement that ends while it is awaited
        after = "0"
        while entries := await self._run_on_time(_PENDING, self._keys[:1], GROUP, self._consumer, after, PAGE):
            chunks = [_chunk(entry) for entry in entries if len(entry) == 6]
            found = [chunk for chunk in chunks if chunk.id not in known and chunk.id not in self._ours]
            self._ours.update(str(chunk.id) for chunk in found)
            await self.release(found)
            after = entries[-1][0].decode()
        if began >= in_doubt_until:
            self._in_doubt_until = None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._alive_seconds / 4 * random.uniform(0.8, 1.0))
            try:
                await self._claim_events(0)
            except StoreError as error:
                logger.debug("no heartbeat: %s", error)

    async def _run_on_time(self, script: Script, keys: Sequence[str], *args: Value) -> Any:
        """Run a script that Redis refuses when it gets to it after we have given up."""
        last_moment = 0
        if self._server_clock is not None:
            patience = self._link.timeout_seconds * ON_TIME_SHARE
            last_moment = int(self._server_clock + (time.monotonic() + patience) * 1000)
        try:
            return await self._link.run(script, keys, last_moment, *args)
        except _LateError:
            self._server_clock = None  # or its clock was set; the next heartbeat tells
            raise

    def _set_clock(self, server_ms: int, asked_at: float) -> None:
        """Latency makes the server's clock look late, so that of two readings the quick or the later one is right."""
        answered_at = time.monotonic()
        clock = server_ms - answered_at * 1000
        was_quick = answered_at - asked_at < self._link.timeout_seconds * 0.05
        if self._server_clock is None or was_quick or clock > self._server_clock:
            self._server_clock = clock


def _values(chunk: NewChunk) -> tuple[Value, ...]:
    """A chunk as arguments of scripts."""
    return chunk.count, chunk.query, chunk.body, *chunk.identity


def _chunk(entry: Sequence[bytes]) -> Chunk:
    entry_id, count, query, body, account, key = entry
    return Chunk(entry_id.decode(), int(count), body, query.decode(), Identity(account.decode(), key.decode()))


def _letter(entry_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
    count, query, body, reason, account, key = (*fields[1::2], b"", b"")[:6]
    identity = Identity(account.decode(), key.decode())
    at = _stored_at(entry_id)
    return DeadLetter(entry_id.decode(), int(count), body, query.decode(), reason.decode(), at, identity)


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def _stored_at(entry_id: bytes) -> float:
    return _order(entry_id.decode())[0] / 1000


# ---- State -----------------------------------------------------------------------------------------------------------


class RedisState:
    """Documents, leases, aliases and sticky decisions of all instances.

    `open` does not wait for Redis, so that a gateway starts without it; every call tells when it cannot be reached.
    """

    def __init__(self, link: "Link", namespace: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._link = link
        self._lease_seconds = lease_seconds
        self._leases: dict[str, str] = {}  # the owner of each held lease
        self._prolonging: asyncio.Task[None] | None = None
        self._prefix = prefix(namespace)
        self._channel = f"{self._prefix}:changes"
        self._last_seen: dict[str, StoredDocument] = {}
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._link.open()

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            self._listening = None
        if self._prolonging is not None:
            self._prolonging.cancel()
            await asyncio.wait([self._prolonging])
            self._prolonging = None
        await self._release_all()
        await self._link.close()
        self._notify()

    async def load_document(self, name: str) -> StoredDocument | None:
        body, version, saved_at = await self._link.call(
            "HMGET", self._key("document", name), "body", "version", "saved_at"
        )
        return self._seen(name, StoredDocument(body, int(version), float(saved_at))) if version else None

    async def save_document(self, name: str, body: bytes, by: str = "") -> StoredDocument:
        now = time.time()
        seen = self._last_seen[name].version if name in self._last_seen else 0
        keys = (self._key("document", name), self._channel)
        version = await self._link.run(_SAVE, keys, seen, repr(now), body, name, by)
        return self._seen(name, StoredDocument(body, version, now))

    async def confirm_document(self, name: str, by: str = "") -> None:
        await self._link.run(_CONFIRM, (self._key("document", name),), repr(time.time()), by)

    async def last_confirmation(self, name: str) -> Confirmation | None:
        saved_at, by = await self._link.call("HMGET", self._key("document", name), "saved_at", "by")
        return Confirmation(float(saved_at), (by or b"").decode()) if saved_at else None

    async def wait_for_document(self, name: str, known_version: int) -> StoredDocument:
        """As promised by StateStore; waits through outages of Redis as well.

        If Redis has lost the document, the last one that was seen here is put back.
        """
        self._listen()
        while True:
            changed = self._changed
            try:
                stored = await self._load_unless(name, known_version)
            except StoreError:
                if self._link.is_closed:
                    raise
                stored = None
            if stored is not None:
                return stored
            await _wait(changed, RECHECK_SECONDS * random.uniform(0.8, 1.0))

    async def acquire_lease(self, name: str, owner: str) -> bool:
        is_held = await self._prolong(name, owner)
        if is_held:
            self._leases[name] = owner
            if self._prolonging is None or self._prolonging.done():
                self._prolonging = asyncio.create_task(self._keep_leases())
        return is_held

    async def release_lease(self, name: str, owner: str) -> None:
        if self._leases.get(name) == owner:
            del self._leases[name]
        await self._link.run(RELEASE, (self._key("lease", name),), owner)

    async def _keep_leases(self) -> None:
        while self._leases:
            await asyncio.sleep(self._lease_seconds / 4 * random.uniform(0.8, 1.0))
            for name, owner in list(self._leases.items()):
                try:
                    await self._prolong(name, owner)
                except StoreError as error:
                    logger.debug("the lease %s was not prolonged: %s", name, error)

    async def _prolong(self, name: str, owner: str) -> bool:
        """Acquire or prolong, whichever it is, and forget the lease if another process holds it."""
        key, milliseconds = self._key("lease", name), _milliseconds(self._lease_seconds)
        is_held = bool(await self._link.run(ACQUIRE, (key,), owner, milliseconds))
        if not is_held:
            self._leases.pop(name, None)
        return is_held

    async def _release_all(self) -> None:
        for name, owner in list(self._leases.items()):
            with suppress(StoreError):  # it expires
                await self.release_lease(name, owner)

    async def set_alias(self, alias_id: str, user_id: str) -> None:
        await self._link.call("HSET", self._key("aliases"), alias_id, user_id)

    async def aliases(self, ids: Sequence[str]) -> dict[str, str]:
        if not ids:
            return {}
        users = await self._link.call("HMGET", self._key("aliases"), *ids)
        return {id_: user.decode() for id_, user in zip(ids, users, strict=True) if user is not None}

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, Record]:
        if not keys:
            return {}
        values = await self._link.call("MGET", *(self._record_key(user_id, key) for key in keys))
        return {key: orjson.loads(value) for key, value in zip(keys, values, strict=True) if value is not None}

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        await asyncio.gather(
            *(
                self._link.call(
                    "SET", self._record_key(user_id, key), orjson.dumps(record), "PX", _milliseconds(seconds)
                )
                for key, record in records.items()
            )
        )

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _record_key(self, user_id: str, key: str) -> str:
        return self._key("record", str(len(user_id)), user_id, key)  # the length tells apart "a:b" "c" and "a" "b:c"

    def _seen(self, name: str, document: StoredDocument) -> StoredDocument:
        before = self._last_seen.get(name)
        if before is None or before.version <= document.version:
            self._last_seen[name] = document
        return document

    async def _load_unless(self, name: str, known_version: int) -> StoredDocument | None:
        version = await self._link.call("HGET", self._key("document", name), "version")
        if version is None and name in self._last_seen:
            seen = self._last_seen[name]
            keys = (self._key("document", name), self._channel)
            if await self._link.run(RESTORE, keys, seen.version, repr(seen.saved_at), seen.body, name):
                logger.error("Redis had lost the document %s, it has been stored again", name)
        if version is None or int(version) == known_version:
            return None
        return await self.load_document(name)

    def _listen(self) -> None:
        if self._listening is None and not self._link.is_closed:
            self._listening = asyncio.create_task(self._link.listen(self._channel, self._notify))

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


# ---- The link --------------------------------------------------------------------------------------------------------


class _UnknownScriptError(StoreError):
    """Redis does not know the script by its hash (any more)."""


class _LateError(StoreError):
    """The script reached Redis after its caller had given up."""


@dataclass(slots=True)
class _Call:
    command: tuple[Value, ...]
    reply: asyncio.Future[Any]


class Link:
    """This process's way to Redis: a few connections, and pipelines on them.

    Commands of the same turn of the loop share one round trip. Nothing is sent twice, because Redis may have done it
    the first time; only what it certainly has not done is repeated. After a failure of the connection commands fail at
    once, without waiting, except for one now and then that tries again (with back-off and jitter).
    """

    def __init__(self, route: "_Route", timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._route = route
        self._users = 0
        self._client: Redis | None = None
        self._waiting: list[_Call] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._failure: str | None = None
        self._failures = 0
        self._retry_at = 0.0

    @property
    def is_closed(self) -> bool:
        return self._users == 0

    def open(self) -> None:
        """Needs one `close` for each `open`."""
        if self._client is None:
            self._client = self._route.client()
            self._client.response_callbacks.clear()  # replies stay as Redis gave them
            self._failure, self._failures = None, 0
        self._users += 1

    async def close(self) -> None:
        if self._users == 0:
            return
        self._users -= 1
        if self._users or self._client is None:
            return
        client, self._client = self._client, None
        while self._under_way:
            await asyncio.wait(self._under_way)
        await client.aclose()
        await self._route.close()

    async def call(self, *command: Value) -> Any:
        """The reply to one command."""
        if self.is_closed:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        call = _Call(command, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(call)
        return await call.reply

    async def run(self, script: Script, keys: Sequence[str], *args: Value) -> Any:
        """The reply of a script."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except _UnknownScriptError:
            return await self.call("EVAL", script.text, len(keys), *keys, *args)

    async def listen(self, channel: str, notify: Callable[[], None]) -> None:
        """Call `notify` for each message, and when one may have been missed. Runs until it is cancelled."""
        pause = RETRY_FIRST_SECONDS
        while self._client is not None:
            try:
                async with self._client.pubsub() as subscription:
                    async with asyncio.timeout(self.timeout_seconds):
                        await subscription.subscribe(channel)
                    notify()
                    pause = RETRY_FIRST_SECONDS
                    while True:
                        if await subscription.get_message(ignore_subscribe_messages=True, timeout=HEALTH_CHECK_SECONDS):
                            notify()
            except (errors.RedisError, OSError) as error:
                logger.debug("changes are not announced: %s", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(RETRY_LONGEST_SECONDS, pause * 2)

    def _send(self) -> None:
        """Put what waits on its way, unless all pipelines are busy: the first one that is done sends it then."""
        if not self._waiting or len(self._under_way) >= PIPELINES:
            return
        calls, self._waiting = self._waiting, []
        task = asyncio.create_task(self._exchange(calls))
        self._under_way.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._send()

    async def _exchange(self, calls: Sequence[_Call]) -> None:
        try:
            replies = await self._replies([call.command for call in calls])
        except StoreError as error:
            replies = [StoreError(str(error)) for _ in calls]
        for call, reply in zip(calls, replies, strict=True):
            if call.reply.done():  # the caller has been cancelled
                continue
            if isinstance(reply, Exception):
                call.reply.set_exception(_store_error(self._route.name, reply))
            else:
                call.reply.set_result(reply)

    async def _replies(self, commands: Sequence[tuple[Value, ...]]) -> list[Any]:
        """One reply or error for each command. Raises StoreError if there are none."""
        if self._failure is not None:
            now = time.monotonic()
            if now < self._retry_at:
                raise StoreError(self._failure)
            self._retry_at = now + self.timeout_seconds  # others need not wait while this one tries
        try:
            async with asyncio.timeout(self.timeout_seconds):
                replies = await self._pipeline(commands)
        except TimeoutError:
            raise await self._failed(f"{self._route.name}: no answer within {self.timeout_seconds:g} s") from None
        except (errors.RedisError, OSError) as error:
            raise await self._failed(str(_store_error(self._route.name, error))) from error
        if any(isinstance(reply, _MASTER_IS_ELSEWHERE) for reply in replies):
            await self._forget_connections()
        self._failure, self._failures = None, 0
        return replies

    async def _pipeline(self, commands: Sequence[tuple[Value, ...]]) -> list[Any]:
        replies = await self._send_pipeline(commands)
        moved = [i for i, reply in enumerate(replies) if isinstance(reply, errors.MovedError)]
        if moved:  # Redis did not do these
            await self._forget_connections()
            for i, reply in zip(moved, await self._send_pipeline([commands[i] for i in moved]), strict=True):
                replies[i] = reply
        return replies

    async def _send_pipeline(self, commands: Iterable[tuple[Value, ...]]) -> list[Any]:
        if self._client is None:
            raise StoreError("the store is closed")
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return [_unwrapped(reply) for reply in await pipeline.execute(raise_on_error=False)]

    async def _failed(self, reason: str) -> StoreError:
        """Note why, and when to try again; returns the error to raise."""
        self._failure = reason
        longest = min(RETRY_LONGEST_SECONDS, RETRY_FIRST_SECONDS * 2.0**self._failures)
        self._failures += 1
        self._retry_at = time.monotonic() + longest * random.uniform(0.5, 1.0)
        await self._forget_connections()
        return StoreError(reason)

    async def _forget_connections(self) -> None:
        """Connect anew for what comes next: the idle connections are probably broken too, or end at the wrong node."""
        self._route.forget()
        if self._client is not None:
            with suppress(errors.RedisError, OSError):
                await self._client.connection_pool.disconnect(inuse_connections=False)


_ERRORS_IN_SCRIPTS = {"OOM": errors.OutOfMemoryError, "READONLY": errors.ReadOnlyError}


def _unwrapped(reply: Any) -> Any:
    """Redis before version 7 hides what a command of a script said in an error of its own."""
    if isinstance(reply, errors.ResponseError):
        said = re.search(r"@user_script: ?\d+: -([A-Z]+) ", str(reply))
        if said and said[1] in _ERRORS_IN_SCRIPTS:
            return _ERRORS_IN_SCRIPTS[said[1]](str(reply))
    return reply


_MASTER_IS_ELSEWHERE = (errors.ReadOnlyError, errors.ClusterDownError, errors.AskError)

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (errors.AuthenticationError, "the user name or password is refused (REDIS_USERNAME, REDIS_PASSWORD)"),
    (errors.NoPermissionError, "the user may not do this (ACL)"),
    (errors.OutOfMemoryError, "the memory is full (maxmemory)"),
    (errors.ReadOnlyError, "this is a read-only replica"),
    (errors.BusyLoadingError, "it is still loading its data"),
    (errors.ClusterDownError, "the cluster is down"),
    (errors.AskError, "the account's slot is being moved to another node"),
    (errors.TryAgainError, "the account's slot is being moved to another node"),
)


def _store_error(where: str, error: Exception) -> StoreError:
    """Any error as one line without secrets: commands are not quoted, only what Redis or the system said."""
    if isinstance(error, StoreError):
        return error
    text = " ".join(re.sub(r"\bscript: \w+, on @user_script.*", "", str(error)).split())[:200]
    if isinstance(error, errors.NoScriptError):
        return _UnknownScriptError(f"{where}: {text}")
    if text.startswith("LATE"):
        return _LateError(f"{where}: too slow")
    reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), text or type(error).__name__)
    return StoreError(f"{where}: {reason}")


# ---- Routes: which node to connect to --------------------------------------------------------------------------------


def _route(options: RedisOptions, tag: str) -> "_Route":
    client: dict[str, Any] = {
        "username": options.username,
        "password": options.password,
        "retry": Retry(NoBackoff(), 0),  # see Link
        "socket_timeout": None,  # Link bounds the whole exchange
        "socket_connect_timeout": None,
        "health_check_interval": HEALTH_CHECK_SECONDS,
        "protocol": 2,
    }
    tls = _tls_arguments(options.tls) if options.tls is not None else {}
    timeout = options.timeout_seconds
    if options.sentinels:
        return _SentinelRoute(options.sentinels, options.sentinel_master, client, tls, timeout)
    if options.is_cluster:
        return _ClusterRoute(options.address, key_slot(tag.encode()), client, tls, timeout)
    return _Route(options.address, client, tls)


def _tls_arguments(tls: TlsOptions) -> dict[str, Any]:
    files = {"ssl_ca_certs": tls.ca_path, "ssl_certfile": tls.cert_path, "ssl_keyfile": tls.key_path}
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED if tls.verifies else ssl.CERT_NONE,
        "ssl_check_hostname": tls.verifies,
        **{name: str(path) for name, path in files.items() if path is not None},
    }


class _Route:
    """To one Redis at a fixed address."""

    def __init__(self, address: Address, options: Mapping[str, Any], tls: Mapping[str, Any]) -> None:
        self.name = f"Redis at {address[0]}:{address[1]}"
        self._address = address
        self._options = options
        self._tls = tls

    def client(self) -> Redis:
        return self._node(self._address)

    def forget(self) -> None:
        """The node that was found last may be the wrong one."""

    async def close(self) -> None:
        pass

    def _node(self, address: Address, **options: Any) -> Redis:
        host, port = address
        return Redis(host=host, port=port, **{**self._options, **options}, ssl=bool(self._tls), **self._tls)


class _SentinelRoute(_Route):
    """To the master that Sentinels name. They are reached with TLS if the master is; their password, if they have one,
    is the master's."""

    def __init__(
        self,
        sentinels: Sequence[Address],
        master: str,
        options: Mapping[str, Any],
        tls: Mapping[str, Any],
        timeout: float,
    ) -> None:
        super().__init__(sentinels[0], options, tls)
        self.name = f"Redis master {master} (Sentinel)"
        self._sentinels = sentinels
        self._master = master
        self._step = timeout / (len(sentinels) + 1)  # one that does not answer must not use up the time
        self._sentinel: Sentinel | None = None

    def client(self) -> Redis:
        sentinel = self._sentinel = Sentinel([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
        limits = {"socket_timeout": self._step, "socket_connect_timeout": self._step}
        for user, password in self._credentials():
            sentinel.sentinels += [
                self._node(address, **limits, username=user, password=password) for address in self._sentinels
            ]
        client: Redis = sentinel.master_for(self._master, **self._options, ssl=bool(self._tls), **self._tls)
        return client

    async def close(self) -> None:
        if self._sentinel is not None:
            await asyncio.gather(*(node.aclose() for node in self._sentinel.sentinels))
            self._sentinel = None

    def _credentials(self) -> list[tuple[str | None, str | None]]:
        """Sentinels without a password refuse one, so that each is asked without first."""
        given = (self._options["username"], self._options["password"])
        return [(None, None), given] if given[1] else [(None, None)]


class _ClusterRoute(_Route):
    """To the node of a Cluster that has the account's slot. One slot is all that an account needs."""

    def __init__(
        self, first: Address, slot: int, options: Mapping[str, Any], tls: Mapping[str, Any], timeout: float
    ) -> None:
        super().__init__(first, options, tls)
        self.name = f"Redis Cluster at {first[0]}:{first[1]}"
        self._slot = slot
        self._step = timeout / 3  # a node that does not answer must not use up the time
        self._nodes = [first]
        self._owner: Address | None = None
        self._finding = asyncio.Lock()

    def client(self) -> Redis:
        kind = _SlotSSLConnection if self._tls else _SlotConnection
        pool = ConnectionPool(connection_class=kind, find=self.owner, **self._options, **self._tls)
        return Redis.from_pool(pool)

    def forget(self) -> None:
        if self._owner is not None:  # ask the others first: it may be dead
            self._nodes = [*(node for node in self._nodes if node != self._owner), self._owner]
            self._owner = None

    async def owner(self) -> Address:
        async with self._finding:
            if self._owner is None:
                self._owner = await self._find()
            return self._owner

    async def _find(self) -> Address:
        failure: Exception = errors.ConnectionError("no node")
        for address in list(self._nodes):
            client = self._node(address, socket_timeout=self._step, socket_connect_timeout=self._step)
            client.response_callbacks.clear()
            try:
                ranges = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (errors.RedisError, OSError) as error:
                failure = error
                self._nodes = [*(node for node in self._nodes if node != address), address]
                continue
            finally:
                await client.aclose()
            nodes = {tuple(node[:2]): None for _, _, *owners in ranges for node in owners}
            self._nodes = [_address(node, address) for node in nodes] or self._nodes
            for first, last, owner, *_ in ranges:
                if first <= self._slot <= last:
                    return _address(owner, address)
            failure = errors.ClusterDownError(f"nobody has slot {self._slot}")
        raise failure


def _address(node: Sequence[Any], asked: Address) -> Address:
    """A node that does not know its own host leaves it empty; it is the one that was asked."""
    host = node[0].decode() if node[0] else asked[0]
    return host, int(node[1])


class _SlotConnection(Connection):
    """Connects to whoever has the slot at that moment."""

    def __init__(self, *, find: Callable[[], Awaitable[Address]], **options: Any) -> None:
        self._find = find
        super().__init__(**options)

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._find()
        await super().connect()  # type: ignore[no-untyped-call]


class _SlotSSLConnection(_SlotConnection, SSLConnection):
    pass
