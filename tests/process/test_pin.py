"""The emergency brake: a pinned version is used by all workers and machines, under load and after restarts."""

import threading
import time
from contextlib import ExitStack, contextmanager

import orjson
import pytest
from commands import run
from process import Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from several import text_of
from vendor import Vendor

from tornado_gateway.store.versions import digest_of

VISITOR = {"featureKey": "new-checkout", "userId": "user-1", "customVariables": {}}
POLLING = {"POLLING_TIME": "500", "WORKERS": "2", "LOG_LEVEL": "ERROR"}


def document(headline):
    """The sample settings with this text in the variation that everyone gets."""
    settings = sample_document()
    settings["campaigns"][0]["variations"][0]["variables"][0]["value"] = headline
    return orjson.dumps(settings)


class Clients:
    """Clients that ask for decisions all the time, and keep the time of the last one with each headline."""

    def __init__(self, gateways):
        self.gateways = gateways
        self.last = {}
        self.count = 0
        self.failures = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(one,)) for one in gateways for _ in range(2)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, gateway):
        while not self._stop.wait(0.002):
            began = time.monotonic()
            try:
                status, answer = gateway.post("/server-side/getFlag", VISITOR)
                self.last[headline_of(answer)] = began
                self.count += 1
                assert status == 200
            except Exception as error:
                self.failures.append(error)
                return


def headline_of(answer):
    return next(one["value"] for one in answer["variables"] if one["key"] == "headline")


def until(condition, describe=lambda: "", seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.01)


def in_use(gateways):
    """The digests of the settings that the workers of all gateways use."""
    return [worker["settings"] for gateway in gateways for worker in gateway.status()["workers"]]


def wait_for(gateways, headline):
    digest = digest_of(document(headline))
    until(lambda: in_use(gateways) == [digest] * 2 * len(gateways), lambda: f"{in_use(gateways)} is not {digest}")


def pin_of(gateway):
    return gateway.status()["settings"]["pin"]


def settings_command(gateway, *arguments):
    result = run("settings", *arguments, **gateway._environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextmanager
def embedded(tmp_path, vendor):
    with Gateway.of_vendor(tmp_path / "data", vendor, **POLLING) as gateway:
        yield [gateway]


@contextmanager
def two_machines(tmp_path, vendor):
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis"))
        options = POLLING | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        names = ("one", "two")
        yield [stack.enter_context(Gateway.of_vendor(tmp_path / name, vendor, **options)) for name in names]


@pytest.mark.parametrize("machines", [embedded, pytest.param(two_machines, marks=needs_redis_server)])
def test_a_pinned_version_is_used_by_all_workers_of_all_machines(tmp_path, machines):
    with Vendor(sample_document()) as vendor:
        vendor.settings = document("good")
        with machines(tmp_path, vendor) as gateways:
            wait_for(gateways, "good")
            vendor.settings = document("bad")
            wait_for(gateways, "bad")
            with Clients(gateways) as clients:
                until(lambda: "bad" in clients.last)
                settings_command(gateways[0], "pin", "previous", "--reason", "checkout is broken", "--by", "me")
                pinned_at = time.monotonic()
                wait_for(gateways, "good")
                before = clients.count
                until(lambda: clients.count > before + 200)
                print(
                    f"the last decision of the bad version began {clients.last['bad'] - pinned_at:.3f} s after the pin"
                )
                changed_at = time.monotonic()
                vendor.settings = document("worse")
                until(lambda: all(pin_of(one)["changed_since"] for one in gateways))
                until(lambda: all(pin_of(one)["latest"] == digest_of(document("worse")) for one in gateways))
            assert not clients.failures
            assert "worse" not in clients.last
            assert clients.last["bad"] < changed_at < clients.last["good"]
            check_reports(gateways)
            for gateway in gateways:
                assert gateway.terminate() == 0
            for gateway in gateways:
                gateway.start("/ready")
            wait_for(gateways, "good")
            check_reports(gateways)
            settings_command(gateways[-1], "unpin", "--by", "you")
            wait_for(gateways, "worse")
            assert [pin_of(one) for one in gateways] == [None] * len(gateways)
            assert all("settings were unpinned by you" in one.log() for one in gateways)


def pin_problem(gateway):
    (problem,) = (one for one in gateway.status()["problems"] if one["code"] == "settings-pinned")
    return problem


def check_reports(gateways):
    good = digest_of(document("good"))
    for gateway in gateways:
        pin = pin_of(gateway)
        assert (pin["version"], pin["by"], pin["reason"]) == (good, "me", "checkout is broken")
        _, ready = gateway.get("/ready")
        assert (ready["status"], ready["settings_pinned"]) == ("ready", True)
        assert "fme_settings_pinned 1.0" in text_of(gateway, "/metrics")
        until(lambda gateway=gateway: "VWO has published other settings since." in pin_problem(gateway)["message"])
        assert "by me" in pin_problem(gateway)["message"]
        assert f"settings were pinned to {good} by me" in gateway.log()
        _, served = gateway.get("/server-side/v2-settings?platform=client")
        assert served["campaigns"][0]["variations"][0]["variables"][0]["value"] == "good"
