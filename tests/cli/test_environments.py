"""The commands for ENVIRONMENTS_FILE: list, check, config, doctor. Keys never appear."""

import json

import orjson
import pytest
from commands import run, run_doctor
from process import sample_document
from vendor import Vendor

ACCOUNT = sample_document()["accountId"]
KEYS = {name: name[:1] * 32 for name in ("production", "staging", "brand")}
FORMER = "f" * 32


def block(name, account=ACCOUNT, key=None, **more):
    values = {"name": name, "account_id": account, "sdk_key": key or KEYS[name]} | more
    return "[[environment]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "environments.toml"
    more = {"hosts": ["s.example"], "previous_sdk_keys": [FORMER], "event_queue_limit": 5000}
    path.write_text(block("production", default=True) + block("staging", **more))
    return path


def shown(command, *arguments, **options):
    done = run(*command.split(), *arguments, **options)
    for key in (*KEYS.values(), FORMER):
        assert key not in done.stdout + done.stderr
    return done


def test_list(file):
    done = shown("environments list", ENVIRONMENTS_FILE=str(file))
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "ACCOUNT", "KEY", "DEFAULT", "HOSTS"],
        ["production", str(ACCOUNT), "****pppp", "yes"],
        ["staging", str(ACCOUNT), "****ssss", "s.example"],
    ]
    rows = json.loads(shown("environments list", "--json", "--environments-file", str(file)).stdout)
    assert [row["name"] for row in rows] == ["production", "staging"]
    assert rows[1]["previous_sdk_keys"] == ["****ffff"]


@pytest.mark.parametrize("command", ["check", "environments check"])
def test_check(file, tmp_path, command):
    (tmp_path / "staging.json").write_bytes(orjson.dumps(sample_document()))
    file.write_text(file.read_text() + 'settings_file = "staging.json"\n')
    done = shown(command, "--environments-file", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  production: account {ACCOUNT}, key ****pppp, default\n" in done.stdout
    assert f"  staging: account {ACCOUNT}, key ****ssss, 1 previous key, hosts s.example. " in done.stdout
    assert f"staging.json is valid (account {ACCOUNT}" in done.stdout
    row = json.loads(shown(command, "--json", "--environments-file", str(file)).stdout)["environments"][1]
    assert "new-checkout" in row["settings"]["features"]


@pytest.mark.parametrize("command", ["check", "environments check"])
def test_check_of_mistakes(file, tmp_path, command):
    file.write_text(file.read_text() + "defualt = true\n" + block("brand", key=KEYS["staging"]))
    done = shown(command, "--environments-file", str(file))
    assert done.returncode == 2
    assert "environment staging: unknown key defualt. Did you mean default?" in done.stderr
    file.write_text(block("brand", account=7, settings_file="settings.json"))
    (tmp_path / "settings.json").write_bytes(orjson.dumps(sample_document()))
    done = shown(command, "--environments-file", str(file))
    assert done.returncode == 1
    assert f"settings.json: they are of account {ACCOUNT}, not of ACCOUNT_ID 7" in done.stderr


def test_config_has_a_row_for_each_environment(file):
    done = shown("config", "--json", "--environments-file", str(file))
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["environment production"]["value"] == f"account_id={ACCOUNT} sdk_key=****pppp default=true"
    assert rows["environment staging"]["value"] == (
        f"account_id={ACCOUNT} sdk_key=****ssss event_queue_limit=5000 previous_sdk_keys=****ffff hosts=s.example"
    )
    assert rows["environment staging"]["source"] == str(file)
    assert "environment staging" in shown("config", "--environments-file", str(file)).stdout


def test_a_broken_file_does_not_break_a_health_check(file):
    file.write_text("[[environment]]")
    done = shown("health", ENVIRONMENTS_FILE=str(file), PORT="1")
    assert done.returncode == 1
    assert "no response from" in done.stdout


def test_doctor_examines_each_environment(file, tmp_path):
    document = sample_document()
    with Vendor(document) as vendor:
        vendor.environments = {
            KEYS["production"]: orjson.dumps(document | {"sdkKey": KEYS["production"]}),
            FORMER: orjson.dumps(document | {"sdkKey": FORMER}),
        }
        vendor.troubles = {KEYS["staging"]: {"status": 403}, KEYS["brand"]: {"status": 403}}
        file.write_text(file.read_text() + block("brand"))
        options = {"ENVIRONMENTS_FILE": file, "UPSTREAM_URL": vendor.url, "DATA_DIR": tmp_path / "data"}
        done = run_doctor("--json", **options)
    findings = json.loads(done.stdout)["findings"]
    assert [
        (finding["state"], finding["code"], finding["message"].partition(":")[0])
        for finding in findings
        if finding["check"] == "upstream"
    ] == [("ok", "ok", "production"), ("warn", "key-previous", "staging"), ("fail", "key-refused", "brand")]
    (memory,) = [finding for finding in findings if finding["check"] == "memory"]
    assert memory["message"].startswith("2 environments with ")
    assert [f["message"].partition(":")[0] for f in findings if f["check"] == "events"] == list(KEYS)
    assert not any(key in done.stdout for key in (*KEYS.values(), FORMER))
