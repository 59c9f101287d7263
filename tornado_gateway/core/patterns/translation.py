"""Translation of a pattern of `re` to RE2, for texts of ASCII characters that do not end with a newline.

Read from the tree that `re` itself parses. A node that is not in `_WRITERS` has no translation: groups that are
referred to, look-around, atomic groups, possessive repeats. Whether a pattern matches somewhere does not depend on
which alternative is tried first, so greedy and lazy repeats are alike. Each node for one character becomes the set of
the ASCII characters that `re` matches with it, which covers classes, ranges, `\\d \\w \\s` and all flags.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any, Final

_ASCII: Final = "".join(map(chr, range(128)))
_TYPE_FLAGS: Final = re.ASCII | re.LOCALE | re.UNICODE
_NO_CHARACTER: Final = r"[^\x00-\x{10ffff}]"

Node = tuple[Any, Any]  # operator, argument


class Untranslatable(Exception):  # noqa: N818 - an expected outcome
    """A part of a pattern has no equivalent that is certain."""


def translate(pattern: str, flags: int = 0) -> str | None:
    """Return the equivalent pattern for RE2, None if there is none. The pattern must be valid."""
    tree = _parser.parse(pattern, flags)
    try:
        return _sequence(tree, tree.state.flags)
    except Untranslatable:
        return None


def _sequence(nodes: Any, flags: int) -> str:
    return "".join(_node(node, flags) for node in nodes)


def _node(node: Node, flags: int) -> str:
    writer = _WRITERS.get(node[0])
    if writer is None:
        raise Untranslatable
    return writer(node, flags)


def _character(node: Node, flags: int) -> str:
    operator, argument = node
    return _set_of(operator, tuple(argument) if isinstance(argument, list) else argument, flags)


@lru_cache(maxsize=1024)  # patterns repeat them
def _set_of(operator: Any, argument: Any, flags: int) -> str:
    state = _parser.State()
    state.flags = flags
    alone = _compiler.compile(_parser.SubPattern(state, [(operator, argument)]))
    matched = [f"\\x{ord(character):02x}" for character in alone.findall(_ASCII)]
    return f"[{''.join(matched)}]" if matched else _NO_CHARACTER


def _branch(node: Node, flags: int) -> str:
    return f"(?:{'|'.join(_sequence(alternative, flags) for alternative in node[1][1])})"


def _group(node: Node, flags: int) -> str:
    _, added, removed, inner = node[1]
    if added & _TYPE_FLAGS:
        flags &= ~_TYPE_FLAGS
    return f"(?:{_sequence(inner, (flags | added) & ~removed)})"


def _repeat(node: Node, flags: int) -> str:
    low, high, inner = node[1]
    if high > 1 and inner.getwidth()[0] == 0:
        raise Untranslatable  # `re` ends a repeat whose body has matched the empty text
    most = "" if high == _constants.MAXREPEAT else high
    return f"(?:{_sequence(inner, flags)}){{{low},{most}}}"


def _position(node: Node, flags: int) -> str:
    is_multiline = bool(flags & re.MULTILINE)
    written = _POSITIONS.get((node[1], is_multiline)) or _POSITIONS.get((node[1], None))
    if written is None:
        raise Untranslatable
    return written


# By the position and MULTILINE; None if the flag makes no difference. `\B` is missing: in an empty text, its meaning
# depends on the version of Python.
_POSITIONS: dict[tuple[Any, bool | None], str] = {
    (_constants.AT_BEGINNING, False): r"\A",
    (_constants.AT_BEGINNING, True): "(?m:^)",
    (_constants.AT_BEGINNING_STRING, None): r"\A",
    (_constants.AT_END, False): r"\z",
    (_constants.AT_END, True): "(?m:$)",
    (_constants.AT_END_STRING, None): r"\z",
    (_constants.AT_BOUNDARY, None): r"\b",
}
_WRITERS: dict[Any, Callable[[Node, int], str]] = {
    _constants.LITERAL: _character,
    _constants.NOT_LITERAL: _character,
    _constants.ANY: _character,
    _constants.IN: _character,
    _constants.BRANCH: _branch,
    _constants.SUBPATTERN: _group,
    _constants.MAX_REPEAT: _repeat,
    _constants.MIN_REPEAT: _repeat,
    _constants.AT: _position,
}
