"""The test for a sample ratio mismatch: whether visitors have their variations in the configured shares.

`chi_square_p` is the p of the visitors at this moment, which is valid if it is checked once. `sequential_p` is
valid for any number of checks, so the alarm uses it.

It is the inverse of a ratio of likelihoods: of the observed variations if their shares are unknown (a Dirichlet
distribution around the configured ones), and if they are the configured ones. If they are, the ratio is a martingale
with mean 1, which exceeds 1/p at any time with a probability of at most p (Ville's inequality).
"""

import math
from collections.abc import Sequence

LEAST_VISITORS = 1_000
ALARM_P = 0.0005
CONCENTRATION = 1_000.0  # of the Dirichlet distribution, in visitors: it finds deviations of some percent soonest


def chi_square_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Return the p of the counts of variations, if visitors have them with these shares, which are above 0."""
    total = sum(counts)
    if not total or len(counts) < 2:
        return 1.0
    expected = [total * share for share in shares]
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    return survival(statistic, len(counts) - 1)


def survival(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-square variable with these degrees of freedom is at least `statistic`.

    For whole degrees the incomplete gamma function is a finite sum, which for odd ones begins with erfc.
    """
    half, odd = statistic / 2, degrees % 2
    if half <= 0:
        return 1.0
    total = math.erfc(math.sqrt(half)) if odd else 0.0
    for step in range(degrees // 2):
        power = step + odd / 2
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
    return min(1.0, total)


def sequential_p(counts: Sequence[int], shares: Sequence[float], concentration: float = CONCENTRATION) -> float:
    """Return a p of a growing sample that may be checked any number of times. The shares are above 0."""
    ratio = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share
        ratio += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return math.exp(min(0.0, -ratio))


def is_mismatch(counts: Sequence[int], shares: Sequence[float]) -> bool:
    return sum(counts) >= LEAST_VISITORS and sequential_p(counts, shares) < ALARM_P
