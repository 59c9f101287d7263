"""A real gateway process, started and ended by a test."""

import functools
import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import orjson
from forked import Forked
from ports import free_port

ROOT = Path(__file__).parents[2]
SECRETS = ("SDK_KEY", "REDIS_PASSWORD", "MAXMIND_LICENSE_KEY", "ADMIN_TOKEN", "WEBHOOK_TOKEN")
PATIENCE_SECONDS = 60.0  # for anything that is bound to happen, however slow the machine is
GRACE_SECONDS = 5.0  # for what may not happen in some tests
SHORTEST_SECRET = 4  # what the gateway masks
COMPILED = ROOT / "build" / "compiled"  # made by scripts/compile
COMMAND = [sys.executable, "-m", "tornado_gateway", "serve"]
SAMPLE_SETTINGS = ROOT / "conf" / "sample-settings.json"


@functools.cache
def is_compiled() -> bool:
    """Whether there is a compiled build of the sources as they are; first asked when all tests are known."""
    return subprocess.run([ROOT / "scripts" / "compile", "--check"], stdout=subprocess.DEVNULL).returncode == 0


def build() -> Path:
    """The compiled build, if there is one of the sources as they are; otherwise the sources."""
    return COMPILED if is_compiled() else ROOT


def sample_document() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(SAMPLE_SETTINGS.read_bytes())
    return document


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Gateway:
    """`tornado-gateway serve` with these options; a context manager that leaves no process behind.

    It runs the compiled build if there is one of the sources as they are; PYTHONPATH says otherwise. It is forked from
    a process that has loaded the modules, unless a test is about the start or the memory of the process (`is_fresh`),
    has another command, or sets variables that Python or the dynamic linker reads at the start.
    """

    def __init__(self, data_dir: Path, *, is_fresh: bool = False, **options: object) -> None:
        self.port = free_port()
        self.data_dir = data_dir
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(build()),
            "PYTHONSAFEPATH": "1",  # not what is in the current directory
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WORKERS": "1",
            "DATA_DIR": str(data_dir),
            "DECISION_REQUIRED": "true",
            "LOG_LEVEL": "INFO",
            **{name: str(value) for name, value in options.items()},
        }
        self.command = COMMAND
        self._is_fresh = is_fresh or any(name.startswith(("PYTHON", "LD_")) for name in options)
        self.log_path = data_dir.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._vendor: Any = None

    @classmethod
    def of_vendor(cls, data_dir: Path, vendor: Any, **options: object) -> Self:
        """A gateway of the sample account with this vendor as its upstream."""
        sample = sample_document()
        defaults = {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "UPSTREAM_URL": vendor.url}
        gateway = cls(data_dir, **(defaults | options))
        gateway._vendor = vendor
        return gateway

    def __enter__(self) -> Self:
        self.start()
        if self._vendor is not None and not self._vendor.settings_faults:
            self._wait_for_settings()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.check_secrets()

    def check_secrets(self) -> None:
        """Whatever a test was about: nothing that the gateway wrote holds a secret that it was given."""
        written = self.log() if self.log_path.exists() else ""
        secrets = {name: self._environment.get(name, "") for name in SECRETS}
        for name, secret in {**secrets, "admin-token": self._generated_token()}.items():
            assert len(secret) < SHORTEST_SECRET or secret not in written, f"{name} is in the log"

    def start(self, path: str = "/health") -> None:
        """Start, and wait until `path` answers 200."""
        with self.log_path.open("ab") as log:
            if self._is_fresh or self.command is not COMMAND:
                self.process = subprocess.Popen(self.command, env=self._environment, stderr=log, stdout=log)
            else:
                self.process = Forked(build(), ["serve"], self._environment, Path.cwd(), log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers(path):
            assert self.process.poll() is None, f"the gateway ended: {self.log()[-5000:]}"
            assert time.monotonic() < deadline, f"the gateway does not answer: {self.log()}"
            time.sleep(0.02)

    def _wait_for_settings(self) -> None:
        """A start waits for the settings no longer than SOCKET_TIMEOUT. Some tests want a gateway without any."""
        deadline = time.monotonic() + GRACE_SECONDS
        while not self._answers("/ready") and time.monotonic() < deadline:
            time.sleep(0.02)

    def worker_pids(self) -> list[int]:
        """The children of the parent process, in the order of their start."""
        assert self.process is not None
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill(self) -> None:
        """SIGKILL to the parent, and wait until its workers have ended as well."""
        assert self.process is not None
        workers = self.worker_pids()
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 30
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline, f"workers outlive their parent: {workers}"
            time.sleep(0.001)

    def terminate(self, seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def workers(self) -> int:
        return int(self._environment["WORKERS"])

    @property
    def admin_token(self) -> str:
        """ADMIN_TOKEN or, without it, the token that the gateway has made."""
        return self._environment.get("ADMIN_TOKEN") or self._generated_token()

    @property
    def admin_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.admin_token}"}

    def _generated_token(self) -> str:
        file = self.data_dir / "admin-token"
        return file.read_text().strip() if file.is_file() else ""

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.request("POST", path, body if isinstance(body, bytes) else orjson.dumps(body))

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status, and the parsed body (None when it is empty)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            return response.status, orjson.loads(data) if data else None
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        code, status = self.get("/status")
        assert code == 200
        result: dict[str, Any] = status
        return result

    def wait_for_dead_letters(self, count: int) -> int:
        """Send good events until so many others are dead: an event dies only while others succeed.

        Returns the number of good events. Needs an upstream that accepts events named "good".
        """
        deadline = time.monotonic() + 60
        sent = 0
        while self.status()["events"]["dead"] < count:
            assert time.monotonic() < deadline, self.status()["events"]
            assert self.post("/events/t?en=good", {"d": {"visId": "G", "event": {"name": "good"}}})[0] == 200
            sent += 1
            time.sleep(0.1)
        return sent

    def _answers(self, path: str) -> bool:
        try:
            return self.get(path)[0] == 200
        except OSError:
            return False
