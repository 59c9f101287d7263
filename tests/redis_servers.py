"""Real Redis servers for tests, on free ports of the loopback interface."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

REDIS_SERVER = shutil.which("redis-server") or ""
START_SECONDS = 10
needs_redis_server = pytest.mark.skipif(not REDIS_SERVER, reason="redis-server is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class RedisServer:
    """One `redis-server` that keeps its port over restarts; a context manager that leaves no process behind.

    `options` are lines of redis.conf: `maxmemory="10mb"`, `tls_port=7000`. Nothing is written to disk unless an
    option says so, so that a restart comes back empty.
    """

    def __init__(self, directory: Path, *arguments: str, **options: object) -> None:
        self.port = free_port()
        self.directory = directory
        self._arguments = arguments
        self._options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": directory, **options}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "redis.conf"
        lines = [
            f"{name.replace('_', '-')} {value if value != '' else chr(34) * 2}" for name, value in self._options.items()
        ]
        file.write_text("\n".join(lines) + "\n")
        with (self.directory / "log").open("ab") as log:
            command = [REDIS_SERVER, str(file), *self._arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self._any_port()), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError(f"redis-server did not start: {(self.directory / 'log').read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: object) -> Any:
        """The raw reply to one command, over a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [str(word).encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
            with connection.makefile("rb") as stream:
                return _read_reply(stream)

    def _any_port(self) -> int:
        return self.port or int(str(self._options["tls_port"]))


def _read_reply(stream: Any) -> Any:
    line = stream.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise AssertionError(rest.decode())
    if kind == b"+":
        return rest.decode()
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    return None if rest == b"-1" else [_read_reply(stream) for _ in range(int(rest))]
