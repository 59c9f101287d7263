"""How long tests take that repeat something: LONG_TESTS=1 is for the acceptance of a change of what they are about."""

import os

IS_LONG = bool(os.environ.get("LONG_TESTS"))


def length(usual: int, long: int) -> int:
    return long if IS_LONG else usual
