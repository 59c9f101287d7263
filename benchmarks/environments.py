"""getFlag with 50 environments in one gateway, compared with one: latency, and the events of each under its own key.

    python benchmarks/environments.py [--quick] [--seconds 8] [--rounds 5]

Two workers, one Redis, 100 features in each environment, and an open-loop load (openloop.py) at the same rates on both.
Each request has the SDK key of an environment in its query, which a hash of the visitor chooses. Full batches are
delivered at once, as by default, and the others when the gateway ends. After each round the events of each environment
at the stand-in are compared with those that /status counted, and with those of the requests. Exits with 1 if a count is
wrong, or if the p99 with 50 environments is more than 15 % above that with one at any rate.

The workers, Redis and the stand-in run on any core: with Redis on the core of the load, which is also one worker's,
that core was twice as busy as the other one, and most of what was measured was waiting for it.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import openloop
from accounts import ACCOUNT_ID, SDK_KEY, account, key_query
from measure import CORES, DRAIN_SECONDS, Row, add_effort, end_cleanly_when_told, fetch_json, read_effort, say, summary
from report import Column, Result, save
from servers import directory, redis, started_gateway, vendor

ENVIRONMENTS = (1, 50)
FEATURES, WORKERS = 100, 2
RATES = (1000.0, 2000.0, 4000.0)  # requests/s: with the last one, all of them keep two cores busy for 80 % of the time
WARM_UP_SECONDS = 2.0
SHUTDOWN_SECONDS = 5  # enough for the last delivery
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
        f"p99 with 50 environments, compared with one: {shown} (goal: at most +{PERCENT:.0f} %).",
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


def keys_of(count: int) -> dict[str, str]:
    """Return the names of so many environments with their keys."""
    return {f"environment-{number}": key_of(number) for number in range(count)}


def measured(count: int, rate: float, seconds: float) -> Row:
    """Return the latencies of one round, and in how many environments a count was wrong."""
    keys = keys_of(count)
    queries = [key_query(key) for key in keys.values()]
    with directory() as folder, redis(cores=CORES) as redis_port, stand_in(folder) as vendor_port:
        with served(folder, redis_port, vendor_port, keys) as port:
            visitors, row = [], {}
            for duration in (WARM_UP_SECONDS, seconds):
                first = openloop.new_visitors()
                row = openloop.run(
                    port, rate=rate, seconds=duration, features=FEATURES, queries=queries, first_visitor=first
                )
                visitors.append(range(first, first + row["requests"]))
            expected = dict(zip(keys, events_of(count, visitors), strict=True))
            events = counted(port, expected)
        arrived = fetch_json(f"http://127.0.0.1:{vendor_port}/count")["by_key"]
    got = {name: arrived.get(key, 0) for name, key in keys.items()}
    wrong = [name for name in keys if not is_accounted(events[name], expected[name]) or got[name] != expected[name]]
    for name in wrong:
        say(f"  {name}: expected {expected[name]} events, counted {events[name]}, arrived {got[name]}")
    total = sum(one["received"] for one in events.values())
    row = {key: value for key, value in row.items() if key not in ("pauses", "timeline", "started_at")}
    return row | {"wrong": len(wrong), "events": total, "is_valid": not wrong and row["errors"] == 0}


@contextlib.contextmanager
def stand_in(folder: Path, cores: Sequence[int] = CORES) -> Iterator[int]:
    settings = folder / "settings.json"
    settings.write_text(json.dumps(account(FEATURES)))
    with vendor(settings=settings, cores=cores) as port:
        yield port


@contextlib.contextmanager
def served(folder: Path, redis_port: int, vendor_port: int, keys: dict[str, str]) -> Iterator[int]:
    """A gateway with these environments: its port."""
    options: dict[str, object] = {
        "ENVIRONMENTS_FILE": write_environments(folder / "environments.toml", keys),
        "UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": redis_port,
        "WORKERS": WORKERS,
        "READY_REQUIRES": "all",
        "SHUTDOWN_SECONDS": SHUTDOWN_SECONDS,
    }
    with started_gateway(folder / "data", cores=CORES, **options) as (_, port):
        yield port


def write_environments(path: Path, keys: dict[str, str]) -> Path:
    block = '[[environment]]\nname = "{}"\naccount_id = {}\nsdk_key = "{}"\n'
    path.write_text("\n".join(block.format(name, ACCOUNT_ID, key) for name, key in keys.items()))
    return path


def counted(port: int, expected: dict[str, int]) -> dict[str, Row]:
    """Return the counts of each environment, once they add up: workers count what others do with a delay."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        shown = fetch_json(f"http://127.0.0.1:{port}/status")["environments"]
        counts = {one["name"]: one["events"] for one in shown}
        if all(is_accounted(counts[name], expected[name]) for name in expected) or time.monotonic() > deadline:
            return counts
        time.sleep(0.1)


def events_of(environments: int, loads: Sequence[range]) -> list[int]:
    """Return the events of each environment: two of each visitor with the plan that a rule asks for, one of others.

    `loads` are the visitors of each load.
    """
    events = [0] * environments
    for visitors in loads:
        for number, visitor in enumerate(visitors):
            events[openloop.query_of(visitor, environments)] += 1 + (number + 1) % 2
    return events


def is_accounted(counts: Row, expected: int) -> bool:
    """Return whether all expected events are accounted for."""
    return counts["received"] == sum(counts[name] for name in KEPT) == expected


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
