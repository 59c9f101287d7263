"""The memory of ready responses is bounded in bytes."""

from tornado_gateway.api.ofrep.derived import Remembered


def test_values_are_forgotten_beyond_the_limit_and_the_newest_stays():
    memory: Remembered[str] = Remembered(100, entry_bytes=0)
    assert memory.get("a") is None
    assert memory.add("a", "first", 60) == "first"
    assert memory.add("b", "second", 40) == "second"
    assert (memory.get("a"), memory.get("b")) == ("first", "second")
    memory.add("c", "third", 1)
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (None, None, "third")
    memory.add("d", "larger than all", 1000)
    assert memory.get("d") == "larger than all"
    assert memory.get("c") is None


def test_many_small_values_are_forgotten_as_well():
    """Each of 8 million responses with a few bytes would have cost half a kilobyte."""
    memory: Remembered[str] = Remembered(10_000)
    for number in range(1000):
        memory.add(number, "small", 1)
    assert sum(memory.get(number) is not None for number in range(1000)) < 20
    assert memory.get(999) == "small"
