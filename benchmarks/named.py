"""getFlag with the SDK key in its query: with an ENVIRONMENTS_FILE of two environments, and without a file.

    python benchmarks/named.py [--quick] [--seconds 1] [--rounds 20]

Both builds, one worker, 100 features in each environment. All requests are for the first environment. Exits with 1 if
the median difference of the rounds is more than 0.3 µs in a build.
"""

import contextlib
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from accounts import ACCOUNT_ID, key_query
from environments import FEATURES, key_of, keys_of, stand_in, write_environments
from measure import COMPILED, LOAD_CORE, PURE, Case, Row, Target, effort, end_cleanly_when_told, run_cases
from report import DELIVERED, LOAD_COLUMNS, Result, save
from servers import FLAG_PROBE, delivery, directory, started_gateway

BUILDS = {"compiled": COMPILED, "pure Python": PURE}
ROUNDS = 20
QUERY = key_query(key_of(0))
PROBE = (FLAG_PROBE[0] + QUERY, *FLAG_PROBE[1:])
MOST_US = 0.3  # CPU time that a request may need in addition


def main() -> int:
    chosen = effort(__doc__)
    chosen = replace(chosen, rounds=2 if chosen.is_quick else max(ROUNDS, chosen.rounds))
    cases = [
        Case(f"{build}, {name}", partial(serve, path, count), "getflag.lua", (FEATURES, QUERY), PROBE)
        for build, path in BUILDS.items()
        for name, count in (("no file", 0), ("two environments", 2))
    ]
    rows = run_cases(cases, chosen)
    found = {build: differences(*rows[2 * place : 2 * place + 2]) for place, build in enumerate(BUILDS)}
    shown = "; ".join(
        f"{build} {statistics.median(these):+.2f} ±{statistics.stdev(these) / len(these) ** 0.5:.2f}"
        for build, these in found.items()
    )
    notes = [f"Median difference of the rounds in µs, with its standard error: {shown} (goal: at most +{MOST_US})."]
    save(Result("named", "The environment that a query names", (*LOAD_COLUMNS, DELIVERED), rows, "", notes), chosen)
    return int(any(statistics.median(these) > MOST_US for these in found.values()))


@contextlib.contextmanager
def serve(path: str, count: int) -> Iterator[Target]:
    """A gateway of this build with so many environments in a file; 0: without a file."""
    with directory() as folder, stand_in(folder, (LOAD_CORE,)) as vendor_port:
        options: dict[str, object] = {"UPSTREAM_URL": f"http://127.0.0.1:{vendor_port}", "PYTHONPATH": path}
        options |= named(folder, count) if count else {"ACCOUNT_ID": ACCOUNT_ID, "SDK_KEY": key_of(0)}
        with started_gateway(folder / "data", **options) as (pid, port):
            yield Target(pid, port, partial(delivery, port, vendor_port, 1))


def named(folder: Path, count: int) -> dict[str, object]:
    file = write_environments(folder / "environments.toml", keys_of(count))
    return {"ENVIRONMENTS_FILE": file, "READY_REQUIRES": "all"}


def differences(without: Row, with_file: Row) -> list[float]:
    """Return what a request needs in addition in each round, in µs of CPU time."""
    return [b["cpu_us"] - a["cpu_us"] for a, b in zip(without["rounds"], with_file["rounds"], strict=True)]


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
