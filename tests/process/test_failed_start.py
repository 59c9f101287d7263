"""A start that fails leaves nothing behind and says why: real processes, and a worker that fails at each part."""

import asyncio
import contextlib
import inspect
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from process import COMPILED, PATIENCE_SECONDS, ROOT, SAMPLE_SETTINGS, free_port, is_compiled, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Vendor

from tornado_gateway.config import load
from tornado_gateway.console.admin_pages import AdminApi
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import GatewayError, StoreError
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.server import Server
from tornado_gateway.process.parent.sockets import bind
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.worker import Worker
from tornado_gateway.settings.mirror import SettingsMirror
from tornado_gateway.store.sqlite.events import SqliteEvents
from tornado_gateway.store.sqlite.locks import try_lock
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.scoreboard import Scoreboard
from tornado_gateway.telemetry.waiting import Watch

# --- Real processes ---


def failed_start(data_dir, **options):
    """Run `serve`, which must fail. Return its port and its log."""
    port = options.setdefault("PORT", free_port())
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(COMPILED if is_compiled() else ROOT),
        "HOST": "127.0.0.1",
        "WORKERS": "2",
        "DATA_DIR": str(data_dir),
        "SETTINGS_FILE": str(SAMPLE_SETTINGS),
        "ADMIN_TOKEN": "operators-token-1234",
        **{name: str(value) for name, value in options.items()},
    }
    command = [sys.executable, "-m", "tornado_gateway", "serve"]
    gateway = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    log, _ = gateway.communicate(timeout=PATIENCE_SECONDS)
    assert gateway.returncode in (1, 2), log
    assert "Traceback" not in log
    assert processes_of_session(gateway.pid) == []
    return port, log


def processes_of_session(session):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(path.parent.name)
    return found


def assert_free(port, data_dir):
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert_unlocked(data_dir)


def assert_unlocked(data_dir):
    for path in data_dir.glob("*.lock"):
        lock = try_lock(path)
        assert lock is not None, path
        os.close(lock)


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _, log = failed_start(tmp_path / "data", PORT=port)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in log
    assert log.count("Use another HOST or PORT") == 1
    assert_free(port, tmp_path / "data")


@pytest.mark.parametrize("token", ["operators-token-1234", ""], ids=["with a token", "without a token"])
def test_a_data_directory_that_cannot_be_used(tmp_path, token):
    (tmp_path / "file").write_text("no directory")
    options = {"ADMIN_TOKEN": token} if token else {"ADMIN_TOKEN_FILE": "", "ADMIN_TOKEN": ""}
    port, log = failed_start(tmp_path / "file" / "data", **options)
    assert str(tmp_path / "file" / "data") in log
    assert "Make DATA_DIR a directory that the gateway's user may write to" in log
    assert_free(port, tmp_path)


@pytest.mark.parametrize("option", ["GEO_MAP_FILE", "UA_MAP_FILE"])
def test_a_file_of_names_that_is_not_valid(tmp_path, option):
    (tmp_path / "names.json").write_text("no JSON")
    port, log = failed_start(tmp_path / "data", **{option: tmp_path / "names.json"})
    assert f"{tmp_path / 'names.json'}: expected an object" in log
    assert f"Correct the file, or unset {option}" in log
    assert_free(port, tmp_path / "data")


def test_a_certificate_that_is_not_valid(tmp_path):
    (tmp_path / "pem").write_text("no certificate")
    port, log = failed_start(tmp_path / "data", TLS_CERT_PATH=tmp_path / "pem", TLS_KEY_PATH=tmp_path / "pem")
    assert f"{tmp_path / 'pem'} (TLS_CERT_PATH)" in log
    assert "Correct the files of TLS_CERT_PATH and TLS_KEY_PATH" in log
    assert_free(port, tmp_path / "data")


def test_a_settings_file_that_cannot_be_read(tmp_path):
    port, log = failed_start(tmp_path / "data", SETTINGS_FILE=tmp_path)
    assert f'SETTINGS_FILE (environment): expected a file that can be read, got "{tmp_path}"' in log
    assert_free(port, tmp_path / "data")


# --- In this process ---

PARTS = [
    (SqliteState, "open"),
    (SqliteEvents, "open"),
    (EventQueue, "start"),
    (LocationReader, "open"),
    (LocationReader, "start"),
    (SettingsMirror, "start"),
    (Flusher, "start"),
    (Watch, "start"),
    (Server, "listen"),
    (Observer, "start"),
    (AdminApi, "start"),
]


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


def failing_after(start):
    """Return a start that does its work and then fails, so that there is something to undo."""

    async def fail_later(*args, **options):
        await start(*args, **options)
        raise StoreError("this part is broken")

    def fail(*args, **options):
        start(*args, **options)
        raise StoreError("this part is broken")

    return fail_later if inspect.iscoroutinefunction(start) else fail


def open_sockets_and_locks():
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    return sorted(target for target in targets if target.startswith("socket:") or target.endswith((".lock", ".db")))


def started(vendor, data_dir, occupy=lambda sock: contextlib.nullcontext(), **more):
    """Start a worker and stop it if that succeeds. Return the error of the start, and the tasks that are left then."""
    sample = sample_document()
    options = {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "UPSTREAM_URL": vendor.url, **more}
    config = load({}, {**{name: str(value) for name, value in options.items()}, "DATA_DIR": str(data_dir)})

    async def start():
        error = None
        with bind("127.0.0.1", 0, reuse_port=False) as sock, occupy(sock):
            worker = Worker(config, WorkerSlot(0, 0, 1, Scoreboard(), sock, ready_pipe=-1))
            try:
                await worker.start()
            except GatewayError as raised:
                error = str(raised)
            else:
                await worker.stop()
        await asyncio.sleep(0)
        return error, asyncio.all_tasks() - {asyncio.current_task()}

    return asyncio.run(start())


@pytest.mark.parametrize(("part", "method"), PARTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_start_that_fails_at_a_part_leaves_nothing(monkeypatch, vendor, tmp_path, part, method):
    threads, before = threading.active_count(), open_sockets_and_locks()
    monkeypatch.setattr(part, method, failing_after(getattr(part, method)))
    error, tasks = started(vendor, tmp_path)
    assert error is not None
    assert error.startswith("this part is broken")
    assert tasks == set()
    assert threading.active_count() == threads
    vendor.wait_until(lambda: open_sockets_and_locks() == before)  # the vendor has its side of them in this process
    assert_unlocked(tmp_path)


def test_a_socket_that_another_process_listens_on_leaves_nothing(vendor, tmp_path):
    @contextlib.contextmanager
    def occupy(sock):
        with bind(*sock.getsockname(), reuse_port=False) as other:
            other.listen()
            yield

    threads, before = threading.active_count(), open_sockets_and_locks()
    error, tasks = started(vendor, tmp_path, occupy)
    assert error is not None
    assert "Address already in use" in error
    assert "Use another HOST or PORT" in error
    assert tasks == set()
    assert threading.active_count() == threads
    vendor.wait_until(lambda: open_sockets_and_locks() == before)
    assert_unlocked(tmp_path)


@needs_redis_server
@pytest.mark.parametrize("is_running", [True, False], ids=["Redis", "no Redis"])
@pytest.mark.parametrize("part", [SettingsMirror, Server, None], ids=lambda part: getattr(part, "__name__", "none"))
def test_with_redis_a_failed_start_leaves_nothing(monkeypatch, vendor, tmp_path, part, is_running):
    """A Redis that cannot be reached does not prevent the start, because events go to the embedded log."""
    threads, before = threading.active_count(), open_sockets_and_locks()
    if part is not None:
        method = "listen" if part is Server else "start"
        monkeypatch.setattr(part, method, failing_after(getattr(part, method)))
    with RedisServer(tmp_path / "redis") as redis:
        if not is_running:
            redis.kill()
        error, tasks = started(vendor, tmp_path, REDIS_HOST="127.0.0.1", REDIS_PORT=redis.port)
    assert (error is None) == (part is None)
    assert tasks == set()
    assert threading.active_count() == threads
    vendor.wait_until(lambda: open_sockets_and_locks() == before)
    assert_unlocked(tmp_path)


def test_a_start_and_a_stop_leave_nothing(vendor, tmp_path):
    threads, before = threading.active_count(), open_sockets_and_locks()
    assert started(vendor, tmp_path) == (None, set())
    assert threading.active_count() == threads
    vendor.wait_until(lambda: open_sockets_and_locks() == before)
    assert_unlocked(tmp_path)


def test_a_download_that_cannot_connect_ends_with_the_worker(monkeypatch, vendor, tmp_path):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")  # refuses connections
    threads, before = threading.active_count(), open_sockets_and_locks()
    options = {"MAXMIND_USER_ID": 1, "MAXMIND_LICENSE_KEY": "not-a-real-key"}
    assert started(vendor, tmp_path, **options) == (None, set())
    assert threading.active_count() == threads
    vendor.wait_until(lambda: open_sockets_and_locks() == before)
    assert_unlocked(tmp_path)
