"""The command line: what commands there are, and those that need no running gateway. `operations.py` has the others."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tornado_gateway import __version__, core
from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.output import bullets, print_columns, print_json
from tornado_gateway.config import OPTIONS, Config, add_flags, described, given_flags, load
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import ConfigError
from tornado_gateway.version import BUILD

logger = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 2 for a configuration that cannot be used, 1 for what failed later."""
    parser = build_parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and not hasattr(known, "env_file"):  # where options are read, `load` says what is wrong with unknown ones
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known.rest = rest
    try:
        code = int(known.command(known))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        print(f"The configuration cannot be used:\n{bullets(error.problems)}", file=sys.stderr)
        return 2
    except core.SettingsError as error:
        print(f"The settings document cannot be used:\n{bullets(error.problems)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
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
    config = _add_command(commands, "config", _config, "show every option with its current value", has_json=True)
    add_flags(config)
    doctor = _add_command(commands, "doctor", _doctor, "look at everything the gateway depends on", has_json=True)
    add_flags(doctor)
    health = _add_command(commands, "health", _health, "ask the running gateway whether it lives", has_json=True)
    health.add_argument("--ready", action="store_true", help="whether it can decide as well")
    add_flags(health)
    console_url = _add_command(commands, "console-url", _console_url, "print a link that signs in to the console")
    add_flags(console_url)
    _add_events(commands)
    _add_facts(commands)
    _add_evaluate(commands)
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


def _add_events(commands: Any) -> None:
    actions = _add_group(commands, "events", "events that wait for upstream, and those that it refused")
    status = _add_command(actions, "status", _events, "how many events wait, and how many are dead", has_json=True)
    listed = _add_command(actions, "list", _events, "the dead letters, with the reason", has_json=True)
    requeue = _add_command(actions, "requeue", _events, "send dead letters once more", has_json=True)
    requeue.add_argument("ids", nargs="*", metavar="ID", help="of dead letters")
    requeue.add_argument("--all", action="store_true", help="all of them")
    export = _add_command(actions, "export", _events, "write the events of the dead letters as JSON lines")
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="where to; otherwise to stdout")
    for parser in (status, listed, requeue, export):
        add_flags(parser)


def _add_facts(commands: Any) -> None:
    actions = _add_group(commands, "geo", "the location database")
    update = _add_command(actions, "update", _geo_update, "download the newest one", has_json=True)
    lookup = _add_command(actions, "lookup", _geo_lookup, "where an address is", has_json=True)
    lookup.add_argument("ip", metavar="IP")
    actions = _add_group(commands, "device", "what user agents tell")
    device = _add_command(actions, "lookup", _device_lookup, "the device behind a user agent", has_json=True)
    device.add_argument("user_agent", metavar="USER_AGENT")
    for parser in (update, lookup, device):
        add_flags(parser)


def _add_evaluate(commands: Any) -> None:
    summary = "decide a feature for a visitor, without sending an event"
    evaluate = _add_command(commands, "evaluate", _evaluate, summary, has_json=True)
    evaluate.add_argument("--settings", type=Path, required=True, metavar="FILE", help="settings document")
    evaluate.add_argument("--feature", required=True, metavar="KEY", help="feature key")
    evaluate.add_argument("--user", required=True, metavar="ID", help="visitor id")
    evaluate.add_argument("--variables", type=_json_object, default={}, metavar="JSON", help="custom variables")
    evaluate.add_argument("--targeting", type=_json_object, default={}, metavar="JSON", help="targeting variables")
    evaluate.add_argument("--user-agent", metavar="TEXT", help="the visitor's user agent")
    evaluate.add_argument("--ip", metavar="ADDRESS", help="the visitor's IP address")
    evaluate.add_argument("--maxmind-db-path", type=Path, metavar="PATH", help="GeoIP database, to locate the IP")
    evaluate.add_argument("--explain", action="store_true", help="show the path to the decision")


def _configuration(arguments: argparse.Namespace) -> Config:
    return load(given_flags(arguments, arguments.rest), os.environ, arguments.env_file)


def _without_account(arguments: argparse.Namespace) -> Config:
    """The configuration for a command that has nothing to do with the account, which may be missing."""
    try:
        return _configuration(arguments)
    except ConfigError:
        flags = given_flags(arguments, arguments.rest) | {"ACCOUNT_ID": "1", "SDK_KEY": "none"}
        return load(flags, os.environ, arguments.env_file)


# Commands load what only they need, so that a health check every few seconds costs little.


def _serve(arguments: argparse.Namespace) -> int:
    from tornado_gateway import logs
    from tornado_gateway.console import admin_token
    from tornado_gateway.process import supervisor, worker
    from tornado_gateway.telemetry import metrics

    config = _configuration(arguments)
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
    return supervisor.run(config, partial(worker.run, memory=metrics.Memory(places)))


def _announce_console(config: Config) -> None:
    """Print the sign-in link for a person at a terminal. A log, which others can read, gets no token."""
    client = Client(config)
    if sys.stderr.isatty() and config.log_format != "json":
        print(f"Console: {client.console_link()}", file=sys.stderr)
    else:
        logger.info("the console is %s/console; `tornado-gateway console-url` prints a sign-in link", client.url)


def _check(arguments: argparse.Namespace) -> int:
    from tornado_gateway.settings.compilation import compile_document

    config = _configuration(arguments)
    if config.settings_file is None:
        if arguments.json:
            print_json({"ok": True, "settings": None, "upstream": config.upstream_url})
        else:
            print("The configuration can be used.")
            print("No SETTINGS_FILE is given: the settings come from", config.upstream_url)
        return 0
    before = time.perf_counter()
    settings = compile_document(config.settings_file.read_bytes(), core.Sdk(config.sdk_name, __version__)).settings
    milliseconds = (time.perf_counter() - before) * 1000
    summaries = {feature.key: _summary(feature) for feature in settings.features.values()}
    if arguments.json:
        about = {"file": str(config.settings_file), "account": settings.account_id, "features": summaries}
        print_json({"ok": True, "settings": about})
        return 0
    print("The configuration can be used.")
    print(f"{config.settings_file} can be used (account {settings.account_id}, compiled in {milliseconds:.0f} ms):")
    for key, summary in summaries.items():
        print(f"  {key}: {summary}")
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
    if arguments.json:
        print_json([row._asdict() for row in rows])
    else:
        print_columns([(*row[:3], row.help) for row in rows])
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import operations

    return operations.doctor(lambda: _configuration(arguments), arguments)


def _health(arguments: argparse.Namespace) -> int:
    """0 if the gateway lives (`--ready`: can decide), for the checks of containers."""
    client = Client(_without_account(arguments))
    try:
        status, answer = client.ask("/ready" if arguments.ready else "/health")
    except ClientError as error:
        status, answer = 0, {"status": str(error)}
    if arguments.json:
        print_json(answer)
    else:
        print(": ".join(str(answer[name]) for name in ("status", "reason") if name in answer))
    return 0 if status == 200 else 1


def _console_url(arguments: argparse.Namespace) -> int:
    try:
        print(Client(_without_account(arguments)).console_link())
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _events(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import operations

    return operations.events(_configuration(arguments), arguments)


def _geo_update(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import operations

    return operations.geo_update(_without_account(arguments), arguments)


def _geo_lookup(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import operations

    return operations.geo_lookup(_without_account(arguments), arguments)


def _device_lookup(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli import operations

    return operations.device_lookup(_without_account(arguments), arguments)


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser(), arguments.shell))
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
    explanation = core.explain_lines(trace) if trace is not None else None
    if arguments.json:
        print_json({"decision": orjson.loads(decision.body), "explanation": explanation})
        return 0
    print(decision.body.decode())
    if explanation is not None:
        print(*explanation, sep="\n")
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
