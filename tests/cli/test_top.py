"""`top`: one frame, a terminal of 80 x 24, and an overview with everything wrong."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import pytest
from commands import run
from exchanges import exchange
from process import PATIENCE_SECONDS, ROOT, SAMPLE_SETTINGS, Gateway, free_port

from tornado_gateway.cli.insight.overview_text import frame, sparkline
from tornado_gateway.quantities import duration

ESCAPES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(tmp_path_factory.mktemp("top") / "data", SETTINGS_FILE=SAMPLE_SETTINGS, WORKERS=2) as gateway:
        yield gateway


def environment(gateway):
    options = {"PORT": str(gateway.port), "HOST": "127.0.0.1", "DATA_DIR": str(gateway.data_dir)}
    return {"PATH": os.environ["PATH"], "TERM": "xterm", **options}


def test_one_frame_has_the_numbers_of_the_overview(gateway):
    overview = exchange(gateway, "GET", "/admin/overview", **gateway.admin_headers)[2]
    result = run("top", "--once", **environment(gateway))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert "\x1b" not in result.stdout  # not a terminal
    for part in ("account 123456, 11 features", "received 0, delivered 0", "version 1", "embedded, up"):
        assert part in result.stdout
    for worker in overview["status"]["workers"]:
        assert re.search(rf"^{worker['slot']} +{worker['pid']}  ", result.stdout, re.MULTILINE)


def test_without_a_gateway_the_reason_is_printed():
    result = run("top", "--once", PORT=str(free_port()), HOST="127.0.0.1", DATA_DIR="/does/not/exist")
    assert result.returncode == 1
    assert "no response from" in result.stderr
    assert "Traceback" not in result.stderr


@contextmanager
def terminal(gateway):
    """`top` in a terminal: its process, and the other end of the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tornado_gateway", "top", "--interval", "0.2"]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.STDOUT}
    # A shell ignores SIGINT in its background jobs, and children inherit that.
    notice_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, **streams, env=environment(gateway), cwd=ROOT, preexec_fn=notice_interrupts)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(file, condition):
    text = b""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition(text.decode(errors="ignore")):
        assert time.monotonic() < deadline, text
        if select.select([file], [], [], 0.2)[0]:
            text += os.read(file, 65536)
    return text.decode()


@pytest.mark.parametrize("ends_with", ["q", "SIGINT"])
def test_frames_follow_until_the_user_ends_it(gateway, ends_with):
    with terminal(gateway) as (process, file):
        shown = read_until(file, lambda text: text.count("FME gateway") >= 3)
        assert max(map(len, ESCAPES.sub("", shown).split("\r\n"))) <= 80
        os.write(file, b"x")
        if ends_with == "q":
            os.write(file, b"q")
        else:
            process.send_signal(signal.SIGINT)
        read_until(file, lambda text: text.endswith("\x1b[?25h\x1b[?1049l"))
        assert process.wait(PATIENCE_SECONDS) == 0


WRONG = {
    "at": 1000.0,
    "status": {
        "version": "1.0",
        "uptime_seconds": 93.5,
        "settings": None,
        "events": {"received": 12_345, "delivered": 5, "waiting": None, "dead": None, "last_known": {"waiting": 3}},
        "last_flush": {"at": 990.0, "error": "VWO returned 500\x1b[2J"},
        "verdict": "critical",
        "problems": [
            {"severity": "critical", "environment": "shop", "message": f"problem {number} " + "x" * 300}
            for number in range(9)
        ],
        "workers": [{"slot": slot, "pid": 10**7 + slot, "state": "starting"} for slot in range(64)],
    },
    "account": {"id": None, "features": 0},
    "store": {"kind": "redis", "is_up": False, "error": "x"},
    "samples": {name: [None, 1.5, 3e9] for name in ("requests", "decisions", "received", "delivered")}
    | {"p50_ms": [None], "p99_ms": [None]},
}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (20, 5), (300, 100)])
def test_a_frame_fits_and_shows_faults(width, height):
    lines = frame(WRONG, width, height)
    assert max(len(line.text) for line in lines) <= width
    assert len(lines) <= height
    text = "\n".join(line.text for line in lines)
    assert "\x1b" not in text
    if width >= 80:
        for part in (
            "no settings",
            "waiting unknown",
            "VWO returned 500?[2J",
            "critical: shop: problem 4",
            "and 4 more",
            "redis, down",
            "1 min 33 s",
        ):
            assert part in text


def test_values():
    assert sparkline([0, 1, 4, 8, None]) == " ▁▄█ "
    assert sparkline([0, 0]) == "  "
    assert [duration(value) for value in (None, 0, 61, 7200, 90_061)] == ["-", "0 s", "1 min 1 s", "2 h", "1 d 1 h"]
