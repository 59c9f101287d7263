"""The parent process: starts a worker for each slot, watches them, replaces them, ends them. `cli` calls `run`.

SIGTERM, SIGINT   all workers end orderly, then the parent; those that take too long are killed. Repeating is harmless.
SIGHUP            rolling restart: slot after slot gets a new worker, and the old one ends once the new one serves.

There is a parent for any number of workers, because a worker cannot replace itself: it may be killed, or hang. A worker
that hangs (stopped, or in a computation that does not end) is recognised by its last heartbeat on the scoreboard.

Workers end with the parent, however it ends (PR_SET_PDEATHSIG): otherwise one that hangs would keep the port.

Each slot has a listening socket of its own (SO_REUSEPORT: the kernel spreads new connections over them), and the parent
keeps all of them open. A listening socket that is closed resets the connections that wait in its backlog; so this is
what lets a worker be replaced without a refused or reset connection.

The parent has no threads and no event loop, because neither survives a fork: it sleeps in `sigtimedwait` with all its
signals blocked. Blocked signals are never lost, interrupt nothing, and reach even a process with the PID 1, for which
the kernel drops signals that have no handler. As PID 1 it also gets the orphans of others; it reaps whatever ends.
"""

import contextlib
import ctypes
import errno
import faulthandler
import gc
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
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from tornado_gateway.config import Config
from tornado_gateway.process import systemd
from tornado_gateway.telemetry.scoreboard import Scoreboard

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
TICK_SECONDS = 0.05  # how often the parent looks while something is under way; otherwise it sleeps
SILENT_SECONDS = 15.0  # a worker without a heartbeat for this long hangs and is replaced; it sends four a second
CHECKS = 10  # of the heartbeats within SILENT_SECONDS
TRACEBACK_SECONDS = 1.0  # that a worker that hangs has to say where, before it is killed
TRACEBACK_BYTES = 1500  # of it, so that the log line stays below 2 KB
PORT_SECONDS = 2.0  # that killed workers of a former run may take to leave the port
PORT_REMEDY = "Use another HOST or PORT, or end the process that listens there."
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
START_SECONDS = 30.0  # besides what waiting for settings may take; a worker that does not serve by then is killed
STOP_MARGIN_SECONDS = 5.0  # beyond SHUTDOWN_SECONDS; a worker that is still there then is killed
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LONGEST_SECONDS = 10.0
STEADY_SECONDS = 10.0  # a worker that has lived that long was not broken from the start
LONGEST_QUEUE_SECONDS = 1.0  # that a slot without a worker may let new connections wait


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker gets to know of its place in the instance."""

    slot: int
    place: int  # on the scoreboard
    generation: int  # of all processes of this instance; grows with every start
    scoreboard: Scoreboard
    sock: socket.socket  # bound, to listen on
    ready_pipe: int

    def report_ready(self) -> None:
        """Tell the parent that this worker serves."""
        os.write(self.ready_pipe, b"1")
        os.close(self.ready_pipe)


Work = Callable[[Post], int]


def run(config: Config, work: Callable[[Config, Post], int], *, silent_seconds: float = SILENT_SECONDS) -> int:
    """Run WORKERS times `work`, each in a process of its own, until SIGTERM or SIGINT. Returns the exit code."""
    port = _free_port(config.host, config.port)
    shares_port = config.worker_count > 1  # with a second gateway as well, so only if it is needed
    return Supervisor(
        partial(work, config),
        partial(bind, config.host, port, reuse_port=shares_port),
        config.worker_count,
        start_seconds=START_SECONDS + 2 * config.socket_timeout_seconds,
        stop_seconds=config.shutdown_seconds + STOP_MARGIN_SECONDS,
        silent_seconds=silent_seconds,
    ).run()


def _free_port(host: str, port: int, patience_seconds: float = PORT_SECONDS) -> int:
    """The port, once no other process listens on it; any free one for 0. Raise OSError if it stays in use.

    A gateway that is started again when its parent was killed may be faster than the end of the former workers.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            with bind(host, port, reuse_port=False) as sock:
                free: int = sock.getsockname()[1]
                return free
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
        time.sleep(TICK_SECONDS)


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
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}. {PORT_REMEDY}") from error
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
    traceback: int  # file in memory, to which the worker writes where it is when it gets SIGUSR1
    is_ready: bool = False
    is_watched: bool = False  # it serves, so it has to send heartbeats
    watched_since: float = 0.0
    fault: str = "did not start in time"  # if it is there at its deadline

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
        silent_seconds: float,
    ) -> None:
        self._work = work
        self._new_socket = new_socket
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._silent_seconds = silent_seconds
        self._checked_at = time.monotonic()
        # A slot may have two processes for a while: the one that serves and one that starts or drains.
        self._scoreboard = Scoreboard(2 * count)
        self._slots = [_Slot(number, new_socket()) for number in range(count)]
        self._processes: dict[int, _Process] = {}
        self._to_restart: deque[_Slot] = deque()
        self._generation = 0
        self._stopping = False
        self._is_announced = False  # systemd knows that all slots serve
        self._watchdog_seconds = systemd.watchdog_interval() or math.inf
        self._exit_code = 0

    def run(self) -> int:
        """Returns the exit code: 0 if every worker ended well, 1 if not, or the one that a first start failed with."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would make children vanish without a status
        gc.freeze()  # the memory that workers share with the parent; their collectors would write to all of it
        logger.info("starting %s (parent: pid %d)", _count(len(self._slots)), os.getpid())
        while True:
            self._start_what_is_due()
            if self._stopping and not self._processes:
                logger.info("all workers have ended")
                return self._exit_code
            if self._is_well():
                systemd.ping()
            pause = TICK_SECONDS if self._is_busy() else self._silent_seconds / CHECKS
            arrived = signal.sigtimedwait(SIGNALS, min(pause, self._watchdog_seconds))
            if arrived is not None:
                self._take_signal(arrived.si_signo)
            self._note_who_is_ready()
            self._announce()
            self._reap()
            self._condemn_the_silent()
            self._kill_the_late()

    def _is_well(self) -> bool:
        """Whether systemd may believe that the gateway works: this process does, and at least one worker serves."""
        return self._stopping or any(slot.current is not None and slot.current.is_watched for slot in self._slots)

    def _is_busy(self) -> bool:
        """Whether there is anything to look after that no signal tells of."""
        has_deadline = any(process.deadline < math.inf for process in self._processes.values())
        return has_deadline or bool(self._to_restart) or any(slot.current is None for slot in self._slots)

    def _take_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop(0)
        elif number == signal.SIGHUP and not self._stopping:
            logger.info("rolling restart of %s", _count(len(self._slots)))
            self._is_announced = False
            systemd.reloading()
            self._to_restart = deque(self._slots)

    def _stop(self, exit_code: int) -> None:
        if self._stopping:
            return
        logger.info("ending %s", _count(len(self._processes)))
        systemd.stopping()
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
        place, sock = self._free_place(), self._socket_of(slot)
        if place is None or sock is None:
            return None
        self._generation += 1
        read_end, write_end = os.pipe()
        traceback = os.memfd_create("traceback")
        post = Post(slot.number, place, self._generation, self._scoreboard, sock, write_end)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            logger.error("worker %d cannot be started: %s", slot.number, error)
            slot.start_at = time.monotonic() + BACKOFF_LONGEST_SECONDS
            for descriptor in (read_end, write_end, traceback):
                os.close(descriptor)
            return None
        if pid == 0:
            os.close(read_end)
            self._become_worker(post, parent, traceback)
        os.close(write_end)
        now = time.monotonic()
        process = _Process(pid, slot, place, self._generation, read_end, now, now + self._start_seconds, traceback)
        self._processes[pid] = process
        logger.debug("%s starts", process)
        return process

    def _free_place(self) -> int | None:
        taken = {process.place for process in self._processes.values()}
        return next((place for place in range(self._scoreboard.rows) if place not in taken), None)

    def _socket_of(self, slot: _Slot) -> socket.socket | None:
        if slot.sock is None:
            try:
                slot.sock = self._new_socket()
            except OSError as error:
                logger.error("worker %d cannot be started: %s", slot.number, error)
                slot.start_at = time.monotonic() + BACKOFF_LONGEST_SECONDS
        return slot.sock

    def _become_worker(self, post: Post, parent: int, traceback: int) -> NoReturn:
        """The child: it leaves by `os._exit`, so nothing of the parent's stack goes on in it."""
        code = 1
        try:
            _end_with(parent)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _leave)  # until the worker has handlers there is nothing to end orderly
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            faulthandler.register(signal.SIGUSR1, traceback, all_threads=False)  # the thread of the loop
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
        for process in self._processes.values():
            os.close(process.ready_pipe)
            os.close(process.traceback)
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
            systemd.ready()

    def _is_ready(self, process: _Process) -> None:
        process.is_ready = True
        process.is_watched, process.watched_since = True, time.monotonic()
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
                os.close(process.traceback)
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
        process.fault = "did not end in time"  # it sends heartbeats until then, so that one that hangs ends sooner
        condemned = process.deadline if process.is_ready else math.inf
        process.deadline = min(condemned, time.monotonic() + self._stop_seconds)
        os.kill(process.pid, signal.SIGTERM)  # it is ours to reap, so the pid cannot be another's by now

    def _condemn_the_silent(self) -> None:
        """Ask workers that hang where they do; `_kill_the_late` kills them."""
        now = time.monotonic()
        if now - self._checked_at > self._silent_seconds / 2:
            # This process was stopped or got no processor, and so may its workers have been: they get their time anew.
            for process in self._processes.values():
                process.watched_since = now
        self._checked_at = now
        for process in self._processes.values():
            if process.is_watched and self._silence_of(process, now) > self._silent_seconds:
                process.is_watched, process.fault = False, f"did not respond for {self._silent_seconds:g} s"
                process.deadline = min(process.deadline, now + TRACEBACK_SECONDS)
                os.kill(process.pid, signal.SIGUSR1)

    def _silence_of(self, process: _Process, now: float) -> float:
        return now - max(process.watched_since, self._scoreboard.last_beat(process.place))

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for process in self._processes.values():
            if now >= process.deadline:
                process.deadline = math.inf
                where = os.pread(process.traceback, TRACEBACK_BYTES, 0).decode(errors="replace")
                logger.error("%s %s and was killed%s", process, process.fault, f"\n{where}" if where else "")
                os.kill(process.pid, signal.SIGKILL)

    def _give_up_socket(self, slot: _Slot) -> None:
        if slot.sock is not None:
            slot.sock.close()
            slot.sock = None


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, also if this process is stopped by then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _leave(number: int, frame: object) -> None:
    os._exit(0)


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def _how(code: int) -> str:
    if code < 0:
        return f"by signal {-code}"
    return "well" if code == 0 else f"with exit code {code}"
