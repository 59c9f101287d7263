"""The commands `events ...`: waiting events and dead letters."""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import orjson

from tornado_gateway.cli.data_owner import become_owner
from tornado_gateway.cli.environments import selected
from tornado_gateway.cli.output import Progress, local_time, paint, print_columns, print_json
from tornado_gateway.cli.stored_events import Letter, StoredEvents, open_stored_events
from tornado_gateway.config import Config
from tornado_gateway.errors import GatewayError
from tornado_gateway.quantities import counted, duration

NEEDS_IDS = "Give the IDs of dead letters (see `tornado-gateway events list`), or --all."

_Action = Callable[[StoredEvents, argparse.Namespace], Awaitable[int]]


def events(config: Config, arguments: argparse.Namespace) -> int:
    become_owner(config.data_dir)
    action = {
        "status": _events_status,
        "list": _events_list,
        "requeue": _events_requeue,
        "export": _events_export,
        "groups": _events_groups,
        "delete": _events_delete,
    }[arguments.action]
    return asyncio.run(_with_stored_events(selected(config, arguments.environment), arguments, action))


async def _with_stored_events(config: Config, arguments: argparse.Namespace, action: _Action) -> int:
    try:
        async with open_stored_events(config) as stored:
            return await action(stored, arguments)
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1


async def _events_status(stored: StoredEvents, arguments: argparse.Namespace) -> int:
    depth = await stored.depth()
    age = None if depth.oldest_at is None else round(time.time() - depth.oldest_at, 1)
    if arguments.json:
        counts = {"waiting": depth.waiting, "dead": depth.dead}
        numbers = {**(dict.fromkeys(counts) if depth.is_stale else counts), "oldest_seconds": age}
        last_known = {"last_known": counts if depth.is_stale else None}
        unsure = {**last_known, "oldest_unknown_since": depth.unknown_since, "stuck": depth.stuck}
        print_json({**numbers, **unsure, "where": stored.where})
        return 0
    print(f"{stored.where}:")
    if depth.stuck is not None:
        print(f"  {paint(depth.stuck, 'red')}")
    oldest = "" if age is None else f", oldest {duration(age)}"
    if depth.unknown_since is not None:
        oldest += f" (last read {local_time(depth.unknown_since)}; the store cannot be read now)"
    if depth.is_stale:
        since = "" if depth.unknown_since is None else f" since {local_time(depth.unknown_since)}"
        print(f"  waiting and dead events are unknown{since}: last known {depth.waiting} waiting, {depth.dead} dead")
        return 0
    print(f"  {counted(depth.waiting, 'event')} waiting{oldest}")
    print(f"  {counted(depth.dead, 'dead event')}")
    return 0


async def _letters(stored: StoredEvents, arguments: argparse.Namespace) -> list[Letter]:
    """Return the dead letters. If a running gateway returns only the oldest ones, print how many are missing."""
    letters = await stored.letters(shows_keys=arguments.show_keys)
    missing = (await stored.depth()).dead - sum(letter.count for letter in letters)
    if missing > 0:
        print(f"{counted(missing, 'more dead event')} not listed by {stored.where}", file=sys.stderr)
    return letters


async def _events_list(stored: StoredEvents, arguments: argparse.Namespace) -> int:
    letters = await _letters(stored, arguments)
    if arguments.json:
        print_json([asdict(letter) for letter in letters])
    elif letters:
        rows = [(str(one.id), local_time(one.at), str(one.count), one.reason) for one in letters]
        print_columns([("ID", "SINCE", "EVENTS", "REASON"), *rows])
    else:
        print("No dead letters.")
    return 0


async def _events_groups(stored: StoredEvents, arguments: argparse.Namespace) -> int:
    found = await stored.groups()
    if arguments.json:
        print_json(found)
        return 0
    if not found["complete"]:
        print(found.get("unreadable") or "Only the oldest dead letters are counted.", file=sys.stderr)
    rows = [(str(one["events"]), one["event"], local_time(one["last_at"]), one["reason"]) for one in found["groups"]]
    if rows:
        print_columns([("EVENTS", "EVENT", "LAST", "REASON"), *rows])
    else:
        print("No dead letters.")
    return 0


async def _events_delete(stored: StoredEvents, arguments: argparse.Namespace) -> int:
    return await _change(stored.discard, "discarded", "Deleted", arguments)


async def _events_requeue(stored: StoredEvents, arguments: argparse.Namespace) -> int:
    return await _change(stored.requeue, "requeued", "Requeued", arguments)


async def _change(
    change: Callable[[Sequence[str] | None], Awaitable[int]], name: str, word: str, arguments: argparse.Namespace
) -> int:
    """Change the chosen dead letters and print how many. `name` is that of the number in JSON, `word` that in text."""
    if not arguments.ids and not arguments.all:
        print(NEEDS_IDS, file=sys.stderr)
        return 2
    changed = await change(None if arguments.all else arguments.ids)
    if arguments.json:
        print_json({name: changed})
    else:
        print(f"{word} {counted(changed, 'event')}.")
    return 0 if changed or arguments.all else 1


async def _events_export(stored: StoredEvents, arguments: argparse.Namespace) -> int:
    """Write each event on a line of its own, with ID, reason and time of its dead letter. The dead letters are kept."""
    letters = await _letters(stored, arguments)
    total = sum(letter.count for letter in letters)
    progress = Progress("exporting", "events")
    done = 0
    with _output(arguments.file) as file:
        for letter in letters:
            about = {"id": letter.id, "reason": letter.reason, "response": letter.response, "at": letter.at}
            for line in letter.body.splitlines():
                file.write(orjson.dumps({**about, "event": orjson.Fragment(line)}).decode() + "\n")
                done += 1
            progress(done, total)
    progress.close()
    if arguments.file is not None:
        print(f"Wrote {counted(done, 'event')} to {arguments.file}.", file=sys.stderr)
    return 0


def _output(path: Path | None) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdout) if path is None else path.open("w", encoding="utf-8")
