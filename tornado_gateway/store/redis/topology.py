"""Routes to Redis: the node to connect to, standalone, behind Sentinels or in a Cluster."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from redis import exceptions as errors
from redis.asyncio import Connection, ConnectionPool, Redis, Sentinel, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from tornado_gateway.store.redis.options import Address, RedisOptions, TlsOptions

HEALTH_CHECK_SECONDS = 30


def route_to(options: RedisOptions, tag: str) -> "Route":
    client: dict[str, Any] = {
        "username": options.username,
        "password": options.password,
        "retry": Retry(NoBackoff(), 0),  # see Link
        "socket_timeout": None,  # Link bounds the whole exchange
        "socket_connect_timeout": None,
        "health_check_interval": HEALTH_CHECK_SECONDS,
        "protocol": 2,
    }
    tls = _tls_arguments(options.tls) if options.tls is not None else {}
    timeout = options.timeout_seconds
    if options.sentinels:
        return SentinelRoute(options.sentinels, options.sentinel_master, client, tls, timeout)
    if options.is_cluster:
        return ClusterRoute(options.address, key_slot(tag.encode()), client, tls, timeout)
    return Route(options.address, client, tls)


def _tls_arguments(tls: TlsOptions) -> dict[str, Any]:
    files = {"ssl_ca_certs": tls.ca_path, "ssl_certfile": tls.cert_path, "ssl_keyfile": tls.key_path}
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED if tls.verifies else ssl.CERT_NONE,
        "ssl_check_hostname": tls.verifies,
        **{name: str(path) for name, path in files.items() if path is not None},
    }


class Route:
    """The route to one Redis at a fixed address."""

    def __init__(self, address: Address, options: Mapping[str, Any], tls: Mapping[str, Any]) -> None:
        self.name = f"Redis at {address[0]}:{address[1]}"
        self._address = address
        self._options = options
        self._tls = tls

    def client(self) -> Redis:
        return self._node(self._address)

    def forget(self) -> None:
        """Find the node again for the next connection, because it may be the wrong one."""

    async def close(self) -> None:
        pass

    def _node(self, address: Address, **options: Any) -> Redis:
        host, port = address
        return Redis(host=host, port=port, **{**self._options, **options}, ssl=bool(self._tls), **self._tls)


class SentinelRoute(Route):
    """The route to the master that Sentinels name.

    Sentinels are reached with TLS if the master is. Their password, if they have one, is the master's.
    """

    def __init__(
        self,
        sentinels: Sequence[Address],
        master: str,
        options: Mapping[str, Any],
        tls: Mapping[str, Any],
        timeout: float,
    ) -> None:
        super().__init__(sentinels[0], options, tls)
        self.name = f"Redis master {master} (Sentinel)"
        self._sentinels = sentinels
        self._master = master
        self._step = timeout / (len(sentinels) + 1)  # a silent one must not use up the time
        self._sentinel: Sentinel | None = None

    def client(self) -> Redis:
        sentinel = self._sentinel = Sentinel([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
        limits = {"socket_timeout": self._step, "socket_connect_timeout": self._step}
        for user, password in self._credentials():
            sentinel.sentinels += [
                self._node(address, **limits, username=user, password=password) for address in self._sentinels
            ]
        client: Redis = sentinel.master_for(self._master, **self._options, ssl=bool(self._tls), **self._tls)
        return client

    async def close(self) -> None:
        if self._sentinel is not None:
            await asyncio.gather(*(node.aclose() for node in self._sentinel.sentinels))
            self._sentinel = None

    def _credentials(self) -> list[tuple[str | None, str | None]]:
        """Return credentials to try in order: Sentinels without a password reject one."""
        given = (self._options["username"], self._options["password"])
        return [(None, None), given] if given[1] else [(None, None)]


class ClusterRoute(Route):
    """The route to the node of a Cluster that has the account's slot. An account needs one slot only."""

    def __init__(
        self, first: Address, slot: int, options: Mapping[str, Any], tls: Mapping[str, Any], timeout: float
    ) -> None:
        super().__init__(first, options, tls)
        self.name = f"Redis Cluster at {first[0]}:{first[1]}"
        self._slot = slot
        self._step = timeout / 3  # a silent node must not use up the time
        self._nodes = [first]
        self._owner: Address | None = None
        self._finding = asyncio.Lock()

    def client(self) -> Redis:
        kind = _SlotSSLConnection if self._tls else _SlotConnection
        pool = ConnectionPool(connection_class=kind, find=self.owner, **self._options, **self._tls)
        return Redis.from_pool(pool)

    def forget(self) -> None:
        if self._owner is not None:  # it may be dead: ask the others first
            self._nodes = [*(node for node in self._nodes if node != self._owner), self._owner]
            self._owner = None

    async def owner(self) -> Address:
        async with self._finding:
            if self._owner is None:
                self._owner = await self._find()
            return self._owner

    async def _find(self) -> Address:
        failure: Exception = errors.ConnectionError("no node")
        for address in list(self._nodes):
            client = self._node(address, socket_timeout=self._step, socket_connect_timeout=self._step)
            client.response_callbacks.clear()
            try:
                ranges = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (errors.RedisError, OSError) as error:
                failure = error
                self._nodes = [*(node for node in self._nodes if node != address), address]
                continue
            finally:
                await client.aclose()
            nodes = {tuple(node[:2]): None for _, _, *owners in ranges for node in owners}
            self._nodes = [_address(node, address) for node in nodes] or self._nodes
            for first, last, owner, *_ in ranges:
                if first <= self._slot <= last:
                    return _address(owner, address)
            failure = errors.ClusterDownError(f"no node has slot {self._slot}")
        raise failure


def _address(node: Sequence[Any], asked: Address) -> Address:
    """Return the address of a node. One that does not know its own host leaves it empty: it is the one that replied."""
    host = node[0].decode() if node[0] else asked[0]
    return host, int(node[1])


class _SlotConnection(Connection):
    """Connects to the node that has the slot at that moment."""

    def __init__(self, *, find: Callable[[], Awaitable[Address]], **options: Any) -> None:
        self._find = find
        super().__init__(**options)

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._find()
        await super().connect()  # type: ignore[no-untyped-call]


class _SlotSSLConnection(_SlotConnection, SSLConnection):
    pass
