"""The command line, as a real process."""

import os
import pty
import shutil
import subprocess
import sys

import orjson
import pytest
from commands import evaluate, run
from process import ROOT, SAMPLE_SETTINGS, Gateway, free_port, sample_document
from vendor import Fault, Vendor


def test_check_reports_the_settings_document():
    result = run("check", SETTINGS_FILE=str(SAMPLE_SETTINGS))
    assert result.returncode == 0, result.stderr
    for key in ("new-checkout", "123456", "uses location"):
        assert key in result.stdout


def test_check_names_what_is_wrong_in_a_settings_document(tmp_path):
    document = sample_document()
    document["campaigns"][0]["variations"][0].pop("weight")
    path = tmp_path / "bad.json"
    path.write_bytes(orjson.dumps(document))
    result = run("check", SETTINGS_FILE=str(path))
    assert result.returncode == 1
    assert f"{path}: campaigns[0].variations[0]" in result.stderr
    assert "weight" in result.stderr
    assert f"{path}: campaigns[0]" in run("evaluate", "--settings", str(path), "--feature", "f", "--user", "u").stderr


def test_check_rejects_settings_of_another_account():
    result = run("check", SETTINGS_FILE=str(SAMPLE_SETTINGS), ACCOUNT_ID="7", SDK_KEY="0123456789abcdef")
    assert result.returncode == 1
    assert "they are of account 123456, not of ACCOUNT_ID 7" in result.stderr


GEOIP = ROOT / "tests" / "data" / "geoip"
NAMED_FILES = {  # that check reads: the option, and the beginning of the problem with a file that has other content
    "MAXMIND_DB_PATH": "expected a GeoIP2 or GeoLite2 database, got {path}: ",
    "GEO_MAP_FILE": "{path}: expected an object with some of the keys country",
    "UA_MAP_FILE": "{path}: expected an object with some of the keys os",
    "UPSTREAM_CA_PATH": "{path}: expected certificates (PEM)",
    "REDIS_TLS_CA_PATH": "{path}: expected certificates (PEM)",
    "TLS_CERT_PATH": "{path} (TLS_CERT_PATH) with {path} (TLS_KEY_PATH): ",
}


def test_check_reads_the_files_that_options_name(tmp_path):
    path = tmp_path / "broken"
    path.write_text("{broken")
    files = dict.fromkeys((*NAMED_FILES, "TLS_KEY_PATH"), str(path))
    result = run("check", SETTINGS_FILE=str(SAMPLE_SETTINGS), **files)
    assert result.returncode == 1
    for (name, problem), line in zip(NAMED_FILES.items(), result.stderr.splitlines()[1:], strict=True):
        assert line.startswith(f"  - {name} (environment): {problem.format(path=path)}"), line


@pytest.mark.parametrize(
    ("file", "code"), [(GEOIP / "GeoIP2-City-Test.mmdb", 0), (GEOIP / "broken" / "none.mmdb", 1)], ids=["valid", "none"]
)
def test_check_opens_the_location_database(file, code):
    assert run("check", SETTINGS_FILE=str(SAMPLE_SETTINGS), MAXMIND_DB_PATH=str(file)).returncode == code


@pytest.mark.parametrize("command", ["serve", "check", "config"])
def test_a_settings_file_that_cannot_be_read_has_the_same_exit_code_in_all_commands(command, tmp_path):
    result = run(command, SETTINGS_FILE=str(tmp_path / "none.json"), DATA_DIR=str(tmp_path))
    assert result.returncode == 1
    assert "SETTINGS_FILE (environment): expected a file that can be read" in result.stderr + result.stdout


@pytest.mark.parametrize("command", ["serve", "check"])
def test_all_configuration_errors_are_listed_at_once_with_exit_code_2(command):
    result = run(command, PORT="none", EVENT_ACK="maybe", SDK_KEY="secret-key-1234567890")
    assert result.returncode == 2
    for name in ("PORT", "EVENT_ACK", "ACCOUNT_ID"):
        assert name in result.stderr
    assert "secret-key" not in result.stderr


def test_config_shows_values_where_they_come_from_and_no_secret():
    result = run("config", "--port", "9000", SDK_KEY="secret-key-1234567890", ACCOUNT_ID="7")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    (port,) = (line for line in lines if line.startswith("* PORT "))
    assert port.split()[2:] == ["9000", "(flag)"]
    (key,) = (line for line in lines if line.startswith("* SDK_KEY "))
    assert key.split()[2:] == ["****7890", "(environment)"]
    assert [line.split() for line in lines if line.startswith("  POLLING_TIME ")] == [["POLLING_TIME", "60000", "ms"]]
    assert "secret-key" not in result.stdout


def test_config_shows_invalid_values_within_80_columns(tmp_path):
    file = tmp_path / "gateway.env"
    file.write_text("SDK_KEY='secret-key-1234567890'\nMAXMIND_DB_PATH=/" + "directory/" * 20 + "db.mmdb\n")
    result = run("config", "--env-file", str(file), "--port", "none", LOG_LEVEL="INFO")
    assert result.returncode == 2
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (port,) = (line for line in lines if line.startswith("! PORT "))
    assert port.split()[2:] == ['"none"', "(flag)"]
    assert len([line for line in lines if line.startswith("! ")]) == 2
    assert len([line for line in lines if line.startswith("* ")]) == 3, "with the line that explains the marks"
    assert f"{file} line 1: expected SDK_KEY=VALUE without quotes" in result.stderr
    assert "secret-key" not in result.stdout + result.stderr
    rows = {row["name"]: row for row in orjson.loads(run("config", "--json", PORT="none").stdout)}
    assert rows["PORT"]["problem"] == 'PORT (environment): expected a whole number from 0 to 65535, got "none"'
    assert (rows["PORT"]["is_changed"], rows["HOST"]["is_changed"], rows["HOST"]["problem"]) == (True, False, None)


def test_an_unknown_flag_is_an_error_with_a_suggestion():
    result = run("serve", "--prot", "9000", SETTINGS_FILE=str(SAMPLE_SETTINGS))
    assert result.returncode == 2
    assert "--port" in result.stderr


def test_a_port_in_use_is_told_in_one_line(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        options = {"HOST": "127.0.0.1", "PORT": port, "WORKERS": "1", "DATA_DIR": str(tmp_path)}
        result = run("serve", SETTINGS_FILE=str(SAMPLE_SETTINGS), **options)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert port in result.stderr


def test_arguments_that_nobody_knows_are_an_error():
    result = evaluate("--feature", "new-checkout", "--user", "user-1", "--explian")
    assert result.returncode == 2
    assert "--explian" in result.stderr


def test_every_answer_can_be_json(tmp_path):
    offline = {"SETTINGS_FILE": str(SAMPLE_SETTINGS), "DATA_DIR": str(tmp_path), "PORT": str(free_port())}
    evaluated = evaluate("--feature", "new-checkout", "--user", "user-1", "--explain", "--json").stdout
    assert orjson.loads(evaluated)["explanation"]
    checked = orjson.loads(run("check", "--json", **offline).stdout)
    assert checked["settings"]["account"] == "123456"
    options = {row["name"]: row for row in orjson.loads(run("config", "--json", **offline).stdout)}
    assert options["DATA_DIR"] == options["DATA_DIR"] | {"value": str(tmp_path), "source": "environment"}
    assert orjson.loads(run("health", "--json", **offline).stdout)["status"].endswith("Connection refused")
    assert orjson.loads(run("events", "status", "--json", **offline).stdout)["waiting"] == 0


# Health


def test_health_and_readiness_are_exit_codes(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(status=500, times=1000))
        with Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
            options = {"PORT": str(gateway.port)}  # the account is not needed
            alive = run("health", **options)
            assert (alive.returncode, alive.stdout.strip()) == (0, "ok")
            ready = run("health", "--ready", **options)
            assert ready.returncode == 1
            assert ready.stdout.startswith("not ready: no settings yet")
        gone = run("health", **options)
        assert gone.returncode == 1
        assert "no response from" in gone.stdout


def test_health_does_not_load_the_server():
    code = "import sys; import tornado_gateway.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tornado_gateway.process.worker", "tornado.web", "pycurl", "redis"} & set(loaded)


# For people at a terminal


def on_a_terminal(*arguments, **environment):
    """What a person would see, stderr included."""
    master, slave = pty.openpty()
    variables = {"PATH": os.environ["PATH"], "TERM": "xterm", **environment}
    command = [sys.executable, "-m", "tornado_gateway", *arguments]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables, cwd=ROOT):
        os.close(slave)
        shown = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # the other end has been closed
                break
            if not data:
                break
            shown += data
    os.close(master)
    return shown.decode()


def test_a_terminal_gets_colours_and_a_bar_unless_it_wants_none(graveyard, tmp_path):
    doctor = on_a_terminal("doctor", **graveyard)
    assert "\x1b[32mok  \x1b[0m" in doctor
    assert "\x1b[" not in on_a_terminal("doctor", NO_COLOR="1", **graveyard)
    export = on_a_terminal("events", "export", str(tmp_path / "dead.jsonl"), **graveyard)
    assert "exporting [##" in export
    assert "100%" in export


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_understood_by_their_shell(shell, tmp_path):
    script = tmp_path / "completion"
    script.write_text(run("completion", shell).stdout)
    assert "requeue" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ev"], {"events", "evaluate"}),
        (["events", "re"], {"requeue"}),
        (["serve", "--redis-sent"], {"--redis-sentinels", "--redis-sentinel-master"}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_bash_offers_what_can_be_typed(typed, offered, tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash").stdout)
    words = " ".join(f"'{word}'" for word in ["tornado-gateway", *typed])
    code = f"""
        source {script}
        function=$(complete -p tornado-gateway | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=({words}) COMP_CWORD={len(typed)} COMP_LINE="tornado-gateway {" ".join(typed)}"
        $function tornado-gateway {typed[-1]!r}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    answer = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert set(answer.stdout.split()) == offered, answer.stderr


def test_a_reader_that_stops_reading_is_no_error():
    code = f"{sys.executable} -m tornado_gateway config | head -1"
    environment = {"PATH": os.environ["PATH"], "SETTINGS_FILE": str(SAMPLE_SETTINGS)}
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.stderr == ""


@pytest.mark.parametrize("command", [["doctor"], ["health"], ["events", "status"], ["geo", "update"]])
def test_commands_know_the_options_of_serve(command):
    """So that they look at the same gateway."""
    text = run(*command, "--help").stdout
    assert "--redis-sentinel-master" in text
    assert "--json" in text
