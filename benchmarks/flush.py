"""How fast stored events go upstream: events per second and CPU time per event, by size of a batch.

    python benchmarks/flush.py [--quick] [--seconds 3] [--rounds 3]

A gateway takes the events of some seconds of getFlag while its upstream does not answer; it ends, and the next one on
the same store finds them, and upstream back.
"""

import json
import time
from pathlib import Path

from accounts import account, plain
from measure import (
    LOAD_CORE,
    Effort,
    Row,
    cpu_seconds,
    effort,
    end_cleanly_when_told,
    fetch_json,
    free_port,
    say,
    summary,
    wrk,
)
from report import Column, Result, save
from servers import directory, started_gateway, vendor

SIZES = (100, 1000)
FEATURES = 100
DEADLINE_SECONDS = 60
COLUMNS = (
    Column("name", "events per request"),
    Column("per_second", "events/s", ",.0f"),
    Column("cpu_us", "µs CPU per event", ".2f"),
    Column("events", "events", ",.0f"),
    Column("errors", "lost"),
)
NOTES = ("Until the last event has arrived at the stand-in. Reading from the store and settling there are included.",)


def main() -> None:
    chosen = effort(__doc__)
    rounds: dict[int, list[Row]] = {size: [] for size in SIZES}
    for number in range(chosen.rounds):
        for size in SIZES:
            say(f"  round {number + 1}: {size} events per request")
            rounds[size].append(flush(size, chosen))
    rows = [summary(f"{size:,}", rounds[size]) for size in SIZES]
    save(Result("flush", "Delivery of stored events", COLUMNS, rows, notes=NOTES), chosen)


def flush(size: int, chosen: Effort) -> Row:
    with directory() as folder:
        (folder / "settings.json").write_text(json.dumps(account(FEATURES, plain)))
        options = {"SETTINGS_FILE": folder / "settings.json", "EVENTS_PER_REQUEST": size}
        waiting = fill(folder / "data", 2 * chosen.seconds, options)
        return deliver(folder / "data", waiting, options)


def fill(data: Path, seconds: float, options: dict[str, object]) -> int:
    """Leave events in the store; the number of them."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    with started_gateway(data, UPSTREAM_URL=nowhere, **options) as (_, port):
        wrk(port, "getflag.lua", [FEATURES], seconds, [LOAD_CORE])
        return int(fetch_json(f"http://127.0.0.1:{port}/status")["events"]["waiting"])


def deliver(data: Path, waiting: int, options: dict[str, object]) -> Row:
    with vendor() as vendor_port:
        count = f"http://127.0.0.1:{vendor_port}/count"
        with started_gateway(data, UPSTREAM_URL=f"http://127.0.0.1:{vendor_port}", **options) as (pid, _):
            cpu, before = cpu_seconds(pid), fetch_json(count)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while (after := fetch_json(count))["events"] < waiting and time.monotonic() < deadline:
                time.sleep(0.02)
            used = cpu_seconds(pid) - cpu
    events = after["events"] - before["events"]
    return {
        "events": events,
        "per_second": events / (after["last_at"] - before["now"]),
        "cpu_us": used / events * 1e6,
        "errors": waiting - after["events"],
    }


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
