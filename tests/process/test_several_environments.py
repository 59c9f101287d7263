"""Several environments in one gateway process: each has its own settings, events and failures."""

import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from process import sample_document
from redis_servers import RedisServer, needs_redis_server
from several import (
    ACCOUNTS,
    KEYS,
    KeyedVendor,
    balance,
    block,
    document,
    endless_load,
    gateway_of,
    running,
    statuses,
    text_of,
    three,
    track,
    visitors,
    write,
)
from vendor import Fault

SECONDS = 60


@pytest.fixture
def vendor():
    with KeyedVendor() as vendor:
        yield vendor


@pytest.fixture(params=["embedded", pytest.param("redis", marks=needs_redis_server)])
def store(request, tmp_path):
    """The options of the store."""
    if request.param == "embedded":
        yield {}
        return
    with RedisServer(tmp_path / "redis") as redis:
        yield {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}


def expected(count):
    return {(str(ACCOUNTS[name]), key): visitors(ACCOUNTS[name], name, count) for name, key in KEYS.items()}


def until_all_ready(vendor, gateway, names=KEYS):
    paths = [f"/ready?environment={name}" for name in names]
    vendor.wait_until(lambda: all(gateway.get(path)[0] == 200 for path in paths), SECONDS, gateway.log)
    vendor.wait_until(lambda: gateway.log().count(" is ready") >= gateway.workers, SECONDS, gateway.log)


def until_balanced(vendor, gateway, delivered):
    """Workers that share a store count its waiting events from time to time."""

    def are_balanced():
        parts = statuses(gateway)
        counts = {name: (part["events"]["delivered"], balance(part)) for name, part in parts.items()}
        return counts == {name: (count, 0) for name, count in delivered.items()}

    vendor.wait_until(are_balanced, SECONDS, lambda: str(statuses(gateway)))


def test_every_environment_has_its_settings_and_its_events(tmp_path, vendor, store):
    with gateway_of(tmp_path, vendor, WORKERS=2, **store) as gateway:
        until_all_ready(vendor, gateway)
        for name, key in KEYS.items():
            query = f"a={ACCOUNTS[name]}&i={key}"
            assert gateway.get(f"/server-side/v2-settings?{query}")[1]["sdkKey"] == key
            load = track(gateway, key, name, 40)
            assert {exchange.status for exchange in load.exchanges} == {200}
        vendor.wait_until(lambda: vendor.users_by_key() == expected(40), SECONDS, gateway.log)
        until_balanced(vendor, gateway, dict.fromkeys(KEYS, 40))


def test_operators_choose_an_environment(tmp_path, vendor):
    """Probes, admin paths and metrics of one environment; an unknown one is a 404."""
    vendor.troubles[KEYS["other"]] = {"status": 403}
    with gateway_of(tmp_path, vendor, READY_REQUIRES="all") as gateway:
        until_all_ready(vendor, gateway, ["production", "staging"])
        ready = {name: gateway.get(f"/ready?environment={name}")[0] for name in (*KEYS, "unknown")}
        assert ready == {"production": 200, "staging": 200, "other": 503, "unknown": 404}
        assert gateway.get("/ready")[0] == 503
        track(gateway, KEYS["staging"], "one", 3)
        events = "/admin/events?environment={}"
        found = {name: gateway.get(events.format(name), gateway.admin_headers)[0] for name in (*KEYS, "unknown")}
        assert found == {"production": 200, "staging": 200, "other": 200, "unknown": 404}
        overview = gateway.get("/admin/overview?environment=other", gateway.admin_headers)[1]
        assert "403" in overview["status"]["last_error"]
        status, disabled = gateway.post("/webhook", {})
        assert (status, "Set webhook_token of an environment in ENVIRONMENTS_FILE" in disabled["error"]) == (403, True)
        assert KEYS["staging"] not in gateway.log()
        metrics = text_of(gateway, "/metrics")
        assert 'fme_events_received_total{environment="staging"} 3.0' in metrics
        assert 'fme_settings_loaded{environment="other"} 0.0' in metrics
        assert KEYS["staging"] not in metrics


# --- Reload ---


def until_reloaded(vendor, gateway, line, workers=2):
    vendor.wait_until(lambda: gateway.log().count(f"environments: {line}") >= workers, SECONDS, gateway.log)


def test_environments_are_added_changed_and_removed_while_requests_run(tmp_path, vendor, store):
    """Test 4: no request of the others fails, no worker is replaced, and the events of the removed one arrive."""
    file, canary = tmp_path / "data.toml", "d" * 32
    vendor.environments[canary] = document(111, canary)
    with gateway_of(tmp_path, vendor, WORKERS=2, FLUSH_EVENTS_INTERVAL=3600, **store) as gateway:
        until_all_ready(vendor, gateway)
        workers = gateway.worker_pids()
        load = endless_load(gateway.port, KEYS["production"])
        with running(load):
            assert {one.status for one in track(gateway, KEYS["other"], "other", 30).exchanges} == {200}
            write(file, *three()[:2], block("canary", canary, 111))
            until_reloaded(vendor, gateway, "+canary -other")
            assert {one.status for one in track(gateway, KEYS["other"], "late", 5).exchanges} == {400}
            until_all_ready(vendor, gateway, ["production", "staging", "canary"])
            assert {one.status for one in track(gateway, canary, "canary", 20).exchanges} == {200}
            removed = {(str(ACCOUNTS["other"]), KEYS["other"]): visitors(222, "other", 30)}
            vendor.wait_until(lambda: removed.items() <= vendor.users_by_key().items(), SECONDS, gateway.log)
            write(file, block("production", default=True, event_queue_limit=100_000), block("canary", canary, 111))
            gateway.process.send_signal(signal.SIGHUP)
            until_reloaded(vendor, gateway, "-staging ~production")
        assert {one.status for one in load.exchanges} == {200}
        assert gateway.worker_pids() == workers
        vendor.wait_until(
            lambda: list(statuses(gateway)) == ["production", "canary"], SECONDS, lambda: str(statuses(gateway))
        )
        write(file, *three())
        until_reloaded(vendor, gateway, "+staging +other -canary ~production")
        until_all_ready(vendor, gateway)
        gateway.terminate()
    both = {(str(ACCOUNTS["other"]), KEYS["other"]), ("111", canary)}
    assert {whose: len(users) for whose, users in vendor.users_by_key().items() if whose in both} == dict(
        zip(sorted(both), (20, 30), strict=True)
    )


def test_an_environment_comes_back_while_its_events_wait(tmp_path, vendor):
    """It goes on where it was: with the same counts, and nothing is sent twice."""
    vendor.event_faults.append(Fault(503, times=10**6))
    with gateway_of(tmp_path, vendor) as gateway:
        until_all_ready(vendor, gateway)
        assert {one.status for one in track(gateway, KEYS["other"], "first", 20).exchanges} == {200}
        write(tmp_path / "data.toml", *three()[:2])
        until_reloaded(vendor, gateway, "-other", workers=1)
        vendor.wait_until(lambda: statuses(gateway)["other"].get("is_removed"), SECONDS, gateway.log)
        write(tmp_path / "data.toml", *three())
        until_reloaded(vendor, gateway, "+other", workers=1)
        vendor.wait_until(lambda: "is_removed" not in statuses(gateway)["other"], SECONDS, gateway.log)
        assert {one.status for one in track(gateway, KEYS["other"], "second", 10).exchanges} == {200}
        vendor.environments[KEYS["other"]] = document(222, KEYS["other"], version=9)  # it polls again
        vendor.wait_until(lambda: statuses(gateway)["other"]["settings"]["version"] == 9, SECONDS, gateway.log)
        vendor.event_faults.clear()
        everyone = visitors(222, "first", 20) | visitors(222, "second", 10)
        vendor.wait_until(lambda: vendor.users_by_key() == {("222", KEYS["other"]): everyone}, SECONDS, gateway.log)
        until_balanced(vendor, gateway, {"production": 0, "staging": 0, "other": 30})
    assert len(vendor.events) == 30


def test_requests_in_progress_are_served_when_their_environment_is_removed(tmp_path, vendor):
    """The decision waits for a list; its response and its event would wait for a store that is closed already."""
    rule = {"or": [{"custom_variable": {"plan": "inlist(vip)"}}]}
    campaigns = sample_document()["campaigns"]
    campaigns[0]["segments"] = campaigns[0]["variations"][0]["segments"] = rule
    vendor.environments[KEYS["staging"]] = document(111, KEYS["staging"], campaigns=campaigns)
    vendor.lists["vip"] = {"gold"}
    vendor.lookup_faults.append(Fault(200, delay_seconds=6))
    body = {"featureKey": "new-checkout", "userId": "u-0", "customVariables": {"plan": "gold"}}
    with gateway_of(tmp_path, vendor, SOCKET_TIMEOUT=20) as gateway, ThreadPoolExecutor() as pool:
        until_all_ready(vendor, gateway)
        target = f"/server-side/getFlag?sdkKey={KEYS['staging']}"
        response = pool.submit(gateway.post, target, body)
        vendor.wait_until(lambda: vendor.calls_to("/check-attribute"), SECONDS, gateway.log)
        blocks = three()
        write(tmp_path / "data.toml", blocks[0], blocks[2])
        until_reloaded(vendor, gateway, "-staging", workers=1)
        assert not response.done()
        assert response.result(SECONDS)[0] == 200
        expected = {("111", KEYS["staging"]): visitors(111, "u", 1)}
        vendor.wait_until(lambda: vendor.users_by_key() == expected, SECONDS, gateway.log)


def test_a_restart_keeps_the_events_of_a_removed_environment(tmp_path, vendor):
    """They are reported, and delivered when the environment is in the file again."""
    vendor.event_faults.append(Fault(503, times=10**6))
    with gateway_of(tmp_path, vendor, SHUTDOWN_SECONDS=1) as gateway:
        until_all_ready(vendor, gateway)
        assert {one.status for one in track(gateway, KEYS["other"], "kept", 20).exchanges} == {200}
        write(tmp_path / "data.toml", *three()[:2])
        until_reloaded(vendor, gateway, "-other", workers=1)
        gateway.terminate()
        gateway.start()
        vendor.event_faults.clear()
        path = "environments/222-other/events-0.db is of no environment in the file"
        vendor.wait_until(lambda: path in gateway.log(), SECONDS, gateway.log)
        assert vendor.users_by_key() == {}
        write(tmp_path / "data.toml", *three())
        expected = {("222", KEYS["other"]): visitors(222, "kept", 20)}
        vendor.wait_until(lambda: vendor.users_by_key() == expected, SECONDS, gateway.log)


def test_a_file_with_mistakes_changes_nothing(tmp_path, vendor):
    """Test 4: all mistakes are in the log, and the old environments stay."""
    with gateway_of(tmp_path, vendor) as gateway:
        until_all_ready(vendor, gateway)
        write(tmp_path / "data.toml", block("production", "k1"), block("production", "k2", polling=1))
        vendor.wait_until(lambda: "the changed environments were rejected" in gateway.log(), SECONDS)
        assert "polling" in gateway.log()
        assert list(statuses(gateway)) == list(KEYS)
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)  # its successor starts with the file as it was at the start
        vendor.wait_until(lambda: gateway.log().count(" is ready") >= 2, SECONDS, gateway.log)
        until_all_ready(vendor, gateway)
        assert {one.status for one in track(gateway, KEYS["staging"], "still", 5).exchanges} == {200}


# --- Failures ---


def until_received(vendor, gateway, count):
    def are_received():
        return all(part["events"]["received"] == count for part in statuses(gateway).values())

    vendor.wait_until(are_received, SECONDS, lambda: str(statuses(gateway)))


def test_killed_workers_leave_the_counts_of_every_environment_exact(tmp_path, vendor, store):
    """Test 6: received = delivered + waiting + dead + rejected + discarded + lost, and no event is missing."""
    vendor.event_faults.append(Fault(503, times=10**6))
    with gateway_of(tmp_path, vendor, WORKERS=2, **store) as gateway:
        until_all_ready(vendor, gateway)
        for round_ in range(2):
            for name, key in KEYS.items():
                assert {one.status for one in track(gateway, key, f"{name}{round_}", 30).exchanges} == {200}
            if store:  # the events of a killed worker are in Redis, but not those of the last 0.25 s in its counts
                until_received(vendor, gateway, 30 * (round_ + 1))
            os.kill(gateway.worker_pids()[0], signal.SIGKILL)
            vendor.wait_until(lambda seen=round_: gateway.log().count(" is ready") >= 3 + seen, SECONDS, gateway.log)
        vendor.event_faults.clear()
        everyone = {
            (str(ACCOUNTS[name]), key): visitors(ACCOUNTS[name], f"{name}0", 30)
            | visitors(ACCOUNTS[name], f"{name}1", 30)
            for name, key in KEYS.items()
        }
        vendor.wait_until(lambda: vendor.users_by_key() == everyone, SECONDS, gateway.log)

        def are_settled():
            parts = statuses(gateway).values()
            return all(part["events"]["waiting"] == 0 and balance(part) == 0 for part in parts)

        vendor.wait_until(are_settled, SECONDS, lambda: str(statuses(gateway)))
        assert all(part["events"]["delivered"] >= 60 for part in statuses(gateway).values())


TROUBLES = {
    "hangs": {"delay_seconds": 3600},
    "rejects the key": {"status": 401},
    "fails": {"status": 500},
    "closes": {"close": True},
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_environment_in_trouble_does_not_affect_the_others(tmp_path, vendor, trouble):
    """Test 3: the settings and the events of the others go on while VWO fails for one key, from the start on."""
    vendor.troubles[KEYS["staging"]] = TROUBLES[trouble]
    options = {"SOCKET_TIMEOUT": 1, "SHUTDOWN_SECONDS": 1, "EVENTS_PER_REQUEST": 5}
    with gateway_of(tmp_path, vendor, **options) as gateway:
        until_all_ready(vendor, gateway, ["production", "other"])
        vendor.wait_until(lambda: gateway.get("/ready")[0] == 200, SECONDS, gateway.log)
        assert gateway.get("/ready?environment=staging")[0] == 503
        # All requests that this environment may send are busy with it.
        single = f"/events/t?en=purchase&a=111&env={KEYS['staging']}"
        for number in range(200):
            event = {"d": {"visId": str(number), "event": {"name": "purchase", "props": {}}}}
            assert gateway.post(single, event)[0] == 200
        for name in ("production", "other"):
            assert {one.status for one in track(gateway, KEYS[name], name, 40).exchanges} == {200}
        healthy = {
            (str(ACCOUNTS[name]), KEYS[name]): visitors(ACCOUNTS[name], name, 40) for name in ("production", "other")
        }
        vendor.wait_until(lambda: vendor.users_by_key() == healthy, SECONDS, gateway.log)
        changed = document(111, KEYS["production"], version=7)
        vendor.environments[KEYS["production"]] = changed
        path = f"/server-side/v2-settings?a=111&i={KEYS['production']}"
        vendor.wait_until(lambda: gateway.get(path)[1]["version"] == 7, SECONDS, gateway.log)
        if trouble == "rejects the key":
            assert [call.query["i"] for call in vendor.settings_calls()].count(KEYS["staging"]) == 1
        staging = statuses(gateway)["staging"]
        assert (staging["events"]["waiting"], balance(staging)) == (200, 0)
        vendor.troubles.clear()
        if trouble != "rejects the key":  # it is asked again after five minutes
            until_all_ready(vendor, gateway)
        vendor.wait_until(lambda: statuses(gateway)["staging"]["events"]["delivered"] == 200, SECONDS, gateway.log)


def test_a_full_queue_and_broken_settings_concern_one_environment(tmp_path, vendor):
    """Test 3: the queue of one is full, its settings are broken and one of its events is poisoned."""
    vendor.event_faults.append(Fault(400, times=10**6, refuses=lambda event: event["d"]["visId"] == "poison"))
    vendor.troubles[KEYS["other"]] = {"status": 503}
    blocks = [block("production", default=True), block("staging"), block("other", event_queue_limit=100)]
    with gateway_of(tmp_path, vendor, *blocks) as gateway:
        until_all_ready(vendor, gateway, ["production", "staging"])
        vendor.environments[KEYS["staging"]] = b"{broken"
        assert (
            gateway.post(f"/events/t?env={KEYS['staging']}", {"d": {"visId": "poison", "event": {"name": "x"}}})[0]
            == 200
        )
        event = {"d": {"visId": "1", "event": {"name": "purchase", "props": {}}}}
        results = [gateway.post(f"/events/t?env={KEYS['other']}", event)[0] for _ in range(101)]
        assert results == [200] * 100 + [503]
        for name in ("production", "staging"):
            assert {one.status for one in track(gateway, KEYS[name], name, 40).exchanges} == {200}
        users = {(str(ACCOUNTS[name]), KEYS[name]): visitors(111, name, 40) for name in ("production", "staging")}
        vendor.wait_until(lambda: vendor.users_by_key() == users, SECONDS, gateway.log)
        assert {name: balance(part) for name, part in statuses(gateway).items()} == dict.fromkeys(KEYS, 0)


# --- Rotation of an SDK key ---

OLD, NEW = KEYS["production"], "e" * 32


class Rotation:
    """The three steps of a rotation, and visitors after each of them. Events are noted when they are acknowledged."""

    def __init__(self, tmp_path, vendor, gateway):
        self._file, self._vendor, self._gateway = tmp_path / "data.toml", vendor, gateway
        self._key, self._known = OLD, {OLD}
        self.acknowledged = set()

    def create(self):
        self._vendor.environments[NEW] = document(111, NEW)
        del self._vendor.troubles[NEW]

    def reload(self):
        write(self._file, block("production", NEW, previous_sdk_keys=[OLD]), block("staging"))
        until_reloaded(self._vendor, self._gateway, "~production", workers=1)
        self._known.add(NEW)

    def change_clients(self):
        self._key = NEW

    def visit(self, step):
        """A gateway that has read a key accepts it, whether VWO knows it or not. Others are a 400, as ever."""
        results = {one.status for one in track(self._gateway, self._key, step, 20).exchanges}
        assert results == ({200} if self._key in self._known else {400})
        if self._key in self._known:
            self.acknowledged |= visitors(111, step, 20)

    def arrived(self):
        users = self._vendor.users_by_key()
        return users.get(("111", OLD), set()) | users.get(("111", NEW), set())


@pytest.mark.parametrize("order", itertools.permutations(("create", "reload", "change_clients")), ids="-".join)
def test_a_key_is_rotated_in_any_order(tmp_path, vendor, order):
    """Test 5: no request with a key that the gateway has read is rejected, and no event is lost or dead."""
    vendor.troubles[NEW] = {"status": 401}
    with gateway_of(tmp_path, vendor, block("production"), block("staging"), SOCKET_TIMEOUT=2) as gateway:
        until_all_ready(vendor, gateway, ["production", "staging"])
        rotation = Rotation(tmp_path, vendor, gateway)
        rotation.visit("before")
        for step in order:
            getattr(rotation, step)()
            rotation.visit(step)
        path = f"/server-side/v2-pull?a=111&i={NEW}"  # asks at once for a key that was rejected
        vendor.wait_until(lambda: gateway.get(path)[1]["sdkKey"] == NEW, SECONDS, gateway.log)
        vendor.event_faults.append(Fault(503, times=10**6))  # some events wait while the old key is withdrawn
        rotation.visit("waiting")
        vendor.troubles[OLD] = {"status": 401}
        vendor.event_faults.clear()
        rotation.visit("after")
        vendor.wait_until(lambda: rotation.arrived() == rotation.acknowledged, SECONDS, gateway.log)
        events = statuses(gateway)["production"]["events"]
        assert (events["dead"], events["rejected"]) == (0, 0)
        metrics = text_of(gateway, "/metrics")
        assert 'fme_sdk_key_requests_total{environment="production",key="current"}' in metrics
        vendor.wait_until(lambda: vendor.users_by_key().get(("111", NEW)), SECONDS)


def test_events_of_a_withdrawn_key_are_sent_under_its_successor(tmp_path, vendor):
    """The environment is the same; without a successor in the file they would be dead letters."""
    vendor.event_faults.append(Fault(503, times=10**6))
    vendor.environments[NEW] = document(111, NEW)
    with gateway_of(tmp_path, vendor, block("production"), block("staging")) as gateway:
        until_all_ready(vendor, gateway, ["production", "staging"])
        assert {one.status for one in track(gateway, OLD, "old", 20).exchanges} == {200}
        write(tmp_path / "data.toml", block("production", NEW, previous_sdk_keys=[OLD]), block("staging"))
        until_reloaded(vendor, gateway, "~production", workers=1)
        vendor.troubles[OLD] = {"status": 403}
        path = f"/server-side/v2-settings?a=111&i={OLD}"
        vendor.wait_until(lambda: gateway.get(path)[1]["sdkKey"] == NEW, SECONDS, gateway.log)
        vendor.event_faults.clear()
        expected = {("111", NEW): visitors(111, "old", 20)}
        vendor.wait_until(lambda: vendor.users_by_key() == expected, SECONDS, gateway.log)
