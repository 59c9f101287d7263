"""The doctor tells faults apart: each is really there (a server, a file, a limit) and has its own remedy."""

import asyncio
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest
from certificates import make_certificate
from commands import run, run_doctor
from process import ROOT, SAMPLE_SETTINGS, Gateway, free_port, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

from tornado_gateway.cli.doctor.checks import examine
from tornado_gateway.cli.doctor.machine import Machine
from tornado_gateway.cli.doctor.remedies import REMEDIES
from tornado_gateway.config import load
from tornado_gateway.console import admin_token
from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

GEOIP = ROOT / "tests" / "data" / "geoip"
SDK_KEY = sample_document()["sdkKey"]


class Patient(NamedTuple):
    """A configuration without any fault, for a test to put one in."""

    options: dict
    vendor: Vendor

    def findings(self, machine=None, **options):
        """By check."""
        given = {name: str(value) for name, value in (self.options | options).items() if value is not None}
        machine = machine or Machine(open_files=lambda: 65536, mounts=str)
        return {finding.check: finding for finding in asyncio.run(collect(load({}, given), machine))}


async def collect(config, machine):
    return [finding async for finding in examine(config, machine)]


@pytest.fixture
def patient(tmp_path):
    with Vendor(sample_document()) as vendor:
        options = {
            "ACCOUNT_ID": sample_document()["accountId"],
            "SDK_KEY": SDK_KEY,
            "UPSTREAM_URL": vendor.url,
            "DATA_DIR": tmp_path / "data",
            "HOST": "127.0.0.1",
            "PORT": free_port(),
            "SOCKET_TIMEOUT": "20",
        }
        yield Patient(options, vendor)


def only_fault(findings, check, code, state="fail"):
    """This check, and no other, has found something, except that the sample wants a location database."""
    faults = {f.check: f.code for f in findings.values() if f.code not in ("ok", "geo-wanted")}
    assert faults == {check: code}, findings
    assert findings[check].state == state
    assert findings[check].remedy == REMEDIES[code]
    assert SDK_KEY not in str(findings)
    return findings[check].message


def test_nothing_is_wrong(patient):
    findings = patient.findings(MAXMIND_DB_PATH=fresh_database())
    assert {finding.code for finding in findings.values() if finding.check != "geoip"} == {"ok"}
    checks = ["configuration", "upstream", "decisions", "clock", "redis", "geoip", "data directory", "admin token"]
    assert list(findings) == [*checks, "disk", "open files", "port", "events"]
    assert not patient.options["DATA_DIR"].exists(), "looking leaves no traces"


def fresh_database():
    return GEOIP / "GeoIP2-City-Test.mmdb"


@pytest.mark.parametrize("status", [400, 401, 403])
def test_fault_1_a_key_that_the_vendor_refuses(patient, status):
    patient.vendor.settings_faults.append(Fault(status=status))
    assert str(status) in only_fault(patient.findings(), "upstream", "key-refused")


def test_f1_the_source_of_the_admin_token_is_named(patient):
    """Row F1."""
    file = patient.options["DATA_DIR"] / "admin-token"
    assert "ADMIN_TOKEN is set" in patient.findings(ADMIN_TOKEN="operators-token-1234")["admin token"].message
    before = patient.findings()["admin token"]
    assert (before.state, before.code) == ("ok", "ok")
    assert f"the first start creates {file}" in before.message
    token = admin_token.ensure(patient.options["DATA_DIR"])
    found = patient.findings()["admin token"]
    assert (found.state, found.message) == ("ok", f"ADMIN_TOKEN is not set: {file} is used")
    file.chmod(0o640)
    findings = patient.findings()
    assert str(file) in only_fault(findings, "admin token", "admin-token-exposed", "warn")
    assert token not in str(findings)
    assert file.stat().st_mode & 0o777 == 0o640, "the doctor changes nothing"


def test_f1_a_token_that_cannot_be_used_is_a_fault(patient):
    """Row F1."""
    file = patient.options["DATA_DIR"] / "admin-token"
    file.parent.mkdir()
    file.touch(0o600)
    assert f"{file} is empty" in only_fault(patient.findings(), "admin token", "admin-token")


def test_fault_2_a_vendor_that_cannot_be_reached(patient):
    findings = patient.findings(UPSTREAM_URL=f"http://127.0.0.1:{free_port()}", COLLECT_URL=patient.vendor.url)
    assert findings["upstream"].code == "upstream-unreachable"
    assert findings["upstream"].state == "fail"
    assert findings["collector"].code == "ok"
    assert findings["clock"].code == "upstream-unreachable"


def test_servers_are_checked_through_the_proxy_of_the_environment(patient, monkeypatch):
    """As the gateway reaches them; before, the doctor reported a collector behind a proxy as unreachable."""
    page = b"HTTP/1.1 404 Not Found\r\nDate: Mon, 06 Jan 2020 10:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
    with Canned(page) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        findings = patient.findings(UPSTREAM_URL="http://vendor.invalid", COLLECT_URL="http://collector.invalid")
    assert findings["collector"].code == "ok"
    assert findings["clock"].code == "clock"


def test_a_vendor_whose_name_is_not_known(patient):
    assert patient.findings(UPSTREAM_URL="http://vendor.invalid")["upstream"].code == "upstream-unreachable"


def test_a_vendor_that_takes_too_long(patient):
    patient.vendor.settings_faults.append(Fault(status=200, delay_seconds=5))
    assert patient.findings(SOCKET_TIMEOUT="0.3")["upstream"].code == "upstream-unreachable"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_vendor_in_trouble(patient, status):
    patient.vendor.settings_faults.append(Fault(status=status))
    only_fault(patient.findings(), "upstream", "upstream-failing")


def test_fault_3_tls_that_is_not_the_vendors(patient, tmp_path):
    cert, key = make_certificate(tmp_path, "proxy")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Canned(b"", context) as server:
        findings = patient.findings(UPSTREAM_URL=f"https://localhost:{server.port}", COLLECT_URL=patient.vendor.url)
    assert findings["upstream"].code == "upstream-tls"
    assert "certificate" in findings["upstream"].message


def test_a_server_without_tls_behind_an_https_url(patient):
    with Canned(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as server:
        findings = patient.findings(UPSTREAM_URL=f"https://127.0.0.1:{server.port}", COLLECT_URL=patient.vendor.url)
    assert findings["upstream"].code == "upstream-tls"


@pytest.mark.parametrize(
    "body", [b"<html>Please sign in to the network</html>", b"", b"\x00\xff"], ids=["login page", "nothing", "bytes"]
)
def test_fault_4_an_answer_that_is_no_settings_document(patient, body):
    patient.vendor.settings = body
    only_fault(patient.findings(), "upstream", "upstream-strange")


def test_a_server_that_does_not_speak_http(patient):
    with Canned(b"220 mail.example ESMTP\r\n") as server:
        findings = patient.findings(UPSTREAM_URL=f"http://127.0.0.1:{server.port}", COLLECT_URL=patient.vendor.url)
    assert findings["upstream"].code == "upstream-strange"


def test_fault_5_a_settings_document_that_cannot_be_used(patient):
    document = sample_document()
    document["campaigns"][0]["variations"][0].pop("weight")
    patient.vendor.settings = orjson.dumps(document)
    message = only_fault(patient.findings(), "upstream", "settings-unusable")
    assert "campaigns[0].variations[0]" in message


def test_fault_6_a_data_directory_that_cannot_be_written_to(patient, tmp_path):
    (tmp_path / "file").write_text("in the way")
    findings = patient.findings(DATA_DIR=tmp_path / "file" / "data")
    assert "events" not in findings, "nothing can be said about them"
    only_fault(findings, "data directory", "data-dir")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_finds_what_the_gateways_user_would_find(request):
    directory = Path(tempfile.mkdtemp())  # not in tmp_path, whose parents are root's alone
    request.addfinalizer(lambda: shutil.rmtree(directory))
    os.chown(directory, 65534, 65534)
    directory.chmod(0o555)
    # Not the whole command: where these tests run, nobody else may be able to read the interpreter's modules.
    code = f"""
from pathlib import Path
from tornado_gateway.cli.doctor.store import check_data_dir
from tornado_gateway.cli.data_owner import become_owner
directory = Path({str(directory)!r})
print(check_data_dir(directory).code)
become_owner(directory)
print(check_data_dir(directory).code)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["ok", "data-dir"]


@pytest.mark.parametrize(
    ("free", "code", "state"), [(50 << 20, "disk-full", "fail"), (500 << 20, "disk-low", "warn"), (5 << 30, "ok", "ok")]
)
def test_fault_7_a_disk_that_is_nearly_full(patient, free, code, state):
    findings = patient.findings(Machine(free_bytes=lambda path: free, open_files=lambda: 65536))
    assert (findings["disk"].code, findings["disk"].state) == (code, state)


@pytest.mark.parametrize("file", sorted((GEOIP / "broken").iterdir()), ids=lambda path: path.name)
def test_fault_8_a_location_database_that_is_broken(patient, file):
    only_fault(patient.findings(MAXMIND_DB_PATH=file), "geoip", "geo-broken")


def test_a_location_database_that_is_not_there(patient, tmp_path):
    only_fault(patient.findings(MAXMIND_DB_PATH=tmp_path / "none.mmdb"), "geoip", "geo-absent")
    downloaded = patient.findings(MAXMIND_USER_ID="1", MAXMIND_LICENSE_KEY="abcdefgh")
    only_fault(downloaded, "geoip", "geo-absent", "warn")


def test_fault_9_a_location_database_that_is_old(patient):
    in_a_year = time.time() + 365 * 86400
    findings = patient.findings(
        Machine(now=lambda: in_a_year, open_files=lambda: 65536), MAXMIND_DB_PATH=fresh_database()
    )
    assert (findings["geoip"].code, findings["geoip"].state) == ("geo-old", "warn")
    assert "days old" in findings["geoip"].message


@pytest.mark.parametrize(
    ("seconds", "state"), [(-3600, "fail"), (-60, "warn"), (-5, "ok"), (5, "ok"), (60, "warn"), (3600, "fail")]
)
def test_fault_10_a_clock_that_is_wrong(patient, seconds, state):
    """The vendor's clock is that of its Date header."""
    head = f"HTTP/1.1 200 OK\r\nDate: {formatdate(time.time() - seconds, usegmt=True)}\r\nContent-Length: "
    document = orjson.dumps(sample_document())
    with Canned(f"{head}{len(document)}\r\nConnection: close\r\n\r\n".encode() + document) as server:
        findings = patient.findings(UPSTREAM_URL=f"http://127.0.0.1:{server.port}", COLLECT_URL=patient.vendor.url)
    if state == "ok":
        assert findings["clock"].code == "ok"
    else:
        message = only_fault(findings, "clock", "clock", state)
        assert ("ahead of" if seconds > 0 else "behind") in message


@pytest.mark.parametrize(
    ("limit", "state"),
    [(256, "fail"), (1024, "warn"), (65536, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_fault_11_few_files_may_be_open(patient, limit, state):
    findings = patient.findings(Machine(open_files=lambda: limit))
    assert findings["open files"].state == state
    assert findings["open files"].code == ("ok" if state == "ok" else "open-files")


def test_the_limit_of_the_process_itself_is_looked_at(tmp_path):
    options = {"SETTINGS_FILE": SAMPLE_SETTINGS, "DATA_DIR": tmp_path, "PORT": free_port()}
    result = run_doctor("--json", before="ulimit -n 300;", **options)
    findings = {finding["check"]: finding for finding in orjson.loads(result.stdout)["findings"]}
    assert "300" in findings["open files"]["message"]
    assert result.returncode == 1


def test_p5_the_number_of_open_files_that_is_needed_is_named(patient):
    """Row P5."""
    finding = patient.findings(Machine(open_files=lambda: 64))["open files"]
    assert ("64" in finding.message, "8192" in finding.message) == (True, True)


def test_fault_12_redis_that_refuses_connections(patient):
    findings = patient.findings(REDIS_HOST="127.0.0.1", REDIS_PORT=free_port())
    assert findings["redis"].code == "redis-unreachable"
    assert findings["redis"].state == "fail"


@needs_redis_server
def test_fault_13_redis_with_another_password(patient, tmp_path):
    with RedisServer(tmp_path / "redis", requirepass="right", appendonly="yes") as redis:
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        for given in ({}, {"REDIS_PASSWORD": "wrong-password"}):
            findings = patient.findings(**options, **given)
            assert findings["redis"].code == "redis-password"
            assert "wrong-password" not in str(findings)
        assert patient.findings(**options, REDIS_PASSWORD="right")["redis"].code == "ok"


@needs_redis_server
def test_redis_without_tls_where_tls_is_expected(patient, tmp_path):
    with RedisServer(tmp_path / "redis") as redis:
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, "REDIS_ENABLE_TLS": "true"}
        assert patient.findings(**options, SOCKET_TIMEOUT="2")["redis"].code == "redis-tls"


@needs_redis_server
def test_redis_with_tls(patient, tmp_path):
    cert, key = make_certificate(tmp_path, "redis")
    port = free_port()
    tls = {"tls_port": port, "tls_cert_file": cert, "tls_key_file": key, "tls_auth_clients": "no"}
    options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": port, "REDIS_ENABLE_TLS": "true"}
    checked = {"REDIS_TLS_REJECT_UNAUTHORIZED": "true"}
    with RedisServer(tmp_path / "server", **tls, appendonly="yes"):
        good = patient.findings(**options, **checked, REDIS_TLS_CA_PATH=cert)["redis"]
        assert (good.code, good.message.endswith("TLS")) == ("ok", True)
        assert patient.findings(**options, **checked)["redis"].code == "redis-tls", "nobody vouches for it"


@needs_redis_server
def test_redis_that_cannot_be_written_to(patient, tmp_path):
    with RedisServer(tmp_path / "redis", replicaof=f"127.0.0.1 {free_port()}") as redis:
        findings = patient.findings(REDIS_HOST="127.0.0.1", REDIS_PORT=redis.port)
        assert findings["redis"].code == "redis-failing"
        assert "replica" in findings["redis"].message


@needs_redis_server
def test_g5_a_redis_user_without_the_right_to_channels(patient, tmp_path):
    """Row G5."""
    with RedisServer(tmp_path / "redis", appendonly="yes") as redis:
        redis.command("ACL", "SETUSER", "gateway", "on", ">secret", "~{fme:*", "resetchannels", "+@all")
        user = {"REDIS_USERNAME": "gateway", "REDIS_PASSWORD": "secret"}
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, **user}
        finding = patient.findings(**options)["redis"]
        assert (finding.state, finding.code) == ("warn", "redis-channels")
        redis.command("ACL", "SETUSER", "gateway", "&{fme:*")
        assert patient.findings(**options)["redis"].code == "ok"


def test_a_port_that_another_program_has(patient):
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    with Canned(page) as server:
        only_fault(patient.findings(PORT=server.port), "port", "port-taken")


def test_a_port_on_an_address_of_another_machine(patient):
    assert patient.findings(HOST="192.0.2.1", SOCKET_TIMEOUT="1")["port"].code == "port-forbidden"


def test_a_port_that_our_own_gateway_has(patient, tmp_path):
    with Gateway.of_vendor(tmp_path / "data", patient.vendor) as gateway:
        findings = patient.findings(PORT=gateway.port)
    assert findings["port"].code == "ok"
    assert "a gateway is running" in findings["port"].message
    assert findings["events"].code == "ok"
    assert "the gateway at" in findings["events"].message


@pytest.mark.parametrize(("days", "code"), [(-1, "certificate"), (3, "certificate-ending"), (60, "ok")])
def test_the_gateways_own_certificate(patient, tmp_path, days, code):
    cert, key = make_certificate(tmp_path, "own", days=days)
    assert patient.findings(TLS_CERT_PATH=cert, TLS_KEY_PATH=key)["certificate"].code == code


def test_events_that_wait_for_long_and_dead_ones(patient):
    directory = patient.options["DATA_DIR"]
    asyncio.run(store_events(directory, dead=False))
    in_an_hour = Machine(now=lambda: time.time() + 3600, open_files=lambda: 65536)
    assert patient.findings(in_an_hour)["events"].code == "events-waiting"
    assert patient.findings()["events"].code == "ok"
    asyncio.run(store_events(directory, dead=True))
    assert patient.findings()["events"].code == "events-dead"


async def store_events(directory, *, dead):
    events = SqliteEvents(directory)
    await events.open()
    await events.append([NewChunk(1, b"{}")])
    if dead:
        chunks = await events.claim(10)
        await events.settle(chunks, dead=[(NewChunk(1, b"{}"), "refused")])
    await events.close()


def test_the_command_prints_each_line_and_the_remedy(tmp_path):
    result = run_doctor(SETTINGS_FILE=SAMPLE_SETTINGS, DATA_DIR=tmp_path, PORT=free_port())
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["ok", "configuration", "valid"]
    assert any(line.strip() == f"-> {REMEDIES['geo-wanted']}" for line in lines)
    assert re.fullmatch(r"\d+ ok, (1 warning|(0|[2-9]) warnings), 0 failed", lines[-1]), lines[-1]
    assert "\x1b" not in result.stdout


def test_a_configuration_that_cannot_be_used_is_a_finding_for_each_problem():
    result = run_doctor("--json", PORT="none", EVENT_ACK="maybe", SETTINGS_FILE=SAMPLE_SETTINGS)
    report = orjson.loads(result.stdout)
    assert (result.returncode, report["ok"]) == (1, False)
    assert [finding["message"].split()[0] for finding in report["findings"]] == ["PORT", "EVENT_ACK"]
    assert {finding["remedy"] for finding in report["findings"]} == {REMEDIES["configuration"]}


class Canned:
    """A server that answers every connection with these bytes."""

    def __init__(self, answer, context=None):
        self._answer = answer
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)

    def _run(self):
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            try:
                connection.settimeout(60)
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                if not self._answer.startswith(b"220"):
                    connection.recv(65536)
                connection.sendall(self._answer)
            except OSError:
                pass
            finally:
                connection.close()


def test_h9_the_limit_of_the_running_gateway_counts(tmp_path):
    """Row H9: a service has another limit than the shell in which the doctor runs."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        pid = gateway.status()["workers"][0]["pid"]
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        known = {"DATA_DIR": str(gateway.data_dir), "PORT": str(gateway.port), "HOST": "127.0.0.1"}
        known |= {"SETTINGS_FILE": str(SAMPLE_SETTINGS)}
        for limit, state in ((300, "fail"), (hard, "ok")):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
            deadline = time.monotonic() + 60
            while gateway.status()["workers"][0].get("open_files_limit", limit) != limit:
                assert time.monotonic() < deadline
            report = orjson.loads(run("doctor", "--json", **known).stdout)
            (finding,) = [finding for finding in report["findings"] if finding["check"] == "open files"]
            assert finding["state"] == state
            assert str(limit) in finding["message"]
            assert "another limit than this command" not in finding["message"]
