"""The commands for ENVIRONMENTS_FILE: list, check, config, doctor. Keys never appear."""

import json

import orjson
import pytest
from commands import run, run_doctor
from process import sample_document
from redis_servers import RedisServer, needs_redis_server
from several import ACCOUNTS, KeyedVendor, gateway_of, track, write
from several import KEYS as SEVERAL
from several import block as several_block
from vendor import Vendor

from tornado_gateway.cli.doctor.machine import check_decisions
from tornado_gateway.config import environments_of, load

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
    upstream = [finding for finding in findings if finding["check"] == "upstream"]
    assert [(finding["state"], finding["code"], finding["message"].partition(":")[0]) for finding in upstream] == [
        ("ok", "ok", "production"),
        ("warn", "key-previous", "staging"),
        ("fail", "key-refused", "brand"),
    ]
    assert upstream[2]["remedy"].startswith(f"Compare account_id and sdk_key of environment brand in {file} with the ")
    (memory,) = [finding for finding in findings if finding["check"] == "memory"]
    assert memory["message"].startswith("2 environments with ")
    assert [f["message"].partition(":")[0] for f in findings if f["check"] == "events"] == list(KEYS)
    assert not any(key in done.stdout for key in (*KEYS.values(), FORMER))


@pytest.mark.parametrize(
    ("decides", "message"),
    [
        ([True, True], "getFlag, trackEvent and setAttribute are served"),
        ([True, False], "decision_required = false for staging: getFlag, trackEvent and setAttribute get a 403."),
        ([False, None], "decision_required = false for production, staging: getFlag, "),
    ],
)
def test_doctor_reports_decisions_of_each_environment(tmp_path, decides, message):
    file = tmp_path / "environments.toml"
    blocks = [
        block(name, **({} if one is None else {"decision_required": one}))
        for name, one in zip(KEYS, decides, strict=False)
    ]
    file.write_text("".join(blocks))
    config = load({}, {"ENVIRONMENTS_FILE": str(file), "DATA_DIR": str(tmp_path)})
    assert check_decisions(environments_of(config)).message.startswith(message)


# --- Stored data ---


@pytest.fixture(params=["embedded", pytest.param("redis", marks=needs_redis_server)])
def store(request, tmp_path):
    """The options of the store."""
    if request.param == "embedded":
        yield {}
        return
    with RedisServer(tmp_path / "redis") as redis:
        yield {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis.port)}


def with_events(tmp_path, store):
    """The options of a gateway, which has ended, with an event of staging that VWO did not accept."""
    with KeyedVendor() as vendor:
        options = {"FLUSH_EVENTS_INTERVAL": 1, "SHUTDOWN_SECONDS": 1, "ADMIN_TOKEN": "operators-token-1234"}
        with gateway_of(tmp_path, vendor, **store, **options) as gateway:
            vendor.wait_until(lambda: gateway.get("/ready?environment=staging")[0] == 200, 60, gateway.log)
            vendor.troubles[SEVERAL["staging"]] = {"status": 503}
            known = {"DATA_DIR": str(gateway.data_dir), "PORT": str(gateway.port), "HOST": "127.0.0.1", **store}
            known |= {"ENVIRONMENTS_FILE": str(tmp_path / "data.toml"), "ADMIN_TOKEN": options["ADMIN_TOKEN"]}
            track(gateway, SEVERAL["staging"], "user", 1)
            # Not at once on a busy machine, where it goes to DATA_DIR first and moves to Redis later.
            vendor.wait_until(lambda: waiting(known, "--environment", "staging") == 1, 60, gateway.log)
            assert waiting(known, "--environment", "production") == 0
            assert waiting(known) == 0  # the default one
            assert run("events", "status", "--environment", "nothing", **known).returncode == 2
            gateway.terminate()
    return known


def waiting(known, *arguments):
    done = run("events", "status", "--json", *arguments, **known)
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout)["waiting"]


def test_the_events_of_an_environment_are_counted_and_deleted_with_its_data(tmp_path, store):
    known = with_events(tmp_path, store)
    assert waiting(known, "--environment", "staging") == 1
    directory = tmp_path / "data" / "environments" / f"{ACCOUNTS['staging']}-staging"
    account = ["--account", str(ACCOUNTS["staging"])]
    used = run("environments", "forget", "staging", **known)
    assert used.returncode == 1
    assert "Remove it there first" in used.stderr
    write(tmp_path / "data.toml", several_block("production", default=True), several_block("other"))
    kept = run("environments", "forget", "staging", *account, **known)
    assert kept.returncode == 1
    assert kept.stderr.endswith("Not deleted: 1 event waiting, 0 dead events. --with-events deletes them too.\n")
    deleted = run("environments", "forget", "staging", "--with-events", *account, **known)
    assert deleted.returncode == 0, deleted.stderr
    assert not directory.exists()
    write(tmp_path / "data.toml", several_block("staging"))
    assert waiting(known) == 0


def test_an_environment_without_data_and_one_of_two_accounts_are_not_deleted(file, tmp_path):
    known = {"ENVIRONMENTS_FILE": str(file), "DATA_DIR": str(tmp_path / "data")}
    unknown = run("environments", "forget", "nothing", **known)
    assert unknown.returncode == 1
    assert "DATA_DIR has no data of it. Set --account." in unknown.stderr
    for account in (1, 2):
        (tmp_path / "data" / "environments" / f"{account}-gone").mkdir(parents=True)
    assert "is of 2 accounts" in run("environments", "forget", "gone", **known).stderr
    assert run("environments", "forget", "gone", "--account", "2", **known).returncode == 0
    assert [path.name for path in (tmp_path / "data" / "environments").iterdir()] == ["1-gone"]


def test_an_environment_of_a_running_gateway_is_not_deleted(tmp_path, store):
    with KeyedVendor() as vendor, gateway_of(tmp_path, vendor, **store) as gateway:
        vendor.wait_until(lambda: gateway.get("/ready?environment=other")[0] == 200, 60, gateway.log)
        write(tmp_path / "other.toml", several_block("production"))
        known = {"ENVIRONMENTS_FILE": str(tmp_path / "other.toml"), "DATA_DIR": str(gateway.data_dir), **store}
        account = ["--account", str(ACCOUNTS["staging"])]
        done = run("environments", "forget", "staging", *account, **known)
        assert done.returncode == 1
        assert " use" in done.stderr
