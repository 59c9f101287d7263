"""The environments of ENVIRONMENTS_FILE: each is a configuration with some options replaced."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tornado_gateway.config import kinds
from tornado_gateway.config.kinds import Kind, Option
from tornado_gateway.config.options import BY_NAME, Config, contradictions
from tornado_gateway.config.values import Findings, Given, parsed, read_blocks, read_secret_files
from tornado_gateway.errors import ConfigError

LARGEST_NUMBER = 10**18  # no option has a larger one, and Python does not show numbers of any length
DEFAULT_NAME = "default"  # of the only environment without a file

# Options that an environment replaces. All others are the gateway's.
REPLACED = tuple(
    BY_NAME[name]
    for name in (
        "ACCOUNT_ID",
        "SDK_KEY",
        "DECISION_REQUIRED",
        "CORS_ALLOWED_ORIGINS",
        "EVENT_QUEUE_LIMIT",
        "INTERNAL_EVENTS",
        "SETTINGS_FILE",
        "WEBHOOK_TOKEN",
        "UPSTREAM_URL",
        "COLLECT_URL",
        "STICKY_DECISIONS",
        "ALIASING_ENABLED",
    )
)


def _row(name: str, kind: Kind[Any], *, secret: bool = False) -> Option:
    return Option("", name, kind, None, "", secret=secret, attribute=name.lower())


_NAME = kinds.matching(r"[a-z0-9][a-z0-9-]{0,31}", "lower-case letters, digits and -, at most 32")
_OWN = (
    _row("NAME", _NAME),
    _row("DEFAULT", kinds.boolean),
    _row("PREVIOUS_SDK_KEYS", kinds.list_of(kinds.word.parse, "a list of texts without blanks"), secret=True),
    _row(
        "HOSTS",
        kinds.list_of(lambda text: kinds.host.parse(text).lower().rstrip("."), "a list of host names without port"),
    ),
)
_ROWS = {row.name: row for row in (*_OWN, *REPLACED)}
_KEYS = {name.lower(): name for name in _ROWS} | {
    row.file_name.lower(): row.file_name for row in REPLACED if row.secret
}


@dataclass(frozen=True, slots=True)
class EnvironmentConfig:
    """One environment: its name, the configuration with its options replaced, and how requests name it."""

    name: str
    config: Config
    previous_sdk_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()  # lower case, without port
    is_default: bool = False  # requests that name no environment belong to it

    @property
    def sdk_keys(self) -> tuple[str, ...]:
        """The current key, then the previous ones."""
        return (*filter(None, [self.config.sdk_key]), *self.previous_sdk_keys)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that logs must not contain."""
        return (*self.sdk_keys, *filter(None, [self.config.webhook_token]))


def environments_of(config: Config) -> tuple[EnvironmentConfig, ...]:
    """Return the environments of the file as it is now; without a file one, with `config` itself.

    Raise ConfigError with all problems at once.
    """
    if config.environments_file is None:
        return (EnvironmentConfig(DEFAULT_NAME, config, is_default=True),)
    findings = Findings(spell=str.lower)
    environments = _read(config, config.environments_file, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    return environments


def files_of(config: Config) -> tuple[Path, ...]:
    """Return the file and those that it names, as far as it can be read. Their changes change the environments."""
    path = config.environments_file
    if path is None:
        return ()
    blocks = _blocks(path, Findings(spell=str.lower))
    named = [value for block in blocks for key, value in block.items() if key.endswith("_file")]
    return (path, *(path.parent / value for value in named if isinstance(value, str)))


def _read(config: Config, path: Path, findings: Findings) -> tuple[EnvironmentConfig, ...]:
    blocks = _blocks(path, findings)
    if len(blocks) > config.max_environments:
        findings.problems.append(f"{path}: expected at most {config.max_environments} environments, got {len(blocks)}")
        return ()
    found = [_environment(config, path, number, block, findings) for number, block in enumerate(blocks, 1)]
    environments = [environment for environment in found if environment is not None]
    findings.problems += _repetitions(path, environments)
    if len(environments) == 1:
        environments = [replace(environments[0], is_default=True)]
    return tuple(environments)


def _blocks(path: Path, findings: Findings) -> Sequence[Mapping[str, Any]]:
    """Return the tables `[[environment]]`. There is a problem if there are none."""
    blocks, problems = read_blocks(path, "environment", str(path))
    findings.problems += problems
    return blocks


def _environment(
    config: Config, path: Path, number: int, block: Mapping[str, Any], findings: Findings
) -> EnvironmentConfig | None:
    name = block.get("name")
    source = f"{path}, environment {name if isinstance(name, str) and name else number}"[:200]
    own = Findings(spell=str.lower)
    given = dict(_given(block, source, path.parent, own))
    read_secret_files(given, own, path.parent)
    values, sources = parsed(given, own, _ROWS.values())
    for required in ("NAME", "ACCOUNT_ID", "SDK_KEY"):
        if required not in own.broken and _ROWS[required].attribute not in values:
            own.add(required, source, "a value", "nothing")
    findings.problems += own.problems
    if own.problems:
        return None
    replaced = _replaced(config, values, sources)
    findings.problems += _own_contradictions(replaced, sources)
    return EnvironmentConfig(
        values["name"],
        replaced,
        values.get("previous_sdk_keys", ()),
        values.get("hosts", ()),
        values.get("default", False),
    )


def _given(block: Mapping[str, Any], source: str, directory: Path, findings: Findings) -> Iterator[tuple[str, Given]]:
    """Yield the values as text, by the names of their options."""
    for key, value in block.items():
        name = _KEYS.get(key)
        if name is None:
            findings.add_unknown(key, f"{source}: unknown key", str.lower, _KEYS.values())
        elif (text := _as_text(value)) is None:
            row = _ROWS.get(name)
            findings.add(name, source, row.expected if row else "a path", "another type of value")
        elif value == [] and name == "CORS_ALLOWED_ORIGINS":  # the gateway's option, mostly *, would apply
            findings.add(name, source, _ROWS[name].expected, "an empty list")
        elif text.strip():
            yield name, Given(str(directory / text) if name == "SETTINGS_FILE" else text, source)


def _as_text(value: object) -> str | None:
    """Return a value of TOML as the text of an option, None if no option has such values."""
    if isinstance(value, bool):
        return kinds.boolean.show(value)
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < LARGEST_NUMBER):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) and item and "," not in item for item in value):
        return ",".join(value)
    return None


def _replaced(config: Config, values: Mapping[str, Any], sources: Mapping[str, str]) -> Config:
    options = {row.attribute: values[row.attribute] for row in REPLACED if row.attribute in values}
    if "upstream_url" in options and config.source("COLLECT_URL") == "default":
        options.setdefault("collect_url", "")  # follows UPSTREAM_URL
    return replace(config, **options, sources={**config.sources, **sources}, environment_name=values["name"])


def _own_contradictions(config: Config, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield violated rules about options that the environment replaces; the others are reported without it."""
    for names, expected, got in contradictions(config):
        if names[0] in sources:
            yield f"{names[0].lower()} ({sources[names[0]]}): expected {expected}, got {got}"


def _repetitions(path: Path, environments: Iterable[EnvironmentConfig]) -> Iterator[str]:
    """Yield a problem for each name, key, host and token that occurs twice, and for a second default."""
    owners: dict[tuple[str, object], str] = {}
    for environment in environments:
        for kind, key, value in _unique(environment):
            if (kind, value) in owners:
                expected = f"a value that occurs once, got that of environment {owners[kind, value]}"
                yield f"{key} ({path}, environment {environment.name}): expected {expected}"
            owners[kind, value] = environment.name


def _unique(environment: EnvironmentConfig) -> Iterator[tuple[str, str, object]]:
    """Yield the values that may occur once in the file: their sort, the key in the file, the value."""
    yield "name", "name", environment.name
    yield "key", "sdk_key", environment.config.sdk_key
    for sdk_key in environment.previous_sdk_keys:
        yield "key", "previous_sdk_keys", sdk_key
    for host in environment.hosts:
        yield "host", "hosts", host
    if environment.config.webhook_token is not None:
        yield "token", "webhook_token", environment.config.webhook_token
    if environment.is_default:
        yield "default", "default", True
