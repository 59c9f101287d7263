"""`settings`: the versions of a store, their differences, and the pin, without a running gateway."""

import asyncio
import copy

import orjson
import pytest
from commands import run
from process import SAMPLE_SETTINGS, sample_document

from tornado_gateway.config import Config
from tornado_gateway.process.environments.stores import settings_name
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.store.versions import digest_of

ACCOUNT, KEY = 123456, sample_document()["sdkKey"]


def version(traffic):
    document = copy.deepcopy(sample_document())
    document["campaigns"][0]["percentTraffic"] = traffic
    return orjson.dumps(document)


UNUSABLE = b'{"features":[{}]}'
BODIES = [UNUSABLE, version(20), version(100)]


async def store(directory, bodies):
    state = SqliteState(directory)
    await state.open()
    name = settings_name(Config(account_id=ACCOUNT, sdk_key=KEY))
    for body in bodies:
        await state.save_document(name, body, "host:1", "poll")
    await state.close()


@pytest.fixture
def options(tmp_path):
    asyncio.run(store(tmp_path / "data", BODIES))
    return {"ACCOUNT_ID": str(ACCOUNT), "SDK_KEY": KEY, "DATA_DIR": str(tmp_path / "data")}


def listing(options):
    return orjson.loads(run("settings", "list", "--json", **options).stdout)


def failed(*arguments, code=1, **options):
    """The only line of an error."""
    result = run("settings", *arguments, **options)
    assert (result.returncode, result.stdout) == (code, "")
    return result.stderr.strip().splitlines()[-1]


def test_versions_are_listed_shown_and_compared(options):
    lines = run("settings", "list", **options).stdout.splitlines()
    assert lines[0].split() == ["VERSION", "DIGEST", "STORED", "SOURCE", "BYTES"]
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert lines[1].endswith("in use, latest from VWO")
    shown = run("settings", "show", "previous", **options).stdout
    assert shown.splitlines()[0] == f"version 2, {digest_of(version(20))}: not in use"
    assert "11 features: new-checkout, " in shown
    assert KEY not in run("settings", "show", "2", "--json", **options).stdout
    document = orjson.loads(run("settings", "show", "2", "--json", "--show-keys", **options).stdout)["document"]
    assert document == orjson.loads(version(20))
    diff = run("settings", "diff", **options).stdout.splitlines()
    assert diff[1:] == ["  new-checkout: rule New checkout for everyone: traffic 20 % -> 100 %"]
    found = orjson.loads(run("settings", "diff", "3", digest_of(version(20))[:6], "--json", **options).stdout)
    assert found["changes"][0]["subject"] == "new-checkout"


def test_a_version_is_pinned_for_a_time_and_unpinned(options):
    printed = run("settings", "pin", "previous", "--for", "2h", "--reason", "bad", "--by", "ops", **options).stdout
    assert printed.startswith(f"Pinned to {digest_of(version(20))} by ops at ")
    pin = listing(options)["pin"]
    assert (pin["by"], pin["reason"], pin["seconds"]) == ("ops", "bad", 7200)
    assert pin["until"] == pytest.approx(pin["at"] + 7200)
    assert 7000 < pin["left_seconds"] <= 7200
    flags = [(one["is_current"], one["is_latest"], one["is_pinned"]) for one in listing(options)["versions"]]
    assert flags == [(False, True, False), (True, False, True), (False, False, False)]
    assert run("settings", "unpin", **options).stdout.startswith(f"Unpinned {digest_of(version(20))}.")
    assert listing(options)["pin"] is None
    assert failed("unpin", **options) == "no version of the settings is pinned"


def test_mistakes_are_named_in_one_line(options, tmp_path):
    assert "cannot be used: " in failed("pin", "1", **options)
    assert failed("pin", "99", **options).startswith("there is no version '99': expected current, latest, previous")
    assert failed("diff", "latest", "abcd", **options).startswith("there is no version 'abcd'")
    assert failed("pin", "2", "--reason", "x" * 201, **options).startswith("reason: expected one line")
    assert failed("pin", "2", "--for", "9999999d", **options).startswith("duration: expected 1 to ")
    assert "such as 30min" in failed("pin", "2", "--for", "2 weeks", code=2, **options)
    assert failed("list", **(options | {"SDK_KEY": "another"})).startswith("no settings are stored yet")
    assert "No gateway has stored settings in" in failed("list", **(options | {"DATA_DIR": str(tmp_path / "no")}))
    offline = {"SETTINGS_FILE": str(SAMPLE_SETTINGS), "DATA_DIR": options["DATA_DIR"]}
    assert failed("list", **offline).startswith("no settings are stored yet")
