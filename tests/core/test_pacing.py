"""A compilation gives way to other work often, however many features there are."""

import sys

from core.documents import ab, document, feature, rollout, rule
from tornado_gateway.core import compile_settings

FEW, MANY = 50, 1000


def longest_stretch(features: int) -> int:
    """Compile settings with so many features, and return the largest number of lines between two yield points."""
    campaigns = [item for n in range(features) for item in (rollout(10 + 10 * n), ab(11 + 10 * n))]
    linked = [feature(n, rule(campaigns[2 * n], 1), rule(campaigns[2 * n + 1])) for n in range(features)]
    settings = document(linked, campaigns)
    lines, longest = 0, 0

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return trace

    def yield_point():
        nonlocal lines, longest
        longest, lines = max(longest, lines), 0

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        compile_settings(settings, yield_point=yield_point)
    finally:
        sys.settrace(before)
    return max(longest, lines)


def test_stretches_between_yield_points_do_not_grow_with_the_features():
    few, many = longest_stretch(FEW), longest_stretch(MANY)
    assert 0 < many < few + FEW
