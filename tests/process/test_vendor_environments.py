"""The environments of the two Compose files that the vendor documents for its image, unchanged, with our command.

The gateway gets ready, and each difference that docs/migrating.md names is in its log or in the report of the doctor.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from commands import run, run_doctor
from process import ROOT, Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Vendor

from tornado_gateway.cli.doctor.volume import check_volume
from tornado_gateway.config import OPTIONS

COMMON = {
    "POLLING_TIME": "60000",
    "MAXMIND_USER_ID": "",
    "MAXMIND_LICENSE_KEY": "",
    "CORS_CONFIG_REQUIRED": "false",
    "DECISION_REQUIRED": "false",
    "LOG_LEVEL": "ERROR",
    "REDIS_ENABLE_TLS": "false",
    "REDIS_TLS_CA_PATH": "",
    "REDIS_TLS_KEY_PATH": "",
    "REDIS_TLS_CERT_PATH": "",
    "REDIS_TLS_REJECT_UNAUTHORIZED": "false",
}
WITH_REDIS = COMMON | {"REDIS_HOST": "redis", "REDIS_PORT": "6379"}
EXISTING_REDIS = COMMON | {
    "REDIS_HOST": "",
    "REDIS_PORT": "",
    "REDIS_PASSWORD": "",
}  # as they are before they are filled in
NAMES = {option.name for option in OPTIONS}
MIGRATING = (ROOT / "docs" / "migrating.md").read_text()


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """As its image starts it: without an append-only file."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def volume():
    """A directory in memory, which is lost as that of a container without a volume is."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    directory = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(directory)
    shutil.rmtree(directory)


def account(vendor):
    document = sample_document()
    return {"ACCOUNT_ID": document["accountId"], "SDK_KEY": document["sdkKey"], "UPSTREAM_URL": vendor.url}


def on_loopback(environment, redis):
    """The network of Compose resolves the name of the service; here it is a server of the test."""
    assert environment["REDIS_HOST"] == "redis"
    return environment | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis.port)}


def doctor(environment, data_dir, gateway):
    return run_doctor(**environment, DATA_DIR=data_dir, HOST="127.0.0.1", PORT=gateway.port)


@needs_redis_server
def test_with_a_redis_of_the_compose_file(tmp_path, vendor, redis):
    environment = on_loopback(WITH_REDIS, redis) | account(vendor)
    with Gateway(tmp_path / "data", **environment) as gateway:
        assert gateway.get("/ready")[0] == 200
        status, refused = gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "u"})
        report = doctor(environment, tmp_path / "data", gateway)
    assert status == 403
    assert "DECISION_REQUIRED" in str(refused)
    assert report.returncode == 0, report.stdout + report.stderr
    assert "DECISION_REQUIRED=false" in report.stdout
    assert "appendonly" in report.stdout
    assert "appendonly yes" in MIGRATING


def test_with_the_options_of_an_existing_redis_left_empty(tmp_path, vendor):
    environment = EXISTING_REDIS | account(vendor)
    with Gateway(tmp_path / "data", **environment) as gateway:
        assert gateway.get("/ready")[0] == 200
        report = doctor(environment, tmp_path / "data", gateway)
    assert report.returncode == 0, report.stdout + report.stderr
    assert "not configured: the embedded store in DATA_DIR is used" in report.stdout


@needs_redis_server
def test_with_the_options_of_an_existing_redis_filled_in(tmp_path, vendor):
    with RedisServer(tmp_path / "redis", requirepass="a-password", appendonly="yes") as server:
        filled = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port), "REDIS_PASSWORD": "a-password"}
        environment = EXISTING_REDIS | filled | account(vendor)
        with Gateway(tmp_path / "data", **environment) as gateway:
            assert gateway.get("/ready")[0] == 200
            report = doctor(environment, tmp_path / "data", gateway)
    assert report.returncode == 0, report.stdout + report.stderr
    assert "redis-loses" not in report.stdout
    assert "appendonly" not in report.stdout


def test_a_data_directory_that_is_lost_with_the_container_is_named(vendor, volume):
    environment = EXISTING_REDIS | account(vendor)
    with Gateway(volume / "data", **environment) as gateway:
        assert gateway.get("/ready")[0] == 200
        report = doctor(environment, volume / "data", gateway)
    assert f"{volume / 'data'} is in memory" in report.stdout
    assert "Mount a persistent volume with a name at DATA_DIR" in report.stdout
    assert "Mount a persistent volume" in MIGRATING


@pytest.mark.parametrize("where", ["file", "directory"])
def test_a_certificate_that_the_user_of_the_image_cannot_read_is_named(tmp_path, vendor, where):
    """Files that are mounted at /certs often belong to root, and the gateway runs as user 10001."""
    certs = tmp_path / "certs"
    certs.mkdir()
    (certs / "ca.crt").write_text("certificate")
    (certs / "ca.crt" if where == "file" else certs).chmod(0)
    environment = (
        WITH_REDIS | account(vendor) | {"REDIS_ENABLE_TLS": "true", "REDIS_TLS_CA_PATH": str(certs / "ca.crt")}
    )
    # root may read all files, unless it gives up these capabilities
    before = "setpriv --bounding-set -dac_override,-dac_read_search --" if os.getuid() == 0 else ""
    report = run_doctor(
        before=f'exec {before} bash -c \'exec "$@"\' - "$@";', **environment, DATA_DIR=tmp_path / "data"
    )
    certs.chmod(0o700)
    named = f'"{certs / "ca.crt"}", which user {os.getuid()} is not permitted to read'
    assert f"REDIS_TLS_CA_PATH (environment): expected a file that can be read, got {named}" in report.stdout
    assert "Traceback" not in report.stderr
    assert "user 10001" in MIGRATING


@needs_redis_server
def test_the_log_names_a_redis_that_can_lose_events(tmp_path, vendor, redis):
    environment = on_loopback(WITH_REDIS, redis) | account(vendor) | {"LOG_LEVEL": "INFO"}
    with Gateway(tmp_path / "data", **environment) as gateway:
        assert gateway.get("/ready")[0] == 200
        assert "appendonly" in gateway.log()


def test_variables_of_the_vendor_are_options():
    assert set(COMMON | WITH_REDIS | EXISTING_REDIS) <= NAMES
    assert run("check", SETTINGS_FILE=str(ROOT / "conf" / "sample-settings.json"), **COMMON).returncode == 0


DISK = "29 1 254:0 / / rw,relatime - ext4 /dev/vda rw"
DOCKER = "29 1 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l"
VOLUMES = "/var/lib/docker/volumes"


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        (DISK, None),
        (DOCKER, "in the file system of the container, which is deleted with it"),
        (f"{DOCKER}\n40 29 254:0 {VOLUMES}/gateway-data/_data /data rw - ext4 /dev/vda rw", None),
        (f"{DOCKER}\n40 29 254:0 {VOLUMES}/{'0f' * 32}/_data /data rw - ext4 /dev/vda rw", "an anonymous volume"),
        (f"{DOCKER}\n40 29 254:0 {VOLUMES}/{'0f' * 32}/_data /database rw - ext4 /dev/vda rw", "in the file system"),
        (f"{DOCKER}\n40 29 254:0 /srv/data /data rw shared:1 master:2 - ext4 /dev/vda rw", None),
        (f"{DOCKER}\n40 29 0:3 / /data rw - tmpfs tmpfs rw", "in memory (tmpfs)"),
        (f"{DOCKER}\n40 29 0:3 / /data rw - tmpfs tmpfs rw\n41 40 8:1 / /data rw - xfs /dev/sdb rw", None),
        (
            f"{DOCKER}\n40 29 8:1 /pods/1/volumes/kubernetes.io~empty-dir/data /data rw - ext4 /dev/sda1 rw",
            "an emptyDir",
        ),
        ("", None),
    ],
)
def test_a_volume_that_is_deleted_with_its_container_is_recognized(mounts, reason):
    finding = check_volume(Path("/data"), mounts)
    assert (finding is None) == (reason is None)
    if finding:
        assert finding.message.startswith(f"/data is {reason}")


def test_a_mount_point_with_a_blank_is_recognized():
    mounts = f"{DISK}\n40 29 0:3 / /my\\040data rw - tmpfs tmpfs rw"
    assert check_volume(Path("/my data/gateway"), mounts) is not None
