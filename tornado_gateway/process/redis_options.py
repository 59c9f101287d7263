"""Translate the configuration into the options of the connection to Redis. Used by workers and commands."""

from tornado_gateway.config import Config
from tornado_gateway.store.redis.options import RedisOptions, TlsOptions


def redis_options(config: Config) -> RedisOptions:
    return RedisOptions(
        address=(config.redis_host or "localhost", config.redis_port),
        is_cluster=config.redis_cluster,
        sentinels=config.redis_sentinels,
        sentinel_master=config.redis_sentinel_master or "",
        username=config.redis_username,
        password=config.redis_password,
        tls=_tls_options(config) if config.redis_enable_tls else None,
        timeout_seconds=config.socket_timeout_seconds,
    )


def _tls_options(config: Config) -> TlsOptions:
    return TlsOptions(
        ca_path=config.redis_tls_ca_path,
        cert_path=config.redis_tls_cert_path,
        key_path=config.redis_tls_key_path,
        verifies=config.redis_tls_reject_unauthorized,
    )
