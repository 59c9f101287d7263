"""Row F1: without ADMIN_TOKEN the first start creates the secret of operators in DATA_DIR."""

import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from process import ROOT, SAMPLE_SETTINGS, Gateway

from tornado_gateway.console import admin_token
from tornado_gateway.console.admin_token import AdminTokenError, ensure, read

TOKEN = "a-token-of-operators-0123456789"
OTHER_USER = 65534


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def write(directory, content, mode=0o600):
    directory.mkdir(exist_ok=True)
    path = directory / "admin-token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_f1_a_token_is_created_once(tmp_path):
    """Row F1."""
    directory = tmp_path / "new" / "data"
    with pytest.raises(FileNotFoundError):
        read(directory)
    token = ensure(directory)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    assert (ensure(directory), read(directory)) == (token, token)
    assert mode_of(directory / "admin-token") == 0o600
    assert mode_of(directory) == 0o700
    assert [path.name for path in directory.iterdir()] == ["admin-token"]
    assert ensure(tmp_path / "other") != token


def test_f1_those_who_start_together_get_the_same_token(tmp_path):
    """Row F1. No reader finds the file half-written, and no writer replaces it."""
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            tokens = set(pool.map(lambda _, n=number: ensure(tmp_path / str(n)), range(8)))
        assert len(tokens) == 1
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["admin-token"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_f1_the_mode_does_not_depend_on_the_umask(tmp_path, umask):
    """Row F1."""
    script = f"import os; os.umask({umask}); from tornado_gateway.console.admin_token import *; "
    script += f"from pathlib import Path; ensure(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    assert mode_of(tmp_path / "admin-token") == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666, 0o660])
def test_f1_a_file_that_others_can_read_is_tightened(tmp_path, mode, caplog):
    """Row F1."""
    path = write(tmp_path, f"{TOKEN}\n".encode(), mode)
    assert admin_token.is_exposed(path)
    with caplog.at_level(logging.WARNING):
        assert ensure(tmp_path) == TOKEN
    assert mode_of(path) == 0o600
    assert not admin_token.is_exposed(path)
    [line] = caplog.messages
    assert str(path) in line
    assert f"{mode:04o}" in line
    assert TOKEN not in line


UNUSABLE = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "short": (b"secret\n", "at least 16"),
    "two words": (b"correct horse battery staple", "at least 16"),
    "two lines": (b"a-token-of-operators\na-token-of-operators\n", "at least 16"),
    "zeros": (bytes(43), "at least 16"),
    "not a text": (b"\xff\xfe" * 30, "at least 16"),
    "large": (b"a" * 5000, "at least 16"),
}


@pytest.mark.parametrize(("content", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_f1_a_file_without_a_token_is_an_error_with_a_remedy(tmp_path, content, reason):
    """Row F1. It is not replaced: an operator may have put it there."""
    path = write(tmp_path, content)
    for use in (ensure, read):
        with pytest.raises(AdminTokenError) as raised:
            use(tmp_path)
        for part in (str(path), reason, "ADMIN_TOKEN", "Delete the file"):
            assert part in str(raised.value)
    assert path.read_bytes() == content


def test_f1_a_planted_link_is_not_followed(tmp_path):
    """Row F1."""
    target = write(tmp_path / "elsewhere", TOKEN.encode(), 0o644)
    for name, to in (("alive", target), ("dead", tmp_path / "nothing")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "admin-token").symlink_to(to)
        with pytest.raises(AdminTokenError, match="symbolic link"):
            ensure(tmp_path / name)
    assert mode_of(target) == 0o644
    assert not (tmp_path / "nothing").exists()


def test_f1_neither_a_pipe_nor_a_directory_blocks_the_start(tmp_path):
    """Row F1."""
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "admin-token")
    (tmp_path / "directory" / "admin-token").mkdir(parents=True)
    for name in ("pipe", "directory"):
        with pytest.raises(AdminTokenError, match="admin-token"):
            ensure(tmp_path / name)


def test_f1_a_data_dir_that_cannot_be_written_to_is_an_error_with_a_remedy(tmp_path):
    """Row F1."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AdminTokenError, match="ADMIN_TOKEN"):
        ensure(tmp_path / "file")


# --- processes ---------------------------------------------------------------


def test_f1_workers_and_gateways_on_one_data_dir_share_the_token(tmp_path):
    """Row F1: started together, three gateways with two workers each."""
    directory = tmp_path / "shared" / "data"
    directory.mkdir(parents=True)
    with ExitStack() as running, ThreadPoolExecutor(3) as pool:
        gateways = [Gateway(directory, SETTINGS_FILE=SAMPLE_SETTINGS, WORKERS=2) for _ in range(3)]
        for number, gateway in enumerate(gateways):
            gateway.log_path = tmp_path / f"{number}.log"
        list(pool.map(running.enter_context, gateways))
        statuses = {admin_status(gateway) for gateway in gateways for _ in range(8)}
        assert statuses == {200}
    assert mode_of(directory / "admin-token") == 0o600


def admin_status(gateway):
    return gateway.request("GET", "/admin/events", headers=gateway.admin_headers)[0]


def test_f1_the_token_survives_a_restart_and_is_in_no_log(tmp_path):
    """Row F1. `Gateway` checks the log for it at its end."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, LOG_LEVEL="DEBUG") as gateway:
        token = gateway.admin_token
        gateway.get(f"/nothing?{token}")
        assert gateway.terminate() == 0
        gateway.start()
        assert gateway.admin_token == token
        assert admin_status(gateway) == 200
        assert "console-url" in gateway.log()
        assert "#token=" not in gateway.log()


def test_f1_admin_token_is_preferred_and_nothing_is_created(tmp_path):
    """Row F1."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, ADMIN_TOKEN=TOKEN) as gateway:
        assert not (tmp_path / "data" / "admin-token").exists()
        assert admin_status(gateway) == 200


def test_f1_an_empty_file_ends_the_start_with_the_reason(tmp_path):
    """Row F1."""
    path = write(tmp_path / "data", b"")
    gateway = Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS)
    with pytest.raises(AssertionError, match="the gateway ended"), gateway:
        pass
    assert f"{path} is empty" in gateway.log()
    assert "Traceback" not in gateway.log()
    assert gateway.process.returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_f1_commands_of_another_user_say_why_they_cannot_read_the_token():
    """Row F1."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = write(Path(name) / "data", TOKEN.encode())
        for mode, arguments in ((0o755, ["console-url"]), (0o700, ["console-url"]), (0o700, ["events", "status"])):
            path.parent.chmod(mode)
            result = run_as_other_user(path.parent, arguments)
            assert (result.returncode, result.stdout) == (1, "")
            for part in (str(path.parent), "cannot be read", "root"):
                assert part in result.stderr
            assert "Traceback" not in result.stderr


def run_as_other_user(data_dir, arguments):
    """Run a command. All modules are loaded before, because that user may not be able to read this directory."""
    script = f"""
import importlib, os, pkgutil, sys
import tornado_gateway
for module in pkgutil.walk_packages(tornado_gateway.__path__, "tornado_gateway."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from tornado_gateway.cli.main import main
os.setgroups([]); os.setgid({OTHER_USER}); os.setuid({OTHER_USER})
sys.exit(main({arguments!r}))"""
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir), "ACCOUNT_ID": "1", "SDK_KEY": "none"}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )


def test_f1_a_person_at_a_terminal_gets_the_link(tmp_path):
    """Row F1."""
    gateway = Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS)
    master, slave = os.openpty()
    command = [sys.executable, "-m", "tornado_gateway", "serve"]
    with subprocess.Popen(command, env=gateway._environment, stdin=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        with open(master, encoding="utf-8") as terminal:
            line = next(line for line in terminal if "onsole" in line)
            process.kill()
    assert line.split() == ["Console", f"http://127.0.0.1:{gateway.port}/console#token={gateway.admin_token}"]
