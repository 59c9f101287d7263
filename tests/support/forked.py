"""Commands of the gateway in processes that are forked from one which has loaded their modules.

Each is a process of its own, with its own environment, directory and files, and runs the same entry point as
`python -m tornado_gateway`. Only the loading of modules is saved, which takes most of the time of a short command.
Tests of the start itself start Python.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

REQUEST_BYTES = 100_000
COMMANDS = (
    *("serve", "client", "events", "settings", "environments", "evaluate", "location"),
    *("doctor.command", "configuration.show", "configuration.init", "insight.simulate", "insight.verify"),
)
LIBRARIES = ("uvloop", "tornado.platform.asyncio", "ua_parser_builtins.lazy")  # of workers; the first is optional


class Forked:
    """A command that runs: of `subprocess.Popen`, the part that tests use.

    Its standard input is empty. It writes both outputs to `output` or, without that, to pipes for `read`.
    """

    def __init__(
        self, root: Path, arguments: list[str], environment: dict[str, str], cwd: Path, output: IO[bytes] | None = None
    ) -> None:
        pipes = [] if output else [os.pipe(), os.pipe()]
        self._report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        written = [output.fileno()] * 2 if output else [end for _, end in pipes]
        request = json.dumps({"arguments": arguments, "environment": environment, "cwd": str(cwd)}).encode()
        assert len(request) <= REQUEST_BYTES
        socket.send_fds(server_of(root), [request], [*written, theirs.fileno()])
        for _, end in pipes:
            os.close(end)
        theirs.close()
        self._files = [os.fdopen(start) for start, _ in pipes]
        self.stdout, self.stderr = self._files or (None, None)
        self.args = arguments
        self.pid = int(self._report.recv(20))
        self.returncode: int | None = None

    def read(self) -> list[str]:
        """Return all that the command writes to each pipe until its end."""
        with ThreadPoolExecutor() as threads:
            return list(threads.map(lambda file: file.read(), self._files))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._report.settimeout(timeout)
            try:
                self.returncode = int(self._report.recv(20))
            except (TimeoutError, BlockingIOError) as error:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from error
            self._report.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        self.wait()


@functools.cache
def server_of(root: Path) -> socket.socket:
    """The socket of the process that has loaded the modules of this build; it ends with the tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(root), str(theirs.fileno())]
    environment = {"PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # first, in this order: the other process reads the end
    return ours


def serve(requests: socket.socket) -> int:
    """Start a command for each request. Return the exit code: in the server, and in each process of a command."""
    while True:
        request, files, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not request:
            return 0
        if os.fork() == 0:
            requests.close()
            return keep(json.loads(request), *files)
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def keep(request: dict[str, Any], stdout: int, stderr: int, report: int) -> int:
    """Start the command, and report its process ID and its exit code."""
    pid = os.fork()
    if pid == 0:
        os.close(report)
        return run(request, stdout, stderr)
    os.close(stdout)
    os.close(stderr)
    os.write(report, b"%d" % pid)
    os.write(report, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def run(request: dict[str, Any], stdout: int, stderr: int) -> int:
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["cwd"])
    sys.argv[1:] = request["arguments"]
    from tornado_gateway.__main__ import main

    return main()


def main() -> int:
    sys.path[0] = sys.argv[1]
    for command in COMMANDS:
        importlib.import_module(f"tornado_gateway.cli.{command}")
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    gc.freeze()
    return serve(socket.socket(fileno=int(sys.argv[2])))


if __name__ == "__main__":
    sys.exit(main())
