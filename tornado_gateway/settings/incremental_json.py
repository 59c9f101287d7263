"""Parsing JSON piece by piece, with yield points in between, on demand without keeping the items of long arrays.

A parser in C holds the interpreter's lock until it returns, so the loop would wait for the whole document.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import orjson

from tornado_gateway.core import YieldPoint
from tornado_gateway.core.validation import LongArray
from tornado_gateway.settings.pacing import PIECE_BYTES

_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\n\r]*(,)[ \t\n\r]*\{")
_MARK, _ESCAPED_MARK = "\1", b'"\\u0001"'  # the control character has no other spelling in JSON


def parse(document: bytes, yield_point: YieldPoint, piece_bytes: int = PIECE_BYTES) -> Any:
    """Do the same as orjson.loads, with the same result or error, but with yield points between the pieces.

    The document is cut at commas between objects in an array of the outermost object, which a count of braces finds
    with few errors. Each piece is closed, and the next one opened again, with a marked array. If all pieces are JSON,
    so is the document, with the same values. In all other cases orjson parses the whole document.
    """
    return _parse(document, yield_point, piece_bytes, _KeptArray)


def parse_outline(document: bytes, yield_point: YieldPoint, piece_bytes: int = PIECE_BYTES) -> Any:
    """Do the same as `parse`, but arrays with a cut become a LongArray, which parses their items at each iteration."""
    return _parse(document, yield_point, piece_bytes, lambda: _ReadArray(document, yield_point))


class _Part(NamedTuple):
    """A part of an array: the piece of the document between two cuts, and the key of the part in it."""

    begin: int
    end: int
    key: str


class _KeptArray:
    """An array with a cut whose items stay in memory."""

    def __init__(self) -> None:
        self.value: list[Any] = []

    def add(self, part: _Part, items: list[Any]) -> None:
        self.value += items


class _ReadArray:
    """An array with a cut whose items are parsed again at each iteration."""

    def __init__(self, document: bytes, yield_point: YieldPoint) -> None:
        self._document = document
        self._yield_point = yield_point
        self._parts: list[_Part] = []

    @property
    def value(self) -> LongArray:
        return LongArray(self._read)  # not kept here: it would be a cycle, which garbage collection does not free soon

    def add(self, part: _Part, items: list[Any]) -> None:
        self._parts.append(part)

    def _read(self) -> Iterator[Any]:
        for begin, end, key in self._parts:
            items = _without_mark(_parse_piece(self._document, begin, end)[key])
            items.reverse()
            self._yield_point()
            while items:
                yield items.pop()  # so that each is freed after its use


Array = _KeptArray | _ReadArray


def _parse(document: bytes, yield_point: YieldPoint, piece_bytes: int, new_array: Callable[[], Array]) -> Any:
    cuts = _cuts(document, yield_point, piece_bytes)
    if not cuts:
        return orjson.loads(document)
    try:
        return _parse_pieces(document, cuts, yield_point, new_array)
    except ValueError:
        return orjson.loads(document)


def _cuts(document: bytes, yield_point: YieldPoint, piece_bytes: int) -> list[int]:
    cuts: list[int] = []
    at, counted, depth = piece_bytes, 0, 0
    while found := _BETWEEN_OBJECTS.search(document, at):
        comma = at = found.start(1)
        depth += document.count(b"{", counted, comma) - document.count(b"}", counted, comma)
        counted = comma
        if depth == 1:
            cuts.append(comma)
            at = comma + piece_bytes
        yield_point()
    return cuts


def _parse_pieces(
    document: bytes, cuts: list[int], yield_point: YieldPoint, new_array: Callable[[], Array]
) -> dict[str, Any]:
    """Raise ValueError if a cut is not between two objects in an array of the outermost object.

    Also if a piece has the mark: there is no cut inside of one, because it has no comma.
    """
    whole: dict[str, Any] = {}
    unfinished = new_array()  # that the last cut went through
    for begin, end in pairwise([-1, *cuts, len(document)]):
        if _ESCAPED_MARK[1:-1] in document[begin + 1 : end]:
            raise ValueError
        piece = _parse_piece(document, begin, end)
        yield_point()
        key, last = next(reversed(piece.items()), ("", None))
        is_cut = end < len(document)
        if is_cut and not (isinstance(last, list) and last[-1:] == [_MARK]):
            raise ValueError
        if begin >= 0:
            unfinished.add(_Part(begin, end, _MARK), _without_mark(piece.pop(_MARK)))
        whole |= piece
        if is_cut and key != _MARK:
            unfinished = new_array()
            unfinished.add(_Part(begin, end, key), _without_mark(piece[key]))
            whole[key] = unfinished.value
    return whole


def _parse_piece(document: bytes, begin: int, end: int) -> dict[str, Any]:
    head = b"{%b:[" % _ESCAPED_MARK if begin >= 0 else b""
    tail = b",%b]}" % _ESCAPED_MARK if end < len(document) else b""
    piece: dict[str, Any] = orjson.loads(b"%b%b%b" % (head, document[begin + 1 : end], tail))
    return piece


def _without_mark(items: list[Any]) -> list[Any]:
    """Remove the mark at the end of a part that was cut."""
    if items[-1:] == [_MARK]:
        items.pop()
    return items
