"""Notifications of systemd: ready, reloading, stopping, alive (sd_notify(3)).

Used by the main process only, which is the supervisor. The protocol consists of environment variables set by systemd,
and datagrams. If systemd has not started this process, every function here does nothing. Functions that send return
whether the datagram was sent.
"""

import os
import socket
import time
from contextlib import suppress


def ready() -> bool:
    """Report that all workers serve."""
    return _send("READY=1")


def reloading() -> bool:
    """Report that a rolling restart begins; `ready` reports its end."""
    return _send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> bool:
    """Report that the gateway shuts down."""
    return _send("STOPPING=1")


def status(line: str) -> bool:
    """Set the line of text in `systemctl status`."""
    return _send(f"STATUS={line.splitlines()[0] if line else ''}")


def ping() -> bool:
    """Reset the watchdog. Call it at a place that is not reached if the process hangs."""
    return _send("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Return the seconds between two pings, half of the watchdog's. None if systemd does not watch this process."""
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
    # The gateway must not stop because systemd does not read, or because the socket is missing.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        sender.sendto(message.encode(), address)
        return True
    return False
