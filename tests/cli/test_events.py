"""`events`, with a gateway and without one, and how commands find the gateway's token."""

import orjson
import pytest
from commands import run
from process import SAMPLE_SETTINGS, Gateway, free_port, sample_document
from vendor import Fault, Vendor


def test_events_are_looked_at_while_no_gateway_runs(graveyard):
    status = orjson.loads(run("events", "status", "--json", **graveyard).stdout)
    assert (status["waiting"], status["dead"]) == (1, 3)
    assert "no gateway is running" in status["where"]
    listed = run("events", "list", **graveyard).stdout.splitlines()
    assert listed[0].split() == ["ID", "SINCE", "EVENTS", "REASON"]
    assert [line.split("  ")[-1].strip() for line in listed[1:]] == ["answered 402", "answered 401"]


def test_dead_letters_are_requeued_by_id_and_all_together(graveyard):
    refused = run("events", "requeue", **graveyard)
    assert refused.returncode == 2
    first = orjson.loads(run("events", "list", "--json", **graveyard).stdout)[0]["id"]
    assert orjson.loads(run("events", "requeue", str(first), "--json", **graveyard).stdout) == {"requeued": 2}
    assert run("events", "requeue", "999", **graveyard).returncode == 1
    assert run("events", "requeue", "--all", **graveyard).stdout == "Requeued 1 event.\n"
    status = orjson.loads(run("events", "status", "--json", **graveyard).stdout)
    assert (status["waiting"], status["dead"]) == (4, 0)


def test_dead_letters_are_grouped_and_deleted(graveyard):
    groups = orjson.loads(run("events", "groups", "--json", **graveyard).stdout)
    assert groups["complete"]
    assert [(one["events"], one["reason"]) for one in groups["groups"]] == [(2, "answered 402"), (1, "answered 401")]
    assert run("events", "groups", **graveyard).stdout.splitlines()[0].split() == ["EVENTS", "EVENT", "LAST", "REASON"]
    assert run("events", "delete", **graveyard).returncode == 2
    first = orjson.loads(run("events", "list", "--json", **graveyard).stdout)[0]["id"]
    assert run("events", "delete", str(first), **graveyard).stdout == "Deleted 2 events.\n"
    assert run("events", "delete", str(first), **graveyard).returncode == 1
    assert orjson.loads(run("events", "delete", "--all", "--json", **graveyard).stdout) == {"discarded": 1}
    assert run("events", "groups", **graveyard).stdout == "No dead letters.\n"
    status = orjson.loads(run("events", "status", "--json", **graveyard).stdout)
    assert (status["waiting"], status["dead"]) == (1, 0)


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
            groups = orjson.loads(run("events", "groups", "--json", **known).stdout)["groups"]
            assert [(one["event"], one["events"]) for one in groups] == [("purchase", 1)]
            assert run("events", "delete", "999999", **known).returncode == 1
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
        assert "no response from" in result.stderr
        assert "Traceback" not in result.stderr
