"""Batches of events to be sent upstream: values and pure functions, without IO. Used by `flusher.py`.

The unit of failure is the event. A request that fails while others succeed is repeated, then split, until the events
that cause the failure stand alone. Only such an event can become a dead letter.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import Final

from tornado_gateway.store.interfaces import Chunk, NewChunk

KEY_STATUSES: Final = frozenset({401, 403})  # responses that concern the SDK key
CONTENT_STATUSES: Final = frozenset({400, 413, 422})  # responses that concern events of the request, not the route
RETRIED_STATUSES: Final = frozenset({408, 425, 429})  # 4xx that mean "later", not "never"
REQUEST_BYTES: Final = 1_000_000  # of documents in one request, except for a single larger one
FAILURES_BEFORE_SPLIT = 3  # while others succeed; a single event becomes a dead letter then, if it is rejected (4xx)
FAILURES_BEFORE_DEAD = 6  # failures of any kind, for a single event: half a minute after it was isolated
SPLIT_PIECES = 10  # a failed batch is cut into tenths: each level can cost a time-out, and 100 events need two levels


class Claim:
    """Chunks that this worker has claimed and that leave the store together.

    `count` is the number of events. `parts` are the requests that are still to succeed. `delivered` counts events;
    `dead` holds rejected events with the reason. If it is not settled at once after that, its chunks lose their bodies,
    because they can no longer be released.
    """

    __slots__ = ("chunks", "count", "dead", "delivered", "parts")

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = list(chunks)
        self.delivered = 0
        self.dead: list[tuple[NewChunk, str]] = []
        body = b"\n".join([chunk.body for chunk in chunks])
        self.count = sum([chunk.count for chunk in chunks])
        whole = NewChunk(self.count, body, chunks[0].query, chunks[0].identity)
        self.parts: set[Part] = {Part(self, whole)}

    @property
    def dead_count(self) -> int:
        return sum([events.count for events, _ in self.dead])

    @property
    def is_untouched(self) -> bool:
        """Return whether none of its events have been delivered or rejected."""
        return not self.delivered and not self.dead

    @property
    def size(self) -> int:
        """The number of bytes of the stored chunks."""
        return sum([len(chunk.body) or chunk.dropped for chunk in self.chunks])

    def part_delivered(self, part: "Part") -> None:
        self._touch(part)
        self.delivered += part.events.count

    def part_died(self, part: "Part", reason: str) -> None:
        self._touch(part)
        self.dead.append((part.events, reason))

    def _touch(self, part: "Part") -> None:
        self.parts.discard(part)
        if self.parts and self.is_untouched:  # without parts it leaves the store at once
            self.drop_bodies()

    def drop_bodies(self) -> None:
        """Free the memory of the chunks, which are no longer released but settled."""
        self.chunks = [chunk.without_body() for chunk in self.chunks]

    def remaining(self) -> list[NewChunk]:
        """The events that are still to be delivered."""
        return [part.events for part in self.parts]


class Part:
    """Events of one claim that are sent in one request.

    `failures` counts the failures that say something about these events, because other requests succeeded meanwhile.
    `successes_seen` is the number of successful requests of the same identity at the last failure, or at the first
    attempt. `is_repeated` is set once these very events have failed.
    """

    __slots__ = ("claim", "events", "failures", "is_repeated", "successes_seen")

    def __init__(self, claim: Claim, events: NewChunk, failures: int = 0, successes_seen: int | None = None) -> None:
        self.claim = claim
        self.events = events
        self.failures = failures
        self.successes_seen = successes_seen
        self.is_repeated = False

    @property
    def is_culprit(self) -> bool:
        """Return whether it is a single event that failed repeatedly while others succeeded."""
        return self.events.count == 1 and self.failures >= FAILURES_BEFORE_SPLIT

    @property
    def size(self) -> int:
        """The number of bytes of its documents."""
        return len(self.events.body)

    def split(self, pieces: Iterable[NewChunk]) -> list["Part"]:
        """Replace this part in its claim by its pieces, in order."""
        parts = [Part(self.claim, events, self.failures, self.successes_seen) for events in pieces]
        self.claim.parts.discard(self)
        self.claim.parts.update(parts)
        return parts


class RetryQueue:
    """Parts to be sent again, the earliest first. Times are those of the event loop's clock."""

    def __init__(self) -> None:
        self.size = 0  # bytes of the parts
        self._entries: list[tuple[float, int, Part]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, due: float, part: Part) -> None:
        self._number += 1  # two parts that are due at the same time keep their order
        heapq.heappush(self._entries, (due, self._number, part))
        self.size += part.size

    def pop(self) -> Part:
        part = heapq.heappop(self._entries)[2]
        self.size -= part.size
        return part

    def make_due(self) -> None:
        """Let all parts be due at once, in their order, because the reason for their delays is gone."""
        self._entries = [(0.0, number, part) for number, (_, _, part) in enumerate(sorted(self._entries, key=_due))]

    def unexplained(self) -> list[Part]:
        """Return the parts whose failures may be due to upstream as a whole."""
        return [part for _, _, part in self._entries if not part.failures]

    @property
    def due(self) -> float:
        """When the first part is due; infinity if there is none."""
        return self._entries[0][0] if self._entries else float("inf")


def _due(entry: tuple[float, int, Part]) -> tuple[float, int]:
    return entry[:2]


def pack(chunks: Iterable[Chunk], most_events: int, most_bytes: int = REQUEST_BYTES) -> list[list[Chunk]]:
    """Pack chunks, in order, into batches within both limits and of one identity. A larger chunk is a batch of its own.

    A chunk with a query is sent alone, and one whose body is lost is not joined with others.
    """
    batches: list[list[Chunk]] = []
    batch: list[Chunk] = []
    room = bytes_left = 0
    for chunk in chunks:
        size = len(chunk.body)
        is_alone = bool(chunk.query) or not size
        if is_alone or chunk.count > room or size > bytes_left or chunk.identity != batch[0].identity:
            batch = []
            batches.append(batch)
            room, bytes_left = most_events, most_bytes
        batch.append(chunk)
        room = 0 if is_alone else room - chunk.count
        bytes_left -= size + 1
    return batches


def split_to_fit(events: NewChunk, most_events: int, most_bytes: int) -> list[NewChunk]:
    """Cut events, in order, into as few chunks within both limits as possible. A single larger event is a chunk."""
    groups: list[list[bytes]] = []
    size = 0
    for document in events.body.split(b"\n"):
        if not groups or len(groups[-1]) >= most_events or size + len(document) > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(document)
        size += len(document) + 1
    return [NewChunk(len(group), b"\n".join(group), events.query, events.identity) for group in groups]


def split_events(events: NewChunk, pieces: int) -> list[NewChunk]:
    """Cut events into `pieces` of nearly the same size, in order; single events if there are no more than that."""
    documents = events.body.split(b"\n")
    size = -(-len(documents) // pieces)
    groups = [documents[at : at + size] for at in range(0, len(documents), size)]
    return [NewChunk(len(group), b"\n".join(group), events.query, events.identity) for group in groups]


def pieces_after(status: int, part: Part) -> int:
    """Return into how many pieces to split a part after a failure; 1: send it whole again.

    `status` is 0 if there was no response. One that is waited for in vain costs a time-out, so that is not repeated.
    """
    if part.events.count == 1:
        return 1
    if status in CONTENT_STATUSES:
        return 2  # such responses are quick, and larger requests are more efficient
    if part.failures >= (FAILURES_BEFORE_SPLIT if status else 1):
        return SPLIT_PIECES
    return 1


def is_dead(status: int, part: Part, is_orphaned: bool, *, others_succeed: bool, is_full: bool) -> bool:
    """Return whether events failed so often, while others succeeded, that they are not sent again.

    `is_orphaned`: their key is rejected, and it is not the configured one; the success of others is no evidence then.
    `is_full`: there is no room for further parts to be retried, and this one would take it from others.
    """
    if is_orphaned:
        return part.failures >= FAILURES_BEFORE_SPLIT
    if not part.is_culprit or not (others_succeed or is_full):
        return False
    is_rejected = 400 <= status < 500 and status not in RETRIED_STATUSES
    return is_rejected or is_full or part.failures >= FAILURES_BEFORE_DEAD
