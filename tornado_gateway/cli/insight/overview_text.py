"""The overview of the console as lines of text, for `top`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tornado_gateway.quantities import duration

Overview = Mapping[str, Any]

RATES = (
    ("Requests/s", "requests"),
    ("Decisions/s", "decisions"),
    ("Events received/s", "received"),
    ("Events delivered/s", "delivered"),
)
ACCOUNTS = ("received", "delivered", "waiting", "dead")
RARE_ACCOUNTS = ("rejected", "discarded", "lost", "unknown", "elsewhere")  # shown if there are any
BAD_COUNTS = ("dead", "lost")
MOST_PROBLEMS = 5
COLOURS = {"critical": "red", "warning": "yellow"}
_LEVELS = " ▁▂▃▄▅▆▇█"
_LABEL = 20  # characters


class Line(NamedTuple):
    """A line and its colour."""

    text: str
    colour: str | None = None


def frame(overview: Overview, width: int, height: int) -> list[Line]:
    """Return the lines of one frame, none wider than the terminal and no more than it has."""
    parts = [
        _head(overview),
        _rates(overview["samples"], width),
        _state(overview),
        _problems(overview["status"]),
        _workers(overview["status"]["workers"]),
    ]
    lines = [line for part in parts for line in (*part, Line(""))][:-1]
    return [Line(_printable(line.text)[:width], line.colour) for line in lines[:height]]


def _head(overview: Overview) -> list[Line]:
    status, account = overview["status"], overview["account"]
    up = duration(status["uptime_seconds"])
    clock = time.strftime("%H:%M:%S", time.localtime(overview["at"]))
    name = "no settings" if account["id"] is None else f"account {account['id']}, {account['features']} features"
    return [Line(f"FME gateway {status['version']}   {name}   up {up}   {clock}", "bold")]


def _rates(samples: Mapping[str, Sequence[float | None]], width: int) -> list[Line]:
    room = max(0, min(60, width - _LABEL - 12))
    lines = []
    for label, name in RATES:
        values = samples[name]
        drawn = sparkline(values[-room:] if room else ())
        lines.append(Line(f"{label:<{_LABEL}}{_number(_last(values)):>10}  {drawn}"))
    fast, slow = _last(samples["p50_ms"]), _last(samples["p99_ms"])
    latency = "no requests" if fast is None or slow is None else f"p50 {fast:.2f} ms, p99 {slow:.2f} ms"
    return [*lines, Line(f"{'Latency':<{_LABEL}}{latency:>10}")]


def _state(overview: Overview) -> list[Line]:
    status, store = overview["status"], overview["store"]
    events, settings, flush = status["events"], status["settings"] or {}, status["last_flush"] or {}
    is_bad = any(events.get(name) for name in BAD_COUNTS) or events.get("last_known") is not None
    is_bad |= events.get("discarded", 0) > events.get("discarded_internal", 0)  # INTERNAL_EVENTS is intended
    rare = [name for name in RARE_ACCOUNTS if events.get(name)]
    version, age = settings.get("version"), settings.get("age_seconds")
    confirmed = "" if age is None else f", confirmed {duration(age)} ago"
    confirmed += ", pinned" if settings.get("pin") else ""
    flushed = f"last flush {duration(overview['at'] - flush['at'])} ago" if flush.get("at") else "no flush yet"
    return [
        _fact("Events", _counts(events, ACCOUNTS), "red" if is_bad else None),
        *([_fact("", _counts(events, rare), "red" if is_bad else None)] if rare else []),
        _fact("Settings", "none" if version is None else f"version {version}{confirmed}", "red" * (version is None)),
        _fact("Delivery", flush["error"] if flush.get("error") else flushed, "red" * bool(flush.get("error"))),
        _fact("Store", f"{store['kind']}, {'up' if store['is_up'] else 'down'}", "red" * (not store["is_up"])),
    ]


def _counts(events: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_number(events[name])}" for name in names)


def _fact(name: str, value: str, colour: str | None) -> Line:
    return Line(f"{name:<{_LABEL}}{value}", colour or None)


def _problems(status: Mapping[str, Any]) -> list[Line]:
    problems = status["problems"]
    if not problems:
        return [Line("No problems", "green")]
    more = [Line(f"  and {len(problems) - MOST_PROBLEMS} more")] if len(problems) > MOST_PROBLEMS else []
    return [Line(f"Problems ({status['verdict']})", "bold"), *map(_problem, problems[:MOST_PROBLEMS]), *more]


def _problem(problem: Mapping[str, Any]) -> Line:
    place = f"{problem['environment']}: " if problem.get("environment") else ""
    return Line(f"  {problem['severity']}: {place}{problem['message']}", COLOURS.get(problem["severity"]))


def _workers(workers: Sequence[Mapping[str, Any]]) -> list[Line]:
    head = Line(f"{'Worker':<8}{'PID':>8}  {'State':<10}{'Up':>14}{'Requests':>12}{'Clients':>9}{'Waiting':>9}", "dim")
    return [head, *map(_worker, workers)]


def _worker(worker: Mapping[str, Any]) -> Line:
    up = duration(worker.get("uptime_seconds"))
    requests = (worker.get("requests") or {}).get("total")
    waiting = (worker.get("events") or {}).get("waiting")
    numbers = f"{_number(requests):>12}{_number(worker.get('connections')):>9}{_number(waiting):>9}"
    process = f"{worker.get('slot', '-')!s:<8}{worker.get('pid', '-')!s:>8}  {worker.get('state', 'serving'):<10}"
    return Line(f"{process}{up:>14}{numbers}")


# --- Values ---


def sparkline(values: Sequence[float | None]) -> str:
    """Return one character for each value, as high as its part of the largest one."""
    known = [value or 0.0 for value in values]
    most = max(known, default=0.0)
    return "".join(_LEVELS[-(-int(value / most * 1000) * 8 // 1000)] if most else _LEVELS[0] for value in known)


def _last(values: Sequence[float | None]) -> float | None:
    return values[-1] if values else None


def _number(value: float | None) -> str:
    """Return a number with thousands separators, "unknown" for None."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _printable(text: str) -> str:
    """Replace control characters, with which a text could change the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
