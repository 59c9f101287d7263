"""One worker and two: throughput and CPU time per request.

    python benchmarks/scale.py [--quick] [--seconds 3] [--rounds 3]

Each worker has a core, and the load has the cores that remain. Where none remains, the load, the stand-in and the
workers share all of them: throughput then says little, and CPU time per request is the number to look at.
"""

from functools import partial

from accounts import account
from measure import CORES, Case, Effort, Row, check_answer, effort, end_cleanly_when_told, load, say, summary, wrk
from report import DELIVERED, LOAD_COLUMNS, Column, Result, save
from servers import FLAG_PROBE, gateway

WORKERS = (1, 2)
FEATURES = 100
TIMES = Column("times_one", "times one worker", ".2f")


def main() -> None:
    chosen = effort(__doc__)
    rounds: dict[int, list[Row]] = {workers: [] for workers in WORKERS}
    for number in range(chosen.rounds):
        for workers in WORKERS:
            say(f"  round {number + 1}: {workers} workers")
            rounds[workers].append(measure_workers(workers, chosen))
    rows = [summary(f"{workers} worker{'s' if workers > 1 else ''}", rounds[workers]) for workers in WORKERS]
    for row in rows:
        row["times_one"] = row["per_second"] / rows[0]["per_second"]
    columns = [*LOAD_COLUMNS, TIMES, DELIVERED]
    save(Result("scale", "Workers", columns, rows, chart="per_second", notes=[cores_note()]), chosen)


def measure_workers(workers: int, chosen: Effort) -> Row:
    serve = partial(gateway, account(FEATURES), workers=workers, cores=CORES[:workers])
    case = Case(str(workers), serve, "getflag.lua", [FEATURES], FLAG_PROBE)
    with case.serve() as target:
        check_answer(target, case)
        wrk(target.port, case.script, case.arguments, chosen.warm_up_seconds, load_cores(workers))
        target.drain()
        return load(target, case, chosen.seconds, load_cores(workers))


def load_cores(workers: int) -> list[int]:
    return CORES[workers:] or CORES


def cores_note() -> str:
    if len(CORES) > max(WORKERS):
        return "Each worker has a core of its own, and so has the load."
    return (
        f"This machine has {len(CORES)} cores: with one worker the load and the stand-in have the other core, with two "
        "workers all share both, so that requests/s of two workers is what is left beside the load."
    )


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
