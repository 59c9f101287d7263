"""The counts of one environment in one worker, which travel in its record on the scoreboard.

The counters of `layout` are fixed before the workers start; environments come and go while they run.
"""

from collections.abc import Callable

from tornado_gateway import core
from tornado_gateway.telemetry.layout import DECISIONS, FLUSHES, OUTCOMES, POLLS
from tornado_gateway.telemetry.observer import decision_counter

Counts = dict[str, dict[str, int]]  # by metric, and by the value of its label

KEYS = ("current", "previous")  # SDK keys that requests name


class EnvironmentCounts:
    """Its methods are hooks that other rooms call. `decided` is called with each decision of getFlag.

    Decisions are counted here if the environment `is_one_of_many`; `on_decision` counts them anyway. `watch` is called
    with the user and the decision while a console watches decisions, otherwise only for the first ones of each tick of
    the live feed. Then it is None.
    """

    def __init__(
        self,
        on_decision: Callable[[core.Decision], None] = lambda decision: None,
        *,
        is_one_of_many: bool = False,
    ) -> None:
        self.watch: Callable[[str, core.Decision], None] | None = None
        self.decided = self._decided if is_one_of_many else on_decision
        self.keys = [0] * len(KEYS)
        self._on_decision = on_decision
        self._decisions = [0] * len(OUTCOMES)
        self._polls = dict.fromkeys(POLLS, 0)
        self._flushes = dict.fromkeys(FLUSHES, 0)

    def polled(self, outcome: str) -> None:
        self._polls[outcome] += 1

    def flushed(self, outcome: str) -> None:
        self._flushes[outcome] += 1

    def as_record(self) -> Counts:
        return {
            "decisions": dict(zip(OUTCOMES, self._decisions, strict=True)),
            "polls": self._polls,
            "flushes": self._flushes,
            "keys": dict(zip(KEYS, self.keys, strict=True)),
        }

    def _decided(self, decision: core.Decision) -> None:
        self._on_decision(decision)
        self._decisions[decision_counter(decision) - DECISIONS.start] += 1
