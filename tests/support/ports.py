"""Ports that nothing else takes between the moment a test chooses one and the moment a process listens on it.

A port that the kernel chooses (bind to port 0) is free only while it is bound: afterwards any connection or server on
the machine may get it. So tests take theirs from below the range that the kernel chooses from, and each process of
the tests has a block of its own.
"""

import functools
import itertools
import socket
from collections.abc import Iterator

FIRST, END, SIZE = 10_000, 32_000, 200  # Linux chooses from 32768 on


def free_port() -> int:
    return next(port for port in _ports() if _is_free(port))


@functools.cache
def _ports() -> Iterator[int]:
    """Those of this process, over and over again, so that one is used again as late as possible."""
    for first in range(FIRST, END, SIZE):
        if _claim(first):
            return itertools.cycle(range(first, first + SIZE))
    raise AssertionError("all blocks of ports are in use")


@functools.cache
def _claim(first: int) -> socket.socket | None:
    """A name that only one process can hold, and holds until it ends. None if another process has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0tests-ports-{first}")
    except OSError:
        claim.close()
        return None
    return claim  # kept by the cache


def _is_free(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
