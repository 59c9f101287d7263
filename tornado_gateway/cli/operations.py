"""The commands of operators: doctor, events, geo, device. `cli.py` parses their arguments and calls them.

Each takes the configuration (or nothing, if it needs none) and returns the exit code. With `--json` stdout is JSON.
"""

import argparse
import asyncio
import os
import pwd
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import orjson
from tornado.httpclient import AsyncHTTPClient

from tornado_gateway.cli.doctor import FAIL, OK, WARN, Finding, examine, finding_of_configuration
from tornado_gateway.cli.output import Progress, paint, print_columns, print_json
from tornado_gateway.cli.stored_events import Backlog, Letter, open_backlog
from tornado_gateway.config import Config
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import download
from tornado_gateway.errors import ConfigError, GatewayError, LocationError

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
_LARGEST_ARCHIVE = 1 << 30
_MEBIBYTE = 1 << 20


def doctor(load: Callable[[], Config], arguments: argparse.Namespace) -> int:
    """1 if anything fails. What is only a warning does not."""
    try:
        config = load()
    except ConfigError as error:
        findings = [finding_of_configuration(problem) for problem in error.problems]
        for finding in () if arguments.json else findings:
            _print_finding(finding)
    else:
        become_owner(config.data_dir)
        findings = asyncio.run(_examine(config, is_quiet=arguments.json))
    failed = sum(finding.state == FAIL for finding in findings)
    warned = sum(finding.state == WARN for finding in findings)
    if arguments.json:
        print_json({"ok": not failed, "findings": [finding.as_json() for finding in findings]})
    else:
        print(f"{len(findings) - failed - warned} ok, {warned} to look at, {failed} failed")
    return 1 if failed else 0


async def _examine(config: Config, *, is_quiet: bool) -> list[Finding]:
    findings = []
    async for finding in examine(config):
        findings.append(finding)
        if not is_quiet:
            _print_finding(finding)
    return findings


def _print_finding(finding: Finding) -> None:
    state = paint(finding.state.ljust(4), _COLOURS[finding.state])
    print(f"{state}  {finding.check:<14}  {finding.message}", flush=True)
    if finding.remedy:
        print(f"      {'':<14}  {paint(f'-> {finding.remedy}', 'bold')}", flush=True)


# Events


_Action = Callable[[Backlog, argparse.Namespace], Awaitable[int]]


def events(config: Config, arguments: argparse.Namespace) -> int:
    become_owner(config.data_dir)
    action = {
        "status": _events_status,
        "list": _events_list,
        "requeue": _events_requeue,
        "export": _events_export,
    }[arguments.action]
    return asyncio.run(_with_backlog(config, arguments, action))


async def _with_backlog(config: Config, arguments: argparse.Namespace, action: _Action) -> int:
    try:
        async with open_backlog(config) as backlog:
            return await action(backlog, arguments)
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1


async def _events_status(backlog: Backlog, arguments: argparse.Namespace) -> int:
    depth = await backlog.depth()
    age = None if depth.oldest_at is None else round(time.time() - depth.oldest_at, 1)
    if arguments.json:
        numbers = {"waiting": depth.waiting, "dead": depth.dead, "oldest_seconds": age}
        unsure = {"oldest_unknown_since": depth.unknown_since, "stuck": depth.stuck}
        print_json({**numbers, **unsure, "where": backlog.where})
        return 0
    print(f"{backlog.where}:")
    if depth.stuck is not None:
        print(f"  {paint(depth.stuck, 'red')}")
    oldest = "" if age is None else f", the oldest for {age:.0f} s"
    if depth.unknown_since is not None:
        oldest += f" (last read {_at(depth.unknown_since)}: the store cannot be read)"
    print(f"  {depth.waiting} events wait for upstream{oldest}")
    print(f"  {depth.dead} events are dead letters")
    return 0


async def _letters(backlog: Backlog) -> list[Letter]:
    """A running gateway may give only the oldest ones; say so."""
    letters = await backlog.letters()
    missing = (await backlog.depth()).dead - sum(letter.count for letter in letters)
    if missing > 0:
        print(f"{missing} more dead events are not shown by {backlog.where}", file=sys.stderr)
    return letters


async def _events_list(backlog: Backlog, arguments: argparse.Namespace) -> int:
    letters = await _letters(backlog)
    if arguments.json:
        print_json([asdict(letter) for letter in letters])
    elif letters:
        rows = [(str(one.id), _at(one.at), str(one.count), one.reason) for one in letters]
        print_columns([("ID", "SINCE", "EVENTS", "REASON"), *rows])
    else:
        print("no dead letters")
    return 0


async def _events_requeue(backlog: Backlog, arguments: argparse.Namespace) -> int:
    if not arguments.ids and not arguments.all:
        print("give the ids of dead letters (tornado-gateway events list), or --all", file=sys.stderr)
        return 2
    moved = await backlog.requeue(None if arguments.all else arguments.ids)
    if arguments.json:
        print_json({"requeued": moved})
    else:
        print(f"{moved} events wait for upstream again")
    return 0 if moved or arguments.all else 1


async def _events_export(backlog: Backlog, arguments: argparse.Namespace) -> int:
    """Each event on a line of its own, with what is known of its letter; the letters stay."""
    letters = await _letters(backlog)
    total = sum(letter.count for letter in letters)
    progress = Progress("exporting", "events")
    done = 0
    with _output(arguments.file) as file:
        for letter in letters:
            about = {"id": letter.id, "reason": letter.reason, "at": letter.at}
            for line in letter.body.splitlines():
                file.write(orjson.dumps({**about, "event": orjson.Fragment(line)}).decode() + "\n")
                done += 1
            progress(done, total)
    progress.close()
    if arguments.file is not None:
        print(f"{done} events in {arguments.file}", file=sys.stderr)
    return 0


def _output(path: Path | None) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdout) if path is None else path.open("w", encoding="utf-8")


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# Location and device


def geo_update(config: Config, arguments: argparse.Namespace) -> int:
    """Download the newest database into DATA_DIR, where a running gateway finds it."""
    if config.maxmind_user_id is None or config.maxmind_license_key is None:
        print("MAXMIND_USER_ID and MAXMIND_LICENSE_KEY are needed to download", file=sys.stderr)
        return 2
    become_owner(config.data_dir)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        path = asyncio.run(_download(config, config.maxmind_user_id, config.maxmind_license_key))
    except LocationError as error:
        print(error, file=sys.stderr)
        return 1
    target = str(path or config.downloaded_location_database)
    if arguments.json:
        print_json({"updated": path is not None, "path": target})
    else:
        print(f"{target} is {'new' if path else 'the newest already'}")
    return 0


async def _download(config: Config, user_id: int, license_key: str) -> Path | None:
    AsyncHTTPClient.configure("tornado.curl_httpclient.CurlAsyncHTTPClient")
    client = AsyncHTTPClient(force_instance=True, max_body_size=_LARGEST_ARCHIVE)
    progress = Progress("downloading", "MiB", _MEBIBYTE)
    try:
        return await download(
            client, user_id=user_id, license_key=license_key, directory=config.data_dir, progress=progress
        )
    finally:
        progress.close()
        client.close()


def geo_lookup(config: Config, arguments: argparse.Namespace) -> int:
    path = config.maxmind_db_path or config.downloaded_location_database
    reader = LocationReader(path, config.geo_map_file)
    if not reader.open():
        print(reader.error, file=sys.stderr)
        return 1
    return _print_facts(reader.lookup(arguments.ip), arguments, f"nothing is known about {arguments.ip}")


def device_lookup(config: Config, arguments: argparse.Namespace) -> int:
    facts = DeviceReader(map_file=config.ua_map_file).facts(arguments.user_agent)
    return _print_facts(dict(facts), arguments, "nothing is known about this user agent")


def _print_facts(facts: dict[str, str], arguments: argparse.Namespace, otherwise: str) -> int:
    if arguments.json:
        print_json(facts)
    elif facts:
        print_columns(list(facts.items()))
    else:
        print(otherwise)
    return 0 if facts else 1


def become_owner(directory: Path) -> None:
    """Of root, make this process the user who owns DATA_DIR.

    Otherwise root's commands would leave files there that the gateway may not write to, and the doctor would find
    everything writable.
    """
    if os.geteuid() != 0 or not directory.is_dir():
        return
    owner = directory.stat()
    if owner.st_uid != 0:
        os.setgroups(_groups(owner.st_uid, owner.st_gid))
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _groups(user: int, group: int) -> Sequence[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:  # a number without a name, as in containers
        return [group]
