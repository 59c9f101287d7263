"""Files of words that replace the names in locations and device facts (GEO_MAP_FILE, UA_MAP_FILE)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import orjson

from tornado_gateway.errors import ConfigError

Words = dict[str, dict[str, str]]


def read_words(path: Path, sections: Sequence[str]) -> Words:
    """Read a JSON file of `{section: {word: replacement}}`; raise ConfigError with every problem in it."""
    expected = "expected an object with some of the keys " + ", ".join(sections)
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"{path}: {expected}, got no readable file ({error.strerror})"]) from None
    except orjson.JSONDecodeError as error:
        raise ConfigError([f"{path}: {expected}, got no valid JSON ({error})"]) from None
    if not isinstance(document, dict):
        raise ConfigError([f"{path}: {expected}, got {_shown(document)}"])
    problems = [problem for section, words in document.items() for problem in _problems(section, words, sections)]
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return {section: document.get(section, {}) for section in sections}


def digest_of(words: Words) -> str:
    return hashlib.sha256(orjson.dumps(words, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _problems(section: str, words: object, sections: Sequence[str]) -> list[str]:
    if section not in sections:
        return [f"{section}: expected one of {', '.join(sections)}"]
    if not isinstance(words, dict):
        return [f"{section}: expected an object of texts, got {_shown(words)}"]
    return [
        f"{section}.{word}: expected a text that is not empty, got {_shown(replacement)}"
        for word, replacement in words.items()
        if not isinstance(replacement, str) or not replacement.strip()
    ]


def _shown(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
