"""The command `simulate`: how features are distributed over many visitors."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tornado_gateway import core
from tornado_gateway.cli.insight.database import evaluator_with
from tornado_gateway.cli.insight.remote import Remote, RemoteError
from tornado_gateway.cli.output import Progress, bullets, print_columns, print_json
from tornado_gateway.environments.evaluation import Evaluator, Inputs, with_address
from tornado_gateway.insight.simulation import BAND, Simulation, generated_ids
from tornado_gateway.insight.suggestions import suggested
from tornado_gateway.insight.what_if import ChangeError, changed_settings
from tornado_gateway.quantities import counted
from tornado_gateway.settings.compilation import parse
from tornado_gateway.settings.documents import read_document

MOST_VISITORS = 1_000_000
MOST_ID_BYTES = 1024  # as in requests
PROGRESS_VISITORS = 1000
STDIN = Path("-")


def simulate(arguments: argparse.Namespace) -> int:
    try:
        report = _report(arguments)
    except ChangeError as error:
        print(f"The simulation cannot be run:\n{bullets(error.problems)}", file=sys.stderr)
        return 2
    except RemoteError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        print_json(report)
    else:
        print_report(report)
    return 0


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.recent and arguments.url is None:
        raise ChangeError(["--recent: expected --url, the gateway that has seen the visitors"])
    ids = list(given_ids(arguments.ids)) if arguments.ids else list(generated_ids(arguments.visitors))
    return _simulated(arguments, ids) if arguments.url is None else _remote(arguments, ids)


def given_ids(file: Path) -> Iterable[str]:
    """Return the ids in a file or in stdin, one in each line, each once. Raise ChangeError for those that cannot be."""
    with sys.stdin.buffer if file == STDIN else file.open("rb") as lines:
        ids: dict[str, None] = {}
        for number, line in enumerate(iter(partial(lines.readline, 2 * MOST_ID_BYTES), b""), 1):
            text = line.strip()
            if len(text) > MOST_ID_BYTES:
                raise ChangeError([f"{file} line {number}: an ID has at most {MOST_ID_BYTES} bytes, found more"])
            if text:
                ids[_text(text, file, number)] = None
            if len(ids) > MOST_VISITORS:
                raise ChangeError([f"{file}: expected at most {MOST_VISITORS} IDs"])
    if not ids:
        raise ChangeError([f"{file}: expected an ID in each line, got none"])
    return ids


def _text(line: bytes, file: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ChangeError([f"{file} line {number}: not UTF-8"]) from error


def _remote(arguments: argparse.Namespace, ids: Sequence[str]) -> dict[str, Any]:
    """Let a running gateway simulate, with its settings, lists and stored decisions."""
    fields: dict[str, Any] = {"customVariables": arguments.attributes, **_visitors(arguments, ids)}
    optional = {"featureKey": arguments.feature, "userAgent": arguments.user_agent, "ipAddress": arguments.ip}
    fields |= {name: value for name, value in optional.items() if value is not None}
    fields |= {"traffic": dict(arguments.traffic), "weights": dict(arguments.weights)}
    progress = Progress("simulating", "visitors")
    try:
        return Remote(arguments.url, admin_token=arguments.admin_token).simulate(fields, progress)
    finally:
        progress.close()


def _visitors(arguments: argparse.Namespace, ids: Sequence[str]) -> dict[str, Any]:
    if arguments.recent:
        return {"recent": True}
    return {"ids": ids} if arguments.ids else {"visitors": arguments.visitors}


def _simulated(arguments: argparse.Namespace, ids: Sequence[str]) -> dict[str, Any]:
    settings = core.compile_settings(parse(read_document(arguments.settings), core.never_yield))
    keys = list(settings.features) if arguments.feature is None else [arguments.feature]
    if arguments.feature is not None and arguments.feature not in settings.features:
        raise ChangeError([f"unknown feature {arguments.feature}{suggested(arguments.feature, settings.features)}"])
    changed = None
    if arguments.traffic or arguments.weights:
        changed = changed_settings(settings, keys, dict(arguments.traffic), dict(arguments.weights))
    simulation = Simulation(settings, keys, changed)
    evaluator = _evaluator(arguments, settings, keys)
    progress = Progress("simulating", "visitors")
    for number, user_id in enumerate(ids, 1):
        simulation.add(user_id, partial(evaluator.decide_from, inputs=Inputs(_context(user_id, arguments))))
        if number % PROGRESS_VISITORS == 0:
            progress(number, len(ids))
    progress.close()
    return simulation.report()


def _evaluator(arguments: argparse.Namespace, settings: core.Settings, keys: Iterable[str]) -> Evaluator:
    is_used = bool(arguments.ip) and any(settings.features[key].needs_location for key in keys)
    return evaluator_with(arguments.maxmind_db_path, is_used=is_used)


def _context(user_id: str, arguments: argparse.Namespace) -> core.Context:
    return with_address(
        core.Context(
            user_id=user_id,
            custom_variables=arguments.attributes,
            user_agent=arguments.user_agent,
            ip_address=arguments.ip,
        )
    )


# --- Output ---


def print_report(report: Mapping[str, Any]) -> None:
    for feature in report["features"]:
        _print_feature(feature, report["visitors"])
        print()
    print(f"Ranges are the {BAND}. Shares of an experiment's variations are those of its own visitors.")


def _print_feature(feature: Mapping[str, Any], visitors: int) -> None:
    print(f"{feature['feature']}: {_enabled(feature, visitors)}")
    _print_distribution(feature)
    what_if = feature.get("what_if")
    if what_if is None:
        return
    print(f"  What if: {_enabled(what_if, visitors)}")
    _print_distribution(what_if)
    print(f"  {counted(what_if['moved'], 'visitor')} would move")
    print_columns([(f"    {move['from']} -> {move['to']}", f"{move['visitors']}") for move in what_if["moves"]])
    if what_if["moved_visitors"]:
        print(f"  First of them: {', '.join(moved['user'] for moved in what_if['moved_visitors'])}")


def _enabled(part: Mapping[str, Any], visitors: int) -> str:
    return f"enabled for {part['enabled']} of {counted(visitors, 'visitor')}: {_share(part)}"


def _print_distribution(part: Mapping[str, Any]) -> None:
    rows = [
        (
            f"    {row['rule']}",
            f"{row['variation']['name']}",
            str(row["visitors"]),
            _share(row),
            _configured(row),
        )
        for row in part["variations"]
    ]
    if rows:
        print_columns([("    Rule", "Variation", "Visitors", "Share", "Configured"), *rows])
    print(f"    Decided by: {', '.join(f'{way} {count}' for way, count in part['decided'].items())}")


def _share(part: Mapping[str, Any]) -> str:
    if part["share"] is None:
        return "-"
    return f"{part['share']:.1f} % ({part['low']:.1f} - {part['high']:.1f})"


def _configured(row: Mapping[str, Any]) -> str:
    traffic = f"traffic {row['traffic']} %"
    return traffic if row["weight"] is None else f"weight {row['weight']} %, {traffic}"
