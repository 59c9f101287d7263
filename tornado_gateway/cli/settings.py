"""The commands `settings ...`: the versions of the settings, their differences, and the pin.

They work on the store, also while a gateway runs: its workers follow the store.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import orjson

from tornado_gateway import __version__, core
from tornado_gateway.cli.data_owner import become_owner
from tornado_gateway.cli.environments import selected
from tornado_gateway.cli.output import local_time, paint, print_columns, print_json
from tornado_gateway.config import Config, mask
from tornado_gateway.environments.registry import check_account
from tornado_gateway.errors import GatewayError
from tornado_gateway.process.environments.stores import Stores, data_dir_of, settings_name
from tornado_gateway.quantities import counted
from tornado_gateway.settings.compilation import compile_document
from tornado_gateway.settings.history import Kept, SettingsHistory
from tornado_gateway.store.versions import Pin, Version

_Action = Callable[[SettingsHistory, argparse.Namespace], Awaitable[None]]


def settings(config: Config, arguments: argparse.Namespace) -> int:
    become_owner(config.data_dir)
    action = {"list": _list, "show": _show, "diff": _diff, "pin": _pin, "unpin": _unpin}[arguments.action]
    return asyncio.run(_with_history(selected(config, arguments.environment), arguments, action))


async def _with_history(config: Config, arguments: argparse.Namespace, action: _Action) -> int:
    try:
        async with _open_history(config) as history:
            await action(history, arguments)
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@asynccontextmanager
async def _open_history(config: Config) -> AsyncIterator[SettingsHistory]:
    directory = data_dir_of(config)
    if not config.uses_redis and not (directory / "state.db").is_file():
        raise GatewayError(f"No gateway has stored settings in {directory}. Set DATA_DIR to that of the gateway.")
    state = Stores(config, f"command:{os.getpid()}").of(config).state
    await state.open()
    try:
        yield SettingsHistory(state, settings_name(config), partial(_check, config))
    finally:
        await state.close()


async def _check(config: Config, document: bytes) -> None:
    compiled = compile_document(document, core.Sdk(config.sdk_name, __version__))
    check_account(config.account_id, compiled.settings)


# --- Actions ---


async def _list(history: SettingsHistory, arguments: argparse.Namespace) -> None:
    kept = await history.kept()
    if arguments.json:
        print_json(kept.listing())
        return
    rows = [
        (str(one.number), one.digest, local_time(one.at), one.source, f"{one.size:,}", _notes(one, kept))
        for one in kept[0]
    ]
    print_columns([("VERSION", "DIGEST", "STORED", "SOURCE", "BYTES", ""), *rows])
    if kept.stored.pin is not None:
        print(paint(_pin_text(kept.stored.pin), "yellow"))


async def _show(history: SettingsHistory, arguments: argparse.Namespace) -> None:
    kept = await history.kept()
    version = kept.find(arguments.version)
    document = orjson.loads(await history.document(version))
    if not arguments.show_keys:
        document["sdkKey"] = mask(str(document.get("sdkKey", "")))
    if arguments.json:
        print_json({**asdict(version), "document": document})
        return
    print(f"version {version.number}, {version.digest}: {_notes(version, kept) or 'not in use'}")
    print(f"stored {local_time(version.at)} by {version.by} ({version.source}), {version.size:,} bytes")
    features = [str(feature["key"]) for feature in document["features"]]
    print(f"{counted(len(features), 'feature')}: {', '.join(features)}")


async def _diff(history: SettingsHistory, arguments: argparse.Namespace) -> None:
    kept = await history.kept()
    before, after = kept.find(arguments.before), kept.find(arguments.after)
    changes = await history.differences(before, after)
    if arguments.json:
        print_json({"from": before.digest, "to": after.digest, "changes": [change._asdict() for change in changes]})
        return
    print(f"From version {before.number} ({local_time(before.at)}) to version {after.number} ({local_time(after.at)}):")
    for change in changes:
        print(f"  {change}")
    if not changes:
        print("  no differences")


async def _pin(history: SettingsHistory, arguments: argparse.Namespace) -> None:
    pin = await history.pin(arguments.version, arguments.by or arguments.user, arguments.reason, arguments.seconds)
    if arguments.json:
        print_json(asdict(pin))
    else:
        print(f"{_pin_text(pin)} All workers use it within a second.")


async def _unpin(history: SettingsHistory, arguments: argparse.Namespace) -> None:
    pin = await history.unpin(arguments.by or arguments.user)
    if arguments.json:
        print_json({"unpinned": pin.digest})
    else:
        print(f"Unpinned {pin.digest}. All workers use the latest version within a second.")


# --- Words ---


def _notes(version: Version, kept: Kept) -> str:
    pin = kept.stored.pin
    notes: dict[str, Any] = {
        "in use": version.digest == kept.current,
        "pinned": pin is not None and version.digest == pin.digest,
        "latest from VWO": version.digest == kept.stored.latest,
    }
    return ", ".join(note for note, applies in notes.items() if applies)


def _pin_text(pin: Pin) -> str:
    until = "until it is unpinned" if pin.until is None else f"until {local_time(pin.until)}"
    reason = f" ({pin.reason})" if pin.reason else ""
    return f"Pinned to {pin.digest} by {pin.by} at {local_time(pin.at)} {until}{reason}."
