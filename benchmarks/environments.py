"""getFlag with 50 environments in one gateway, compared with one: latency, and the events of each under its own key.

    python benchmarks/environments.py [--quick] [--seconds 8] [--rounds 5]

Two workers, one Redis, 100 features in each environment, and an open-loop load (openloop.py) at the same rates on both,
each request with the SDK key in its query. After each round the events of each environment at the stand-in are
compared with those that /status counts, and with those of the requests. Exits with 1 if a count is wrong, or if the
p99 with 50 environments is more than 15 % above that with one at any rate.

The workers, Redis and the stand-in run on any core: with Redis on the core of the load, which is also one worker's,
that core was twice as busy as the other one, and most of what was measured was waiting for it.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openloop
from accounts import ACCOUNT_ID, SDK_KEY, account
from measure import CORES, DRAIN_SECONDS, Row, add_effort, end_cleanly_when_told, fetch_json, read_effort, say, summary
from report import Column, Result, save
from servers import directory, redis, started_gateway, vendor

ENVIRONMENTS = (1, 50)
FEATURES, WORKERS = 100, 2
RATES = (1000.0, 2000.0, 4000.0)  # requests/s: with the last one, all of them keep two cores busy for 80 % of the time
FLUSH_SECONDS = 5  # instead of ten minutes, so that incomplete batches arrive as well
PERCENT = 15.0  # largest difference that passes
KEPT = ("delivered", "waiting", "dead", "rejected", "discarded", "lost")
COLUMNS = (
    Column("name", "case"),
    Column("p50_ms", "p50 ms", ".2f"),
    Column("p99_ms", "p99 ms", ".2f"),
    Column("lowest_p99_ms", "lowest p99 ms", ".2f"),
    Column("p999_ms", "p99.9 ms", ".2f"),
    Column("late_p99_ms", "generator late p99 ms", ".2f"),
    Column("events", "events of a round", ",.0f"),
    Column("errors", "errors"),
    Column("wrong", "environments with a wrong count"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_effort(parser)
    chosen = read_effort(parser.parse_args())
    rounds: dict[tuple[float, int], list[Row]] = {(rate, count): [] for rate in RATES for count in ENVIRONMENTS}
    for number in range(chosen.rounds):
        for rate, count in rounds if number % 2 else reversed(rounds):
            rounds[rate, count].append(measured(count, rate, chosen.seconds))
            p99 = rounds[rate, count][-1]["p99_ms"]
            say(f"  round {number + 1}, {rate:,.0f} requests/s, {count} environments: p99 {p99:.2f} ms")
    rows = [row_of(rate, count, found) for (rate, count), found in rounds.items()]
    differences = [100 * (many["p99_ms"] / one["p99_ms"] - 1) for one, many in zip(rows[::2], rows[1::2], strict=True)]
    shown = ", ".join(f"{percent:+.1f} % at {rate:,.0f}/s" for rate, percent in zip(RATES, differences, strict=True))
    notes = [
        f"Two workers and one Redis, which share {len(CORES)} cores with the load.",
        f"p99 with 50 environments, compared with one: {shown}.",
        "Each event arrived under the SDK key of its environment, and the counts of /status add up, unless a count is "
        "shown as wrong.",
    ]
    save(Result("environments", "Several environments", COLUMNS, rows, chart="", notes=notes), chosen)
    return int(any(row["wrong"] or row["errors"] for row in rows) or max(differences) > PERCENT)


def row_of(rate: float, count: int, rounds: list[Row]) -> Row:
    row = summary(f"{rate:,.0f} requests/s, {count} environment{'s' if count > 1 else ''}", rounds)
    row |= {key: sum(one[key] for one in rounds) for key in ("errors", "wrong")}
    return row | {"lowest_p99_ms": min(one["p99_ms"] for one in rounds)}


def key_of(number: int) -> str:
    return f"{SDK_KEY[:-3]}{number:03}"


def measured(count: int, rate: float, seconds: float) -> Row:
    """Return the latencies of one round, and in how many environments a count was wrong."""
    keys = {f"environment-{number}": key_of(number) for number in range(count)}
    queries = [f"?accountId={ACCOUNT_ID}&sdkKey={key}" for key in keys.values()]
    with served(keys) as (port, vendor_port):
        warm = openloop.run(port, rate=rate, seconds=2, features=FEATURES, queries=queries)
        row = openloop.run(port, rate=rate, seconds=seconds, features=FEATURES, queries=queries)
        expected = {name: events_of(number, count, warm, row) for number, name in enumerate(keys)}
        events = settled(port, vendor_port, keys)
    wrong = [name for name in keys if not is_exact(events[name], expected[name])]
    for name in wrong:
        say(f"  {name}: expected {expected[name]} events, got {events[name]}")
    total = sum(one["received"] for one in events.values())
    row = {key: value for key, value in row.items() if key not in ("pauses", "timeline", "started_at")}
    return row | {"wrong": len(wrong), "events": total, "is_valid": not wrong and row["errors"] == 0}


@contextlib.contextmanager
def served(keys: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A gateway with these environments: its port, and that of the stand-in."""
    with directory() as folder, redis(cores=CORES) as redis_port:
        settings = folder / "settings.json"
        settings.write_text(json.dumps(account(FEATURES)))
        with vendor(settings=settings, cores=CORES) as vendor_port:
            options: dict[str, object] = {
                "ENVIRONMENTS_FILE": write_environments(folder / "environments.toml", keys),
                "UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}",
                "REDIS_HOST": "127.0.0.1",
                "REDIS_PORT": redis_port,
                "WORKERS": WORKERS,
                "READY_REQUIRES": "all",
                "FLUSH_EVENTS_INTERVAL": FLUSH_SECONDS,
            }
            with started_gateway(folder / "data", cores=CORES, **options) as (_, port):
                yield port, vendor_port


def write_environments(path: Path, keys: dict[str, str]) -> Path:
    block = '[[environment]]\nname = "{}"\naccount_id = {}\nsdk_key = "{}"\n'
    path.write_text("\n".join(block.format(name, ACCOUNT_ID, key) for name, key in keys.items()))
    return path


def settled(port: int, vendor_port: int, keys: dict[str, str]) -> dict[str, Row]:
    """Wait until all events are delivered. Return the counts of each environment, `arrived` at the stand-in included.

    An event under any other key is one that has not arrived in its environment.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        shown = fetch_json(f"http://127.0.0.1:{port}/status")["environments"]
        arrived = fetch_json(f"http://127.0.0.1:{vendor_port}/count")["by_key"]
        counts = {one["name"]: one["events"] | {"arrived": arrived.get(keys[one["name"]], 0)} for one in shown}
        is_done = all(one["waiting"] == 0 and one["arrived"] == one["received"] for one in counts.values())
        if is_done or time.monotonic() > deadline:
            return counts
        time.sleep(0.1)


def events_of(number: int, environments: int, *runs: Row) -> int:
    """Return the events of one environment: two of each visitor with the plan that a rule asks for, one of others."""
    return sum(1 + (visitor + 1) % 2 for run in runs for visitor in range(number, run["requests"], environments))


def is_exact(counts: Row, expected: int) -> bool:
    """Return whether all expected events are accounted for, and have arrived under the right key."""
    is_accounted = counts["received"] == sum(counts[name] for name in KEPT) == expected
    return is_accounted and counts["arrived"] == counts["delivered"] == expected


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
