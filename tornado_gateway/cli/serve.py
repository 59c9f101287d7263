"""The command `serve`."""

import logging
import sys
from dataclasses import replace
from functools import partial

from tornado_gateway import logs
from tornado_gateway.cli.client import Client
from tornado_gateway.config import OPTIONS, Config
from tornado_gateway.console import admin_token
from tornado_gateway.process import supervisor, worker
from tornado_gateway.process.counters import new_counters

logger = logging.getLogger(__name__)


def serve(config: Config) -> int:
    """Run the gateway until it is told to end. Return the exit code."""
    secrets = [getattr(config, option.attribute) for option in OPTIONS if option.secret]
    logs.set_up(config.log_level, config.log_format, [secret for secret in secrets if secret is not None])
    if config.admin_token is None:  # once, here: all workers get the same token
        try:
            config = replace(config, admin_token=admin_token.ensure(config.data_dir))
        except admin_token.AdminTokenError as error:
            logger.error("the gateway cannot start: %s", error)
            return 1
        logs.hide(config.admin_token)
    _announce_console(config)
    places = 2 * config.worker_count  # of the scoreboard: while a worker is replaced there are two
    return supervisor.run(config, partial(worker.run, memory=new_counters(places)))


def _announce_console(config: Config) -> None:
    """Print the sign-in link for a person at a terminal. A log, which others can read, gets no token."""
    client = Client(config)
    if sys.stderr.isatty() and config.log_format != "json":
        print(f"Console: {client.console_link()}", file=sys.stderr)
    else:
        logger.info("the console is %s/console; `tornado-gateway console-url` prints a sign-in link", client.url)
