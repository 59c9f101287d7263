"""Read the configuration from flags, environment variables and env files, and report all problems at once."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tornado_gateway.config import kinds
from tornado_gateway.config.environments import environments_of
from tornado_gateway.config.kinds import Option, flag_of
from tornado_gateway.config.options import BY_NAME, NAMES, OPTIONS, SECTIONS, Config, contradictions
from tornado_gateway.config.tokens import read_tokens, unknown_environments
from tornado_gateway.config.values import Findings, Given, parsed, read_secret_files, why
from tornado_gateway.errors import ConfigError

# Options that name an account. Commands that need none ignore them, because they may be missing or wrong.
_OF_ACCOUNTS = ("ACCOUNT_ID", "SDK_KEY", "SDK_KEY_FILE", "SETTINGS_FILE", "ENVIRONMENTS_FILE")


def load(
    argv_flags: Mapping[str, str],
    environ: Mapping[str, str],
    env_file: Path | None = None,
    *,
    with_account: bool = True,
) -> Config:
    """Return the configuration from flags, environment and file, in this order of precedence. An empty value is unset.

    If not `with_account`, the options of the account are ignored. The keys of `argv_flags` are flags or variables:
    `--redis-host`, `redis-host`, `REDIS_HOST`.
    Raise `ConfigError` with all problems at once.
    """
    findings = Findings()
    environment = {name: Given(environ[name], "environment") for name in NAMES if name in environ}
    _reject_quotes(environment, findings)
    layers = (
        _take_service_links(environment),
        _read_env_file(env_file, findings) if env_file else {},
        environment,
        _read_flags(argv_flags, findings),
    )
    given = {name: value for layer in layers for name, value in layer.items() if value.text.strip()}
    for name in () if with_account else _OF_ACCOUNTS:
        given.pop(name, None)
    read_secret_files(given, findings)
    values, sources = parsed(given, findings, OPTIONS)
    config = Config(**values, sources=sources)
    if with_account:
        _check_account(config, findings)
    _check_foreign_variables(config, environ, findings)
    for names, expected, got in contradictions(config):
        if findings.broken.isdisjoint(names):
            source = config.sources.get(names[0], "not set")
            findings.problems.append(f"{names[0]} ({source}): expected {expected}, got {got}")
    _check_files(config, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    return config


def _check_files(config: Config, findings: Findings) -> None:
    """Read the files that are read again when they change."""
    try:
        names = {environment.name for environment in environments_of(config)}
        tokens = read_tokens(config.tokens_file) if config.tokens_file is not None else ()
    except ConfigError as error:
        findings.problems += error.problems
        return
    if config.environments_file is None:  # with a file, tokens of environments that are not in it are only logged
        findings.problems += unknown_environments(tokens, names)


def _check_account(config: Config, findings: Findings) -> None:
    names = ("ACCOUNT_ID", "SDK_KEY", "SETTINGS_FILE", "ENVIRONMENTS_FILE")
    if findings.broken.isdisjoint(names) and not any(
        (config.account_id, config.sdk_key, config.settings_file, config.environments_file)
    ):
        findings.problems.append("No account configured. Set ACCOUNT_ID and SDK_KEY, or SETTINGS_FILE to run offline.")


def _check_foreign_variables(config: Config, environ: Mapping[str, str], findings: Findings) -> None:
    """Report variables of other programs that change nothing here, if their author must have expected an effect."""
    if not findings.broken.isdisjoint(("REDIS_HOST", "REDIS_SENTINELS")):
        return
    if environ.get("REDIS_URL", "").strip() and not config.uses_redis:
        names = "REDIS_HOST, REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD and REDIS_ENABLE_TLS"
        findings.problems.append(f"REDIS_URL (environment): not an option. Set {names} instead.")
    if environ.get("REDIS_DB", "").strip() not in ("", "0") and config.uses_redis:
        remedy = "Only database 0 is used; set STORE_NAMESPACE to separate data."
        findings.problems.append(f"REDIS_DB (environment): not an option. {remedy}")


def _reject_quotes(environment: dict[str, Given], findings: Findings) -> None:
    """Remove values in quotes and report them: they were written for a shell or for --env-file."""
    for name, (text, source) in tuple(environment.items()):
        if _QUOTED.fullmatch(text.strip()):
            del environment[name]
            expected = "a value without quotes (docker --env-file and Kubernetes keep them)"
            findings.add(name, source, expected, "a value in quotes")


def _take_service_links(environment: dict[str, Given]) -> dict[str, Given]:
    """Return the ports of Kubernetes service links, and remove the links.

    A service named redis sets REDIS_PORT=tcp://10.0.0.1:6379 in every pod of its namespace. Since the operator has not
    set that variable, its port has the lowest precedence.
    """
    ports = {}
    for name, (text, _) in tuple(environment.items()):
        link = _SERVICE_LINK.fullmatch(text.strip())
        if link and name.endswith("_PORT"):
            del environment[name]
            ports[name] = Given(link[1], SERVICE_LINK)
    return ports


def _read_flags(argv_flags: Mapping[str, str], findings: Findings) -> dict[str, Given]:
    given = {}
    for key, text in argv_flags.items():
        name = key.lstrip("-").replace("-", "_").upper()
        if name in NAMES:
            given[name] = Given(text, "flag")
        else:
            findings.add_unknown(key, "unknown flag", flag_of)
    return given


def _read_env_file(path: Path, findings: Findings) -> dict[str, Given]:
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        findings.problems.append(
            f'--env-file (flag): expected a text file that can be read, got "{path}" ({why(error)})'
        )
        findings.broken.update(BY_NAME)  # a missing option may be set in that file
        return {}
    given: dict[str, Given] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        source = f"file {path}:{number}"
        name, value, problem = _parse_line(line)
        if name and name not in NAMES:
            findings.add_unknown(name, f"{path} line {number}: unknown option", str)
        elif problem and not name:
            findings.problems.append(f"{path} line {number}: expected {problem[0]}")
        elif problem:  # never with the line itself: it may hold a secret
            findings.add(name, source, *problem)
        elif name in given:
            findings.add(name, source, "every variable once", f"it again after {given[name].source}")
        else:
            given[name] = Given(value, source)
    return given


_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:\s#.*)?""")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://[^/]+:([0-9]{1,5})")
SERVICE_LINK = "environment, service link of Kubernetes"  # the source of such a value


def _parse_line(line: str) -> tuple[str, str, tuple[str, str] | None]:
    """Return name, value and, if the line is invalid, the expected and the actual form."""
    assignment = _ASSIGNMENT.fullmatch(line.strip())
    if not assignment:
        return "", "", ("KEY=VALUE or a comment", "something else")
    name, text = assignment.groups()
    if not text.startswith(("'", '"')):
        return name, re.split(r"(?:^|\s+)#", text, maxsplit=1)[0], None
    quoted = _QUOTED.fullmatch(text)
    if not quoted:
        return name, "", ("a closing quote and nothing after it but a comment", "something else")
    if quoted[2] is None:
        return name, quoted[1], None
    return name, re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), quoted[2]), None


# --- Flags ---


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option, and `--env-file`. The flag of a boolean needs no value."""
    parser.add_argument("--env-file", type=Path, metavar="PATH", help="file of KEY=VALUE lines to read options from")
    for section in SECTIONS:
        group = parser.add_argument_group(section)
        for option in OPTIONS:
            if option.section == section:
                _add_flag(group, option)


def _add_flag(group: argparse._ArgumentGroup, option: Option) -> None:
    words = option.help if not option.default else f"{option.help} [{option.default}{option.unit and ' '}{option.unit}]"
    common: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "metavar": "PATH" if option.kind in (kinds.path, kinds.file) else "X",
    }
    if option.kind is kinds.boolean:
        common |= {"nargs": "?", "const": "true", "metavar": "BOOL"}
    group.add_argument(option.flag, dest=option.name, help=words.replace("%", "%%"), **common)
    if option.secret:
        words = f"File that holds {option.name}; a flag's value can be seen in the list of processes."
        group.add_argument(
            flag_of(option.file_name), dest=option.file_name, default=argparse.SUPPRESS, metavar="PATH", help=words
        )


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
