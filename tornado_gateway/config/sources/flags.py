"""Flags: one for each option. `--help` shows the common ones, `--help-all` all of them."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tornado_gateway.config import kinds
from tornado_gateway.config.kinds import Option, flag_of
from tornado_gateway.config.options import NAMES, OPTIONS, SECTIONS

# The options that a first installation may need. All others are in --help-all.
COMMON = frozenset(
    (
        *("ACCOUNT_ID", "SDK_KEY", "SDK_KEY_FILE", "ENVIRONMENTS_FILE", "DECISION_REQUIRED"),
        *("HOST", "PORT", "WORKERS", "TLS_CERT_PATH", "TLS_KEY_PATH"),
        *("UPSTREAM_URL", "POLLING_TIME", "SETTINGS_FILE", "FLUSH_EVENTS_INTERVAL", "DATA_DIR"),
        *("REDIS_HOST", "REDIS_PORT", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE", "REDIS_CLUSTER"),
        *("REDIS_SENTINELS", "REDIS_SENTINEL_MASTER", "REDIS_ENABLE_TLS"),
        *("MAXMIND_USER_ID", "MAXMIND_LICENSE_KEY", "MAXMIND_LICENSE_KEY_FILE", "MAXMIND_DB_PATH", "TRUSTED_PROXIES"),
        *("CORS_CONFIG_REQUIRED", "CORS_ALLOWED_ORIGINS", "ADMIN_TOKEN", "LOG_LEVEL", "LOG_FORMAT"),
    )
)
_UNITS = {"s": "SECONDS", "ms": "MS"}


class ShortHelp(argparse.HelpFormatter):
    """The help without rare options."""

    def add_argument(self, action: argparse.Action) -> None:
        if action.dest not in NAMES or action.dest in COMMON:
            super().add_argument(action)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *rest: Any, **named: Any) -> None:
        """Show the arguments of the command. With a flag for each option, the usage would fill the screen."""
        shown = [action for action in actions if action.dest not in NAMES]
        super().add_usage(usage, shown, *rest, **named)


class _HelpAll(argparse.Action):
    """Print the help with all options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.formatter_class = argparse.HelpFormatter
        parser.print_help()
        parser.exit()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option, and `--env-file`. The flag of a boolean needs no value."""
    parser.formatter_class = ShortHelp
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="show all options, also rare ones"
    )
    parser.add_argument("--env-file", type=Path, metavar="PATH", help="file of NAME=VALUE lines to read options from")
    for section in SECTIONS:
        group = parser.add_argument_group(section)
        for option in OPTIONS:
            if option.section == section:
                _add_flag(group, option)


def _add_flag(group: argparse._ArgumentGroup, option: Option) -> None:
    words = option.help if not option.default else f"{option.help} [{option.default}{option.unit and ' '}{option.unit}]"
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": _metavar(option)}
    if option.kind is kinds.boolean:
        common |= {"nargs": "?", "const": "true"}
    group.add_argument(option.flag, dest=option.name, help=words.replace("%", "%%"), **common)
    if option.secret:
        words = f"File that holds {option.name}; a flag's value can be seen in the list of processes."
        group.add_argument(
            flag_of(option.file_name), dest=option.file_name, default=argparse.SUPPRESS, metavar="PATH", help=words
        )


def _metavar(option: Option) -> str:
    """Return the choices, the unit or the kind of a value."""
    return _UNITS.get(option.unit, option.unit.upper()) or option.kind.metavar


def given_flags(namespace: argparse.Namespace, rest: Sequence[str] = ()) -> dict[str, str]:
    """Return the flags that `parse_known_args` found, for `load`, which reports unknown ones."""
    given = {name: value for name, value in vars(namespace).items() if name in NAMES}
    unknown = [
        item.partition("=")[0]
        for before, item in zip(("", *rest), rest, strict=False)
        # The text after an unknown flag is its value: it may be a secret, so it is not repeated.
        if item.startswith("-") or not before.startswith("-") or "=" in before
    ]
    return given | dict.fromkeys(unknown, "")
