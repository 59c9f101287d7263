"""How long getFlag takes at half of the maximal rate, in steady state and while settings of 1,000 or 10,000 features
change; and the memory of the worker.

What a refresh costs is the difference to the same settings without one, a minute later: the machine has its moods.

    python benchmarks/latency.py [--quick] [--seconds 30] [--only "10,000"]

The load is open-loop (openloop.py): a pause of the server is charged to all requests that were due in it. First the
maximal rate is found with wrk; 100 features, durable acknowledgement, events delivered upstream. --seconds is here the
length of one run. --only selects the cases with this text in their name, and keeps the stored results. Bare Tornado,
which returns a constant, has half of its own maximal rate. Exits with 1 if a goal is missed.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import openloop
from accounts import ACCOUNT_ID, SDK_KEY, account
from measure import (
    LOAD_CORE,
    Effort,
    Row,
    Target,
    add_effort,
    end_cleanly_when_told,
    family_of,
    fetch_json,
    highest_rss_megabytes,
    rss_megabytes,
    say,
    wrk,
)
from report import Column, Result, draw_timeline, save, show
from servers import bare_tornado, delivery, directory, gateway, started_gateway, vendor

STEADY_FEATURES = 100
COLUMNS = (
    Column("name", "case"),
    Column("rate", "requests/s", ",.0f"),
    Column("seconds", "seconds", ".0f"),
    Column("p50_ms", "p50 ms", ".2f"),
    Column("p99_ms", "p99 ms", ".2f"),
    Column("p999_ms", "p99.9 ms", ".2f"),
    Column("max_ms", "max ms", ".1f"),
    Column("pause_count", "pauses over 20 ms"),
    Column("refreshes", "refreshes"),
    Column("refresh_max_ms", "longest wait around a refresh ms", ".1f"),
    Column("rss_mb", "RSS of the worker MB", ".0f"),
    Column("highest_rss_mb", "highest RSS MB", ".0f"),
    Column("late_p99_ms", "generator late p99 ms", ".2f"),
    Column("late_max_ms", "generator late max ms", ".1f"),
    Column("errors", "errors"),
)
NOTES = (
    "Latency counts from the moment when a request was meant to leave. How late the generator itself was is part of "
    "it and is shown: it shares its core with the stand-in.",
    "RSS is that of the worker alone, with the libraries that it shares with other processes. The highest one counts "
    "the moments in which the old settings, the new ones and their document are in memory.",
)


class Changing(NamedTuple):
    """Settings of which upstream has another version at every poll. A refresh has ended `window_seconds` after it."""

    features: int
    poll_seconds: float
    window_seconds: float

    @property
    def name(self) -> str:
        return f"settings of {self.features:,} features change every {self.poll_seconds:g} s"


class Goal(NamedTuple):
    """The most that a number of a case may be."""

    case: str
    key: str
    most: float


FEW, MANY = Changing(1000, 2, 0.5), Changing(10_000, 12, 12)
STEADY, UNCHANGED, TORNADO = "steady", f"settings of {FEW.features:,} features do not change", "bare Tornado"
GOALS = (
    Goal(STEADY, "p99_ms", 2),
    Goal(STEADY, "max_ms", 20),
    Goal(MANY.name, "refresh_max_ms", 20),
    Goal(MANY.name, "highest_rss_mb", 200),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_effort(parser)
    parser.add_argument("--only", default="", help="the cases with this text in their name")
    options = parser.parse_args()
    seconds = options.seconds or (8.0 if options.quick else 60.0)
    chosen = Effort(seconds, 1, 1.0, options.quick)
    rows = [measured(name, case, chosen) for name, case in cases().items() if options.only in name]
    verdicts = {goal: row[goal.key] for goal in GOALS for row in rows if row["name"] == goal.case}
    notes = [*NOTES, *map(pauses_note, rows), *(goal_note(goal, value) for goal, value in verdicts.items())]
    result = Result("latency", "getFlag at half of the maximal rate", COLUMNS, rows, chart="", notes=notes)
    if options.only:
        show(result)
    else:
        save(result, chosen)
        draw_timeline(result.question, result.title, {row["name"]: row["timeline"] for row in rows})
    for goal, value in verdicts.items():
        say(f"  {goal_note(goal, value)}")
    return int(any(is_missed(goal, value) for goal, value in verdicts.items()))


def cases() -> dict[str, Callable[[Effort], Row]]:
    return {
        STEADY: partial(steady, lambda: gateway(account(STEADY_FEATURES)), STEADY_FEATURES),
        TORNADO: partial(steady, bare_tornado, STEADY_FEATURES),
        FEW.name: partial(refreshing, FEW),
        UNCHANGED: partial(steady, lambda: gateway(account(FEW.features)), FEW.features),
        MANY.name: partial(refreshing, MANY),
    }


def measured(name: str, case: Callable[[Effort], Row], chosen: Effort) -> Row:
    say(f"  {name}")
    return {"name": name, **case(chosen)}


def steady(serve: Callable[[], AbstractContextManager[Target]], features: int, chosen: Effort) -> Row:
    with serve() as target:
        return open_loop(target, features, chosen)


def refreshing(changing: Changing, chosen: Effort) -> Row:
    with changing_gateway(changing) as (target, vendor_port):
        row = open_loop(target, changing.features, chosen)
        asked = fetch_json(f"http://127.0.0.1:{vendor_port}/count")["settings_at"]
    moments = [at - row["started_at"] for at in asked if 0 <= at - row["started_at"] < chosen.seconds]
    waits = [
        wait
        for at, wait in row["timeline"]
        if any(0 <= at + 0.1 - moment < changing.window_seconds for moment in moments)
    ]
    return {**row, "refreshes": len(moments), "refresh_max_ms": max(waits, default=0.0)}


@contextlib.contextmanager
def changing_gateway(changing: Changing) -> Iterator[tuple[Target, int]]:
    """A gateway that gets another version of its settings at every poll; with the port of its upstream."""
    with directory() as folder:
        settings = folder / "settings.json"
        settings.write_text(json.dumps(account(changing.features), separators=(",", ":")))
        with vendor(settings=settings, is_changing=True) as vendor_port:
            options: dict[str, object] = {
                "ACCOUNT_ID": ACCOUNT_ID,
                "SDK_KEY": SDK_KEY,
                "UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}",
                "POLLING_TIME": round(changing.poll_seconds * 1000),
            }
            with started_gateway(folder / "data", **options) as (pid, port):
                yield Target(pid, port, partial(delivery, port, vendor_port)), vendor_port


def open_loop(target: Target, features: int, chosen: Effort) -> Row:
    """Find the maximal rate, then run at half of it."""
    wrk(target.port, "getflag.lua", [features], 1, [LOAD_CORE])
    target.drain()
    closed = wrk(target.port, "getflag.lua", [features], 3, [LOAD_CORE])
    target.drain()
    rate = closed["requests"] / closed["seconds"] / 2
    row = openloop.run(target.port, rate=rate, seconds=chosen.seconds, features=features)
    row |= {"rate": rate, "seconds": chosen.seconds, "pause_count": len(row["pauses"])}
    row |= {
        "rss_mb": rss_megabytes(worker := family_of(target.pid)[-1]),
        "highest_rss_mb": highest_rss_megabytes(worker),
    }
    row |= target.drain()
    return row | {"is_valid": row["errors"] == 0 and row.get("is_balanced", True)}


def pauses_note(row: Row) -> str:
    """The pauses with their time stamps; of many the longest."""
    longest = sorted(row["pauses"], key=lambda pause: -pause["longest_ms"])[:20]
    listed = ", ".join(
        f"{pause['longest_ms']:.0f} ms at {pause['second']:.2f} s"
        for pause in sorted(longest, key=lambda p: p["second"])
    )
    return f"Pauses over 20 ms, {row['name']}: {listed or 'none'}."


def is_missed(goal: Goal, value: float) -> bool:
    return value > goal.most


def goal_note(goal: Goal, value: float) -> str:
    heading = next(column.heading for column in COLUMNS if column.key == goal.key)
    verdict = "**missed**" if is_missed(goal, value) else "met"
    return f"Goal of {goal.case}, {heading}: {value:.2f}, at most {goal.most:g}: {verdict}."


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
