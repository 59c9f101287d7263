"""The summary of a stop: how many events were delivered, and how many remain."""

import sys
from collections import Counter

from tornado_gateway import logs
from tornado_gateway.config import Config
from tornado_gateway.quantities import counted
from tornado_gateway.telemetry.scoreboard import EVENT_COUNTS, InstanceReading, PartReading

SHOWN = ("delivered", "waiting", "dead", "rejected", "discarded", "lost")


def announce(config: Config, reading: InstanceReading) -> None:
    """Print the summary to stderr. `reading` has the final numbers of all workers."""
    counts, is_known = _sums(reading)
    facts: dict[str, object] = {name: counts[name] for name in SHOWN}
    if not is_known:
        facts |= {"waiting": None, "dead": None}
    sentence = summary(config, counts, is_known=is_known)
    after_echo = "\n" if sys.stderr.isatty() else ""  # a terminal shows Ctrl-C as ^C, in the same line
    logs.announce(sentence, {"events": facts}, f"{after_echo}{sentence}")


def summary(config: Config, counts: Counter[str], *, is_known: bool = True) -> str:
    """Return the summary in words. Of a queue that cannot be read, the remaining events are not known."""
    delivered = counts["delivered"]
    parts = [f"{counted(delivered, 'event')} {'was' if delivered == 1 else 'were'} delivered"]
    if not is_known:
        parts.append("an unknown number remains stored, because Redis could not be read")
    elif counts["waiting"]:
        place = "Redis" if config.uses_redis else str(config.data_dir.resolve())
        parts.append(f"{counts['waiting']} remain stored in {place} until the next start")
    else:
        parts.append("none remain stored")
    kinds = (("dead", "kept as dead letters"), ("discarded", "discarded"), ("lost", "lost"))
    parts += [f"{counts[name]} {kind}" for name, kind in kinds if counts[name]]
    return f"The gateway has stopped: {', '.join(parts)}."


def _sums(reading: InstanceReading) -> tuple[Counter[str], bool]:
    """Return the counts of all environments, and whether the waiting events are known."""
    views: list[PartReading | InstanceReading] = [*reading.environments.values()] or [reading]
    sums: Counter[str] = Counter()
    for view in views:
        sums.update({name: view.events[name] for name in EVENT_COUNTS})
    return sums, all(view.last_known is None for view in views)
