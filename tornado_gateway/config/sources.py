"""Read the configuration from flags, environment variables and env files, and report all problems at once."""

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tornado_gateway.config import kinds
from tornado_gateway.config.kinds import Option, flag_of, mask
from tornado_gateway.config.options import BY_FILE_NAME, BY_NAME, NAMES, OPTIONS, SECTIONS, Config, option_name
from tornado_gateway.config.tokens import read_tokens
from tornado_gateway.errors import ConfigError


class _Given(NamedTuple):
    text: str
    source: str


@dataclass(slots=True)
class _Findings:
    """Problems found so far, and the options they concern, to suppress follow-up errors."""

    problems: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def add(self, name: str, source: str, expected: str, got: str) -> None:
        self.problems.append(f"{name} ({source}): expected {expected}, got {got}")
        self.broken.add(option_name(name))

    def add_unknown(self, key: str, problem: str, spell: Callable[[str], str]) -> None:
        name = key.lstrip("-").replace("-", "_").upper()
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f". Did you mean {spell(near[0])}?" if near else ""
        self.problems.append(f"{problem} {key}{hint}")
        self.broken.update(map(option_name, near))


def load(argv_flags: Mapping[str, str], environ: Mapping[str, str], env_file: Path | None = None) -> Config:
    """Return the configuration from flags, environment and file, in this order of precedence. An empty value is unset.

    The keys of `argv_flags` are flags or variables: `--redis-host`, `redis-host`, `REDIS_HOST`.
    Raise `ConfigError` with all problems at once.
    """
    findings = _Findings()
    environment = {name: _Given(environ[name], "environment") for name in NAMES if name in environ}
    _reject_quotes(environment, findings)
    layers = (
        _take_service_links(environment),
        _read_env_file(env_file, findings) if env_file else {},
        environment,
        _read_flags(argv_flags, findings),
    )
    given = {name: value for layer in layers for name, value in layer.items() if value.text.strip()}
    _read_secret_files(given, findings)
    config = _parsed(given, findings)
    _check_account(config, findings)
    _check_foreign_variables(config, environ, findings)
    for names, expected, got in _contradictions(config):
        if findings.broken.isdisjoint(names):
            source = config.sources.get(names[0], "not set")
            findings.problems.append(f"{names[0]} ({source}): expected {expected}, got {got}")
    _check_tokens(config, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    return config


def _parsed(given: Mapping[str, _Given], findings: _Findings) -> Config:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        if option.name not in given:
            continue
        text, source = given[option.name]
        try:
            values[option.attribute] = option.kind.parse(text if option.secret else text.strip())
            sources[option.name] = source
        except ValueError:
            findings.add(option.name, source, option.expected, _quoted(option, text))
    return Config(**values, sources=sources)


def _check_account(config: Config, findings: _Findings) -> None:
    names = ("ACCOUNT_ID", "SDK_KEY", "SETTINGS_FILE")
    if findings.broken.isdisjoint(names) and not (config.account_id or config.sdk_key or config.settings_file):
        findings.problems.append("No account configured. Set ACCOUNT_ID and SDK_KEY, or SETTINGS_FILE to run offline.")


def _check_tokens(config: Config, findings: _Findings) -> None:
    try:
        if config.tokens_file is not None:
            read_tokens(config.tokens_file)
    except ConfigError as error:
        findings.problems += error.problems


def _check_foreign_variables(config: Config, environ: Mapping[str, str], findings: _Findings) -> None:
    """Report variables of other programs that change nothing here, if their author must have expected an effect."""
    if not findings.broken.isdisjoint(("REDIS_HOST", "REDIS_SENTINELS")):
        return
    if environ.get("REDIS_URL", "").strip() and not config.uses_redis:
        names = "REDIS_HOST, REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD and REDIS_ENABLE_TLS"
        findings.problems.append(f"REDIS_URL (environment): not an option. Set {names} instead.")
    if environ.get("REDIS_DB", "").strip() not in ("", "0") and config.uses_redis:
        remedy = "Only database 0 is used; set STORE_NAMESPACE to separate data."
        findings.problems.append(f"REDIS_DB (environment): not an option. {remedy}")


def _contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield violated rules about several options: their names, and the expected and actual value of the first."""
    c = config
    for one, other, is_mutual in (
        ("ACCOUNT_ID", "SDK_KEY", True),
        ("MAXMIND_USER_ID", "MAXMIND_LICENSE_KEY", True),
        ("TLS_CERT_PATH", "TLS_KEY_PATH", True),
        ("REDIS_SENTINEL_MASTER", "REDIS_SENTINELS", True),
        ("REDIS_TLS_CERT_PATH", "REDIS_TLS_KEY_PATH", False),  # a certificate's file may hold its key as well
    ):
        has_one, has_other = (bool(getattr(c, BY_NAME[name].attribute)) for name in (one, other))
        if has_other and not has_one:
            yield (one, other), f"a value, because {other} is set", "nothing"
        if is_mutual and has_one and not has_other:
            yield (other, one), f"a value, because {one} is set", "nothing"
    needing_redis = ("REDIS_PASSWORD", "REDIS_USERNAME", "REDIS_ENABLE_TLS")
    if not c.uses_redis and (given := [name for name in needing_redis if getattr(c, BY_NAME[name].attribute)]):
        yield ("REDIS_HOST", "REDIS_SENTINELS", *given), f"a value, because {given[0]} is set", "nothing"
    if c.redis_cluster and c.redis_sentinels:
        yield ("REDIS_CLUSTER", "REDIS_SENTINELS"), "false, because REDIS_SENTINELS is set", "true"
    elif c.redis_cluster and not c.redis_host:
        yield ("REDIS_HOST", "REDIS_CLUSTER"), "a node of the cluster, because REDIS_CLUSTER is true", "nothing"
    if c.events_per_request > c.max_events_per_request:
        expected = f"at most MAX_EVENTS_PER_REQUEST ({c.max_events_per_request})"
        yield ("EVENTS_PER_REQUEST", "MAX_EVENTS_PER_REQUEST"), expected, f'"{c.events_per_request}"'
    if c.event_queue_limit < c.events_per_request:
        expected = f"at least EVENTS_PER_REQUEST ({c.events_per_request})"
        yield ("EVENT_QUEUE_LIMIT", "EVENTS_PER_REQUEST"), expected, f'"{c.event_queue_limit}"'
    if c.client_auth != "off" and not (c.sdk_key_auth or c.client_tokens or c.tokens_file):
        yield ("SDK_KEY_AUTH", "CLIENT_AUTH"), "true, because no client token is configured", "false"
    if "*" in c.cors_allowed_origins and len(c.cors_allowed_origins) > 1:
        shown = ",".join(c.cors_allowed_origins)
        yield ("CORS_ALLOWED_ORIGINS",), "either * or a list of origins", f'"{shown}"'
    if c.proxy_protocol and not c.trusted_proxies:
        yield ("TRUSTED_PROXIES", "PROXY_PROTOCOL"), "a value, because PROXY_PROTOCOL is set", "nothing"
    if c.port == 0 and c.workers != 1:
        yield ("WORKERS", "PORT"), "1, because every worker would use another free port with PORT=0", f'"{c.workers}"'


def _reject_quotes(environment: dict[str, _Given], findings: _Findings) -> None:
    """Remove values in quotes and report them: they were written for a shell or for --env-file."""
    for name, (text, source) in tuple(environment.items()):
        if _QUOTED.fullmatch(text.strip()):
            del environment[name]
            expected = "a value without quotes (docker --env-file and Kubernetes keep them)"
            findings.add(name, source, expected, "a value in quotes")


def _take_service_links(environment: dict[str, _Given]) -> dict[str, _Given]:
    """Return the ports of Kubernetes service links, and remove the links.

    A service named redis sets REDIS_PORT=tcp://10.0.0.1:6379 in every pod of its namespace. Since the operator has not
    set that variable, its port has the lowest precedence.
    """
    ports = {}
    for name, (text, _) in tuple(environment.items()):
        link = _SERVICE_LINK.fullmatch(text.strip())
        if link and name.endswith("_PORT"):
            del environment[name]
            ports[name] = _Given(link[1], SERVICE_LINK)
    return ports


def _read_flags(argv_flags: Mapping[str, str], findings: _Findings) -> dict[str, _Given]:
    given = {}
    for key, text in argv_flags.items():
        name = key.lstrip("-").replace("-", "_").upper()
        if name in NAMES:
            given[name] = _Given(text, "flag")
        else:
            findings.add_unknown(key, "unknown flag", flag_of)
    return given


def _read_env_file(path: Path, findings: _Findings) -> dict[str, _Given]:
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        findings.problems.append(
            f'--env-file (flag): expected a text file that can be read, got "{path}" ({_why(error)})'
        )
        findings.broken.update(BY_NAME)  # a missing option may be set in that file
        return {}
    given: dict[str, _Given] = {}
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
            given[name] = _Given(value, source)
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


def _read_secret_files(given: dict[str, _Given], findings: _Findings) -> None:
    """Replace every NAME_FILE by NAME with the content of that file."""
    for file_name, option in BY_FILE_NAME.items():
        if file_name not in given:
            continue
        path, source = given.pop(file_name)
        if option.name in given:
            expected = f"either {option.name} or {file_name}"
            findings.add(file_name, source, expected, f"{option.name} as well ({given.pop(option.name).source})")
            continue
        try:
            content = Path(path.strip()).read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            findings.add(file_name, source, "a text file that can be read", f"{_quoted_path(path)} ({_why(error)})")
            continue
        if not content:
            findings.add(file_name, source, "a file that holds the secret", f"{_quoted_path(path)}, which is empty")
            continue
        given[option.name] = _Given(content, f"{source} {file_name}")


def _why(error: OSError | ValueError) -> str:
    """Return the reason without the content, because a decoding error has the bytes, which may be a secret."""
    return (error.strerror or "unreadable") if isinstance(error, OSError) else "not UTF-8"


def _quoted(option: Option, text: str) -> str:
    if option.secret:
        return _in_quotes(mask(text))
    # redis://:password@host in REDIS_HOST is a common mistake, and no reason to print the password.
    return _in_quotes(re.sub(r"^([a-z]+://)?.*@", r"\1****@", text, flags=re.DOTALL | re.IGNORECASE))


def _quoted_path(text: str) -> str:
    """Quote a path. Without a slash it is more likely the secret itself, given by mistake, and is masked."""
    return _in_quotes(text if "/" in text else mask(text))


def _in_quotes(text: str) -> str:
    return json.dumps(text if len(text) <= 100 else f"{text[:100]}...", ensure_ascii=False)


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
