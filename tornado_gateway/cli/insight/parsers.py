"""The options of these commands. The modules of the commands are imported when they run."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tornado_gateway.config import Config, add_flags

Configuration = Callable[[argparse.Namespace], Config]
AddCommand = Callable[..., argparse.ArgumentParser]  # name, command, summary; see `main`
MOST_VISITORS = 1_000_000


def add_insight(commands: Any, add_command: AddCommand, configuration: Configuration) -> None:
    """Add the commands. `configuration` reads that of the running gateway from the arguments."""
    _add_simulate(commands, add_command)
    _add_verify(commands, add_command)
    top = add_command(commands, "top", partial(_top, configuration), "show the overview of the running gateway")
    top.add_argument("--once", action="store_true", help="print one frame")
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two frames [1]")
    top.add_argument("--environment", metavar="NAME", help="environment of ENVIRONMENTS_FILE (default: its default)")
    add_flags(top)


def _add_simulate(commands: Any, add_command: AddCommand) -> None:
    summary = "distribute features over many visitors, without sending events"
    simulate = add_command(commands, "simulate", _simulate, summary, has_json=True)
    source = simulate.add_mutually_exclusive_group(required=True)
    source.add_argument("--settings", type=Path, metavar="FILE", help="settings document")
    source.add_argument("--url", metavar="URL", help="URL of a running gateway, whose admin token is in ADMIN_TOKEN")
    simulate.add_argument("--feature", metavar="KEY", help="feature key [all features]")
    visitors = simulate.add_mutually_exclusive_group()
    visitors.add_argument(
        "--visitors", type=_number, default=10_000, metavar="N", help="number of generated visitor IDs [10000]"
    )
    visitors.add_argument("--ids", type=Path, metavar="FILE", help="visitor IDs, one in each line (-: stdin)")
    visitors.add_argument("--recent", action="store_true", help="visitors of --url in the last hour")
    simulate.add_argument(
        "--attribute",
        action=_Attributes,
        default={},
        dest="attributes",
        metavar="NAME=VALUE",
        help="a custom variable of all visitors: a text, or a number or boolean in JSON",
    )
    simulate.add_argument("--user-agent", metavar="TEXT", help="the user agent of all visitors")
    simulate.add_argument("--ip", type=ip_address, metavar="ADDRESS", help="the IP address of all visitors")
    simulate.add_argument("--maxmind-db-path", type=Path, metavar="PATH", help="GeoIP database for --settings")
    simulate.add_argument(
        "--traffic", action="append", type=_traffic, default=[], metavar="RULE=50", help="what if: other traffic"
    )
    simulate.add_argument(
        "--weights", action="append", type=_weights, default=[], metavar="RULE=50/50", help="what if: other weights"
    )


def _add_verify(commands: Any, add_command: AddCommand) -> None:
    summary = "compare decisions with the expected ones, without sending events"
    verify = add_command(commands, "verify", _verify, summary)
    verify.add_argument(
        "--expect", type=Path, required=True, metavar="FILE", help="expected decisions, in YAML or JSON"
    )
    source = verify.add_mutually_exclusive_group(required=True)
    source.add_argument("--settings", type=Path, metavar="FILE", help="settings document")
    source.add_argument("--url", metavar="URL", help="URL of a running gateway (ADMIN_TOKEN: for explanations)")
    verify.add_argument("--token", metavar="TOKEN", help="client token for --url, if the gateway requires one")
    verify.add_argument("--maxmind-db-path", type=Path, metavar="PATH", help="GeoIP database for --settings")
    verify.add_argument("--junit", type=Path, metavar="FILE", help="also write the results as JUnit XML")


class _Attributes(argparse.Action):
    """Collect `name=value` in a dictionary."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        name, equals, text = str(values).partition("=")
        if not name or not equals:
            raise argparse.ArgumentError(self, f"expected NAME=VALUE, got {values!r}")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), name: _scalar(text)})


def _scalar(text: str) -> object:
    """Return the number, boolean or quoted text that the text is in JSON; otherwise the text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, str | int | float) else text


def ip_address(text: str) -> str:
    """Return the text if it has an address. Anything else would count as absent."""
    from tornado_gateway.environments.evaluation import has_address

    if not has_address(text):
        raise argparse.ArgumentTypeError(f"expected an IPv4 or IPv6 address, got {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.2 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("expected seconds, 0.2 to 3600")
    return seconds


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_VISITORS):
        raise argparse.ArgumentTypeError(f"expected a number of visitors, 1 to {MOST_VISITORS}")
    return int(text)


def _traffic(text: str) -> tuple[str, float]:
    name, shares = _weights(text)
    if len(shares) > 1:
        raise argparse.ArgumentTypeError(f"expected RULE=PERCENT, got {text!r}")
    return name, shares[0]


def _weights(text: str) -> tuple[str, list[float]]:
    name, _, given = text.rpartition("=")
    try:
        shares = [float(share) for share in given.split("/")]
    except ValueError:
        shares = []
    if not name or not shares or not all(map(math.isfinite, shares)):
        raise argparse.ArgumentTypeError(f"expected RULE=PERCENT or RULE=PERCENT/PERCENT, got {text!r}")
    return name, shares


def _simulate(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.insight import simulate

    return simulate.simulate(arguments)


def _verify(arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.insight import verify

    return verify.verify(arguments)


def _top(configuration: Configuration, arguments: argparse.Namespace) -> int:
    from tornado_gateway.cli.insight import top

    return top.top(configuration(arguments), arguments)
