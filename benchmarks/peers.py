"""The gateway next to what else answers such a request on one core: official SDKs, unleash-proxy, and yardsticks.

    python benchmarks/peers.py [--quick] [--seconds 3] [--rounds 3]

20 flags that are on for everybody; every request asks for one flag of another visitor. The gateway and the SDKs send
one event for each decision to the same stand-in; unleash-proxy does not send events for visitors.
"""

from collections.abc import Sequence
from functools import partial

import accounts
import servers
from measure import Case, Row, effort, end_cleanly_when_told, run_cases
from report import LOAD_COLUMNS, Column, Result, save

FEATURES = 20
OURS = "this gateway"
UNLEASH_HEADERS = {"Authorization": "benchmark"}
UNLEASH_ONE = "/proxy", b'{"toggles":["feature-0"],"context":{"userId":"probe"}}', b'"enabled":true'
UNLEASH_ALL = "/proxy?userId=probe", None, b"feature-19"
COLUMNS = (
    *LOAD_COLUMNS,
    Column("times_per_second", "gateway's requests/s ÷ this", ".2f"),
    Column("times_cpu", "CPU per request ÷ gateway's", ".2f"),
)
NOTES = (
    "The gateway stores each event before it answers; the SDKs keep theirs in memory until a batch is full; bare node, "
    "bare Tornado, the constant and nginx decide and store nothing; unleash-proxy decides, but has no events. "
    "wrk and the stand-in have the other core, which bounds requests/s of the fastest servers.",
)


def cases() -> list[Case]:
    document = accounts.account(FEATURES, accounts.plain)

    def flag(name: str, serve: object) -> Case:
        return Case(name, serve, "getflag.lua", [FEATURES], servers.FLAG_PROBE)  # type: ignore[arg-type]

    def unleash(name: str, what: str, probe: tuple[str, bytes | None, bytes]) -> Case:
        serve = partial(servers.unleash_proxy, FEATURES)
        return Case(name, serve, "unleash.lua", [FEATURES, what], probe, UNLEASH_HEADERS)

    return [
        flag(OURS, partial(servers.gateway, document)),
        flag("this gateway, fast acknowledgement", partial(servers.gateway, document, EVENT_ACK="fast")),
        flag("official Node SDK behind Fastify", partial(servers.node_sdk, FEATURES, accounts.plain)),
        flag("official Python SDK behind Tornado", partial(servers.python_sdk, FEATURES, accounts.plain)),
        unleash("unleash-proxy, one flag", "one", UNLEASH_ONE),
        unleash("unleash-proxy, all 20 flags", "all", UNLEASH_ALL),
        flag("bare Tornado RequestHandler", servers.bare_tornado),
        flag("bare node http server", servers.bare_node),
        flag("our HTTP front, a constant", servers.constant),
        flag("nginx, return 200", servers.constant_nginx),
    ]


def compare(rows: Sequence[Row]) -> None:
    """Add the ratios to the gateway's own row."""
    ours = next(row for row in rows if row["name"] == OURS)
    for row in rows:
        if "skipped" not in row:
            row["times_per_second"] = ours["per_second"] / row["per_second"]
            row["times_cpu"] = row["cpu_us"] / ours["cpu_us"]


def main() -> None:
    chosen = effort(__doc__)
    rows = run_cases(cases(), chosen)
    compare(rows)
    save(Result("peers", "One flag decision on one core, next to others", COLUMNS, rows, notes=NOTES), chosen)


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
