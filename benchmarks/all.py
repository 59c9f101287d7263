"""Runs all questions, or those given, one after the other: python benchmarks/all.py [getflag peers ...] [--quick]"""

import argparse
import importlib
import sys
import time
import traceback

from measure import UnavailableError, end_cleanly_when_told, say

UNASKED = ("instructions", "streams", "environments", "named", "goals")  # only if they are named
QUESTIONS = ("getflag", "events", "userdetails", "settings", "flush", "latency", "scale", "peers", "openfeature")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "questions",
        nargs="*",
        choices=[*QUESTIONS, *UNASKED, []],
        metavar="question",
        help=", ".join(QUESTIONS + UNASKED),
    )
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--compare", action="store_true", help="instructions with the stored ones, which stay")
    options = parser.parse_args()
    sys.argv[1:] = ["--quick"] * options.quick + ["--compare"] * options.compare
    failed = [question for question in options.questions or QUESTIONS if not answered(question)]
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def answered(question: str) -> bool:
    """Run one question; what goes wrong in it does not keep the others from being asked."""
    started = time.monotonic()
    say(f"{question} ...")
    try:
        if importlib.import_module(question).main():  # only those that compare return something
            return False
    except UnavailableError as reason:
        say(f"{question} is skipped: {reason}")
        return True
    except Exception:
        traceback.print_exc()
        return False
    say(f"{question}: {time.monotonic() - started:.0f} s")
    return True


if __name__ == "__main__":
    end_cleanly_when_told()
    sys.exit(main())
