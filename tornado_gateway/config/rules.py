"""Rules about several options."""

from collections.abc import Iterator

from tornado_gateway.config.options import BY_NAME, Config

# Options that belong to an environment, or that environments of a file would share
EXCLUDED = ("ACCOUNT_ID", "SDK_KEY", "SETTINGS_FILE", "WEBHOOK_TOKEN", "STORE_NAMESPACE")


def contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield violated rules about several options: their names, and the expected and actual value of the first."""
    c = config
    if c.environments_file is not None and c.environment_name is None:
        for name in EXCLUDED:
            if (value := getattr(c, BY_NAME[name].attribute)) is not None:
                yield (name,), "nothing, because ENVIRONMENTS_FILE is set", f'"{BY_NAME[name].shown(value)}"'
    for one, other, is_mutual in (
        ("ACCOUNT_ID", "SDK_KEY", True),
        ("MAXMIND_USER_ID", "MAXMIND_LICENSE_KEY", True),
        ("TLS_CERT_PATH", "TLS_KEY_PATH", True),
        ("REDIS_SENTINEL_MASTER", "REDIS_SENTINELS", True),
        ("REDIS_TLS_CERT_PATH", "REDIS_TLS_KEY_PATH", False),  # a certificate's file may hold its key as well
    ):
        has_one, has_other = (bool(getattr(c, BY_NAME[name].attribute)) for name in (one, other))
        if has_other and not has_one:
            yield (one, other), f"a value, because {other} is set", "nothing"
        if is_mutual and has_one and not has_other:
            yield (other, one), f"a value, because {one} is set", "nothing"
    needing_redis = ("REDIS_PASSWORD", "REDIS_USERNAME", "REDIS_ENABLE_TLS")
    if not c.uses_redis and (given := [name for name in needing_redis if getattr(c, BY_NAME[name].attribute)]):
        yield ("REDIS_HOST", "REDIS_SENTINELS", *given), f"a value, because {given[0]} is set", "nothing"
    if c.redis_cluster and c.redis_sentinels:
        yield ("REDIS_CLUSTER", "REDIS_SENTINELS"), "false, because REDIS_SENTINELS is set", "true"
    elif c.redis_cluster and not c.redis_host:
        yield ("REDIS_HOST", "REDIS_CLUSTER"), "a node of the cluster, because REDIS_CLUSTER is true", "nothing"
    if c.events_per_request > c.max_events_per_request:
        expected = f"at most MAX_EVENTS_PER_REQUEST ({c.max_events_per_request})"
        yield ("EVENTS_PER_REQUEST", "MAX_EVENTS_PER_REQUEST"), expected, f'"{c.events_per_request}"'
    if c.event_queue_limit < c.events_per_request:
        expected = f"at least EVENTS_PER_REQUEST ({c.events_per_request})"
        yield ("EVENT_QUEUE_LIMIT", "EVENTS_PER_REQUEST"), expected, f'"{c.event_queue_limit}"'
    if c.client_auth != "off" and not (c.sdk_key_auth or c.client_tokens or c.tokens_file):
        yield ("SDK_KEY_AUTH", "CLIENT_AUTH"), "true, because no client token is configured", "false"
    if "*" in c.cors_allowed_origins and len(c.cors_allowed_origins) > 1:
        shown = ",".join(c.cors_allowed_origins)
        yield ("CORS_ALLOWED_ORIGINS",), "either * or a list of origins", f'"{shown}"'
    if c.proxy_protocol and not c.trusted_proxies:
        yield ("TRUSTED_PROXIES", "PROXY_PROTOCOL"), "a value, because PROXY_PROTOCOL is set", "nothing"
    if c.port == 0 and c.workers != 1:
        yield ("WORKERS", "PORT"), "1, because every worker would use another free port with PORT=0", f'"{c.workers}"'
