"""Official SDKs as a test drives them: each in a process of its own, told what to do, asked what came of it."""

import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, Self

HERE = Path(__file__).parent
PACKAGES = HERE / "node_modules"
BUNDLE = Path("dist", "client", "vwo-fme-javascript-sdk.min.js")
ANSWER_SECONDS = 60.0
VENDOR_HOST = "dev.visualwebsiteoptimizer.com"  # some events go there past the gateway (wire contract B.7)

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--ignore-certificate-errors",
)


class Client:
    """One SDK. `call` raises if the SDK did."""

    def call(self, name: str, *args: Any) -> Any:
        result = self.ask({"call": name, "args": args})
        if "error" in result:
            raise AssertionError(f"{name}: {result['error']}")
        return result["answer"]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessClient(Client):
    """An SDK behind a pipe."""

    def __init__(self, command: list[str], log: IO[bytes], environment: dict[str, str] | None = None) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            env={**os.environ, **(environment or {}), "RESULTS_FD": str(writing)},
        )
        os.close(writing)
        self._results = os.fdopen(reading)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        line = self._results.readline()
        assert line, f"the client ended: {self._process.wait(10)}"
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._results.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def python_client(log: IO[bytes]) -> Client:
    return ProcessClient([sys.executable, str(HERE / "python_client.py")], log)


def node_client(package: str, log: IO[bytes], vendor_tls_port: int, certificate: Path) -> Client:
    environment = {"VENDOR_TLS_PORT": str(vendor_tls_port), "NODE_EXTRA_CA_CERTS": str(certificate)}
    command = ["node", "--require", str(HERE / "loopback.cjs"), str(HERE / "node_client.mjs"), package]
    return ProcessClient(command, log, environment)


def openfeature_node_client(log: IO[bytes]) -> Client:
    return ProcessClient(["node", str(HERE / "openfeature_node.mjs")], log)


class PageClient(Client):
    """A page in a headless Chromium. It is of another origin than the gateway.

    `files` are those that it may load, by path. With `console`, the log has the lines of the page's console.
    """

    def __init__(
        self,
        chromium: str,
        files: dict[str, Path],
        log: IO[bytes],
        profile: Path,
        hosts: str = "",
        console: bool = False,
    ) -> None:
        self._commands: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._page_handler(files))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        # Nothing but the machine itself can be reached, apart from `hosts`.
        rules = f"{hosts}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        options = [f"--user-data-dir={profile}", f"--host-resolver-rules={rules}"]
        if console:
            options.append("--enable-logging=stderr")
        self._process = subprocess.Popen(
            [chromium, *CHROMIUM_FLAGS, *options, f"{self.origin}/"], stdout=log, stderr=log, start_new_session=True
        )

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self._commands.put(command)
        return self._results.get(timeout=ANSWER_SECONDS)

    def close(self) -> None:
        self._commands.put(None)
        os.killpg(self._process.pid, signal.SIGKILL)  # with all its helpers; the profile is thrown away anyhow
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()

    def _page_handler(self, files: dict[str, Path]) -> type[http.server.BaseHTTPRequestHandler]:
        commands, results = self._commands, self._results

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/command":
                    self._answer(json.dumps(commands.get()).encode(), "application/json")
                elif self.path in files:
                    content_type = "text/html" if self.path == "/" else "text/javascript"
                    self._answer(files[self.path].read_bytes(), content_type)
                else:
                    self.send_error(404)

            def do_POST(self) -> None:
                results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(b"{}", "application/json")

            def _answer(self, body: bytes, content_type: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Page


def browser_client(chromium: str, package: str, log: IO[bytes], profile: Path, vendor_tls_port: int) -> Client:
    """The SDK's browser bundle. The vendor's host is the stand-in."""
    files = {"/": HERE / "browser.html", "/commands.mjs": HERE / "commands.mjs", "/sdk.js": PACKAGES / package / BUNDLE}
    hosts = f"MAP {VENDOR_HOST}:443 127.0.0.1:{vendor_tls_port}, "
    return PageClient(chromium, files, log, profile, hosts)


def openfeature_browser_client(chromium: str, log: IO[bytes], profile: Path) -> Client:
    """OpenFeature's web provider, from the modules of its packages."""
    packages = PACKAGES / "@openfeature"
    files = {
        "/": HERE / "openfeature.html",
        "/commands.mjs": HERE / "commands.mjs",
        "/openfeature_web.mjs": HERE / "openfeature_web.mjs",
        **{f"/{name}.mjs": packages / name / "dist" / "esm" / "index.js" for name in ("core", "web-sdk")},
        **{f"/{name}.mjs": packages / name / "index.esm.js" for name in ("ofrep-core", "ofrep-web-provider")},
    }
    return PageClient(chromium, files, log, profile, console=True)


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
