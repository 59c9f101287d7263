"""How long getFlag takes at half of the maximal rate, in steady state and while settings of 1,000 features change.

What a refresh costs is the difference to the same settings without one, a minute later: the machine has its moods.

    python benchmarks/latency.py [--quick] [--seconds 30]

The load is open-loop (openloop.py): a pause of the server is charged to all requests that were due in it. First the
maximal rate is found with wrk; 100 features, durable acknowledgement, events delivered upstream. --seconds is here the
length of one run.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from functools import partial

import openloop
from accounts import ACCOUNT_ID, SDK_KEY, account
from measure import LOAD_CORE, Effort, Row, Target, add_effort, end_cleanly_when_told, fetch_json, say, wrk
from report import Column, Result, draw_timeline, save
from servers import delivery, directory, gateway, started_gateway, vendor

STEADY_FEATURES, CHANGING_FEATURES = 100, 1000
POLL_MILLISECONDS = 2000
REFRESH_WINDOW_SECONDS = 0.5
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
    Column("late_p99_ms", "generator late p99 ms", ".2f"),
    Column("late_max_ms", "generator late max ms", ".1f"),
    Column("errors", "errors"),
)
NOTES = (
    "Latency counts from the moment when a request was meant to leave. How late the generator itself was is part of "
    "it and is shown: it shares its core with the stand-in.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_effort(parser)
    options = parser.parse_args()
    seconds = options.seconds or (8.0 if options.quick else 60.0)
    chosen = Effort(seconds, 1, 1.0, options.quick)
    rows = [steady("steady", STEADY_FEATURES, chosen), refreshing(chosen)]
    rows.append(steady(f"settings of {CHANGING_FEATURES:,} features do not change", CHANGING_FEATURES, chosen))
    notes = [*NOTES, *map(pauses_note, rows)]
    save(Result("latency", "getFlag at half of the maximal rate", COLUMNS, rows, chart="", notes=notes), chosen)
    draw_timeline("latency", "getFlag at half of the maximal rate", {row["name"]: row["timeline"] for row in rows})


def steady(name: str, features: int, chosen: Effort) -> Row:
    say(f"  steady state, {features} features")
    with gateway(account(features)) as target:
        return {"name": name, **open_loop(target, features, chosen)}


def refreshing(chosen: Effort) -> Row:
    say("  while settings change")
    with changing_gateway() as (target, vendor_port):
        row = open_loop(target, CHANGING_FEATURES, chosen)
        asked = fetch_json(f"http://127.0.0.1:{vendor_port}/count")["settings_at"]
    moments = [at - row["started_at"] for at in asked if 0 <= at - row["started_at"] < chosen.seconds]
    waits = [
        wait
        for at, wait in row["timeline"]
        if any(0 <= at + 0.1 - moment < REFRESH_WINDOW_SECONDS for moment in moments)
    ]
    name = f"settings of {CHANGING_FEATURES:,} features change every {POLL_MILLISECONDS / 1000:g} s"
    return {"name": name, **row, "refreshes": len(moments), "refresh_max_ms": max(waits, default=None)}


@contextlib.contextmanager
def changing_gateway() -> Iterator[tuple[Target, int]]:
    """A gateway that gets another version of its settings at every poll; with the port of its upstream."""
    with directory() as folder:
        settings = folder / "settings.json"
        settings.write_text(json.dumps(account(CHANGING_FEATURES), separators=(",", ":")))
        with vendor(settings=settings, is_changing=True) as vendor_port:
            options: dict[str, object] = {
                "ACCOUNT_ID": ACCOUNT_ID,
                "SDK_KEY": SDK_KEY,
                "UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}",
                "POLLING_TIME": POLL_MILLISECONDS,
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
    row |= {"rate": rate, "seconds": chosen.seconds, "pause_count": len(row["pauses"])} | target.drain()
    return row | {"is_valid": row["errors"] == 0 and row["is_balanced"]}


def pauses_note(row: Row) -> str:
    """The pauses with their time stamps; of many the longest."""
    longest = sorted(row["pauses"], key=lambda pause: -pause["longest_ms"])[:20]
    listed = ", ".join(
        f"{pause['longest_ms']:.0f} ms at {pause['second']:.2f} s"
        for pause in sorted(longest, key=lambda p: p["second"])
    )
    return f"Pauses over 20 ms, {row['name']}: {listed or 'none'}."


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
