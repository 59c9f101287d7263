"""The command `top`: the overview of a running gateway in a terminal."""

import argparse
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.insight.overview_text import Line, frame
from tornado_gateway.cli.output import paint
from tornado_gateway.config import Config
from tornado_gateway.quantities import duration

TERMINAL = (80, 24)  # if its size is unknown
_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
FOOT = Line("q: quit", "dim")


def top(config: Config, arguments: argparse.Namespace) -> int:
    client = Client(config)
    path = "/admin/overview"
    if arguments.environment is not None:
        path += f"?environment={quote(arguments.environment, safe='')}"
    try:
        overview = client.get(path)
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.once:
        width, height = shutil.get_terminal_size(TERMINAL)
        print(*_painted(frame(overview, width, height)), sep="\n")
        return 0
    if not sys.stdout.isatty():
        print("top needs a terminal. Use --once to print one frame.", file=sys.stderr)
        return 2
    _watch(client, path, overview, arguments.interval)
    return 0


def _watch(client: Client, path: str, overview: dict[str, Any], interval_seconds: float) -> None:
    """Show frames until the user ends it. While the gateway does not respond, the last frame stays."""
    read_at, problem = time.monotonic(), None
    with _screen():
        while True:
            _show(overview, problem and f"{problem} (read {duration(time.monotonic() - read_at)} ago)")
            if _is_quit(interval_seconds):
                return
            try:
                overview, read_at, problem = client.get(path), time.monotonic(), None
            except ClientError as error:
                problem = str(error)


def _show(overview: dict[str, Any], problem: str | None) -> None:
    width, height = shutil.get_terminal_size(TERMINAL)
    foot = FOOT if problem is None else Line(problem[:width], "red")
    lines = frame(overview, width, height - 1)
    text = "".join(f"{line}{_CLEAR_LINE}\n" for line in _painted(lines))
    sys.stdout.write(f"{_HOME}{text}{_CLEAR_REST}{_painted([foot])[0]}{_CLEAR_LINE}")
    sys.stdout.flush()


def _painted(lines: Sequence[Line]) -> list[str]:
    return [paint(line.text, line.colour) if line.colour else line.text for line in lines]


@contextmanager
def _screen() -> Iterator[None]:
    """Use the other screen of the terminal, and read keys at once."""
    import termios
    import tty

    is_terminal = sys.stdin.isatty()
    before = termios.tcgetattr(sys.stdin) if is_terminal else None
    if is_terminal:
        tty.setcbreak(sys.stdin)
    sys.stdout.write(_BEGIN)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_END)
        sys.stdout.flush()
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_quit(seconds: float) -> bool:
    """Wait for the next frame. Return whether q was pressed or the input has ended."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while select.select([sys.stdin], [], [], max(0.0, deadline - time.monotonic()))[0]:
        key = os.read(sys.stdin.fileno(), 1)
        if key in (b"q", b"Q", b""):
            return True
    return False
