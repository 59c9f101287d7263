"""Names that resemble an unknown one, for messages."""

import difflib
from collections.abc import Collection

MOST_COMPARED = 1000  # names, which takes some 10 ms


def nearest(name: str, names: Collection[str]) -> str | None:
    """Return the name that is most similar, None if there is none."""
    if len(names) > MOST_COMPARED:
        return None
    return next(iter(difflib.get_close_matches(name[:100], names, n=1)), None)


def suggested(name: str, names: Collection[str]) -> str:
    """Return `. Did you mean ...?`, or nothing if no name is similar."""
    near = nearest(name, names)
    return f". Did you mean {near}?" if near is not None else ""
