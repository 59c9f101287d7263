"""The checks of the doctor, in the order of the report."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from tornado_gateway import core
from tornado_gateway.cli.doctor.gateway import ask_gateway
from tornado_gateway.cli.doctor.machine import (
    Machine,
    check_certificate,
    check_decisions,
    check_location,
    check_open_files,
    check_port,
    estimate_memory,
)
from tornado_gateway.cli.doctor.remedies import OK, WARN, Finding
from tornado_gateway.cli.doctor.store import (
    check_admin_token,
    check_data_dir,
    check_disk,
    check_events,
    check_redis,
    find_damaged,
)
from tornado_gateway.cli.doctor.volume import check_volume
from tornado_gateway.cli.doctor.vwo import Looked, check_server, check_settings
from tornado_gateway.config import Config, EnvironmentConfig, environments_of
from tornado_gateway.errors import ACCOUNT_OPTIONS

PARALLEL_CHECKS = 8  # of settings

_THIS_MACHINE = Machine()


async def examine(config: Config, machine: Machine = _THIS_MACHINE) -> AsyncIterator[Finding]:
    """Yield all findings, each as soon as it is known: first the problems of the gateway, if one runs."""
    reported = await asyncio.to_thread(ask_gateway, config)
    for finding in () if reported is None else reported.findings():
        yield finding
    async for finding in _checks(config, machine):
        settled = finding if reported is None else reported.settle(finding)
        if settled is not None:
            yield settled


async def _checks(config: Config, machine: Machine) -> AsyncIterator[Finding]:
    """Yield the findings of the doctor's own checks."""
    yield Finding("configuration", OK, OK, "valid")
    for misspelt in config.misspelt:
        yield Finding("variables", WARN, "variable-misspelt", misspelt)
    for link in config.service_links:
        yield Finding("variables", WARN, "service-link", link)
    environments = environments_of(config)
    documents: list[core.Settings] = []
    for task in _all_settings(environments):
        finding, settings = await task
        yield finding
        documents += [settings] if settings is not None else []
    if config.environments_file is not None:
        yield estimate_memory(documents)
    yield check_decisions(environments)
    async for finding in _servers([one.config for one in environments], machine):
        yield finding
    yield await check_redis(config)
    yield await asyncio.to_thread(check_location, config, documents, machine)
    storage = check_data_dir(config.data_dir)
    yield storage
    if storage.state == OK:
        yield check_admin_token(config)
    if damaged := find_damaged(config.data_dir):
        yield damaged
    if volume := check_volume(config.data_dir, machine.mounts()):
        yield volume
    yield check_disk(config.data_dir, machine)
    yield await asyncio.to_thread(check_open_files, config, machine)
    yield await asyncio.to_thread(check_port, config)
    if config.tls_cert_path and config.tls_key_path:
        yield check_certificate(config.tls_cert_path, config.tls_key_path, machine)
    if storage.code != "data-dir":  # the events that wait can be counted on a full disk, too
        for environment in environments:
            yield _of(environment, await check_events(environment.config, machine))


def _all_settings(environments: Sequence[EnvironmentConfig]) -> list[asyncio.Task[Looked]]:
    """Start the checks of all environments, some of them at the same time, and return them in their order."""
    places = asyncio.Semaphore(PARALLEL_CHECKS)

    async def check(environment: EnvironmentConfig) -> Looked:
        async with places:
            finding, settings = await check_settings(environment.config, environment.previous_sdk_keys)
        return _of(environment, finding), settings

    return [asyncio.create_task(check(environment)) for environment in environments]


def _of(environment: EnvironmentConfig, finding: Finding) -> Finding:
    """Return a finding that names its environment and the place of its key, if that is one of ENVIRONMENTS_FILE."""
    name = environment.config.environment_name
    if name is None:
        return finding
    remedy = finding.remedy.replace(ACCOUNT_OPTIONS, environment.config.account_options)
    return finding._replace(message=f"{name}: {finding.message}", own_remedy=remedy)


async def _servers(configs: Sequence[Config], machine: Machine) -> AsyncIterator[Finding]:
    """Check each server for events, and the clock of one server for settings."""
    online = [config for config in configs if not config.is_offline]
    collectors = {one.collect_url: one for one in online if one.collect_url != one.upstream_url}
    for url, config in collectors.items():
        yield (await check_server(config, machine, url, "collector"))[0]
    if online:
        yield (await check_server(online[0], machine, online[0].upstream_url, "clock"))[1]
