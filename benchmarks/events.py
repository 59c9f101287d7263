"""What it costs to take an event: trackEvent, and /events/t of full SDKs, next to a constant answer.

python benchmarks/events.py [--quick] [--seconds 3] [--rounds 3]
"""

from functools import partial

from accounts import ACCOUNT_ID, SDK_KEY, account
from measure import Case, effort, end_cleanly_when_told, run_cases
from report import DELIVERED, LOAD_COLUMNS, Column, Result, save
from servers import constant, gateway

EVENT = "event.lua", [ACCOUNT_ID, SDK_KEY]
TIMES = Column("times_constant", "times the constant", ".2f")


def cases() -> list[Case]:
    serve = partial(gateway, account(100))
    fast = partial(gateway, account(100), EVENT_ACK="fast")
    probe = "/server-side/trackEvent", b'{"eventName":"purchase","userId":"probe"}', b'{"purchase":true}'
    return [
        Case("constant answer to an /events/t", constant, *EVENT),
        Case("/events/t", serve, *EVENT),
        Case("/events/t, fast acknowledgement", fast, *EVENT),
        Case("constant answer to a trackEvent", constant, "track.lua"),
        Case("trackEvent", serve, "track.lua", probe=probe),
        Case("trackEvent, fast acknowledgement", fast, "track.lua", probe=probe),
    ]


def main() -> None:
    chosen = effort(__doc__)
    rows = run_cases(cases(), chosen)
    for first in (0, 3):
        for row in rows[first : first + 3]:
            row["times_constant"] = row["cpu_us"] / rows[first]["cpu_us"]
    save(Result("events", "Taking an event, CPU time per request", [*LOAD_COLUMNS, DELIVERED, TIMES], rows), chosen)


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
