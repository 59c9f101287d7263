"""The cost of OpenFeature's requests: one flag, all flags, and all flags that a client has already.

    python benchmarks/openfeature.py [--quick] [--seconds 3] [--rounds 5]

The unit is the CPU time of a constant response of the same front, in the same build and the same run. Exits with 1 if a
request exceeds its limit.
"""

import json
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import accounts
from measure import COMPILED, PURE, Case, Row, effort, end_cleanly_when_told, fastest, run_cases, say
from report import DELIVERED, LOAD_COLUMNS, Column, Result, save
from servers import FLAG_PROBE, constant, directory, gateway

FEATURES = 100
VISITORS = 1000  # that have all flags already
BULK, GET_FLAGS = "/ofrep/v1/evaluate/flags", "/server-side/getFlags"
PURE_BUILD = "pure Python"
BUILDS = {"compiled": COMPILED, PURE_BUILD: PURE}
CONSTANT, GET_FLAG, SINGLE, AGAIN = "constant", "getFlag", "OFREP single", "OFREP single, again"
BULK_OF_ALL, GET_FLAGS_OF_ALL, UNCHANGED = f"OFREP bulk of {FEATURES}", f"getFlags of {FEATURES}", "304"
UNITS = Column("units", "units", ".2f")
LIMIT = Column("limit", "at most", ".2f")
NOTES = (
    "A unit is the CPU time of the constant response in the same build. Units are those of the fastest rounds.",
    "getFlag and OFREP single: 100 features, asked for in turn by visitors that are all new, so that each request "
    "stores its impressions durably, and they are delivered. OFREP single may cost half a unit more than getFlag.",
    f"OFREP single, again: {VISITORS:,} visitors, in turn. A repetition within 60 s has no impressions.",
    f"Bulk: all {FEATURES} features, with OFREP their variables as well; no impressions, not compressed. Pure Python "
    "may cost one unit for each feature.",
    f"304: the flags of {VISITORS:,} visitors, in turn, are unchanged; at most two units.",
)


# --- Requests ---


def bulk_body(number: int) -> str:
    attributes = {"plan": "none" if number % 2 else "gold", "age": 33}
    return json.dumps({"context": {"targetingKey": f"visitor-{number}"} | attributes}, separators=(",", ":"))


def flags_body(number: int) -> str:
    variables = {"plan": "none" if number % 2 else "gold", "age": 33}
    return json.dumps({"userId": f"visitor-{number}", "customVariables": variables}, separators=(",", ":"))


def known(port: int, visitors: int = VISITORS) -> Iterator[tuple[str, str]]:
    """ETags of all flags of some visitors, with the bodies of their requests."""
    for number in range(visitors):
        body = bulk_body(number)
        request = urllib.request.Request(f"http://127.0.0.1:{port}{BULK}", data=body.encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            yield response.headers["ETag"], body


def write_known(path: Path) -> Path:
    """Write ETags and bodies, in turn. They are the same at each gateway with the same settings."""
    with gateway(accounts.account(FEATURES)) as target:
        path.write_text("".join(f"{etag}\n{body}\n" for etag, body in known(target.port)))
    return path


# --- Cases ---


class Kind(NamedTuple):
    name: str
    script: str
    arguments: tuple[object, ...]
    probe: tuple[str, bytes, bytes] | None


def kinds(known_file: Path) -> list[Kind]:
    probe, ofrep_probe = flags_body(0).encode(), bulk_body(0).encode()
    single = (f"{BULK}/feature-0", ofrep_probe, b'"value":true')
    return [
        Kind(GET_FLAG, "getflag.lua", (FEATURES,), FLAG_PROBE),
        Kind(SINGLE, "ofrep.lua", (FEATURES,), single),
        Kind(AGAIN, "ofrep.lua", (FEATURES, VISITORS), single),
        Kind(BULK_OF_ALL, "ofrep.lua", (0,), (BULK, ofrep_probe, b'"key":"feature-99.title"')),
        Kind(GET_FLAGS_OF_ALL, "getflags.lua", (), (GET_FLAGS, probe, b'"feature-99"')),
        Kind(UNCHANGED, "unchanged.lua", (known_file,), None),
    ]


def cases(known_file: Path) -> list[Case]:
    found = []
    for build, path in BUILDS.items():
        serve = partial(gateway, accounts.account(FEATURES), PYTHONPATH=path)
        yardstick = partial(constant, PYTHONPATH=path)
        found.append(Case(f"{CONSTANT}, {build}", yardstick, "getflag.lua", [FEATURES], FLAG_PROBE))
        for kind in kinds(known_file):
            found.append(Case(f"{kind.name}, {build}", serve, kind.script, kind.arguments, kind.probe))
    return found


# --- Limits ---


def add_units(rows: list[Row]) -> None:
    """Add the cost in units to each row, and its limit. Both are of the fastest rounds."""
    by_name = {row["name"]: row for row in rows}
    for build in BUILDS:
        cost = {name: fastest(row) for name, row in by_name.items() if name.endswith(build) and row.get("rounds")}
        unit, getflag = cost[f"{CONSTANT}, {build}"], cost[f"{GET_FLAG}, {build}"]
        limits = dict.fromkeys((SINGLE, AGAIN), getflag / unit + 0.5) | {UNCHANGED: 2}
        limits |= dict.fromkeys((BULK_OF_ALL, GET_FLAGS_OF_ALL), FEATURES) if build == PURE_BUILD else {}
        for name, value in cost.items():
            by_name[name]["units"] = value / unit
            by_name[name]["limit"] = limits.get(name.removesuffix(f", {build}"))


def exceeded(rows: list[Row]) -> list[str]:
    return [row["name"] for row in rows if row.get("limit") is not None and row["units"] > row["limit"]]


def main() -> int:
    chosen = effort(__doc__)
    with directory() as folder:
        rows = run_cases(cases(write_known(folder / "known")), chosen)
    add_units(rows)
    columns = [*LOAD_COLUMNS[:2], UNITS, LIMIT, *LOAD_COLUMNS[2:], DELIVERED]
    save(Result("openfeature", "OpenFeature, CPU time per request", columns, rows, notes=NOTES), chosen)
    for name in exceeded(rows):
        say(f"  exceeds its limit: {name}")
    return int(bool(exceeded(rows)))


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
