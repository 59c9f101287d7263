"""Parsing JSON piece by piece, with yield points in between.

A parser in C holds the interpreter's lock until it returns, so the loop would wait for the whole document.
"""

import re
from itertools import pairwise
from typing import Any

import orjson

from tornado_gateway.core import YieldPoint
from tornado_gateway.settings.pacing import PIECE_BYTES

_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\n\r]*(,)[ \t\n\r]*\{")
_MARK, _ESCAPED_MARK = "\1", b'"\\u0001"'  # the control character has no other spelling in JSON


def parse(document: bytes, yield_point: YieldPoint, piece_bytes: int = PIECE_BYTES) -> Any:
    """Do the same as orjson.loads, with the same result or error, but with yield points between the pieces.

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


def _parse_pieces(document: bytes, cuts: list[int], yield_point: YieldPoint) -> dict[str, Any]:
    """Raise ValueError if a cut is not between two objects in an array of the outermost object.

    Also if a piece has the mark: there is no cut inside of one, because it has no comma.
    """
    whole: dict[str, Any] = {}
    unfinished: list[Any] = []  # the array that the last cut went through
    for begin, end in pairwise([-1, *cuts, len(document)]):
        head = b"{%b:[" % _ESCAPED_MARK if whole else b""
        tail = b",%b]}" % _ESCAPED_MARK if end < len(document) else b""
        text = document[begin + 1 : end]
        if _ESCAPED_MARK[1:-1] in text:
            raise ValueError
        piece = orjson.loads(b"%b%b%b" % (head, text, tail))
        yield_point()
        if whole:
            unfinished += piece.pop(_MARK)
        whole |= piece
        if tail:
            unfinished = whole[next(reversed(piece))] if piece else unfinished
            if not isinstance(unfinished, list) or unfinished[-1:] != [_MARK]:
                raise ValueError
            unfinished.pop()
    return whole
