"""The command line: its parser, and the short commands. Longer commands have modules of their own."""

import argparse
import getpass
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from tornado_gateway import core
from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.configuration.sdks import LINES as SDKS
from tornado_gateway.cli.insight.parsers import add_insight, ip_address
from tornado_gateway.cli.output import bullets, file_problem, print_json
from tornado_gateway.config import Config, ConfigError, SettingsFileError, add_flags, examine, given_flags, load
from tornado_gateway.version import BUILD

Command = Callable[[argparse.Namespace], int]

ENVIRONMENT_HELP = "environment of ENVIRONMENTS_FILE (default: its default)"
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
VERSION_HELP = "number or digest of the list, or current, latest or previous"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit code: 2 for invalid options, 1 for files that they name and other failures."""
    parser = build_parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and not hasattr(known, "env_file"):  # for commands with options, `load` reports unknown ones
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known.rest = rest
    known.admin_token = os.environ.get("ADMIN_TOKEN")  # for commands that ask a gateway by its URL
    try:
        code = int(known.command(known))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        print(f"Invalid configuration:\n{bullets(error.problems)}", file=sys.stderr)
        return error.exit_code
    except core.SettingsError as error:
        print(f"Invalid settings document:\n{bullets(error.problems)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return 1
    except OSError as error:
        print(file_problem(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tornado-gateway", description="A gateway service for VWO/Wingify Feature Management & Experimentation."
    )
    parser.add_argument("--version", action="version", version=BUILD)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_flags(_add_command(commands, "serve", _serve, "run the gateway"))
    check = _add_command(commands, "check", _check, "check the configuration and a settings document", has_json=True)
    add_flags(check)
    _add_init(commands)
    config = _add_command(commands, "config", _config, "show every option with its current value", has_json=True)
    add_flags(config)
    doctor = _add_command(commands, "doctor", _doctor, "diagnose configuration and dependencies", has_json=True)
    add_flags(doctor)
    health = _add_command(commands, "health", _health, "check that the gateway is running", has_json=True)
    health.add_argument("--ready", action="store_true", help="also require loaded settings")
    add_flags(health)
    console_url = _add_command(commands, "console-url", _console_url, "print a link that signs in to the console")
    add_flags(console_url)
    _add_events(commands)
    _add_settings(commands)
    _add_tokens(commands)
    _add_environments(commands)
    _add_facts(commands)
    _add_evaluate(commands)
    add_insight(commands, _add_command, _without_account)
    completion = _add_command(commands, "completion", _completion, "print a shell's completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _add_command(
    commands: Any, name: str, command: Command, summary: str, *, has_json: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(command=command)
    if has_json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_group(commands: Any, name: str, summary: str) -> Any:
    group = commands.add_parser(name, help=summary, description=summary)
    return group.add_subparsers(required=True, metavar="ACTION", dest="action")


def _add_init(commands: Any) -> None:
    init = _add_command(commands, "init", _init, "ask for account and Redis, test them, and write gateway.env")
    init.add_argument("--output", type=Path, default=Path("gateway.env"), metavar="PATH", help="file [gateway.env]")
    init.add_argument("--unit", type=Path, metavar="PATH", help="also write a systemd unit")
    init.add_argument("--compose", type=Path, metavar="PATH", help="also write a Docker Compose file")
    init.add_argument("--force", action="store_true", help="replace files that exist")
    init.add_argument("--sdk", choices=tuple(SDKS), help="SDK to show the initialization of [all]")
    add_flags(init)


def _add_events(commands: Any) -> None:
    actions = _add_group(commands, "events", "waiting events and dead letters")
    status = _add_command(actions, "status", _events, "count waiting and dead events", has_json=True)
    listed = _add_command(actions, "list", _events, "list dead letters with their reasons", has_json=True)
    requeue = _add_command(actions, "requeue", _events, "send dead letters once more", has_json=True)
    groups = _add_command(actions, "groups", _events, "count dead letters by event and reason", has_json=True)
    delete = _add_command(actions, "delete", _events, "delete dead letters", has_json=True)
    for parser in (requeue, delete):
        parser.add_argument("ids", nargs="*", metavar="ID", help="IDs of dead letters")
        parser.add_argument("--all", action="store_true", help="every dead letter")
    export = _add_command(actions, "export", _events, "write the events of the dead letters as JSON lines")
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="output file (default: stdout)")
    for parser in (listed, export):
        parser.add_argument("--show-keys", action="store_true", help="show SDK keys in events, which are masked")
    for parser in (status, listed, requeue, groups, delete, export):
        parser.add_argument("--environment", metavar="NAME", help=ENVIRONMENT_HELP)
        add_flags(parser)


def _add_settings(commands: Any) -> None:
    actions = _add_group(commands, "settings", "versions of the settings, and the emergency brake")
    listed = _add_command(actions, "list", _settings, "list the stored versions", has_json=True)
    show = _add_command(actions, "show", _settings, "show a version", has_json=True)
    show.add_argument("version", metavar="VERSION", help=VERSION_HELP)
    show.add_argument("--show-keys", action="store_true", help="show the SDK key in --json, which is masked")
    diff = _add_command(actions, "diff", _settings, "show the differences of two versions in words", has_json=True)
    diff.add_argument("before", nargs="?", default="previous", metavar="FROM", help=f"{VERSION_HELP} [previous]")
    diff.add_argument("after", nargs="?", default="current", metavar="TO", help=f"{VERSION_HELP} [current]")
    pin = _add_command(actions, "pin", _settings, "keep all workers at a version", has_json=True)
    pin.add_argument("version", metavar="VERSION", help=VERSION_HELP)
    pin.add_argument("--for", type=_duration, dest="seconds", metavar="TIME", help="duration, such as 30min or 2h")
    pin.add_argument("--reason", default="", metavar="TEXT", help="reason, shown wherever the pin is")
    unpin = _add_command(actions, "unpin", _settings, "return to the latest version", has_json=True)
    for parser in (pin, unpin):
        parser.add_argument("--by", metavar="NAME", help="name for the log [the user of the system]")
    for parser in (listed, show, diff, pin, unpin):
        parser.add_argument("--environment", metavar="NAME", help=ENVIRONMENT_HELP)
        add_flags(parser)


def _add_tokens(commands: Any) -> None:
    actions = _add_group(commands, "token", "tokens of clients")
    new = _add_command(actions, "new", _token_new, "make a client token and its block for TOKENS_FILE")
    new.add_argument("--id", required=True, metavar="NAME", help="name of the client in logs")
    new.add_argument("--kind", choices=("server", "browser"), default="server", help="where it is used [server]")
    new.add_argument("--environment", action="append", metavar="NAME", help="an environment it is for [all]")
    new.add_argument("--scope", action="append", choices=("decide", "track", "sdk"), help="what it allows [all]")
    new.add_argument("--origin", action="append", metavar="URL", help="origin of the pages that may use it")
    new.add_argument("--expires", type=_time, metavar="TIME", help="end, such as 2027-03-01 or 2027-03-01T12:00Z")


def _add_environments(commands: Any) -> None:
    actions = _add_group(commands, "environments", "the environments of ENVIRONMENTS_FILE")
    listed = _add_command(actions, "list", _environments, "list the environments of the file", has_json=True)
    check = _add_command(actions, "check", _check, "check the file without a gateway", has_json=True)
    forget = _add_command(actions, "forget", _environments, "delete the data of an environment that was removed")
    forget.add_argument("name", metavar="NAME", help="its name in the file")
    forget.add_argument(
        "--account", type=int, metavar="ID", help="its account, if environments of several had the name"
    )
    forget.add_argument("--with-events", action="store_true", help="also delete events that were not delivered")
    for parser in (listed, check, forget):
        add_flags(parser)


def _add_facts(commands: Any) -> None:
    actions = _add_group(commands, "geo", "update and query the location database")
    update = _add_command(actions, "update", _geo_update, "download the newest location database", has_json=True)
    lookup = _add_command(actions, "lookup", _geo_lookup, "look up the location of an address", has_json=True)
    lookup.add_argument("ip", metavar="IP")
    actions = _add_group(commands, "device", "parse user agents")
    device = _add_command(actions, "lookup", _device_lookup, "look up the device of a user agent", has_json=True)
    device.add_argument("user_agent", metavar="USER_AGENT")
    for parser in (update, lookup, device):
        add_flags(parser)


def _add_evaluate(commands: Any) -> None:
    summary = "evaluate a feature for a visitor, without sending events"
    evaluate = _add_command(commands, "evaluate", _evaluate, summary, has_json=True)
    evaluate.add_argument("--settings", type=Path, required=True, metavar="FILE", help="settings document")
    evaluate.add_argument("--feature", required=True, metavar="KEY", help="feature key")
    evaluate.add_argument("--user", required=True, metavar="ID", help="visitor ID")
    evaluate.add_argument("--variables", type=_json_object, default={}, metavar="JSON", help="custom variables")
    evaluate.add_argument("--targeting", type=_json_object, default={}, metavar="JSON", help="targeting variables")
    evaluate.add_argument("--user-agent", metavar="TEXT", help="the visitor's user agent")
    evaluate.add_argument("--ip", type=ip_address, metavar="ADDRESS", help="the visitor's IP address")
    evaluate.add_argument("--maxmind-db-path", type=Path, metavar="PATH", help="GeoIP database, to locate the IP")
    evaluate.add_argument("--explain", action="store_true", help="explain the decision")


# Commands import only the modules that they need, so that a health check every few seconds costs little.


def _configuration(arguments: argparse.Namespace) -> Config:
    return load(given_flags(arguments, arguments.rest), os.environ, arguments.env_file)


def _without_account(arguments: argparse.Namespace) -> Config:
    """Return the configuration for a command that does not need the account, which may be missing or wrong."""
    try:
        return _configuration(arguments)
    except ConfigError:
        return load(given_flags(arguments, arguments.rest), os.environ, arguments.env_file, with_account=False)


def _serve(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import serve

    try:
        config = _configuration(arguments)
    except SettingsFileError as error:
        print(f"the gateway cannot start: {error}", file=sys.stderr)
        return error.exit_code
    return serve.serve(config)


def _check(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.configuration import check

    return check.check(_configuration(arguments), arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import evaluate

    return evaluate.evaluate(arguments)


def _environments(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import environments

    return environments.environments(_configuration(arguments), arguments)


def _init(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.configuration import init

    return init.init(arguments, os.environ)


def _config(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.configuration import show

    return show.show(examine(given_flags(arguments, arguments.rest), os.environ, arguments.env_file), arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.doctor import command

    return command.doctor(lambda: _configuration(arguments), arguments)


def _health(arguments: argparse.Namespace) -> int:
    """Return 0 if the gateway is alive (`--ready`: has settings), for health checks of containers."""
    client = Client(_without_account(arguments))
    try:
        status, document = client.request("/ready" if arguments.ready else "/health")
    except ClientError as error:
        status, document = 0, {"status": str(error)}
    if arguments.json:
        print_json(document)
    else:
        print(": ".join(str(document[name]) for name in ("status", "reason") if name in document))
    return 0 if status == 200 else 1


def _console_url(arguments: argparse.Namespace) -> int:
    try:
        print(Client(_without_account(arguments)).console_link())
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _events(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import events

    return events.events(_configuration(arguments), arguments)


def _settings(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import settings

    arguments.user = _user()  # before the change to the owner of DATA_DIR
    return settings.settings(_configuration(arguments), arguments)


def _user() -> str:
    """Return the user who runs the command, for the audit; under sudo the one who called it."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"[:100]


def _token_new(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import environments

    return environments.new_token(arguments)


def _geo_update(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import location

    return location.geo_update(_without_account(arguments), arguments)


def _geo_lookup(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import location

    return location.geo_lookup(_without_account(arguments), arguments)


def _device_lookup(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import location

    return location.device_lookup(_without_account(arguments), arguments)


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser(), arguments.shell))
    return 0


def _time(text: str) -> datetime:
    """Parse a date, or a time, which is UTC unless it has an offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("expected a time such as 2027-03-01T12:00Z") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _duration(text: str) -> float:
    """Parse a duration such as 30min or 2h. Return seconds."""
    match = re.fullmatch(r"(\d{1,9})(s|m|min|h|d)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError("expected a number with a unit, such as 30min, 2h or 1d")
    return float(match[1]) * UNITS[match[2]]


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value
