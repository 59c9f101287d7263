"""The checks of the doctor, in the order of the report."""

import asyncio
from collections.abc import AsyncIterator

from tornado_gateway.cli.doctor.machine import (
    Machine,
    check_certificate,
    check_location,
    check_open_files,
    check_port,
)
from tornado_gateway.cli.doctor.remedies import FAIL, OK, Finding
from tornado_gateway.cli.doctor.store import (
    check_admin_token,
    check_data_dir,
    check_disk,
    check_events,
    check_redis,
    find_damaged,
)
from tornado_gateway.cli.doctor.vwo import check_server, check_settings
from tornado_gateway.config import Config

_THIS_MACHINE = Machine()


def finding_of_configuration(problem: str) -> Finding:
    return Finding("configuration", FAIL, "configuration", problem)


async def examine(config: Config, machine: Machine = _THIS_MACHINE) -> AsyncIterator[Finding]:
    """Yield all findings, each as soon as it is known."""
    yield Finding("configuration", OK, OK, "valid")
    finding, settings = await check_settings(config)
    yield finding
    if not config.is_offline and config.collect_url != config.upstream_url:
        yield (await check_server(config, machine, config.collect_url, "collector"))[0]
    if not config.is_offline:
        yield (await check_server(config, machine, config.upstream_url, "clock"))[1]
    yield await check_redis(config)
    yield await asyncio.to_thread(check_location, config, settings, machine)
    storage = check_data_dir(config.data_dir)
    yield storage
    if storage.state == OK:
        yield check_admin_token(config)
    if damaged := find_damaged(config.data_dir):
        yield damaged
    yield check_disk(config.data_dir, machine)
    yield await asyncio.to_thread(check_open_files, config, machine)
    yield await asyncio.to_thread(check_port, config)
    if config.tls_cert_path and config.tls_key_path:
        yield check_certificate(config.tls_cert_path, config.tls_key_path, machine)
    if storage.code != "data-dir":  # the events that wait can be counted on a full disk, too
        yield await check_events(config, machine)
