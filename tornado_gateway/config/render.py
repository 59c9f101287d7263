"""Show the options: the values in use, `conf/gateway.env`, and the tables of `docs/configuration.md`."""

import textwrap
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tornado_gateway.config.environments import REPLACED, EnvironmentConfig
from tornado_gateway.config.kinds import Option, mask
from tornado_gateway.config.options import DEFAULTS, OPTIONS, SECTIONS, Config
from tornado_gateway.config.values import Invalid

TABLES_START, TABLES_END = (
    "<!-- options: python -m tornado_gateway.config docs/configuration.md -->",
    "<!-- end: options -->",
)


class OptionRow(NamedTuple):
    """One option as an operator sees it."""

    name: str
    value: str
    source: str
    default: str
    help: str
    unit: str = ""
    is_changed: bool = False  # the value differs from the default
    problem: str | None = None  # the value is invalid, and not used


def described(config: Config, invalid: Mapping[str, Invalid] = MappingProxyType({})) -> list[OptionRow]:
    """Every option with its value in the outside's unit, secrets masked, in the order of the table."""
    return [_described(option, config, invalid.get(option.name)) for option in OPTIONS]


def _described(option: Option, config: Config, invalid: Invalid | None) -> OptionRow:
    value = getattr(config, option.attribute)
    row = OptionRow(
        option.name,
        option.shown(value),
        config.source(option.name),
        option.default or "",
        option.help,
        option.unit,
        value != DEFAULTS[option.attribute],
    )
    if invalid is None:
        return row
    return row._replace(value=invalid.shown, source=invalid.source, is_changed=True, problem=invalid.problem)


def described_environments(environments: Iterable[EnvironmentConfig]) -> list[OptionRow]:
    """A row for each environment of ENVIRONMENTS_FILE, with the options that it replaces, secrets masked."""
    return [
        OptionRow(f"environment {one.name}", _own_options(one), str(one.config.environments_file), "", "")
        for one in environments
    ]


def _own_options(environment: EnvironmentConfig) -> str:
    config = environment.config
    own = [o for o in REPLACED if config.source(o.name).startswith(str(config.environments_file))]
    shown = [f"{option.name.lower()}={option.shown(getattr(config, option.attribute))}" for option in own]
    if environment.is_default:
        shown.append("default=true")
    if environment.previous_sdk_keys:
        shown.append(f"previous_sdk_keys={','.join(map(mask, environment.previous_sdk_keys))}")
    if environment.hosts:
        shown.append(f"hosts={','.join(environment.hosts)}")
    return " ".join(shown)


_ENV_FILE_HEAD = """\
# Options of the gateway, all at their defaults. Remove the # in front of a line to change it.
# `tornado-gateway serve --env-file`, `docker run --env-file`, Compose and systemd's EnvironmentFile read it alike: a
# line is a comment, or NAME=VALUE without blanks around =, quotes, export, \\, $ and comments behind the value.
# Rendered by: python -m tornado_gateway.config conf/gateway.env
"""


def render_env_file() -> str:
    """`conf/gateway.env`: every option at its default, as comments."""
    blocks = [_ENV_FILE_HEAD]
    for section in SECTIONS:
        blocks.append(f"\n# {'-' * 4} {section} {'-' * (70 - len(section))}\n")
        for option in OPTIONS:
            if option.section == section:
                blocks.append(_env_file_block(option))
    return "".join(blocks)


def _env_file_block(option: Option) -> str:
    names = [f"#{option.name}={option.default or ''}"] + ([f"#{option.file_name}="] if option.secret else [])
    words = textwrap.wrap(option.help, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join(["", *words, f"# Expects {option.expected}.", *names, ""])


def with_tables(document: str) -> str:
    """Return `docs/configuration.md` with current tables between its markers; the prose stays as it is."""
    before, start, rest = document.partition(f"{TABLES_START}\n")
    _, end, after = rest.partition(TABLES_END)
    if not start or not end:
        raise ValueError(f"{TABLES_START} and {TABLES_END} are not in the document")
    return f"{before}{start}{render_tables()}\n{end}{after}"


def render_tables() -> str:
    """Return the options as Markdown, one table for each section."""
    parts = []
    for section in SECTIONS:
        parts.append(
            f"\n## {section}\n\n| Variable | Flag | Default | Unit | Expects | Meaning |\n|---|---|---|---|---|---|\n"
        )
        parts += [_markdown_line(option) for option in OPTIONS if option.section == section]
    return "".join(parts)


def _markdown_line(option: Option) -> str:
    words = f"{option.help} Secret: can be given as `{option.file_name}`." if option.secret else option.help
    default = f"`{option.default}`" if option.default else ""
    cells = (f"`{option.name}`", f"`{option.flag}`", default, option.unit, option.kind.expected, words)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
