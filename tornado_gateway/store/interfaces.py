"""Data that outlives a process: waiting events, settings documents, leases, aliases, sticky decisions, statistics.

Two interfaces, because each worker writes its own event log without waiting for other workers, while all of them share
the state. `sqlite` is the embedded implementation, `redis` the distributed one; one test suite
runs against both. All methods raise `StoreError` when the store fails.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tornado_gateway.core.types import StickyRecord
from tornado_gateway.errors import StoreError
from tornado_gateway.store.versions import Pin, Version

CLAIM_BYTES = 4 * 1024 * 1024  # largest size of the bodies in one claim, except for a single larger chunk
MAX_ALIASES = 1_000_000  # of a namespace, so that clients cannot fill the store
SHARED = "shared:"  # prefix of the names of leases that all environments of a DATA_DIR share


class Identity(NamedTuple):
    """The account and the environment's key under which events were accepted, and are sent."""

    account_id: str
    sdk_key: str


NO_IDENTITY = Identity("", "")  # of events stored by version 0.1: they are sent under the configured identity


# Chunks never change, but they are not frozen: each commit makes two, and a frozen one takes three times as long.


@dataclass(slots=True)
class NewChunk:
    """Event documents that are stored, claimed and settled together.

    `body` holds `count` JSON documents joined by newlines. A chunk with a `query` is one event that must reach upstream
    alone, as `/events/t?<query>`; all others travel in batches. Only earlier versions stored such events
    (usage statistics).
    """

    count: int
    body: bytes
    query: str = ""
    identity: Identity = NO_IDENTITY


@dataclass(slots=True)
class Chunk:
    """A stored chunk under the store's own name for it. `dropped` is the size of a body that is not in memory."""

    id: int | str
    count: int
    body: bytes
    query: str = ""
    identity: Identity = NO_IDENTITY
    dropped: int = 0

    @property
    def size(self) -> int:
        """The number of bytes of the stored body."""
        return len(self.body) or self.dropped

    def without_body(self) -> "Chunk":
        """Return the chunk for `settle`, which needs no body."""
        return Chunk(self.id, self.count, b"", self.query, self.identity, self.size)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Events that upstream rejected permanently. `at` is in unix seconds, `response` the beginning of upstream's.

    Stores keep the reason and the response as one text: the reason is its first line. See `read_letter`.
    """

    id: int | str
    count: int
    body: bytes
    query: str
    reason: str
    at: float
    identity: Identity = NO_IDENTITY
    response: str = ""


class DeadLetters(list[DeadLetter]):
    """Dead letters. `unreadable` is the reason why those of a store that does not respond are missing."""

    unreadable: str | None = None


def read_letter(
    id_: int | str, count: int, body: bytes, query: str, text: str, at: float, identity: Identity
) -> DeadLetter:
    """Return the letter of these columns of a store."""
    reason, _, response = text.partition("\n")
    return DeadLetter(id_, count, body, query, reason, at, identity, response)


@dataclass(frozen=True, slots=True)
class Depth:
    """The numbers of waiting and dead events, and the bytes of the waiting ones.

    `oldest_at` is the time at which the oldest waiting was stored. If `is_stale`, a part of the store could not be
    read, and counts with its last known numbers.
    """

    waiting: int
    dead: int
    oldest_at: float | None
    waiting_bytes: int = 0
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A settings document; `version` grows with every change, `saved_at` is when it was last saved or confirmed.

    `latest` is the digest of the document that was saved last, "" if an earlier version of the gateway stored it. While
    there is a `pin`, `body` is the pinned document. `left_seconds` is the remaining time of the pin, None without an
    end. `unpinned_by` is the user who has removed the last pin, "" if it ended by itself.
    """

    body: bytes
    version: int
    saved_at: float
    latest: str = ""
    pin: Pin | None = None
    left_seconds: float | None = None
    unpinned_by: str = ""


class Statistics(NamedTuple):
    """A record that workers merge their numbers into. `version` grows with every change; 0: there is none."""

    version: int
    body: bytes


NO_STATISTICS = Statistics(0, b"")


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A check that a stored document is the current one: `at` in unix seconds, `by` the process that checked."""

    at: float
    by: str


Part = tuple[Any, Sequence[NewChunk]]  # a store, and chunks that are appended to it


class Together(Protocol):
    """Appends to several stores in one step, because they share a connection."""

    async def append(self, parts: Sequence[Part]) -> Sequence[StoreError | None]:
        """Append to each store all of its chunks, or none. Return the error of each part, None if it is stored.

        A part that failed can be appended by itself.
        """


class EventStore(Protocol):
    """A durable queue of chunks, oldest first. `failure` is the reason why events are kept elsewhere at the moment.

    `lost` is the number of stored events that the store has lost and counted. `repairs` grows when events may be
    missing that it cannot count: the numbers of `depth` are true again, and the difference to those of the caller is
    lost. `letters_version` changes when another process has changed dead letters, perhaps those that `depth` counts.
    """

    failure: str | None
    repairs: int
    letters_version: int

    @property
    def lost(self) -> int: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def append(self, chunks: Sequence[NewChunk], seconds: float | None = None) -> None:
        """Store all of them, or raise and store none. Stored chunks survive the end of the process.

        `seconds` is how long the caller waits: a store on another machine stores nothing after that.
        """

    async def claim(self, max_events: int, max_bytes: int = CLAIM_BYTES) -> list[Chunk]:
        """Claim the oldest chunks that are not in flight: at least one if there is any, within both limits."""

    async def release(self, chunks: Sequence[Chunk]) -> None:
        """Return claimed chunks to the queue; they are the next to be claimed."""

    def drop_bodies(self, chunks: Sequence[Chunk]) -> None:
        """Forget the bodies of claimed chunks, which the caller will settle and not release."""

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        """Remove claimed chunks; in the same step keep rejected parts, with the reason, and parts still to send.

        Lines after the first one of the reason are upstream's response.

        If StoreError is raised the chunks still belong to the caller, which has to release them. If there is nothing to
        keep, this may return before the chunks are deleted: after a crash a few of them are sent again.
        """

    async def depth(self, *, patient: bool = False) -> Depth:
        """Return the numbers of all events. `patient`: regular work asks, which may wait for that of others."""

    async def dead_letters(self, limit: int = 100, first: int | str | None = None) -> DeadLetters:
        """Return the oldest dead letters, beginning with the id `first`, or with the next one if it is gone."""

    async def requeue(self, ids: Sequence[int | str] | None = None, max_events: int | None = None) -> int:
        """Move dead letters (None: all) back into the queue, in portions, together at most `max_events`.

        Return the number of events moved. Raise StoreError only if nothing was moved.
        """

    async def requeue_edited(self, id_: int | str, body: bytes) -> int:
        """Move a dead letter of one event back into the queue with this body.

        Return the number of events moved: 0 if the letter is gone, or has several events.
        """

    async def discard_dead_letters(self, ids: Sequence[int | str]) -> int:
        """Delete dead letters, of any log. Return the number of events discarded."""

    async def expire_dead_letters(self, before: float) -> int:
        """Delete the dead letters from before this time, of those that `depth` counts here.

        Return the number of events discarded.
        """

    async def trim_dead_letters(self, max_events: int) -> int:
        """Delete the oldest dead letters beyond `max_events`, of those that `depth` counts here.

        Return the number of events discarded.
        """

    async def adopt(self) -> int:
        """Move the events that ended workers have left on this machine into this store. Return their number."""


class StateStore(Protocol):
    """State that all workers share."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def load_document(self, name: str) -> StoredDocument | None: ...

    async def save_document(
        self, name: str, body: bytes, by: str = "", source: str = "", at: float | None = None
    ) -> StoredDocument:
        """Store the document under the next version, and keep it among the versions, in one step.

        While a version is pinned, that one stays the document. Return the document as it is stored now. `by` names the
        process that fetched it, `source` the reason, `at` the time if that is not now.
        """

    async def versions(self, name: str) -> list[Version]:
        """Return the versions that are kept, the newest first: the last ones, within MOST_VERSIONS and MOST_BYTES."""

    async def load_version(self, name: str, digest: str) -> bytes | None:
        """Return the document of a version, None if it is not kept."""

    async def pin_document(self, name: str, pin: Pin) -> StoredDocument | None:
        """Make the version of the pin the document until it is unpinned. Return None if the version is not kept."""

    async def unpin_document(self, name: str, pin: Pin | None = None, by: str = "") -> bool:
        """Make the latest version the document. Return False if there is no pin, or another one than the given one."""

    async def confirm_document(self, name: str, by: str = "") -> None:
        """Note that the stored document is still the one that upstream has, and the process that checked this."""

    async def last_confirmation(self, name: str) -> Confirmation | None:
        """Return when and by which process the document was last saved or confirmed; None without a document."""

    async def wait_for_document(self, name: str, known_version: int) -> StoredDocument:
        """Return as soon as the stored version is another than the known one."""

    async def acquire_lease(self, name: str, owner: str) -> bool:
        """Return whether `owner` holds the lease now. It ends when it is released, or soon after its process has ended.

        A lease is a hint to avoid duplicate work. It can be lost, so ask again before each use.
        """

    async def release_lease(self, name: str, owner: str) -> None: ...

    async def set_alias(self, alias_id: str, user_id: str) -> bool:
        """Store the alias of the user id, or of the one for which that stands.

        Return False if that makes a cycle, or if there are MAX_ALIASES.
        """

    async def aliases(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the root of each id that is an alias; ids that are no aliases are left out."""

    async def load_records(self, user_id: str, keys: Sequence[str]) -> dict[str, StickyRecord]:
        """Return the sticky decisions of a visitor under these keys (decision engine 3.9), without unknown ones."""

    async def save_records(self, user_id: str, records: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        """Keep sticky decisions by key, for `seconds` from now."""

    async def statistics_versions(self) -> dict[str, int]:
        """Return the version of each record of statistics."""

    async def load_statistics(self, name: str) -> Statistics: ...

    async def replace_statistics(self, name: str, body: bytes, version: int) -> bool:
        """Store the next version of a record. Return False, and store nothing, if `version` is not the stored one."""

    async def forget_statistics(self, names: Sequence[str]) -> None:
        """Delete these records."""


class Background(Protocol):
    """A task that lasts as long as the store is open."""

    def start(self) -> None: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Store:
    """Both halves, as one worker uses them, and the task that migrates data of an earlier version, if any."""

    events: EventStore
    state: StateStore
    take_over: Background | None = None

    async def open(self) -> None:
        await self.state.open()
        await self.events.open()
        if self.take_over is not None:
            self.take_over.start()

    async def close(self) -> None:
        if self.take_over is not None:
            await self.take_over.stop()
        await self.events.close()
        await self.state.close()
