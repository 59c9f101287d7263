"""The counters in shared memory, with the labels of all routes: those of `api` and of `console`."""

from tornado_gateway.api import routes
from tornado_gateway.console import pages
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.layout import Layout, Routes

LAYOUT = Layout(
    Routes(routes.LABELS, routes.DECISION_LABEL, pages.LABELS, pages.TREES, routes.LABELS_OF_TREES),
)


def new_counters(rows: int = 1) -> SharedCounters:
    """Return the memory for so many rows. Create it before forking."""
    return SharedCounters(LAYOUT, rows)
