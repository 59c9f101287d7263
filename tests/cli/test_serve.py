"""The command `serve`: the log lines about the configuration and the host at its start."""

import http.client
import resource
import time
from contextlib import ExitStack

import orjson
import pytest
from process import SAMPLE_SETTINGS, Gateway


@pytest.fixture
def limit_of_open_files():
    """A function that sets the soft limit of this process."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def limited(tmp_path, limits):
    """A gateway with these limits of open files, as options of `ulimit`."""
    gateway = Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, LOG_LEVEL="ERROR")
    gateway.command = ["bash", "-c", f'ulimit {limits} && exec "$@"', "-", *gateway.command]
    return gateway


@pytest.mark.parametrize("limit", [300, 1500])
def test_p5_a_low_limit_is_logged_at_start_with_the_number_needed(tmp_path, limit):
    """Row P5. It is only a warning if a load balancer can open so many connections."""
    with limited(tmp_path, f"-n {limit}") as gateway:
        assert gateway.log().count("open files") == 1
        assert f"each process may open {limit} files, and 8192 are needed" in gateway.log()


def test_a_limit_that_can_be_raised_is_raised_and_not_logged(tmp_path):
    with limited(tmp_path, "-S -n 300") as gateway:
        assert gateway.status()["workers"][0]["open_files_limit"] == 8192
        assert "8192" not in gateway.log()


def test_g1_a_service_link_of_kubernetes_is_logged_once(tmp_path):
    """Row G1."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, REDIS_PORT="tcp://10.0.0.1:6379") as gateway:
        assert gateway.log().count("REDIS_PORT is a service link of Kubernetes; its port is used.") == 1
        assert "enableServiceLinks: false" in gateway.log()


def test_p4_connections_beyond_the_limit_of_open_files_get_a_503_and_one_log_line(tmp_path, limit_of_open_files):
    """Row P4: they were reset, without a trace in log and metrics."""
    with limited(tmp_path, "-n 300") as gateway:
        limit_of_open_files(4096)
        with ExitStack() as clients:
            first = connect(gateway, clients)
            rejected = [status_of(connect(gateway, clients)) for _ in range(300)].count(503)
            assert rejected > 0
            assert status_of(first) == 200, "a client that is connected is served"
            first.request("GET", "/status")
            status = orjson.loads(first.getresponse().read())
            (worker,) = status["workers"]
            assert worker["connections"] >= worker["connections_limit"] > 0
            assert status["last_error"].startswith("too many connections")
        wait_until(lambda: connections_of(gateway) == 0)
        assert gateway.get("/health")[0] == 200
        assert gateway.log().count("too many connections") == 1
        assert f'fme_requests_total{{method="other",route="other",status="503"}} {rejected}.0' in metrics(gateway)


def connect(gateway, clients):
    client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    clients.callback(client.close)
    client.connect()
    return client


def status_of(client):
    client.request("GET", "/health")
    response = client.getresponse()
    response.read()
    return response.status


def metrics(gateway):
    with ExitStack() as clients:
        client = connect(gateway, clients)
        client.request("GET", "/metrics")
        return client.getresponse().read().decode()


def connections_of(gateway):
    """Without the one that asks; one that gets a 503 is not a count either."""
    try:
        return gateway.status()["workers"][0]["connections"] - 1
    except (AssertionError, OSError):
        return -1


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
