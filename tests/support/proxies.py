"""Real nginx and haproxy for tests: in the foreground, with their own configuration, on free ports of loopback."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

# Debian installs both in /usr/sbin, which is not in the PATH of every user.
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx") or ""
HAPROXY = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy") or ""
START_SECONDS = 30

NGINX_CONF = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{gateway_port};
            {lines}
        }}
    }}
}}
"""
HAPROXY_CONF = """\
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen gateway
    bind 127.0.0.1:{port}
    {lines}
    server gateway 127.0.0.1:{gateway_port}
"""


@contextmanager
def nginx(directory: Path, port: int, gateway_port: int, lines: Sequence[str] = ()) -> Iterator[int]:
    """Without `lines` the plain `proxy_pass`, which sends no header of its own and replaces Host. Yields its port."""
    if not NGINX:
        pytest.skip("nginx is not installed")
    directory.mkdir(parents=True)
    file = directory / "nginx.conf"
    text = NGINX_CONF.format(
        directory=directory, port=port, gateway_port=gateway_port, lines="\n            ".join(lines)
    )
    file.write_text(text)
    with _running([NGINX, "-p", str(directory), "-e", "stderr", "-c", str(file)], directory, port):
        yield port


@contextmanager
def haproxy(directory: Path, port: int, gateway_port: int, lines: Sequence[str] = ()) -> Iterator[int]:
    """`lines` are added to the section of the gateway. Yields the port of haproxy."""
    if not HAPROXY:
        pytest.skip("haproxy is not installed")
    directory.mkdir(parents=True)
    file = directory / "haproxy.cfg"
    file.write_text(HAPROXY_CONF.format(port=port, gateway_port=gateway_port, lines="\n    ".join(lines)))
    with _running([HAPROXY, "-db", "-f", str(file)], directory, port):
        yield port


@contextmanager
def _running(command: Sequence[str], directory: Path, port: int) -> Iterator[None]:
    log_path = directory / "log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
