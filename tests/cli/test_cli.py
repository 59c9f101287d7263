"""The command line, as a real process."""

import asyncio
import os
import pty
import shutil
import subprocess
import sys

import orjson
import pytest
from process import ROOT, SAMPLE_SETTINGS, Gateway, free_port, sample_document
from vendor import Fault, Vendor

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.0 Mobile/15E148 Safari/604.1"
)
GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"


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
    for key in ("new-checkout", "123456", "uses location"):
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
        assert "does not answer" in gone.stdout


def test_health_does_not_load_the_server():
    code = "import sys; import tornado_gateway.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tornado_gateway.process.worker", "tornado.web", "pycurl", "redis"} & set(loaded)


# Events


@pytest.fixture
def graveyard(tmp_path):
    """A DATA_DIR that no gateway uses, with two dead letters and an event that waits."""
    directory = tmp_path / "data"
    asyncio.run(bury(directory))
    return {"SETTINGS_FILE": str(SAMPLE_SETTINGS), "DATA_DIR": str(directory), "PORT": str(free_port())}


async def bury(directory):
    events = SqliteEvents(directory)
    await events.open()
    await events.append([NewChunk(2, b'{"n":1}\n{"n":2}'), NewChunk(1, b'{"n":3}')])
    chunks = await events.claim(10)
    dead = [(NewChunk(chunk.count, chunk.body), f"answered 40{chunk.count}") for chunk in chunks]
    await events.settle(chunks, dead)
    await events.append([NewChunk(1, b'{"n":4}')])
    await events.close()


def test_events_are_looked_at_while_no_gateway_runs(graveyard):
    status = orjson.loads(run("events", "status", "--json", **graveyard).stdout)
    assert (status["waiting"], status["dead"]) == (1, 3)
    assert "no gateway runs" in status["where"]
    listed = run("events", "list", **graveyard).stdout.splitlines()
    assert listed[0].split() == ["ID", "SINCE", "EVENTS", "REASON"]
    assert [line.split("  ")[-1].strip() for line in listed[1:]] == ["answered 402", "answered 401"]


def test_dead_letters_are_requeued_by_id_and_all_together(graveyard):
    refused = run("events", "requeue", **graveyard)
    assert refused.returncode == 2
    first = orjson.loads(run("events", "list", "--json", **graveyard).stdout)[0]["id"]
    assert orjson.loads(run("events", "requeue", str(first), "--json", **graveyard).stdout) == {"requeued": 2}
    assert run("events", "requeue", "999", **graveyard).returncode == 1
    assert "1 events wait" in run("events", "requeue", "--all", **graveyard).stdout
    status = orjson.loads(run("events", "status", "--json", **graveyard).stdout)
    assert (status["waiting"], status["dead"]) == (4, 0)


def test_dead_events_are_exported_one_by_one_and_stay(graveyard, tmp_path):
    to_stdout = run("events", "export", **graveyard).stdout
    result = run("events", "export", str(tmp_path / "dead.jsonl"), **graveyard)
    assert "3 events" in result.stderr
    assert (tmp_path / "dead.jsonl").read_text() == to_stdout
    rows = [orjson.loads(line) for line in to_stdout.splitlines()]
    assert [row["event"]["n"] for row in rows] == [1, 2, 3]
    assert rows[0]["reason"] == "answered 402"
    assert orjson.loads(run("events", "status", "--json", **graveyard).stdout)["dead"] == 3


def test_events_of_a_running_gateway_are_asked_for_over_http(tmp_path):
    token = "operators-token-1234"
    with Vendor(sample_document()) as vendor:
        is_purchase = lambda event: event["d"]["event"]["name"] == "purchase"  # noqa: E731
        vendor.event_faults.append(Fault(status=404, times=10_000, refuses=is_purchase))
        options = {"ADMIN_TOKEN": token, "FLUSH_EVENTS_INTERVAL": "0.2"}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "user-1"})
            gateway.wait_for_dead_letters(1)
            vendor.event_faults.clear()
            known = {"DATA_DIR": str(gateway.data_dir), "PORT": str(gateway.port), "HOST": "127.0.0.1"}
            known |= {"SETTINGS_FILE": str(SAMPLE_SETTINGS)}
            refused = run("events", "status", **known)
            assert refused.returncode == 1
            assert "ADMIN_TOKEN" in refused.stderr
            known["ADMIN_TOKEN"] = token
            status = orjson.loads(run("events", "status", "--json", **known).stdout)
            assert status["dead"] == 1
            assert "gateway at http://" in status["where"]
            (letter,) = orjson.loads(run("events", "list", "--json", **known).stdout)
            assert "404" in letter["reason"]
            exported = orjson.loads(run("events", "export", **known).stdout)
            assert exported["event"]["d"]["event"]["name"] == "purchase"
            requeued = run("events", "requeue", str(letter["id"]), "--json", **known)
            assert orjson.loads(requeued.stdout) == {"requeued": 1}
            vendor.wait_until(lambda: any(map(is_purchase, vendor.events)))


def test_f1_commands_read_the_generated_token_from_data_dir(tmp_path):
    """Row F1."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        known = {"DATA_DIR": str(gateway.data_dir), "PORT": str(gateway.port), "HOST": "127.0.0.1"}
        known |= {"SETTINGS_FILE": str(SAMPLE_SETTINGS)}
        status = orjson.loads(run("events", "status", "--json", **known).stdout)
        assert "gateway at http://" in status["where"]
        requeued = run("events", "requeue", "--all", "--json", **known)
        assert orjson.loads(requeued.stdout) == {"requeued": 0}
        report = orjson.loads(run("doctor", "--json", **known).stdout)
        states = {finding["check"]: finding["state"] for finding in report["findings"]}
        assert (states["admin token"], states["events"]) == ("ok", "ok")
        wrong = run("events", "status", **known, ADMIN_TOKEN="another-token-0123456789")
        assert wrong.returncode == 1
        assert "ADMIN_TOKEN is not the one of this gateway" in wrong.stderr
        (gateway.data_dir / "admin-token").unlink()
        missing = run("events", "status", **known)
        assert missing.returncode == 1
        assert str(gateway.data_dir / "admin-token") in missing.stderr
        assert run("health", **known).returncode == 0, "a health check needs no token"


def test_f1_health_checks_need_no_token_that_can_be_read(tmp_path):
    """Row F1."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        (gateway.data_dir / "admin-token").write_text("")
        result = run("health", "--ready", DATA_DIR=str(gateway.data_dir), PORT=str(gateway.port), HOST="127.0.0.1")
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("::", "http://[::1]:8123"),
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("gateway.example", "http://gateway.example:8123"),
    ],
)
def test_f1_the_link_of_the_console_can_be_opened(tmp_path, host, origin):
    """Row F1: no link leads to 0.0.0.0, and a token with any characters stays one."""
    result = run("console-url", HOST=host, PORT="8123", ADMIN_TOKEN="operators+token/#%&=0123")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{origin}/console#token=operators%2Btoken%2F%23%25%26%3D0123\n"
    (tmp_path / "admin-token").write_text("a-generated-token-0123456789\n")
    result = run("console-url", HOST=host, PORT="8123", DATA_DIR=str(tmp_path))
    assert result.stdout == f"{origin}/console#token=a-generated-token-0123456789\n"


def test_f1_there_is_no_link_before_the_first_start(tmp_path):
    """Row F1."""
    result = run("console-url", DATA_DIR=str(tmp_path / "none"))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path / 'none' / 'admin-token'} does not exist" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_gateway_that_holds_the_events_but_does_not_answer_is_told(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        known = {"DATA_DIR": str(gateway.data_dir), "PORT": str(free_port()), "SETTINGS_FILE": str(SAMPLE_SETTINGS)}
        result = run("events", "list", **known)
        assert result.returncode == 1
        assert "does not answer" in result.stderr
        assert "Traceback" not in result.stderr


# Location and device


def test_an_address_is_looked_up_without_an_account():
    result = run("geo", "lookup", "81.2.69.160", "--maxmind-db-path", str(GEOIP))
    assert "United Kingdom" in result.stdout
    as_json = run("geo", "lookup", "81.2.69.160", "--json", MAXMIND_DB_PATH=str(GEOIP))
    assert orjson.loads(as_json.stdout)["city"] == "London"
    unknown = run("geo", "lookup", "127.0.0.1", MAXMIND_DB_PATH=str(GEOIP))
    assert (unknown.returncode, unknown.stdout) == (1, "nothing is known about 127.0.0.1\n")


def test_an_address_cannot_be_looked_up_without_a_database(tmp_path):
    result = run("geo", "lookup", "81.2.69.160", MAXMIND_DB_PATH=str(tmp_path / "none.mmdb"))
    assert result.returncode == 1
    assert "none.mmdb" in result.stderr


def test_a_download_needs_an_account_at_maxmind():
    result = run("geo", "update")
    assert result.returncode == 2
    assert "MAXMIND_LICENSE_KEY" in result.stderr


def test_a_user_agent_is_looked_up():
    assert "iPhone" in run("device", "lookup", IPHONE).stdout
    assert orjson.loads(run("device", "lookup", IPHONE, "--json").stdout)["os"] == "iOS"


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
