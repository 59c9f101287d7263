"""Compiled patterns: RE2 where its result is certain to be that of `re`, otherwise `re` with a time limit."""

import re
import warnings
from collections.abc import Callable
from typing import Final

from re2 import _re2

from tornado_gateway.core.patterns.time_limit import TIME_LIMIT
from tornado_gateway.core.patterns.translation import translate

Search = Callable[[str], bool]

# RE2 takes up to 10 ns for each character and instruction of its program: 3 ms.
MOST_STEPS: Final = 300_000
_MEMORY_BYTES: Final = 1 << 18  # of one pattern, program and cache together


def compile_pattern(pattern: str, flags: int = 0, *, at_start: bool = False) -> Search | None:
    """Return a function that finds the pattern in a text, None if the pattern is invalid.

    With `at_start` the pattern must match at the start of the text, as in `re.match`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set": the pattern is not ours
            compiled = re.compile(pattern, flags)
            translated = translate(pattern, flags)
    except (re.error, OverflowError, RecursionError):
        return None
    program = _program(translated) if translated is not None else None
    return _limited(compiled, at_start) if program is None else _bounded(program, compiled, at_start)


def _program(translated: str) -> "_re2.RE2 | None":
    options = _re2.RE2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    program = _re2.RE2(translated.encode(), options)
    return program if program.ok() else None  # too large, or a repeat beyond 1,000


def _limited(compiled: re.Pattern[str], at_start: bool) -> Search:
    return lambda text: TIME_LIMIT.matches(compiled, text, at_start)


def _bounded(program: "_re2.RE2", compiled: re.Pattern[str], at_start: bool) -> Search:
    """Search with RE2 in the texts that the translation is for, and that are short enough for the program."""
    match = program.Match
    anchor = _re2.RE2.Anchor.ANCHOR_START if at_start else _re2.RE2.Anchor.UNANCHORED
    longest = MOST_STEPS // max(1, program.ProgramSize())

    def search(text: str) -> bool:
        size = len(text)
        if size <= longest and text.isascii() and text[-1:] != "\n":
            found: bool = match(anchor, text.encode(), 0, size)[0][0] >= 0
            return found
        return TIME_LIMIT.matches(compiled, text, at_start)

    return search
