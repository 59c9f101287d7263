"""The command `init`: ask for the account and Redis, test them, and write the files of an installation."""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from tornado_gateway.cli.client import Client
from tornado_gateway.cli.configuration import files, questions, sdks
from tornado_gateway.cli.doctor import command
from tornado_gateway.cli.doctor.remedies import FAIL, Finding
from tornado_gateway.config import Config, Examined, examine, given_flags, load

NOTHING_WRITTEN = "Nothing was written."


def init(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Return 1 if nothing was written, otherwise the exit code of the doctor."""
    if not arguments.force and (taken := [str(path) for path in _targets(arguments) if path.exists()]):
        print(f"{', '.join(taken)} exists. Use --force to replace it. {NOTHING_WRITTEN}", file=sys.stderr)
        return 1
    try:
        examined = _tested(arguments, environ)
        if examined is None:
            print(NOTHING_WRITTEN, file=sys.stderr)
            return 1
        _ask_for_files(arguments)
    except EOFError:
        print(f"\n{NOTHING_WRITTEN}", file=sys.stderr)
        return 1
    _write(arguments, examined)
    # As a service sees it: what is in the file now is not in the environment.
    others = {name: text for name, text in environ.items() if name not in examined.given}
    return _finish(arguments, load({}, others, arguments.output))


def _targets(arguments: argparse.Namespace) -> list[Path]:
    return [path for path in (arguments.output, arguments.unit, arguments.compose) if path is not None]


def _tested(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Examined | None:
    """Return a configuration that works or that the user accepts. None: write nothing."""
    flags = given_flags(arguments, arguments.rest)
    is_asking = sys.stdin.isatty()
    if is_asking:
        flags |= questions.ask_for_options(examine(flags, environ, arguments.env_file).given)
    while True:
        examined = examine(flags, environ, arguments.env_file)
        if examined.problems:
            raise examined.error
        if not asyncio.run(_has_failed(examined.config)):
            return examined
        choice = questions.choose("Enter the values again?", ("again", "write", "stop")) if is_asking else "stop"
        if choice != "again":
            return examined if choice == "write" else None
        flags |= questions.ask_for_options(questions.ACCOUNTS & examined.given.keys())


async def _has_failed(config: Config) -> bool:
    """Test the key and Redis, and print the result."""
    from tornado_gateway.cli.doctor.store import check_redis
    from tornado_gateway.cli.doctor.vwo import check_settings

    findings: list[Finding] = []
    if config.environments_file is None:
        findings.append((await check_settings(config))[0])
    if config.uses_redis:
        findings.append(await check_redis(config))
    for finding in findings:
        command.print_finding(finding)
    return any(finding.state == FAIL for finding in findings)


def _ask_for_files(arguments: argparse.Namespace) -> None:
    """Ask for the unit or the Compose file, and for the SDK, unless flags name them."""
    if not sys.stdin.isatty():
        return
    if arguments.unit is None and arguments.compose is None:
        choice = questions.choose("Also write a file for systemd or Docker Compose?", ("no", "unit", "compose"))
        path = {"unit": Path("tornado-gateway.service"), "compose": Path("compose.yaml")}.get(choice)
        if path is not None and path.exists() and not arguments.force:
            print(f"{path} exists and is not replaced.", file=sys.stderr)
        elif path is not None:
            setattr(arguments, choice, path)
    if arguments.sdk is None:
        choice = questions.choose("Which SDK do you use?", ("all", *sdks.LINES))
        arguments.sdk = None if choice == "all" else choice


def _write(arguments: argparse.Namespace, examined: Examined) -> None:
    written = files.written(arguments.output, examined)
    texts = {arguments.output: files.env_file(written.values), **written.secrets}
    if arguments.unit is not None:
        texts[arguments.unit] = files.unit(arguments.output, examined.config)
    if arguments.compose is not None:
        texts[arguments.compose] = files.compose(arguments.output, examined.config, written.files())
    for path, text in texts.items():
        is_public = path in (arguments.unit, arguments.compose)
        files.write(path, text, 0o644 if is_public else 0o600, replaces=arguments.force)
        print(f"Wrote {path}")
    if arguments.compose is not None and written.files():
        print(f"The container's user 10001 must be able to read {', '.join(written.files())}")


def _finish(arguments: argparse.Namespace, config: Config) -> int:
    """Run the doctor with the file, and print how to start the gateway and the SDK."""
    print("\nDoctor:")
    arguments.json = False
    code = command.doctor(lambda: config, arguments)
    print("\nStart the gateway:", *files.start_commands(arguments), sep="\n  ")
    if config.account_id is not None:
        print("\nInitialize the SDK (with the address of this machine, if the application runs elsewhere):")
        for line in sdks.lines_for(config.account_id, Client(config).url, arguments.sdk):
            print(f"  {line}")
    return code
