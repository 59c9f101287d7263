"""What systemd hears, with a socket of the test in its place."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from process import SAMPLE_SETTINGS, Gateway

from tornado_gateway.process.parent import systemd


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("tell", "message"),
    [
        (systemd.ready, b"READY=1"),
        (systemd.stopping, b"STOPPING=1"),
        (systemd.ping, b"WATCHDOG=1"),
        (lambda: systemd.status("serving 12 connections"), b"STATUS=serving 12 connections"),
        (lambda: systemd.status("one\nREADY=1"), b"STATUS=one"),
    ],
)
def test_a_message_is_one_datagram(tell, message, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert tell()
        assert listener.recv(4096) == message


def test_an_abstract_socket_is_reached(monkeypatch):
    name = f"tornado-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert systemd.reloading()
        first, second = listener.recv(4096).split(b"\n")
        assert first == b"RELOADING=1"
        assert abs(int(second.removeprefix(b"MONOTONIC_USEC=")) / 1e6 - time.monotonic()) < 60


@pytest.mark.parametrize("address", ["", "nonsense", "/does/not/exist", "vsock:2:1234"])
def test_without_a_listener_nothing_happens(address, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.ready()


def test_a_listener_that_does_not_read_stops_nobody(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        deadline = time.monotonic() + 60
        while systemd.ping():
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [
        ("30000000", "", 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),  # systemd watches another process
        ("", "", None),
        ("0", "", None),
        ("soon", "", None),
    ],
)
def test_the_interval_is_half_of_what_is_granted(microseconds, pid, interval, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.watchdog_interval() == interval


def received(listener, until):
    """All messages up to the one that is waited for."""
    messages = []
    while until not in messages:
        messages.append(listener.recv(4096))
    return messages


def test_a_gateway_says_when_it_serves_that_it_lives_and_when_it_stops(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        options = {"NOTIFY_SOCKET": tmp_path / "notify", "WATCHDOG_USEC": "400000", "SETTINGS_FILE": SAMPLE_SETTINGS}
        with Gateway(tmp_path / "data", is_fresh=True, **options) as gateway:
            assert received(listener, b"READY=1") == [b"READY=1"]
            assert gateway.get("/ready")[0] == 200
            before = time.monotonic()
            for _ in range(5):
                assert listener.recv(4096) == b"WATCHDOG=1"
            assert time.monotonic() - before < 50 * 0.4, "far more seldom than systemd wants it"
            gateway.process.send_signal(signal.SIGTERM)
            assert b"READY=1" not in received(listener, b"STOPPING=1")
            assert gateway.process.wait(60) == 0


def test_a_gateway_that_stands_still_is_not_heard_any_more(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        options = {"NOTIFY_SOCKET": tmp_path / "notify", "WATCHDOG_USEC": "400000", "SETTINGS_FILE": SAMPLE_SETTINGS}
        with Gateway(tmp_path / "data", is_fresh=True, **options) as gateway:
            received(listener, b"WATCHDOG=1")
            gateway.process.send_signal(signal.SIGSTOP)
            listener.settimeout(1)
            with pytest.raises(TimeoutError):
                received(listener, b"nothing more")
            gateway.process.send_signal(signal.SIGCONT)


def test_the_module_needs_nothing():
    """So that the parent of several workers, which has no event loop, can use it."""
    module = "tornado_gateway.process.parent.systemd"
    code = f"import sys; had = set(sys.modules); import {module}; print(*set(sys.modules) - had)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "tornado", "logging"} & set(loaded)
