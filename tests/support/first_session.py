"""The first session of a new user: `scripts/run` on a terminal, the request that it suggests, and Ctrl-C.

    python tests/support/first_session.py > tests/data/first-session.txt

records it with a new clone and a new .venv, which needs a package index. `test_first_session.py` compares the record,
the first screen of README.md and a session of today.
"""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300.0  # for one line, because the first start installs
SUGGESTION = re.compile(rb"Try it +(curl [^\r\n]+)\r\n")
VOLATILE = {
    r"^installing into .*\n|^\$ git clone .*\n|^\d{4}-\d\d-\d\d .*\n": "",  # the clone, and the log
    r"127\.0\.0\.1:\d+": "127.0.0.1:8000",
    r"#token=\S+": "#token=...",
    r"embedded, in \S+": "embedded, in DATA_DIR",
    r"(Workers +)\d+": r"\1N",
    r"(Build +).*": r"\1VERSION",
}


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches all its processes
        )
        os.close(theirs)
        self.text = b""

    def read_until(self, is_complete: Callable[[], object]) -> None:
        """Read until there is enough, or the program has ended."""
        while not is_complete():
            assert select.select([self._ours], [], [], PATIENCE_SECONDS)[0], self.text
            try:
                self.text += os.read(self._ours, 4096)
            except OSError:  # the last process has closed the terminal
                return

    def press_ctrl_c(self) -> None:
        os.write(self._ours, b"\x03")

    def close(self) -> int:
        os.close(self._ours)
        return self.process.wait(60)


def record(directory: Path, environment: dict[str, str]) -> str:
    """Run a session in the repository at `directory`. Return the text on the screen."""
    port = free_port()
    terminal = Terminal(["scripts/run"], directory, {**environment, "PORT": str(port)})
    terminal.read_until(lambda: SUGGESTION.search(terminal.text))
    found = SUGGESTION.search(terminal.text)
    assert found is not None, terminal.text
    command = found[1].decode()
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout
    before = terminal.text.decode()
    terminal.text = b""
    terminal.press_ctrl_c()
    terminal.read_until(lambda: False)
    assert terminal.close() == 0, terminal.text
    screen = f"$ scripts/run\n{before}$ {command}\n{answer.strip()}\n{terminal.text.decode()}"
    return screen.replace("\r\n", "\n")


def normalised(screen: str) -> str:
    """Replace what differs between machines and sessions."""
    for pattern, replacement in VOLATILE.items():
        screen = re.sub(pattern, replacement, screen, flags=re.MULTILINE)
    return screen


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        clone = Path(directory) / "gateway"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        kept = {
            name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name.startswith("PIP_")
        }
        screen = record(clone, kept)
        place = str(clone)
    print("$ git clone REPOSITORY gateway && cd gateway")
    screen = re.sub(r"(?<=127\.0\.0\.1:)\d+", "8000", re.sub(r"#token=\S+", "#token=...", screen))
    sys.stdout.write(screen.replace(place, "/home/you/gateway"))


if __name__ == "__main__":
    main()
