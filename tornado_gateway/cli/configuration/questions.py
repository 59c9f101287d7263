"""Questions on a terminal."""

import getpass
from collections.abc import Collection, Sequence

from tornado_gateway.config import OPTIONS, Option
from tornado_gateway.config.kinds import is_placeholder

_BY_NAME = {option.name: option for option in OPTIONS}
ACCOUNTS = frozenset({"SETTINGS_FILE", "ENVIRONMENTS_FILE"})  # with one of them, no account has to be entered


def ask_for_options(given: Collection[str]) -> dict[str, str]:
    """Return the account and Redis, except options that are given."""
    answers: dict[str, str] = {}
    if not any(name in given for name in ACCOUNTS):
        answers["ACCOUNT_ID"] = "" if "ACCOUNT_ID" in given else _ask("ACCOUNT_ID", "VWO account ID")
        is_known = "SDK_KEY" in given or "SDK_KEY_FILE" in given
        answers["SDK_KEY"] = "" if is_known else _ask("SDK_KEY", "SDK key of the environment (not shown)")
    if "REDIS_HOST" not in given and "REDIS_SENTINELS" not in given:
        answers["REDIS_HOST"] = _ask(
            "REDIS_HOST", "Host of Redis (empty: none, events are in DATA_DIR)", is_needed=False
        )
        if answers["REDIS_HOST"]:
            answers["REDIS_PORT"] = _ask("REDIS_PORT", "Port of Redis (empty: 6379)", is_needed=False)
            words = "Password of Redis (not shown; empty: none)"
            answers["REDIS_PASSWORD"] = _ask("REDIS_PASSWORD", words, is_needed=False)
    return {name: answer for name, answer in answers.items() if answer}


def _ask(name: str, words: str, *, is_needed: bool = True) -> str:
    """Ask until the value is valid."""
    option = _BY_NAME[name]
    while True:
        text = (getpass.getpass if option.secret else input)(f"{words}: ").strip()
        if not text and not is_needed:
            return ""
        mistake = _mistake(option, text)
        if not mistake:
            return text
        print(f"  expected {mistake}")


def _mistake(option: Option, text: str) -> str:
    if option.rejects_placeholders and is_placeholder(text):
        return "your own value, not a placeholder"
    try:
        option.kind.parse(text)
    except ValueError:
        return option.expected
    return ""


def choose(words: str, choices: Sequence[str]) -> str:
    """Return one of the choices, the first one for an empty line."""
    while True:
        text = input(f"{words} ({', '.join(choices)}) [{choices[0]}]: ").strip().lower()
        if not text or text in choices:
            return text or choices[0]
