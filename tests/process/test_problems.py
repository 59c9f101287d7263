"""Problems in /status, each with its remedy: without them one finds out from the log only, or not at all."""

import http.client
import os
import random
import ssl
import time

import orjson
import pytest
from certificates import make_certificate
from commands import run_doctor
from core.documents import document, feature, rollout, rule
from described import check_described
from metrics import samples_of, scrape
from process import ROOT, SAMPLE_SETTINGS, Gateway, sample_document
from vendor import Fault, Vendor

from tornado_gateway.cli.doctor.remedies import REMEDIES

SECONDS = 60
FOREVER = 10**6  # times
GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
TEXT = "a" * 4096


def until(condition, describe=lambda: ""):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)
    return found


def problems_of(gateway, *codes):
    """The problems, once these are all there are."""
    found = lambda: gateway.status()["problems"]  # noqa: E731
    until(lambda: sorted(problem["code"] for problem in found()) == sorted(codes), gateway.status)
    check_described("/status", "get", 200, gateway.status())
    for problem in found():
        assert problem["remedy"] == REMEDIES[problem["code"]]
    return found()


# --- Row H6 ---


def test_h6_an_old_location_database_is_a_problem(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, MAXMIND_DB_PATH=GEOIP, WORKERS=2) as gateway:
        until(lambda: len(gateway.status()["workers"]) == 2, gateway.status)
        [problem] = problems_of(gateway, "geo-old")
        assert "days old" in problem["message"]
        assert problem["file"] == str(GEOIP)


def test_h6_a_broken_location_database_is_a_problem_until_it_is_replaced(tmp_path):
    broken = tmp_path / "broken.mmdb"
    broken.write_bytes(b"not a database")
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, MAXMIND_DB_PATH=broken) as gateway:
        [problem] = problems_of(gateway, "geo-broken")
        assert str(broken) in problem["message"]


def test_h6_without_a_fault_there_is_no_problem(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        assert gateway.status()["problems"] == []


class TlsGateway(Gateway):
    def get(self, path, headers=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=SECONDS, context=context)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, orjson.loads(response.read())
        finally:
            connection.close()


@pytest.mark.parametrize(("days", "code"), [(-1, "certificate"), (3, "certificate-ending")])
def test_h6_a_certificate_that_ends_is_a_problem_until_it_is_renewed(tmp_path, days, code):
    cert, key = make_certificate(tmp_path, "gateway", days=days)
    options = {"TLS_CERT_PATH": cert, "TLS_KEY_PATH": key, "SETTINGS_FILE": SAMPLE_SETTINGS}
    with TlsGateway(tmp_path / "data", **options) as gateway:
        [problem] = problems_of(gateway, code)
        assert str(cert) in problem["message"]
        new_cert, new_key = make_certificate(tmp_path, "renewed", days=300)
        os.replace(new_cert, cert)
        os.replace(new_key, key)
        problems_of(gateway)


# --- Row A23 ---


def test_a23_files_that_were_moved_aside_are_in_the_status(tmp_path):
    data = tmp_path / "data"
    with Vendor(sample_document()) as vendor:
        with Gateway.of_vendor(data, vendor):
            pass
        for path in [*data.glob("*-wal"), *data.glob("*-shm")]:
            path.unlink()
        for name in ("events-0.db", "dead.db", "state.db"):
            (data / name).write_bytes(random.Random(4).randbytes(20_000))
        before = time.time()
        with Gateway.of_vendor(data, vendor, WORKERS=2) as gateway:
            problems = problems_of(gateway, "damaged-files", "damaged-files", "damaged-files")
            assert {problem["file"] for problem in problems} == {str(data / name) for name in data_files()}
            for problem in problems:
                assert before - 2 < problem["at"] < time.time() + 2
                assert (problem["rescued_rows"], problem["damaged_rows"]) == (0, 0)
                assert "0 rows rescued" in problem["message"]
            assert {problem["message"].partition(" was")[0] for problem in problems} == {
                f"The {kind} {data / name}" for name, kind in data_files().items()
            }
            options = {"DATA_DIR": data, "SETTINGS_FILE": SAMPLE_SETTINGS, "PORT": gateway.port}
            findings = orjson.loads(run_doctor("--json", **options).stdout)["findings"]
            found = [finding for finding in findings if finding["code"] == "damaged-files"]
            assert sorted(finding["message"] for finding in found) == sorted(problem["message"] for problem in problems)
            for path in data.glob("*.damaged-*"):
                path.unlink()  # the operator has seen them
            problems_of(gateway)


def data_files():
    return {"events-0.db": "event log", "dead.db": "file of dead letters", "state.db": "state"}


# --- Row A21 ---


def test_a21_a_rejected_key_shows_its_remedy(tmp_path):
    options = {"FLUSH_EVENTS_INTERVAL": "0.2"}
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        assert gateway.status()["last_error_remedy"] is None
        vendor.event_faults.append(Fault(403, times=FOREVER))
        gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "user-1"})
        status = until(lambda: (found := gateway.status())["last_error"] and found, gateway.status)
        assert "403" in status["last_error"]
        assert status["last_error_remedy"] == REMEDIES["key-refused"]
        vendor.event_faults.clear()


@pytest.mark.parametrize(
    ("status", "code"), [(401, "key-refused"), (404, "upstream-strange"), (503, "upstream-failing")]
)
def test_a21_settings_that_cannot_be_fetched_show_their_remedy(tmp_path, status, code):
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults.append(Fault(status, times=FOREVER))
        with Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
            shown = until(lambda: (found := gateway.status())["last_error"] and found, gateway.status)
            assert shown["last_error_remedy"] == REMEDIES[code]


# --- Row D7 ---


def test_d7_slow_patterns_are_counted(tmp_path):
    """A pattern that exceeds its time was visible in the log only."""
    slow = r"^(?=([a-zA-Z0-9]+[._-]?)+@example\.com$)a"
    campaign = rollout(1, segments={"custom_variable": {"v": f"regex({slow})"}})
    settings = tmp_path / "settings.json"
    settings.write_bytes(orjson.dumps(document([feature(1, rule(campaign), key="slow")], [campaign])))
    with Gateway(tmp_path / "data", SETTINGS_FILE=settings, WORKERS=2) as gateway:
        assert gateway.status()["slow_patterns"] == {}
        for _ in range(20):
            fields = {"featureKey": "slow", "userId": "u", "customVariables": {"v": TEXT}}
            assert gateway.post("/server-side/getFlag", fields)[1]["isEnabled"] is False
        counted = until(lambda: gateway.status()["slow_patterns"], gateway.status)
        until(lambda: gateway.status()["slow_patterns"] == {"slow": 20}, lambda: counted)
        assert samples_of(scrape(gateway)[0])["fme_slow_patterns_total", (("feature", "slow"),)] == 20
        [problem] = problems_of(gateway, "slow-pattern")
        assert "feature slow" in problem["message"]
