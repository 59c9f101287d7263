"""Another commit and this checkout, interleaved: constant, getFlag, and getFlag with Redis, in both builds.

    scripts/compile && python benchmarks/compare.py 1337aa6 [--quick] [--seconds 3] [--rounds 9]

The other commit is built below build/compare, with the packages of this checkout's environment. The table on the
standard output shows the medians of CPU time per request, and by how much this checkout differs. Exit code 1: a row is
not valid, or differs by more than --percent.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import accounts
from measure import COMPILED, HERE, PURE, Case, Row, add_effort, end_cleanly_when_told, read_effort, run_cases, say
from servers import FLAG_PROBE, gateway, simple

ROUNDS = 9  # the medians of three rounds differ by more than 3 % on a busy machine
FEATURES = 100
BUILDS = ("compiled", "pure Python")
QUESTIONS = ("constant", "main", "Redis")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="compared with this checkout")
    parser.add_argument("--percent", type=float, default=3.0, help="largest difference that passes")
    add_effort(parser)
    options = parser.parse_args()
    if options.rounds is None and not options.quick:
        options.rounds = ROUNDS
    before = built(options.commit)
    after = {"compiled": COMPILED, "pure Python": PURE}
    sides = (("before", before, before["pure Python"]), ("after", after, PURE))
    cases = [
        case(f"{side}, {question}, {build}", question, paths[build], Path(checkout))
        for question in QUESTIONS
        for build in BUILDS
        for side, paths, checkout in sides
    ]
    rows = {row["name"]: row for row in run_cases(cases, read_effort(options))}
    return report(rows, options.percent)


def built(commit: str) -> dict[str, str]:
    """The PYTHONPATH of each build of a commit, which is built if it has not been before."""
    name = output("git", "rev-parse", "--short", f"{commit}^{{commit}}").decode().strip()
    folder = HERE.parent / "build" / "compare" / name
    paths = {build: folder / build.split()[0] for build in BUILDS}
    if not (folder / "done").exists():
        say(f"building {name} in {folder} ...")
        shutil.rmtree(folder, ignore_errors=True)
        archive = output("git", "archive", name)
        for path in paths.values():
            path.mkdir(parents=True)
            subprocess.run(["tar", "--extract", "--directory", path], input=archive, check=True)
        command = [sys.executable, "setup.py", "build_ext", "--inplace", f"-j{os.cpu_count()}"]
        environment = os.environ | {"TORNADO_GATEWAY_COMPILE": "1"}
        subprocess.run(command, cwd=paths["compiled"], env=environment, check=True, stdout=subprocess.DEVNULL)
        (folder / "done").touch()
    return {build: str(path) for build, path in paths.items()}


def output(*command: str) -> bytes:
    return subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE).stdout


def case(name: str, question: str, path: str, checkout: Path) -> Case:
    if question == "constant":  # from the same checkout, because it names modules
        serve = partial(simple, sys.executable, checkout / "benchmarks" / "constant.py", PYTHONPATH=path)
    else:
        serve = partial(gateway, accounts.account(FEATURES), uses_redis=question == "Redis", PYTHONPATH=path)
    return Case(name, serve, "getflag.lua", [FEATURES], FLAG_PROBE)


def report(rows: dict[str, Row], percent: float) -> int:
    print("| case | before, µs CPU | after, µs CPU | difference % |\n| --- | ---: | ---: | ---: |")
    results = list(compared(rows))
    for name, before, after in results:
        if before.get("is_valid") and after.get("is_valid"):
            cells = [f"{row['cpu_us']:.2f} ±{row['cpu_us_spread']:.2f}" for row in (before, after)]
            print(f"| {name} | {cells[0]} | {cells[1]} | {difference(before, after):+.1f} |")
        else:
            print(f"| {name} | not valid: {problem(before, after)} | | |")
    return int(any(not is_within(before, after, percent) for _, before, after in results))


def compared(rows: dict[str, Row]) -> Iterator[tuple[str, Row, Row]]:
    for question in QUESTIONS:
        for build in BUILDS:
            name = f"{question}, {build}"
            yield name, rows[f"before, {name}"], rows[f"after, {name}"]


def difference(before: Row, after: Row) -> float:
    return float(100 * (after["cpu_us"] / before["cpu_us"] - 1))


def is_within(before: Row, after: Row, percent: float) -> bool:
    return bool(before.get("is_valid") and after.get("is_valid")) and difference(before, after) <= percent


def problem(*rows: Row) -> str:
    """The first reason why a row does not count."""
    reasons: Sequence[str] = [row.get("skipped") or "errors or lost events" for row in rows if not row.get("is_valid")]
    return reasons[0]


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
