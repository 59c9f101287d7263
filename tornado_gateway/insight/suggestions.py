"""Names that resemble an unknown one, for messages."""

import difflib
from collections.abc import Collection

MOST_COMPARED = 1000  # names, which takes some 10 ms


def suggested(name: str, names: Collection[str]) -> str:
    """Return `. Did you mean ...?`, or nothing if no name is similar."""
    if len(names) > MOST_COMPARED:
        return ""
    near = difflib.get_close_matches(name[:100], names, n=1)
    return f". Did you mean {near[0]}?" if near else ""
