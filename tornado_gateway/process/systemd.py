"""What systemd is told about this process: ready, stopping, still alive (sd_notify(3)).

Used by the main process only, which is the supervisor. The protocol is two environment
variables of systemd and a datagram; where systemd is not the parent, every function here does nothing.
"""

import os
import socket
import time
from contextlib import suppress

__all__ = ["ping", "ready", "reloading", "status", "stopping", "watchdog_interval"]


def ready() -> bool:
    """The gateway serves. True if somebody was told."""
    return _send("READY=1")


def reloading() -> bool:
    """A rolling restart begins; `ready` says that it is over."""
    return _send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> bool:
    return _send("STOPPING=1")


def status(line: str) -> bool:
    """One line for `systemctl status`."""
    return _send(f"STATUS={line.splitlines()[0] if line else ''}")


def ping() -> bool:
    """This process is alive. Call it where it would not be called any more if the process hung."""
    return _send("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between two pings: half of what systemd grants. None if it watches nobody, or another process."""
    for_us = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not for_us or not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 2_000_000


def _send(message: str) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # a socket without a file, in Linux's abstract namespace
        address = f"\0{address[1:]}"
    # A full buffer of systemd must not stop the gateway, and a missing socket is none of its business.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        sender.sendto(message.encode(), address)
        return True
    return False
