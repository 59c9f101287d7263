"""What /get-user-details costs: another address in every request, 500 user agents, next to a constant answer.

python benchmarks/userdetails.py [--quick] [--seconds 3] [--rounds 3]
"""

from functools import partial

import accounts
from measure import Case, effort, end_cleanly_when_told, run_cases
from report import LOAD_COLUMNS, Column, Result, save
from servers import constant, directory, gateway

TIMES = Column("times_constant", "times the constant", ".2f")
PROBE = "/get-user-details?ipAddress=2.125.160.216", None, b"Boxford"
NOTES = (
    "Half of the addresses are of the networks in MaxMind's test database, half are of anywhere, mostly unknown to it. "
    "That database is small: a lookup in the full one takes a few more steps down its tree.",
)


def main() -> None:
    chosen = effort(__doc__)
    with directory() as folder:
        lists = [
            accounts.write_networks(folder / "networks"),
            accounts.write_agents(folder / "agents", encoded=True),
        ]
        serve = partial(gateway, accounts.account(100), MAXMIND_DB_PATH=accounts.LOCATION_DATABASE)
        cases = [
            Case("constant answer to the same request", constant, "details.lua", lists),
            Case("/get-user-details", serve, "details.lua", lists, PROBE),
        ]
        rows = run_cases(cases, chosen)
    for row in rows:
        row["times_constant"] = row["cpu_us"] / rows[0]["cpu_us"]
    columns = [*LOAD_COLUMNS, TIMES]
    save(Result("userdetails", "/get-user-details, CPU time per request", columns, rows, notes=NOTES), chosen)


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
