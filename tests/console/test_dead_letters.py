"""Dead letters as operators handle them: groups, export, editing and deleting, with an account that stays exact."""

import json
from urllib.parse import quote

import orjson
import pytest
from exchanges import exchange
from process import Gateway, sample_document
from vendor import Fault, Vendor

SDK_KEY = sample_document()["sdkKey"]
ANSWER = "no such goal for " + SDK_KEY + " " + "x" * 400


def refused(event):
    return "refused" in orjson.dumps(event).decode()


def event_of(name, note):
    return {"d": {"visId": "X", "event": {"name": name, "props": {"note": note, "vwo_envKey": SDK_KEY}}}}


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("letters") / "data"
    with Gateway.of_vendor(data_dir, vendor, EVENTS_PER_REQUEST=1, WORKERS=2) as gateway:
        yield gateway


@pytest.fixture
def letters(gateway, vendor):
    """Three dead letters in two groups; those of an earlier test, if it has left them all."""
    found = ask(gateway, "GET", "/admin/events")["dead"]
    if len(found) != 3:
        vendor.event_faults.clear()
        vendor.event_faults.append(Fault(400, times=10_000, refuses=refused, text=ANSWER))
        ask(gateway, "POST", "/admin/events/discard", {"ids": None})
        balanced(gateway, vendor, dead=0)
        for name, note in (("buy", "refused 1"), ("buy", "refused 2"), ("view", "refused 3")):
            assert gateway.post("/events/t", event_of(name, note))[0] == 200
        gateway.wait_for_dead_letters(3)
        found = ask(gateway, "GET", "/admin/events")["dead"]
    return found


def ask(gateway, method, path, body=None, expected=200):
    status, _, answer = exchange(gateway, method, path, body, **gateway.admin_headers)
    assert status == expected, answer
    return answer


def balanced(gateway, vendor, **expected):
    """Wait until the counts of all workers are these, nothing waits, and the sum is exact."""

    def counts():
        found = gateway.status()["events"]
        parts = ("delivered", "waiting", "dead", "rejected", "discarded", "lost")
        is_exact = found["received"] == sum(found[name] for name in parts)
        return is_exact and found["waiting"] == 0 and all(found[name] == value for name, value in expected.items())

    vendor.wait_until(counts)


def names(groups):
    return [(group["event"], group["events"]) for group in groups["groups"]]


def test_letters_are_grouped_by_event_and_reason_with_the_response_of_vwo(gateway, letters):
    groups = ask(gateway, "GET", "/admin/events/groups")
    assert groups["complete"]
    assert names(groups) == [("buy", 2), ("view", 1)]
    buy = groups["groups"][0]
    assert "400" in buy["reason"]
    assert buy["response"].startswith("no such goal for **** xxx")
    assert len(buy["response"]) == 300
    assert letters[0]["response"] == buy["response"]
    assert SDK_KEY not in str(groups)


def test_an_export_has_one_line_for_each_event(gateway, letters):
    lines = ask(gateway, "GET", "/admin/events/export").splitlines()
    rows = [orjson.loads(line) for line in lines]
    assert sorted(row["event"]["d"]["event"]["props"]["note"] for row in rows) == [f"refused {n}" for n in (1, 2, 3)]
    assert {row["id"] for row in rows} == {letter["id"] for letter in letters}
    assert SDK_KEY.encode() not in b"".join(lines)
    assert SDK_KEY.encode() in ask(gateway, "GET", "/admin/events/export?keys=shown")
    group = f"event=view&reason={quote(letters[0]['reason'])}"
    [view] = ask(gateway, "GET", f"/admin/events/export?{group}").splitlines()
    assert orjson.loads(view)["event"]["d"]["event"]["name"] == "view"
    assert "keys" in ask(gateway, "GET", "/admin/events/export?keys=x", expected=400)["error"]
    assert "event and reason" in ask(gateway, "GET", "/admin/events/export?event=x", expected=400)["error"]


EDITS = [
    ({"id": None}, 400, "id: expected the id"),
    ({"id": True}, 400, "id: expected the id"),
    ({"id": 10**15}, 404, "no dead letter"),
    ({"id": 10**17}, 404, "no dead letter"),
    ({"id": "no-such"}, 404, "no dead letter"),
    ({"event": None}, 400, "expected a JSON object"),
    ({"event": [1]}, 400, "expected a JSON object"),
    ({"event": {"d": {"event": {"name": "other"}}}}, 400, "expected the name"),
    ({"event": {}}, 400, "expected the name"),
    ({"event": {"d": {"event": {"name": "buy", "x": "x" * 70_000}}}}, 400, "a text of more than 65536 bytes"),
    ({"event": {"d": {"event": {"name": "buy", "x": ["x" * 5000] * 60}}}}, 413, "larger than 262144 bytes"),
]


def test_an_edit_is_validated(gateway, letters):
    letter = next(each for each in letters if '"buy"' in each["body"])
    for changes, status, message in EDITS:
        body = {"id": letter["id"], "event": orjson.loads(letter["body"])} | changes
        answer = ask(gateway, "POST", "/admin/events/edit", json.dumps(body).encode(), expected=status)
        assert message in answer["error"], changes


def test_letters_and_groups_are_deleted_and_counted_as_discarded(gateway, vendor, letters):
    before = gateway.status()["events"]["discarded"]
    assert ask(gateway, "POST", "/admin/events/discard", {}, expected=400)["status"] == 0
    assert len(ask(gateway, "GET", "/admin/events")["dead"]) == 3
    reason = letters[0]["reason"]
    assert ask(gateway, "POST", "/admin/events/discard", {"event": "buy", "reason": reason}) == {"discarded": 2}
    balanced(gateway, vendor, dead=1, discarded=before + 2)
    [left] = ask(gateway, "GET", "/admin/events")["dead"]
    assert ask(gateway, "POST", "/admin/events/discard", {"ids": [left["id"]]}) == {"discarded": 1}
    assert ask(gateway, "POST", "/admin/events/discard", {"ids": [left["id"]]}) == {"discarded": 0}
    balanced(gateway, vendor, dead=0, discarded=before + 3)
    assert "2 dead letters were deleted by" in gateway.log()


def test_a_group_is_requeued(gateway, vendor, letters):
    vendor.event_faults.clear()
    body = {"event": "buy", "reason": letters[0]["reason"]}
    assert ask(gateway, "POST", "/admin/events/requeue", body) == {"requeued": 2}
    balanced(gateway, vendor, dead=1)


def test_an_event_is_edited_and_delivered_with_its_key(gateway, vendor, letters):
    [shown] = ask(gateway, "GET", f"/admin/events?first={letters[0]['id']}&limit=1&complete=true")["dead"]
    assert SDK_KEY not in shown["body"]
    event = orjson.loads(shown["body"])
    event["d"]["event"]["props"]["note"] = "corrected"
    event["d"]["event"]["props"]["more"] = ["x" * 5000] * 20  # more than other requests may have
    assert ask(gateway, "POST", "/admin/events/edit", {"id": shown["id"], "event": event}) == {"requeued": 1}
    balanced(gateway, vendor, dead=2)
    [sent] = [each for each in vendor.events if each["d"]["event"].get("props", {}).get("note") == "corrected"]
    assert sent["d"]["event"]["props"]["vwo_envKey"] == SDK_KEY
    ask(gateway, "POST", "/admin/events/edit", {"id": shown["id"], "event": event}, expected=404)


@pytest.mark.parametrize("path", ["requeue", "discard"])
@pytest.mark.parametrize("body", [{"ids": "1"}, {"ids": [1.5]}, {"event": "x"}, {"event": 1, "reason": "x"}], ids=str)
def test_what_is_chosen_is_validated(gateway, path, body):
    assert "expected" in ask(gateway, "POST", f"/admin/events/{path}", body, expected=400)["error"]
