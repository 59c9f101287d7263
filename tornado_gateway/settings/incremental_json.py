"""Parsing JSON piece by piece, with yield points in between, and without keeping long arrays in memory.

A parser in C holds the interpreter's lock until it returns, so the loop would wait for the whole document.
"""

import re
from collections.abc import Iterator
from functools import partial
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

    Arrays of the outermost object that have a cut are a LongArray, which parses its pieces at each iteration.

    The document is cut at commas between objects in an array of the outermost object, which a count of braces finds
    with few errors. Each piece is closed, and the next one opened again, with a marked array. If all pieces are JSON,
    so is the document, with the same values. In all other cases orjson parses the whole document.
    """
    cuts = _cuts(document, yield_point, piece_bytes)
    if not cuts:
        return orjson.loads(document)
    try:
        return _parse_pieces(document, cuts, yield_point)
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


class _Part(NamedTuple):
    """A part of a long array: the piece of the document between two cuts, and the key of the part in it."""

    begin: int
    end: int
    key: str


def _parse_pieces(document: bytes, cuts: list[int], yield_point: YieldPoint) -> dict[str, Any]:
    """Raise ValueError if a cut is not between two objects in an array of the outermost object.

    Also if a piece has the mark: there is no cut inside of one, because it has no comma.
    """
    whole: dict[str, Any] = {}
    unfinished: list[_Part] = []  # of the array that the last cut went through
    for begin, end in pairwise([-1, *cuts, len(document)]):
        if _ESCAPED_MARK[1:-1] in document[begin + 1 : end]:
            raise ValueError
        piece = _parse_piece(document, begin, end)
        yield_point()
        is_last = end == len(document)
        if begin >= 0:
            unfinished.append(_Part(begin, end, _MARK))
        key, last = next(reversed(piece.items()), ("", None))
        if not is_last and not (isinstance(last, list) and last[-1:] == [_MARK]):
            raise ValueError
        piece.pop(_MARK, None)
        whole |= piece
        if not is_last and key != _MARK:
            unfinished = [_Part(begin, end, key)]
            whole[key] = LongArray(partial(_items, document, unfinished, yield_point))
    return whole


def _parse_piece(document: bytes, begin: int, end: int) -> dict[str, Any]:
    head = b"{%b:[" % _ESCAPED_MARK if begin >= 0 else b""
    tail = b",%b]}" % _ESCAPED_MARK if end < len(document) else b""
    piece: dict[str, Any] = orjson.loads(b"%b%b%b" % (head, document[begin + 1 : end], tail))
    return piece


def _items(document: bytes, parts: list[_Part], yield_point: YieldPoint) -> Iterator[Any]:
    for begin, end, key in parts:
        items = _parse_piece(document, begin, end)[key]
        if items[-1:] == [_MARK]:
            items.pop()
        items.reverse()
        yield_point()
        while items:
            yield items.pop()  # so that each is freed after its use
