"""Dead letters for operators: groups by event and reason, edited events, and their export. Bounded in memory."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from tornado_gateway.console.recent_events import MASK, key_masks, letter_json
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.http.fields import document_problem
from tornado_gateway.store.interfaces import DeadLetter, DeadLetters, EventStore

Json = dict[str, Any]

MOST_GROUPED = 10_000  # letters that are read for the groups
MOST_GROUPS = 200
READ_BYTES = 64 << 20  # of letters that are read for the groups
PORTION = 64  # letters that are read at once
LETTER_ID = re.compile(r"(local:)?\d{1,18}|\d{1,18}-\d{1,18}", re.ASCII)  # in the stores
LONGEST_NAME = 200  # characters of the name of an event


class GroupKey(NamedTuple):
    """Letters with the same name of their first event, and the same reason."""

    event: str
    reason: str


@dataclass(slots=True)
class Group:
    """The letters of a key: the first and the last time, and VWO's last response."""

    letters: int = 0
    events: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    response: str = ""

    def add(self, letter: DeadLetter) -> None:
        self.first_at = self.first_at if self.letters else letter.at
        self.letters += 1
        self.events += letter.count
        self.last_at = letter.at
        self.response = letter.response or self.response


async def all_letters(store: EventStore, wanted: GroupKey | None = None) -> AsyncIterator[DeadLetter]:
    """Yield the dead letters, the oldest first, or those of a group. Each is in memory only as long as its portion.

    Raise StoreError at the end if those of a store that does not respond are missing.
    """
    next_id: int | str | None = None
    while True:
        portion = await store.dead_letters(PORTION + 1, first=next_id)
        for letter in portion[:PORTION]:
            if wanted is None or key_of(letter) == wanted:
                yield letter
        if portion.unreadable is not None:
            raise StoreError(f"not all dead letters can be read: {portion.unreadable}")
        if len(portion) <= PORTION:
            return
        next_id = portion[PORTION].id


async def groups_of(store: EventStore) -> Json:
    """Return the groups with the most events first, of the oldest letters if there are too many."""
    groups: dict[GroupKey, Group] = {}
    seen = size = 0
    is_complete, unreadable = True, None
    try:
        async for letter in all_letters(store):
            seen, size, key = seen + 1, size + len(letter.body), key_of(letter)
            if seen > MOST_GROUPED or size > READ_BYTES or (key not in groups and len(groups) == MOST_GROUPS):
                is_complete = False
                break
            groups.setdefault(key, Group()).add(letter)
    except StoreError as error:
        is_complete, unreadable = False, str(error)
    shown = [_shown(key, group) for key, group in sorted(groups.items(), key=lambda item: -item[1].events)]
    return {"groups": shown, "complete": is_complete, "unreadable": unreadable}


def _shown(key: GroupKey, group: Group) -> Json:
    return {
        **key._asdict(),
        "letters": group.letters,
        "events": group.events,
        "first_at": group.first_at,
        "last_at": group.last_at,
        "response": group.response,
    }


def key_of(letter: DeadLetter) -> GroupKey:
    return GroupKey(name_of(letter.body), letter.reason)


def name_of(body: bytes) -> str:
    """Return the name of the first event of a body, empty if it has none."""
    try:
        name = orjson.loads(body.partition(b"\n")[0])["d"]["event"]["name"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return ""
    return name[:LONGEST_NAME] if isinstance(name, str) else ""


# --- Export ---


def exported(letter: DeadLetter, *, shows_keys: bool) -> bytes:
    """Return the events of a letter, each on a line with ID, reason and time of the letter."""
    shown = letter_json(letter, is_complete=True, shows_keys=shows_keys)
    about = {name: shown[name] for name in ("id", "reason", "response", "at")}
    return b"".join(_line(about, line) for line in shown["body"].splitlines())


def _line(about: Mapping[str, Any], event: str) -> bytes:
    try:
        document = orjson.loads(event)
    except orjson.JSONDecodeError:  # stored by an earlier version, or damaged
        document = event
    return orjson.dumps({**about, "event": document}) + b"\n"


# --- Edited events ---


async def edited_body(store: EventStore, id_: int | str, event: object) -> bytes:
    """Return the body for a letter whose event was edited. Masked SDK keys become those of the letter again.

    Raise RequestError if the letter is gone or has several events, or if the event is not a valid replacement.
    """
    found = await store.dead_letters(1, first=id_) if LETTER_ID.fullmatch(str(id_)) else DeadLetters()
    letter = next((each for each in found if each.id == id_), None)
    if letter is None and found.unreadable is not None:
        raise StoreError(f"the dead letter cannot be read: {found.unreadable}")
    if letter is None:
        raise RequestError(404, f"there is no dead letter {id_!s:.50}")
    if letter.count != 1:
        raise RequestError(409, f"the dead letter {id_} has several events: only a single one can be edited")
    body = _encoded(event)
    name, former = name_of(body), name_of(letter.body)
    if name != former:
        raise RequestError(400, f"event: expected the name {former!r} in d.event.name, got {name!r}")
    return _with_keys(body, letter)


def _encoded(event: object) -> bytes:
    if not isinstance(event, dict):
        raise RequestError(400, "event: expected a JSON object, the document of one event")
    try:
        body = orjson.dumps(event)
    except orjson.JSONEncodeError as error:
        raise RequestError(400, f"event: {error}") from error
    if (problem := document_problem(event, body)) is not None:
        raise problem
    return body


def _with_keys(body: bytes, letter: DeadLetter) -> bytes:
    for mask, key in key_masks(letter.body, letter.identity.sdk_key).items():
        is_sure = len(mask) > len(MASK)  # otherwise it stands for a key only where it is the whole text
        body = body.replace(mask, key) if is_sure else body.replace(b'"%b"' % mask, b'"%b"' % key)
    return body
