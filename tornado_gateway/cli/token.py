"""The command `token new`."""

import argparse
import json
import sys

from tornado_gateway.environments.client_tokens import BROWSER, digest_of, new_token


def new(arguments: argparse.Namespace) -> int:
    """Print a new token to stdout, once, and its block for TOKENS_FILE, which does not contain the token."""
    if arguments.kind == BROWSER and not (arguments.origin and arguments.environment):
        print("a browser token needs --origin and --environment", file=sys.stderr)
        return 2
    token = new_token(arguments.kind)
    block = block_of(arguments, token)
    print(f"Token, which is not shown again:\n\n{token}\n\nBlock for TOKENS_FILE:\n\n{block}")
    return 0


def block_of(arguments: argparse.Namespace, token: str) -> str:
    """Return the TOML block of a token. JSON's texts and lists are valid TOML."""
    rows: dict[str, object] = {
        "id": arguments.id,
        "hash": f"sha256:{digest_of(token.encode()).hex()}",
        "kind": arguments.kind,
        "environments": arguments.environment,
        "scopes": arguments.scope,
        "origins": arguments.origin,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in rows.items() if value]
    expires = [f"expires = {arguments.expires:%Y-%m-%dT%H:%M:%SZ}"] if arguments.expires else []
    return "\n".join(["[[token]]", *lines, *expires])
