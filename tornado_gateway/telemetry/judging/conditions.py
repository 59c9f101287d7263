"""When the conditions of an environment and of the whole instance are met, as pure functions of facts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tornado_gateway.quantities import counted, duration

STALE_SECONDS = 3600.0  # of settings
LATE_SECONDS = 900.0  # of the oldest event
FULL_SHARE = 0.5  # of the queue
FEWEST_REQUESTS = 100  # for a share of requests to say something
FEWEST_ERRORS = 10
HIGHEST_SHARE = 0.01  # of failed requests, slow decisions and late timers
RESTARTS_OF_WORKER = 3
RECENT_SECONDS = {"rejected": 300.0, "lost": 900.0, "discarded": 900.0, "decision_errors": 900.0}


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about one environment. `rises` has the counters of RECENT_SECONDS that have increased recently.

    While the store cannot be read, `waiting` and `dead` are those of its last reading, `unread_seconds` ago.
    """

    is_loaded: bool = True
    settings_seconds: float | None = None
    settings_source: str | None = None
    oldest_seconds: float | None = None
    stuck: str | None = None
    waiting: int | None = 0
    dead: int | None = 0
    is_unknown: bool = False
    unread_seconds: float | None = None
    queue_limit: int = 0
    rises: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Load:
    """The load of all workers in the last minutes."""

    requests: int = 0
    errors: int = 0
    decisions: int = 0
    slow_decisions: int = 0
    timers: int = 0
    late_timers: int = 0
    restarts: int = 0
    workers: int = 1


def _no_settings(facts: Facts) -> str | None:
    return None if facts.is_loaded else "No settings have been loaded: flags cannot be evaluated."


def _settings_stale(facts: Facts) -> str | None:
    age = facts.settings_seconds
    if age is None or age <= STALE_SECONDS or facts.settings_source == "file":
        return None
    return f"VWO has not confirmed the settings for {duration(age)}."


def _events_waiting(facts: Facts) -> str | None:
    age = facts.oldest_seconds
    is_late = age is not None and age > LATE_SECONDS
    return f"The oldest event has been waiting for {duration(age or 0.0)}." if is_late else None


def _events_dead(facts: Facts) -> str | None:
    if not facts.dead:
        return None
    is_one = facts.dead == 1
    number, letters = counted(facts.dead, "event"), "a dead letter" if is_one else "dead letters"
    if facts.is_unknown:
        return f"{number} {'was' if is_one else 'were'} {letters} at the last reading."
    return f"{number} {'is' if is_one else 'are'} {letters}, rejected permanently by VWO."


def _queue_filling(facts: Facts) -> str | None:
    waiting, limit = facts.waiting or 0, facts.queue_limit
    is_filling = limit > 0 and waiting > FULL_SHARE * limit
    return f"The event queue is more than half full: {waiting} of {limit}." if is_filling else None


def _events_unknown(facts: Facts) -> str | None:
    if not facts.is_unknown:
        return None
    read = "never read" if facts.unread_seconds is None else f"last known {duration(facts.unread_seconds)} ago"
    return f"The numbers of waiting and dead events are unknown, {read}."


def _rise(counter: str, sentence: str) -> Callable[[Facts], str | None]:
    return lambda facts: sentence if counter in facts.rises else None


OF_ENVIRONMENT: Mapping[str, Callable[[Facts], str | None]] = {
    "no-settings": _no_settings,
    "settings-stale": _settings_stale,
    "events-waiting": _events_waiting,
    "events-stuck": lambda facts: facts.stuck,
    "events-dead": _events_dead,
    "events-lost": _rise("lost", "Stored events were lost in the last 15 minutes."),
    "events-rejected": _rise("rejected", "Events were rejected in the last 5 minutes."),
    "events-discarded": _rise("discarded", "Events were discarded in the last 15 minutes."),
    "events-unknown": _events_unknown,
    "queue-filling": _queue_filling,
    "decision-errors": _rise("decision_errors", "Decisions failed in the last 15 minutes; the features were off."),
}


def _request_errors(load: Load) -> str | None:
    if load.errors < FEWEST_ERRORS or load.errors <= HIGHEST_SHARE * load.requests:
        return None
    return f"{load.errors} of {load.requests} responses in the last 5 minutes were 5xx."


def _slow_decisions(load: Load) -> str | None:
    if load.decisions < FEWEST_REQUESTS or load.slow_decisions <= HIGHEST_SHARE * load.decisions:
        return None
    return f"{load.slow_decisions} of {load.decisions} decisions in the last 5 minutes took longer than 100 ms."


def _loop_lag(load: Load) -> str | None:
    if load.timers < FEWEST_REQUESTS or load.late_timers <= HIGHEST_SHARE * load.timers:
        return None
    percent = 100 * load.late_timers / load.timers
    return f"{percent:.0f} % of the timers in the last 5 minutes were more than 50 ms late: the workers are overloaded."


def _workers_restart(load: Load) -> str | None:
    many = load.restarts > RESTARTS_OF_WORKER * max(1, load.workers)
    return f"{load.restarts} workers have ended in the last 5 minutes." if many else None


OF_INSTANCE: Mapping[str, Callable[[Load], str | None]] = {
    "request-errors": _request_errors,
    "slow-decisions": _slow_decisions,
    "loop-lag": _loop_lag,
    "workers-restart": _workers_restart,
}


def found_in_environment(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the code and the sentence of each condition that is met."""
    for code, find in OF_ENVIRONMENT.items():
        if sentence := find(facts):
            yield code, sentence


def found_in_instance(load: Load) -> Iterator[tuple[str, str]]:
    for code, find in OF_INSTANCE.items():
        if sentence := find(load):
            yield code, sentence
