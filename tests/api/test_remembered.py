"""The memory of ready responses is bounded in bytes."""

from tornado_gateway.api.ofrep.derived import Remembered


def test_values_are_forgotten_beyond_the_limit_and_the_newest_stays():
    memory: Remembered[str] = Remembered(100)
    assert memory.get("a") is None
    assert memory.add("a", "first", 60) == "first"
    assert memory.add("b", "second", 40) == "second"
    assert (memory.get("a"), memory.get("b")) == ("first", "second")
    memory.add("c", "third", 1)
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (None, None, "third")
    memory.add("d", "larger than all", 1000)
    assert memory.get("d") == "larger than all"
    assert memory.get("c") is None
