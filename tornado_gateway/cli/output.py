"""Output of commands: colours and a progress bar on a terminal, plain text elsewhere.

A few escape codes are enough. A library for rich output would be the largest dependency of the gateway.
"""

import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import orjson

_CODES = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
FILE_PROBLEMS = {
    errno.ENOENT: "no such file or directory. Check the path; a relative one begins at {here}.",
    errno.EACCES: "permission denied. Run the command as a user with access to it, or change its permissions.",
    errno.EPERM: "permission denied. Run the command as a user with access to it, or change its permissions.",
    errno.EISDIR: "expected a file, found a directory. Add the name of the file.",
    errno.ENOTDIR: "a part of the path is a file, expected a directory. Correct the path.",
    errno.ENOSPC: "the disk is full. Free space, or choose another disk.",
    errno.EROFS: "the file system is read-only. Choose another path.",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one.",
    errno.ELOOP: "its symbolic links form a loop. Correct them.",
}
_BAR_CELLS = 30
_REDRAW_SECONDS = 0.1


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return `text` in this colour if the stream (default: stdout) is a terminal and NO_COLOR is not set."""
    if not _is_terminal(stream or sys.stdout) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def local_time(seconds: float) -> str:
    """Return a moment, given in Unix seconds, as text in the time zone of the machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def print_json(value: Any) -> None:
    """Print JSON, indented on a terminal and on one line otherwise."""
    option = orjson.OPT_INDENT_2 if _is_terminal(sys.stdout) else None
    print(orjson.dumps(value, option=option).decode())


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as columns, each as wide as its widest cell. The last column is not padded."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1], sep="  ")


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)


def file_problem(error: OSError) -> str:
    """Return a failed access to a file as a sentence: the file, the problem, the remedy."""
    if error.filename is None:
        return error.strerror or str(error)
    problem = FILE_PROBLEMS.get(error.errno or 0, f"{error.strerror or error}.")
    return f"{os.fsdecode(error.filename)}: {problem.format(here=Path.cwd())}"


class Progress:
    """A progress bar on stderr if that is a terminal."""

    def __init__(self, label: str, unit: str = "", scale: int = 1) -> None:
        self._label = label
        self._unit = unit
        self._scale = scale
        self._drawn_at = 0.0
        self._is_shown = _is_terminal(sys.stderr)

    def __call__(self, done: int, total: int) -> None:
        """Show progress; `total` is 0 if the amount is unknown."""
        now = time.monotonic()
        if not self._is_shown or (now - self._drawn_at < _REDRAW_SECONDS and done != total):
            return
        self._drawn_at = now
        amount = f"{done / self._scale:.1f}" if self._scale > 1 else str(done)
        if total:
            cells = min(_BAR_CELLS, done * _BAR_CELLS // total)
            amount = f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}] {done * 100 // total:3d}%  {amount}"
        print(f"\r{self._label} {amount} {self._unit}".rstrip(), end="\x1b[K", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._is_shown and self._drawn_at:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
