"""The sample of visitors: distinct, whatever the order, the repetitions and the merges."""

import random
import zlib

import pytest

from tornado_gateway.core import visitor_uuid
from tornado_gateway.experiments.sample import DIGITS, SIZE_BYTES, VisitorSample, hashes_of, pack, unpack


def visitors(count, first=0):
    return [str(visitor_uuid("1", f"visitor-{number}"))[-DIGITS:] for number in range(first, first + count)]


def codes_of(digits):
    """Two variations, as a bucketing would draw them: from the visitor, and independent of the hash of the sample."""
    return bytes(1 + zlib.crc32(one.encode()) % 2 for one in digits)


def sample_of(digits, codes=None):
    sample = VisitorSample()
    add(sample, digits, codes_of(digits) if codes is None else codes)
    return sample


def add(sample, digits, codes):
    for place, rest, code in zip(*hashes_of(digits), codes, strict=True):
        sample.add(place, rest, code)


def content(sample):
    return sample.cells, sample.slots


def shuffled(items, seed=1):
    copy = list(items)
    random.Random(seed).shuffle(copy)
    return copy


@pytest.mark.parametrize(
    ("count", "percent"), [(0, 0), (1, 0), (10, 0), (100, 1), (1000, 1), (4096, 1), (50_000, 1), (200_000, 4)]
)
def test_the_number_of_distinct_visitors_is_estimated_at_every_size(count, percent):
    digits = visitors(count)
    sample = sample_of(digits, bytes([1]) * count)
    assert sample.visitors == pytest.approx(count, abs=count * percent / 100)
    assert sample.switched == 0


def test_repeated_visitors_change_nothing():
    digits = visitors(20_000)
    sample = sample_of(digits)
    before = content(sample_of(digits))
    sample.has_news = False
    again = shuffled(digits * 3)
    add(sample, again, codes_of(again))
    assert content(sample) == before
    assert not sample.has_news


def test_the_sample_is_as_large_as_the_test_needs_and_has_the_shares_of_all_visitors():
    digits = visitors(50_000)
    sample = sample_of(digits)
    assert sample.size > 25_000
    assert sample.count(1) + sample.count(2) == sample.size
    assert sample.count(1) / sample.size == pytest.approx(codes_of(digits).count(1) / 50_000, abs=0.01)


def test_merged_samples_of_workers_count_no_visitor_twice():
    digits = visitors(6_000)
    parts = [digits[:3_000], digits[2_000:5_000], digits[4_000:], digits[:100]]
    stored = VisitorSample()
    for part in parts:
        worker = sample_of(part)
        worker.merge(stored)  # as each worker does before it stores its own
        stored = worker
    assert stored.visitors == pytest.approx(6_000, rel=0.01)
    whole = sample_of(digits)
    assert stored.slots == whole.slots
    assert [bool(code) for code in stored.cells] == [bool(code) for code in whole.cells]
    assert stored.switched == 0
    repeated = sample_of(digits[:4_000])
    repeated.merge(stored)
    assert content(repeated) == content(stored)
    assert not repeated.has_news


def test_a_cell_never_changes_after_it_was_stored():
    """Otherwise the sample would not be a growing number of visitors, which the sequential test needs."""
    digits = visitors(30_000)
    stored = sample_of(digits[:20_000], bytes([1]) * 20_000)
    worker = sample_of(digits[10_000:], bytes([2]) * 20_000)
    worker.merge(stored)
    assert all(new == old for old, new in zip(stored.cells, worker.cells, strict=True) if old)
    assert worker.has_news


@pytest.mark.parametrize("is_merged", [False, True])
def test_a_visitor_with_two_variations_keeps_the_first_and_counts_as_switched(is_merged):
    digits = visitors(1_000)
    sample = sample_of(digits, bytes([1]) * 1_000)
    size = sample.size
    if is_merged:
        later = sample_of(digits[:300], bytes([2]) * 300)
        later.merge(sample)
        sample = later
    else:
        add(sample, digits[:300], bytes([2]) * 300)
    assert (sample.count(1), sample.count(2)) == (size, 0)
    assert sample.switched == pytest.approx(300, rel=0.15)
    assert sample.visitors == pytest.approx(1_000, rel=0.01)


def test_a_sample_is_stored_in_64_kb_and_read_again():
    sample = sample_of(visitors(100_000))
    body = pack(sample.raw())
    assert len(body) <= SIZE_BYTES == 64 * 1024
    assert content(unpack(body)) == content(sample)


@pytest.mark.parametrize(
    "body", [b"", b"no sample", pack(b""), pack(b"\x01" * (SIZE_BYTES - 1)), pack(b"\x01" * 10_000_000)]
)
def test_bytes_that_are_no_sample_are_recognized(body):
    assert unpack(body) is None
