"""The first contact: the banner, problems at the start and the summary of the stop, of real processes."""

import signal
import subprocess

import orjson
import pytest
from certificates import make_certificate
from process import ROOT, SAMPLE_SETTINGS, Gateway, free_port, sample_document
from redis_servers import RedisServer, needs_redis_server
from several import block, gateway_of
from vendor import Fault, Vendor

GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
SILENT = {"LOG_LEVEL": "ERROR", "WORKERS": 2}


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


def records(gateway):
    return [orjson.loads(line) for line in gateway.log().splitlines()]


def wait_for(vendor, gateway, text, times=1):
    vendor.wait_until(lambda: gateway.log().count(text) >= times, describe=gateway.log)


def wait_for_workers(vendor, gateway):
    """Until all of them have published, which is after their problems are logged."""
    states = lambda: [worker["state"] for worker in gateway.status()["workers"]]  # noqa: E731
    vendor.wait_until(lambda: states() == ["serving"] * gateway.workers)


def banner(gateway):
    [found] = [record for record in records(gateway) if "example" in record]
    return found


# --- The banner ---


def test_elsewhere_than_on_a_terminal_the_banner_is_one_line_of_json(vendor, tmp_path):
    with Gateway.of_vendor(tmp_path / "data", vendor, HOST="0.0.0.0", **SILENT) as gateway:
        wait_for(vendor, gateway, "example")
        wait_for_workers(vendor, gateway)
        facts = banner(gateway)
        url = f"http://127.0.0.1:{gateway.port}"
        assert (facts["address"], facts["console"], facts["docs"]) == (url, f"{url}/console", f"{url}/docs")
        assert (facts["account"], facts["workers"]) == (str(sample_document()["accountId"]), 2)
        assert facts["store"] == f"embedded, in {tmp_path / 'data'}"
        assert "no location database" in facts["locations"]
        assert "0.0.0.0" not in gateway.log()
        assert orjson.loads(run(facts["example"]))["isEnabled"] is True
    assert len(records(gateway)) == 1, "nothing else is worth a line at this level"


def run(command):
    return subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=60).stdout


def test_the_example_works_where_decisions_are_off_and_the_banner_says_so(vendor, tmp_path):
    cert, key = make_certificate(tmp_path, "gateway", days=300)
    tls = {"TLS_CERT_PATH": cert, "TLS_KEY_PATH": key, "MAXMIND_DB_PATH": GEOIP}
    gateway = Gateway.of_vendor(tmp_path / "data", vendor, DECISION_REQUIRED="false", **tls, **SILENT)
    gateway._answers = lambda path: "example" in gateway.log()
    with gateway:
        facts = banner(gateway)
        assert facts["address"] == f"https://127.0.0.1:{gateway.port}"
        assert "DECISION_REQUIRED=true" in facts["decisions"]
        assert facts["locations"].startswith("GeoIP2-City of 20")
        assert orjson.loads(run(facts["example"]))["status"] == "ready"


def test_a_worker_that_is_replaced_announces_nothing(vendor, tmp_path):
    with Gateway.of_vendor(tmp_path / "data", vendor, LOG_LEVEL="ERROR") as gateway:
        wait_for(vendor, gateway, "example")
        [worker] = gateway.worker_pids()
        gateway.process.send_signal(signal.SIGHUP)
        vendor.wait_until(lambda: worker not in gateway.worker_pids())
        wait_for_workers(vendor, gateway)
        assert banner(gateway)


# --- Problems at the start: one line for each, for all workers ---


def test_a_rejected_key_is_one_line_with_the_remedy(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(401, times=1000))
        with Gateway.of_vendor(tmp_path / "data", vendor, **SILENT) as gateway:
            wait_for(vendor, gateway, "example")
            wait_for_workers(vendor, gateway)
            calls = len(vendor.settings_calls())
            vendor.wait_until(lambda: len(vendor.settings_calls()) > calls + 3)  # further attempts of both workers
            facts = banner(gateway)
            assert facts["example"] == f"curl -s http://127.0.0.1:{gateway.port}/ready"
            assert gateway.get("/ready")[0] == 503
            [line] = [record for record in records(gateway) if record["level"] != "INFO"]
            text = "No settings loaded yet: VWO rejected the SDK key (401). Check ACCOUNT_ID and SDK_KEY. Retrying in"
            assert line["message"].startswith(text)
            assert line["message"].endswith(" s.")


def test_files_with_problems_are_one_line_each_with_the_remedy(vendor, tmp_path):
    cert, key = make_certificate(tmp_path, "gateway", days=3)
    files = {"MAXMIND_DB_PATH": GEOIP, "TLS_CERT_PATH": cert, "TLS_KEY_PATH": key}
    gateway = Gateway.of_vendor(tmp_path / "data", vendor, **files, **SILENT)
    gateway._answers = lambda path: "example" in gateway.log()
    with gateway:
        ask = f"curl -sk https://127.0.0.1:{gateway.port}/status"
        vendor.wait_until(lambda: [one["state"] for one in orjson.loads(run(ask))["workers"]] == ["serving"] * 2)
        problems = [record["message"] for record in records(gateway) if record["level"] != "INFO"]
    old, ending = sorted(problems, reverse=True)
    assert old.startswith("problem geo-old: The location database ")
    assert "`tornado-gateway geo update`" in old
    assert ending.startswith("problem certificate-ending: The TLS certificate ")
    assert "Renew the certificate" in ending


@needs_redis_server
def test_a_redis_without_persistence_is_one_warning(vendor, tmp_path):
    with RedisServer(tmp_path / "redis") as redis:
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options, **SILENT) as gateway:
            wait_for_workers(vendor, gateway)
            [line] = [record for record in records(gateway) if record["level"] != "INFO"]
            assert banner(gateway)["store"].startswith(f"Redis at 127.0.0.1:{redis.port}")
    assert line["level"] == "WARNING"
    assert "Redis has no persistence" in line["message"]
    assert "`appendonly yes`" in line["message"]


def test_a_redis_that_does_not_run_is_one_line_of_each_kind(tmp_path):
    """Of two workers that both see each condition: each polls, merges its samples, and has its own failed delivery."""
    options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": free_port(), "EVENTS_PER_REQUEST": 1, "SOCKET_TIMEOUT": 1}
    kinds = (
        "the primary store failed, events go to the local store",
        "Stored settings could not be read",
        "Settings could not be stored",
        "the samples of experiments were not stored, retrying",
        "event delivery failed, all events remain stored",
    )
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(503, times=10_000))
        with Gateway.of_vendor(tmp_path / "data", vendor, **options, **SILENT) as gateway:
            wait_for_workers(vendor, gateway)
            visitor = iter(range(10_000))

            def have_seen_it():
                user = f"user-{next(visitor)}"
                gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": user})
                return all(kind in gateway.log() for kind in kinds) and all_fail(gateway)

            vendor.wait_until(have_seen_it, 90, gateway.log)
            log = gateway.log()
    assert {kind: log.count(kind) for kind in kinds} == dict.fromkeys(kinds, 1)


def all_fail(gateway):
    """Return whether each worker has tried to deliver events in vain."""
    return all(worker["last_flush"]["error"] for worker in gateway.status()["workers"])


def test_a_problem_of_many_environments_is_a_bounded_number_of_lines(tmp_path):
    names = [f"e{number:02}" for number in range(15)]
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(401, times=1000))
        blocks = [block(name, letter * 32, account=111) for name, letter in zip(names, "abcdefghijklmno", strict=True)]
        with gateway_of(tmp_path, vendor, *blocks, **SILENT) as gateway:
            wait_for(vendor, gateway, "example")
            wait_for_workers(vendor, gateway)
            vendor.wait_until(
                lambda: len(vendor.settings_calls()) >= 2 * len(names)
            )  # a rejected key rests for a while
            lines = [record["message"] for record in records(gateway) if "No settings loaded yet" in record["message"]]
            shown = banner(gateway)["environments"]
            reported = {one["environment"]: one for one in gateway.status()["problems"] if one["code"] == "key-refused"}
            [of_one] = [one for one in gateway.status()["environments"] if one["name"] == "e14"]
    assert len(lines) == 10
    assert len({line.partition(":")[0] for line in lines} & set(names)) == 10
    assert [line for line in lines if "in /status only" in line] == lines[-1:]
    for line in lines:
        name = line.partition(":")[0]
        assert f"(401). Check account_id and sdk_key of environment {name} in {tmp_path / 'data.toml'}. Retry" in line
    place = f"account_id and sdk_key of environment e14 in {tmp_path / 'data.toml'}"
    assert reported["e14"]["remedy"] == of_one["last_error_remedy"]
    assert reported["e14"]["remedy"].startswith(f"Compare {place} with the dashboard")
    assert shown.startswith("e00 (account 111), e01 (account 111), ")
    assert shown.endswith(" and 10 more")


# --- A start that cannot succeed ---


@pytest.mark.parametrize("content", [None, "{bad", "{}"], ids=["absent", "not JSON", "no settings"])
def test_a_gateway_whose_only_settings_are_unusable_exits_with_one_line(tmp_path, content):
    file = tmp_path / "settings.json"
    if content is not None:
        file.write_text(content)
    gateway = Gateway(tmp_path / "data", SETTINGS_FILE=file, **SILENT)
    result = subprocess.run(gateway.command, env=gateway._environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    [line] = (result.stdout + result.stderr).splitlines()
    assert "the gateway cannot start: SETTINGS_FILE" in line
    assert str(file) in line


def test_a_file_that_becomes_unusable_later_ends_nothing(vendor, tmp_path):
    file = tmp_path / "settings.json"
    file.write_bytes(SAMPLE_SETTINGS.read_bytes())
    with Gateway(tmp_path / "data", SETTINGS_FILE=file, LOG_LEVEL="ERROR") as gateway:
        [worker] = gateway.worker_pids()
        file.write_text("{bad")
        subprocess.run(["kill", "-9", str(worker)], check=True)
        vendor.wait_until(lambda: gateway._answers("/ready"))
        wait_for(vendor, gateway, "Settings refresh failed")
        assert "not JSON" in gateway.log()


# --- The summary of the stop ---


@pytest.mark.parametrize(("number", "fails"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_stop_reports_the_delivered_and_the_remaining_events(tmp_path, number, fails):
    with Vendor(sample_document()) as vendor:
        if fails:
            vendor.event_faults.append(Fault(503, times=1000))
        with Gateway.of_vendor(tmp_path / "data", vendor, **SILENT) as gateway:
            wait_for_workers(vendor, gateway)
            for user in range(3):
                assert (
                    gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": f"u{user}"})[0] == 200
                )
            gateway.process.send_signal(number)
            assert gateway.process.wait(60) == 0
            [line] = [record for record in records(gateway) if "has stopped" in record["message"]]
    remaining = f"3 remain stored in {tmp_path / 'data'} until the next start" if fails else "none remain stored"
    assert line["message"] == f"The gateway has stopped: {0 if fails else 3} events were delivered, {remaining}."
    assert (line["events"]["delivered"], line["events"]["waiting"]) == ((0, 3) if fails else (3, 0))


@needs_redis_server
def test_with_redis_the_events_that_remain_there_are_reported(tmp_path):
    with Vendor(sample_document()) as vendor, RedisServer(tmp_path / "redis") as redis:
        vendor.event_faults.append(Fault(503, times=1000))
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options, **SILENT) as gateway:
            assert gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "u"})[0] == 200
            vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 1)  # Redis has been read
            assert gateway.terminate() == 0
            assert "0 events were delivered, 1 remain stored in Redis until the next start." in gateway.log()


@needs_redis_server
def test_a_stop_reads_redis_although_the_last_regular_reading_failed(tmp_path):
    """A worker that stopped before its first reading reported an unknown number of remaining events, too."""
    with Vendor(sample_document()) as vendor, RedisServer(tmp_path / "redis") as redis:
        vendor.event_faults.append(Fault(503, times=1000))
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, "SOCKET_TIMEOUT": 1}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            assert gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "u"})[0] == 200
            vendor.wait_until(lambda: gateway.status()["events"]["waiting"] == 1)
            redis.pause()
            vendor.wait_until(lambda: gateway.status()["events"]["waiting"] is None)
            redis.resume()
            assert gateway.terminate() == 0
            assert "0 events were delivered, 1 remain stored in Redis until the next start." in gateway.log()
