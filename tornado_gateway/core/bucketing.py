"""Hashing users into buckets, and weights into ranges of buckets (decision engine 1.6 and 3.0)."""

import math
from collections.abc import Iterable
from typing import Final

import mmh3

TRAFFIC_BUCKETS: Final = 100
VARIATION_BUCKETS: Final = 10_000
UNREACHABLE: Final = (-1, -1)

_SEED: Final = 1
_HASHES: Final = 4_294_967_296


def bucket_of(key: bytes, buckets: int) -> int:
    """Return the bucket 1..buckets of `key`. The order of the operations is the vendor's: it decides the rounding."""
    return int(buckets * (mmh3.hash(key, _SEED, False) / _HASHES) + 1)


def step_of(weight: float) -> int:
    """Return how many of the 10,000 buckets a weight in percent takes; 1.1 takes 111, because of the doubles."""
    return min(math.ceil(weight * 100), VARIATION_BUCKETS) if weight else 0


def ranges_of(weights: Iterable[float]) -> list[tuple[int, int]]:
    """Return the first and last bucket of each weight, in order. Weights are not rescaled to a sum of 100."""
    ranges = []
    taken = 0
    for weight in weights:
        step = step_of(weight)
        ranges.append((taken + 1, taken + step) if step else UNREACHABLE)
        taken += step
    return ranges
