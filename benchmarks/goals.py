"""Three requests next to a bare Tornado RequestHandler and nginx, and getFlag at a quarter of the maximum rate.

    python benchmarks/goals.py [--quick] [--seconds 3] [--rounds 5]

The yardsticks get the same requests and return a constant. All ratios are of the minima of the rounds, because whatever
disturbs a round makes it slower. Exits with 1 if a ratio misses its goal.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import accounts
import openloop
import servers
from measure import (
    LOAD_CORE,
    Case,
    Effort,
    Row,
    Target,
    cpu_seconds,
    effort,
    end_cleanly_when_told,
    fastest,
    run_cases,
    say,
    wrk,
)
from report import Column, Result, save

ROUNDS = 5
FEATURES = 100
QUARTER = 0.25
MOST_AT_QUARTER = 1.5  # times the CPU time of a request at the maximum rate
TORNADO, NGINX, GATEWAY = "bare Tornado", "nginx", "gateway"
COLUMNS = (
    Column("name", "measurement"),
    Column("gateway_us", "gateway, µs CPU", ".2f"),
    Column("tornado_us", "bare Tornado, µs CPU", ".1f"),
    Column("nginx_us", "nginx, µs CPU", ".2f"),
    Column("ratio", "times", ".2f"),
    Column("goal", "goal", ".1f"),
)
NOTES = (
    "Minimum of the rounds. The gateway decides, stores durably and delivers; bare Tornado and nginx return a constant "
    'to the same requests. "times": the CPU time of bare Tornado divided by the gateway\'s, at least the goal.',
    '"as a thin SDK sends it": with user agent and address; a rollout and an A/B rule with a segment, two impressions.',
    f'"at a quarter of the maximum rate": the CPU time there ("gateway") divided by that at the maximum rate, at most '
    f"{MOST_AT_QUARTER:g}.",
)


class Kind(NamedTuple):
    """A request, and how many times less CPU it may need than the same request to bare Tornado."""

    name: str
    document: dict[str, object]
    script: str
    arguments: Sequence[object]
    goal: float


KINDS = (
    Kind("getFlag, one event", accounts.account(FEATURES, accounts.plain), "getflag.lua", (FEATURES,), 10),
    Kind("getFlag as a thin SDK sends it", accounts.account(FEATURES), "thin.lua", (FEATURES,), 7),
    Kind("/events/t", accounts.account(FEATURES), "event.lua", (accounts.ACCOUNT_ID, accounts.SDK_KEY), 12),
)


def cases() -> list[Case]:
    found = []
    for kind in KINDS:
        serve = partial(servers.gateway, kind.document)
        for name, server in ((GATEWAY, serve), (TORNADO, servers.bare_tornado), (NGINX, servers.constant_nginx)):
            found.append(Case(f"{kind.name}: {name}", server, kind.script, kind.arguments))
    return found


def least(row: Row) -> float:
    """Return the smallest CPU time of the rounds of a row. It has to be valid."""
    if not row.get("is_valid"):
        raise RuntimeError(f"{row['name']}: {row.get('skipped') or 'errors or lost events'}")
    return fastest(row)


def compared(measured: Sequence[Row]) -> list[Row]:
    by_name = {row["name"]: row for row in measured}
    rows = []
    for kind in KINDS:
        ours, tornado, nginx = (least(by_name[f"{kind.name}: {name}"]) for name in (GATEWAY, TORNADO, NGINX))
        costs = {"gateway_us": ours, "tornado_us": tornado, "nginx_us": nginx}
        rows.append({"name": kind.name, **costs, "ratio": tornado / ours, "goal": kind.goal})
    return rows


def at_a_quarter(chosen: Effort) -> Row:
    """Compare the CPU time of a request at a quarter of the maximum rate with that at the maximum rate."""
    full, quarter = [], []
    with servers.gateway(accounts.account(FEATURES)) as target:
        wrk(target.port, "getflag.lua", [FEATURES], chosen.warm_up_seconds, [LOAD_CORE])
        target.drain()
        for number in range(chosen.rounds):
            say(f"  round {number + 1}: a quarter of the maximum rate")
            before = cpu_seconds(target.pid)
            found = wrk(target.port, "getflag.lua", [FEATURES], chosen.seconds, [LOAD_CORE])
            full.append(_cost(target, before, found["requests"]))
            before = cpu_seconds(target.pid)
            rate = QUARTER * found["requests"] / found["seconds"]
            row = openloop.run(target.port, rate=rate, seconds=chosen.seconds, features=FEATURES)
            quarter.append(_cost(target, before, row["requests"]))
    name, ratio = "getFlag at a quarter of the maximum rate", min(quarter) / min(full)
    return {"name": name, "gateway_us": min(quarter), "ratio": ratio, "goal": MOST_AT_QUARTER}


def _cost(target: Target, before: float, requests: int) -> float:
    target.drain()
    return (cpu_seconds(target.pid) - before) / requests * 1e6


def main() -> int:
    chosen = effort(__doc__)
    if not chosen.is_quick:
        chosen = replace(chosen, rounds=max(ROUNDS, chosen.rounds))
    rows = compared(run_cases(cases(), chosen))
    missed = [row["name"] for row in rows if row["ratio"] < row["goal"]]
    rows.append(at_a_quarter(chosen))
    missed += [rows[-1]["name"]] if rows[-1]["ratio"] > MOST_AT_QUARTER else []
    save(Result("goals", "Next to bare Tornado and nginx", COLUMNS, rows, "gateway_us", NOTES), chosen)
    for name in missed:
        say(f"  misses its goal: {name}")
    return int(bool(missed))


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
