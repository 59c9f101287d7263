"""The command `init`: real processes, with a stand-in for VWO."""

import ast
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from commands import run
from process import ROOT, free_port, sample_document
from vendor import Fault, Vendor

from tornado_gateway import __version__
from tornado_gateway.cli.doctor.remedies import REMEDIES

ACCOUNT_ID = str(sample_document()["accountId"])
SDK_KEY = sample_document()["sdkKey"]
GIVEN = ("--account-id", ACCOUNT_ID)


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture
def init(vendor, tmp_path):
    """Run `init` in a directory of the test, with the key in the environment."""

    def init(*arguments, **environment):
        options = {"UPSTREAM_URL": vendor.url, "HOST": "127.0.0.1", "PORT": str(free_port()), "SDK_KEY": SDK_KEY}
        options |= {"DATA_DIR": str(tmp_path / "data"), **environment}
        return run("init", "--output", str(tmp_path / "gateway.env"), *arguments, **options)

    return init


def test_values_that_are_given_are_tested_and_written_with_mode_600(init, tmp_path, vendor):
    result = init(*GIVEN, "--decision-required", "--sdk", "python")
    assert result.returncode == 0, result.stdout + result.stderr
    file = tmp_path / "gateway.env"
    assert file.stat().st_mode & 0o777 == 0o600
    lines = file.read_text().splitlines()
    for line in (
        f"ACCOUNT_ID={ACCOUNT_ID}",
        f"SDK_KEY={SDK_KEY}",
        "DECISION_REQUIRED=true",
        f"UPSTREAM_URL={vendor.url}",
    ):
        assert line in lines
    assert "key accepted" in result.stdout
    assert "0 failed" in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if "client = init(" in line)
    assert f'"account_id": "{ACCOUNT_ID}"' in line
    ast.parse(line.strip())
    assert SDK_KEY not in result.stdout + result.stderr
    assert run("check", "--env-file", str(file)).returncode == 0


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(init, tmp_path):
    result = init(*GIVEN, "--output", str(tmp_path / "absent" / "gateway.env"))
    assert result.returncode == 1
    assert f"{tmp_path}/absent/gateway.env: no such file or directory." in result.stderr


def test_a_file_is_replaced_only_with_force(init, tmp_path):
    file = tmp_path / "gateway.env"
    file.write_text("PORT=1\n")
    result = init(*GIVEN)
    assert result.returncode == 1
    assert f"{file} exists. Use --force to replace it. Nothing was written." in result.stderr
    assert file.read_text() == "PORT=1\n"
    assert init(*GIVEN, "--force").returncode == 0
    assert f"ACCOUNT_ID={ACCOUNT_ID}" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_terminal_nothing_is_written_if_a_value_is_missing_or_fails(init, tmp_path):
    missing = init("--account-id", "", SDK_KEY="")
    assert (missing.returncode, "No account configured." in missing.stderr) == (2, True)
    failing = init(*GIVEN, "--redis-host", "127.0.0.1", "--redis-port", str(free_port()))
    assert failing.returncode == 1
    assert "fail  redis" in failing.stdout
    assert "Nothing was written." in failing.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_key_is_not_written(tmp_path):
    with Vendor() as vendor:
        vendor.settings_faults.append(Fault(status=401, times=100))
        options = {"UPSTREAM_URL": vendor.url, "SDK_KEY": SDK_KEY, "DATA_DIR": str(tmp_path / "data")}
        result = run("init", "--output", str(tmp_path / "gateway.env"), *GIVEN, **options)
    assert result.returncode == 1
    assert "fail  upstream        VWO rejected the SDK key (401)" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_a_line_cannot_hold_has_its_own_file(init, tmp_path):
    secret = "quo'ted$and\\-0123456789"
    assert init(*GIVEN, ADMIN_TOKEN=secret).returncode == 0
    text = (tmp_path / "gateway.env").read_text()
    file = tmp_path / "admin_token"
    assert f"ADMIN_TOKEN_FILE={file}\n" in text
    assert secret not in text
    assert (file.read_text(), file.stat().st_mode & 0o777) == (f"{secret}\n", 0o600)


def test_a_compose_file_and_the_lines_of_all_sdks(init, tmp_path):
    path = tmp_path / "compose.yaml"
    key = tmp_path / "key"
    key.write_text(SDK_KEY)
    result = init(*GIVEN, "--sdk-key-file", str(key), "--compose", str(path), "--port", "8123", SDK_KEY="")
    commands = [line.split("   #")[0].strip() for line in result.stdout.splitlines() if line.startswith("  docker ")]
    assert commands == [f"docker build -t tornado-gateway:{__version__} .", f"docker compose -f {path} up -d"]
    service = yaml.safe_load(path.read_text())["services"]["gateway"]
    assert (service["env_file"], service["ports"]) == (str(tmp_path / "gateway.env"), ["8123:8123"])
    assert service["environment"]["DATA_DIR"] == "/data"
    assert service["volumes"] == ["gateway-data:/data", f"{key}:{key}:ro"]
    assert f"user 10001 must be able to read {key}" in result.stdout
    repository = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]["gateway"]
    own = {"build", "env_file", "ports", "volumes", "environment"}  # different for each installation
    assert {name: value for name, value in service.items() if name not in own} == {
        name: value for name, value in repository.items() if name not in own
    }
    assert service["environment"] == repository["environment"] | {"PORT": "8123"}
    sdks = [
        line.split()[0] for line in result.stdout.splitlines() if "http://127.0.0.1:8123" in line and "SDK_KEY" in line
    ]
    assert sdks == ["node", "python", "go", "java", "php", "ruby", "dotnet"]


def test_on_a_terminal_it_asks_and_writes_a_unit(tmp_path, vendor):
    options = {"UPSTREAM_URL": vendor.url, "HOST": "127.0.0.1", "PORT": str(free_port()), "NO_COLOR": "1"}
    answers = ("your_account_id", ACCOUNT_ID, SDK_KEY, "", "unit", "go")
    code, shown = typed(("init",), answers, tmp_path, options)
    assert code == 0, shown
    assert "expected your own value, not a placeholder" in shown
    assert SDK_KEY not in shown
    assert 'vwo.Init(map[string]interface{}{"accountId": 123456' in shown
    assert f"SDK_KEY={SDK_KEY}" in (tmp_path / "gateway.env").read_text()
    unit = (tmp_path / "tornado-gateway.service").read_text()
    assert f"serve --env-file {tmp_path}/gateway.env\n" in unit
    own = {"ExecStart", "User", "WorkingDirectory", "ProtectSystem"}  # of the user who runs init, in a home directory
    expected = settings_of((ROOT / "conf" / "tornado-gateway.service").read_text())
    assert {line for line in settings_of(unit) if line.partition("=")[0] not in own} <= expected
    if shutil.which("systemd-analyze"):
        verify = ["systemd-analyze", "verify", str(tmp_path / "tornado-gateway.service")]
        found = subprocess.run(verify, capture_output=True, text=True, timeout=60)
        assert "tornado-gateway.service" not in found.stderr, found.stderr


def settings_of(unit):
    return {line for line in unit.splitlines() if line and line[0] not in "#["}


@pytest.mark.parametrize("command", [["--workers", "4"], []], ids=["workers", "default"])
def test_a_compose_file_has_memory_for_its_workers(init, tmp_path, command):
    path = tmp_path / "compose.yaml"
    assert init(*GIVEN, *command, "--compose", str(path)).returncode == 0
    service = yaml.safe_load(path.read_text())["services"]["gateway"]
    workers = int(command[1]) if command else 2
    assert service["environment"]["WORKERS"] == f"${{WORKERS:-{workers}}}"
    assert service["mem_limit"] == f"${{MEMORY_LIMIT:-{64 + 256 * (workers + 1)}m}}"


def test_no_remedy_of_a_failed_test_assumes_that_a_gateway_runs():
    for code, remedy in REMEDIES.items():
        if code.startswith(("key-", "upstream-", "redis-", "collector-", "settings-unusable")):
            for sentence in remedy.split(". "):
                is_meanwhile = re.search(r"meanwhile|continues|keeps|wait\b|stay", sentence, re.IGNORECASE)
                assert not is_meanwhile or "running gateway" in sentence or sentence.startswith("Wait,"), code


def typed(arguments, answers, directory, options):
    """Return the exit code and the screen of a command on a terminal, with an answer to each prompt."""
    master, slave = pty.openpty()
    variables = {"PATH": os.environ["PATH"], "TERM": "xterm", "PYTHONPATH": str(ROOT), "DATA_DIR": "data", **options}
    command = [sys.executable, "-m", "tornado_gateway", *arguments]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=variables, cwd=directory, start_new_session=True
    )
    os.close(slave)
    shown = b""
    waiting = list(answers)
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the process has ended
            break
        shown += data
        if shown.endswith(b": ") and waiting:
            os.write(master, f"{waiting.pop(0)}\n".encode())
    os.close(master)
    return process.wait(60), shown.decode()
