"""The commands `environments ...`, and the environments of ENVIRONMENTS_FILE in the output of others."""

import argparse
import asyncio
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tornado_gateway.cli.data_owner import become_owner
from tornado_gateway.cli.output import print_columns, print_json
from tornado_gateway.cli.stored_events import is_in_use, open_stored_events
from tornado_gateway.config import Config, EnvironmentConfig, environments_of, mask
from tornado_gateway.environments import client_tokens
from tornado_gateway.errors import ConfigError, GatewayError
from tornado_gateway.process.environments.stores import DIRECTORY, data_dir_of
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.quantities import counted


def environments(config: Config, arguments: argparse.Namespace) -> int:
    """Run `environments list` or `environments forget`."""
    if arguments.action == "forget":
        return _forget(config, arguments)
    return _list(config, arguments)


def selected(config: Config, name: str | None) -> Config:
    """Return the configuration of an environment, of the default one (or the first) without a name."""
    found = environments_of(config)
    if name is None:
        return next((one for one in found if one.is_default), found[0]).config
    for one in found:
        if one.name == name:
            return one.config
    raise ConfigError([f"--environment (flag): expected one of {', '.join(one.name for one in found)}, got {name!r}"])


def _list(config: Config, arguments: argparse.Namespace) -> int:
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


# --- Stored data ---


def _forget(config: Config, arguments: argparse.Namespace) -> int:
    """Return 1, and delete nothing, if the environment is in use, unknown or ambiguous, or has events."""
    become_owner(config.data_dir)
    try:
        removed = _removed(config, arguments.name, arguments.account)
        asyncio.run(_delete(removed, with_events=arguments.with_events))
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Deleted the data of {arguments.name} (account {removed.account_id}).")
    return 0


def _removed(config: Config, name: str, account_id: int | None) -> Config:
    """Return the configuration that the environment had, as far as it names its data."""
    if any(one.name == name for one in environments_of(config)):
        raise GatewayError(f"{name} is an environment of {config.environments_file}. Remove it there first.")
    known = [account_id] if account_id is not None else _accounts(config, name)
    if len(known) != 1:
        found = f"its data in DATA_DIR is of {len(known)} accounts" if known else "DATA_DIR has no data of it"
        raise GatewayError(f"The account of {name} is not known: {found}. Set --account.")
    return replace(config, account_id=known[0], environment_name=name)


def _accounts(config: Config, name: str) -> Sequence[int]:
    pattern = re.compile(rf"([0-9]+)-{re.escape(name)}")
    found = [pattern.fullmatch(path.name) for path in (config.data_dir / DIRECTORY).glob("*")]
    return [int(match[1]) for match in found if match is not None]


async def _delete(config: Config, *, with_events: bool) -> None:
    directory = data_dir_of(config)
    if is_in_use(directory):
        raise GatewayError(f"A gateway uses {directory}: its events are still being delivered. Try again later.")
    async with open_stored_events(config) as stored:
        depth = await stored.depth()
    if (depth.waiting or depth.dead) and not with_events:
        events = f"{counted(depth.waiting, 'event')} waiting, {counted(depth.dead, 'dead event')}"
        raise GatewayError(f"Not deleted: {events}. --with-events deletes them too.")
    if config.uses_redis:
        await _delete_keys(config)
    shutil.rmtree(directory, ignore_errors=True)


async def _delete_keys(config: Config) -> None:
    from tornado_gateway.store.redis.link import count_living, delete_namespace, make_link  # not needed without Redis

    link = make_link(redis_options(config), config.namespace)
    link.open()
    try:
        if living := await count_living(link, config.namespace):
            workers = counted(living, "worker")
            raise GatewayError(f"{workers} of a gateway use its data in Redis. Remove it from their file first.")
        await delete_namespace(link, config.namespace)
    finally:
        await link.close()


# --- Client tokens ---


def new_token(arguments: argparse.Namespace) -> int:
    """Print a new token to stdout, once, and its block for TOKENS_FILE, which does not contain the token."""
    if arguments.kind == client_tokens.BROWSER and not (arguments.origin and arguments.environment):
        print("a browser token needs --origin and --environment", file=sys.stderr)
        return 2
    token = client_tokens.new_token(arguments.kind)
    block = block_of(arguments, token)
    print(f"Token, which is not shown again:\n\n{token}\n\nBlock for TOKENS_FILE:\n\n{block}")
    return 0


def block_of(arguments: argparse.Namespace, token: str) -> str:
    """Return the TOML block of a token. JSON's texts and lists are valid TOML."""
    rows: dict[str, object] = {
        "id": arguments.id,
        "hash": f"sha256:{client_tokens.digest_of(token.encode()).hex()}",
        "kind": arguments.kind,
        "environments": arguments.environment,
        "scopes": arguments.scope,
        "origins": arguments.origin,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in rows.items() if value]
    expires = [f"expires = {arguments.expires:%Y-%m-%dT%H:%M:%SZ}"] if arguments.expires else []
    return "\n".join(["[[token]]", *lines, *expires])
