"""An environment around a test's own settings and queue."""

from typing import Any

from process import sample_document

from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.environments.access import Access
from tornado_gateway.environments.environment import Documents, Environment
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.environments.single import SingleEnvironment
from tornado_gateway.errors import UpstreamError
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.events.usage import UsageStatistics
from tornado_gateway.experiments.monitor import ExperimentMonitor
from tornado_gateway.store.interfaces import Store
from tornado_gateway.upstream.client import DiscardingSink


async def nothing() -> bytes:
    raise UpstreamError("this environment has no upstream")


async def no_member(list_id: str, value: str) -> bool:
    return False


def environment_of(
    mirror: Any, queue: EventQueue, store: Store, *, sdk_key: str | None = None, **parts: Any
) -> Environment:
    """An environment with this mirror, or a stand-in for it, and this queue. `parts` replaces other parts."""
    defaults: dict[str, Any] = {
        "upstream": None,
        "flusher": Flusher(store.events, queue, DiscardingSink(), events_per_request=100, interval_seconds=60),
        "usage": UsageStatistics(DiscardingSink()),
        "evaluator": Evaluator(None, None, ListChecks(no_member)),  # type: ignore[arg-type]  # for tests without location and device
        "state": store.state,
        "experiments": ExperimentMonitor(store.state),
        "documents": Documents(nothing, None),
        "load_device": lambda: None,
        "settings_seconds": 5.0,
        "flush_seconds": 5.0,
    }
    account = str(sample_document()["accountId"])
    access = Access() if sdk_key is None else Access(account_id=account, sdk_keys=(sdk_key,))
    return Environment(mirror=mirror, events=queue, **(defaults | {"access": access} | parts))


def environments_of(
    mirror: Any, queue: EventQueue, store: Store, *, sdk_key: str | None = None, **parts: Any
) -> SingleEnvironment:
    return SingleEnvironment([environment_of(mirror, queue, store, sdk_key=sdk_key, **parts)])
