"""Events and batches of SDKs that decide by themselves (wire contract A.4, A.7)."""

import socket

import orjson
import pytest
from endpoints import EVENT, JSON, KEY, ORIGIN, RAW_AGENT, document, in_any_order, new_events
from metrics import samples_of, scrape
from process import ROOT, Gateway
from sdk.wire import ask, exchange, parse, request_bytes
from vendor import Fault, Vendor


@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        (f"/events/t?en=purchase&a=123456&env={KEY}&visitor_ua=undefined", orjson.dumps(EVENT), {}),
        ("/events/t?a=123456", orjson.dumps(EVENT), {"Content-Type": "text/plain;charset=UTF-8"}),
        ("/events/t", orjson.dumps(EVENT, option=orjson.OPT_INDENT_2), {}),
        ("/events/t", orjson.dumps(EVENT, option=orjson.OPT_INDENT_2).replace(b"\n", b"\r\n"), {}),
        ("/eu01/events/t?env=", orjson.dumps(EVENT), {}),
        ("/events/t?visitor_ua=Mozilla/5.0%20(X11;%20Linux)&visitor_ip=None", orjson.dumps(EVENT), {}),
        ("/events/t?visitor_ua=Mozilla%252F5.0%2B%2528", orjson.dumps(EVENT), {"Expect": "100-continue"}),
    ],
    ids=["Node", "as text", "printed", "CR LF", "with prefix", "raw query", "encoded twice"],
)
def test_an_event_arrives_as_it_was_written(gateway, vendor, target, body, headers):
    def send():
        data = exchange(gateway.port, request_bytes("POST", target, body, headers))
        answer, rest = parse(data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"success":true}')
        assert not rest

    assert new_events(gateway, vendor, 1, send) == [EVENT]


def rejected(gateway, vendor, count, act):
    """Check that an action is acknowledged with 200 and that its `count` events are counted as rejected."""
    before = gateway.status()["events"]
    assert new_events(gateway, vendor, 0, act) == []
    after = gateway.status()["events"]
    assert after["rejected"] - before["rejected"] == count
    assert after["received"] - before["received"] == count
    assert after["received"] == sum(after[name] for name in ("delivered", "waiting", "dead", "rejected"))


@pytest.mark.parametrize("body", [b"", b"{", b"no JSON", b'"\xff"'], ids=repr)
@pytest.mark.parametrize("path", ["/events/t", "/server-side/batch-events-v2"])
def test_a7_only_invalid_json_is_a_400(post, path, body):
    answer = post(path, body)
    assert (answer.status, answer.headers["content-type"], answer.json()["status"]) == (400, JSON, 0)


@pytest.mark.parametrize(
    "body",
    [b"[]", b'"d"', {}, {"d": 1}, {"d": {}}, {"d": {"event": {}}}, {"d": {"event": {"name": ""}}}],
    ids=repr,
)
def test_a7_what_is_no_event_is_rejected_with_a_200(gateway, post, vendor, body):
    """.NET SDKs send an event again forever after any other status; PHP SDKs block for 14 s."""

    def send():
        answer = post("/events/t", body)
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"success":true}')

    rejected(gateway, vendor, 1, send)


OTHER_KEY = "f" * 32


def keyed(event_key=None, visitor_key=None):
    """An event with these keys in its properties and in those of its visitor."""
    props = {"sku": "A-1"} if event_key is None else {"vwo_envKey": event_key}
    data = {"event": {"name": "purchase", "props": props}}
    if visitor_key is not None:
        data["visitor"] = {"props": {"vwo_fs_environment": visitor_key}}
    return {"d": data}


OURS = {
    "session id in a (PHP 1.20)": ("?en=vwo_variationShown&a=1795456295", keyed(KEY)),
    "another account, our key": (f"?a=1&env={KEY}", keyed()),
    "no key at all": ("?a=1", keyed()),
    "no visitor either": ("", EVENT),
    "empty keys": ("?env=", keyed("", "null")),
    "keys of PHP and Java": ("?env=null", keyed(None, KEY)),
    "keys that are no texts": ("", keyed(7, ["x"])),
    "the query counts first": (f"?env={KEY}", keyed(OTHER_KEY, OTHER_KEY)),
    "then the event": ("?env=undefined", keyed(KEY, OTHER_KEY)),
}
FOREIGN = {
    "in the query": (f"?a=123456&env={OTHER_KEY}", keyed(KEY, KEY)),
    "in the event": ("?a=123456", keyed(OTHER_KEY, KEY)),
    "of the visitor": ("?env=", keyed(None, OTHER_KEY)),
    "in the query, encoded": ("?env=%6Fther", keyed()),
}


@pytest.mark.parametrize(("query", "event"), OURS.values(), ids=OURS)
def test_a6_the_key_decides_and_not_the_account(gateway, post, vendor, query, event):
    for path, body in (("/events/t", event), ("/server-side/batch-events-v2", {"ev": [event]})):
        send = lambda: post(path + query, body)  # noqa: B023, E731
        assert new_events(gateway, vendor, 1, send) == [event]


@pytest.mark.parametrize(("query", "event"), FOREIGN.values(), ids=FOREIGN)
def test_a6_events_of_another_environment_are_dropped_with_a_200(gateway, post, vendor, query, event):
    for path, body, count in (("/events/t", event, 1), ("/server-side/batch-events-v2", {"ev": [event] * 2}, 2)):

        def send():
            answer = post(path + query, body)  # noqa: B023
            assert (answer.status, answer.body) == (200, b'{"success":true}')

        rejected(gateway, vendor, count, send)


def test_f5_a_batch_with_the_key_of_another_environment_is_dropped_with_a_200(gateway, post, vendor):
    """Rows F5, A6, A7: SDKs send the key of a batch in the header Authorization."""

    def send():
        answer = post("/server-side/batch-events-v2?a=123456", {"ev": [EVENT] * 2}, {"Authorization": OTHER_KEY})
        assert (answer.status, answer.body) == (200, b'{"success":true}')

    rejected(gateway, vendor, 2, send)


def test_a6_one_warning_per_hour_and_no_key_in_it(tmp_path):
    with Vendor(document()) as vendor, Gateway.of_vendor(tmp_path / "d", vendor, EVENTS_PER_REQUEST=1) as gateway:
        for _ in range(5):
            assert ask(gateway.port, "POST", f"/events/t?env={OTHER_KEY}", orjson.dumps(EVENT)).status == 200
            assert ask(gateway.port, "POST", "/events/t", b"{}").status == 200
        assert gateway.status()["events"]["rejected"] == 10
        lines = [line for line in gateway.log().splitlines() if "rejected" in line]
        assert sum("SDK key" in line for line in lines) == 1
        assert sum("object" in line for line in lines) == 1
        assert OTHER_KEY not in gateway.log()


def test_a6_before_there_are_settings_the_configured_key_counts(tmp_path):
    with Vendor(document()) as vendor:
        vendor.settings_faults.append(Fault(500, times=1_000_000))
        with Gateway.of_vendor(tmp_path / "d", vendor, EVENTS_PER_REQUEST=1) as gateway:
            for key in (KEY, OTHER_KEY):
                assert ask(gateway.port, "POST", "/events/t?a=1", orjson.dumps(keyed(key))).status == 200
            assert vendor.wait_for_events(1) == [keyed(KEY)]
            assert gateway.get("/ready")[0] == 503
            assert gateway.status()["events"]["rejected"] == 1


def test_a6_offline_the_key_of_the_settings_counts(tmp_path):
    settings = ROOT / "conf" / "sample-settings.json"
    with Gateway(tmp_path / "d", SETTINGS_FILE=settings) as gateway:
        for key in (KEY, OTHER_KEY):
            assert ask(gateway.port, "POST", "/events/t", orjson.dumps(keyed(key))).status == 200
        events = gateway.status()["events"]
        assert (events["received"], events["rejected"]) == (2, 1)


BROKEN = rb'{"d":{"event":{"name":"purchase","props":{"t":"x\ud83d"}},"visitor_ua":"\ude00 Agent"}}'
REPAIRED = {"d": {"event": {"name": "purchase", "props": {"t": "x\ufffd"}}, "visitor_ua": "\ufffd Agent"}}


def test_a9_a_lone_surrogate_costs_no_event(gateway, post, vendor):
    good = orjson.dumps(EVENT)
    body = b'{"ev":[%b,%b,%b]}' % (good, BROKEN, good)
    send = lambda: post("/server-side/batch-events-v2", body)  # noqa: E731
    assert in_any_order(new_events(gateway, vendor, 3, send)) == in_any_order([EVENT, REPAIRED, EVENT])


@pytest.mark.parametrize(("target", "headers"), [("/events/t", {}), ("/events/t?dh=1", {"User-Agent": "Agent"})])
def test_a9_a_single_event_is_repaired(gateway, post, vendor, target, headers):
    (event,) = new_events(gateway, vendor, 1, lambda: post(target, BROKEN, headers))
    assert event["d"].items() >= REPAIRED["d"].items()


def test_a9_usage_statistics_are_repaired(gateway, post, vendor):
    body = rb'{"d":{"event":{"name":"vwo_sdkUsageStats","props":{"t":"\ud83d"}}}}'
    (event,) = new_events(gateway, vendor, 1, lambda: post("/events/t?a=888888", body))
    assert event["d"]["event"]["props"] == {"t": "\ufffd"}


def test_usage_statistics_travel_alone_with_their_own_query(gateway, post, vendor):
    stats = {"d": {"event": {"name": "vwo_sdkUsageStats", "props": {"vwoMeta": {"gs": 1}}}}}
    query = "p=FS&a=888888&eTime=1&en=vwo_sdkUsageStats&visitor_ua=null&env=&visitor_ip=null"
    assert new_events(gateway, vendor, 1, lambda: post(f"/eu01/events/t?{query}", stats)) == [stats]
    call = vendor.calls[-1]
    assert (call.path, orjson.loads(call.body)) == ("/eu01/events/t", stats)
    assert (call.query["a"], call.query["en"], call.query["visitor_ua"]) == ("888888", "vwo_sdkUsageStats", "null")


def test_a15_only_parameters_of_the_contract_are_forwarded(gateway, post, vendor):
    stats = {"d": {"event": {"name": "vwo_sdkUsageStats", "props": {}}}}
    query = f"a=888888&admin=1&a=2&url=x&sn=node&sv={'9' * 3000}&en=other&visitor_ua=a%20b"
    assert new_events(gateway, vendor, 1, lambda: post(f"/events/t?{query}", stats)) == [stats]
    assert vendor.calls[-1].query == {"a": "888888", "sn": "node", "en": "vwo_sdkUsageStats", "visitor_ua": "a b"}


@pytest.mark.parametrize(
    ("query", "headers", "given", "wanted"),
    [
        ("", {"User-Agent": "Agent"}, {}, {}),
        ("?dh=1", {"User-Agent": "Agent"}, {}, {"visitor_ua": "Agent", "visitor_ip": "127.0.0.1"}),
        ("", ORIGIN | {"User-Agent": "Agent"}, {}, {"visitor_ua": "Agent", "visitor_ip": "127.0.0.1"}),
        (
            "",
            ORIGIN | {"User-Agent": "Agent", "X-Device-User-Agent": "Device", "VWO-X-Forwarded-For": "192.0.2.7"},
            {"visitor_ua": "", "visitor_ip": None},
            {"visitor_ua": "Device", "visitor_ip": "192.0.2.7"},
        ),
        ("?dh=1", ORIGIN, {"visitor_ua": "own", "visitor_ip": "192.0.2.8"}, {}),
        ("", {"X-Device-User-Agent": "Device"}, {"visitor_ua": "", "visitor_ip": ""}, {}),
    ],
    ids=["server SDK", "dh=1", "browser", "headers of the SDK", "its own stay", "empty ones of a server stay"],
)
def test_a_browsers_agent_and_address_are_put_into_its_event(gateway, post, vendor, query, headers, given, wanted):
    event = {"d": EVENT["d"] | given}
    assert new_events(gateway, vendor, 1, lambda: post(f"/events/t{query}", event, headers)) == [
        {"d": event["d"] | wanted}
    ]


DEEP = b'{"d":{"event":{"name":"purchase","props":%b}}}' % (b"[" * 300 + b"]" * 300)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"ev": [EVENT]}, 0),
        ({"ev": [EVENT] * 3}, 0),
        ({"ev": [EVENT] * 4}, 0),
        ({"ev": [EVENT] * 100}, 0),
        ({"ev": []}, 0),
        ({}, 1),
        ([EVENT], 1),
        ({"ev": {}}, 1),
        ({"ev": [EVENT, {"d": 1}, 7, {}, EVENT]}, 3),
        ({"ev": [{"d": 1}]}, 1),
        ({"ev": [keyed(KEY), keyed(OTHER_KEY), keyed(), keyed(None, OTHER_KEY)]}, 2),
        (b'{"ev":[%b,%b]}' % (orjson.dumps(EVENT), DEEP), 1),
    ],
    ids=[
        *("one", "three", "more than MAX_EVENTS_PER_REQUEST", "many", "A8: empty", "nothing", "a list", "no list"),
        *("three are no events", "none is an event", "A6: two of another environment", "deep"),
    ],
)
def test_a7_of_a_batch_only_what_is_no_event_is_rejected(gateway, post, vendor, body, count):
    """Rows A6, A7, A8: each event of a batch is decided on its own."""
    events = body.get("ev", []) if isinstance(body, dict) else [EVENT] if isinstance(body, bytes) else []
    good = [event for event in events if event in (EVENT, keyed(KEY), keyed())] if isinstance(events, list) else []

    def send():
        answer = post("/server-side/batch-events-v2?a=123456", body, {"Authorization": KEY})
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b'{"success":true}')

    before = gateway.status()["events"]["rejected"]
    assert in_any_order(new_events(gateway, vendor, len(good), send)) == in_any_order(good)
    assert gateway.status()["events"]["rejected"] == before + count


def test_a7_a_full_queue_is_a_503_and_nothing_of_the_batch_is_stored(tmp_path):
    """Row A7: a batch is stored as a whole, so that a client that repeats it causes no duplicates."""
    with Vendor(document()) as vendor:
        vendor.event_faults.append(Fault(503, times=1_000_000))
        limits = {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 3, "MAX_EVENTS_PER_REQUEST": 3}
        with Gateway.of_vendor(tmp_path / "d", vendor, **limits) as gateway:
            body = orjson.dumps({"ev": [EVENT] * 8 + [{}]})
            answers = [ask(gateway.port, "POST", "/server-side/batch-events-v2", body).status for _ in range(2)]
            assert answers == [200, 503]
            events = gateway.status()["events"]
            assert (events["waiting"], events["received"], events["rejected"]) == (8, 17, 9)


def test_stray_bytes_behind_an_event_change_nothing(gateway, vendor):
    """PHP writes them and closes; what it wrote before counts once, and gets one answer."""
    request = request_bytes("POST", "/events/t", orjson.dumps(EVENT), {"Connection": "keep-alive"})
    received = []
    events = new_events(
        gateway, vendor, 1, lambda: received.append(exchange(gateway.port, request + b"Connection: close\r\n\r\n"))
    )
    answer, rest = parse(received[0])
    assert (events, answer.status, rest) == ([EVENT], 200, b"")


def test_an_event_counts_when_its_client_did_not_wait(gateway, vendor):
    def send():
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
            connection.sendall(request_bytes("POST", "/events/t", orjson.dumps(EVENT), {}))

    assert new_events(gateway, vendor, 1, send) == [EVENT]


@pytest.mark.parametrize("prefix", [b"", b"/eu01", b"/"])
def test_d1_events_with_an_unescaped_user_agent_arrive(gateway, vendor, prefix):
    target = b"%b/events/t?en=buy&a=123456&env=%b&visitor_ua=%b" % (prefix, KEY.encode(), RAW_AGENT)

    def send():
        request = request_bytes("POST", target, orjson.dumps(EVENT), {"Connection": "keep-alive"})
        data = exchange(gateway.port, request * 2 + request_bytes("POST", target, orjson.dumps(EVENT), {}))
        for _ in range(3):
            answer, data = parse(data)
            assert (answer.status, answer.body) == (200, b'{"success":true}')
        assert not data

    assert new_events(gateway, vendor, 3, send) == [EVENT] * 3


def test_d1_the_key_behind_an_unescaped_user_agent_counts(gateway, post, vendor):
    target = b"/events/t?visitor_ua=%b&env=%b" % (RAW_AGENT, OTHER_KEY.encode())
    rejected(gateway, vendor, 1, lambda: post(target, EVENT))


def test_d1_usage_statistics_keep_an_encoded_query(gateway, post, vendor):
    stats = {"d": {"event": {"name": "vwo_sdkUsageStats", "props": {}}}}
    target = b"/events/t?a=888888&visitor_ua=%b" % RAW_AGENT
    assert new_events(gateway, vendor, 1, lambda: post(target, stats)) == [stats]
    assert vendor.calls[-1].query["visitor_ua"] == RAW_AGENT.decode()


def with_props(props: bytes) -> bytes:
    return b'{"d":{"event":{"name":"purchase","props":%b}}}' % props


TEXT = b'{"t":"%b"}'
LIMITS = {  # props: the status of a single event, a part of the error
    "text": (TEXT % (b"x" * 65_537), 400, "65536"),
    "name": (b'{"%b":1}' % (b"x" * 65_537), 400, "65536"),
    "text in UTF-8": (TEXT % ("ä" * 32_769).encode(), 400, "65536"),
    "levels": (b"[" * 62 + b"]" * 62, 400, "64 levels"),
    "too many levels for any encoder": (b"[" * 300 + b"]" * 300, 400, "64 levels"),
    "size": (b"[%b]" % b",".join([b'"%b"' % (b"x" * 50_000)] * 6), 413, "262144"),
}
LARGE = {
    "text": TEXT % (b"x" * 65_536),
    "levels": b"[" * 61 + b"]" * 61,
    "size": b"[%b]" % b",".join([b'"%b"' % (b"x" * 60_000)] * 4),
    "digits in a text": TEXT % (b"7" * 500),
    "escaped quotes": TEXT % (rb"\\\"" + b"7" * 500),
}


@pytest.mark.parametrize(("props", "status", "limit"), LIMITS.values(), ids=LIMITS)
def test_a2_a_single_event_beyond_a_limit_is_rejected_by_name(gateway, post, props, status, limit):
    before = gateway.status()["events"]["rejected"]
    answer = post("/events/t", with_props(props))
    assert (answer.status, limit in answer.json()["error"]) == (status, True), answer.body
    assert gateway.status()["events"]["rejected"] == before + 1


def test_a2_a_number_with_too_many_digits_is_rejected_by_name(gateway, post):
    for number in (b"0." + b"1" * 99, b"-" + b"1" * 100, b"1e" + b"0" * 100):
        answer = post("/events/t", with_props(b'{"n":%b}' % number))
        assert (answer.status, "100 digits" in answer.json()["error"]) == (400, True), answer.body


@pytest.mark.parametrize("props", [props for props, _, _ in LIMITS.values()], ids=LIMITS)
def test_a2_in_a_batch_only_the_event_beyond_a_limit_is_rejected(gateway, post, vendor, props):
    good = orjson.dumps(EVENT)
    body = b'{"ev":[%b,%b,%b]}' % (good, with_props(props), good)
    before = gateway.status()["events"]["rejected"]
    send = lambda: post("/server-side/batch-events-v2", body)  # noqa: E731
    assert new_events(gateway, vendor, 2, send) == [EVENT, EVENT]
    assert gateway.status()["events"]["rejected"] == before + 1


@pytest.mark.parametrize("props", LARGE.values(), ids=LARGE)
def test_a2_events_within_the_limits_arrive(gateway, post, vendor, props):
    event = orjson.loads(with_props(props))
    assert new_events(gateway, vendor, 1, lambda: post("/events/t", with_props(props))) == [event]
    batch = b'{"ev":[%b]}' % with_props(props)
    assert new_events(gateway, vendor, 1, lambda: post("/server-side/batch-events-v2", batch)) == [event]


def test_a15_a_flood_of_usage_statistics_takes_no_place_of_events(tmp_path):
    """Row A15: they are best effort, so a full queue of them is no error, and no event of a visitor is rejected."""
    stats = orjson.dumps({"d": {"event": {"name": "vwo_sdkUsageStats", "props": {}}}})
    limits = {"EVENT_QUEUE_LIMIT": 10, "EVENTS_PER_REQUEST": 3, "MAX_EVENTS_PER_REQUEST": 3}
    with Vendor(document()) as vendor:
        vendor.event_faults.append(Fault(503, times=1_000_000, delay_seconds=1))
        with Gateway.of_vendor(tmp_path / "d", vendor, **limits, SHUTDOWN_SECONDS=1) as gateway:
            flood = {ask(gateway.port, "POST", "/events/t?a=888888", stats).status for _ in range(300)}
            events = {ask(gateway.port, "POST", "/events/t", orjson.dumps(EVENT)).status for _ in range(10)}
            assert (flood, events) == ({200}, {200})
            assert gateway.status()["events"]["waiting"] == 10
            assert samples_of(scrape(gateway)[0])["fme_usage_statistics_total", (("result", "dropped"),)] > 100
