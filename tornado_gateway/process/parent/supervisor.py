"""The parent process: starts a worker for each slot, watches them, replaces them, ends them. `cli` calls `run`.

SIGTERM, SIGINT   all workers shut down, then the parent; after a deadline they are killed. Repetitions do nothing.
SIGHUP            rolling restart: slot after slot gets a new worker, and the old one ends once the new one is ready.
                  With ENVIRONMENTS_FILE, all workers read that file again instead, and none is replaced.

There is a parent for any number of workers, because a worker cannot replace itself: it may be killed, or hang.

Each slot has a listening socket of its own (SO_REUSEPORT: the kernel spreads new connections over them), and the parent
keeps all of them open. Closing a listening socket resets the connections in its backlog. Therefore a worker can be
replaced without a rejected or reset connection.

The parent has no threads and no event loop, because neither survives a fork: it sleeps in `sigtimedwait` with all its
signals blocked. Blocked signals are never lost, interrupt nothing, and reach even a process with the PID 1, for which
the kernel drops signals that have no handler. As PID 1 it also inherits orphans of other processes, and reaps them.
"""

import gc
import logging
import math
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tornado_gateway.backoff import Backoff
from tornado_gateway.config import Config
from tornado_gateway.process.parent import sockets, systemd
from tornado_gateway.process.parent.hang_watch import HangWatch
from tornado_gateway.process.parent.worker_process import PARENT_SIGNALS, Launcher, Work, WorkerProcess, WorkerSlot
from tornado_gateway.quantities import counted
from tornado_gateway.telemetry.scoreboard import InstanceReading, Scoreboard

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.05  # between two checks while a deadline runs or a slot has no worker; otherwise the parent sleeps
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LONGEST_SECONDS = 10.0
STEADY_SECONDS = 10.0  # a worker that has run for this long resets the backoff of its slot
STORE_SECONDS = 0.25  # longest time to open the store of one of many environments
LONGEST_QUEUE_SECONDS = 1.0  # longest wait of new connections in the backlog of a slot without a worker


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds after which a worker is killed: without being ready, without a heartbeat, after SIGTERM."""

    start: float
    stop: float
    silent: float = 15.0  # 60 missed heartbeats: a worker sends four per second


def deadlines_of(config: Config) -> Deadlines:
    # 30 s to open a large store, and the time that waiting for settings may take.
    # 5 s beyond DRAIN_SECONDS and SHUTDOWN_SECONDS, which the worker itself observes.
    stop = config.drain_seconds + config.shutdown_seconds + 5.0
    stores = STORE_SECONDS * config.max_environments if config.environments_file is not None else 0.0
    return Deadlines(start=30.0 + 2 * config.socket_timeout_seconds + stores, stop=stop)


def run(
    config: Config,
    work: Callable[[Config, WorkerSlot], int],
    deadlines: Deadlines | None = None,
    on_stopped: Callable[[InstanceReading], None] = lambda reading: None,
) -> int:
    """Run WORKERS times `work`, each in a process of its own, until SIGTERM or SIGINT. Return the exit code.

    `on_stopped` is called with the final numbers of all workers, unless none has served.
    """
    port = sockets.free_port(config.host, config.port)
    shares_port = config.worker_count > 1  # only if needed, because a second gateway could share the port as well
    bind = partial(sockets.bind, config.host, port, reuse_port=shares_port)
    deadlines, reloads_file = deadlines or deadlines_of(config), config.environments_file is not None
    supervisor = Supervisor(
        partial(work, config), bind, config.worker_count, deadlines, on_stopped, reloads_file=reloads_file
    )
    return supervisor.run()


def scoreboard_rows(workers: int) -> int:
    """Return the number of rows: a slot may have two processes, one that serves and one that starts or drains."""
    return 2 * workers


def _new_backoff() -> Backoff:
    return Backoff(BACKOFF_FIRST_SECONDS, BACKOFF_LONGEST_SECONDS, jitter=0)  # slots need not avoid each other


@dataclass(eq=False, slots=True)
class _Slot:
    """The place of one worker. `current` serves, `successor` is to replace it; a replaced worker is neither."""

    number: int
    sock: socket.socket | None
    current: WorkerProcess | None = None
    successor: WorkerProcess | None = None
    has_served: bool = False
    backoff: Backoff = field(default_factory=_new_backoff)
    start_at: float = 0.0  # the earliest next start of a slot without a worker

    def close_socket(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Supervisor:
    """The parent. Everything that changes a slot is in this class.

    With `reloads_file` a SIGHUP is for the workers, which read ENVIRONMENTS_FILE again.
    """

    def __init__(
        self,
        work: Work,
        new_socket: Callable[[], socket.socket],
        count: int,
        deadlines: Deadlines,
        on_stopped: Callable[[InstanceReading], None],
        *,
        reloads_file: bool = False,
    ) -> None:
        self._reloads_file = reloads_file
        self._on_stopped = on_stopped
        self._new_socket = new_socket
        self._deadlines = deadlines
        self._scoreboard = Scoreboard(scoreboard_rows(count))
        self._launcher = Launcher(work, self._scoreboard, self._has_served)
        self._watch = HangWatch(self._scoreboard, deadlines.silent)
        self._slots = [_Slot(number, new_socket()) for number in range(count)]
        self._processes: dict[int, WorkerProcess] = {}
        self._to_restart: deque[_Slot] = deque()
        self._stopping = False
        self._is_announced = False  # systemd was notified that all slots serve
        self._exit_code = 0

    def run(self) -> int:
        """Return the exit code: 0 if every worker ended normally, 1 if not, or that of a first start that failed."""
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, children would end without a status
        gc.freeze()  # a garbage collection in a worker would write to all memory that it shares with the parent
        logger.info("starting %s (parent: pid %d)", counted(len(self._slots), "worker"), os.getpid())
        longest_pause = min(self._watch.interval_seconds, systemd.watchdog_interval() or math.inf)
        while True:
            self._start_due()
            if self._stopping and not self._processes:
                logger.info("all workers have ended")
                return self._exit_code
            if self._is_healthy():
                systemd.ping()
            arrived = signal.sigtimedwait(PARENT_SIGNALS, TICK_SECONDS if self._is_busy() else longest_pause)
            if arrived is not None:
                self._handle_signal(arrived.si_signo)
            self._read_ready_pipes()
            self._announce()
            self._reap()
            self._watch.check(self._processes.values())
            self._kill_overdue()

    def _is_healthy(self) -> bool:
        """Return whether to ping the watchdog of systemd: this process is alive, and at least one worker serves."""
        return self._stopping or any(slot.current is not None and slot.current.is_watched for slot in self._slots)

    def _is_busy(self) -> bool:
        """Return whether an action is due soon that no signal announces."""
        has_deadline = any(process.deadline < math.inf for process in self._processes.values())
        return has_deadline or bool(self._to_restart) or any(slot.current is None for slot in self._slots)

    def _handle_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop(0)
        elif number == signal.SIGHUP and not self._stopping:
            self._is_announced = False
            systemd.reloading()
            if self._reloads_file:
                self._pass_on_reload()
            else:
                logger.info("rolling restart of %s started", counted(len(self._slots), "worker"))
                self._to_restart = deque(self._slots)

    def _pass_on_reload(self) -> None:
        for process in self._processes.values():
            os.kill(process.pid, signal.SIGHUP)  # one that starts ignores it, and reads the file anyway

    def _stop(self, exit_code: int) -> None:
        if self._stopping:
            for process in self._processes.values():
                process.terminate(self._deadlines.stop, signal.SIGINT)
            return
        logger.info("stopping %s", counted(len(self._processes), "worker"))
        systemd.stopping()
        self._stopping = True
        self._exit_code = exit_code
        # From now on a connection that no worker accepts is rejected, because no process would ever respond to it.
        for slot in self._slots:
            slot.close_socket()
        for process in self._processes.values():
            process.terminate(self._deadlines.stop)

    # --- Starting ---

    def _start_due(self) -> None:
        if self._stopping:
            return
        # The first worker starts alone: it creates the files of the store and fetches the settings, which the others
        # then find there at once. An error that every start would have is logged only once.
        for slot in self._slots if self._slots[0].has_served else self._slots[:1]:
            if slot.current is None and slot.successor is None and time.monotonic() >= slot.start_at:
                slot.current = self._start(slot)
        if self._to_restart and all(slot.successor is None for slot in self._slots):
            self._restart_next()

    def _restart_next(self) -> None:
        slot = self._to_restart[0]
        if slot.current is None:
            self._to_restart.popleft()  # it gets a new worker anyway
        elif slot.current.is_ready and (successor := self._start(slot)) is not None:
            self._to_restart.popleft()
            slot.successor = successor

    def _start(self, slot: _Slot) -> WorkerProcess | None:
        """Return a new worker, or None if it cannot be started now; the next loop tries again."""
        row = self._free_row()
        if row is None:
            return None
        try:
            slot.sock = slot.sock or self._new_socket()
            process = self._launcher.launch(slot.number, row, slot.sock, partial(self._close_inherited, slot))
        except OSError as error:
            _postpone(slot, error)
            return None
        process.deadline = process.started_at + self._deadlines.start
        self._processes[process.pid] = process
        logger.debug("%s started", process)
        return process

    def _has_served(self) -> bool:
        """Return whether any worker was ready."""
        return any(slot.has_served for slot in self._slots)

    def _free_row(self) -> int | None:
        taken = {process.row for process in self._processes.values()}
        return next((row for row in range(self._scoreboard.rows) if row not in taken), None)

    def _close_inherited(self, own: _Slot) -> None:
        """Run in a new worker: close descriptors of other workers, and the sockets of other slots."""
        for process in self._processes.values():
            process.close()
        for slot in self._slots:
            if slot is not own:
                slot.close_socket()

    # --- Watching ---

    def _read_ready_pipes(self) -> None:
        starting = {process.ready_pipe: process for process in self._processes.values() if not process.is_ready}
        poll = select.poll()  # select(2) fails with descriptors above 1023
        for pipe in starting:
            poll.register(pipe, select.POLLIN)
        for pipe, _ in poll.poll(0):
            if os.read(pipe, 1):  # empty: the process has ended, which SIGCHLD reports
                self._record_ready(starting[pipe])

    def _announce(self) -> None:
        """Notify systemd once every slot serves: after the start, and after a rolling restart."""
        is_restarting = bool(self._to_restart) or any(slot.successor is not None for slot in self._slots)
        if self._is_announced or self._stopping or is_restarting:
            return
        if all(slot.current is not None and slot.current.is_ready for slot in self._slots):
            self._is_announced = True
            systemd.ready()

    def _record_ready(self, process: WorkerProcess) -> None:
        process.mark_ready()
        slot = self._slots[process.number]
        slot.has_served = True
        if self._stopping:
            return
        process.deadline = math.inf
        logger.info("%s is ready", process)
        if slot.successor is process:
            former, slot.current, slot.successor = slot.current, process, None
            slot.backoff.reset()
            if former is not None:
                former.terminate(self._deadlines.stop, signal.SIGINT)  # its successor serves already

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            process = self._processes.pop(pid, None)
            if process is not None:  # otherwise an orphan of another process, inherited as PID 1
                process.close()
                if self._stopping and not self._processes and self._has_served():
                    self._on_stopped(self._scoreboard.read_all())  # before the last record goes into the totals
                self._scoreboard.retire(process.row, process.generation)
                self._record_end(process, os.waitstatus_to_exitcode(status))

    def _record_end(self, process: WorkerProcess, code: int) -> None:
        slot = self._slots[process.number]
        outcome = _outcome(code)
        if self._stopping:
            if code:
                logger.error("%s ended %s", process, outcome)
                self._exit_code = self._exit_code or 1
        elif slot.successor is process:
            logger.error("the new %s ended %s before it was ready; the rolling restart was cancelled", process, outcome)
            slot.successor = None
            self._to_restart.clear()
        elif slot.current is not process:
            logger.log(logging.ERROR if code else logging.INFO, "the replaced %s ended %s", process, outcome)
        elif code > 0 and not self._has_served():  # otherwise the others continue
            logger.info("%s could not start (exit code %d)", process, code)  # it has logged the reason
            self._stop(code)
        else:
            slot.current = None
            self._back_off(slot, process, outcome)

    def _back_off(self, slot: _Slot, process: WorkerProcess, outcome: str) -> None:
        now = time.monotonic()
        if now - process.started_at >= STEADY_SECONDS:
            slot.backoff.reset()
        delay = slot.backoff.next()
        slot.start_at = now + delay
        logger.error("%s ended %s; a new one starts in %.1f s", process, outcome, delay)
        if delay > LONGEST_QUEUE_SECONDS and slot.successor is None:
            logger.error("worker %d ended repeatedly; its socket was closed until the next start", slot.number)
            slot.close_socket()

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for process in self._processes.values():
            if now >= process.deadline:
                process.kill()


def _postpone(slot: _Slot, error: OSError) -> None:
    """Log that a worker could not be started, and try again later."""
    seconds = BACKOFF_LONGEST_SECONDS
    logger.error("worker %d could not be started: %s; retrying in %.0f s", slot.number, error, seconds)
    slot.start_at = time.monotonic() + seconds


def _outcome(code: int) -> str:
    if code < 0:
        return f"by signal {-code}"
    return "normally" if code == 0 else f"with exit code {code}"
