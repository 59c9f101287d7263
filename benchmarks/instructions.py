"""User-space instructions per request, counted by valgrind: the counts hardly depend on the machine and its load.

    scripts/bench instructions               count all cases, and store the result
    scripts/bench instructions --compare     count, and fail if a case needs 3 % more than in the stored result
    python benchmarks/instructions.py --commit 1337aa6                          another commit and this checkout, stored
    python benchmarks/instructions.py --commit 1337aa6 --cases main constant    the same for some cases, not stored

All events are delivered to a stand-in for the vendor. Groups of 1 are requests one after the other; groups of 32 arrive
at the same moment, and their events are committed together.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import accounts
import openfeature
from compare import built
from measure import (
    COMPILED,
    CORES,
    HERE,
    PURE,
    Effort,
    Row,
    UnavailableError,
    accepts,
    answers,
    end_cleanly_when_told,
    family_of,
    fetch_json,
    free_port,
    process,
    say,
)
from report import RESULTS, Column, Result, save
from servers import directory, redis, vendor

FEATURES = 100
REQUESTS = 1280
WARM_UP_REQUESTS = 1280  # after these, each experiment has a sample
GROUPS = (1, 32)
KNOWN_VISITORS = 64
PERCENT = 3.0  # largest growth that passes
START_SECONDS = 240.0
QUIET_SECONDS = 1.0
IDLE_SECONDS = 4.0
KEY_QUERY = accounts.key_query()
NOTES = (
    "User-space instructions of the process that responds, with all its threads, until the last full batch of events "
    "has been delivered; system calls are not included.",
    "A connection sends few different heads, as a client does; those of /events/t differ in their query, as those of "
    "SDKs do. Heads that differ in more than that are read by the parser: in pure Python that is 31,000 instructions "
    "more for main.",
)
# A program under valgrind is about 50 times slower, so that for it time passes 50 times faster. What it does in regular
# intervals would be counted 50 times as often for each request, threads would be switched in the middle of a turn of
# the loop, and the latency of each request would be measured because there seem to be few.
SLOW_DOWN = """
import sys, uvloop
sys.setswitchinterval(0.25)
call_later = uvloop.Loop.call_later
uvloop.Loop.call_later = lambda loop, delay, *args, **options: call_later(loop, 50 * delay, *args, **options)
try:
    import tornado_gateway.telemetry.observer as observer
except ImportError:  # an older commit
    import tornado_gateway.metrics as observer
observer.BUSY_REQUESTS_PER_SECOND = -1  # busy after the first interval
"""

Requests = Iterator[bytes]
Counts = dict[str, dict[int, float]]  # by case and build, then by size of the groups


class Build(NamedTuple):
    name: str
    path: str  # PYTHONPATH
    checkout: Path


class Counted(NamedTuple):
    """A server under valgrind."""

    pid: int  # of the process that responds
    port: int
    vendor_port: int  # 0: it has no events
    folder: Path  # of valgrind's files


# --- Servers ---


@contextlib.contextmanager
def gateway(
    build: Build, kind: Callable[..., Any], *, uses_redis: bool = False, environments: int = 0, **options: object
) -> Iterator[Counted]:
    with directory() as folder, vendor() as vendor_port, contextlib.ExitStack() as stack:
        if uses_redis:
            options |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": stack.enter_context(redis())}
        options |= settings_options(folder, accounts.account(FEATURES, kind), environments)
        (folder / "sitecustomize.py").write_text(SLOW_DOWN)
        port = free_port()
        options |= {
            "PYTHONPATH": f"{folder}:{build.path}",
            "PORT": port,
            "WORKERS": 1,
            "DECISION_REQUIRED": "true",
            "DATA_DIR": folder / "data",
            "UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}",
            "EVENT_QUEUE_LIMIT": 100_000_000,
            "SHUTDOWN_SECONDS": 2,
        }
        command = [
            "-m",
            "tornado_gateway",
            "serve",
            "--host",
            "127.0.0.1",
        ]  # valgrind uses the variable HOST for itself
        ready = answers(f"http://127.0.0.1:{port}/ready")
        with under_valgrind(folder, *command, ready=ready, **options) as pid:
            yield Counted(family_of(pid)[-1], port, vendor_port, folder)


def settings_options(folder: Path, document: dict[str, Any], environments: int) -> dict[str, object]:
    """Write the settings, for each of so many environments in a file, or for the only one without a file."""
    blocks = []
    for number in range(max(1, environments)):
        key = f"{accounts.SDK_KEY[:-3]}{number:03}" if number else accounts.SDK_KEY
        file = f"settings{number or ''}.json"
        (folder / file).write_text(json.dumps(document | {"sdkKey": key}))
        block = f'[[environment]]\nname = "environment-{number}"\naccount_id = {accounts.ACCOUNT_ID}\n'
        blocks.append(f'{block}sdk_key = "{key}"\nsettings_file = "{file}"\n')
    if not environments:
        return {"SETTINGS_FILE": folder / "settings.json"}
    (folder / "environments.toml").write_text("\n".join(blocks))
    return {"ENVIRONMENTS_FILE": folder / "environments.toml"}


@contextlib.contextmanager
def constant(build: Build) -> Iterator[Counted]:
    with directory() as folder:
        port = free_port()
        command = [build.checkout / "benchmarks" / "constant.py", port]  # from the checkout, because it names modules
        with under_valgrind(folder, *command, ready=accepts(port), PYTHONPATH=build.path) as pid:
            yield Counted(pid, port, 0, folder)


@contextlib.contextmanager
def under_valgrind(folder: Path, *command: object, ready: Callable[[], bool], **options: object) -> Iterator[int]:
    if shutil.which("callgrind_control") is None:
        raise UnavailableError("valgrind is not installed")
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--trace-children=yes"]
    valgrind += [f"--callgrind-out-file={folder}/callgrind.%p", sys.executable]
    options |= {"PYTHONSAFEPATH": 1, "PYTHONHASHSEED": 0}
    with process(*valgrind, *command, cores=CORES, ready=ready, seconds=START_SECONDS, **options) as running:
        yield running.pid


# --- Requests ---


def post(path: str, body: str, *more: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return "\r\n".join((head, *more, "", body)).encode()


def numbers() -> Iterator[int]:
    """Numbers of visitors that no other run has used."""
    number = time.time_ns() // 1000 % 10**12 * 10**4
    while True:
        number += 1
        yield number


def flags(port: int, *, is_located: bool = False, query: str = "") -> Requests:
    agents = accounts.user_agents()
    with directory() as folder:
        networks = [line.split() for line in accounts.write_networks(folder / "networks").read_text().splitlines()]
    for number in numbers():
        fields: dict[str, object] = {"featureKey": f"feature-{number % FEATURES}", "userId": f"visitor-{number}"}
        if is_located:
            address = int(networks[number % len(networks)][0])
            fields["ipAddress"] = ".".join(map(str, address.to_bytes(4, "big")))
            fields["userAgent"] = agents[number % len(agents)]
        fields["customVariables"] = {"plan": "none" if number % 2 else "gold", "age": 33}
        yield post(f"/server-side/getFlag{query}", json.dumps(fields, separators=(",", ":")))


def evaluations(port: int) -> Requests:
    """Of single flags, by OFREP. Each visitor is new, so each records its impressions."""
    for number in numbers():
        yield post(f"{openfeature.BULK}/feature-{number % FEATURES}", openfeature.bulk_body(number))


def all_flags(port: int) -> Requests:
    for number in numbers():
        yield post(openfeature.GET_FLAGS, openfeature.flags_body(number))


def all_evaluations(port: int) -> Requests:
    for number in numbers():
        yield post(openfeature.BULK, openfeature.bulk_body(number))


def unchanged(port: int) -> Requests:
    """Of all flags, by visitors that have them already."""
    for etag, body in itertools.cycle(list(openfeature.known(port, KNOWN_VISITORS))):
        yield post(openfeature.BULK, body, f"If-None-Match: {etag}")


def tracked(port: int) -> Requests:
    for number in numbers():
        fields = {"eventName": "purchase", "userId": f"visitor-{number}"}
        properties = {"price": 49.5, "currency": "EUR"}
        body = json.dumps(fields | {"eventProperties": properties}, separators=(",", ":"))
        yield post("/server-side/trackEvent", body)


def sdk_events(port: int) -> Requests:
    """Each has another query, as those of SDKs do."""
    key = accounts.SDK_KEY
    start = f"/events/t?en=vwo_variationShown&a={accounts.ACCOUNT_ID}&env={key}&eTime=1700000000000&random=0."
    rest = "&p=FS&visitor_ua=&visitor_ip=&sn=vwo-fme-node-sdk&sv=1.35.0"
    shown = {"vwo_sdkName": "vwo-fme-node-sdk", "vwo_sdkVersion": "1.35.0", "vwo_envKey": key, "id": 1001}
    event = {"props": shown | {"variation": "2", "isFirst": 1}, "name": "vwo_variationShown", "time": 1700000000000}
    for number in numbers():
        visitor = f"{number:032X}"
        document = {"msgId": f"{visitor}-1700000000000", "visId": visitor, "sessionId": 1700000000, "event": event}
        path = f"{start}{number:016}{rest}"
        yield post(path, json.dumps({"d": document | {"visitor": {"props": {"vwo_fs_environment": key}}}}))


class Case(NamedTuple):
    serve: Callable[[Build], AbstractContextManager[Counted]]
    requests: Callable[[int], Requests]  # from the port


CASES = {
    "constant": Case(constant, flags),
    "plain": Case(partial(gateway, kind=accounts.plain), flags),
    "main": Case(partial(gateway, kind=accounts.tested), flags),
    "main, key in the query": Case(partial(gateway, kind=accounts.tested), partial(flags, query=KEY_QUERY)),
    "main, three environments": Case(
        partial(gateway, kind=accounts.tested, environments=3), partial(flags, query=KEY_QUERY)
    ),
    "located": Case(
        partial(gateway, kind=accounts.enriched, MAXMIND_DB_PATH=accounts.LOCATION_DATABASE),
        partial(flags, is_located=True),
    ),
    "Redis": Case(partial(gateway, kind=accounts.tested, uses_redis=True), flags),
    "OFREP single": Case(partial(gateway, kind=accounts.tested), evaluations),
    "getFlags of 100": Case(partial(gateway, kind=accounts.tested), all_flags),
    "OFREP bulk of 100": Case(partial(gateway, kind=accounts.tested), all_evaluations),
    "304": Case(partial(gateway, kind=accounts.tested), unchanged),
    "trackEvent": Case(partial(gateway, kind=accounts.tested), tracked),
    "/events/t": Case(partial(gateway, kind=accounts.tested), sdk_events),
}


class Clients:
    """Connections that send their requests at the same moment, and wait for all responses."""

    def __init__(self, server: Counted, connections: int) -> None:
        self._pid = server.pid
        self._sockets = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(connections)]

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()

    def send(self, requests: Requests, count: int) -> None:
        for _ in range(count // len(self._sockets)):
            if len(self._sockets) > 1:
                os.kill(self._pid, signal.SIGSTOP)  # it finds all of them when it continues
            for one in self._sockets:
                one.sendall(next(requests))
            if len(self._sockets) > 1:
                os.kill(self._pid, signal.SIGCONT)
            for one in self._sockets:
                read_response(one)


def read_response(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 304")):
        raise RuntimeError(f"unexpected response: {data!r}")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    missing = int(found[1]) - len(body) if found else 0
    while missing > 0:
        missing -= len(connection.recv(missing))


# --- Counting ---


def control(server: Counted, *arguments: str) -> None:
    environment = {"PATH": os.environ["PATH"]}  # as the server's: HOST and LOGNAME are part of the name of its pipe
    command = ["callgrind_control", *arguments, str(server.pid)]
    subprocess.run(
        command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120
    )


def count(server: Counted, work: Callable[[], object]) -> int:
    """Return the instructions of the server while `work` is done."""
    control(server, "--zero")
    control(server, "--instr=on")
    work()
    control(server, "--instr=off")
    before = set(server.folder.glob("callgrind.*"))
    control(server, "--dump")
    dumps = [file.read_text() for file in set(server.folder.glob("callgrind.*")) - before]
    found = [re.search(r"^totals: (\d+)", dump, re.MULTILINE) for dump in dumps]
    return sum(int(one[1]) for one in found if one)


def count_per_request(server: Counted, requests: Requests, group: int) -> float:
    """Instructions per request, without those that the same time takes without requests."""
    with Clients(server, group) as clients:
        clients.send(requests, WARM_UP_REQUESTS)
        wait_for_delivery(server)
        idle = count(server, lambda: time.sleep(IDLE_SECONDS)) / IDLE_SECONDS
        started = time.monotonic()
        busy = count(server, lambda: (clients.send(requests, REQUESTS), wait_for_delivery(server)))
        return (busy - idle * (time.monotonic() - started)) / REQUESTS


def wait_for_delivery(server: Counted) -> None:
    """Until nothing more arrives at the stand-in. The gateway is not asked, because that would be counted."""
    arrived, since = -1, time.monotonic()
    while server.vendor_port and time.monotonic() - since < QUIET_SECONDS:
        time.sleep(0.05)
        now = int(fetch_json(f"http://127.0.0.1:{server.vendor_port}/count")["events"])
        if now != arrived:
            arrived, since = now, time.monotonic()


def count_all(builds: Sequence[Build], names: Sequence[str]) -> Counts:
    counts: Counts = {}
    for name in names:
        for build in builds:
            with CASES[name].serve(build) as server:
                say(f"  {name}, {build.name}")
                requests = CASES[name].requests(server.port)
                counts[f"{name}, {build.name}"] = {
                    group: count_per_request(server, requests, group) for group in GROUPS
                }
    return counts


# --- Results ---


def stored() -> Counts:
    rows = json.loads((RESULTS / "instructions.json").read_text())["rows"]
    return {row["name"]: {group: row[f"group_{group}"] for group in GROUPS} for row in rows}


def store(counts: Counts, before: Counts, commit: str | None) -> None:
    """Store the counts, and those of the other commit, if there is one."""
    rows: list[Row] = [{"name": name} for name in counts]
    columns = [Column("name", "case")]
    for group in GROUPS:
        columns.append(Column(f"group_{group}", f"groups of {group}", ",.0f"))
        for row in rows:
            row[f"group_{group}"] = counts[row["name"]][group]
        if before:
            columns.append(Column(f"before_{group}", f"the same at {commit}", ",.0f"))
            columns.append(Column(f"percent_{group}", "difference %", "+.1f"))
            for row in rows:
                old = row[f"before_{group}"] = before[row["name"]][group]
                row[f"percent_{group}"] = 100 * (row[f"group_{group}"] / old - 1)
    result = Result("instructions", "Instructions per request", columns, rows, chart="", notes=NOTES)
    save(result, Effort(seconds=0, rounds=1, warm_up_seconds=0, is_quick=False))


def compared(before: Counts, after: Counts) -> int:
    """Print both, and return 1 if a count has grown by more than `PERCENT`."""
    print("| case | size of groups | before | after | difference % |\n| --- | ---: | ---: | ---: | ---: |")
    is_larger = False
    for name in [name for name in after if name in before]:
        for group in GROUPS:
            old, new = before[name][group], after[name][group]
            percent = 100 * (new / old - 1)
            is_larger = is_larger or percent > PERCENT
            print(f"| {name} | {group} | {old:,.0f} | {new:,.0f} | {percent:+.1f} |")
    return int(is_larger)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only main and constant; nothing is stored")
    parser.add_argument("--compare", action="store_true", help="with the stored result, which stays as it is")
    parser.add_argument("--commit", help="compare with this commit, which is counted, too, and stored with the result")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="nothing is stored")
    options = parser.parse_args()
    names = options.cases or (["constant", "main"] if options.quick else list(CASES))
    builds = [Build("compiled", COMPILED, HERE.parent), Build("pure Python", PURE, HERE.parent)]
    before: Counts = {}
    if options.commit:
        paths = built(options.commit)
        before = count_all([Build(name, path, Path(path)) for name, path in paths.items()], names)
    elif options.compare:
        before = stored()
    after = count_all(builds, names)
    if not (options.cases or options.quick or options.compare):
        store(after, before, options.commit)
    return compared(before or after, after)


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
