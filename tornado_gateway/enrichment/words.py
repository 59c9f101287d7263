"""Files of words that replace the names in locations and device facts (GEO_MAP_FILE, UA_MAP_FILE)."""

from collections.abc import Iterable
from pathlib import Path

import orjson

from tornado_gateway.errors import ConfigError

Words = dict[str, dict[str, str]]


def read_words(path: Path, sections: Iterable[str]) -> Words:
    """Read a JSON file of `{section: {word: replacement}}`; raise ConfigError with every problem in it."""
    sections = tuple(sections)
    expected = "expected an object with some of the keys " + ", ".join(sections)
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"{path}: {expected}, got no readable file ({error.strerror})"]) from None
    except orjson.JSONDecodeError as error:
        raise ConfigError([f"{path}: {expected}, got no valid JSON ({error})"]) from None
    if not isinstance(document, dict):
        raise ConfigError([f"{path}: {expected}, got {_shown(document)}"])
    problems = []
    for section, words in document.items():
        if section not in sections:
            problems.append(f"{path}: {section}: expected one of {', '.join(sections)}")
        elif not isinstance(words, dict):
            problems.append(f"{path}: {section}: expected an object of texts, got {_shown(words)}")
        else:
            problems += [
                f"{path}: {section}.{word}: expected a text that is not empty, got {_shown(replacement)}"
                for word, replacement in words.items()
                if not isinstance(replacement, str) or not replacement.strip()
            ]
    if problems:
        raise ConfigError(problems)
    return {section: document.get(section, {}) for section in sections}


def _shown(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
