"""Read the configuration from flags, environment variables and an env file, and report all problems at once."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tornado_gateway.config.environments import environments_of
from tornado_gateway.config.kinds import flag_of
from tornado_gateway.config.options import NAMES, OPTIONS, Config, contradictions, option_name
from tornado_gateway.config.sources.env_file import read_env_file
from tornado_gateway.config.sources.variables import (
    SERVICE_LINK,
    check_foreign_variables,
    find_ignored,
    read_variables,
)
from tornado_gateway.config.tokens import read_tokens, unknown_environments
from tornado_gateway.config.values import Findings, Given, Invalid, parsed, read_secret_files
from tornado_gateway.errors import ConfigError, SettingsFileError

# Options that name an account. Commands that need none ignore them, because they may be missing or wrong.
_OF_ACCOUNTS = ("ACCOUNT_ID", "SDK_KEY", "SDK_KEY_FILE", "SETTINGS_FILE", "ENVIRONMENTS_FILE")


class Examined(NamedTuple):
    """A configuration that may be invalid: invalid options have their default in `config`."""

    config: Config
    problems: tuple[str, ...]
    invalid: Mapping[str, Invalid]
    given: Mapping[str, str]  # values as text, secrets included, or the names of their files
    unreadable: Collection[str] = ()  # options with a file that cannot be read

    @property
    def error(self) -> ConfigError:
        """The problems as an error."""
        is_about_settings = len(self.problems) == 1 and self.unreadable == {"SETTINGS_FILE"}
        return SettingsFileError(self.problems) if is_about_settings else ConfigError(self.problems)


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
    examined = examine(argv_flags, environ, env_file, with_account=with_account)
    if examined.problems:
        raise examined.error
    return examined.config


def examine(
    argv_flags: Mapping[str, str],
    environ: Mapping[str, str],
    env_file: Path | None = None,
    *,
    with_account: bool = True,
) -> Examined:
    """Return the configuration as `load`, together with its problems."""
    findings = Findings()
    variables, ports = read_variables(environ, findings)
    in_file = read_env_file(env_file, findings) if env_file else {}
    flags = _read_flags(argv_flags, findings)
    layers = (ports, in_file, variables, flags)
    given = {name: value for layer in layers for name, value in layer.items() if value.text.strip()}
    for name in () if with_account else _OF_ACCOUNTS:
        given.pop(name, None)
    texts = {name: value.text for name, value in given.items() if value.source != SERVICE_LINK}
    ignored = find_ignored(environ, findings.broken.union(map(option_name, given)))
    read_secret_files(given, findings)
    values, sources = parsed(given, findings, OPTIONS)
    config = Config(**values, sources=sources, misspelt=ignored.misspelt)
    config = replace(config, service_links=(*_used_links(config), *ignored.links))
    _check(config, environ, findings, with_account=with_account)
    # Misspelt names alone are no problem: they may be of other programs. Together with one they may explain it.
    problems = (*findings.problems, *ignored.misspelt) if findings.problems else ()
    return Examined(config, problems, findings.invalid, texts, findings.unreadable)


def _used_links(config: Config) -> list[str]:
    words = "is a service link of Kubernetes; its port is used."
    return [f"{name} {words}" for name, source in config.sources.items() if source == SERVICE_LINK]


def _check(config: Config, environ: Mapping[str, str], findings: Findings, *, with_account: bool) -> None:
    """Report violated rules about several options, and invalid files."""
    if with_account:
        _check_account(config, findings)
    check_foreign_variables(config, environ, findings)
    for names, expected, got in contradictions(config):
        if findings.broken.isdisjoint(names):
            source = config.sources.get(names[0], "not set")
            findings.problems.append(f"{names[0]} ({source}): expected {expected}, got {got}")
    _check_files(config, findings)


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


def _read_flags(argv_flags: Mapping[str, str], findings: Findings) -> dict[str, Given]:
    given = {}
    for key, text in argv_flags.items():
        name = key.lstrip("-").replace("-", "_").upper()
        if name in NAMES:
            given[name] = Given(text, "flag")
        else:
            findings.add_unknown(key, "unknown flag", flag_of)
    return given
