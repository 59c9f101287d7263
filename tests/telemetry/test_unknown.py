"""Row H1: numbers that cannot be read are unknown, with the last known ones, and the accounting names that part."""

import math
import time

import pytest
from commands import run
from described import check_described
from metrics import samples_of, scrape
from process import SAMPLE_SETTINGS, Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

from tornado_gateway.telemetry.problems import REMEDIES

pytestmark = needs_redis_server
SECONDS = 60
DEAD, WAITING = 30, 374
FOREVER = 10**6  # times
PARTS = ("delivered", "waiting", "dead", "rejected", "discarded", "lost", "unknown")
OPTIONS = {"FLUSH_EVENTS_INTERVAL": "0.2", "SOCKET_TIMEOUT": "1", "EVENTS_PER_REQUEST": "10"}


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


def is_bad(event):
    return "bad" in str(event)


def send(gateway, count, name):
    for number in range(count):
        event = {"d": {"visId": str(number), "event": {"name": name, "props": {}}}}
        assert gateway.post("/events/t", event)[0] == 200


def events_of(gateway):
    """The counts of /status, which add up in each response."""
    events = gateway.status()["events"]
    assert events["received"] + events["elsewhere"] == sum(events[name] or 0 for name in PARTS), events
    assert (events["waiting"] is None) == (events["dead"] is None) == (events["last_known"] is not None), events
    return events


def until(gateway, **wanted):
    deadline = time.monotonic() + SECONDS
    while True:
        events = events_of(gateway)
        if all(events[name] == value for name, value in wanted.items()):
            return events
        assert time.monotonic() < deadline, (wanted, gateway.status())
        time.sleep(0.02)


def make_backlog(gateway, vendor):
    """Make the dead letters and the waiting events of the row. Return the number of events before the latter."""
    vendor.event_faults.append(Fault(400, times=FOREVER, refuses=is_bad))
    send(gateway, DEAD, "bad")
    gateway.wait_for_dead_letters(DEAD)
    vendor.event_faults.clear()
    sent = until(gateway, dead=DEAD, waiting=0, unknown=0)["received"]
    vendor.event_faults.append(Fault(503, times=FOREVER))
    send(gateway, WAITING, "good")
    until(gateway, waiting=WAITING, unknown=0)
    return sent


def paused(gateway, redis):
    """Pause Redis after the gateway has read it. Return the counts."""
    for _ in range(10):
        redis.pause()
        events = until(gateway, dead=None, waiting=None)
        if events["last_known"]["waiting"] == WAITING:
            break
        redis.resume()  # the last reading was older than the events
        until(gateway, dead=DEAD)
    return events


def test_h1_a_paused_redis_makes_its_numbers_unknown_everywhere(tmp_path, vendor, redis):
    """The console showed "Dead letters: None", and 649 = 30 + 374 + 30 + 0."""
    where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
    with Gateway.of_vendor(tmp_path / "data", vendor, **where, **OPTIONS) as gateway:
        sent = make_backlog(gateway, vendor)
        before = time.time()
        events = paused(gateway, redis)
        assert events["last_known"] == {"at": events["oldest_unknown_since"], "waiting": WAITING, "dead": DEAD}
        assert before - 30 < events["oldest_unknown_since"] < time.time()
        assert (events["received"], events["unknown"]) == (sent + WAITING, WAITING + DEAD)
        status = gateway.status()
        check_described("/status", "get", 200, status)
        assert status["last_error_remedy"] == REMEDIES["redis-unreachable"]
        assert [worker["events"]["waiting"] for worker in status["workers"]] == [None]
        for path in ("/admin/overview", "/admin/events"):
            shown = gateway.get(path, gateway.admin_headers)[1]
            check_described(path, "get", 200, shown)
            queue = shown["queue"] if "queue" in shown else shown["depth"]
            assert (queue["waiting"], queue["dead"], queue["last_known"]) == (None, None, events["last_known"])
        samples = samples_of(scrape(gateway)[0])
        assert math.isnan(samples["fme_events_waiting", ()])
        assert math.isnan(samples["fme_events_dead", ()])
        assert samples["fme_events_unknown", ()] == WAITING + DEAD
        command = {"DATA_DIR": gateway.data_dir, "PORT": gateway.port, "HOST": "127.0.0.1", **where}
        command = {**command, "SETTINGS_FILE": SAMPLE_SETTINGS}
        command = {name: str(value) for name, value in command.items()}
        text = run("events", "status", **command).stdout
        assert f"last known {WAITING}" in text
        assert f"waiting, {DEAD} dead" in text
        send(gateway, 10, "good")
        assert until(gateway, received=sent + WAITING + 10)["unknown"] == WAITING + DEAD + 10
        redis.resume()
        until(gateway, dead=DEAD, waiting=WAITING + 10, unknown=0, last_known=None)
        vendor.event_faults.clear()
        until(gateway, dead=DEAD, waiting=0, unknown=0)


def test_h1_events_delivered_while_redis_is_paused_leave_the_unknown_part(tmp_path, vendor, redis):
    where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
    with Gateway.of_vendor(tmp_path / "data", vendor, **where, **OPTIONS) as gateway:
        sent = make_backlog(gateway, vendor)
        redis.pause()
        until(gateway, dead=None)
        vendor.event_faults.clear()
        send(gateway, 20, "good")
        vendor.wait_until(lambda: events_of(gateway)["delivered"] > sent - DEAD, SECONDS, gateway.status)
        redis.resume()
        until(gateway, dead=DEAD, waiting=0, last_known=None)

        def is_settled():
            """An event whose settlement or append Redis has missed can be delivered twice, which is a part as well."""
            twice = len(vendor.events) - (sent - DEAD + WAITING + 20)
            events = events_of(gateway)
            return twice >= 0 and (events["waiting"], events["dead"], events["unknown"]) == (0, DEAD, -twice)

        vendor.wait_until(is_settled, SECONDS, lambda: (len(vendor.events), gateway.status()))


def test_h1_a_redis_that_fails_from_the_start_was_never_read(tmp_path, vendor, redis):
    redis.kill()
    where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
    with Gateway.of_vendor(tmp_path / "data", vendor, **where, **OPTIONS) as gateway:
        events = until(gateway, dead=None, waiting=None)
        assert events["last_known"] == {"at": None, "waiting": None, "dead": None}
        assert events["oldest_unknown_since"] > time.time() - SECONDS
        redis.start()
        until(gateway, dead=0, waiting=0, unknown=0, oldest_unknown_since=None)
