"""The newest events of all workers, and dead letters, as the console shows them: bounded, and without SDK keys."""

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from tornado_gateway.core.event_templates import SHOWN
from tornado_gateway.events.group_commit import Entry
from tornado_gateway.store.interfaces import DeadLetter, EventStore
from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry.slots import Slots

Json = dict[str, Any]

PUBLISH_SECONDS = 1.0  # until other workers show an event: 50 of them take 2 ms
RECENT_ENTRIES = 50
RECENT_BYTES = 16_384  # bytes kept of one entry, so that a batch of thousands of events does not occupy memory
SHOWN_EVENTS = 50
SHOWN_BYTES = 4096  # of a document in a list
RESPONSE_BYTES = 900_000  # of dead letters; the response stays below 1 MB with the recent events
READ_BYTES = 16 << 20  # of dead letters that are read for one response
PORTION = 8  # dead letters that are read at once
MASK = b"****"
LONGEST_TEXT = 200  # characters of an event's name or visitor

_KEY = re.compile(rb'("(?:vwo_envKey|vwo_fs_environment|env|envKey|sdkKey)"\s*:\s*")([^"\\]{1,200})(?=")')


class RecentEvents:
    """The last events that this worker has stored, and those of the others. Pass `note` to `EventQueue.subscribe`.

    Each worker publishes its own in its row of `shared`. `secret` is the key of this environment.
    """

    def __init__(self, shared: Slots | None = None, row: int = 0, secret: str = "") -> None:
        self._tail: deque[tuple[float, bytes]] = deque(maxlen=RECENT_ENTRIES)
        self._shared = shared
        self._row = row
        self._secret = secret
        self._is_published = True
        self._timer = Periodic(self.publish, PUBLISH_SECONDS, jitter=0.1)

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def note(self, group: Sequence[Entry]) -> None:
        """Remember committed entries. Costs 0.4 µs per commit and 0.06 µs per entry, after the responses."""
        now = time.time()
        self._tail.extend([(now, body[:RECENT_BYTES]) for _, body in group[-RECENT_ENTRIES:]])
        self._is_published = False

    def publish(self) -> None:
        """Show the newest events of this worker to the others, if there are new ones."""
        if self._is_published or self._shared is None:
            return
        body = orjson.dumps(self._own())
        if len(body) <= self._shared.capacity:
            self._shared.write(self._row, body)
        self._is_published = True

    def newest(self) -> list[Json]:
        """Return the newest events of all workers first, without those that were cut off."""
        self.publish()
        if self._shared is None:
            return self._own()
        rows = [self._shared.read(row) for row in range(self._shared.count)]
        found = [event for row in rows if row is not None for event in orjson.loads(row)]
        return sorted(found, key=lambda event: -event["at"])[:SHOWN_EVENTS]

    def _own(self) -> list[Json]:
        """Return the newest events of this worker, at most half of SHOWN_BYTES for each on average."""
        shown: list[Json] = []
        budget = SHOWN_EVENTS * SHOWN_BYTES // 2
        for event in self._documents():
            budget -= min(event["bytes"], SHOWN_BYTES)
            if budget < 0 or len(shown) == SHOWN_EVENTS:
                break
            shown.append(event)
        return shown

    def _documents(self) -> Iterator[Json]:
        for at, body in reversed(self._tail):
            for line in reversed(body.split(b"\n")):
                try:
                    yield _event_in_short(at, without_keys(line, self._secret))
                except (orjson.JSONDecodeError, AttributeError):
                    continue  # cut off in the middle of a batch


def _event_in_short(at: float, line: bytes) -> Json:
    """Return the main properties of an event, and its document if that is not too large."""
    document = orjson.loads(line)
    data = document.get("d") or {}
    event = data.get("event") or {}
    name = event.get("name")
    props = (event.get("props") or {}) if name == SHOWN else {}  # in conversions, the ids have no meaning
    return {
        "at": at,
        "name": _short(name),
        "visitor": _short(data.get("visId")),
        "campaign": _short(props.get("id")),
        "variation": _short(props.get("variation")),
        "bytes": len(line),
        "document": document if len(line) <= SHOWN_BYTES else None,
    }


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    return value if isinstance(value, int | float) else None


def without_keys(body: bytes, secret: str) -> bytes:
    """Return event documents with SDK keys masked: `secret` anywhere, others where events have them."""
    if secret:
        body = body.replace(secret.encode(), _masked(secret.encode()))
    return _KEY.sub(lambda match: match[1] + _masked(match[2]), body)


def _masked(key: bytes) -> bytes:
    return key if key.startswith(MASK) else MASK + (key[-4:] if len(key) >= 8 else b"")


def key_masks(body: bytes, secret: str) -> dict[bytes, bytes]:
    """Return the SDK keys that `without_keys` masks, by their masks."""
    keys = {match[2] for match in _KEY.finditer(body)} | ({secret.encode()} if secret else set())
    return {_masked(key): key for key in keys}


def letter_json(letter: DeadLetter, *, is_complete: bool, shows_keys: bool) -> Json:
    body = letter.body if shows_keys else without_keys(letter.body, letter.identity.sdk_key)
    return {
        "id": letter.id,
        "count": letter.count,
        "reason": letter.reason,
        "response": letter.response,
        "at": letter.at,
        "bytes": len(letter.body),
        "body": (body if is_complete else body[:SHOWN_BYTES]).decode("utf-8", "replace"),
    }


class Listed(NamedTuple):
    """Dead letters, the id of the next one, and why those of a store that does not respond are missing."""

    letters: list[Json]
    next_id: int | str | None = None
    unreadable: str | None = None


async def dead_letters(
    store: EventStore, limit: int, first: int | str | None, *, is_complete: bool, shows_keys: bool
) -> Listed:
    """Return the oldest dead letters, beginning with `first`.

    At most `limit`, and as many as fit into a response, but at least one.
    """
    shown: list[Json] = []
    size = read = 0
    next_id = first
    while True:
        portion = await store.dead_letters(PORTION + 1, first=next_id)
        for letter in portion[:PORTION]:
            entry = letter_json(letter, is_complete=is_complete, shows_keys=shows_keys)
            size += len(orjson.dumps(entry))
            read += len(letter.body)
            if shown and (len(shown) == limit or size > RESPONSE_BYTES or read > READ_BYTES):
                return Listed(shown, letter.id)
            shown.append(entry)
        if len(portion) <= PORTION:
            return Listed(shown, unreadable=portion.unreadable)
        next_id = portion[PORTION].id
