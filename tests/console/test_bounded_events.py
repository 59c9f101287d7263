"""Rows F4, F7 and H2: the Events tab is bounded, hides keys, and shows the events of all workers."""

import asyncio
import time

import orjson
import pytest
from commands import run
from exchanges import exchange
from process import SAMPLE_SETTINGS, Gateway, sample_document
from vendor import Vendor

from tornado_gateway.store.interfaces import Identity, NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

KEY = "0123456789abcdef0123456789abcdef"
LETTERS = 60
BODY_BYTES = 100_000


def document(number, size):
    props = {"n": number, "vwo_envKey": KEY, "text": '"' * (size // 2)}
    return orjson.dumps({"d": {"visId": f"u{number}", "event": {"name": "purchase", "props": props}}})


async def bury(directory):
    events = SqliteEvents(directory)
    await events.open()
    await events.append([NewChunk(1, document(n, BODY_BYTES), "", Identity("1", KEY)) for n in range(LETTERS)])
    while chunks := await events.claim(LETTERS):  # a claim is limited in bytes
        await events.settle(chunks, [(NewChunk(c.count, c.body, "", c.identity), "answered 400") for c in chunks])
    await events.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("graveyard") / "data"
    asyncio.run(bury(directory))
    return directory


@pytest.fixture(scope="module")
def gateway(directory):
    with Gateway(directory, SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        yield gateway


def listed(gateway, query=""):
    status, headers, body = exchange(gateway, "GET", f"/admin/events{query}", **gateway.admin_headers)
    assert status == 200
    assert int(headers["content-length"]) <= 1 << 20
    return body


def test_f4_the_list_has_the_beginning_of_each_letter(gateway):
    letters = listed(gateway)["dead"]
    assert len(letters) == LETTERS
    assert {len(letter["body"].encode()) for letter in letters} == {4096}
    assert all(letter["bytes"] > BODY_BYTES for letter in letters)


def test_f4_a_complete_letter_is_there_on_demand(gateway):
    letter = listed(gateway)["dead"][7]
    [complete] = listed(gateway, f"?first={letter['id']}&limit=1&complete=true")["dead"]
    assert complete["id"] == letter["id"]
    assert orjson.loads(complete["body"])["d"]["event"]["props"]["n"] == 7


def test_f4_all_complete_letters_come_in_portions_of_a_megabyte(gateway):
    numbers, first = [], ""
    while first is not None:
        page = listed(gateway, f"?complete=true&limit=1000{first}")
        numbers += [orjson.loads(letter["body"])["d"]["event"]["props"]["n"] for letter in page["dead"]]
        first = None if page["next"] is None else f"&first={page['next']}"
    assert numbers == list(range(LETTERS))


@pytest.mark.parametrize(
    "query", ["first=x", "first=-1", "first=99999999999999999999", "complete=1", "keys=all", "first=1-2-3"]
)
def test_f4_the_parameters_are_checked(gateway, query):
    assert exchange(gateway, "GET", f"/admin/events?{query}", **gateway.admin_headers)[0] == 400


def test_f7_keys_are_hidden_in_the_list_unless_requested(gateway):
    assert KEY not in str(listed(gateway)["dead"])
    assert "****cdef" in listed(gateway)["dead"][0]["body"]
    assert KEY in listed(gateway, "?keys=shown")["dead"][0]["body"]


@pytest.mark.parametrize("is_running", [True, False])
def test_f7_commands_hide_keys_unless_requested(gateway, directory, is_running):
    if not is_running:
        gateway.terminate()
    known = {"SETTINGS_FILE": str(SAMPLE_SETTINGS), "DATA_DIR": str(directory), "PORT": str(gateway.port)}
    known["HOST"] = "127.0.0.1"
    for command in (["list", "--json"], ["export"]):
        hidden = run("events", *command, **known).stdout
        assert KEY not in hidden
        assert hidden.count("****cdef") == LETTERS
        assert run("events", *command, "--show-keys", **known).stdout.count(KEY) == LETTERS
    if not is_running:
        gateway.start()


def test_f7_keys_are_hidden_in_recent_events(tmp_path):
    sample = sample_document()
    with Vendor(sample) as vendor, Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
        gateway.post("/server-side/getFlag", {"featureKey": "dark-mode", "userId": "first"})
        gateway.post("/events/t", {"d": {"visId": "u", "event": {"name": "b", "props": {"other": sample["sdkKey"]}}}})
        recent = listed(gateway)["recent"]
        assert len(recent) >= 2
        assert sample["sdkKey"] not in str(recent)
        assert sample["sdkKey"][-4:] in str(recent)


def test_h2_recent_events_of_all_workers_are_shown_by_each(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, WORKERS=2) as gateway:
        deadline = time.monotonic() + 60
        while [worker["state"] for worker in gateway.status()["workers"]] != ["serving"] * 2:
            assert time.monotonic() < deadline
        wanted = {f"u{number}" for number in range(30)}
        for visitor in wanted:
            assert gateway.post("/events/t", {"d": {"visId": visitor, "event": {"name": "a"}}})[0] == 200
        while True:
            seen = [{event["visitor"] for event in listed(gateway)["recent"]} for _ in range(20)]
            if all(visitors == wanted for visitors in seen):
                break
            assert time.monotonic() < deadline, seen
