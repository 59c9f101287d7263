"""What a getFlag costs: kinds of rules, location and device, size of the settings, acknowledgement, store.

    python benchmarks/getflag.py [--quick] [--seconds 3] [--rounds 3]

Every request is of another visitor. The events are delivered to a stand-in for the vendor during the load, and
afterwards everything that was taken must have arrived there.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accounts
from measure import PURE, Case, effort, end_cleanly_when_told, run_cases
from report import DELIVERED, LOAD_COLUMNS, Result, save
from servers import FLAG_PROBE, constant, directory, gateway

NOTES = (
    "CPU time includes storing the events and sending them upstream, until the last one has arrived.",
    '"main": a rollout and an A/B rule with a segment by custom variable; 100 features, asked for in turn; durable '
    "acknowledgement; embedded store (SQLite). The other rows differ from it in what their name says.",
    "All rows are of the compiled build, but for the one in pure Python.",
)


def case(name: str, kind: Callable[..., Any] = accounts.tested, features: int = 100, **options: Any) -> Case:
    serve = partial(gateway, accounts.account(features, kind), **options)
    return Case(name, serve, "getflag.lua", [features], FLAG_PROBE)


def cases(folder: Path) -> list[Case]:
    lists = accounts.write_networks(folder / "networks"), accounts.write_agents(folder / "agents")
    located = partial(gateway, accounts.account(100, accounts.enriched), MAXMIND_DB_PATH=accounts.LOCATION_DATABASE)
    return [
        Case("constant answer of the same front", constant, "getflag.lua", [100], FLAG_PROBE),
        case("plain: rollout only", accounts.plain),
        case("main"),
        case("main, pure Python", PYTHONPATH=PURE),
        case("fast acknowledgement", EVENT_ACK="fast"),
        Case("location and device segments", located, "enriched.lua", [100, *lists], FLAG_PROBE),
        case("1 feature", features=1),
        case("1,000 features", features=1000),
        *(case(f"{rules} A/B rules looked at", accounts.looking_at(rules)) for rules in (1, 5, 10, 20)),
        case("Redis", uses_redis=True),
        case("Redis, fast acknowledgement", uses_redis=True, EVENT_ACK="fast"),
    ]


def main() -> None:
    chosen = effort(__doc__)
    with directory() as folder:
        rows = run_cases(cases(folder), chosen)
    save(Result("getflag", "getFlag, CPU time per request", [*LOAD_COLUMNS, DELIVERED], rows, notes=NOTES), chosen)


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
