"""Events of SDKs about themselves, which INTERNAL_EVENTS keeps from VWO.

The gateway itself makes one kind of them: the debug event of a decision about a feature with a debugger.
"""

import zlib
from collections.abc import Callable

from tornado_gateway import core
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.evaluation import Evaluator, StickyDecisions
from tornado_gateway.environments.slow_patterns import SlowPatterns
from tornado_gateway.store.interfaces import StateStore

NAMES = frozenset({"vwo_sdkUsageStats", "vwo_sdkDebug", "vwo_fmeSdkInit"})
FORWARD, SAMPLE, DROP = "forward", "sample", "drop"  # the values of INTERNAL_EVENTS
SAMPLE_EVERY = 10  # with SAMPLE, one of so many is forwarded


def is_discarded(policy: str, name: str, document: bytes) -> bool:
    """Return whether an event is not forwarded.

    The share depends on the document alone, so all workers decide the same, also when a client sends an event again.
    """
    if policy == FORWARD or name not in NAMES:
        return False
    return policy == DROP or zlib.crc32(document) % SAMPLE_EVERY != 0


class FilteringEvaluator(Evaluator):
    """An evaluator that discards debug events of its decisions; `on_discarded` is called with their number."""

    def __init__(
        self,
        policy: str,
        on_discarded: Callable[[int], None],
        location: LocationReader,
        device: DeviceReader,
        lists: ListChecks | None,
        *,
        aliases: StateStore | None,
        sticky: StickyDecisions | None,
        slow_patterns: SlowPatterns | None,
        on_shown: Callable[[core.Decision], None] | None,
    ) -> None:
        # One by one, because mypyc 2.4 passes `*parts, **options` to a base class wrongly.
        super().__init__(
            location, device, lists, aliases=aliases, sticky=sticky, slow_patterns=slow_patterns, on_shown=on_shown
        )
        self._policy = policy
        self._on_discarded = on_discarded

    def event_documents(
        self, settings: core.Settings, context: core.Context, decision: core.Decision
    ) -> tuple[bytes, int]:
        """Return the documents that are to be forwarded. The debug event is the last one of a decision."""
        documents, count = super().event_documents(settings, context, decision)
        if decision.debug is None or not count:
            return documents, count
        others, _, debug = documents.rpartition(b"\n")
        if not is_discarded(self._policy, "vwo_sdkDebug", debug):
            return documents, count
        self._on_discarded(1)
        return others, count - 1
