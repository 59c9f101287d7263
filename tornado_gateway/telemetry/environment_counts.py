"""The counts of one environment in one worker, which travel in its record on the scoreboard.

The counters of `layout` are fixed before the workers start; environments come and go while they run.
"""

from collections.abc import Callable, Sequence

from tornado_gateway import core
from tornado_gateway.telemetry.layout import FLUSHES, POLLS

Counts = dict[str, dict[str, int]]  # by metric, and by the value of its label

KEYS = ("current", "previous")  # SDK keys that requests name


class EnvironmentCounts:
    """Its methods are hooks that other rooms call.

    `count` is called with each decision, and counts it in `decisions`, by its outcome. `watch` is called with the user
    and the decision while a console watches decisions, otherwise only for the first ones of each tick of the live feed.
    Then it is None.
    """

    def __init__(
        self, count: Callable[[core.Decision], None] = lambda decision: None, decisions: Sequence[int] = ()
    ) -> None:
        self.watch: Callable[[str, core.Decision], None] | None = None
        self._count = count
        self.keys = [0] * len(KEYS)
        self.decisions = decisions or [0] * len(core.OUTCOMES)
        self._polls = dict.fromkeys(POLLS, 0)
        self._flushes = dict.fromkeys(FLUSHES, 0)

    def decided(self, user_id: str, decision: core.Decision) -> None:
        """Count a decision about a visitor, and show it to those who watch."""
        self._count(decision)
        if self.watch is not None:
            self.watch(user_id, decision)

    def polled(self, outcome: str) -> None:
        self._polls[outcome] += 1

    def flushed(self, outcome: str) -> None:
        self._flushes[outcome] += 1

    def as_record(self) -> Counts:
        return {
            "decisions": dict(zip(core.OUTCOMES, self.decisions, strict=True)),
            "polls": self._polls,
            "flushes": self._flushes,
            "keys": dict(zip(KEYS, self.keys, strict=True)),
        }
