"""The parent process with small workers: real forks, real signals. As a script, this file is such a parent."""

import ctypes
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tornado_gateway import supervisor
from tornado_gateway.config import Config
from tornado_gateway.supervisor import Post

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

    def __call__(self, post):
        self.note(f"start{post.slot}")
        if self.told_to("cannot-start") and post.slot == 1:
            return 3
        if self.told_to("never-ready") and post.slot == 1:
            time.sleep(600)
        if self.told_to("raises") and post.slot == 1:
            raise RuntimeError("on purpose")
        if self.told_to("leaves-orphans"):
            leave_an_orphan(self.note)
        ended = self.watch_signals()
        post.sock.listen()
        post.report_ready()
        self.note(f"ready{post.slot}")
        if self.told_to("dies-at-once") and post.slot == 1:
            return 5
        self.serve(post, ended)
        self.note(f"end{post.slot}")
        return 4 if self.told_to("ends-badly") else 0

    def watch_signals(self):
        """A descriptor that is readable when it is time to end."""
        if self.told_to("ignores-sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return os.pipe()[0]
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(writable)
        return readable

    def serve(self, post, ended):
        while True:
            readable, _, _ = select.select([post.sock, post.parent, ended], [], [])
            if post.parent in readable:
                self.note(f"orphaned{post.slot}")
                return
            if ended in readable:
                self.note(f"term{post.slot}")
                time.sleep(1.0 if self.told_to("drains-slowly") else 0)
                return
            client, _ = post.sock.accept()
            client.sendall(str(os.getpid()).encode())
            client.close()


def leave_an_orphan(note):
    """A grandchild that outlives its parent, and dies later than it."""
    if os.fork() == 0:
        if os.fork() == 0:
            note("orphan")
            time.sleep(0.2)
        os._exit(0)
    os.wait()


def be_the_parent(path, behaviour, count, port, stop_seconds, start_seconds):
    supervisor.START_SECONDS = float(start_seconds)
    supervisor.STOP_MARGIN_SECONDS = 0.0
    supervisor.logger.addHandler(supervisor.logging.StreamHandler())
    supervisor.logger.setLevel("DEBUG")
    if behaviour == "leaves-orphans":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: gets orphans as PID 1 does
    config = Config(
        host="127.0.0.1",
        port=int(port),
        workers=int(count),
        shutdown_seconds=float(stop_seconds),
        socket_timeout_seconds=0,
    )
    worker = FakeWorker(path, behaviour)
    return supervisor.run(config, lambda config, post: worker(post))


# ---- The tests' view of it -------------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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
    def __init__(self, directory, behaviour="", count=2, stop_seconds=SECONDS, start_seconds=SECONDS, wrapper=()):
        self.path = directory / "notes"
        self.path.touch()
        self.port = free_port()
        self.log_path = directory / "log"
        arguments = [str(self.path), behaviour, str(count), str(self.port), str(stop_seconds), str(start_seconds)]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen([*wrapper, sys.executable, __file__, *arguments], stderr=log, stdout=log)

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
        assert parent.log().index("its socket is closed meanwhile") < parent.log().index("a new one starts in 3.2 s")
        pauses = re.findall(r"a new one starts in (\S+) s", parent.log())
        assert pauses[:6] == ["0.1", "0.2", "0.4", "0.8", "1.6", "3.2"]
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


@pytest.mark.parametrize(("behaviour", "code"), [("cannot-start", 3), ("raises", 1)])
def test_a_first_start_that_fails_ends_the_parent_with_its_code(tmp_path, behaviour, code):
    with Parent(tmp_path, behaviour, count=3) as parent:
        assert parent.exit_code() == code
        assert len(parent.notes("start1")) == 1
        assert parent.all_are_gone()
        assert ("RuntimeError: on purpose" in parent.log()) == (behaviour == "raises")


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
        parent.wait_for_log(f"ended {reason} before it served; the rolling restart is given up")
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


def test_workers_end_when_the_parent_is_killed(tmp_path):
    with Parent(tmp_path, count=3) as parent:
        os.kill(parent.wait_for("ready1")[0], signal.SIGKILL)  # a later worker knows its parent as well
        parent.wait_for("ready.", 4)
        parent.signal(signal.SIGKILL)
        parent.exit_code()
        assert len(set(parent.wait_for("orphaned.", 3))) == 3
        wait_until(parent.all_are_gone)


def test_orphans_of_others_are_reaped(tmp_path):
    with Parent(tmp_path, "leaves-orphans") as parent:
        orphans = parent.wait_for("orphan", 2)
        wait_until(lambda: not any(map(is_alive, orphans)))
        parent.wait_for("ready.", 2)
        parent.signal(signal.SIGTERM)
        assert parent.exit_code() == 0


def can_unshare():
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs user and PID namespaces")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_as_the_first_process_of_a_container(tmp_path, number):
    """The kernel protects PID 1 from signals that it has no handler for."""
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    with Parent(tmp_path, wrapper=unshare) as parent:
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
            supervisor.run(config, lambda config, post: 0)


def test_one_worker_needs_no_parent():
    posts = []
    assert supervisor.run(Config(workers=1), lambda config, post: posts.append((os.getpid(), post)) or 7) == 7
    ((pid, post),) = posts
    assert pid == os.getpid()
    assert (post.slot, post.sock, post.parent) == (0, None, None)
    post.report_ready()
    assert isinstance(post, Post)


if __name__ == "__main__":
    sys.exit(be_the_parent(*sys.argv[1:]))
