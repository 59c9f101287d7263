"""The command `serve`."""

import logging
from dataclasses import replace
from functools import partial

from tornado_gateway import logs
from tornado_gateway.cli.doctor.remedies import REMEDIES
from tornado_gateway.config import Config, environments_of, secrets_of
from tornado_gateway.console import admin_token
from tornado_gateway.errors import GatewayError
from tornado_gateway.process import worker
from tornado_gateway.process.announcement import farewell
from tornado_gateway.process.counters import new_counters
from tornado_gateway.process.open_files import FEW, is_sufficient, raise_limit, shortage
from tornado_gateway.process.parent import supervisor
from tornado_gateway.store import data_directory
from tornado_gateway.telemetry.claims import Claims

logger = logging.getLogger(__name__)


def serve(config: Config) -> int:
    """Run the gateway until it is stopped. Return the exit code."""
    secrets = [secret for environment in environments_of(config) for secret in environment.secrets]
    logs.set_up(config.log_level, config.log_format, [*secrets_of(config), *secrets])
    try:
        data_directory.secure(config.data_dir)
        if config.admin_token is None:  # once, here: all workers get the same token
            config = replace(config, admin_token=admin_token.ensure(config.data_dir))
            logs.hide(config.admin_token)
    except GatewayError as error:
        logger.error("the gateway cannot start: %s", error)
        return 1
    _log_ignored_variables(config)
    _log_open_files(raise_limit())
    config = replace(config, workers=config.worker_count)  # read once, because the quota of a container may change
    rows = supervisor.scoreboard_rows(config.workers)
    logs.share(Claims().claim)
    work = partial(worker.run, memory=new_counters(rows), environments=environments_of(config))
    return supervisor.run(config, work, on_stopped=partial(farewell.announce, config))


def _log_ignored_variables(config: Config) -> None:
    """Log variables without effect, in particular misspelt options."""
    for misspelt in config.misspelt:
        logger.warning("environment variable ignored: %s", misspelt)
    for link in config.service_links:
        logger.info("%s %s", link, REMEDIES["service-link"])


def _log_open_files(limit: int) -> None:
    """Log a limit that is too low: connections beyond it are rejected."""
    if not is_sufficient(limit):
        level = logging.ERROR if limit < FEW else logging.WARNING
        logger.log(level, "too few open files: %s. Raise LimitNOFILE of the service or ulimit -n.", shortage(limit))
