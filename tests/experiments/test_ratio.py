"""The test for a sample ratio mismatch: its p values, and simulated experiments.

A simulated experiment grows as a sample does: each of its 100,000 visitors (1 to 100 visits each, which change nothing,
see test_sample.py) fills a cell if it is free. The test is applied after every 1,000 visitors.
"""

import math
import random
from statistics import NormalDist

import pytest

from tornado_gateway.experiments.ratio import ALARM_P, chi_square_p, is_mismatch, sequential_p, survival
from tornado_gateway.experiments.sample import CELLS, DIGITS, VisitorSample, hashes_of

CHECKS = range(1_000, 100_001, 1_000)  # distinct visitors


@pytest.mark.parametrize(
    ("statistic", "degrees", "expected"),
    [
        (0.0, 1, 1.0),
        (3.841458820694124, 1, 0.05),
        (12.115665146397173, 1, 0.0005),
        (15.201804919084164, 2, 0.0005),
        (7.814727903251179, 3, 0.05),
        (18.307038053275146, 10, 0.05),
        (29.58829844507442, 10, 0.001),
        (59.70306430442993, 30, 0.001),
        (149.44925277903886, 100, 0.001),
    ],
)
def test_the_probability_of_chi_square_has_the_tabulated_values(statistic, degrees, expected):
    assert survival(statistic, degrees) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8])
def test_the_probability_of_chi_square_is_the_integral_of_its_density(degrees):
    def density(x):
        return math.exp((degrees / 2 - 1) * math.log(x) - x / 2 - degrees / 2 * math.log(2) - math.lgamma(degrees / 2))

    for statistic in (1.0, 5.0, 20.0):
        step = 0.005
        integral = sum(density(statistic + (place + 0.5) * step) for place in range(24_000)) * step
        assert survival(statistic, degrees) == pytest.approx(integral, rel=1e-4)


def test_chi_square_of_two_variations_is_the_normal_test():
    z = (5_200 - 5_000) / math.sqrt(10_000 * 0.25)
    assert chi_square_p([5_200, 4_800], [0.5, 0.5]) == pytest.approx(2 * (1 - NormalDist().cdf(z)), rel=1e-9)
    assert chi_square_p([0, 0], [0.5, 0.5]) == 1.0
    assert chi_square_p([500, 300, 200], [0.5, 0.3, 0.2]) == 1.0


def test_the_sequential_ratio_has_the_mean_one():
    """It is the sum of the probabilities of all outcomes under the alternative: it must be 1."""
    visitors, share = 40, 0.3
    total = 0.0
    for count in range(visitors + 1):
        probability = math.comb(visitors, count) * share**count * (1 - share) ** (visitors - count)
        counts, shares = [count, visitors - count], [share, 1 - share]
        ratio = math.lgamma(20) - math.lgamma(20 + visitors)
        for number, part in zip(counts, shares, strict=True):
            ratio += math.lgamma(20 * part + number) - math.lgamma(20 * part) - number * math.log(part)
        assert sequential_p(counts, shares, 20) == pytest.approx(min(1.0, math.exp(-ratio)), rel=1e-9)
        total += probability * math.exp(ratio)
    assert total == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.25, 0.25, 0.25, 0.25), (0.6, 0.3, 0.1)])
@pytest.mark.parametrize("visitors", [1_000, 5_000, 30_000])
def test_an_alarm_has_a_chi_square_below_the_limit_as_well(shares, visitors):
    """The sequential test is the stricter one each time."""
    counts = [round(visitors * share) for share in shares]
    while not is_mismatch(counts, shares):
        counts[0] += 1
        counts[-1] -= 1
    assert chi_square_p(counts, shares) < ALARM_P


def test_fewer_than_1000_visitors_raise_no_alarm():
    assert not is_mismatch([998, 1], [0.5, 0.5])
    assert is_mismatch([998, 2], [0.5, 0.5])


# --- Simulated experiments ---


def filled(visitors):
    """The expected number of filled cells, which the visitors of a sample fill."""
    return round(CELLS * -math.expm1(visitors * math.log1p(-1 / CELLS)))


def first_alarm(numbers, first_of_256):
    """The number of distinct visitors at the first alarm, None without one. The first variation has so many of 256."""
    is_first = bytes(byte < first_of_256 for byte in range(256))
    first = total = 0
    for visitors in CHECKS:
        new = filled(visitors) - total
        total += new
        first += numbers.randbytes(new).translate(is_first).count(1)
        if is_mismatch([first, total - first], [0.5, 0.5]):
            return visitors
    return None


def test_a_sample_grows_as_in_the_simulation():
    numbers = random.Random(14)
    sample = VisitorSample()
    visitors = [numbers.randbytes(DIGITS // 2).hex() for _ in range(100_000)]
    for start in range(0, 100_000, 10_000):
        new = visitors[start : start + 10_000]
        for place, rest, byte in zip(*hashes_of(new), numbers.randbytes(10_000), strict=True):
            sample.add(place, rest, 1 + byte % 2)
        assert sample.size == pytest.approx(filled(start + 10_000), rel=0.01)
    assert not is_mismatch([sample.count(1), sample.count(2)], [0.5, 0.5])


def test_of_1000_correct_experiments_no_more_raise_an_alarm_than_expected():
    """0.5 are the most that are expected, for all 100 checks together. More than 2 have a probability of 1.4 %."""
    numbers = random.Random(14)
    alarms = [first_alarm(numbers, 128) for _ in range(1_000)]
    assert 1_000 - alarms.count(None) <= 2


def test_a_split_of_52_to_48_is_found_before_50000_visitors_in_95_percent():
    """133 of 256 are 51.95 %."""
    numbers = random.Random(14)
    alarms = [first_alarm(numbers, 133) for _ in range(300)]
    found = [alarm for alarm in alarms if alarm is not None and alarm <= 50_000]
    assert len(found) >= 0.95 * len(alarms)
