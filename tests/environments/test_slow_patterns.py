"""Row D7: slow patterns are counted by feature, in a bounded number of names."""

from tornado_gateway.environments.slow_patterns import LONGEST_NAME, MOST_NAMES, OTHERS, SlowPatterns


async def test_d7_further_features_are_counted_together():
    slow = SlowPatterns()
    for number in range(3 * MOST_NAMES):
        slow.note(f"feature-{number}", ["a", "b"])
    slow.note("feature-0", ["a"])
    assert len(slow.counts) == MOST_NAMES + 1
    assert (slow.counts["feature-0"], slow.counts[OTHERS]) == (3, 2 * 2 * MOST_NAMES)
    assert len(slow.problems()) == MOST_NAMES + 1


async def test_d7_a_long_name_is_cut():
    slow = SlowPatterns()
    slow.note("x" * 10_000, ["a"])
    assert dict(slow.counts) == {"x" * LONGEST_NAME: 1}


async def test_d7_a_pattern_that_is_no_longer_slow_is_no_problem():
    slow = SlowPatterns(shown_seconds=0.0)
    slow.note("feature", ["a"])
    assert slow.problems() == []
    assert slow.counts == {"feature": 1}
