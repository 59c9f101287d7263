"""One verdict: /status of each worker, the metrics, the doctor and the console's data name the same problems."""

import os
import signal
import time

import orjson
from commands import run_doctor
from described import check_described
from metrics import samples_of, scrape
from process import Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

from tornado_gateway.telemetry.problems import verdict_of

SECONDS = 60
FOREVER = 10**6  # times
TRANSIENT = {"loop-lag", "slow-decisions"}  # of a busy machine


def until(condition, describe):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)
    return found


def codes_of(problems):
    return {problem["code"] for problem in problems} - TRANSIENT


def reported(gateway):
    """The codes of /status, the console's data and the metrics."""
    status = gateway.status()
    assert status["verdict"] == verdict_of(status["problems"])
    console = gateway.get("/admin/overview", gateway.admin_headers)[1]["status"]
    samples = samples_of(scrape(gateway)[0])
    metric = {dict(labels)["code"] for (name, labels), value in samples.items() if name == "fme_problem" and value}
    return [codes_of(status["problems"]), codes_of(console["problems"]), metric - TRANSIENT]


def agree_on(gateway, *codes):
    """Wait until all of them report exactly these. Return /status."""
    until(lambda: reported(gateway) == [set(codes)] * 3, lambda: (reported(gateway), gateway.status()["problems"]))
    return gateway.status()


def doctor(gateway, **options):
    """The problems of the gateway in the doctor's report, with their states, and the other findings that are not ok."""
    sample = sample_document()
    account = {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "SOCKET_TIMEOUT": 1}
    options = {"DATA_DIR": gateway.data_dir, "HOST": "127.0.0.1", "PORT": gateway.port, **account, **options}
    found = orjson.loads(run_doctor("--json", **options).stdout)["findings"]
    own = {one["code"]: one["state"] for one in found if one["check"] == "gateway" and one["code"] not in TRANSIENT}
    return own, [one["code"] for one in found if one["check"] != "gateway" and one["state"] != "ok"]


def send(gateway, name, count=1):
    for number in range(count):
        event = {"d": {"visId": str(number), "event": {"name": name, "props": {}}}}
        assert gateway.post("/events/t", event)[0] == 200


@needs_redis_server
def test_status_metrics_doctor_and_console_name_the_same_problems(tmp_path):
    with Vendor(sample_document()) as vendor, RedisServer(tmp_path / "redis") as redis:
        where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        timing = {"FLUSH_EVENTS_INTERVAL": "0.2", "SOCKET_TIMEOUT": "1", "WORKERS": "2"}
        with Gateway.of_vendor(tmp_path / "data", vendor, **where, **timing) as gateway:
            assert agree_on(gateway)["verdict"] == "ok"

            vendor.event_faults.append(Fault(400, times=FOREVER, refuses=lambda event: "bad" in str(event)))
            send(gateway, "bad", 2)
            gateway.wait_for_dead_letters(2)
            status = agree_on(gateway, "events-dead")
            check_described("/status", "get", 200, status)
            [dead] = [problem for problem in status["problems"] if problem["code"] == "events-dead"]
            assert (dead["severity"], dead["environment"]) == ("warning", None)
            assert dead["runbook"] == "/docs/operating#events-dead"
            own, _ = doctor(gateway, UPSTREAM_URL=vendor.url, **where)
            assert own == {"events-dead": "warn"}

            killed = gateway.worker_pids()[0]
            os.kill(killed, signal.SIGKILL)
            until(lambda: len(pids := gateway.worker_pids()) == 2 and killed not in pids, gateway.worker_pids)
            status = agree_on(gateway, "events-dead")
            assert dead["since"] in [problem["since"] for problem in status["problems"]]

            vendor.event_faults.clear()
            vendor.event_faults.append(Fault(503, times=FOREVER))
            send(gateway, "good")
            agree_on(gateway, "events-dead", "upstream-failing")

            redis.pause()
            lost = {"events-dead", "events-unknown", "redis-unreachable", "upstream-failing"}
            until(lambda: all({*lost} <= codes for codes in reported(gateway)), lambda: gateway.status()["problems"])
            found = {problem["code"]: problem["message"] for problem in gateway.status()["problems"]}
            assert "at the last reading" in found["events-dead"]
            assert "unknown, last known" in found["events-unknown"]
            own, others = doctor(gateway, UPSTREAM_URL=vendor.url, **where)
            assert own.keys() >= lost
            assert not {*others} & {"redis-unreachable", "events-waiting", "events-dead"}

            redis.resume()
            vendor.event_faults.clear()
            agree_on(gateway, "events-dead")
            headers = {**gateway.admin_headers, "Content-Type": "application/json"}
            assert gateway.request("POST", "/admin/events/requeue", b'{"ids": null}', headers)[0] == 200
            assert agree_on(gateway)["verdict"] == "ok"


def test_a_gateway_without_settings_is_critical_for_the_doctor_as_well(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(401, times=FOREVER))
        with Gateway.of_vendor(tmp_path / "data", vendor, FLUSH_EVENTS_INTERVAL="0.2") as gateway:
            assert agree_on(gateway, "no-settings", "key-refused")["verdict"] == "critical"
            own, others = doctor(gateway, UPSTREAM_URL=vendor.url)
            assert own == {"no-settings": "fail", "key-refused": "fail"}
            assert "key-refused" not in others
            vendor.settings_faults.clear()
            assert agree_on(gateway)["verdict"] == "ok"
