"""Rows D11 and D14: the gateway serves on for DRAIN_SECONDS after SIGTERM; HOST=:: takes both families."""

import contextlib
import os
import signal
import socket
import time

import pytest
from process import ROOT, Gateway
from sdk.wire import exchange, parse, request_bytes

SETTINGS = ROOT / "conf" / "sample-settings.json"


def ready_status(gateway):
    return gateway.get("/ready")[0]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_d11_after_sigterm_new_connections_are_served_while_not_ready(tmp_path, workers):
    """Row D11. A second signal ends the time."""
    options = {"SETTINGS_FILE": SETTINGS, "DRAIN_SECONDS": 600, "WORKERS": workers}
    with Gateway(tmp_path / "d", is_fresh=True, **options) as gateway:
        wait_until(lambda: ready_status(gateway) == 200 and gateway.log().count(") is ready") == workers)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ready_status(gateway) == 503)
        for _ in range(20):
            assert gateway.get("/health")[0] == 200
        assert gateway.process.poll() is None
        wait_until(lambda: gateway.log().count("load balancers") == workers)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0


def test_d11_the_time_ends_by_itself(tmp_path):
    with Gateway(tmp_path / "d", is_fresh=True, SETTINGS_FILE=SETTINGS, DRAIN_SECONDS=0.2) as gateway:
        assert gateway.terminate() == 0


def test_d11_an_interrupt_does_not_wait(tmp_path):
    with Gateway(tmp_path / "d", is_fresh=True, SETTINGS_FILE=SETTINGS, DRAIN_SECONDS=600) as gateway:
        gateway.process.send_signal(signal.SIGINT)
        with contextlib.suppress(ProcessLookupError):
            for pid in gateway.worker_pids():
                signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGINT)
        assert gateway.process.wait(60) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_d14_the_unspecified_address_of_ipv6_takes_both_families(tmp_path, workers):
    """Row D14."""
    with Gateway(tmp_path / "d", is_fresh=True, SETTINGS_FILE=SETTINGS, HOST="::", WORKERS=workers) as gateway:
        assert parse(exchange(gateway.port, request_bytes("GET", "/health", b"", {})))[0].status == 200
        with socket.create_connection(("::1", gateway.port), 60) as connection:
            connection.sendall(request_bytes("GET", "/health", b"", {}))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
