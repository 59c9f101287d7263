"""Settings of real gateways: at the first start, after SIGKILL, and when VWO fails for one of several gateways."""

import contextlib
import json
import time

import orjson
import pytest
from process import Gateway, free_port, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

SECONDS = 30  # far more than the gateway needs, and less than it took when it waited for a lease
ALWAYS = 1_000_000


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis_server)])
def store_options(request, tmp_path):
    """The options of a gateway with each store. What Redis has acknowledged survives the gateway."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            yield {}
        else:
            redis = stack.enter_context(RedisServer(tmp_path / "redis"))
            yield {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}


def document_of_version(version):
    return sample_document() | {"version": version}


def version_of(gateway):
    settings = gateway.status()["settings"]
    return settings and settings["version"]


def wait_until(condition, seconds=SECONDS, describe=lambda: ""):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {describe()}"
        time.sleep(0.05)


def is_ready(gateway):
    return gateway.get("/ready")[0] == 200


def messages(gateway, start=""):
    lines = [json.loads(line)["message"] for line in gateway.log().splitlines()]
    return [line for line in lines if line.startswith(start)]


# --- Starts ---


def test_c1_settings_are_loaded_soon_after_vwo_becomes_reachable(tmp_path):
    """Row C1: nothing listens at UPSTREAM_URL for the first 3 s, with the default POLLING_TIME."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    sample = sample_document()
    account = {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "UPSTREAM_URL": url}
    with Gateway(tmp_path / "data", **account) as gateway:
        assert gateway.get("/ready")[0] == 503
        time.sleep(3)
        with Vendor(sample, port=port):
            wait_until(lambda: is_ready(gateway), describe=gateway.log)
    assert "599" not in gateway.log()
    (line,) = messages(gateway, "No settings loaded yet: VWO could not be reached (")
    assert "Retrying in 1 s." in line


def test_c2_a_restart_after_sigkill_sees_changed_settings(tmp_path, store_options):
    """Row C2: the lease of the killed process does not keep the next one from polling."""
    with (
        Vendor(document_of_version(1)) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, POLLING_TIME=20_000, **store_options) as gateway,
    ):
        wait_until(lambda: version_of(gateway) == 1, describe=gateway.log)
        gateway.kill()
        vendor.settings = orjson.dumps(document_of_version(2))
        gateway.start("/ready")
        wait_until(lambda: version_of(gateway) == 2, SECONDS / 2, gateway.log)


def test_c3_a_killed_first_start_does_not_delay_the_next(tmp_path, store_options):
    """Row C3: the first start gets no settings, is killed, and its lease does not matter to the second one."""
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(503, times=ALWAYS))
        with Gateway.of_vendor(tmp_path / "data", vendor, **store_options) as gateway:
            wait_until(lambda: vendor.settings_calls())
            gateway.kill()
            vendor.settings_faults.clear()
            gateway.start()
            wait_until(lambda: is_ready(gateway), describe=gateway.log)


# --- Several gateways ---


@needs_redis_server
def test_c9_a_gateway_that_reaches_vwo_polls_for_one_that_does_not(tmp_path):
    """Row C9: the holder of the lease cannot reach VWO any more, another gateway on the same Redis can."""
    with (
        RedisServer(tmp_path / "redis") as redis,
        Vendor(document_of_version(1)) as one,
        Vendor(document_of_version(1)) as two,
    ):
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, "POLLING_TIME": 2000}
        with (
            Gateway.of_vendor(tmp_path / "one", one, **options) as first,
            Gateway.of_vendor(tmp_path / "two", two, **options) as second,
        ):
            wait_until(lambda: version_of(first) == version_of(second) == 1)
            pairs = [(one, first), (two, second)]
            counts = [len(vendor.settings_calls()) for vendor, _ in pairs]
            wait_until(lambda: any(len(v.settings_calls()) > n + 2 for (v, _), n in zip(pairs, counts, strict=True)))
            is_first = len(one.settings_calls()) > counts[0] + 2
            (failing, holder), (working, other) = pairs if is_first else pairs[::-1]
            failing.settings_faults.append(Fault(503, times=ALWAYS))
            working.settings = orjson.dumps(document_of_version(2))
            wait_until(lambda: version_of(other) == 2, describe=other.log)
            wait_until(lambda: version_of(holder) == 2, describe=holder.log)
            name = f":{other.status()['workers'][0]['pid']}"
            wait_until(lambda: (holder.status()["last_poll"]["instance"] or "").endswith(name), describe=holder.status)
            assert holder.status()["last_poll"]["age_seconds"] < 60
            assert messages(holder, "Settings refresh failed: VWO returned 503 Service Unavailable. Continuing with")


# --- The log ---


def test_h5_a_wrong_key_at_start_is_logged_as_such(tmp_path):
    """Row H5: there are no settings that could stay in force, and the remedy is named. Repetitions are not logged."""
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(401, times=ALWAYS))
        with Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
            wait_until(lambda: len(vendor.settings_calls()) >= 3)
            reason = gateway.get("/ready")[1]["reason"]
    (line,) = messages(gateway, "No settings loaded yet: ")
    expected = "VWO rejected the SDK key (401)."
    assert line == f"No settings loaded yet: {expected} Check ACCOUNT_ID and SDK_KEY. Retrying in 1 s."
    assert expected in reason
    assert "last good" not in gateway.log()


def test_h5_a_failed_refresh_names_the_settings_in_use(tmp_path):
    """Row H5: with settings, the log names their version and age."""
    with (
        Vendor(document_of_version(7)) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, POLLING_TIME=500) as gateway,
    ):
        vendor.settings_faults.append(Fault(401, times=ALWAYS))
        start = "Settings refresh failed: VWO rejected the SDK key (401). Continuing with version 7, "
        wait_until(lambda: messages(gateway, start), describe=gateway.log)
        wait_until(lambda: gateway.status()["last_poll"]["error"] is not None)
        calls = len(vendor.settings_calls())
        wait_until(lambda: len(vendor.settings_calls()) >= calls + 2)
        assert len(messages(gateway, "Settings refresh failed")) == 1
        vendor.settings_faults.clear()
        wait_until(lambda: messages(gateway, "Settings refresh succeeded after failing for "), describe=gateway.log)


def test_b3_settings_of_another_account_are_rejected(tmp_path):
    """Row B3."""
    sample = sample_document()
    with Vendor(sample) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, POLLING_TIME=200) as gateway:
        assert gateway.status()["settings"]["version"] == sample["version"]
        vendor.settings = orjson.dumps(sample | {"accountId": 999999, "version": 77})
        wait_until(lambda: "account 999999" in (gateway.status()["last_poll"]["error"] or ""))
        assert gateway.status()["settings"]["version"] == sample["version"]
        assert "ACCOUNT_ID" in gateway.status()["last_poll"]["error"]
        vendor.settings = orjson.dumps(sample | {"version": 78})
        wait_until(lambda: gateway.status()["settings"]["version"] == 78)
