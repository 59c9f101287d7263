"""The faults of a run: which, when and for how long, all from the seed. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# Of each part: the faults with their shortest and longest duration, and the mean pause between two of them, in seconds.
# A part has one fault at a time. The faults of different parts overlap.
EMBEDDED = {
    "worker": ({"kill worker": (0, 0), "stop worker": (1, 20)}, 8),
    "parent": ({"kill parent": (0, 3), "terminate parent": (0, 3), "reload": (0, 0)}, 15),
    "upstream": (
        {
            "upstream hangs": (1, 6),
            "upstream returns 500": (1, 6),
            "upstream returns 503": (1, 4),
            "upstream cuts connections": (1, 6),
            "upstream takes events and cuts": (0.3, 1.5),
            "upstream takes events and responds late": (0.3, 1.5),
            "upstream is slow": (1, 6),
        },
        5,
    ),
    "settings": ({"settings fail": (1, 8), "settings hang": (1, 8)}, 15),
    "disk": ({"disk full": (2, 10), "directory read-only": (2, 10)}, 12),
    "clock": ({"clock steps": (1, 10)}, 6),
}
REDIS = EMBEDDED | {
    "redis": (
        {
            "redis is killed": (0, 6),
            "redis is stopped": (0.3, 10),
            "redis pauses": (0.3, 3),
            "redis is full": (1, 6),
            "redis connections are cut": (0, 0),
            "redis replies are lost": (0.3, 3),
            "redis clock steps": (1, 10),
        },
        6,
    ),
}
PARTS = {"embedded": EMBEDDED, "redis": REDIS}
CLOCK_STEPS = (5, -5, 600, -600, 10_000, -10_000, 200_000, -200_000)  # in seconds


@dataclass(frozen=True)
class Step:
    """One fault. `at` and `seconds` count from the start; `choice` decides which of several targets it hits."""

    at: float
    part: str
    fault: str
    seconds: float
    choice: int


def plan(seed: int, store: str, seconds: float) -> list[Step]:
    """Return all faults of a run of so many seconds, in order."""
    rng = random.Random(f"{seed} {store}")
    steps: list[Step] = []
    for part, (faults, mean_pause) in PARTS[store].items():
        at = rng.expovariate(1 / mean_pause)
        while at < seconds:
            fault = rng.choice(sorted(faults))
            duration = min(rng.uniform(*faults[fault]), seconds - at)
            steps.append(Step(round(at, 2), part, fault, round(duration, 2), rng.randrange(1 << 30)))
            at += duration + rng.expovariate(1 / mean_pause)
    return sorted(steps, key=lambda step: step.at)


def of_part(steps: Sequence[Step], part: str) -> list[Step]:
    return [step for step in steps if step.part == part]
