"""The command `doctor`: run the checks and print their findings."""

import argparse
import asyncio
from collections.abc import Callable

from tornado_gateway.cli.data_owner import become_owner
from tornado_gateway.cli.doctor.remedies import FAIL, OK, WARN, Finding
from tornado_gateway.cli.output import paint, print_json
from tornado_gateway.config import Config
from tornado_gateway.errors import ConfigError
from tornado_gateway.quantities import counted

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


def doctor(load: Callable[[], Config], arguments: argparse.Namespace) -> int:
    """Return 1 if any check failed; warnings do not count."""
    findings = _findings(load, is_quiet=arguments.json)
    failed = sum(finding.state == FAIL for finding in findings)
    warned = sum(finding.state == WARN for finding in findings)
    if arguments.json:
        print_json({"ok": not failed, "findings": [finding.as_json() for finding in findings]})
    else:
        print(f"{len(findings) - failed - warned} ok, {counted(warned, 'warning')}, {failed} failed")
    return 1 if failed else 0


def _findings(load: Callable[[], Config], *, is_quiet: bool) -> list[Finding]:
    try:
        config = load()
    except ConfigError as error:
        findings = [Finding("configuration", FAIL, "configuration", problem) for problem in error.problems]
        for finding in () if is_quiet else findings:
            print_finding(finding)
        return findings
    become_owner(config.data_dir)
    return asyncio.run(_examine(config, is_quiet=is_quiet))


async def _examine(config: Config, *, is_quiet: bool) -> list[Finding]:
    # Here, because the import lasts half a second, and an invalid configuration needs none.
    from tornado_gateway.cli.doctor.checks import examine

    findings = []
    async for finding in examine(config):
        findings.append(finding)
        if not is_quiet:
            print_finding(finding)
    return findings


def print_finding(finding: Finding) -> None:
    state = paint(finding.state.ljust(4), _COLOURS[finding.state])
    print(f"{state}  {finding.check:<14}  {finding.message}", flush=True)
    if finding.remedy:
        print(f"      {'':<14}  {paint(f'-> {finding.remedy}', 'bold')}", flush=True)
