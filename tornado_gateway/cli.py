"""The command line."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from . import __version__, core, logs, supervisor, worker
from .config import Config, add_flags, described, given_flags, load
from .device import DeviceReader
from .errors import ConfigError
from .location import LocationReader
from .settings import compile_document

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 2 for a configuration that cannot be used, 1 for what failed later."""
    parser = build_parser()
    known, rest = parser.parse_known_args(arguments)
    known.rest = rest
    try:
        return int(known.command(known))
    except ConfigError as error:
        print(f"The configuration cannot be used:\n{_bullets(error.problems)}", file=sys.stderr)
        return 2
    except core.SettingsError as error:
        print(f"The settings document cannot be used:\n{_bullets(error.problems)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tornado-gateway", description="A gateway service for VWO/Wingify Feature Management & Experimentation."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _add_command(commands, "serve", _serve, "run the gateway")
    add_flags(serve)
    check = _add_command(commands, "check", _check, "check the configuration and a settings document")
    add_flags(check)
    config = _add_command(commands, "config", _config, "show every option with its current value")
    add_flags(config)

    evaluate = _add_command(commands, "evaluate", _evaluate, "decide a feature for a visitor, without sending an event")
    evaluate.add_argument("--settings", type=Path, required=True, metavar="FILE", help="settings document")
    evaluate.add_argument("--feature", required=True, metavar="KEY", help="feature key")
    evaluate.add_argument("--user", required=True, metavar="ID", help="visitor id")
    evaluate.add_argument("--variables", type=_json_object, default={}, metavar="JSON", help="custom variables")
    evaluate.add_argument("--targeting", type=_json_object, default={}, metavar="JSON", help="targeting variables")
    evaluate.add_argument("--user-agent", metavar="TEXT", help="the visitor's user agent")
    evaluate.add_argument("--ip", metavar="ADDRESS", help="the visitor's IP address")
    evaluate.add_argument("--maxmind-db-path", type=Path, metavar="PATH", help="GeoIP database, to locate the IP")
    evaluate.add_argument("--explain", action="store_true", help="show the path to the decision")
    return parser


def _add_command(commands: Any, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(command=command)
    return parser


def _configuration(arguments: argparse.Namespace) -> Config:
    return load(given_flags(arguments, arguments.rest), os.environ, arguments.env_file)


def _serve(arguments: argparse.Namespace) -> int:
    config = _configuration(arguments)
    logs.set_up(config.log_level)
    return supervisor.run(config, worker.run)


def _check(arguments: argparse.Namespace) -> int:
    config = _configuration(arguments)
    print("The configuration can be used.")
    if config.settings_file is None:
        print("No SETTINGS_FILE is given: the settings come from", config.upstream_url)
        return 0
    before = time.perf_counter()
    settings = compile_document(config.settings_file.read_bytes(), core.Sdk(config.sdk_name, __version__))
    milliseconds = (time.perf_counter() - before) * 1000
    print(f"{config.settings_file} can be used (account {settings.account_id}, compiled in {milliseconds:.0f} ms):")
    for feature in settings.features.values():
        print(f"  {feature.key}: {_summary(feature)}")
    return 0


def _summary(feature: core.Feature) -> str:
    facts = [f"{len(feature.rollouts)} rollout and {len(feature.experiments)} experiment rules"]
    if feature.needs_location:
        facts.append("asks for the location")
    if feature.needs_device:
        facts.append("asks for the device")
    return ", ".join(facts)


def _config(arguments: argparse.Namespace) -> int:
    rows = described(_configuration(arguments))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print(*(row[column].ljust(widths[column]) for column in range(3)), row.help, sep="  ")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    document = orjson.loads(arguments.settings.read_bytes())
    settings = core.compile_settings(document, traced=arguments.explain)
    context = core.Context(
        user_id=arguments.user,
        custom_variables=arguments.variables,
        variation_targeting_variables=arguments.targeting,
        user_agent=arguments.user_agent,
        ip_address=arguments.ip,
    )
    _enrich(context, settings.features.get(arguments.feature), arguments.maxmind_db_path)
    trace = core.Trace() if arguments.explain else None
    decision = core.decide(settings, arguments.feature, context, trace=trace)
    print(decision.body.decode())
    if trace is not None:
        print(*core.explain_lines(trace), sep="\n")
    return 0


def _enrich(context: core.Context, feature: core.Feature | None, database: Path | None) -> None:
    if feature is None:
        return
    if feature.needs_location and context.ip_address:
        location = LocationReader(database)
        location.open()
        context.location = location.lookup(context.ip_address)
    if feature.needs_device and context.user_agent:
        context.device = DeviceReader().facts(context.user_agent)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
