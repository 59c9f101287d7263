"""The parent process with small workers: real forks, real signals. As a script, this file is such a parent."""

import ctypes
import logging
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ports import free_port
from process import SAMPLE_SETTINGS, is_running

from tornado_gateway.config import Config
from tornado_gateway.process.parent import sockets, supervisor

HELPERS = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # this file is also a program
FD_SETSIZE = 1024  # select(2) knows no larger descriptors
SECONDS = 60.0  # for anything that is bound to happen; nothing is expected to take long


# ---- The parent, in a process of its own -----------------------------------------------------------------------------


class FakeWorker:
    """Answers every connection with its pid, writes what happens to a file, and misbehaves as it is told."""

    def __init__(self, path, behaviour):
        self.path = Path(path)
        self.behaviour = behaviour

    def note(self, text):
        with self.path.open("a") as file:
            file.write(f"{text} {os.getpid()}\n")

    def told_to(self, *behaviours):
        """By the command line, or since then by a file beside the notes."""
        extra = self.path.with_suffix(".behaviour")
        return self.behaviour in behaviours or (extra.exists() and extra.read_text() in behaviours)

    def __call__(self, slot):
        self.note(f"start{slot.number}")
        if self.told_to("cannot-start") and slot.number == 1:
            return 3
        if self.told_to("never-ready") and slot.number == 1:
            time.sleep(600)
        if self.told_to("first-cannot-start"):
            return 3
        if self.told_to("raises"):
            raise RuntimeError("on purpose")
        if self.told_to("none-ready"):
            time.sleep(600)
        if self.told_to("leaves-orphans"):
            leave_an_orphan(self.note)
        ended = self.watch_signals()
        slot.sock.listen()
        slot.report_ready()
        self.note(f"ready{slot.number}")
        if self.told_to("dies-at-once") and slot.number == 1:
            return 5
        self.serve(slot, ended)
        self.note(f"end{slot.number}")
        return 4 if self.told_to("ends-badly") else 0

    def watch_signals(self):
        """A descriptor that is readable when it is time to end."""
        if self.told_to("ignores-sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return os.pipe()[0]
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        for number in (signal.SIGTERM, signal.SIGINT):  # the latter in rolling restarts
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writable)
        return readable

    def serve(self, slot, ended):
        poll = select.poll()
        for source in (slot.sock, ended):
            poll.register(source, select.POLLIN)
        while True:
            slot.scoreboard.beat(slot.row)
            readable = {descriptor for descriptor, _ in poll.poll(50)}
            if self.told_to("hangs") and slot.number == 0:
                compute_endlessly()
            if slot.sock.fileno() in readable:
                client, _ = slot.sock.accept()
                client.sendall(str(os.getpid()).encode())
                client.close()
            if ended in readable:
                self.note(f"term{slot.number}")
                time.sleep(1.0 if self.told_to("drains-slowly") else 0)
                return


def compute_endlessly():
    """Hold the interpreter, as a regular expression does that backtracks."""
    re.match(r"^([a-zA-Z0-9]+[._-]?)+@example\.com$", "a" * 4096)


def leave_an_orphan(note):
    """A grandchild that outlives its parent, and dies later than it."""
    if os.fork() == 0:
        if os.fork() == 0:
            note("orphan")
            time.sleep(0.2)
        os._exit(0)
    os.wait()


def be_the_parent(path, behaviour, count, port, stop_seconds, start_seconds, silent_seconds):
    logger = logging.getLogger("tornado_gateway")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel("DEBUG")
    if behaviour == "leaves-orphans":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: gets orphans as PID 1 does
    if behaviour == "has-many-descriptors":
        for _ in range(FD_SETSIZE):
            os.dup(0)
    config = Config(host="127.0.0.1", port=int(port), workers=int(count))
    worker = FakeWorker(path, behaviour)
    deadlines = supervisor.Deadlines(float(start_seconds), float(stop_seconds), float(silent_seconds))
    return supervisor.run(config, lambda config, slot: worker(slot), deadlines)


# ---- The tests' view of it -------------------------------------------------------------------------------------------


def is_alive(pid):
    """Zombies count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, describe=lambda: ""):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {describe()}"
        time.sleep(0.01)


class Parent:
    def __init__(
        self,
        directory,
        behaviour="",
        count=2,
        stop_seconds=SECONDS,
        start_seconds=SECONDS,
        silent_seconds=SECONDS,
        wrapper=(),
        environment=None,
    ):
        self.path = directory / "notes"
        self.path.touch()
        self.port = free_port()
        self.log_path = directory / "log"
        seconds = [str(stop_seconds), str(start_seconds), str(silent_seconds)]
        arguments = [str(self.path), behaviour, str(count), str(self.port), *seconds]
        command = [*wrapper, sys.executable, __file__, *arguments]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=HELPERS | (environment or {}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.pids():
            if is_alive(pid) and pid > 100:
                os.kill(pid, signal.SIGKILL)

    def log(self):
        return self.log_path.read_text()

    def notes(self, pattern=""):
        """What happened so far, as (what, pid)."""
        lines = (line.split() for line in self.path.read_text().splitlines())
        return [(what, int(pid)) for what, pid in lines if re.fullmatch(pattern or ".*", what)]

    def pids(self):
        return {pid for _, pid in self.notes()}

    def wait_for(self, pattern, times=1):
        """The pids that noted it, in order."""
        wait_until(
            lambda: len(self.notes(pattern)) >= times, lambda: f"{times} x {pattern}: {self.notes()} {self.log()}"
        )
        return [pid for _, pid in self.notes(pattern)]

    def wait_for_log(self, text):
        wait_until(lambda: text in self.log(), self.log)

    def signal(self, number):
        self.process.send_signal(number)

    def exit_code(self):
        return self.process.wait(SECONDS)

    def ask(self):
        """The pid of the worker that answers a new connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as client:
            return int(client.recv(100))

    def all_are_gone(self):
        return not any(map(is_alive, self.pids()))


def test_each_slot_has_a_worker_and_all_are_asked(tmp_path):
    with Parent(tmp_path, count=3) as parent:
        parent.wait_for("ready.", 3)
        assert sorted(what for what, _ in parent.notes("ready.")) == ["ready0", "ready1", "ready2"]
        assert len(parent.pids()) == 3
        asked = set()
        wait_until(lambda: asked.add(parent.ask()) or asked == parent.pids())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_signal_ends_all_workers_orderly(tmp_path, number):
    with Parent(tmp_path, count=3) as parent:
        parent.wait_for("ready.", 3)
        parent.signal(number)
        assert parent.exit_code() == 0
        assert len(parent.notes("end.")) == 3
        assert parent.all_are_gone()
        with pytest.raises(ConnectionRefusedError):
            parent.ask()


def test_further_signals_while_ending_are_harmless(tmp_path):
    with Parent(tmp_path, "drains-slowly") as parent:
        parent.wait_for("ready.", 2)
        parent.signal(signal.SIGTERM)
        parent.wait_for("term.", 2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            parent.signal(number)
            time.sleep(0.05)
        assert parent.exit_code() == 0
        assert len(parent.notes("end.")) == 2
        assert len(parent.notes("start.")) == 2


def test_a_signal_while_workers_start_ends_them(tmp_path):
    with Parent(tmp_path, "never-ready") as parent:
        parent.wait_for("start1")
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0
        assert parent.all_are_gone()


def test_a_worker_that_is_killed_comes_back_and_the_other_stays(tmp_path):
    with Parent(tmp_path) as parent:
        parent.wait_for("ready.", 2)
        (other,), (killed,) = parent.wait_for("ready0"), parent.wait_for("ready1")
        for round_ in range(1, 4):
            os.kill(killed, signal.SIGKILL)
            killed = parent.wait_for("ready1", round_ + 1)[-1]
        asked = set()
        wait_until(lambda: asked.add(parent.ask()) or asked == {other, killed})
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0
        assert parent.all_are_gone()
        assert "by signal 9; a new one starts in 0.1 s" in parent.log()


def test_a_worker_that_keeps_dying_starts_ever_more_seldom_and_gives_up_its_socket(tmp_path):
    with Parent(tmp_path, "dies-at-once") as parent:
        (living,) = parent.wait_for("ready0")
        parent.wait_for_log("a new one starts in 3.2 s")
        assert len(parent.notes("ready1")) == 6
        assert {parent.ask() for _ in range(50)} == {living}  # nobody is sent to a queue that nobody empties
        assert parent.log().index("its socket was closed until the next start") < parent.log().index(
            "a new one starts in 3.2 s"
        )
        pauses = re.findall(r"a new one starts in (\S+) s", parent.log())
        assert pauses[:6] == ["0.1", "0.2", "0.4", "0.8", "1.6", "3.2"]
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


@pytest.mark.parametrize(("behaviour", "code"), [("first-cannot-start", 3), ("raises", 1)])
def test_a_first_start_that_fails_ends_the_parent_with_its_code(tmp_path, behaviour, code):
    with Parent(tmp_path, behaviour, count=3) as parent:
        assert parent.exit_code() == code
        assert (len(parent.notes("start0")), parent.notes("start1")) == (1, [])
        assert parent.all_are_gone()
        assert ("RuntimeError: on purpose" in parent.log()) == (behaviour == "raises")


def test_a_worker_that_cannot_start_beside_one_that_serves_is_tried_again(tmp_path):
    """Such as on a disk that is full or read-only at this moment: the others continue."""
    behaviour = tmp_path / "notes.behaviour"
    behaviour.write_text("cannot-start")
    with Parent(tmp_path, count=3) as parent:
        parent.wait_for("ready0")
        parent.wait_for("start1", 3)
        parent.wait_for("ready2")
        behaviour.unlink()
        parent.wait_for("ready1")
        assert parent.process.poll() is None
        assert len(parent.notes("start0")) == 1


def test_a_later_start_that_fails_is_tried_again(tmp_path):
    with Parent(tmp_path) as parent:
        (first,) = parent.wait_for("ready1")
        behaviour = tmp_path / "notes.behaviour"
        behaviour.write_text("cannot-start")
        os.kill(first, signal.SIGKILL)
        parent.wait_for("start1", 3)
        behaviour.unlink()
        parent.wait_for("ready1", 2)
        assert parent.process.poll() is None


def test_a_worker_that_never_serves_is_replaced(tmp_path):
    with Parent(tmp_path, "never-ready", start_seconds=3) as parent:
        first = parent.wait_for("start1", 2)[0]
        assert not is_alive(first)
        assert "did not start in time" in parent.log()
        parent.wait_for("ready0")


def test_a_rolling_restart_replaces_one_after_the_other(tmp_path):
    with Parent(tmp_path, count=3) as parent:
        before = parent.wait_for("ready.", 3)
        parent.signal(signal.SIGHUP)
        parent.wait_for("end.", 3)
        order = [what for what, _ in parent.notes()[6:]]
        for slot in "012":
            assert order.index(f"start{slot}") < order.index(f"ready{slot}") < order.index(f"term{slot}")
        assert order.index("ready0") < order.index("start1")
        assert order.index("ready1") < order.index("start2")
        after = set(parent.wait_for("ready.", 6)[3:])
        assert not after & set(before)
        wait_until(lambda: not any(map(is_alive, before)))
        assert {parent.ask() for _ in range(50)} <= after
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


def test_restarts_in_quick_succession(tmp_path):
    """Old workers drain slowly, so that the places of two processes for each slot have to be waited for."""
    with Parent(tmp_path, "drains-slowly") as parent:
        parent.wait_for("ready.", 2)
        for ready in (3, 4, 5):
            parent.signal(signal.SIGHUP)
            parent.wait_for("ready.", ready)
        parent.wait_for("end.", 4)
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0
        assert parent.all_are_gone()
        assert len(parent.notes("end.")) == len(parent.notes("start."))


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("cannot-start", "with exit code 3"), ("never-ready", "by signal 9")]
)
def test_a_new_worker_that_does_not_serve_leaves_the_old_one_in_place(tmp_path, behaviour, reason):
    with Parent(tmp_path, start_seconds=3) as parent:
        parent.wait_for("ready.", 2)
        (one,) = parent.wait_for("ready1")
        (tmp_path / "notes.behaviour").write_text(behaviour)
        parent.signal(signal.SIGHUP)
        parent.wait_for_log(f"ended {reason} before it was ready; the rolling restart was cancelled")
        assert is_alive(one)
        assert not parent.notes("term1")
        new_zero = parent.wait_for("ready0", 2)[1]
        asked = set()
        wait_until(lambda: asked.add(parent.ask()) or asked >= {one, new_zero})
        (tmp_path / "notes.behaviour").unlink()
        parent.signal(signal.SIGHUP)  # and the next one goes well
        assert one in parent.wait_for("end1")


def test_the_old_worker_may_die_while_its_successor_starts(tmp_path):
    with Parent(tmp_path, start_seconds=3) as parent:
        parent.wait_for("ready.", 2)
        (one,) = parent.wait_for("ready1")
        (tmp_path / "notes.behaviour").write_text("never-ready")
        parent.signal(signal.SIGHUP)
        parent.wait_for("start1", 2)
        os.kill(one, signal.SIGKILL)
        wait_until(lambda: not is_alive(one))
        (tmp_path / "notes.behaviour").unlink()
        parent.wait_for("ready1", 2)
        assert parent.process.poll() is None


def test_a_worker_that_does_not_end_is_killed(tmp_path):
    with Parent(tmp_path, "ignores-sigterm", stop_seconds=0.5) as parent:
        parent.wait_for("ready.", 2)
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 1
        assert parent.all_are_gone()
        assert parent.log().count("did not end in time") == 2


def test_a_worker_that_ends_badly_shows_in_the_exit_code(tmp_path):
    with Parent(tmp_path, "ends-badly") as parent:
        parent.wait_for("ready.", 2)
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 1


@pytest.mark.parametrize("count", [1, 2])
def test_p1_a_stopped_worker_is_replaced(tmp_path, count):
    """Row P1: for any number of workers."""
    with Parent(tmp_path, count=count, silent_seconds=2) as parent:
        (hung,) = parent.wait_for("ready0")
        others = set(parent.wait_for("ready.", count)) - {hung}
        os.kill(hung, signal.SIGSTOP)
        successor = parent.wait_for("ready0", 2)[1]
        parent.wait_for_log(f"worker 0 (pid {hung}) did not respond for 2 s and was killed\n")
        parent.wait_for_log(f"worker 0 (pid {hung}) ended by signal 9; a new one starts in 0.1 s")
        asked = set()
        wait_until(lambda: asked.add(parent.ask()) or asked == others | {successor})
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0
        assert parent.all_are_gone()


def test_p1_a_worker_in_an_endless_computation_is_replaced_and_the_log_shows_where_it_was(tmp_path):
    """Row P1: also if the computation holds the interpreter."""
    with Parent(tmp_path, count=1, silent_seconds=2) as parent:
        (hung,) = parent.wait_for("ready0")
        behaviour = tmp_path / "notes.behaviour"
        behaviour.write_text("hangs")
        wait_until(lambda: not is_alive(hung))
        behaviour.unlink()
        assert f"worker 0 (pid {hung}) did not respond for 2 s and was killed\n" in parent.log()
        assert "in compute_endlessly" in parent.log()
        wait_until(lambda: parent.notes("ready0")[-1][1] != hung)
        assert parent.ask() != hung


def test_p1_a_worker_that_hangs_while_it_ends_is_killed_soon(tmp_path):
    with Parent(tmp_path, "ignores-sigterm", stop_seconds=600, silent_seconds=2) as parent:
        stopped = parent.wait_for("ready.", 2)
        wait_until(lambda: parent.log().count(" is ready") == 2)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 1
        assert parent.log().count("did not respond for 2 s and was killed") == 2


def test_p1_workers_are_not_blamed_for_a_machine_that_stood_still(tmp_path):
    """As after `docker pause`: the parent may run again before its workers do."""
    with Parent(tmp_path, silent_seconds=6) as parent:
        workers = parent.wait_for("ready.", 2)
        everyone = [parent.process.pid, *workers]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(9)
        os.kill(parent.process.pid, signal.SIGCONT)
        time.sleep(0.5)
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        assert "did not respond" not in parent.log()
        assert parent.ask() in workers


def test_p1_systemd_hears_nothing_while_no_worker_serves(tmp_path):
    """Row P1: a hung worker whose successor does not start either is what systemd restarts the gateway for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(SECONDS)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with Parent(tmp_path, count=1, start_seconds=2, silent_seconds=1, environment=environment) as parent:
            (hung,) = parent.wait_for("ready0")
            heard(listener, b"WATCHDOG=1")
            (tmp_path / "notes.behaviour").write_text("none-ready")
            os.kill(hung, signal.SIGSTOP)
            parent.wait_for("start0", 3)  # the first successor did not serve and was killed
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                heard(listener, b"nothing more")
            parent.wait_for("start0", 4)
            with pytest.raises(BlockingIOError):
                heard(listener, b"WATCHDOG=1")
            listener.settimeout(SECONDS)
            (tmp_path / "notes.behaviour").unlink()
            heard(listener, b"WATCHDOG=1")


def heard(listener, message):
    while listener.recv(4096) != message:
        pass


def test_p2_workers_end_when_the_parent_is_killed(tmp_path):
    """Row P2: also one that is stopped, and cannot notice."""
    with Parent(tmp_path, count=3) as parent:
        os.kill(parent.wait_for("ready1")[0], signal.SIGKILL)  # a later worker ends with its parent as well
        stopped = parent.wait_for("ready.", 4)[-1]
        os.kill(stopped, signal.SIGSTOP)
        parent.signal(signal.SIGKILL)
        parent.exit_code()
        wait_until(lambda: not any(map(is_running, parent.pids())))


def test_orphans_of_others_are_reaped(tmp_path):
    with Parent(tmp_path, "leaves-orphans") as parent:
        orphans = parent.wait_for("orphan", 2)
        wait_until(lambda: not any(map(is_alive, orphans)))
        parent.wait_for("ready.", 2)
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def can_unshare():
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_p3_orphans_are_reaped_with_one_worker(tmp_path):
    """Row P3."""
    with Parent(tmp_path, "leaves-orphans", count=1) as parent:
        (orphan,) = parent.wait_for("orphan")
        wait_until(lambda: not is_alive(orphan))
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


def test_p3_signals_are_blocked_before_the_gateway_is_loaded():
    """Row P3: one that arrives meanwhile waits; the kernel would drop it, for the PID 1 of a container."""
    code = """if True:
        import runpy, signal, sys
        def on_event(event, arguments):
            if event == "import" and arguments[0] == "tornado_gateway.cli.main":
                print(*sorted(number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        sys.addaudithook(on_event)
        sys.argv = ["tornado-gateway", "serve", "--no-such-option"]
        runpy.run_module("tornado_gateway", run_name="__main__")
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["SIGHUP SIGINT SIGTERM"]


@pytest.mark.skipif(not can_unshare(), reason="needs user and PID namespaces")
@pytest.mark.parametrize("workers", [1, 2])
def test_p3_as_the_first_process_of_a_container_it_ends_at_once_when_told_so_while_it_starts(tmp_path, workers):
    """Row P3, with the gateway itself: SIGTERM as soon as the interpreter runs."""
    options = {"WORKERS": str(workers), "PORT": str(free_port()), "HOST": "127.0.0.1", "DATA_DIR": str(tmp_path / "x")}
    environment = os.environ | options | {"SETTINGS_FILE": str(SAMPLE_SETTINGS)}
    command = [*UNSHARE, sys.executable, "-m", "tornado_gateway", "serve"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: any(map(blocks_sigterm, children(process.pid))))
            (first,) = children(process.pid)
            os.kill(first, signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def blocks_sigterm(pid):
    """A Python that does; `unshare` does so as well, before it becomes that."""
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = int(re.search(r"^SigBlk:\s+(\w+)", status, re.MULTILINE)[1], 16)
    return status.startswith("Name:\tpython") and bool(blocked >> signal.SIGTERM - 1 & 1)


@pytest.mark.skipif(not can_unshare(), reason="needs user and PID namespaces")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_as_the_first_process_of_a_container(tmp_path, number):
    """The kernel protects PID 1 from signals that it has no handler for."""
    with Parent(tmp_path, wrapper=UNSHARE) as parent:
        parent.wait_for("ready.", 2)
        (first,) = Path(f"/proc/{parent.process.pid}/task/{parent.process.pid}/children").read_text().split()
        assert re.search(r"^NSpid:.*\t1$", Path(f"/proc/{first}/status").read_text(), re.MULTILINE)
        os.kill(int(first), number)
        assert parent.exit_code() == 0
        assert len(parent.notes("end.")) == 2


def test_an_address_in_use_is_an_error(tmp_path):
    with Parent(tmp_path, count=2) as parent:
        parent.wait_for("ready.", 2)
        config = Config(host="127.0.0.1", port=parent.port, workers=2)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{parent.port}"):
            supervisor.run(config, lambda config, slot: 0)


def test_p2_a_port_that_becomes_free_in_time_is_waited_for(tmp_path):
    """Row P2: the workers of a killed parent end a moment later than it."""
    with socket.create_server(("127.0.0.1", 0)) as former:
        port = former.getsockname()[1]
        threading.Timer(0.3, former.close).start()
        assert sockets.free_port("127.0.0.1", port, timeout_seconds=SECONDS) == port


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * FD_SETSIZE, reason="few open files")
def test_a_parent_of_very_many_workers(tmp_path):
    """The parent has three descriptors for each; its error was that of select(2)."""
    with Parent(tmp_path, "has-many-descriptors") as parent:
        parent.wait_for("ready.", 2)
        parent.wait_for_log("worker 1")
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


def test_one_worker_has_a_parent_too(tmp_path):
    with Parent(tmp_path, count=1) as parent:
        (pid,) = parent.wait_for("ready0")
        assert pid != parent.process.pid
        assert parent.ask() == pid


if __name__ == "__main__":
    sys.exit(be_the_parent(*sys.argv[1:]))
