"""The command `serve`: the log lines about the configuration and the host at its start."""

import resource

import pytest
from process import SAMPLE_SETTINGS, Gateway


@pytest.fixture
def limit_of_open_files():
    """A function that sets the soft limit of processes that the test starts."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_p5_a_low_limit_is_logged_at_start_with_the_number_needed(tmp_path, limit_of_open_files):
    """Row P5."""
    limit_of_open_files(300)
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, LOG_LEVEL="ERROR") as gateway:
        assert gateway.log().count("open files") == 1
        assert "each process may open 300 files, and 8192 are needed" in gateway.log()


def test_a_sufficient_limit_is_not_logged(tmp_path, limit_of_open_files):
    limit_of_open_files(8192)
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        assert "8192" not in gateway.log()


def test_g1_a_service_link_of_kubernetes_is_logged_once(tmp_path):
    """Row G1."""
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, REDIS_PORT="tcp://10.0.0.1:6379") as gateway:
        assert gateway.log().count("REDIS_PORT is a Kubernetes service link") == 1
