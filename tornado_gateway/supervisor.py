"""The parent process: starts a worker for each slot, watches them, replaces them, ends them. `cli` calls `run`.

SIGTERM, SIGINT   all workers end orderly, then the parent; those that take too long are killed. Repeating is harmless.
SIGHUP            rolling restart: slot after slot gets a new worker, and the old one ends once the new one serves.
                  With one worker there is no parent; that worker refreshes its settings (`worker.py`).

Each slot has a listening socket of its own (SO_REUSEPORT: the kernel spreads new connections over them), and the parent
keeps all of them open. A listening socket that is closed resets the connections that wait in its backlog; so this is
what lets a worker be replaced without a refused or reset connection.

The parent has no threads and no event loop, because neither survives a fork: it sleeps in `sigtimedwait` with all its
signals blocked. Blocked signals are never lost, interrupt nothing, and reach even a process with the PID 1, for which
the kernel drops signals that have no handler. As PID 1 it also gets the orphans of others; it reaps whatever ends.
"""

import contextlib
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from . import notify
from .config import Config
from .scoreboard import Scoreboard

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
TICK_SECONDS = 0.05  # how often the parent looks while something is under way; otherwise it sleeps
LONGEST_PAUSE_SECONDS = 3600.0
START_SECONDS = 30.0  # besides what waiting for settings may take; a worker that does not serve by then is killed
STOP_MARGIN_SECONDS = 5.0  # beyond SHUTDOWN_SECONDS; a worker that is still there then is killed
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LONGEST_SECONDS = 10.0
STEADY_SECONDS = 10.0  # a worker that has lived that long was not broken from the start
LONGEST_QUEUE_SECONDS = 1.0  # that a slot without a worker may let new connections wait


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker gets to know of its place in the instance. `Post()` is the place of one without a parent."""

    slot: int = 0
    place: int = 0  # on the scoreboard
    generation: int = 1  # of all processes of this instance; grows with every start
    scoreboard: Scoreboard = field(default_factory=Scoreboard)
    sock: socket.socket | None = None  # bound, to listen on
    parent: int | None = None  # descriptor that becomes readable when the parent is gone
    ready_pipe: int | None = None

    def report_ready(self) -> None:
        """Tell the parent that this worker serves."""
        if self.ready_pipe is not None:
            os.write(self.ready_pipe, b"1")
            os.close(self.ready_pipe)


Work = Callable[[Post], int]


def run(config: Config, work: Callable[[Config, Post], int]) -> int:
    """Run WORKERS times `work`, each in a process of its own, until SIGTERM or SIGINT. Returns the exit code."""
    if config.worker_count == 1:
        return work(config, Post())
    bind(config.host, config.port, reuse_port=False).close()  # SO_REUSEPORT would share it with another gateway
    return Supervisor(
        partial(work, config),
        partial(bind, config.host, config.port),
        config.worker_count,
        start_seconds=START_SECONDS + 2 * config.socket_timeout_seconds,
        stop_seconds=config.shutdown_seconds + STOP_MARGIN_SECONDS,
    ).run()


def bind(host: str, port: int, reuse_port: bool = True) -> socket.socket:
    """A bound socket. It refuses connections until a worker listens on it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sock


@dataclass(eq=False, slots=True)
class _Process:
    """A worker that is alive, or has ended and is not yet reaped."""

    pid: int
    slot: "_Slot"
    place: int
    generation: int
    ready_pipe: int
    started_at: float
    deadline: float  # to be ready or, later, to have ended
    is_ready: bool = False

    def __str__(self) -> str:
        return f"worker {self.slot.number} (pid {self.pid})"


@dataclass(eq=False, slots=True)
class _Slot:
    """One of WORKERS. `current` serves and `successor` is to replace it; one that was replaced is neither."""

    number: int
    sock: socket.socket | None
    current: _Process | None = None
    successor: _Process | None = None
    has_served: bool = False
    young_deaths: int = 0
    start_at: float = 0.0  # when a slot without a worker gets one


class Supervisor:
    """The parent. Everything that changes a slot or a process record is in this class."""

    def __init__(
        self,
        work: Work,
        new_socket: Callable[[], socket.socket],
        count: int,
        *,
        start_seconds: float,
        stop_seconds: float,
    ) -> None:
        self._work = work
        self._new_socket = new_socket
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        # A slot may have two processes for a while: the one that serves and one that starts or drains.
        self._scoreboard = Scoreboard(2 * count)
        self._slots = [_Slot(number, new_socket()) for number in range(count)]
        self._processes: dict[int, _Process] = {}
        self._to_restart: deque[_Slot] = deque()
        self._generation = 0
        self._stopping = False
        self._is_announced = False  # systemd knows that all slots serve
        self._watchdog_seconds = notify.watchdog_interval() or math.inf
        self._exit_code = 0
        self._alive_pipe, self._alive = os.pipe()  # nobody writes; when the parent is gone, its workers read the end

    def run(self) -> int:
        """Returns the exit code: 0 if every worker ended well, 1 if not, or the one that a first start failed with."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would make children vanish without a status
        logger.info("starting %d workers (parent: pid %d)", len(self._slots), os.getpid())
        while True:
            self._start_what_is_due()
            if self._stopping and not self._processes:
                logger.info("all workers have ended")
                return self._exit_code
            notify.ping()
            pause = TICK_SECONDS if self._is_busy() else LONGEST_PAUSE_SECONDS
            arrived = signal.sigtimedwait(SIGNALS, min(pause, self._watchdog_seconds))
            if arrived is not None:
                self._take_signal(arrived.si_signo)
            self._note_who_is_ready()
            self._announce()
            self._reap()
            self._kill_the_late()

    def _is_busy(self) -> bool:
        """Whether there is anything to look after that no signal tells of."""
        has_deadline = any(process.deadline < math.inf for process in self._processes.values())
        return has_deadline or bool(self._to_restart) or any(slot.current is None for slot in self._slots)

    def _take_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop(0)
        elif number == signal.SIGHUP and not self._stopping:
            logger.info("rolling restart of %d workers", len(self._slots))
            self._is_announced = False
            notify.reloading()
            self._to_restart = deque(self._slots)

    def _stop(self, exit_code: int) -> None:
        if self._stopping:
            return
        logger.info("ending %d workers", len(self._processes))
        notify.stopping()
        self._stopping = True
        self._exit_code = exit_code
        # From here on a connection that no worker accepts is refused: the parent would never answer it.
        for slot in self._slots:
            self._give_up_socket(slot)
        for process in self._processes.values():
            self._terminate(process)

    # Starting

    def _start_what_is_due(self) -> None:
        if self._stopping:
            return
        # The first worker starts alone: it makes the files of the store and gets the settings, which the others then
        # find there at once; and what makes every start fail is told once.
        for slot in self._slots if self._slots[0].has_served else self._slots[:1]:
            if slot.current is None and slot.successor is None and time.monotonic() >= slot.start_at:
                slot.current = self._start(slot)
        if self._to_restart and all(slot.successor is None for slot in self._slots):
            slot = self._to_restart[0]
            if slot.current is None:
                self._to_restart.popleft()  # it gets a new one anyway
            elif slot.current.is_ready and (successor := self._start(slot)) is not None:
                self._to_restart.popleft()
                slot.successor = successor

    def _start(self, slot: _Slot) -> _Process | None:
        """Fork a worker. None if that is not possible now; it is tried again."""
        place = self._free_place()
        if place is None or not self._has_socket(slot):
            return None
        self._generation += 1
        read_end, write_end = os.pipe()
        post = Post(
            slot.number, place, self._generation, self._scoreboard, slot.sock, self._alive_pipe, ready_pipe=write_end
        )
        try:
            pid = os.fork()
        except OSError as error:
            logger.error("worker %d cannot be started: %s", slot.number, error)
            slot.start_at = time.monotonic() + BACKOFF_LONGEST_SECONDS
            os.close(read_end)
            os.close(write_end)
            return None
        if pid == 0:
            os.close(read_end)
            self._become_worker(post)
        os.close(write_end)
        now = time.monotonic()
        process = _Process(pid, slot, place, self._generation, read_end, now, now + self._start_seconds)
        self._processes[pid] = process
        logger.debug("%s starts", process)
        return process

    def _free_place(self) -> int | None:
        taken = {process.place for process in self._processes.values()}
        return next((place for place in range(self._scoreboard.places) if place not in taken), None)

    def _has_socket(self, slot: _Slot) -> bool:
        if slot.sock is None:
            try:
                slot.sock = self._new_socket()
            except OSError as error:
                logger.error("worker %d cannot be started: %s", slot.number, error)
                slot.start_at = time.monotonic() + BACKOFF_LONGEST_SECONDS
        return slot.sock is not None

    def _become_worker(self, post: Post) -> NoReturn:
        """The child: it leaves by `os._exit`, so nothing of the parent's stack goes on in it."""
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _leave)  # until the worker has handlers there is nothing to end orderly
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._close_what_is_the_parents(post)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            code = self._work(post)
        except BaseException:
            logger.exception("worker %d failed", post.slot)
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _close_what_is_the_parents(self, post: Post) -> None:
        os.close(self._alive)
        for process in self._processes.values():
            os.close(process.ready_pipe)
        for slot in self._slots:
            if slot.sock is not None and slot.sock is not post.sock:
                slot.sock.close()

    # Watching

    def _note_who_is_ready(self) -> None:
        waiting = {process.ready_pipe: process for process in self._processes.values() if not process.is_ready}
        for pipe in select.select(list(waiting), [], [], 0)[0]:
            if os.read(pipe, 1):  # nothing to read: it has ended, which is told by SIGCHLD
                self._is_ready(waiting[pipe])

    def _announce(self) -> None:
        """Tell systemd once every slot serves: at first, and when a rolling restart is over."""
        is_restarting = bool(self._to_restart) or any(slot.successor is not None for slot in self._slots)
        if self._is_announced or self._stopping or is_restarting:
            return
        if all(slot.current is not None and slot.current.is_ready for slot in self._slots):
            self._is_announced = True
            notify.ready()

    def _is_ready(self, process: _Process) -> None:
        process.is_ready = True
        if self._stopping:
            return
        process.deadline = math.inf
        slot = process.slot
        slot.has_served = True
        logger.info("%s serves", process)
        if slot.successor is process:
            former, slot.current, slot.successor = slot.current, process, None
            slot.young_deaths = 0
            if former is not None:
                self._terminate(former)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            process = self._processes.pop(pid, None)
            if process is not None:  # otherwise an orphan of somebody else, given to PID 1
                os.close(process.ready_pipe)
                self._scoreboard.retire(process.place, process.generation)
                self._has_ended(process, os.waitstatus_to_exitcode(status))

    def _has_ended(self, process: _Process, code: int) -> None:
        slot = process.slot
        if self._stopping:
            if code:
                logger.error("%s ended %s", process, _how(code))
                self._exit_code = self._exit_code or 1
        elif slot.successor is process:
            logger.error("the new %s ended %s before it served; the rolling restart is given up", process, _how(code))
            slot.successor = None
            self._to_restart.clear()
        elif slot.current is not process:
            logger.log(logging.ERROR if code else logging.INFO, "the replaced %s ended %s", process, _how(code))
        elif code > 0 and not slot.has_served:
            logger.error("%s could not start (exit code %d)", process, code)
            self._stop(code)
        else:
            slot.current = None
            self._back_off(slot, process, code)

    def _back_off(self, slot: _Slot, process: _Process, code: int) -> None:
        now = time.monotonic()
        if now - process.started_at >= STEADY_SECONDS:
            slot.young_deaths = 0
        pause = min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0**slot.young_deaths)
        logger.error("%s ended %s; a new one starts in %.1f s", process, _how(code), pause)
        slot.young_deaths += 1
        slot.start_at = now + pause
        if pause > LONGEST_QUEUE_SECONDS and slot.successor is None:
            logger.error("worker %d keeps dying, its socket is closed meanwhile", slot.number)
            self._give_up_socket(slot)

    # Ending

    def _terminate(self, process: _Process) -> None:
        process.deadline = time.monotonic() + self._stop_seconds
        os.kill(process.pid, signal.SIGTERM)  # it is ours to reap, so the pid cannot be another's by now

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for process in self._processes.values():
            if now >= process.deadline:
                process.deadline = math.inf
                logger.error("%s did not %s in time, it is killed", process, "end" if process.is_ready else "start")
                os.kill(process.pid, signal.SIGKILL)

    def _give_up_socket(self, slot: _Slot) -> None:
        if slot.sock is not None:
            slot.sock.close()
            slot.sock = None


def _leave(number: int, frame: object) -> None:
    os._exit(0)


def _how(code: int) -> str:
    if code < 0:
        return f"by signal {-code}"
    return "well" if code == 0 else f"with exit code {code}"
