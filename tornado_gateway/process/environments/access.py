"""The names of an environment in requests, from its configuration."""

from tornado_gateway.config import EnvironmentConfig
from tornado_gateway.environments.access import Access


def build_access(environment: EnvironmentConfig) -> Access:
    config = environment.config
    return Access(
        environment.name,
        None if config.account_id is None else str(config.account_id),
        environment.sdk_keys,
        environment.hosts,
        environment.is_default,
        config.decision_required,
        config.webhook_token,
        config.cors_allowed_origins,
        config.internal_events,
        config.environment_name is not None,
    )
