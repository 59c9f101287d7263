"""The commands that need a settings document and no running gateway: `evaluate` and `check`."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from tornado_gateway import __version__, core
from tornado_gateway.cli import environments
from tornado_gateway.cli.doctor.remedies import REMEDIES
from tornado_gateway.cli.insight.database import evaluator_with
from tornado_gateway.cli.output import print_json
from tornado_gateway.config import Config, environments_of
from tornado_gateway.environments.evaluation import Inputs, with_address
from tornado_gateway.environments.registry import check_account
from tornado_gateway.errors import ConfigError
from tornado_gateway.quantities import counted
from tornado_gateway.settings.compilation import compile_document, parse
from tornado_gateway.settings.documents import read_document


def evaluate(arguments: argparse.Namespace) -> int:
    document = parse(read_document(arguments.settings), core.never_yield)
    settings = core.compile_settings(document, traced=arguments.explain)
    is_used = bool(arguments.ip) and _needs_location(settings.features.get(arguments.feature))
    evaluator = evaluator_with(arguments.maxmind_db_path, is_used=is_used)
    trace = core.Trace() if arguments.explain else None
    decision = evaluator.decide_from(settings, arguments.feature, Inputs(_context(arguments)), trace)
    explanation = core.explain_lines(trace) if trace is not None else None
    if arguments.json:
        print_json({"decision": orjson.loads(decision.body), "explanation": explanation})
        return 0
    print(decision.body.decode())
    if explanation is not None:
        print(*explanation, sep="\n")
    return 0


def _context(arguments: argparse.Namespace) -> core.Context:
    context = core.Context(
        user_id=arguments.user,
        custom_variables=arguments.variables,
        variation_targeting_variables=arguments.targeting,
        user_agent=arguments.user_agent,
        ip_address=arguments.ip,
    )
    return with_address(context)


def _needs_location(feature: core.Feature | None) -> bool:
    return feature is not None and feature.needs_location


def check(config: Config, arguments: argparse.Namespace) -> int:
    if config.misspelt:  # the start only warns about them
        raise ConfigError(config.misspelt)
    for link in config.service_links:
        print(link, REMEDIES["service-link"], file=sys.stderr)
    if config.environments_file is not None:
        return _check_environments(config, arguments)
    if config.settings_file is None:
        _print_without_settings(config.upstream_url, as_json=arguments.json)
        return 0
    settings, words = _compiled(config, config.settings_file)
    if arguments.json:
        print_json({"ok": True, "settings": _about(config.settings_file, settings)})
        return 0
    print("The configuration is valid.")
    print(f"{words}:")
    for feature in settings.features.values():
        print(f"  {feature.key}: {_summary(feature)}")
    return 0


def _check_environments(config: Config, arguments: argparse.Namespace) -> int:
    """Check each environment, with its settings document if it has one, and print one line for each."""
    found = environments_of(config)
    rows, lines = [], []
    for environment in found:
        row, line = environments.about(environment), environments.line(environment)
        file = environment.config.settings_file
        if file is not None:
            try:
                settings, words = _compiled(environment.config, file)
                check_account(environment.config.account_id, settings)
            except core.SettingsError as error:
                problems = tuple(f"{environment.name}, {file}: {problem}" for problem in error.problems)
                raise core.SettingsError(problems) from error
            row["settings"] = _about(file, settings)
            line = f"{line}. {words}"
        rows.append(row)
        lines.append(line)
    if arguments.json:
        print_json({"ok": True, "environments": rows})
        return 0
    print("The configuration is valid.")
    print(f"{config.environments_file} names {counted(len(found), 'environment')}:")
    print(*[f"  {line}" for line in lines], sep="\n")
    return 0


def _compiled(config: Config, file: Path) -> tuple[core.Settings, str]:
    """Return the settings of a file, and a text that confirms them."""
    before = time.perf_counter()
    settings = compile_document(read_document(file), core.Sdk(config.sdk_name, __version__)).settings
    milliseconds = (time.perf_counter() - before) * 1000
    return settings, f"{file} is valid (account {settings.account_id}, compiled in {milliseconds:.0f} ms)"


def _about(file: Path, settings: core.Settings) -> dict[str, Any]:
    summaries = {feature.key: _summary(feature) for feature in settings.features.values()}
    return {"file": str(file), "account": settings.account_id, "features": summaries}


def _print_without_settings(upstream_url: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"ok": True, "settings": None, "upstream": upstream_url})
    else:
        print("The configuration is valid.")
        print("No SETTINGS_FILE is set: settings are fetched from", upstream_url)


def _summary(feature: core.Feature) -> str:
    rollouts, experiments = len(feature.rollouts), len(feature.experiments)
    rules = f"{counted(rollouts, 'rollout rule')}, {counted(experiments, 'experiment rule')}"
    inputs = (("location", feature.needs_location), ("device", feature.needs_device))
    used = [name for name, is_used in inputs if is_used]
    return f"{rules}; uses {' and '.join(used)}" if used else rules
