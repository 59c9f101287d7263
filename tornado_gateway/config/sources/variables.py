"""Environment variables: options, service links of Kubernetes, and names that are probably misspelt options."""

import re
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

from tornado_gateway.config.options import BY_NAME, NAMES, Config, option_name
from tornado_gateway.config.values import Findings, Given

SERVICE_LINK = "environment, service link of Kubernetes"  # the source of such a value
_LINK = re.compile(r"(?:tcp|udp|sctp)://[^/]+:([0-9]{1,5})")
_QUOTED = re.compile(r"""('.*'|".*")\s*(\s#.*)?""", re.DOTALL)
_COMMENT = re.compile(r"(.*\s)?#.*", re.DOTALL)


def read_variables(environ: Mapping[str, str], findings: Findings) -> tuple[dict[str, Given], dict[str, Given]]:
    """Return the values of variables that are options, and the ports of service links.

    A service named redis sets REDIS_PORT=tcp://10.0.0.1:6379 in every pod of its namespace. Since the operator has not
    set that variable, its port has the lowest precedence.
    """
    values: dict[str, Given] = {}
    ports: dict[str, Given] = {}
    for name, text in ((name, environ[name]) for name in NAMES if name in environ):
        if expected := _mistake(name, text.strip()):
            findings.add(name, "environment", *expected)
        elif name.endswith("_PORT") and (link := _LINK.fullmatch(text.strip())):
            ports[name] = Given(link[1], SERVICE_LINK)
        else:
            values[name] = Given(text, "environment")
    return values, ports


def _mistake(name: str, text: str) -> tuple[str, str] | None:
    """Return the expected and the actual form of a value that was written for a shell."""
    if _QUOTED.fullmatch(text):
        return "a value without quotes (docker --env-file and Kubernetes keep them)", "a value in quotes"
    if name in BY_NAME and not BY_NAME[name].secret and _COMMENT.fullmatch(text):
        return "a value without a comment (docker --env-file and systemd keep it)", "a value with a comment"
    return None


def check_foreign_variables(config: Config, environ: Mapping[str, str], findings: Findings) -> None:
    """Report variables of other programs that change nothing here, if their author must have expected an effect."""
    if not findings.broken.isdisjoint(("REDIS_HOST", "REDIS_SENTINELS")):
        return
    if environ.get("REDIS_URL", "").strip() and not config.uses_redis:
        names = "REDIS_HOST, REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD and REDIS_ENABLE_TLS"
        findings.problems.append(f"REDIS_URL (environment): not an option. Set {names} instead.")
    if environ.get("REDIS_DB", "").strip() not in ("", "0") and config.uses_redis:
        remedy = "Only database 0 is used; set STORE_NAMESPACE to separate data."
        findings.problems.append(f"REDIS_DB (environment): not an option. {remedy}")


# --- Misspelt names ---

_PREFIXES = ("TORNADO_GATEWAY_", "FME_GATEWAY_", "FME_", "VWO_")
_OTHER_NAMES = {
    "POLL_INTERVAL": "POLLING_TIME",
    "POLLING_INTERVAL": "POLLING_TIME",
    "REDIS_PASSWD": "REDIS_PASSWORD",
    "REDIS_PWD": "REDIS_PASSWORD",
    "REDIS_HOSTNAME": "REDIS_HOST",
    "REDIS_TLS": "REDIS_ENABLE_TLS",
    "REDIS_SSL": "REDIS_ENABLE_TLS",
    "FLUSH_INTERVAL": "FLUSH_EVENTS_INTERVAL",
    "TLS_KEY": "TLS_KEY_PATH",
}
_FEWEST_LETTERS = 5  # of a name or word that may be nearly another: HOST and PORT are variables of many programs
_WORDS = {name: name.split("_") for name in NAMES if len(name) >= _FEWEST_LETTERS}
_KINDS = ("ID", "FILE", "PATH", "URL", "TIME", "SECONDS", "BYTES", "REQUIRED", "ENABLED")
_FEWEST_WITHOUT_KIND = 7  # letters of a name that may lack its last word: STREAM and TOKENS may be anything


class Ignored(NamedTuple):
    """Variables that have no effect, in words: misspelt names of options, and service links named like options."""

    misspelt: tuple[str, ...]
    links: tuple[str, ...]


def find_ignored(environ: Mapping[str, str], given: Container[str]) -> Ignored:
    """Return the variables that are nearly options, except options that are given elsewhere."""
    near = [(name, option, environ[name]) for name, option in _near_names(environ) if option_name(option) not in given]
    return Ignored(
        tuple(
            f"{name} (environment): unknown option. Did you mean {option}?"
            for name, option, text in near
            if not _LINK.fullmatch(text)
        ),
        tuple(
            f"{name} is a service link of Kubernetes and has no effect."
            for name, _, text in near
            if _LINK.fullmatch(text)
        ),
    )


def _near_names(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield variables that are no options, and the options that were probably meant."""
    for name, text in environ.items():
        if name not in NAMES and text.strip() and (option := _meant(name.upper())):
            yield name, option


def _meant(name: str) -> str | None:
    """Return the option that has this name, or nearly, behind a prefix or with other separators."""
    own = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
    if own != name and own in NAMES:
        return own
    letters = re.sub("[-_.]", "", own)
    if own in _OTHER_NAMES or len(letters) < _FEWEST_LETTERS:
        return _OTHER_NAMES.get(own)
    return next((option for option, words in _WORDS.items() if _are_near(letters, words)), None)


def _are_near(letters: str, words: list[str]) -> bool:
    """Return whether all words but one occur in the letters, and that one nearly, or not if it is the kind of value."""
    if words[-1] in _KINDS and letters == "".join(words[:-1]):
        return len(letters) >= _FEWEST_WITHOUT_KIND
    for i, word in enumerate(words):
        before, behind = "".join(words[:i]), "".join(words[i + 1 :])
        fits = len(letters) > len(before) + len(behind) and letters.startswith(before) and letters.endswith(behind)
        if fits and _is_near(letters[len(before) : len(letters) - len(behind)], word):
            return True
    return False


def _is_near(given: str, word: str) -> bool:
    """Return whether a word is the same, a plural, an abbreviation, or has one wrong letter."""
    if word.startswith(given) or given == f"{word}S":
        return 2 * len(given) >= len(word) and len(given) > 2
    if min(len(given), len(word)) < _FEWEST_LETTERS or abs(len(given) - len(word)) > 1:
        return False
    same = next((i for i, (a, b) in enumerate(zip(given, word, strict=False)) if a != b), min(len(given), len(word)))
    rests = given[same:], word[same:]
    return rests[0][1:] == rests[1][1:] or rests[0] == rests[1][1:] or rests[0][1:] == rests[1] or _are_swapped(*rests)


def _are_swapped(given: str, word: str) -> bool:
    return given[:2] == word[1::-1] and given[2:] == word[2:]
