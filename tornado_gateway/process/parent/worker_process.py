"""A worker process: how the parent forks it, and the parent's record of it. Used by `supervisor`.

Workers end with the parent, however it ends (PR_SET_PDEATHSIG): otherwise one that hangs would keep the port.
"""

import contextlib
import ctypes
import faulthandler
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from tornado_gateway.telemetry.scoreboard import Scoreboard

logger = logging.getLogger(__name__)

PARENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)  # blocked in the parent
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
TRACEBACK_BYTES = 1500  # longest traceback in the log, so that its line stays below 2 KB


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """The place of a worker in the instance, handed to the worker."""

    number: int  # from 0 to WORKERS - 1
    row: int  # row of the scoreboard
    generation: int  # of all processes of this instance; grows with every start
    scoreboard: Scoreboard
    sock: socket.socket  # bound, to listen on
    ready_pipe: int
    is_first: bool = False  # no worker of this instance has served before

    def report_ready(self) -> None:
        """Report to the parent that this worker serves."""
        os.write(self.ready_pipe, b"1")
        os.close(self.ready_pipe)


Work = Callable[[WorkerSlot], int]


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """The parent's record of a worker that is alive, or has ended and is not yet reaped."""

    pid: int
    number: int
    row: int
    generation: int
    ready_pipe: int
    traceback: int  # file in memory, to which the worker writes its stack when it gets SIGUSR1
    started_at: float
    deadline: float = math.inf  # when it has to be ready or, later, to have ended
    is_ready: bool = False
    is_watched: bool = False  # it serves, so it has to send heartbeats
    watched_since: float = 0.0
    fault: str = "did not start in time"  # the reason, if it is killed at its deadline

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    def mark_ready(self) -> None:
        self.is_ready = self.is_watched = True
        self.watched_since = time.monotonic()

    def terminate(self, stop_seconds: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Send SIGTERM, or SIGINT to omit the drain.

        The worker is killed after `stop_seconds`, or at an earlier deadline that it already has.
        """
        earlier = self.deadline if self.is_ready else math.inf
        self.deadline = min(earlier, time.monotonic() + stop_seconds)
        self.fault = "did not end in time"  # it is watched until its end, so that one that hangs is killed sooner
        os.kill(self.pid, number)  # the pid cannot have been reused, because only the parent reaps it

    def kill(self) -> None:
        """Send SIGKILL, and log the reason with the stack that the worker has written, if any."""
        self.deadline = math.inf
        stack = os.pread(self.traceback, TRACEBACK_BYTES, 0).decode(errors="replace")
        logger.error("%s %s and was killed%s", self, self.fault, f"\n{stack}" if stack else "")
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the descriptors. The parent does so when it has reaped the process, new workers when they start."""
        os.close(self.ready_pipe)
        os.close(self.traceback)


class Launcher:
    """Forks workers that do `work`. `has_served` returns whether one of them was ready."""

    def __init__(self, work: Work, scoreboard: Scoreboard, has_served: Callable[[], bool]) -> None:
        self._work = work
        self._has_served = has_served
        self._scoreboard = scoreboard
        self._generation = 0

    def launch(self, number: int, row: int, sock: socket.socket, close_inherited: Callable[[], None]) -> WorkerProcess:
        """Fork a worker, in which `close_inherited` closes the descriptors of the parent. Raise OSError if it fails."""
        self._generation += 1
        parent = os.getpid()
        with contextlib.ExitStack() as opened:
            read_end, write_end = os.pipe()
            opened.callback(os.close, read_end)
            opened.callback(os.close, write_end)
            traceback = os.memfd_create("traceback")
            opened.callback(os.close, traceback)
            pid = os.fork()
            opened.pop_all()
        if pid == 0:
            os.close(read_end)
            is_first = not self._has_served()
            slot = WorkerSlot(number, row, self._generation, self._scoreboard, sock, write_end, is_first)
            self._become_worker(slot, parent, traceback, close_inherited)
        os.close(write_end)
        return WorkerProcess(pid, number, row, self._generation, read_end, traceback, time.monotonic())

    def _become_worker(
        self, slot: WorkerSlot, parent: int, traceback: int, close_inherited: Callable[[], None]
    ) -> NoReturn:
        """Run in the child. It leaves by `os._exit`, so that the rest of the parent's stack never runs in it."""
        code = 1
        try:
            _end_with_parent(parent)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _exit_at_once)  # until the worker has handlers there is no work to finish
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            faulthandler.register(signal.SIGUSR1, traceback, all_threads=False)  # the main thread runs the event loop
            close_inherited()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENT_SIGNALS)
            code = self._work(slot)
        except BaseException:
            logger.exception("worker %d failed", slot.number)
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even if this process is stopped then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _exit_at_once(number: int, frame: object) -> None:
    os._exit(0)
