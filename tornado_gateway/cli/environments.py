"""The commands `environments ...`, and the environments of ENVIRONMENTS_FILE in the output of others."""

import argparse
from typing import Any

from tornado_gateway.cli.output import counted, print_columns, print_json
from tornado_gateway.config import Config, EnvironmentConfig, environments_of, mask


def environments(config: Config, arguments: argparse.Namespace) -> int:
    """Run `environments list`."""
    found = environments_of(config)
    if arguments.json:
        print_json([about(one) for one in found])
        return 0
    rows = [
        (one.name, *config_columns(one.config), "yes" if one.is_default else "", ", ".join(one.hosts)) for one in found
    ]
    print_columns([("NAME", "ACCOUNT", "KEY", "DEFAULT", "HOSTS"), *rows])
    return 0


def config_columns(config: Config) -> tuple[str, str]:
    return config.account.id, mask(config.account.sdk_key) if config.account.sdk_key else ""


def about(environment: EnvironmentConfig) -> dict[str, Any]:
    """Return an environment as JSON, its keys masked."""
    account_id, key = config_columns(environment.config)
    return {
        "name": environment.name,
        "account_id": account_id,
        "sdk_key": key,
        "previous_sdk_keys": [mask(previous) for previous in environment.previous_sdk_keys],
        "default": environment.is_default,
        "hosts": list(environment.hosts),
    }


def line(environment: EnvironmentConfig) -> str:
    """Return an environment in words, its key masked."""
    account_id, key = config_columns(environment.config)
    previous = len(environment.previous_sdk_keys)
    facts = [
        f"account {account_id}",
        f"key {key}",
        counted(previous, "previous key") if previous else "",
        "default" if environment.is_default else "",
        f"hosts {', '.join(environment.hosts)}" if environment.hosts else "",
    ]
    return f"{environment.name}: {', '.join(fact for fact in facts if fact)}"
