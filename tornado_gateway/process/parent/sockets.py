"""Bound sockets: for the workers to listen on, and for the doctor to find out whether the address can be used."""

import errno
import socket
import time

PORT_REMEDY = "Use another HOST or PORT, or end the process that listens there."
PORT_SECONDS = 2.0  # time for killed workers of a former run to release the port
RETRY_SECONDS = 0.05


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a bound socket, which rejects connections until a worker listens on it. Raise OSError with the address.

    `reuse_port` allows more sockets with it on the same port: the kernel spreads new connections over them.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:  # :: takes IPv4 clients too, whatever the default of the system is
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}. {PORT_REMEDY}") from error
    return sock


def free_port(host: str, port: int, *, timeout_seconds: float = PORT_SECONDS) -> int:
    """Return the port once no other process listens on it, or any free one for 0. Raise OSError if it stays in use.

    A gateway that restarts after its parent was killed may start before the former workers have ended.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with bind(host, port) as sock:
                free: int = sock.getsockname()[1]
                return free
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_SECONDS)
