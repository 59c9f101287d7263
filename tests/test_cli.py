"""The command line, as a real process."""

import os
import subprocess
import sys

import orjson
import pytest
from process import ROOT, SAMPLE_SETTINGS, sample_document


def run(*arguments, **environment):
    variables = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-m", "tornado_gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, cwd=ROOT)


def evaluate(*arguments):
    return run("evaluate", "--settings", str(SAMPLE_SETTINGS), *arguments)


def test_evaluate_prints_the_answer_of_getflag():
    result = evaluate("--feature", "new-checkout", "--user", "user-1", "--variables", '{"plan": "gold"}')
    assert result.returncode == 0
    assert orjson.loads(result.stdout)["variables"][0]["value"] == "Almost there"


def test_evaluate_explains_the_way_to_the_decision():
    result = evaluate("--feature", "new-checkout", "--user", "user-1", "--variables", '{"plan": "tin"}', "--explain")
    assert orjson.loads(result.stdout.splitlines()[0])["isEnabled"] is True
    explanation = result.stdout.partition("\n")[2]
    for part in ("rollout rule", "not passed", "plan is", "bucket"):
        assert part in explanation.lower(), explanation


def test_evaluate_locates_the_visitor():
    database = str(ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb")
    arguments = ["--feature", "free-shipping", "--user", "user-1", "--ip", "81.2.69.160", "--maxmind-db-path", database]
    assert "United Kingdom" in evaluate(*arguments, "--explain").stdout


def test_check_reports_the_settings_document():
    result = run("check", SETTINGS_FILE=str(SAMPLE_SETTINGS))
    assert result.returncode == 0, result.stderr
    for key in ("new-checkout", "123456", "asks for the location"):
        assert key in result.stdout


def test_check_names_what_is_wrong_in_a_settings_document(tmp_path):
    document = sample_document()
    document["campaigns"][0]["variations"][0].pop("weight")
    path = tmp_path / "bad.json"
    path.write_bytes(orjson.dumps(document))
    result = run("check", SETTINGS_FILE=str(path))
    assert result.returncode == 1
    assert "campaigns[0].variations[0]" in result.stderr
    assert "weight" in result.stderr


@pytest.mark.parametrize("command", ["serve", "check", "config"])
def test_all_configuration_errors_are_listed_at_once_with_exit_code_2(command):
    result = run(command, PORT="none", EVENT_ACK="maybe", SDK_KEY="secret-key-1234567890")
    assert result.returncode == 2
    for name in ("PORT", "EVENT_ACK", "ACCOUNT_ID"):
        assert name in result.stderr
    assert "secret-key" not in result.stderr


def test_config_shows_values_where_they_come_from_and_no_secret():
    result = run("config", "--port", "9000", SDK_KEY="secret-key-1234567890", ACCOUNT_ID="7")
    assert result.returncode == 0, result.stderr
    (port,) = (line for line in result.stdout.splitlines() if line.startswith("PORT "))
    assert "9000" in port
    assert "flag" in port
    (key,) = (line for line in result.stdout.splitlines() if line.startswith("SDK_KEY "))
    assert "7890" in key
    assert "secret-key" not in result.stdout


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
