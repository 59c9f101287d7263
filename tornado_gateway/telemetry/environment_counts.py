"""The counts of one environment in one worker, which travel in its record on the scoreboard.

The counters of `layout` are fixed before the workers start; environments come and go while they run.
"""

from tornado_gateway import core
from tornado_gateway.telemetry.layout import DECISIONS, FLUSHES, OUTCOMES, POLLS
from tornado_gateway.telemetry.observer import decision_counter

Counts = dict[str, dict[str, int]]  # by metric, and by the value of its label

KEYS = ("current", "previous")  # SDK keys that requests name


class EnvironmentCounts:
    """Its methods are hooks that other rooms call."""

    def __init__(self) -> None:
        self.decisions = [0] * len(OUTCOMES)
        self._polls = dict.fromkeys(POLLS, 0)
        self._flushes = dict.fromkeys(FLUSHES, 0)

    def decided(self, decision: core.Decision) -> None:
        self.decisions[decision_counter(decision) - DECISIONS.start] += 1

    def polled(self, outcome: str) -> None:
        self._polls[outcome] += 1

    def flushed(self, outcome: str) -> None:
        self._flushes[outcome] += 1

    def as_record(self) -> Counts:
        decisions = dict(zip(OUTCOMES, self.decisions, strict=True))
        return {"decisions": decisions, "polls": self._polls, "flushes": self._flushes}
