"""Options of the connection to Redis. A process can describe the connection without loading a client."""

from dataclasses import dataclass, field
from pathlib import Path

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The files of a TLS connection, and whether the server's certificate and host name are verified."""

    ca_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    verifies: bool = True


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """A Redis: standalone or a Cluster at `address`, or the master that `sentinels` name."""

    address: Address = ("localhost", 6379)
    is_cluster: bool = False
    sentinels: tuple[Address, ...] = ()
    sentinel_master: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: TlsOptions | None = None
    timeout_seconds: float = 5.0  # of one exchange with Redis
