"""GET /admin/live: decisions and events of all workers, sampled, and only while a console watches."""

import contextlib
import http.client
import socket
import threading
import time
from types import SimpleNamespace

import orjson
import pytest
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway import core
from tornado_gateway.console.insight.live_feed import KEPT_ROWS, MOST_WATCHES, SHOWN_PER_TICK, Filter, LiveFeed
from tornado_gateway.console.insight.recent_visitors import NOTED_PER_TICK
from tornado_gateway.errors import RequestError
from tornado_gateway.telemetry.environment_counts import EnvironmentCounts
from tornado_gateway.telemetry.scoreboard import Scoreboard

DEADLINE_SECONDS = 30


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path_factory.mktemp("live") / "data", vendor, WORKERS=2) as gateway,
    ):
        assert until(lambda: gateway.log().count(") is ready") == 2)
        yield gateway


class Stream:
    """A client of the stream, which adds up its messages."""

    def __init__(self, gateway, query=""):
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=DEADLINE_SECONDS)
        self._connection.request("GET", f"/admin/live{query}", headers=gateway.admin_headers)
        self._socket = self._connection.sock
        self.response = self._connection.getresponse()
        assert self.response.status == 200
        self.seen, self.rows, self.has_ended = 0, [], False
        self._reader = threading.Thread(target=self._read)

    def __enter__(self):
        self._reader.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # the gateway has closed it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self.response.close()
        self._connection.close()

    def _read(self):
        with contextlib.suppress(http.client.IncompleteRead):
            for line in self.response:
                if line.startswith(b"data: "):
                    message = orjson.loads(line[6:])
                    self.seen += message["seen"]
                    self.rows += message["rows"]
        self.has_ended = True


def get_flag(gateway, key, user):
    """Over a connection of its own, so that any worker may serve it."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=DEADLINE_SECONDS)
    connection.request("POST", "/server-side/getFlag", orjson.dumps({"featureKey": key, "userId": user}))
    assert connection.getresponse().status == 200
    connection.close()


def until(condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_each_decision_of_both_workers_arrives_by_name(gateway):
    with Stream(gateway, "?feature=checkout&user=live-") as live:
        assert live.response.headers["Content-Type"] == "text/event-stream"

        def warms_up():
            get_flag(gateway, "new-checkout", "warm-live-up")
            return live.rows

        assert until(warms_up)
        time.sleep(1)  # until both workers know the filter
        before = live.seen
        get_flag(gateway, "new-checkout", "unwatched")
        for number in range(40):
            get_flag(gateway, "new-checkout", f"live-{number}")
        assert until(lambda: live.seen >= before + 40)
        time.sleep(1)
        assert live.seen == before + 40
        users = {row["user"] for row in live.rows if row["user"] != "warm-live-up"}
    assert len(users) >= 10  # a sample of at most 50 per second
    assert users < {f"live-{number}" for number in range(41)}
    row = live.rows[-1]
    assert (row["kind"], row["name"], row["outcome"]) == ("decision", "new-checkout", "enabled")
    assert row["variation"]
    workers = gateway.status()["workers"]
    assert [worker["requests"]["decisions"] > 0 for worker in workers] == [True, True]


def test_events_name_their_rule_and_variation(gateway):
    with Stream(gateway) as live:

        def sends_and_sees():
            get_flag(gateway, "new-checkout", "visitor of events")
            return [row for row in live.rows if row["kind"] == "event" and row["rule"]]

        (row, *_) = until(sends_and_sees)
    assert row["name"] == "vwo_variationShown"
    assert row["variation"]


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("?outcome=maybe", 400, "outcome: expected enabled, disabled, error, not_found"),
        (f"?user={'x' * 201}", 400, "user: expected at most 200 characters"),
        ("?environment=none", 404, "there is no environment"),
    ],
)
def test_a_wrong_filter_is_named(gateway, query, status, text):
    code, body = gateway.get(f"/admin/live{query}", gateway.admin_headers)
    assert code == status
    assert text in body["error"]


def environment_of():
    return SimpleNamespace(
        counts=EnvironmentCounts(), access=SimpleNamespace(name="prod"), mirror=SimpleNamespace(current=None)
    )


def feeds(workers=2):
    """Feeds of several workers, without their timers, and the environment of each."""
    board = Scoreboard(workers)
    environments = [environment_of() for _ in range(workers)]
    return [
        LiveFeed(board, row, SimpleNamespace(all=(one,), first=one)) for row, one in enumerate(environments)
    ], environments


def decision(key):
    return core.Decision(key, None)


def test_many_decisions_are_counted_and_sampled():
    (first, second), (_, environment) = feeds()
    watch = first.watch(Filter("prod"))
    first.tick()
    second.tick()
    for number in range(3000):
        environment.counts.watch(f"user-{number}", decision("x" * 5000))
    second.tick()
    first.tick()
    seen, rows = watch.take(KEPT_ROWS)
    assert seen == 3000
    assert len(rows) == SHOWN_PER_TICK
    assert max(len(row["name"]) for row in rows) < 200
    assert any(int(row["user"][5:]) > 1000 for row in rows)  # an even sample, not the first ones
    first.tick()
    assert watch.take(KEPT_ROWS) == (0, [])  # each is received once


def test_only_the_first_decisions_of_a_tick_are_noted_after_the_last_console_has_left():
    (first, second), (_, environment) = feeds()
    watch = first.watch(Filter("prod"))

    def noted():
        first.tick()
        second.tick()
        calls = 0
        while environment.counts.watch is not None and calls < 1000:
            environment.counts.watch(f"user-{calls}", decision("x"))
            calls += 1
        return calls

    assert noted() == 1000
    first.unwatch(watch)
    assert noted() == NOTED_PER_TICK
    assert "user-0" in first.visitors.of("prod")


def test_events_are_filtered_by_the_complete_user_and_may_be_anything():
    (feed,), (environment,) = feeds(1)
    watch = feed.watch(Filter("prod", user="ann"))
    feed.tick()
    lines = [
        b'{"d":{"visId":"ann","event":{"name":"paid"}}}',
        b'{"d":{"visId":"joanna","event":{"name":"paid"}}}',
        b'"ann"',
        b"",
    ]
    feed.committed(environment, [(4, b"\n".join(lines))])
    feed.tick()
    seen, rows = watch.take(KEPT_ROWS)
    assert seen == 2
    assert [(row["name"], row["user"]) for row in rows] == [("paid", "ann"), (None, None)]


def test_a_worker_has_a_limited_number_of_streams():
    (feed,), _ = feeds(1)
    for _ in range(MOST_WATCHES):
        feed.watch(Filter("prod", "f" * 200, "ü" * 200))
    with pytest.raises(RequestError, match="at most 4 live streams"):
        feed.watch(Filter("prod"))
    feed.tick()  # the longest filters fit into shared memory


def test_the_stream_ends_with_the_gateway(gateway):
    """Shutdown does not wait for consoles."""
    with Stream(gateway) as live:
        assert gateway.terminate() == 0
        assert until(lambda: live.has_ended)
    gateway.start()
