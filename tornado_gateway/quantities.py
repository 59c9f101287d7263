"""Quantities in words, the same in problems, log lines and commands. console/web/dom.js has the same for pages."""

from collections.abc import Sequence

UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def counted(number: int, name: str) -> str:
    """Return `1 event`, `2 events`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names and the number of the others: `a, b, c, d, e and 3 more`."""
    further = len(names) - most
    return ", ".join(names[:most]) + (f" and {further} more" if further > 0 else "")


def duration(seconds: float | None) -> str:
    """Return the two largest units, without a second one that is 0: `1 min 33 s`, `2 h`. None: `-`."""
    if seconds is None:
        return "-"
    rest = max(0, int(seconds))
    size, unit = next(((size, unit) for unit, size in UNITS if rest >= size), (1, "s"))
    amount, rest = divmod(rest, size)
    smaller = next(((rest // each, name) for name, each in UNITS if each < size), (0, ""))
    return f"{amount} {unit} {smaller[0]} {smaller[1]}" if smaller[0] else f"{amount} {unit}"
