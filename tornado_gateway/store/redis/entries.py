"""Chunks and dead letters as entries of streams."""

from collections.abc import Sequence
from functools import lru_cache

from tornado_gateway.store.interfaces import Chunk, DeadLetter, Identity, NewChunk, read_letter
from tornado_gateway.store.redis.lua import Value

PAGE = 100  # entries in one reply of Redis
MOST_IDENTITIES = 1000  # that are remembered: nearly all chunks have the same few


def arguments_of(chunk: NewChunk) -> tuple[Value, ...]:
    """Return a chunk as arguments of scripts."""
    return chunk.count, chunk.query, chunk.body, *chunk.identity


def chunk_of(entry: Sequence[bytes]) -> Chunk:
    entry_id, count, query, body, account, key = entry
    return Chunk(entry_id.decode(), int(count), body, query.decode(), _identity(account, key))


@lru_cache(maxsize=MOST_IDENTITIES)
def _identity(account: bytes, key: bytes) -> Identity:
    return Identity(account.decode(), key.decode())


def letter_of(entry_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
    count, query, body, reason, account, key = (*fields[1::2], b"", b"")[:6]
    identity = Identity(account.decode(), key.decode())
    at = stored_at(entry_id)
    return read_letter(entry_id.decode(), int(count), body, query.decode(), reason.decode(), at, identity)


def order_of(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def stored_at(entry_id: bytes) -> float:
    return order_of(entry_id.decode())[0] / 1000
