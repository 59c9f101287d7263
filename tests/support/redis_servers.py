"""Real Redis servers for tests, on free ports of the loopback interface."""

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from ports import free_port

REDIS_SERVER = shutil.which("redis-server") or ""
START_SECONDS = 60  # far more than any start takes
PATIENCE_MS = 5000  # with servers on a loaded machine; a cluster with more takes longer to start
MASTER = "gateway"
SLOTS = 16384
needs_redis_server = pytest.mark.skipif(not REDIS_SERVER, reason="redis-server is not installed")


class RedisServer:
    """One `redis-server` that keeps its port over restarts; a context manager that leaves no process behind.

    `options` are lines of redis.conf: `maxmemory="10mb"`; `lines` are such lines as they are. Nothing is written to
    disk unless an option says so, so that a restart comes back empty.
    """

    def __init__(
        self,
        directory: Path,
        *lines: str,
        is_sentinel: bool = False,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.port = free_port()
        self.password = options.get("requirepass")
        self._directory = directory
        self._flags = ["--sentinel"] if is_sentinel else ["--save", ""]
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": directory, **options}
        self._lines = [*(f"{name.replace('_', '-')} {value}" for name, value in settings.items()), *lines]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / "redis.conf"
        file.write_text("\n".join(self._lines) + "\n")
        with (self._directory / "log").open("ab") as log:
            command = [REDIS_SERVER, str(file), *self._flags]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment
            )
        wait_until(lambda: self._process is None or self._process.poll() is not None or self._listens())
        assert self._process.poll() is None, (self._directory / "log").read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: object) -> Any:
        """The raw reply to one command, over a connection of its own."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS) as connection,
            connection.makefile("rb") as stream,
        ):
            if self.password:
                connection.sendall(_packed("AUTH", self.password))
                _read_reply(stream)
            connection.sendall(_packed(*words))
            return _read_reply(stream)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _packed(*words: object) -> bytes:
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _read_reply(stream: Any) -> Any:
    line = stream.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise AssertionError(rest.decode())
    if kind == b"+":
        return rest.decode()
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    return None if rest == b"-1" else [_read_reply(stream) for _ in range(int(rest))]


def wait_until(condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# ---- Deployments -----------------------------------------------------------------------------------------------------


@dataclass
class Deployment:
    """Servers that belong together, and the options of a gateway that uses them."""

    servers: Sequence[RedisServer]  # that hold data
    options: dict[str, Any]

    def flush(self) -> None:
        for server in self.servers:
            with suppress(AssertionError):  # replicas refuse it
                server.command("FLUSHALL")


@contextmanager
def standalone(directory: Path) -> Iterator[Deployment]:
    with RedisServer(directory) as server:
        yield Deployment([server], {"redis_host": "127.0.0.1", "redis_port": server.port})


@contextmanager
def tls(directory: Path) -> Iterator[Deployment]:
    """Redis with TLS that wants to see a certificate of its clients; the test's own commands go to the plain port."""
    files = make_certificates(directory)
    port = free_port()
    options: dict[str, Any] = {
        "tls_port": port,
        "tls_ca_cert_file": files["ca.pem"],
        "tls_cert_file": files["server.pem"],
        "tls_key_file": files["server.key"],
    }
    with RedisServer(directory, **options) as server:
        given = {
            "redis_host": "127.0.0.1",
            "redis_port": port,
            "redis_enable_tls": True,
            "redis_tls_ca_path": files["ca.pem"],
            "redis_tls_cert_path": files["client.pem"],
            "redis_tls_key_path": files["client.key"],
            "redis_tls_reject_unauthorized": True,
        }
        yield Deployment([server], given)


@contextmanager
def behind_sentinels(directory: Path, silent_ms: int = PATIENCE_MS, **options: Any) -> Iterator[Deployment]:
    """A master, a replica and three Sentinels; one of those that the gateway is told of does not exist.

    A master that is silent for `silent_ms` loses its role: few are for tests of that alone.
    """
    options |= {"repl_diskless_sync_delay": 0}
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer(directory / "0", **options))
        replica = stack.enter_context(RedisServer(directory / "1", replicaof=f"127.0.0.1 {master.port}", **options))
        wait_until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        lines = [
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 2",
            f"sentinel down-after-milliseconds {MASTER} {silent_ms}",
            f"sentinel failover-timeout {MASTER} 3000",
        ]
        passwords = {"requirepass": master.password} if master.password else {}
        if master.password:
            lines += [f"sentinel auth-pass {MASTER} {master.password}", f"sentinel sentinel-pass {master.password}"]
        sentinels = [
            stack.enter_context(RedisServer(directory / f"sentinel-{i}", *lines, is_sentinel=True, **passwords))
            for i in range(3)
        ]
        for sentinel in sentinels:
            wait_until(partial(_sentinel_knows, sentinel, replicas=1, sentinels=2))
        addresses = [("127.0.0.1", port) for port in (free_port(), *(s.port for s in sentinels))]
        given = {"redis_sentinels": tuple(addresses), "redis_sentinel_master": MASTER}
        yield Deployment([master, replica], given)


def _sentinel_knows(sentinel: RedisServer, replicas: int, sentinels: int) -> bool:
    flat = sentinel.command("SENTINEL", "MASTER", MASTER)
    state = dict(zip(flat[::2], flat[1::2], strict=True))
    return int(state[b"num-slaves"]) >= replicas and int(state[b"num-other-sentinels"]) >= sentinels


@contextmanager
def cluster(directory: Path, silent_ms: int = PATIENCE_MS) -> Iterator[Deployment]:
    """Three masters with a third of the slots each. The cluster is down when one is silent for `silent_ms`."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(3)]
        nodes = [
            stack.enter_context(
                RedisServer(directory / str(i), cluster_enabled="yes", cluster_node_timeout=silent_ms, cluster_port=bus)
            )
            for i, bus in enumerate(buses)
        ]
        for i, node in enumerate(nodes):
            node.command("CLUSTER", "ADDSLOTS", *range(i * SLOTS // 3, (i + 1) * SLOTS // 3))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for node, bus in zip(nodes[1:], buses[1:], strict=True):
            nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in nodes:
            wait_until(partial(_cluster_is_ready, node))
        yield Deployment(nodes, {"redis_host": "127.0.0.1", "redis_port": nodes[0].port, "redis_cluster": True})


def _cluster_is_ready(node: RedisServer) -> bool:
    info = node.command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


DEPLOYMENTS = {"redis": standalone, "redis-tls": tls, "redis-sentinel": behind_sentinels, "redis-cluster": cluster}


def make_certificates(directory: Path) -> dict[str, Path]:
    """An authority, and what it has signed: a server for 127.0.0.1, a client. Another authority that signed nothing."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # which Python 3.13 wants to see
    for name in ("ca", "other"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", *usage, *files)
    for name in ("server", "client"):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (directory / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-days", "2", "-out", f"{name}.pem")
    return {path.name: path for path in directory.iterdir()}


# ---- A network that fails --------------------------------------------------------------------------------------------


class Proxy:
    """Passes bytes on to a server on loopback; counts what clients send and can lose what the server answers."""

    def __init__(self, to_port: int) -> None:
        self.port = 0
        self.sent = 0  # how often a client has sent something
        self.loses_answers = False
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        while self._writers:
            self.cut()  # again, because connections that were accepted just before are served only now
            await asyncio.sleep(0.01)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            self._writers.add(up_writer)
            try:
                await asyncio.gather(self._pass_up(reader, up_writer), self._pass_down(up_reader, writer))
            finally:
                up_writer.close()
                self._writers.discard(up_writer)
        except OSError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _pass_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.sent += 1
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _pass_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.loses_answers:
                writer.write(data)
                await writer.drain()
        writer.close()
