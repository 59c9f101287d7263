"""Long computations in turns with the loop: no request waits for a settings document to be parsed, compiled, let go of.

A thread of Python keeps the loop waiting while it holds the interpreter's lock: a switch interval (5 ms) when it runs
Python code, and until it is through when it is in a function of C, such as a parser or the end of a big object.
"""

import asyncio
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from weakref import ReferenceType

import orjson

YieldPoint = Callable[[], object]

# Of the thread that computes, in turns. A loop at half of its maximal rate has no more than this to spare when the
# machine is slow for a while: with half of the rest, requests queued up during a refresh.
WORK_SECONDS, REST_SECONDS = 0.0005, 0.003
PIECE_BYTES = 32 * 1024  # of JSON; takes 0.1 to 0.3 ms
PARTS_AT_ONCE = 20  # of settings, each of some dozen objects; takes 0.1 ms
PARTS_SECONDS = 0.002

_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\n\r]*(,)[ \t\n\r]*\{")
_MARK, _ESCAPED_MARK = "\1", b'"\\u0001"'  # the control character has no other spelling in JSON


def never_yield() -> None:
    """No breath at all, where nobody waits."""


def throttled() -> YieldPoint:
    """To be called often by a thread that computes: leaves the interpreter to the loop for most of the time.

    The loop takes the interpreter's lock for each of its callbacks; against a thread that never waits for anything it
    would get hold of it once in a switch interval, which is once for each request.
    """
    worked_since = time.monotonic()

    def pause() -> None:
        nonlocal worked_since
        if time.monotonic() - worked_since > WORK_SECONDS:
            time.sleep(REST_SECONDS)
            worked_since = time.monotonic()

    return pause


# --- parsing -----------------------------------------------------------------


def parse(document: bytes, yield_point: YieldPoint) -> Any:
    """Do what orjson.loads does, with the same result or error, but piece by piece with breaths in between.

    The document is cut at commas between objects in an array of the outermost object, as far as a count of braces can
    tell them. Each piece is closed, and the next one opened again, with a marked array. If all these are JSON then so
    is the document, with the same values, and in all other cases orjson gets the whole of it.
    """
    cuts = _cuts(document, yield_point)
    if not cuts or _ESCAPED_MARK[1:-1] in document:
        return orjson.loads(document)
    try:
        return _parse_pieces(document, cuts, yield_point)
    except ValueError:
        return orjson.loads(document)


def _cuts(document: bytes, yield_point: YieldPoint) -> list[int]:
    cuts: list[int] = []
    at, counted, depth = PIECE_BYTES, 0, 0
    while found := _BETWEEN_OBJECTS.search(document, at):
        comma = at = found.start(1)
        depth += document.count(b"{", counted, comma) - document.count(b"}", counted, comma)
        counted = comma
        if depth == 1:
            cuts.append(comma)
            at = comma + PIECE_BYTES
        yield_point()
    return cuts


def _parse_pieces(document: bytes, cuts: list[int], yield_point: YieldPoint) -> dict[str, Any]:
    """Raise ValueError if a piece is not what the cuts suppose."""
    whole: dict[str, Any] = {}
    unfinished: list[Any] = []  # the array that the last cut went through
    for begin, end in pairwise([-1, *cuts, len(document)]):
        head = b"{%b:[" % _ESCAPED_MARK if whole else b""
        tail = b",%b]}" % _ESCAPED_MARK if end < len(document) else b""
        piece = orjson.loads(b"%b%b%b" % (head, document[begin + 1 : end], tail))
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


# --- letting go --------------------------------------------------------------


def empty_gradually(document: Any, yield_point: YieldPoint) -> None:
    """Empty the arrays of a parsed document that nobody else has: freeing all at once would take a while."""
    for items in document.values() if isinstance(document, dict) else ():
        while isinstance(items, list) and items:
            items.pop()
            yield_point()


async def release_gradually(owner: "ReferenceType[object]", parts: list[object]) -> None:
    """Keep the parts until their owner is gone, which somebody may still be using, then free a few at a time."""
    while owner() is not None:
        await asyncio.sleep(PARTS_SECONDS)
    while parts:
        del parts[-PARTS_AT_ONCE:]
        await asyncio.sleep(PARTS_SECONDS)
